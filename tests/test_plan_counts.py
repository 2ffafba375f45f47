"""Counting what a compiled module does: trip counts, FLOPs, collectives by mesh axis, HBM traffic, arguments."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from edit_rl_jax import chips, flops, sharding
from edit_rl_jax.nn.stack import scan_layers
from edit_rl_jax.plan import counts
from edit_rl_jax.plan.hlo import Module, _axes, _groups, collectives

pytestmark = pytest.mark.usefixtures("optimized")

LAYERS, ROWS, WIDTH = 5, 64, 256


def v5e(**axes):
    return sharding.make_mesh(axes, chips.describe("v5e:2x2")[1])


def arg(mesh, shape, *axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def module(fn, *args):
    return Module(jax.jit(fn).lower(*args).compile().as_text())


def test_a_training_step_over_fsdp_and_tensor_is_counted():
    """Of a stack of products whose weights lie over "fsdp" (inputs) and "tensor" (outputs), forward and backward."""
    mesh = v5e(fsdp=2, tensor=2)
    place = lambda x, *axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    def loss(weights, x):
        def body(x, pair):
            hidden = place(jnp.tanh(x @ pair[0]), "fsdp", "tensor")
            return place(hidden @ pair[1], "fsdp"), None

        return jnp.sum(jax.lax.scan(body, x, weights)[0].astype(jnp.float32))

    weights = (
        arg(mesh, (LAYERS, WIDTH, WIDTH), None, "fsdp", "tensor"),
        arg(mesh, (LAYERS, WIDTH, WIDTH), None, "tensor", "fsdp"),
    )
    x = arg(mesh, (ROWS, WIDTH), "fsdp")
    step = jax.grad(loss)
    found = module(step, weights, x)
    assert not found.unknown
    done, unknown = counts.flops(found)
    # 2 products a layer, each forward, for its weights and for what comes in; the first layer's input needs no gradient
    whole = LAYERS * 2 * 2 * ROWS * WIDTH**2 * 3
    assert not unknown and sum(done.values()) * 4 == pytest.approx(whole, rel=0.04)
    assert flops.count(step, weights, x) == pytest.approx(whole, rel=0.04)

    axes = collectives(found, mesh.shape)
    total = lambda kinds: sum(c["bytes"] for c in kinds.values())
    assert set(axes) <= {"fsdp", "tensor", "fsdp+tensor"}
    assert sum(map(total, axes.values())) == total(collectives(found))
    # along "fsdp" half of each weight's half comes twice and its gradient goes once, in either bf16 or fp32
    part = 2 * LAYERS * WIDTH * WIDTH // 4 * 2
    assert 2 * part < total(axes["fsdp"]) < 8 * part
    # along "tensor" the activations are added up, forward and backward: bf16, half of the rows
    once = 2 * LAYERS * ROWS // 2 * WIDTH * 2
    assert 0.9 * once < total(axes["tensor"]) < 2.1 * once


def test_groups_of_all_spellings_are_those_of_the_mesh():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    spelled = {
        "replica_groups=[4,2]<=[8], use": "tensor",
        "replica_groups=[2,4]<=[8], use": "fsdp+tensor",
        "replica_groups=[4,2]<=[2,4]T(1,0), use": "data",
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, use": "fsdp",
        "replica_groups=mesh['a'=2,'b'=4] {'a'}, use": "data",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, use": "data+tensor",
        "replica_groups={}, use": "data+fsdp+tensor",
        "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}": "tensor",
        "source_target_pairs={{0,4},{4,0}}": "data",
        "replica_groups={{0},{1}}": "none",
    }
    assert {text: _axes(_groups(text), mesh) for text in spelled} == spelled


COMBINED = """HloModule combined

ENTRY %main (a: f32[128,8], b: bf16[64]) -> (f32[128,8], bf16[64]) {
  %a = f32[128,8] parameter(0)
  %b = bf16[64] parameter(1)
  %sums = (f32[128,8], bf16[64]) all-reduce(%a, %b), channel_id=1, RING, to_apply=%add
  %soon = (f32[128,8], bf16[64]) all-reduce-start(%a, %b), channel_id=2, RING
  %all = ((f32[128,8], bf16[64]), (f32[512,8], bf16[256])) all-gather-start(%a, %b), channel_id=3, RING
  %by = (f32[128,8], f32[128,8], u32[], u32[]) collective-permute-start(%a), channel_id=4, source_target_pairs={{0,1}}
  %parts = (f32[32,8], f32[32,8], f32[32,8], f32[32,8]) all-to-all(%w, %x, %y, %z), channel_id=5, RING
  ROOT %out = (f32[128,8], bf16[64]) tuple(%a, %b)
}
""".replace("RING", "replica_groups=[1,4]<=[4]")


def test_combined_collectives_count_every_array_and_started_ones_no_operand():
    a, b = 128 * 8 * 4, 64 * 2
    assert {kind: c["bytes"] for kind, c in collectives(COMBINED).items()} == {
        "all-reduce": 2 * (a + b) * 3 // 2,
        "all-gather": 3 * (a + b),
        "collective-permute": a,
        "all-to-all": a * 3 // 4,
    }
    # Each reads and writes its arrays; of a gather its part is read and the whole is written.
    moved = 2 * 2 * (a + b) + 5 * (a + b) + 2 * a + a
    assert counts.traffic(Module(COMBINED)) == moved


TEXT = """HloModule one

%grow (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %row = f32[1,4]{1,0:T(8,128)} dynamic-slice(%x, %i, %one), dynamic_slice_sizes={1,4}
  %into = f32[8,4]{1,0:T(8,128)} dynamic-update-slice(%x, %row, %i, %one)
  ROOT %t = (s32[], f32[8,4]) tuple(%next, %into)
}

%less (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%unclear (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]) parameter(0)
  ROOT %c = pred[] custom-call(%p), custom_call_target="who_knows"
}

%pick (a: f32[9,8,4], i: s32[]) -> f32[8,4] {
  %a = f32[9,8,4] parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,8,4] dynamic-slice(%a, %i, %i, %i), dynamic_slice_sizes={1,8,4}
  ROOT %b = f32[8,4] bitcast(%s)
}

ENTRY %main (w: f32[9,8,4], y: f32[2,5,6,3]) -> f32[8,4] {
  %w = f32[9,8,4]{2,1,0:T(8,128)} parameter(0), metadata={op_name="state['opt_state'][0].mu['w']"}
  %y = f32[2,5,6,3] parameter(1), metadata={op_name="batch['y']"}
  %k = f32[3,3,3,7]{3,2,1,0:S(1)} constant({...})
  %zero = s32[] constant(0)
  %x = f32[8,4]{1,0:T(8,128)} fusion(%w, %zero), kind=kLoop, calls=%pick
  %in = (s32[], f32[8,4]) tuple(%zero, %x)
  %loop = (s32[], f32[8,4]) while(%in), condition=%less, body=%grow
  %again = (s32[], f32[8,4]) while(%loop), condition=%unclear, body=%grow
  %conv = f32[2,5,6,7]{3,2,1,0:S(1)} convolution(%y, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  %own = f32[8,4]{1,0:S(1)} custom-call(%x), custom_call_target="tpu_custom_call"
  %fast = (f32[8,4]{1,0:S(1)}, f32[8,4], u32[]) copy-start(%x)
  %done = f32[8,4]{1,0:S(1)} copy-done(%fast)
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%again), index=1
}
"""


def test_a_module_worked_by_hand():
    found = Module(TEXT)
    done, unknown = counts.flops(found)
    # a 3 x 3 window on 5 x 6 places: 13 and 16 of its taps in a row and a column are not padding
    assert done == {"convolution": 2 * 2 * 13 * 16 * 3 * 7}
    assert unknown == {"own": 1}
    kernels = {("own", frozenset({(8, 4)})): 99}
    assert counts.flops(found, kernels) == (done | {"kernel": 99}, {})
    # the fusion reads a slice of w and a number and writes x; a turn adds to its counter (12 bytes), takes a row and
    # puts it back, with two numbers each time; turns are 7 + 1; the convolution reads y, kernel and copy read x
    tensor, row, y = 8 * 4 * 4, 4 * 4, 2 * 5 * 6 * 3 * 4
    turns = (7 + 1) * (12 + 2 * (row + 8 + row))
    assert counts.traffic(found) == (tensor + 4 + tensor) + turns + y + tensor + tensor
    assert found.unknown == {"again"}
    assert counts.arguments(found) == {"state['opt_state']": 9 * 8 * 4 * 4, "batch['y']": y}


TILED = """HloModule tiled

%copy_fusion (input: bf16[9,8,4]) -> bf16[9,8,4] {
  %input = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy.1 = bf16[9,8,4]{2,1,0:T(8,128)(2,1)} copy(%input)
}

%pick (a: bf16[9,8,4], i: s32[]) -> bf16[1,8,4] {
  %a = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %t = bf16[9,8,4]{2,1,0:T(8,128)(2,1)} fusion(%a), ALIASED, calls=%copy_fusion
  %i = s32[] parameter(1)
  %s = bf16[1,8,4]{2,1,0:T(8,128)(2,1)} dynamic-slice(%t, %i, %i, %i), dynamic_slice_sizes={1,8,4}
  ROOT %c = bf16[1,8,4]{2,1,0:T(16,128)(2,1)} copy(%s)
}

%put (a: bf16[9,8,4], i: s32[], x: bf16[1,8,4]) -> bf16[9,8,4] {
  %a = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %t = bf16[9,8,4]{2,1,0:T(8,128)(2,1)} fusion(%a), ALIASED, calls=%copy_fusion
  %i = s32[] parameter(1)
  %x = bf16[1,8,4]{2,1,0:T(16,128)(2,1)} parameter(2)
  %u = bf16[9,8,4]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%t, %x, %i, %i, %i)
  ROOT %back = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} fusion(%u), ALIASED, calls=%copy_fusion
}

%double (a: bf16[9,8,4]) -> bf16[9,8,4] {
  %a = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %d = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} fusion(%a), ALIASED, calls=%grow
}

%grow (b: bf16[9,8,4]) -> bf16[9,8,4] {
  %b = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %e = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} add(%b, %b)
}

ENTRY %main (w: bf16[9,8,4], i: s32[]) -> bf16[9,8,4] {
  %w = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  %picked = bf16[1,8,4]{2,1,0:T(16,128)(2,1)} fusion(%w, %i), kind=kLoop, calls=%pick
  %placed = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} fusion(%w, %i, %picked), kind=kLoop, calls=%put
  %doubled = bf16[9,8,4]{2,1,0:T(16,128)(2,1)} fusion(%placed), kind=kLoop, calls=%double
  ROOT %alone = bf16[9,8,4]{2,1,0:T(8,128)(2,1)} fusion(%doubled), ALIASED, calls=%copy_fusion
}
""".replace("ALIASED", "kind=kLoop, output_to_operand_aliasing={{}: (0, {})}")


def test_another_tiling_inside_a_fusion_moves_nothing():
    """As tpu7x's compiler writes a slice of a stack; what ends where its operand lies, or stands alone, moves all."""
    layer, whole, number = 8 * 4 * 2, 9 * 8 * 4 * 2, 4
    pick, put, double, alone = layer + number + layer, number + layer + layer, 2 * whole, 2 * whole
    assert counts.traffic(Module(TILED)) == pick + put + double + alone


def test_traffic_of_real_programs():
    """A sum reads its two arrays and writes one; a scan reads every layer's weights once, not the stack each time."""
    mesh, big = v5e(fsdp=1), (2**13, 2**13)
    together = counts.traffic(module(lambda a, b: a + b, arg(mesh, big), arg(mesh, big)))
    assert together == pytest.approx(3 * 2**27, rel=0.01)
    layers = arg(mesh, (6, 4096, 4096))
    scan = module(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], arg(mesh, (8, 4096)), layers)
    assert counts.traffic(scan) == pytest.approx(6 * 2**25, rel=0.1)
    assert sum(counts.flops(scan)[0].values()) == 6 * 2 * 8 * 4096**2


def test_what_goes_to_the_hosts_memory_and_back():
    """Two of a layer's products by the policy "offload": each out once and back once."""
    mesh, layers, rows, width = v5e(fsdp=1), 6, 512, 1024

    def body(x, w):
        gate, up = (checkpoint_name(jnp.tanh(x @ w[i]), name) for i, name in enumerate(("gate", "up")))
        return gate * up, None

    def loss(w, x):
        return scan_layers(body, x, w, remat="offload")[0].astype(jnp.float32).sum()

    args = arg(mesh, (layers, 2, width, width)), arg(mesh, (rows, width))
    found = module(jax.grad(loss), *args)
    each = layers * 2 * rows * width * 2
    assert counts.host(found) == {"out": each, "back": each}
    choose = lambda a, p: jax.lax.cond(p, lambda: 1.0, lambda: 2.0) * a  # branches without operands
    assert counts.host(module(choose, args[1], arg(mesh, (), dtype=jnp.bool))) == {"out": 0, "back": 0}


def test_a_kernels_flops_are_those_of_its_body():
    def body(a, b, out):
        out[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)

    def product(a, b):
        block = pl.BlockSpec((128, 128), lambda i: (i, 0))
        whole = pl.BlockSpec((128, 128), lambda i: (0, 0))
        shape = jax.ShapeDtypeStruct((512, 128), jnp.float32)
        call = pl.pallas_call(body, shape, grid=(4,), in_specs=[block, whole], out_specs=block, name="product")
        return call(a, b)

    mesh = v5e(fsdp=1)
    args = [arg(mesh, (512, 128), dtype=jnp.float32), arg(mesh, (128, 128), dtype=jnp.float32)]
    traced = jax.jit(lambda a, b: jax.lax.fori_loop(0, 3, lambda _, a: product(a, b), a)).trace(*args)
    known = flops.kernels(traced.jaxpr)
    assert known == {("product", frozenset({(512, 128)})): 2 * 512 * 128 * 128}
    found = Module(traced.lower().compile().as_text())
    assert counts.flops(found, known) == ({"kernel": 3 * 2 * 512 * 128 * 128}, {})
    assert counts.flops(found) == ({}, {"product": 3})
