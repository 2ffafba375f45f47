"""The FLOP counter against analytic counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from edit_rl_jax.flops import count, count_by_kind

ROWS, WIDTH, HIDDEN, LAYERS = 32, 64, 128, 5
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
W = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((LAYERS, WIDTH, HIDDEN), (LAYERS, HIDDEN, WIDTH))]
FORWARD = LAYERS * 2 * ROWS * WIDTH * HIDDEN * 2


def stacked_mlp(weights, x, policy=None):
    def body(x, w):
        return x + jax.nn.gelu(x @ w[0]) @ w[1], None

    body = jax.checkpoint(body, policy=policy) if policy else body
    return jnp.sum(jax.lax.scan(body, x, weights)[0])


def test_mlp_and_scan():
    assert count(lambda a, b: a @ b, X, jax.ShapeDtypeStruct((WIDTH, 7), jnp.float32)) == 2 * ROWS * WIDTH * 7
    assert count(stacked_mlp, W, X) == FORWARD


def test_gradients_cost_as_the_convention_says():
    assert count(jax.grad(stacked_mlp), W, X) == 3 * FORWARD  # 6N
    assert count(jax.grad(stacked_mlp, argnums=1), W, X) == 2 * FORWARD  # 4N: weights are frozen


def test_rematerialisation_is_left_out_of_model_flops_only():
    def remat(weights, x):
        return stacked_mlp(weights, x, jax.checkpoint_policies.nothing_saveable)

    assert count(jax.grad(remat), W, X) == 3 * FORWARD
    # The last product of a block is not needed again: 1 of its 2 is repeated.
    assert count(jax.grad(remat), W, X, remat=True) == 3.5 * FORWARD
    assert count(jax.jit(jax.grad(remat)), W, X) == 3 * FORWARD


def test_cond_counts_the_dearest_branch_and_while_its_given_trips():
    square = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    one = 2 * WIDTH**3

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def loop(x):
        return jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, x)

    assert count(branches, square) == 2 * one
    assert count(loop, square) == one
    assert count(loop, square, while_trips=9) == 9 * one


def test_convolution_and_its_gradients():
    images, kernel = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def conv(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)
    assert count_by_kind(conv, images, kernel) == {"conv": forward}
    # The gradient to the kernel does the same products; the one to the images also those with the padding.
    assert count(jax.grad(lambda k, x: conv(x, k).sum()), kernel, images) == 2 * forward


def test_custom_vjp_and_shard_map():
    @jax.custom_vjp
    def double(x):
        return x @ x

    double.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    square = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    assert count(double, square) == 2 * WIDTH**3
    assert count(jax.grad(lambda x: double(x).sum()), square) == 3 * 2 * WIDTH**3

    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    local = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(P("fsdp"), P(None, "tensor")), out_specs=P("fsdp", "tensor")
    )
    assert count(local, square, square) == 2 * WIDTH**3


@pytest.mark.parametrize("causal", [False, True])
def test_splash_counts_the_blocks_it_runs(causal):
    from edit_rl_jax.nn.attention_splash import splash_attention

    batch, length, heads, kv_heads, dim = 2, 384, 4, 2, 80
    q = jax.ShapeDtypeStruct((batch, length, heads, dim), jnp.float32)
    kv = jax.ShapeDtypeStruct((batch, length, kv_heads, dim), jnp.float32)

    def attend(q, k, v):
        return splash_attention(q, k, v, causal=causal, interpret=True).sum()

    forward = 4 * batch * heads * length**2 * dim  # one block of 384
    assert count_by_kind(attend, q, kv, kv)["kernel"] == forward
    assert count_by_kind(jax.grad(attend, argnums=(0, 1, 2)), q, kv, kv)["kernel"] == 3 * forward
    assert count_by_kind(jax.grad(attend, argnums=(0, 1, 2)), q, kv, kv, remat=True)["kernel"] == 4.5 * forward
    long = jax.ShapeDtypeStruct(
        (1, 2048, 1, dim), jnp.float32
    )  # 4 blocks of 512: 10 of 16 are on or under the diagonal
    assert count_by_kind(attend, long, long, long)["kernel"] == 4 * 2048**2 * dim * (10 / 16 if causal else 1)


def test_a_kernel_whose_results_are_kept_is_not_run_again():
    from edit_rl_jax.nn.attention_splash import splash_attention
    from edit_rl_jax.nn.stack import checkpointed

    x = jax.ShapeDtypeStruct((1, 256, 1, 128), jnp.float32)
    forward = 4 * 256**2 * 128

    def executed(policy):
        attend = checkpointed(lambda x: splash_attention(x, x, x, interpret=True), policy)
        return count_by_kind(jax.value_and_grad(lambda x: attend(x).sum()), x, remat=True)["kernel"]

    assert executed("attention") == executed("none") == 4.5 * forward
    assert executed("nothing_saveable") == 5.5 * forward
