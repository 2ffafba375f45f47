"""Qwen-Image-Edit's transformer: golden rows of diffusers' network, and every name and shape of the released one."""

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

TINY = {"in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3,
        "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}  # fmt: skip
ROWS = {
    "one": ((), False, "-.0388917 1.0751201 161.22003 -.306124 1.209974 1.057605 .738812 2.072620 -.411726"),
    "two": (((4, 5),), False, "-.0455717 1.0764921 162.56757 -.251587 1.232981 .967122 .808103 2.124274 .002474"),
    "zero_cond_t": ((), True, "-.0216047 1.0808243 161.86444 -.334080 1.206890 1.083025 .736332 2.088528 -.235912"),
}


@pytest.mark.parametrize("case", ROWS)
def test_golden_rows_with_nan_in_the_padding(case, tmp_path):
    more, zero, want = ROWS[case]
    config = {**TINY, "patch_size": 2, "out_channels": 4, "zero_cond_t": zero}
    theirs = diffusers.QwenImageTransformer2DModel(**config)
    theirs.load_state_dict({k: torch.tensor(golden.weight(k, v.shape)) for k, v in theirs.state_dict().items()})
    theirs.save_pretrained(tmp_path)
    cfg = QwenImageConfig.from_hf(tmp_path)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: QwenImageTransformer(cfg, rngs=nnx.Rngs(0), remat="none")))
    model = nnx.merge(graphdef, weights.load(tmp_path, state, TRANSFORMER))
    images = ((3, 2), *more)
    lengths = TokenLengths(text=6, references=sum(h * w for h, w in images) + 2, noise=8)
    index = layout([5, 3], [images] * 2, [(2, 3)] * 2, lengths)
    wide = lambda x, n: np.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0)), constant_values=np.nan)
    references = [golden.draw("reference", (2, 6, 16)), *([golden.draw("reference2", (2, 20, 16))] if more else [])]
    text = wide(golden.draw("text", (2, 5, 24)), 6)
    text[1, 3:] = np.nan
    c = {**index, "text": text, "references": wide(np.concatenate(references, axis=1), lengths.references)}
    noise, t = wide(golden.draw("noise", (2, 6, 16)), 8), np.array([0.7, 0.1], np.float32)
    out = jax.jit(lambda m, *a: m(*a))(model, *jax.tree.map(jnp.asarray, (noise, t, c)))
    golden.check(-out[:, :6], want, 2e-5)
    assert not np.asarray(out[:, 6:]).any()


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
