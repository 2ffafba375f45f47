"""The world's own tokenizer: byte-level BPE of at most 2,000 entries on EditWorld text, in Qwen2's manner.

Digits stand alone, as in Qwen's, and the special tokens carry Qwen's names. Saved as Hugging Face files.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from edit_rl_jax.editworld import language
from edit_rl_jax.editworld.edits import random_edit
from edit_rl_jax.editworld.perception import PROMPTS, Perception
from edit_rl_jax.editworld.scene import SPLITS, rng

MAX_ENTRIES = 2000
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's pre-tokenisation: contractions, words with one leading sign or space, single digits, punctuation, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(count: int = 4000, seed: int = 0) -> Iterator[str]:
    """Text of the world: instructions of all splits, reasons in their JSON reply, prompts and answers of perception."""
    for split in SPLITS:
        for i in range(count // len(SPLITS)):
            edit = random_edit(rng("corpus", split, seed, i), split)
            reason = language.sc_reasoning(
                edit, edit.targets[0].scene, [(0, 0.2, 0.36, 0.6, 1)[i % 5]], i % 4, (i % 26, i % 7)
            )
            quality = language.pq_reasoning({"noise": i % 7 / 7, "blur": i % 5 / 5, "blocks": i % 3 / 3})
            yield f"user\nJudge the edit: {edit.instruction}"
            yield "user\nJudge the image quality."
            yield f'assistant\n{{"reasoning": "{reason}", "score": [{i % 26}, {i * 7 % 26}]}}'
            yield f'assistant\n{{"reasoning": "{quality}", "score": [{i % 26}, {i * 5 % 26}]}}'
    for task in PROMPTS:
        for example in map(
            Perception("train", count, seed, resolution=12, mixture={task: 1.0}).__getitem__, range(min(200, count))
        ):
            yield from (p for p in (*example.prompt, example.answer) if isinstance(p, str))


def train(texts: Iterable[str] | None = None, entries: int = MAX_ENTRIES) -> tokenizers.Tokenizer:
    """Trains the tokenizer. Deterministic. The special tokens have ids 0-7, whatever the text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=3,
        special_tokens=[tokenizers.AddedToken(s, special=True) for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus() if texts is None else texts, trainer)
    return tokenizer


def save(folder: str | Path, tokenizer: tokenizers.Tokenizer | None = None) -> None:
    """Writes the tokenizer (a fresh one by default) as the files that `transformers.AutoTokenizer` reads."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=train() if tokenizer is None else tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(str(folder))
