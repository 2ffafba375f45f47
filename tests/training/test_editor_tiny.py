"""The tiny editors of both networks have as many parameters; Kontext's two encoders read the same text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.base import Request, TokenLengths
from edit_rl_jax.editors.flux_kontext import tiny
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.params import Trainable
from edit_rl_jax.nn.safetensors_io import read_header
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh

pytestmark = pytest.mark.standard_promotion
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/editor_tiny.py"


def test_networks_have_as_many_parameters():
    config = config_lib.load(f"{CONFIG}:flux_kontext")
    kind = interfaces.model(config)
    make = kind.make(config, kind.model_config(config), on_mesh.make_mesh(config, jax.devices()[:1]), jnp.float32)
    state = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    trained = {part: count(nnx.filter_state(state[part], Trainable)) for part in state}
    assert trained == {"text_encoder": 93120, "text_encoder_2": 410496, "transformer": 2915184, "vae": 0}
    files = (ROOT / "edit_rl_jax/assets/tiny_editor").rglob("*.safetensors")  # as tests/editors/test_packaged.py holds
    packaged = sum(int(np.prod(t.shape)) for file in files for t in read_header(file).values())
    assert (count(state), packaged) == (3597284, 3634972) and abs(count(state) / packaged - 1) < 0.02
    with pytest.raises(ConfigError, match="no network 'flux'; there are omnigen2, flux_kontext"):
        config_lib.load(f"{CONFIG}:flux")


@pytest.mark.slow  # both tokenizers are trained and loaded
def test_a_text_is_read_twice():
    """By T5 with an end, by CLIP between a start and an end, which is its padding; a scene is nine tokens."""
    processor, both = tiny.configs().processor, tiny.tokenizers()
    assert (processor.multiple, processor.fit([(84, 84)], None, 84**2, 84, "it")) == (28, (((84, 84),), (84, 84)))
    lengths = TokenLengths(tiny.TEXT, 9, 9)
    asked = Request("remove south", (), ((84, 84),), (84, 84))
    arrays = processor.prepare(both, [asked], lengths, processor.guidance)
    words = both.t5.encode("remove south", add_special_tokens=False)
    start, end, last = (both.t5.convert_tokens_to_ids(f"<|{t}|>") for t in ("im_start", "im_end", "endoftext"))
    padded = lambda ids: [*ids, *[last] * (tiny.TEXT - len(ids))]
    assert arrays["tokens"][0, 0].tolist() == padded([*words, end])
    assert arrays["clip_tokens"][0, 0].tolist() == padded([start, *words, last])
    assert tiny.configs().text_encoder.eos_token_id == last
    assert arrays["noise_segments"].sum() == arrays["reference_segments"].sum() == 9
