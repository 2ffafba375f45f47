"""A model that writes verifier replies without training: each piece of a reply is a token, whose embedding the head
turns into the next piece; which digit stands at a verdict and in the score hangs on the pictures, by random weights."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import AddedToken
from transformers import AutoTokenizer

from edit_rl_jax.data.records import Principle
from edit_rl_jax.nn import model_files
from edit_rl_jax.rewards.edit_rrm.prompts import TINY
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from tests.training import toy
from tests.training.micro import ARCHITECTURE

QUESTIONS = {"Follow": "is it red", "Keep": "extra none", "Quality": "blur none"}
PROMPTS = dataclasses.replace(TINY, name="chain", generic=QUESTIONS)
PRINCIPLES = tuple(Principle(q, c) for c, q in QUESTIONS.items())
_HEAD = [
    f'{before}{{"question": "{q}", "score":' for before, q in zip(("i looked .\n[", "}, ", "},  "), QUESTIONS.values())
]
VERDICTS = ((" 1", " 0"), ("  1", "  0"), ("\t1", "\t0"))  # tokens of their own, so that each has its own next piece
PIECES: list[tuple[str, ...]] = [
    *(p for pair in zip([(h,) for h in _HEAD], VERDICTS) for p in pair),
    ('}]\n<score>',), ("2", "4", "6", "9"), ("</score>",), ("<|im_end|>",),
]  # fmt: skip
STRENGTH, EMBEDDING, CHANCE = 6.0, 12.0, 0.4


def save(home: Path, seed: int = 0, **stored) -> Path:
    """Writes the model's folder."""
    toy.save_tokenizer(home)
    tokenizer = AutoTokenizer.from_pretrained(home)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for p in PIECES[:-1] for t in p])
    tokenizer.save_pretrained(home)
    sizes = dict(tie_word_embeddings=False, vocab_size=len(tokenizer), max_position_embeddings=1024)
    cfg, rng = Config.from_hf(ARCHITECTURE | sizes), np.random.default_rng(seed)
    state = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))[1]
    flat = {}
    for path, v in nnx.to_flat_state(state):
        shape = v.get_value().shape
        fan = math.sqrt(math.prod(shape[-2:-1])) if path[-1] in ("kernel", "bias") else 1.0
        value = np.ones(shape) if path[-1] == "scale" else rng.normal(size=shape) / fan
        mute = path[0] == "visual" and path[-1] == "bias"  # pictures differ by their pixels then
        flat[path] = (0 * value if mute else value).astype(np.float32)
    embed = flat["language_model", "embed_tokens", "embedding"]
    embed *= EMBEDDING / np.linalg.norm(embed, axis=1, keepdims=True)
    ids = [[tokenizer.convert_tokens_to_ids(t) for t in p] for p in PIECES]
    before = [[tokenizer.convert_tokens_to_ids("Ċ")], *ids[:-1]]  # a prompt ends in a new line
    # pieces have directions of their own; in those that are left, chance decides
    places = sorted({t for some in before for t in some})
    basis = np.linalg.qr(rng.normal(size=(embed.shape[1],) * 2))[0]
    embed[places] = EMBEDDING * basis[: len(places)]
    head = np.zeros((cfg.text.hidden_size, len(tokenizer)))
    for froms, tos in zip(before, ids):
        along = sum(embed[f] / EMBEDDING for f in froms)
        for t in tos:
            chance = rng.normal(size=len(basis) - len(places)) @ basis[len(places) :]
            head[:, t] = STRENGTH * along + CHANCE * (len(tos) > 1) * chance
    flat["lm_head", "kernel"] = head.astype(np.float32)
    made = nnx.from_flat_state({p: v.replace(jnp.asarray(flat[p])) for p, v in nnx.to_flat_state(state)})
    weights.save(made, cfg, home)
    model_files.stamp(
        home, {"objective": "edit_rrm", "prompts": PROMPTS.to_json(), "images": {"max_pixels": 56 * 56}} | stored
    )
    return home
