"""Counts tokens and money of a job that makes training data for the verifier: what it took, and what it would take."""

from collections.abc import Iterable
from typing import Any

from edit_rl_jax.data.images import image_size
from edit_rl_jax.data.principles import principles_id
from edit_rl_jax.rewards.edit_rrm import prompts, writers
from edit_rl_jax.rewards.edit_rrm.cold_start import gold, hard
from edit_rl_jax.rewards.edit_rrm.cold_start.config import Asking, Config
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import Journal

PRINCIPLES, GOLD, FILTER = "principles", "gold verdicts", "filter"  # whose replies; of candidates, by their names
LETTERS, PIXELS = 4, 28 * 28  # of a token of text, and of an image, roughly
SET = 800  # letters of a set of principles, roughly


def parts(config: Config) -> dict[str, Asking]:
    """Returns the parts of a config that ask or generate, by the words under which their replies are counted."""
    found: dict[str, Asking | None] = {FILTER: config.filter, PRINCIPLES: config.principles}
    found |= {f"candidates {c.name}": c for c in config.candidates} | {GOLD: config.verifier}
    own = lambda part: part.endpoint or getattr(part, "model", "")
    return {name: part for name, part in found.items() if part is not None and own(part)}


def price(config: Config, part: Asking | None, read: float, written: float) -> float:
    """Returns what tokens cost at the prices of a part's end point; 0 without one."""
    at = config.endpoints.get(part.endpoint) if part is not None else None
    return (read * at.price_in + written * at.price_out) / 1e6 if at else 0.0


def spent(config: Config, journal: Journal) -> dict[str, Any]:
    """Returns {"requests": counts by whose replies, "cost": their sum at today's prices}: of all runs together."""
    known, requests = parts(config), {}
    for name, count in sorted(journal.counts.items()):
        cost = price(config, known.get(name), count.tokens["read"], count.tokens["written"])
        requests[name] = count.to_json() | {"cost": round(cost, 6)}
    return {"requests": requests, "cost": round(sum(r["cost"] for r in requests.values()), 6)}


def estimate(config: Config, edits: Iterable[writers.Asking], journal: Journal | None) -> dict[str, Any]:
    """Returns requests, tokens and costs that are still to come, roughly: text by its letters, images by their pixels,
    replies by the mean length of those in the journal, else as half their limit. A filter is taken to keep all."""
    groups, n, text, image, source = set(), 0, 0.0, 0.0, 0.0
    first = {}
    for record in edits:
        sizes = [width * height / PIXELS for width, height in (image_size(i) for i in (record.source, record.edited))]
        n, text, image = n + 1, text + len(record.instruction) / LETTERS, image + sum(sizes)
        if (name := principles_id(record.source, record.instruction)) not in groups:
            groups.add(name)
            first[name] = len(record.instruction) / LETTERS
            source += sizes[0]
    words, total, requests = sum(first.values()), 0.0, {}
    asks = len(prompts.get(prompts.DEFAULT).ask["think_verify"]) / LETTERS
    replied = 0.0  # tokens of all candidates
    for name, part in parts(config).items():
        count = journal.counts.get(name) if journal else None
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
        left = max(0, replies - (count.replies if count else 0))
        read, written = read * left / max(replies, 1), each * left
        cost = price(config, part, read, written)
        requests[name] = {"requests": left, "read": round(read), "written": round(written), "cost": round(cost, 2)}
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
