"""Whether the verifier became better: held-out pairs, N replies an image with fixed random numbers; and the report.

An evaluation is a file of the run's folder, `evaluations/STEP.json`, as `rl.editors.evaluation` keeps and reads them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.evals.pictures import montage
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rl.editors.evaluation import read
from edit_rl_jax.rl.vlm.pairs import Pair
from edit_rl_jax.rl.vlm.rollout import SIDES, Rollout, Writer, rewards_of
from edit_rl_jax.training.report import write_report

CURVES = (
    ("Pairs told apart in the batch (share)", {"pair_accuracy": "mean scores", "win_share": "comparisons"}),
    ("Verdicts that are right (share)", {"verdict_accuracy": ""}),
    ("Pairs without an advantage (share)", {"zero_advantage_share": ""}),
    ("Score (0 to 10)", {"score_better": "better image", "score_worse": "worse image"}),
    ("Length of a reply (tokens)", {"length_right": "right", "length_wrong": "wrong"}),
    ("Advantage by token, sum A / L over the replies", {"weighted_advantage": ""}),
    ("Ratio, advantage above 0", {"ratio_positive_max": "greatest", "ratio_positive_min": "least"}),
    ("Ratio, advantage below 0", {"ratio_negative_max": "greatest", "ratio_negative_min": "least"}),
    ("Clipped (share)", {"clip_share": ""}),
    ("Entropy (nats a token)", {"entropy": ""}),
    ("Divergence from the start (nats a token)", {"kl": ""}),
    ("Replies that cannot be read", {"parse_failures": ""}),
    ("Log-probability, engine against update", {"engine_difference_max": "greatest", "engine_difference": "mean"}),
    ("Time of an iteration (seconds)", {"rollout_s": "rollout", "score_s": "scoring", "update_s": "updates"}),
)


def evaluate(writer: Writer, pairs: Sequence[Pair], shown: int, each: int) -> dict[str, Any]:
    """Judges pairs, `each` at a time: by pair whether mean scores tell them apart (a pair with an image of which no
    reply could be read is not), verdict accuracy, and what was written first about those that are shown."""
    found: dict[str, Any] = {"key": [p.key for p in pairs], "group": [p.group or p.key for p in pairs]}
    found |= {"right": [], "verdicts": [], "unread": 0, "replies": []}
    for start in range(0, len(pairs), each):
        rollout: Rollout = writer.write(pairs[start : start + each], start, 0)
        ok, verdicts = rollout.valid, rewards_of("verdicts", rollout)
        means = np.where(ok, rollout.scores, 0).sum(2) / np.maximum(ok.sum(2), 1)
        found["right"] += (ok.any(2).all(1) & (means[:, 0] > means[:, 1])).astype(float).tolist()
        known = np.isfinite(verdicts)
        per = np.where(known, verdicts, 0).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
        found["verdicts"] += [float(v) if k else None for v, k in zip(per, known.any((1, 2)))]
        found["unread"] += int((~ok).sum())
        found["replies"] += [[side[0].raw for side in two] for two in rollout.read]
    found["replies"] = found["replies"][:shown]
    return found


def curve(step: int, found: dict[str, Any]) -> dict[str, float]:
    """Gives a point of the report's curves: means over pairs."""
    known = [v for v in found["verdicts"] if v is not None]
    point = {"step": step, "held_out_pair_accuracy": float(np.mean(found["right"]))}
    return point | ({"held_out_verdict_accuracy": float(np.mean(known))} if known else {})


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Gives the figures of `eval.json` from two evaluations of the same pairs; intervals resample all pairs of a
    (source, instruction) together."""
    out: dict[str, Any] = {"n_pairs": len(before["right"]), "unread_before": before["unread"]}
    out["unread_after"] = after["unread"]
    groups = before.get("group", before["key"])
    for name, key in (("pair_accuracy", "right"), ("verdict_accuracy", "verdicts")):
        both = [t for t in zip(before[key], after[key], groups, strict=True) if None not in t]
        if both:
            a, b = np.array([t[:2] for t in both], np.float64).T
            out |= {f"{name}_before": float(a.mean()), f"{name}_after": float(b.mean())}
            out |= {
                f"{name}_gain": float((b - a).mean()),
                f"{name}_gain_ci95": list(interval(b - a, [t[2] for t in both])),
            }
    both = enumerate(zip(before["replies"], after["replies"]), 1)
    rows = ((f"{i}, {side}", {"before": a[k], "after": b[k]}) for i, (a, b) in both for k, side in enumerate(SIDES))
    return out | {"replies": dict(rows)}


def report(folder: Path, pairs: Sequence[Pair], rows: Sequence[dict[str, Any]]) -> None:
    """Writes `report.html`: curves, and replies to the same pairs before and after."""
    found, pictures = read(folder), {}
    names = {"held_out_pair_accuracy": "pairs", "held_out_verdict_accuracy": "verdicts"}
    curves = [("Held-out pairs (share that is right)", names, [curve(s, f) for s, f in found.items()])] if found else []
    curves += [(title, series, rows) for title, series in CURVES]
    shown = pairs[: min((len(f["replies"]) for f in found.values()), default=0)]
    if shown:
        decode = lambda p: [decode_image(x, where=p.key) for x in (p.source, *p.images)]
        lines = [(f"{i + 1}: {p.instruction}", [*zip(decode(p), ("source", *SIDES))]) for i, p in enumerate(shown)]
        pictures["The pairs of the table of replies"] = montage(lines)
    write_report(folder, curves=curves, pictures=pictures)
