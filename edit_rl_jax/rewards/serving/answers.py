"""Reads the answer of a chat completion: the text that is the answer, or why there is none.

Servers differ: the text is one string or a list of parts, a reasoning stands in a field or a part of its own, a
refusal too. A reasoning is never taken for the answer.
"""

from typing import Any

from edit_rl_jax.rewards.serving.service import kind, one_line

REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # fields of a message
THOUGHTS = ("reasoning", "thinking", "redacted_thinking", "reasoning_text")  # types of parts


def read_text(answer: dict[str, Any]) -> tuple[str, str]:
    """Returns (text, why it is not an answer or "") of an answer's first choice. Never raises."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return "", f"choices is {'an empty list' if choices == [] else kind(choices)}"
    choice = choices[0]
    if not isinstance(choice, dict):
        return "", f"the choice is {kind(choice)}, not an object"
    if choice.get("error"):
        return "", _said("an error in the choice", choice["error"])
    message, ended = choice.get("message"), choice.get("finish_reason")
    if message is None and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        return "", "the choice has no message" if message is None else f"the message is {kind(message)}"
    text, refusal = _content(message.get("content"))
    if refusal := message.get("refusal") or refusal:
        return text or "", _said("refused", refusal)
    if ended == "content_filter":
        return text or "", "stopped by the content filter"
    if text is None:
        return "", f"the content is {kind(message['content'])}, not text"
    if text.strip():
        return text, ""
    if ended == "length":
        return "", f"no answer: it was cut {'inside its reasoning' if _thought(message) else 'at the limit of tokens'}"
    return "", "no answer beside its reasoning" if _thought(message) else "no text in the answer"


def _thought(message: dict[str, Any]) -> bool:
    """Whether a message holds a reasoning in a field or a part of its own."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return any(message.get(k) for k in REASONING) or any(isinstance(p, dict) and _is_thought(p) for p in parts)


def _is_thought(part: dict[str, Any]) -> bool:
    return part.get("type") in THOUGHTS or bool(part.get("thought"))


def _content(content: Any) -> tuple[str | None, str]:
    """(text, refusal) of a message's content; the text is None where it is nothing that holds text."""
    if content is None or isinstance(content, str):
        return content or "", ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        return None, ""
    texts, refusals = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and not _is_thought(part):
            text = part.get("text")
            text = text.get("value") if isinstance(text, dict) else text  # as the Assistants API nests it
            texts.append(text if isinstance(text, str) else "")
            refusals.append(part.get("refusal") if isinstance(part.get("refusal"), str) else "")
    return "".join(texts), "".join(refusals)


def _said(what: str, found: Any) -> str:
    """`what`, and the text that a refusal or an error holds."""
    if isinstance(found, dict):
        found = found.get("message") or found.get("type") or found.get("code")
    return f"{what}: {one_line(found)}" if isinstance(found, str) else what
