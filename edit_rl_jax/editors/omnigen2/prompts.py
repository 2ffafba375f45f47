"""The chat around an instruction."""

# As in the released model; `ORIGINAL` stands in negative prompts of RL and GEdit-Bench, `DROPPED` where training drops
# the text.
EDIT = "You are a helpful assistant that generates high-quality images based on user instructions."
ORIGINAL = "You are a helpful assistant."
DROPPED = "You are a helpful assistant that generates images."


def chat(instruction: str, system: str = EDIT) -> str:
    """Writes a system and a user turn in ChatML, without an assistant's header."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n"
