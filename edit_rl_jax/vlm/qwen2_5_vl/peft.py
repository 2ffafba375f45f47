"""LoRA adapters of Qwen2.5-VL as PEFT writes them; reading, writing and merging are `nn.peft`'s."""

import dataclasses
from pathlib import Path

from edit_rl_jax.nn import peft as generic
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.peft import CONFIG, FILE, merge, save, tensors
from edit_rl_jax.vlm.qwen2_5_vl import weights

__all__ = ["CONFIG", "FILE", "Adapter", "load", "make_adapter", "merge", "read_adapter", "save", "tensors"]


class Adapter(generic.Adapter):
    """`nn.peft.Adapter` that says which parts of the model it adapts."""

    @property
    def vision(self) -> bool:
        """Whether it adapts any of the blocks of the vision tower."""
        return self._any("model.visual.blocks.")

    @property
    def merger(self) -> bool:
        return self._any("model.visual.merger.")

    @property
    def patches(self) -> bool:
        return self._any("model.visual.patch_embed.")

    @property
    def head(self) -> bool:
        return self._any("lm_head")

    def _any(self, start: str) -> bool:
        return any(m.startswith(start) for m in self.layers)

    @property
    def lora(self) -> LoRAConfig:
        """The leaves that a model needs to hold it."""
        return LoRAConfig(self.rank, self.alpha, self.vision, self.merger, self.patches, self.head)


def _ours(a: generic.Adapter) -> Adapter:
    return Adapter(**{f.name: getattr(a, f.name) for f in dataclasses.fields(a)})


def read_adapter(folder: str | Path) -> Adapter:
    """See `nn.peft.read_adapter`."""
    return _ours(generic.read_adapter(folder, weights.NAMING))


def make_adapter(state, rank: int, alpha: float, base: str | None = None) -> Adapter:
    """The description of an adapter that covers exactly the LoRA leaves of a state; base: folder or hub id."""
    return _ours(generic.make_adapter(state, weights.NAMING, rank, alpha, base, task_type="CAUSAL_LM"))


def load(folder_or_hub_id: str | Path, abstract, shardings=None, *, revision: str | None = None):
    """Reads an adapter folder or hub id into the LoRA leaves of a state: see `nn.peft.fill`."""
    return generic.load(weights.local_folder(folder_or_hub_id, revision), abstract, weights.NAMING, shardings)
