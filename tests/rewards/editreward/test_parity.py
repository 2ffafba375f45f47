"""The network with heads against torch: released layout in, positions of both kinds, fusion, pair loss, gradients."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.nn import peft
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.rewards.editreward import losses, objective, weights
from edit_rl_jax.rewards.editreward.heads import Heads, fuse
from edit_rl_jax.rewards.editreward.model import Reward, of
from edit_rl_jax.rewards.editreward.prompts import TINY, TOKEN
from edit_rl_jax.vlm import family, loading, text
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.rows import Packed
from tests.parity.ladder import FAST, error
from tests.rewards.editreward import reference

NETWORK = 1e-4  # the bar of DESIGN.md
RECORDS = [reference.record(1), reference.record(2, -1), reference.record(3, sizes=((56, 56), (112, 84), (56, 140)))]
LORA = LoRAConfig(rank=4, alpha=2.0, vision=True, merger=True)
jit = functools.partial(jax.jit, compiler_options=FAST)


def batch(found: loading.ModelFolder, positions: str) -> dict:
    """All pairs, two in a row and one in the next, as the pipeline makes them."""
    images = ImageSettings(**reference.PIXELS)
    form = Packed(
        found.tokenizer, found.cfg, [Bucket(448, 9, 64, 8)], images, extras=objective.EXTRAS, positions=positions
    )
    made = objective.Preference(objective.Options())
    samples = [form.measure(made.to_examples(r, 5, prompts=TINY)[0]) for r in RECORDS]
    arrays = form.empty(0, 2)
    form.write(arrays, 0, [form.encode(s) for s in samples[:2]])
    form.write(arrays, 1, [form.encode(samples[2])])
    assert (arrays["patch_segments"][0] > 0).sum() == sum(48 + 24 + 36 for _ in "ab"), "each picture once"
    return {k: jnp.asarray(v) for k, v in arrays.items()}


@functools.cache
def opened(name: str) -> loading.ModelFolder:
    return loading.open_model(reference.folder(name))


@functools.cache
def loaded(name: str):
    return weights.load(opened(name))


@functools.cache
def theirs(name: str, flat: bool) -> torch.Tensor:
    """[3 pairs, preferred side first, dimensions, 2]."""
    with torch.no_grad():
        found = reference.gaussians(reference.network(name), RECORDS, flat)
    return torch.stack([g if r.prefers > 0 else g.flip(0) for g, r in zip(found, RECORDS)])


WHOLE = {"untied": ("released", "mean"), "tied": ("paper", "min")}  # the loss that is run as training does


def ladder(name: str, positions: str) -> dict[str, float]:
    """Errors of the heads' figures, of their fusions, of the losses, and of one loss run as a whole."""
    found = opened(name)
    arrays = batch(found, positions)
    model, want = loaded(name), theirs(name, positions == "1d")
    got, real = jit(lambda model, arrays: objective.gaussians(model, arrays))(model, arrays)
    assert real.tolist() == [[1, 1], [1, 0]]
    flat = got.reshape(-1, *got.shape[2:])[np.flatnonzero(np.asarray(real))]
    out = {"figures": error(flat, want)}
    for how in ("mean", "min", "sum"):
        both, ours = reference.fused(want, how), fuse(flat, how)
        out[f"fusion {how}"] = error(ours, both)
        for kind in ("released", "paper"):
            wanted = reference.pair_loss(kind, both[:, 0], both[:, 1])
            value = getattr(losses, kind)(*losses.difference(ours[:, 0], ours[:, 1]))
            out[f"{kind}, {how}"] = error(value, wanted)
            if (kind, how) == WHOLE[name]:
                made = objective.Preference(objective.Options(kind), how)
                total, weight, _ = jit(lambda *a, made=made: made.validation_loss(*a))(model, arrays)
                out["as a whole"] = error(total, wanted.sum())
                assert weight == 3
    return out


@pytest.mark.parametrize("name, positions", [("untied", "mrope"), ("tied", "1d")])
def test_a_released_checkpoint_gives_torchs_figures_and_losses(name, positions):
    worst = ladder(name, positions)
    assert max(worst.values()) < NETWORK, worst


def sigma_as_variance(m):
    both = lambda a, b: (a[..., 0] - b[..., 0], jnp.exp(0.5 * jnp.logaddexp(a[..., 1], b[..., 1])))
    m.setattr(losses, "difference", both)


def head_before_the_final_norm(m):
    m.setattr(text.TextModel, "norm", property(lambda self: lambda x: x, lambda self, norm: None), raising=False)


def dimensions_swapped(m):
    right = Heads.__call__
    m.setattr(Heads, "__call__", lambda self, h, kept=None: right(self, h[::-1], kept)[::-1])


@pytest.mark.parametrize("fault", [sigma_as_variance, head_before_the_final_norm, dimensions_swapped])
def test_a_known_fault_fails_the_ladder(monkeypatch, fault):
    loaded("untied")
    fault(monkeypatch)
    assert max(ladder("untied", "mrope").values()) > 10 * NETWORK


def test_positions_matter():
    assert error(theirs("untied", True), theirs("untied", False)) > 1e-2


def test_each_dimension_learns_its_own_labels():
    """By hand: labels (3 > 1) and (2 < 4) of three pairs, the second given the other way round."""
    found, want = opened("untied"), theirs("untied", False)
    model, arrays = loaded("untied"), batch(found, "mrope")
    made = {k: objective.Preference(objective.Options("paper", labels=k)) for k in ("overall", "dimension", "both")}
    every = jit(lambda m, b: {k: o.validation_loss(m, b)[:2] for k, o in made.items()})(model, arrays)
    assert {k: int(weight) for k, (_, weight) in every.items()} == {"overall": 3, "dimension": 6, "both": 9}
    wanted = 0.0
    for g, r in zip(want, RECORDS):
        first = g if r.prefers > 0 else g.flip(0)  # the record's order again
        wanted += reference.pair_loss("paper", first[:1, 0], first[1:, 0]).item()
        wanted += reference.pair_loss("paper", first[1:, 1], first[:1, 1]).item()
    assert error(every["dimension"][0], wanted) < NETWORK
    assert error(every["both"][0], every["overall"][0] + every["dimension"][0]) < NETWORK


def test_gradients_of_adapter_heads_and_reward_token_equal_torch():
    """The whole pair loss by LoRA, heads and the token's row, each relative to its tensor's maximum."""
    from peft import LoraConfig, get_peft_model

    name, found = "untied", opened("untied")
    net = reference.network(name)
    target = r".*language_model.*_proj|.*visual\.blocks.*\.(qkv|proj|\w+_proj)|.*visual\.merger\.mlp\.[02]"
    adapted = copy.deepcopy(net)
    adapted.base = get_peft_model(adapted.base, LoraConfig(r=4, lora_alpha=2.0, target_modules=target)).eval()
    reference.tiny.randomise(adapted.base, seed=1, only="lora_")
    adapted.base.save_pretrained(reference.folder(name) / "adapter")
    table = adapted.base.get_input_embeddings().weight.requires_grad_()
    run = copy.copy(adapted)
    run.__dict__["_modules"] = {**adapted._modules, "base": adapted.base.base_model.model}
    both = reference.fused(reference.gaussians(run, RECORDS, flat=False), "mean")
    a, b = (torch.stack([g[i if r.prefers > 0 else 1 - i] for g, r in zip(both, RECORDS)]) for i in (0, 1))
    value = reference.pair_loss("paper", a, b).mean()
    named = {n.replace(".default", ""): p for n, p in adapted.base.named_parameters() if "lora_" in n}
    named |= {f"rm_heads.{n}": p for n, p in adapted.rm_heads.named_parameters()} | {"table": table}
    want = dict(zip(named, torch.autograd.grad(value, list(named.values()))))

    cfg, kind = found.cfg, family.of(found.cfg)
    token = found.tokenizer.convert_tokens_to_ids(TOKEN)
    make = lambda: of(cfg)(cfg, rngs=nnx.Rngs(0), reward=Reward(token), lora=LORA)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    state = weights.load_base(found.home, state, cfg)
    state = peft.load(reference.folder(name) / "adapter", state, kind.NAMING)
    row = weights.table(state)[1].get_value()[token]
    row = dict(nnx.to_flat_state(state))[("reward_row",)].replace(row)
    model = nnx.merge(graphdef, weights.joined(state, nnx.State.from_flat_path({("reward_row",): row})))
    graphdef, trainable, frozen = nnx.split(model, Trainable, Frozen)

    def mean(trainable, frozen, arrays):
        model = nnx.merge(graphdef, trainable, frozen)
        total, weight, _ = objective.Preference(objective.Options()).validation_loss(model, arrays)
        return total / weight

    got, grads = jit(jax.value_and_grad(mean))(trainable, frozen, batch(found, "mrope"))
    out = {"loss": error(got, value)}
    lora = weights.part(grads, lambda p: not weights.added(p))
    tensors = peft.tensors(lora, peft.make_adapter(lora, kind.NAMING, 4, 2.0))
    out |= {n: error(g, want[n], least=1e-30) for n, g in tensors.items()}
    by_path = dict(nnx.to_flat_state(grads))
    out["row"] = error(by_path[("reward_row",)].get_value(), want["table"][token], least=1e-30)
    for layer, place in (("in_", 0), ("mid", 3), ("out", 5)):
        for leaf, suffix in (("kernel", "weight"), ("bias", "bias")):
            g = np.asarray(by_path["rm_heads", "layers", layer, leaf].get_value())
            for i in (0, 1):
                theirs_ = want[f"rm_heads.head_{i}.{place}.{suffix}"]
                out[f"head {i} {layer} {leaf}"] = error(g[i].T, theirs_, least=1e-30)
    assert len(tensors) == sum("lora_" in n for n in want)
    assert max(out.values()) < NETWORK, {k: v for k, v in out.items() if v >= NETWORK}
