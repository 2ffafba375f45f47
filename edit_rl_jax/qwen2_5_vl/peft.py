"""LoRA adapters of Qwen2.5-VL as PEFT writes them; reading, writing and merging are `nn.peft`'s."""

from pathlib import Path

from edit_rl_jax.nn import peft as generic
from edit_rl_jax.nn.peft import CONFIG, FILE, merge, save, tensors
from edit_rl_jax.qwen2_5_vl import weights

__all__ = ["CONFIG", "FILE", "Adapter", "load", "make_adapter", "merge", "read_adapter", "save", "tensors"]


class Adapter(generic.Adapter):
    """`nn.peft.Adapter` that says which towers it adapts."""

    @property
    def vision(self) -> bool:
        """Whether it adapts the blocks of the vision tower."""
        return self.targets("model.visual.blocks.0.attn.qkv") or self.targets("model.visual.blocks.0.mlp.up_proj")

    @property
    def merger(self) -> bool:
        return self.targets("model.visual.merger.mlp.0") or self.targets("model.visual.merger.mlp.2")


def _ours(a: generic.Adapter) -> Adapter:
    return Adapter(a.rank, a.alpha, a.config, a.naming)


def read_adapter(folder: str | Path) -> Adapter:
    """See `nn.peft.read_adapter`."""
    return _ours(generic.read_adapter(folder, weights.NAMING))


def make_adapter(state, rank: int, alpha: float, base: str | None = None) -> Adapter:
    """The description of an adapter that covers exactly the LoRA leaves of a state; base: folder or hub id."""
    return _ours(generic.make_adapter(state, weights.NAMING, rank, alpha, base, task_type="CAUSAL_LM"))


def load(folder_or_hub_id: str | Path, abstract, shardings=None, *, revision: str | None = None):
    """Reads an adapter folder or hub id into the LoRA leaves of a state: see `nn.peft.fill`."""
    return generic.load(weights.local_folder(folder_or_hub_id, revision), abstract, weights.NAMING, shardings)
