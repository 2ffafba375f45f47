"""Writes plans for people: a paragraph a program."""

from collections.abc import Iterator, Mapping
from typing import Any

GIB = 2**30


def text(plan: Mapping[str, Any]) -> str:
    """Writes a plan, its programs one after another, and what was assumed."""
    lines = [f"{plan['config']} on {plan['topology']}, job {plan['job']}: {plan['devices']} devices"]
    for program in plan["programs"]:
        lines += ["", *_program(program, plan["devices"])]
    return "\n".join([*lines, "", *(f"assumed: {line}" for line in plan["assumptions"])])


def _program(p: Mapping[str, Any], devices: int) -> Iterator[str]:
    m, t = p["bytes_per_device"], p["predicted"]
    row = lambda what, size, of: f"  {what:22} {size / GIB:9.2f} GiB {of}"
    yield f"{p['program']}  (compiled in {p['compile_s']} s)"
    yield row("peak", m["peak"], "a device")
    for what, size in m["beside"].items():
        yield row("beside it", size, f"of {what}")
    near = ", by less than the 8% that plans have been too low by" if m["together"] > 0.92 * m["usable_hbm"] else ""
    yield row("together", m["together"], f"of {m['usable_hbm'] / GIB:.2f} usable: it fits{near}")
    for kind in ("arguments", "temporaries", "outputs", "aliased"):
        yield row(kind, m[kind], "")
        if kind == "arguments":
            yield from (row(f"  {what}", size, "") for what, size in m["by_kind"].items() if size >= GIB // 1024)
    for what, size in p["host_bytes"].items():
        yield row(f"host, {what}", size, "a host")
    for kind, flops in p["flops"].items():
        if flops is not None:
            yield f"  {kind + ' FLOPs':22} {flops:.4g} a step, {flops / devices:.4g} a device"
    yield f"  {'HBM traffic':22} {p['hbm_traffic'] / 1e9:9.3f} GB a device and step"
    if moved := p.get("host_traffic"):
        out, back = moved["out"] / 1e9, moved["back"] / 1e9
        yield f"  {'host memory':22} {out:9.3f} GB out and {back:.3f} GB back a device and step"
    for axes, kinds in p.get("collectives_by_axes", {"all axes": p["collectives"]}).items():
        for kind, c in kinds.items():
            yield f"  {kind:22} {c['bytes'] / 1e9:9.3f} GB to each device a step, {c['count']} times along {axes}"
    for what, names in p["not_counted"].items():
        if names:
            yield f"  not counted: {what} {', '.join(names)}" + (" (once)" if what == "loops" else "")
    if "step_s_at_least" in p:
        yield f"  a step takes at least {p['step_s_at_least'] * 1e3:.2f} ms: reading the weights"
    seconds = ", ".join(f"{name} {s:.4g}" for name, s in t["seconds"].items())
    yield f"  predicted step         {t['step_s']:.4g} s, bound by {t['bound']}: {seconds}"
    yield f"  without overlap        {t['no_overlap_s']:.4g} s"
    if "unknown" in t:
        yield f"  no published rate for links along {', '.join(t['unknown'])}: not in the prediction"
    if "mfu" in t:
        yield f"  predicted MFU          {t['mfu']:.1%}"
    if rate := t.get("throughput"):
        usd = f", {t['usd_per_thousand']:.4g} USD a thousand" if "usd_per_thousand" in t else ""
        yield f"  predicted throughput   {rate['per_s']:.4g} {rate['of']} a second{usd}"
