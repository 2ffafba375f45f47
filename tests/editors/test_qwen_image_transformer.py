"""Qwen-Image-Edit's transformer: golden rows of diffusers' network, and every name and shape of the released one."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import accelerate
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.layout import layout
from edit_rl_jax.editors.qwen_image_edit.transformer import TRANSFORMER, QwenImageTransformer
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.safetensors_io import WeightsError
from tests.editors import golden
from tests.editors.test_flux_ladder import FAULTS

TINY = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3,
        "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}  # fmt: skip
ROWS = {
    "one": ((), False, "-.0388917 1.0751201 161.22003 -.306124 1.209974 1.057605 .738812 2.072620 -.411726"),
    "two": (((4, 5),), False, "-.0455717 1.0764921 162.56757 -.251587 1.232981 .967122 .808103 2.124274 .002474"),
    "zero_cond_t": ((), True, "-.0216047 1.0808243 161.86444 -.334080 1.206890 1.083025 .736332 2.088528 -.235912"),
}


@functools.cache
def loaded(zero_cond_t: bool) -> QwenImageTransformer:
    """Ours, from the file that diffusers writes of the golden weights."""
    config = {**TINY, "patch_size": 2, "out_channels": 4, "zero_cond_t": zero_cond_t}
    theirs = diffusers.QwenImageTransformer2DModel(**config)
    theirs.load_state_dict({k: torch.tensor(golden.weight(k, v.shape)) for k, v in theirs.state_dict().items()})
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        cfg = QwenImageConfig.from_hf(Path(folder))
        graphdef, state = nnx.split(nnx.eval_shape(lambda: QwenImageTransformer(cfg, rngs=nnx.Rngs(0), remat="none")))
        return nnx.merge(graphdef, weights.load(Path(folder), state, TRANSFORMER))


def check_row(case: str, change=lambda index: None) -> None:
    """Compares a golden row, with NaN in the padding. change: of the layout."""
    more, zero, want = ROWS[case]
    images = ((3, 2), *more)
    lengths = TokenLengths(text=6, references=sum(h * w for h, w in images) + 2, noise=8)
    index = layout([5, 3], [images] * 2, [(2, 3)] * 2, lengths)
    change(index)
    wide = lambda x, n: np.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0)), constant_values=np.nan)
    references = [golden.draw("reference", (2, 6, 16)), *([golden.draw("reference2", (2, 20, 16))] if more else [])]
    text = wide(golden.draw("text", (2, 5, 24)), 6)
    text[1, 3:] = np.nan
    c = {**index, "text": text, "references": wide(np.concatenate(references, axis=1), lengths.references)}
    noise, t = wide(golden.draw("noise", (2, 6, 16)), 8), np.array([0.7, 0.1], np.float32)
    out = jax.jit(lambda m, *a: m(*a))(loaded(zero), *jax.tree.map(jnp.asarray, (noise, t, c)))
    golden.check(-out[:, :6], want, 2e-5)
    assert not np.asarray(out[:, 6:]).any()


@pytest.mark.parametrize("case", ROWS)
def test_golden_rows_with_nan_in_the_padding(case):
    check_row(case)


def uncentred(index):
    index["noise_positions"][..., 1:] -= index["noise_positions"][..., 1:].min(axis=1, keepdims=True)


def text_from_zero(index):
    index["text_positions"] -= index["text_positions"][:, :1]


def references_at_the_noise(index):
    index["reference_positions"][..., 0] = 0


def second_reference_as_the_first(index):
    index["reference_positions"][..., 0] = np.minimum(index["reference_positions"][..., 0], 1)


def row_and_column_swapped(index):
    index["reference_positions"] = index["reference_positions"][..., [0, 2, 1]]


def text_of_padding_missing(index):
    index["text_segments"][0, 4] = 0


PLACES = {f.__name__: (f, "two") for f in (uncentred, text_from_zero, references_at_the_noise,
          second_reference_as_the_first, row_and_column_swapped, text_of_padding_missing)}  # fmt: skip
BLOCKS = (
    "exact_gelu", "scale_before_shift", "second_modulation_scale_before_shift", "gates_with_tanh",
    "chunks_of_attention_and_feed_forward_swapped", "modulation_without_silu", "text_and_image_weights_swapped",
    "rotary_in_halves", "attention_unscaled", "bias_dropped", "output_shift_before_scale",
)  # fmt: skip


@pytest.mark.slow  # run op by op
@pytest.mark.parametrize("case", ROWS)
def test_golden_rows_hold_op_by_op(case):
    """What the faults below are caught against."""
    with jax.disable_jit():
        check_row(case)


@pytest.mark.slow  # run op by op
@pytest.mark.parametrize("name", PLACES)
def test_golden_rows_catch_what_stands_in_the_wrong_place(name):
    with jax.disable_jit(), pytest.raises(AssertionError):
        check_row(PLACES[name][1], PLACES[name][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_golden_rows_catch_faults_of_the_blocks(name, monkeypatch):
    loaded(False)
    FAULTS[name][1](monkeypatch)
    with jax.disable_jit(), pytest.raises(AssertionError):
        check_row("one")


@pytest.mark.slow
def test_references_are_as_at_sigma_0_only_where_asked(monkeypatch):
    """2511's network read as 2509's, and its noise modulated so, too."""
    model = loaded(True)
    with jax.disable_jit():
        monkeypatch.setattr(model, "cfg", dataclasses.replace(model.cfg, zero_cond_t=False))
        with pytest.raises(AssertionError):
            check_row("zero_cond_t")


def test_the_norm_of_the_text_has_the_released_epsilon():
    """At numbers of 1e-3 another one shows: 1e-5 is off by a factor of 2.3."""
    x = 1e-3 * golden.draw("text", (2, 5, 24))
    norm = torch.nn.RMSNorm(24, eps=1e-6)
    norm.weight.data = torch.tensor(golden.weight("txt_norm.weight", (24,)))
    want = norm(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(loaded(False).txt_norm(jnp.asarray(x)), want, rtol=1e-5)


def test_positions_are_counted_from_the_centre():
    index = layout([2], [[(3, 2)]], [(2, 3)], TokenLengths(text=2, references=6, noise=6))
    assert index["noise_positions"][0, :4].tolist() == [[0, -1, -2], [0, -1, -1], [0, -1, 0], [0, 0, -2]]
    assert index["reference_positions"][0, [0, 5]].tolist() == [[1, -2, -1], [1, 0, 0]]
    assert index["text_positions"][0].tolist() == [[1, 1, 1], [2, 2, 2]]


def test_every_name_and_shape_of_the_released_weights():
    with accelerate.init_empty_weights():
        config = {k: v for k, v in QwenImageConfig().to_hf().items() if k != "_class_name"}
        theirs = diffusers.QwenImageTransformer2DModel(**config).state_dict()
    model, found = nnx.eval_shape(lambda: QwenImageTransformer(QwenImageConfig(), rngs=nnx.Rngs(0))), {}
    for path, v in zip(*weights.flatten(nnx.state(model))[:2]):
        found |= dict.fromkeys(TRANSFORMER.sources(path, v.shape), TRANSFORMER.file_shape(path, v))
    assert found == {k: tuple(v.shape) for k, v in theirs.items()}
    assert (len(found), sum(int(np.prod(s)) for s in found.values())) == (1933, 20_430_401_088)


@pytest.mark.parametrize("given", [{"use_layer3d_rope": True}, {"guidance_embeds": True}, {"surprise": 1}])
def test_configs_of_other_models_are_refused(given):
    with pytest.raises(WeightsError, match=next(iter(given))):
        QwenImageConfig.from_hf(given)
