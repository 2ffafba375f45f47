"""Finds the entries of a list that a model was asked to write as JSON, as principles and gold verdicts are."""

from typing import Any

from edit_rl_jax.rewards.editscore.objects import MOST, Pairs, objects
from edit_rl_jax.rewards.editscore.parsing import outside_thinking


def entries(text: str, *keys: str) -> tuple[list[dict[str, Any]], str]:
    """Returns (entries, why there are none or "") of a reply: the objects outside of thinking that have all these keys
    (small letters), standing alone or in a list that another one holds. Never raises.

    The slips that `editscore.objects` puts right are accepted; an object that cannot be read, or is cut, spoils all.
    """
    answer = outside_thinking(text)
    if answer is None:
        return [], "it ends while thinking"
    found = []
    for one in objects(answer):
        if one.problem or not one.whole:
            return [], f"malformed JSON: {one.problem or 'its end is not written'}"
        lists = [v for _, v in one.pairs if isinstance(v, list) and not isinstance(v, Pairs)]
        inner = [Pairs((k.strip().lower(), v) for k, v in x) for some in lists for x in some if isinstance(x, Pairs)]
        found += [pairs for pairs in (one.pairs, *inner) if {k for k, _ in pairs} >= set(keys)]
    if len(found) > MOST:
        return [], "too many entries"
    if any(len(dict(pairs)) < len(pairs) for pairs in found):
        return [], "malformed JSON: a key twice"
    return [dict(pairs) for pairs in found], "" if found else f"no JSON with {', '.join(keys)}"
