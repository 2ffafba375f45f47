"""EditScore reward models on Qwen2.5-VL of 3B to 72B and Qwen3-VL of 4B to 32B: LoRA by cross-entropy on the judge's
replies.

    python scripts/prepare_data.py --input reward.json --output data/editscore --validation 0.02
    python scripts/train_rm.py --config configs/rm.py:7b --config.topology=v5e:4x4 --workdir gs://BUCKET/rm_7b

configs/rm_7b.py is the same as configs/rm.py:7b, and so are those of the other sizes.
Recipe of arXiv 2509.23909: rank 32, alpha 64, lr 1e-4, cosine, warm-up 0.1, 3 epochs, about 128 samples a step (rows x
accum, packed), images of at most 512 x 512 pixels, bf16.

EditReward, Gaussian heads trained on preferences, is configs/rm.py:7b,editreward:

    python scripts/prepare_data.py --input train.json --output data/editreward --validation 0.02
    python scripts/train_rm.py --config configs/rm.py:7b,editreward --config.topology=v5e:4x4 --workdir gs://BUCKET/er

Recipe of arXiv 2509.26346 (64 pairs a step, images of 448 x 448 pixels, 2 epochs, cosine), but with LoRA. The paper
trains all weights: --config.model.trainable=full --config.optim.lr=2e-6; the released code also has
--config.preference.loss=released --config.heads.positions=1d.

Edit-R1's verifier is configs/rm.py:7b,edit_rrm, or configs/rrm.py:7b (docs/verifier.md makes its data; the paper,
arXiv 2604.27505, gives no recipe):

    python scripts/train_rm.py --config configs/rrm.py:7b --config.topology=v5e:4x4 --workdir gs://BUCKET/rrm_7b

| size | hardware | licence of the base | to expect |
|---|---|---|---|
| 3b | a v5e-8 or larger; one H100 | Qwen Research License (no commercial use) | no figure is published |
| 7b | a v5e-16, v6e-8 or larger; one H100 | Apache-2.0 | the paper's EditScore-7B |
| 32b | a v6e-16, v5p-32 or larger | Apache-2.0 | the paper's EditScore-32B |
| 72b | a v5p-64 (2x4x4), v6e-64 or larger | Qwen License | the paper's EditScore-72B |
| qwen3_4b | a v5e-16, v6e-8 or larger; one H100 | Apache-2.0 | EditScore-Qwen3-VL-4B |
| qwen3_8b | a v5e-16, v6e-8 or larger; one H100 | Apache-2.0 | EditScore-Qwen3-VL-8B |
| qwen3_32b | a v5e-16, v6e-8 or larger | Apache-2.0 | no figure is published |

There are presets for v4-32 (72b: v4-128) and eight chips of tpu7x as well.

The released Qwen3-VL adapters also adapt the deepstack mergers: --config.model.lora.deepstack=True starts from one, or
trains as they were.

Memory and FLOPs: `python scripts/plan.py --config configs/rm.py:7b --topology v5e:4x4`.
"""

from edit_rl_jax.training.config import default

MESHES = {
    "3b": {
        "v5e:2x4": {"fsdp": 8},
        "v5e:4x4": {"fsdp": 16},
        "v6e:2x2": {"fsdp": 4},
        "v6e:2x4": {"fsdp": 8},
        "v5p:2x2x1": {"fsdp": 4},
        "v4:2x2x4": {"fsdp": 16},
        "tpu7x:2x2x2": {"fsdp": 16},
        "h100:1": {"fsdp": 1},
        "h100:8": {"fsdp": 8},
    },
    "7b": {
        "v5e:4x4": {"fsdp": 16},
        "v5e:4x8": {"fsdp": 16, "tensor": 2},
        "v6e:2x4": {"fsdp": 8},
        "v6e:4x4": {"fsdp": 16},
        "v5p:2x2x1": {"fsdp": 4},
        "v5p:2x2x2": {"fsdp": 8},
        "v4:2x2x4": {"fsdp": 16},
        "tpu7x:2x2x2": {"fsdp": 16},
        "h100:1": {"fsdp": 1},
        "h100:8": {"fsdp": 8},
    },
    "32b": {
        "v5e:8x8": {"fsdp": 16, "tensor": 4},
        "v6e:4x4": {"fsdp": 8, "tensor": 2},
        "v6e:4x8": {"fsdp": 16, "tensor": 2},
        "v5p:2x2x4": {"fsdp": 16},
        "v5p:2x4x4": {"fsdp": 16, "tensor": 2},
        "v4:2x2x4": {"fsdp": 16},
        "tpu7x:2x2x2": {"fsdp": 16},
        "h100:8": {"fsdp": 8},
    },
    "72b": {
        "v5p:2x4x4": {"fsdp": 16, "tensor": 2},
        "v5p:4x4x4": {"fsdp": 16, "tensor": 4},
        "v6e:8x8": {"fsdp": 16, "tensor": 4},
        "v4:4x4x4": {"fsdp": 16, "tensor": 4},
        "tpu7x:2x2x2": {"fsdp": 16},
    },
}
WHOLE = {"v5p:2x2x4": {"fsdp": 16}}
MESHES |= {f"qwen3_{size}": MESHES[like] | WHOLE for size, like in (("4b", "7b"), ("8b", "7b"), ("32b", "32b"))}
LARGER = {"rrm_7b": WHOLE}
SMALL = {"v5e:4x4": {"fsdp": 16}, "v6e:2x4": {"fsdp": 8}}
BY_ROWS = {"v6e:4x4": {"fsdp": 16}}
MESHES["qwen3_32b"] |= SMALL | BY_ROWS
SHORT = {"32b": SMALL | BY_ROWS}  # EditReward's rows are shorter and have no logits
# What is kept of a layer for the backward pass of a LoRA: on TPU slices all products, but for these, where a peak would
# go over 90% of a chip's memory, or (EditReward on Qwen3-VL, v6e:2x4) no plan has been made. By the plans in
# benchmarks/plans and docs/scaling.md; where those have none, by arithmetic from them. On GPUs nothing: no compiler has
# said what fits.
NOTHING = "nothing_saveable"
SMALLEST = {"v5e:4x4": NOTHING, "v6e:2x4": NOTHING}
LARGE = {"v5e:8x8": "gate", "v6e:4x8": "feed_forward", "v6e:4x4": "attention", "v4:2x2x4": "attention"}
TIGHT = {
    "rm_32b": {"v5e:8x8": "feed_forward", "v4:2x2x4": "attention"},
    "rm_qwen3_8b": {"v5e:4x4": "feed_forward"},
    "rm_qwen3_32b": {"v5e:8x8": "feed_forward"} | dict.fromkeys(("v6e:4x4", "v4:2x2x4"), "attention") | SMALLEST,
    "editreward_7b": {"v5e:4x4": "feed_forward", "v6e:2x4": "feed_forward"},
    "editreward_32b": LARGE | SMALLEST,
    "editreward_72b": {"tpu7x:2x2x2": "feed_forward"},
    "editreward_qwen3_8b": {"v5e:4x4": "feed_forward", "v6e:2x4": NOTHING},
    "editreward_qwen3_32b": LARGE | SMALLEST,
    "rrm_7b": {"v5e:4x4": "feed_forward"},
}
for size in ("32b", "qwen3_8b", "qwen3_32b"):
    TIGHT[f"rrm_{size}"] = TIGHT[f"rm_{size}"]
FEWER_ROWS = {  # half the rows at once, for the same reason; of 32b as its rows lie over 8 pairs of chips
    **dict.fromkeys(("rm_3b", "editreward_3b", "rrm_3b"), ("v5e:2x4", "v6e:2x2")),
    **dict.fromkeys(("rm_32b", "rrm_32b"), ("v6e:4x4",)),
}


def get_config(which="7b"):
    size, _, objective = which.partition(",")
    if size not in MESHES or objective not in ("", *OBJECTIVES):
        what = f"objective '{objective}'" if size in MESHES else f"size '{size}'"
        raise ValueError(f"no {what}; sizes: {', '.join(MESHES)}, and after a comma one of {', '.join(OBJECTIVES)}")
    qwen3 = size.startswith("qwen3_")
    c = OBJECTIVES[objective or "editscore"](qwen3)
    c.name = f"{ {'': 'rm', 'edit_rrm': 'rrm'}.get(objective, objective) }_{size}"
    base = size.removeprefix("qwen3_").upper()
    c.model.init_from = f"Qwen/Qwen3-VL-{base}-Instruct" if qwen3 else f"Qwen/Qwen2.5-VL-{base}-Instruct"
    c.model.prompts = "standard"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.dtype = "bfloat16"
    c.data.workers = 16
    c.data.on_bad_record = "skip"
    c.optim.lr = 1e-4
    c.optim.schedule = "cosine"
    c.checkpoint.every = 250
    c.eval.every = 250
    with c.unlocked():
        c.mesh_presets = MESHES[size] | (SHORT.get(size, {}) if objective == "editreward" else LARGER.get(c.name, {}))
        c.presets = {where: fitting(c, where) for where in c.mesh_presets if not where.startswith("h100")}
    return c


def fitting(c, where):
    """Gives what of a config a TPU slice has room for."""
    kept = TIGHT.get(c.name, {}).get(where, "gate_up")
    rows = {"rows": c.rows // 2, "accum": c.accum * 2} if where in FEWER_ROWS.get(c.name, ()) else {}
    return rows | {"model": {"remat": kept}}


def editscore(qwen3=False, objective="editscore"):
    c = default(kind="qwen3_vl" if qwen3 else "qwen2_5_vl", objective=objective)
    c.epochs = 3.0
    c.rows = 16
    c.accum = 2
    c.data.train = "data/editscore"
    c.data.max_pixels = 512 * 512
    c.data.buckets = ((3584, 2, 2688, 1280), (3584, 2, 3072, 1280))
    if qwen3:  # an image of 512 x 512 is 1,024 patches of 16 x 16, 256 places in the text; no image has fewer than 64
        c.data.min_pixels = 256 * 256
        c.data.buckets = ((3584, 2, 2048, 1280), (3584, 2, 3072, 1280))
    c.optim.warmup = 0.1
    return c


def editreward(qwen3=False):
    c = default(kind="editreward", objective="editreward")
    c.epochs = 2.0
    c.rows = 16
    c.accum = 4
    c.data.train = "data/editreward"
    c.data.min_pixels = c.data.max_pixels = 448 * 448
    slots = 1024 if qwen3 else 1152
    c.data.buckets = ((2816, 3, slots, 4), (4096, 3, slots, 4))  # a pair a row; the second for upstream's long prompts
    c.optim.warmup = 0.05
    return c


def edit_rrm(qwen3=False):
    """As EditScore's, but one question an edit, whose reply has verdicts on about ten principles besides."""
    c = editscore(qwen3, "edit_rrm")
    c.epochs = 1.0
    c.data.train = "data/verifier"
    c.data.buckets = tuple((length, images, patches, 1792) for length, images, patches, _ in c.data.buckets)
    return c


OBJECTIVES = {"editscore": editscore, "editreward": editreward, "edit_rrm": edit_rrm}
