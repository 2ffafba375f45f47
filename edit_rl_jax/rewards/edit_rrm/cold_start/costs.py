"""Counts tokens and money of a job that makes training data for the verifier: what it took, and what it would take."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edit_rl_jax.data.images import image_size
from edit_rl_jax.data.principles import principles_id
from edit_rl_jax.rewards.edit_rrm import prompts, writers
from edit_rl_jax.rewards.edit_rrm.cold_start import gold, hard
from edit_rl_jax.rewards.edit_rrm.cold_start.config import Asking, Config
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Count, Journal

PRINCIPLES, GOLD, FILTER = "principles", "gold verdicts", "filter"  # whose replies; of candidates, by their names
LETTERS, PIXELS = 4, 28 * 28  # of a token of text, and of an image, roughly
SET = 800  # letters of a set of principles, roughly


def parts(config: Config) -> dict[str, Asking]:
    """Returns the parts of a config that ask or generate, by the words under which their replies are counted."""
    found: dict[str, Asking | None] = {FILTER: config.filter, PRINCIPLES: config.principles}
    found |= {f"candidates {c.name}": c for c in config.candidates} | {GOLD: config.verifier}
    own = lambda part: part.endpoint or getattr(part, "model", "")
    return {name: part for name, part in found.items() if part is not None and own(part)}


def prices(config: Config) -> dict[str, tuple[float, float]]:
    """Returns the prices of a million tokens (read, written) of each of the `parts`; 0 without an end point."""
    ends = {name: config.endpoints.get(part.endpoint) for name, part in parts(config).items()}
    return {name: (at.price_in, at.price_out) if at else (0.0, 0.0) for name, at in ends.items()}


def spent(config: Config, journal: Journal) -> dict[str, Any]:
    """Returns {"requests": counts by whose replies, "cost": their sum}: of all runs together, each reply at the prices
    that stand in its entry; one of a journal that was written before there were any, at today's."""
    today, requests = prices(config), {}
    for name, count in sorted(journal.counts.items()):
        cost = sum(
            (tokens["read"] * paid[0] + tokens["written"] * paid[1]) / 1e6
            for at, tokens in count.paid.items()
            if (paid := at or today.get(name))
        )
        requests[name] = count.to_json() | {"cost": round(cost, 6)}
    return {"requests": requests, "cost": round(sum(r["cost"] for r in requests.values()), 6)}


def estimate(
    config: Config,
    edits: Iterable[writers.Instructed],
    counts: Mapping[str, Count] | None = None,
    left: Callable[[writers.Instructed], Iterable[tuple[str, str]]] | None = None,
) -> dict[str, Any]:
    """Returns requests, tokens and costs that are still to come, roughly: text by its letters, images by their pixels,
    replies by the mean length of those in the journal, else as half their limit. A filter is taken to keep all.

    counts: the journal's. left: yields (whose reply, id) of what is still to be asked about an edit; None: everything.
    """
    groups, n, text, image, source = set(), 0, 0.0, 0.0, 0.0
    first, unasked = {}, defaultdict(set)
    for record in edits:
        edited = getattr(record, "edited", ())  # one, a preference's two, or none yet
        images = (record.source, *((edited,) if isinstance(edited, bytes) else edited))
        sizes = [width * height / PIXELS for width, height in map(image_size, images)]
        n, text, image = n + 1, text + len(record.instruction) / LETTERS, image + sum(sizes)
        if (name := principles_id(record.source, record.instruction)) not in groups:
            groups.add(name)
            first[name] = len(record.instruction) / LETTERS
            source += sizes[0]
        for whose, reply in left(record) if left else ():
            unasked[whose].add(reply)
    words, total, requests = sum(first.values()), 0.0, {}
    asks = len(prompts.get(prompts.DEFAULT).ask["think_verify"]) / LETTERS
    replied, at = 0.0, prices(config)  # tokens of all candidates
    for name, part in parts(config).items():
        count = (counts or {}).get(name)
        told = (count.tokens["answers"] - count.tokens["untold"]) if count else 0
        each = count.tokens["written"] / told if count and told else part.max_tokens / 2
        grouped = name in (FILTER, PRINCIPLES)
        replies = len(groups) if grouped else n * getattr(part, "replies", 1)
        if grouped:
            read = len(groups) * len(hard.TEXT if name == FILTER else writers.TEXT) / LETTERS + words + source
        elif name == GOLD:
            read = n * (len(gold.TEXT) + SET) / LETTERS + text + image + replied
        else:
            read = getattr(part, "replies", 1) * (n * (asks + SET / LETTERS) + text + image)
            replied += replies * each
        asking = len(unasked[name]) if left else replies
        read, written = read * asking / max(replies, 1), each * asking
        cost = (read * at[name][0] + written * at[name][1]) / 1e6
        requests[name] = {"requests": asking, "read": round(read), "written": round(written), "cost": round(cost, 2)}
        total += cost
    return {"edits": n, "groups": len(groups), "requests": requests, "cost": round(total, 2)}


def lines(found: dict[str, Any]) -> list[str]:
    """Writes what `spent` or `estimate` returned, a line for each kind of request and one for all."""
    out = []
    for name, told in found["requests"].items():
        replies = told.get("replies", told.get("requests"))
        line = f"  {name}: {replies} requests, {told.get('read', 0)} tokens read, {told.get('written', 0)} written"
        for kind in ("untold", "unanswered"):
            line += f", {told[kind]} {kind}" if told.get(kind) else ""
        line += f", cost {told['cost']:g}"
        for kind in ("faults", "problems"):
            if told.get(kind):
                line += f"; {kind}: {', '.join(f'{k} {v}' for k, v in told[kind].items())}"
        out.append(line)
    return [*out, f"  cost of all: {found['cost']:g}"]
