"""Where prompts come from, in which order, and what is compared with what."""

import json

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import ImageError
from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.rows import EditRows, EditShape
from edit_rl_jax.editors.vae.trainable import Images
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import candidate
from edit_rl_jax.editworld.scene import rng
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rl.editors import prompts
from tests.rl import tiny_editor


def test_every_prompt_once_a_pass_in_an_order_of_the_seed():
    c = tiny_editor.config("none", rl__prompts=3, data__shuffle=True)
    passes = [[n for step in range(3 * k, 3 * k + 3) for n in prompts.numbers(c, 10, step)] for k in range(2)]
    assert all(len(set(p)) == 9 for p in passes) and passes[0] != passes[1]  # one of ten waits for another pass
    assert prompts.numbers(c, 10, 4) == passes[1][3:6]
    c.seed = 1
    assert prompts.numbers(c, 10, 0) != passes[0][:3]
    c.data.shuffle = False
    assert prompts.numbers(c, 10, 4) == [3, 4, 5]
    with pytest.raises(ConfigError, match=r"rl\.prompts.*is 3, there are 2"):
        prompts.numbers(c, 2, 0)


def test_the_world_asks_what_its_oracle_knows():
    c = tiny_editor.config("none", rl__size=(84, 84), data__size=20)
    train, test = prompts.source(c, "train"), prompts.source(c, "test")
    assert len(train) == 20 and len(test) == c.rl.eval_prompts and train.data_hash != test.data_hash
    seen = {train[i].instruction for i in range(20)}
    assert len(seen) > 15 and not seen & {test[i].instruction + test[i].key for i in range(len(test))}
    one = train[3]
    right = candidate(rng("x"), one.edit, "correct", 0.5, "train").render(84)
    assert oracle.score(right, one.edit).is_success and not oracle.score(one.source, one.edit).is_success
    assert one.key == train[3].key and np.array_equal(one.source, train[3].source)


def test_lines_of_a_file(tmp_path):
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:, 16:84] = (10, 200, 30)  # what is kept, and as much more as the filter reaches
    picture[:, 49:51] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    rows = [
        {"source": "a.png", "instruction": "brighter", "task": "tone"},
        {"input_images": ["a.png"], "instruction": "brighter", "task_type": "tone"},
        {"source": "a.png", "instruction": "darker"},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    c = tiny_editor.config("none", data__train=str(file))
    source = prompts.source(c, "train")
    found = [source[i] for i in range(3)]
    assert [p.task for p in found] == ["tone", "tone", ""] and prompts.groups(found) == [0, 0, 2]
    assert found[0].source.shape == (32, 32, 3)
    edges, middle = found[0].source[:, [0, 31]].astype(int), found[0].source[:, 15:17]
    assert (abs(edges - (10, 200, 30)) <= 3).all() and (middle > 120).all()  # the middle, whole in height
    with pytest.raises(ConfigError, match=r"data\.validation.*rl\.eval_prompts"):
        prompts.source(c, "test")
    c.data.validation = str(file)
    assert len(prompts.source(c, "test")) == 3
    for bad in ({"instruction": "x"}, {"source": "a.png", "instruction": " "}, {"input_images": ["a.png", "a.png"]}):
        file.write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match="row 1"):
            prompts.source(c, "train")
    with pytest.raises(ConfigError, match=r"did you mean 'editworld'"):
        prompts.source(tiny_editor.config("none", data__train="editwrld"), "train")


def test_an_image_that_cannot_be_read(tmp_path):
    """Stops, or the next one takes its place, as the config says."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    images = ("good.png", "torn.png", "gone.png")
    rows = [{"source": image, "instruction": f"edit {n}"} for n, image in enumerate(images)]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    source = prompts.source(tiny_editor.config("none", data__train=str(file)), "train")
    assert [prompts.take(source, i, "skip").instruction for i in range(3)] == ["edit 0"] * 3
    assert prompts.take(source, 0, "error").instruction == "edit 0"
    for i in (1, 2):
        with pytest.raises(ImageError, match=f"p.jsonl/{i}"):
            prompts.take(source, i, "error")
    file.write_text("\n".join(map(json.dumps, rows[1:])))
    source = prompts.source(tiny_editor.config("none", data__train=str(file)), "train")
    with pytest.raises(ImageError):
        prompts.take(source, 0, "skip")


def test_a_prompt_that_the_editor_does_not_take():
    """Stops, or the next one takes its place, as one whose image cannot be read."""
    source = prompts.source(tiny_editor.config("none"), "train")
    long = source[3].instruction

    def check(prompt):
        if prompt.instruction == long:
            raise EditError(prompt.key, "text too long")

    assert prompts.take(source, 3, "skip", check).key == source[4].key
    with pytest.raises(EditError, match=f"{source[3].key}: text too long"):
        prompts.take(source, 3, "error", check)


def test_a_photograph_is_cropped_as_in_training(tmp_path):
    """The editor that is improved sees what it was trained on: one crop for both."""
    picture = np.random.default_rng(0).integers(0, 256, (61, 97, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"source": "a.png", "instruction": "brighter"}))
    source = prompts.source(tiny_editor.config("none", data__train=str(file)), "train")
    row = EditExample("brighter", ((tmp_path / "a.png").read_bytes(),), (tmp_path / "a.png").read_bytes(), "a")
    rows = EditRows(Images(8), None, [EditShape(8, 1, 32, 32)])
    np.testing.assert_array_equal(source[0].source, rows.encode(rows.measure(row)).references[0])
