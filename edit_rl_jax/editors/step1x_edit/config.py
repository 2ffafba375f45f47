"""Configuration of Step1X-Edit's transformer with its connector, read from and written to `transformer/config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.mmdit.blocks import FREQUENCIES
from edit_rl_jax.nn.model_files import checked, read_config
from edit_rl_jax.nn.safetensors_io import WeightsError

V1_0, V1_1 = "v1.0", "v1.1"
_NAMES = {"pooled_projection_dim": "vector_in_dim"}  # ours -> theirs
SCALED = "connector_scale_factor"
"""Key of config.json, ours: true for v1.0, whose connector scales its mean; v1.0 was released without a config.json."""


@dataclasses.dataclass(frozen=True)
class Step1XConfig(FluxConfig):
    """The transformer; defaults are those of v1.1. `joint_attention_dim` is the connector's width."""

    guidance_embeds: bool = False
    connector_in_channels: int = 3584
    connector_heads_num: int = 32
    connector_depth: int = 2
    connector_scale_factor: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.guidance_embeds:
            raise ValueError("guidance_embeds: Step1X-Edit has none")
        if self.joint_attention_dim % self.connector_heads_num:
            raise ValueError(f"{self.connector_heads_num} heads do not divide {self.joint_attention_dim}")

    @property
    def version(self) -> str:
        """V1_0 or V1_1: they differ in the connector's scale and in where a reference stands."""
        return V1_0 if self.connector_scale_factor else V1_1

    @classmethod
    def from_hf(cls, source: Any) -> Step1XConfig:
        """As `FluxConfig.from_hf`."""
        source, where = read_config(source)
        given = {k: v for k, v in source.items() if k != "enable_text_token_mapping"}
        if source.get("enable_text_token_mapping") not in (None, False):
            raise WeightsError(f"{where}: not implemented: enable_text_token_mapping, of v1p2")
        if given.pop("timestep_in_dim", FREQUENCIES) != FREQUENCIES:
            raise WeightsError(f"{where}: not implemented: timestep_in_dim other than {FREQUENCIES}")
        width = checked(given.pop("connector_hidden_size", 4096), "int", f"{where}: connector_hidden_size")
        given = {next((a for a, b in _NAMES.items() if b == k), k): v for k, v in given.items()}
        if width != given.setdefault("joint_attention_dim", 4096):
            raise WeightsError(f"{where}: connector_hidden_size {width} is not joint_attention_dim")
        try:
            return super().from_hf(given)
        except WeightsError as e:
            raise WeightsError(f"{where}: {str(e).removeprefix('config: ')}") from None

    def to_hf(self) -> dict[str, Any]:
        """The config.json of upstream's version for diffusers, with `SCALED` for v1.0."""
        found = {_NAMES.get(k, k): v for k, v in dataclasses.asdict(self).items() if k != SCALED or v}
        named = {"_class_name": "Step1XEditTransformer2DModel", "patch_size": 1, "timestep_in_dim": FREQUENCIES}
        return {**named, "connector_hidden_size": self.joint_attention_dim, **found}
