"""An editor small enough for seconds, on scenes of 16 pixels: what the tests of its training share."""

import dataclasses

from edit_rl_jax.editors.omnigen2 import tiny, trainable
from edit_rl_jax.editors.omnigen2.editor import Configs
from edit_rl_jax.training import config as config_lib

RESOLUTION = 16


def configs() -> Configs:
    base, change = tiny.configs(), dataclasses.replace
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    text = change(base.mllm.text, num_key_value_heads=1, mrope_section=(1, 1, 2), **sizes)
    mllm = change(base.mllm, text=text, vision=change(base.mllm.vision, out_hidden_size=16))
    small = dict(hidden_size=24, num_attention_heads=2, num_kv_heads=1, num_layers=1, multiple_of=8, text_feat_dim=16)
    vae = change(base.vae, block_out_channels=(4, 8), norm_num_groups=2, patch=2, patch_channels=5)
    transformer = change(base.transformer, in_channels=5, axes_dim_rope=(4, 4, 4), **small)
    return Configs(mllm, transformer, vae)


def config(**changes):
    """Changes are {"dotted.key" with "__" for ".": value}."""
    c = config_lib.default("omnigen2", "flow_matching")
    flat = dict(
        steps=24,
        rows=4,
        accum=2,
        model__config=trainable.to_json(configs()),
        model__tokenizer="editworld",
        model__trainable="full",
        model__train_text=True,
        model__remat="none",
        data__train="editworld_edits",
        data__size=30,
        data__validation_size=8,
        data__resolution=RESOLUTION,
        data__buckets=((16, 1, RESOLUTION, RESOLUTION), (32, 1, RESOLUTION, RESOLUTION)),
        flow__drop_text=0.2,
        flow__shift="none",
        optim__lr=1e-2,
        optim__ema=0.9,
        checkpoint__every=3,
        eval__batches=1,
        log__tensorboard=False,
        checkpoint__rehearse=False,
        compilation_cache="",
    )
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in (flat | changes).items()})
    config_lib.check(c)
    return c
