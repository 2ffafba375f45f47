"""Best of N: of several edits of one input keep the one that a judge likes best, and what that gains as N grows.

The curve over N is the mean over all subsets of N of the M stored candidates, in closed form, so it is unbiased and
needs no draws: with the rewards in ascending order, candidate i is the best of C(i-1, N-1) of the C(M, N) subsets.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax import json_files
from edit_rl_jax.data.images import ImageError, decode_image
from edit_rl_jax.evals.pictures import montage
from edit_rl_jax.evals.statistics import interval, macro_interval
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.score_file import sources_of
from edit_rl_jax.training.report import write_report

CHUNK = 256  # edits in memory at once


def weights(rewards: Sequence[float | None], n: int) -> np.ndarray:
    """Probability [M] that each candidate is the pick of a random subset of n; ties are shared.

    A candidate without reward is never picked; a subset of only those picks nothing, so the sum may be under 1.
    Raises ValueError unless 1 <= n <= M.
    """
    m = len(rewards)
    if not 1 <= n <= m:
        raise ValueError(f"the best of {n} among {m} candidates")
    order = sorted(range(m), key=lambda i: -math.inf if rewards[i] is None else rewards[i])
    out = np.zeros(m)
    for rank, i in enumerate(order):
        out[i] = 0.0 if rewards[i] is None else math.comb(rank, n - 1) / math.comb(m, n)
    for value in {r for r in rewards if r is not None}:
        tied = [i for i, r in enumerate(rewards) if r == value]
        out[tied] = out[tied].mean()
    return out


def expected(rewards: Sequence[float | None], values: Sequence[float | None], n: int) -> float | None:
    """Mean value of the pick over the subsets of n that pick something; None where there is none. Only a candidate
    without a reward may lack its value."""
    w = weights(rewards, n)
    known = [i for i, r in enumerate(rewards) if r is not None and w[i] > 0]
    return float(sum(w[i] * values[i] for i in known) / w[known].sum()) if known else None


def read(file: str | Path) -> list[dict[str, Any]]:
    """Reads inputs with their candidates: JSON lines with `source` (or a list of several), `instruction`, `candidates`
    (paths, from the file's folder), and if known `truth` (a number for each candidate, or null), `group`, and `extras`,
    an object of what else the judge should know. An input that could not be edited has none, and `valid` false. Raises
    ValueError, naming the line."""
    return list(json_files.rows(file, _input))


def _input(where: str, line: Any) -> dict[str, Any]:
    try:
        candidates, truth = line["candidates"], line.get("truth")
        texts = [*sources_of(line), line["instruction"], *candidates]
        good = bool(candidates or line.get("valid") is False) and all(isinstance(t, str) for t in texts)
        good &= len(texts) - len(candidates) > 1
        good &= isinstance(line.get("extras", {}), dict)
        good &= truth is None or len(truth) == len(candidates) and all(isinstance(t, int | float | None) for t in truth)
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        wanted = "`source`, `instruction`, `candidates` and as many `truth`, if any, and `extras`, an object, if any"
        raise ValueError(f"{where}: wanted is an object with {wanted}")
    return line


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""  # no image: a judgement that is not valid


def score(
    judge: Judge, inputs: Sequence[Mapping[str, Any]], folder: Path, progress: bool = True
) -> list[list[Judgement]]:
    """Judges every candidate; those of one input go to the judge together."""
    out: list[list[Judgement]] = []
    with tqdm(
        total=sum(len(x["candidates"]) for x in inputs), desc="scoring", disable=None if progress else True
    ) as bar:
        start = 0
        while start < len(inputs):
            stop = start + 1
            while stop < len(inputs) and sum(len(x["candidates"]) for x in inputs[start : stop + 1]) <= CHUNK:
                stop += 1
            part = inputs[start:stop]
            sources = [[_bytes(folder / s) for s in sources_of(x)] for x in part]
            items = [
                Edit(s, _bytes(folder / c), x["instruction"], x.get("extras", {}))
                for s, x in zip(sources, part)
                for c in x["candidates"]
            ]
            judged = iter(judge.score(items, progress=False))
            out += [[next(judged) for _ in x["candidates"]] for x in part]
            bar.update(len(items))
            start = stop
    return out


def run(
    candidates: str | Path,
    output: str | Path,
    judge: Judge,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Picks the best candidates; writes picks.jsonl, eval.json, montage.png and report.html, and returns eval.json's
    content. Where two are equally good the earlier one is kept."""
    file, home = Path(candidates), Path(output)
    home.mkdir(parents=True, exist_ok=True)
    inputs = read(file)
    judged = score(judge, inputs, file.parent, progress)
    rewards = [[j.value("overall") if j.valid else None for j in js] for js in judged]
    picks: list[int | None] = []
    with (home / "picks.jsonl").open("w", encoding="utf-8") as out:
        for line, found, js in zip(inputs, rewards, judged):
            best = max((r for r in found if r is not None), default=None)
            picks.append(None if best is None else found.index(best))
            pick = {"pick": None if best is None else line["candidates"][picks[-1]], "index": picks[-1], "reward": best}
            problems = sorted({j.problem for j in js if not j.valid})
            out.write(json_files.dumps({**line, **pick, "rewards": found, "problems": problems}) + "\n")
    figures = curves(inputs, rewards)
    figures = {"benchmark": "best_of_n", "candidates_file": str(candidates), **figures, "judge": dict(about or {})}
    (home / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    picture = examples(inputs, rewards, picks, file.parent)
    pictures = {}
    if picture:
        (home / "montage.png").write_bytes(picture)
        pictures = {"The source, the edit that was kept, the edit that was liked least": picture}
    points = [{"N, candidates to choose from": int(n), **row} for n, row in figures["by_n"].items()]
    names = {"reward": "the judge's score", "truth": "truth", "best_truth": "best truth"}
    write_report(home, curves=[("Best of N (mean score)", names, points)], pictures=pictures)
    return figures


def curves(inputs: Sequence[Mapping[str, Any]], rewards: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Figures over N = 1, 2, 4, ... and the least number of candidates, means over the inputs with any reward.

    `reward` of the pick, and where the truth is known `truth` of the pick and `best_truth`, the truth of the best; a
    candidate whose truth is not known is then never picked. Where all inputs name a `group`, unweighted means over
    groups stand beside the means, and figures of each group for one and for most candidates.
    """
    flat, lost = [v for r in rewards for v in r], 0
    told = all(x.get("truth") is not None for x, r in zip(inputs, rewards) if r)  # one without candidates tells nothing
    if told:
        truths = [x.get("truth") or [] for x in inputs]
        lost = sum(t is None for truth in truths for t in truth)
        rewards = [[None if t is None else v for v, t in zip(r, truth)] for truth, r in zip(truths, rewards)]
    kept = [(x, r) for x, r in zip(inputs, rewards) if any(v is not None for v in r)]
    most = min((len(r) for _, r in kept), default=0)
    ns = sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | ({most} if most else set()))
    told = told and bool(kept)
    by_n, groups = {}, [x.get("group") for x, _ in kept]
    grouped: dict[str, dict[str, Any]] = {g: {"n_inputs": groups.count(g)} for g in groups if isinstance(g, str)}
    macro = bool(kept) and len(grouped) > 0 and all(isinstance(g, str) for g in groups)
    for n in ns:
        columns = {"reward": [expected(r, [0.0 if v is None else v for v in r], n) for _, r in kept]}
        if told:
            columns["truth"] = [expected(r, x["truth"], n) for x, r in kept]
            columns["best_truth"] = [expected(x["truth"], x["truth"], n) for x, _ in kept]
        row = {}
        for name, values in columns.items():
            row |= {name: float(np.mean(values)), f"{name}_ci95": list(interval(values))}
            if macro:
                means = {g: float(np.mean([v for v, own in zip(values, groups) if own == g])) for g in grouped}
                row |= {f"{name}_macro": float(np.mean(list(means.values())))}
                row |= {f"{name}_macro_ci95": list(macro_interval(values, groups))}
                for g in means if n in (1, most) else ():
                    grouped[g][f"{name}_of_{n}"] = means[g]
        by_n[str(n)] = row
    return {
        "n_inputs": len(inputs),
        "n_candidates": len(flat),
        "candidates_without_score": sum(v is None for v in flat),
        "inputs_without_pick": len(inputs) - len(kept),
        **({"candidates_without_truth": lost} if told else {}),
        "by_n": by_n,
        **({"by_group": grouped} if macro else {}),
        "intervals": "95%, bootstrap over inputs",
    }


def examples(
    inputs: Sequence[Mapping[str, Any]],
    rewards: Sequence[Sequence[float | None]],
    picks: Sequence[int | None],
    folder: Path,
    most: int = 12,
) -> bytes | None:
    """A PNG with a row an input: instruction, source, kept and least liked candidate with their rewards, or None."""
    rows = []
    for line, found, pick in zip(inputs, rewards, picks):
        valued = [i for i, r in enumerate(found) if r is not None]
        if pick is None or len(valued) < 2 or len(rows) == most:
            continue
        worst = min(valued, key=lambda i: found[i])
        names = [
            *((s, "source") for s in sources_of(line)),
            *((line["candidates"][i], f"{found[i]:.1f}") for i in (pick, worst)),
        ]
        try:
            rows.append((line["instruction"], [(decode_image(folder / path), text) for path, text in names]))
        except ImageError:
            continue
    return montage(rows) if rows else None


def summary(figures: Mapping[str, Any]) -> str:
    """The curve in a few lines."""
    lines = [
        f"{figures['n_inputs']} inputs, {figures['n_candidates']} candidates, "
        f"{figures['candidates_without_score']} without a score, {figures['inputs_without_pick']} inputs without a pick"
    ]
    for n, row in figures["by_n"].items():
        cells = [
            f"{k} {v:.3f} ({row[k + '_ci95'][0]:.3f} to {row[k + '_ci95'][1]:.3f})"
            for k, v in row.items()
            if k[-4:] != "ci95"
        ]
        lines.append(f"best of {n}: " + ", ".join(cells))
    return "\n".join(lines)
