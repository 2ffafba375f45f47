"""Sharded equals unsharded on 8 fake devices, forward and gradients; the rules name the tensor that does not fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, PartitionSpec
from ml_collections import ConfigDict

from edit_rl_jax.nn.params import Frozen, Init, LoRAConfig, Trainable
from edit_rl_jax.sharding import (
    DEFAULT_RULES,
    ShardingError,
    batch_shardings,
    laid_by_rows,
    make_mesh,
    shard,
    shardings,
)
from edit_rl_jax.training import on_mesh
from edit_rl_jax.vlm.text import TextModel

from .vlm.qwen2_5_vl.tiny import CONFIG, batch, jit, sample, tiny

# Dimensions that divide by 8 on both axes.
CFG = dataclasses.replace(
    CONFIG,
    vision=dataclasses.replace(CONFIG.vision, num_heads=8),
    text=dataclasses.replace(
        CONFIG.text, num_attention_heads=8, num_key_value_heads=2, head_dim=4, mrope_section=(1, 1, 0)
    ),
)
LORA = LoRAConfig(rank=4, alpha=6.0, vision=True, merger=True)


def inputs():
    one = [sample(0, 3, (1, 6, 10), 4), sample(1, 2, (1, 4, 4), 3)]
    two = [sample(2, 9, (1, 10, 6), 2)]
    return batch([one, two] * 4, 48, 2, 96)


def loss(graphdef, trainable, frozen, inputs):
    model = nnx.merge(graphdef, trainable, frozen)
    logits = model.logits(model.hidden(inputs))
    kept = jnp.where(inputs["segments"][..., None] > 0, logits, 0.0)
    return jnp.sum(jax.nn.log_softmax(kept)[..., 3]) / 10, kept


@functools.cache
def case():
    """Base and adapter both trainable, so that every leaf has a gradient to compare."""
    return nnx.split(tiny(CFG, lora=LORA, trainable="full"), Trainable, Frozen)


@functools.cache
def unsharded():
    graphdef, t, f = case()
    step = jax.value_and_grad(loss, argnums=1, has_aux=True)
    (value, logits), grads = jit(step, static_argnums=0)(graphdef, t, f, inputs())
    return float(value), np.asarray(logits), jax.tree.map(np.asarray, grads)


@pytest.mark.parametrize("mesh_shape", [pytest.param((4, 2), marks=pytest.mark.slow), (8, 1), (2, 4)], ids=str)
def test_sharded_equals_unsharded(mesh_shape, capsys):
    """1e-5 of each tensor's maximum, in fp32; with 4 devices on the tensor axis the two KV heads are replicated."""
    mesh = make_mesh({"fsdp": mesh_shape[0], "tensor": mesh_shape[1]})
    graphdef, t, f = case()
    t_sh, f_sh = shardings(t, mesh), shardings(f, mesh)
    assert ("kv_heads replicated 2x" in capsys.readouterr().out) == (mesh_shape[1] == 4)
    b_sh = batch_shardings(inputs(), mesh)
    with jax.set_mesh(mesh):
        step = jit(
            lambda t, f, b: jax.value_and_grad(loss, argnums=1, has_aux=True)(graphdef, t, f, b),
            in_shardings=(t_sh, f_sh, b_sh),
            out_shardings=(None, t_sh),
        )
        (value, logits), grads = step(*jax.device_put((t, f, inputs()), (t_sh, f_sh, b_sh)))
    want_value, want_logits, want = unsharded()
    assert abs(float(value) - want_value) <= 1e-5 * abs(want_value)
    assert np.abs(np.asarray(logits) - want_logits).max() <= 1e-5 * np.abs(want_logits).max()
    for (path, a), b in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(want)):
        assert np.abs(np.asarray(a) - b).max() <= 1e-5 * np.abs(b).max(), jax.tree_util.keystr(path)


def test_initial_weights_do_not_depend_on_the_mesh():
    def init():
        model = TextModel(CFG.text, rngs=nnx.Rngs(0), init=Init(lora=LORA), remat="none")
        return nnx.split(model, Trainable, Frozen)[1:]

    want = jit(init)()
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    sh = tuple(shardings(s, mesh) for s in jax.eval_shape(init))
    got = jit(init, out_shardings=sh)()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, want)
    kernel = got[1]["layers"]["mlp"]["gate_proj"]["kernel"][...]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_make_mesh():
    mesh = make_mesh({"tensor": 2, "fsdp": -1})
    assert mesh.axis_names == ("fsdp", "tensor") and mesh.shape == {"fsdp": 4, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert make_mesh({"data": 2, "fsdp": 2, "tensor": 2}).axis_names == ("data", "fsdp", "tensor")
    with pytest.raises(ShardingError, match="needs 16 devices, there are 8"):
        make_mesh({"fsdp": 16})
    with pytest.raises(ShardingError, match="model"):
        make_mesh({"model": 2})


class Device:
    """Of a slice of several."""

    platform, device_kind, process_index = "tpu", "TPU v6 lite", 0

    def __init__(self, i):
        self.id, self.slice_index = i, i // 4
        self.coords, self.core_on_chip = (i % 2, i % 4 // 2, 0), 0


def test_a_mesh_over_slices():
    """Along "data" alone do they lie; a preset, and what takes the devices left, is of each slice."""
    config = lambda topology="", **mesh: ConfigDict(
        {
            "topology": topology,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1} | mesh,
            "mesh_presets": {"v6e:2x2": {"fsdp": 4}},
        }
    )
    devices = [Device(i) for i in range(8)]
    for c in (config(), config("v6e:2x2"), config(data=2)):
        mesh = on_mesh.make_mesh(c, devices)
        assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1} or dict(mesh.shape) == {"data": 2, "fsdp": 4}
        slices = [{d.slice_index for d in part.flat} for part in mesh.devices]
        assert slices == [{0}, {1}]
    assert on_mesh.make_mesh(config(tensor=2), devices).shape["fsdp"] == 2
    for c in (config(fsdp=8), config(data=1, fsdp=4, tensor=2)):
        with pytest.raises(ShardingError, match='2 slices: "data", which is 1, has to be a multiple of 2'):
            on_mesh.make_mesh(c, devices)


def test_rules_name_the_tensor():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spec = lambda *a, rules=DEFAULT_RULES: rules.spec("layer.kernel", *a, mesh)
    assert spec((16, 6), ("batch", "mlp")) == PartitionSpec(("data", "fsdp"), "tensor")
    for args, message in [
        (
            ((3, 8), ("embed", "mlp")),
            "layer.kernel: dimension 0 .embed.* does not divide over fsdp=2; it does over 1, 3$",
        ),
        (((8, 8), ("heads", "mlp")), "layer.kernel: dimensions 0 and 1 .* both want mesh axis 'tensor'"),
        (((8, 24), ("embed", ("heads", 3))), "layer.kernel: dimension 1 .heads, 3 units"),
        (((8,), ("embed", "mlp")), "layer.kernel: shape"),
        (((8,), ("width",)), "layer.kernel: unknown logical axis 'width'"),
    ]:
        with pytest.raises(ShardingError, match=message):
            spec(*args)
    assert spec((3, 8), ("embed", "mlp"), rules=DEFAULT_RULES.replace(embed=None)) == PartitionSpec(None, "tensor")
    with pytest.raises(ShardingError, match="widht"):
        DEFAULT_RULES.replace(widht=None)
    # KV heads: fewer than the axis and dividing it are replicated, anything else is refused
    mesh = make_mesh({"tensor": 4})
    assert spec((8, 32), ("embed", ("kv_heads", 2))) == PartitionSpec(None, None)
    with pytest.raises(ShardingError, match="kv_heads, 3 units"):
        spec((8, 24), ("embed", ("kv_heads", 3)))


def test_data_axis_and_accumulation():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    got = batch_shardings({"tokens": np.zeros((3, 8, 5))}, mesh, accum=True)
    assert got["tokens"].spec == PartitionSpec(None, ("data", "fsdp"), None)
    with pytest.raises(ShardingError, match="tokens: dimension 0"):
        batch_shardings({"tokens": np.zeros((3, 8, 5))}, mesh)


def test_activation_constraint():
    x = jnp.ones((8, 6))
    assert shard(x, "batch", None) is x
    with jax.set_mesh(make_mesh({"fsdp": 4, "tensor": 2})):
        y = jax.jit(lambda x: shard(x, "batch", "mlp"))(x)
        assert y.sharding.spec == PartitionSpec("fsdp", "tensor")
        with pytest.raises(ShardingError, match="activation"):
            shard(x[:3], "batch", None)


def test_weights_are_laid_by_rows_and_programs_take_them_so():
    plain = jnp.arange(24.0).reshape(4, 6)
    turned = jax.device_put(plain, Format(Layout((1, 0)), plain.sharding))
    by_rows = laid_by_rows({"turned": turned, "plain": plain})
    assert by_rows["plain"] is plain and turned.is_deleted()
    assert by_rows["turned"].format.layout.major_to_minor == (0, 1)
    np.testing.assert_array_equal(by_rows["turned"], plain)
    columns = jax.device_put(plain, Format(Layout((1, 0)), plain.sharding))
    (taken,) = jax.jit(jnp.sin).lower(columns).compile().input_formats[0]
    assert taken.layout.major_to_minor == (1, 0), "a program takes what lies there as it lies"
