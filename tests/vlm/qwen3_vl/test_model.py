"""The model against itself: its program, what is differentiated, and rows without images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax import sharding
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.vlm.cross_entropy import loss
from edit_rl_jax.vlm.qwen3_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from tests.parity import ladder, tiny
from tests.parity.towers import error, jit

NAME = "3_tied_gqa"
TEXT = TextConfig(96, 32, 48, 3, 4, 2, 16, mrope_section=(4, 2, 2))
VISION = VisionConfig(2, 32, 40, 2, patch_size=14, out_hidden_size=32, deepstack_visual_indexes=(0,))
CONFIG = Config(VISION, TEXT, tiny.IMAGE, tiny.VIDEO, tiny.START, tiny.END, True)


def parts(cfg, **options):
    return nnx.split(nnx.eval_shape(lambda: Qwen3VL(cfg, rngs=nnx.Rngs(0), **options)), Trainable, Frozen)


def test_program_does_not_grow_with_depth():
    """Depth 4 and 32 of the tower, 3 and 64 decoder layers, one tap and three: the same lowered program size."""

    def size(vision_depth, text_depth, taps):
        vision = dataclasses.replace(VISION, depth=vision_depth, deepstack_visual_indexes=taps)
        cfg = dataclasses.replace(CONFIG, vision=vision, text=dataclasses.replace(TEXT, num_hidden_layers=text_depth))
        graphdef, trainable, frozen = parts(cfg, lora=LoRAConfig(vision=True, deepstack=True))
        inputs = ladder.batch(cfg)
        total = lambda t, f: jnp.sum(nnx.merge(graphdef, t, f).hidden(inputs))
        return len(jax.jit(jax.grad(total)).lower(trainable, frozen).as_text().splitlines())

    assert size(4, 3, (1,)) == size(32, 64, (1,)) and size(5, 4, (0, 2, 4)) == size(32, 64, (5, 11, 17))


def test_no_stack_of_weights_is_copied():
    """Of a wide model the compiled program needs far less memory beside its arguments than the stacks take: cutting
    the decoder at the deepstack levels, or the tower at its taps, would copy them."""
    text = dataclasses.replace(TEXT, hidden_size=256, intermediate_size=768, num_hidden_layers=24)
    vision = dataclasses.replace(VISION, depth=24, hidden_size=256, intermediate_size=768, out_hidden_size=256)
    cfg = dataclasses.replace(
        CONFIG, text=text, vision=dataclasses.replace(vision, deepstack_visual_indexes=(5, 11, 17))
    )
    graphdef, trainable, frozen = parts(cfg)
    inputs = ladder.batch(cfg, [[(tiny.SMALL, 0)]])
    run = jit(lambda t, f, b: nnx.merge(graphdef, t, f).hidden(b))
    compiled = run.lower(trainable, frozen, inputs).compile()
    stacks = (frozen["language_model"]["layers"], frozen["visual"]["blocks"])
    smallest = min(sum(v.size * 4 for v in jax.tree.leaves(s)) for s in stacks)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * smallest


def test_only_the_adapter_is_differentiated():
    for lora, expected in [
        (LoRAConfig(2), 7),
        (LoRAConfig(2, vision=True), 7 + 4),
        (LoRAConfig(2, merger=True), 7 + 2),
        (LoRAConfig(2, deepstack=True), 7 + 2),
    ]:
        leaves = jax.tree.leaves_with_path(parts(CONFIG, lora=lora)[1])
        assert len(leaves) == 2 * expected and all("lora" in jax.tree_util.keystr(path) for path, _ in leaves)
    full = parts(CONFIG, trainable="full", dtype=jnp.bfloat16)
    assert not jax.tree.leaves(full[2]) and {v.dtype for v in jax.tree.leaves(full[1])} == {jnp.dtype("float32")}
    hidden = jax.eval_shape(lambda t, f: nnx.merge(full[0], t, f).hidden(ladder.batch(CONFIG)), *full[1:])
    assert hidden.dtype == jnp.bfloat16


def test_rows_without_images_need_no_vision():
    """With vision rows of padding, and without the arrays: the same, and no deep levels are added."""
    model, inputs = ladder.ours(NAME), ladder.batch(ladder.architecture(NAME), [[(tiny.TEXT, 20)]])
    logits = jit(lambda m, b: m.logits(m.hidden(b)))
    text = {k: inputs[k] for k in ("tokens", "positions", "segments", "image_index")}
    real = slice(20, 20 + len(tiny.TEXT.tokens))
    assert error(logits(model, inputs)[0, real], logits(model, text)[0, real]) < 1e-6


@pytest.mark.parametrize("what", ["pos_index", "pos_weight", "patch_hw", "patch_segments", "patches"])
def test_every_input_matters(what):
    model, inputs = ladder.ours(NAME), ladder.batch(ladder.architecture(NAME), [[(tiny.TWO, 0)]])
    run = jit(lambda m, b: m.hidden(b))
    changed = jnp.roll(inputs[what], 1, axis=2) if what != "patch_segments" else jnp.minimum(inputs[what], 1)
    real = slice(0, len(tiny.TWO.tokens))
    assert error(run(model, inputs | {what: changed})[0, real], run(model, inputs)[0, real]) > 1e-3


def test_padding_has_no_learned_position():
    cfg = ladder.reference(NAME) and ladder.architecture(NAME)
    rows = cfg.vision_rows(2, 64)
    rows.place([(1, 4, 6), (1, 2, 2)])
    arrays = cfg.vision_arrays(rows.layout())
    free = arrays["patch_segments"] == 0
    assert not arrays["pos_weight"][free].any() and not arrays["pos_index"][free].any()
    np.testing.assert_allclose(arrays["pos_weight"][~free].sum(-1), 1, atol=1e-6)
    assert arrays["pos_index"][~free].max() == cfg.vision.num_position_embeddings - 1  # the last corner's


def test_sharded_equals_unsharded():
    """Loss and the adapter's gradients."""
    name = "3_levels"
    model, inputs = ladder.ours(name, ladder.lora_of(name)), ladder.batch(ladder.architecture(name))
    graphdef, *states = nnx.split(model, Trainable, Frozen)
    mean = lambda t, f, b: loss(nnx.merge(graphdef, t, f), b)[0]
    run = jit(jax.value_and_grad(mean))
    want = run(*states, inputs)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        placed = [jax.device_put(s, sharding.shardings(s, mesh)) for s in states]
        got = run(*placed, jax.device_put(inputs, sharding.batch_shardings(inputs, mesh)))
    assert error(got[0], want[0]) < 1e-5
    for (path, a), b in zip(jax.tree.leaves_with_path(got[1]), jax.tree.leaves(want[1])):
        assert error(a, b, least=1e-30) < 1e-4, jax.tree_util.keystr(path)
