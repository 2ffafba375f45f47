"""What the models of Qwen's VLMs share: vision tower + decoder + head, as one NNX module whose attribute names are
Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.nn.attention import attention as run_attention
from edit_rl_jax.nn.linear import Linear, head_logits
from edit_rl_jax.nn.params import Init, LoRAConfig
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.qwen_config import QwenConfig
from edit_rl_jax.vlm.text import TextModel


class QwenVL(nnx.Module):
    """A model. `nnx.eval_shape(lambda: Model(...))` gives it abstract; `nnx.split(m, Trainable, Frozen)` at jit.

    A family's own has `tower` and `image_features`.

    Args:
      lora: adapters on every decoder linear (and the tower's, merger's, ... when it says so), or None.
      trainable: "lora" (base Frozen in `dtype`) or "full" (base Trainable in fp32, cast to `dtype` at use).
      dtype: of activations and frozen weights.
      remat: policy name of nn/stack.py.
      attention: implementation (see nn/attention.py), None = by platform.
      text_only: neither vision tower nor head: for `hidden` of rows without images.
    """

    def __init__(
        self,
        cfg: QwenConfig,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        trainable: str = "lora",
        dtype=jnp.float32,
        remat: str = "nothing_saveable",
        attention: str | None = None,
        text_only: bool = False,
    ):
        if trainable not in ("lora", "full"):
            raise ValueError(f"trainable {trainable!r} is not 'lora' or 'full'")
        dtype, full = jnp.dtype(dtype), trainable == "full"
        init = lambda part: Init(dtype, full, lora if lora and (part == "text" or getattr(lora, part)) else None)
        self.visual = None if text_only else self.tower(cfg, init, rngs=rngs, remat=remat, attention=attention)
        self.language_model = TextModel(cfg.text, rngs=rngs, init=init("text"), remat=remat)
        head = lambda: Linear(*size, ("embed", "vocab"), rngs=rngs, init=init("head"))
        size = (cfg.text.hidden_size, cfg.text.vocab_size)
        self.lm_head = None if cfg.tie_word_embeddings or text_only else head()
        self.cfg, self.dtype, self.attention = cfg, dtype, attention

    def tower(self, cfg: Any, init: Callable[[str], Init], **options: Any) -> Any:
        """Makes the vision tower; init(part): by its name in `LoRAConfig`. options: rngs, remat, attention."""
        raise NotImplementedError

    def image_features(self, arrays: Mapping[str, Array]) -> Any:
        """Features of packed images, in the text width and slot order: leaves [B, M, ...]."""
        raise NotImplementedError

    def embed(
        self,
        tokens: Int[Array, "B T"],
        features: Float[Array, "B T D"] | None = None,
        is_image: Bool[Array, "B T"] | None = None,
    ) -> Any:
        """Token embeddings [B, T, D]; where is_image, the features of that place."""
        x = self.language_model.embed_tokens(tokens, self.dtype)
        if features is not None:
            x = jnp.where(is_image[..., None], features.astype(x.dtype), x)
        return shard(x, "batch", None, None)

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, of packed rows (see `rows`); padding positions hold nothing of use."""
        seen, index = None, batch["image_index"]
        if "patches" in batch and batch["patches"].shape[1] * batch["patches"].shape[2]:
            features = self.image_features(batch)
            at = lambda f: jnp.expand_dims(jnp.maximum(index, 0), tuple(range(2, f.ndim)))
            seen = jax.tree.map(lambda f: jnp.take_along_axis(f, at(f), axis=1), features)
        x = self.embed(batch["tokens"], seen, index >= 0)
        segments = batch["segments"]

        def attend(q, k, v, state):
            out = run_attention(q, k, v, q_segments=segments, kv_segments=segments, causal=True, impl=self.attention)
            return out, state

        return self.language_model(x, batch["positions"], attend)[0]

    def logits(self, h: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """fp32 next-token logits of hidden states."""
        if self.lm_head is None:
            return self.language_model.embed_tokens.attend(h)
        head = self.lm_head
        out = head_logits(h, head.kernel[...])
        if head.lora_a is None:
            return out
        low = head_logits(h, head.lora_a[...])
        return out + head_logits(low, head.lora_b[...]) * head.lora_scale
