"""Editors in pairs, judges side by side, drift, and the page of all, in a real browser without network."""

import dataclasses
import io
import json
import math
import time

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.evals import statistics
from edit_rl_jax.evals.editors import compare, figures, gedit, judged, leaderboard
from scripts import leaderboard as script
from tests import browser as chromium

GROUPS = gedit.NAMES[:2]


def results(home, editor, judge, scores, words="<b>fine</b>", pictures=True, part="en"):
    """A folder of results: {key: (SC, PQ) or None}, the first half in one group, the rest in another."""
    keys, out = list(scores), home / f"{editor}-{judge}"
    group = lambda k: GROUPS[keys.index(k) >= len(keys) / 2]
    lines = []
    for key in keys:
        line = {
            "id": f"{part}/{key}",
            "group": group(key),
            "instruction": f"make <i>{key}</i>",
            "intersection": key == keys[0],
        }
        pair = scores[key]
        line |= {"problem": "no answer"} if pair is None else {"scores": {"sc": [pair[0], 10], "pq": [pair[1], 10]}}
        lines.append(line | ({} if pair is None else {"replies": {"sc": words}}))
    home.mkdir(exist_ok=True)
    file = home / "said.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    how = dict(editor=editor, judge=judge, predictions=file, part=part, progress=False)
    judged.run("gedit_bench", out, **how)
    if pictures:
        level = sum(map(ord, editor)) % 200
        shown = lambda v: judged.thumbnail(encode_png(np.full((40, 60, 3), v, np.uint8)))
        lines = [{"id": f"{part}/{k}", "source": shown(9), "edited": shown(level)} for k in keys if scores[k]]
        (out / "thumbnails.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return out


def flat(*values):
    """Scores whose O is the value."""
    return {f"k{i}": None if v is None else (v, v) for i, v in enumerate(values)}


def test_macro_draws_are_the_bootstrap_of_the_macro_mean():
    rng = np.random.default_rng(0)
    values, strata = rng.normal(size=(60, 2)), ["a"] * 40 + ["b"] * 20
    draws = statistics.macro_draws(values, strata, draws=2000)
    low, high = statistics.percentiles(draws[:, 0])
    other = statistics.macro_interval(values[:, 0], strata, draws=2000)
    assert (low, high) == pytest.approx(other, abs=0.02)
    holes = values.copy()
    holes[40:, 1] = math.nan
    draws = statistics.macro_draws(holes, strata, draws=200)
    assert draws[:, 1].mean() == pytest.approx(values[:40, 1].mean(), abs=0.05)  # a stratum without values is left out
    empty = statistics.macro_draws(np.full((3, 1), math.nan), ["a"] * 3, draws=10)
    assert np.isnan(empty).all() and statistics.percentiles(empty[:, 0]) is None


def test_two_editors_on_the_same_items(tmp_path):
    """Noise that both share is taken out: the paired interval is far narrower than either's own."""
    rng = np.random.default_rng(1)
    base = rng.uniform(1, 8, 40)
    a = results(tmp_path, "a", "j", flat(*base + 1, None, 5))
    b = results(tmp_path, "b", "j", flat(*base, 3, None))
    one, two = compare.load(a), compare.load(b)
    found = compare.paired(one, two, "en")
    assert found["difference"] == pytest.approx(1) and found["difference_ci95"] == pytest.approx([1, 1])
    assert found["n"] == 40 and found["n_left_out"] == 2 and found["share_a_better"] == 1
    back = compare.paired(two, one, "en")
    assert back["difference"] == pytest.approx(-1) and back["share_b_better"] == 1
    low, high = one.about["official_ci95"]
    assert high - low > 0.5
    uneven = results(tmp_path, "c", "j", flat(*[8] * 10, *[2] * 10))
    other = results(tmp_path, "d", "j", flat(*[4] * 10, *[2] * 10))
    found = compare.paired(compare.load(uneven), compare.load(other), "en")
    assert found["difference"] == 2 and found["share_a_better"] == 0.5 and found["share_b_better"] == 0


def test_a_judge_again_and_two_judges(tmp_path):
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    a = results(tmp_path, "a", "old", flat(*values))
    new = results(tmp_path / "again", "a", "old", flat(*values[:4], *(values[4:] + 1)))
    again = compare.drift(compare.load(a), compare.load(new), "en")
    assert again["mean_shift"] == pytest.approx(0.5) and again["share_the_same"] == 0.5 and again["spearman"] == 1
    assert again["mean_absolute_shift"] == pytest.approx(0.5) and again["n"] == 8
    b = results(tmp_path, "b", "old", flat(*(values / 2)))
    other_a = results(tmp_path, "a", "new", flat(*(values + 1)))
    other_b = results(tmp_path, "b", "new", flat(*(9 - values)))
    found = compare.tables([compare.load(f) for f in (a, new, b, other_a, other_b)])
    assert [d["mean_shift"] for d in found["drift"]] == pytest.approx([0.5, 0]) and len(found["editors"]) == 4
    side = next(d for d in found["judges"] if d["set"] == "en")
    assert (side["a"], side["b"], side["n"], side["editors"]) == ("old", "new", 16, 2)
    pairs = [(*values, *values / 2), (*values + 1, *9 - values)]
    assert side["spearman"] == pytest.approx(statistics.spearman(*map(np.array, pairs)))
    assert side["editor_pairs_ordered_alike"] == "1 of 1"


@pytest.mark.parametrize("what", ["judge", "editor"])
def test_two_of_one_name_are_not_taken_for_one(tmp_path, what):
    """Every export lies in a folder `model`: what decides the answers, or the edits, has to be the same."""
    folders = [results(tmp_path / str(n), "a", "model", flat(1, 2, 3, 4)) for n in range(2)]
    for folder, settings in zip(folders, ({"weights_sha256": "x", "passes": 1}, {"weights_sha256": "y", "passes": 1})):
        told = json.loads((folder / "eval.json").read_text())
        (folder / "eval.json").write_text(json.dumps(told | {"about": {what: settings}}))
    name = {"judge": "model", "editor": "a"}[what]
    with pytest.raises(ValueError, match=rf"are of different {what}s, both called '{name}' \(weights_sha256\)"):
        compare.tables([compare.load(f) for f in folders])
    same = json.loads((folders[0] / "eval.json").read_text())
    for n, folder in enumerate(folders):  # the same at another address, with other files of questions: of the parts
        settings = {"weights_sha256": "x", "endpoint": f"http://{n}", "prompts_sha256": {f"file {n}": "y", "all": "z"}}
        (folder / "eval.json").write_text(json.dumps(same | {"about": {what: settings}}))
    assert compare.tables([compare.load(f) for f in folders])["drift"]


def test_parts_in_folders_of_their_own_stand_together(tmp_path):
    """Whatever the folders' order; what a folder has beside a repeated part counts, too."""
    made = lambda name, editor, judge, part, scores: compare.load(
        results(tmp_path / name, editor, judge, scores, part=part, pictures=False)
    )
    tail = lambda *values: {f"t{k}": v for k, v in flat(*values).items()}
    folders = [
        made(part, editor, judge, part, flat(*(v + more for v in (1, 2, 3, 4))))
        for judge in ("j", "i")
        for part, more in (("en", 0), ("cn", 1))
        for editor, more in (("a", more), ("b", more + 3))
    ]
    for order in (folders, folders[::-1]):
        found = compare.tables(order)
        told = {(d["judge"], d["set"]): (d["a"], d["difference"], d["n"], d["n_left_out"]) for d in found["editors"]}
        first, less = ("a", -3) if order is folders else ("b", 3)
        wanted = (first, less, 4, 0)
        parts = [k for k in told if "intersection" not in k[1]]
        assert sorted(parts) == [("i", "cn"), ("i", "en"), ("j", "cn"), ("j", "en")] and not found["drift"]
        assert all(told[k] == wanted for k in parts)
        sides = {d["set"]: (d["n"], d["n_left_out"], d["editor_pairs_ordered_alike"]) for d in found["judges"]}
        assert sides["en"] == sides["cn"] == (8, 0, "1 of 1")
    # a part again is a repeat, and of a part's other items a folder is none
    again = made("again", "a", "j", "cn", flat(3, 4, 5, 6))
    more = [made("more", editor, "j", "cn", tail(*values)) for editor, values in (("a", (1, 1)), ("b", (1, 9)))]
    found = compare.tables([*folders, again, *more])
    assert [(d["editor"], d["set"], d["mean_shift"]) for d in found["drift"] if d["set"] == "cn"] == [("a", "cn", 1)]
    cn = next(d for d in found["editors"] if (d["judge"], d["set"]) == ("j", "cn"))
    assert cn["n"] == 6 and cn["difference"] == pytest.approx(-(2 + (3 * 2 + 8) / 3) / 2)
    # the folder that an item is from is named
    other = dataclasses.replace(folders[3].items["cn/k0"], instruction="another")
    folders[3] = dataclasses.replace(folders[3], items={**folders[3].items, "cn/k0": other})
    with pytest.raises(ValueError, match="cn/a-j and .*cn/b-j: cn/k0 is not the same item"):
        compare.tables(folders)


def test_results_of_other_items_are_not_compared(tmp_path):
    a = compare.load(results(tmp_path, "a", "j", flat(1, 2)))
    b = results(tmp_path, "b", "j", flat(1, 2))
    lines = [json.loads(x) for x in (b / "judgements.jsonl").read_text().splitlines()]
    lines[0]["instruction"] = "another"
    (b / "judgements.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with pytest.raises(ValueError, match="en/k0 is not the same item"):
        compare.paired(a, compare.load(b), "en")
    (b / "eval.json").write_text('{"benchmark": "editworld"}')
    with pytest.raises(SystemExit, match="no results of a judged benchmark"):
        script.main([str(b), "--output", str(tmp_path / "out")])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of two editors and two judges; one edit without a picture."""
    home = tmp_path_factory.mktemp("board")
    folders = sorted(
        results(home, editor, judge, flat(*(v + more for v in (1, 2, 3)), 4, 5, None if editor == "worse" else 6))
        for editor, more in (("worse", 0), ("better", 3))
        for judge in ("strict", "mild")
    )
    assert script.main([*map(str, folders), "--output", str(home / "out")]) == 0
    return home / "out/leaderboard.html"


@chromium.needed
def test_the_page_opens_from_disk_and_filters(page):
    faults, requests = [], []
    with sync_playwright() as play:
        browser = chromium.launch(play)
        for width in (400, 1200):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.set_default_timeout(20_000)
            tab.on("pageerror", lambda e: faults.append(str(e)))
            tab.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
            tab.on("request", lambda r: requests.append(r.url))
            tab.goto(page.as_uri())
            tab.get_by_label("Set").select_option("en")
            rows = tab.locator("#board tbody tr")
            first = rows.nth(0).locator("td").all_inner_texts()
            assert rows.count() == 4 and first[:4] == ["better", "mild", "O", "5.000 (4.333 to 5.667)"]
            assert rows.nth(1).locator("td").all_inner_texts()[4:7] == ["2.500", "6", "1"]
            assert tab.locator("article").count() == 6 and "6 of the items" in tab.locator("#count").inner_text()
            tab.get_by_label("Group").select_option(GROUPS[1])
            tab.get_by_label("Judge").select_option("mild")
            assert tab.locator("article").count() == 3 and rows.count() == 2
            assert rows.nth(0).locator("td").all_inner_texts()[:2] == ["better", "mild"]
            card = tab.locator("article").last
            assert "make <i>k5</i>" in card.inner_text() and "no image" in card.inner_text()
            assert "mild: no answer" in card.inner_text() and "strict" not in card.inner_text()
            card.locator("summary").first.click()
            assert "<b>fine</b>" in card.inner_text()  # words are text, whatever they hold
            loaded = "list => list.length > 0 && list.every(i => i.complete && i.naturalWidth === 60)"
            tab.locator("article img").first.scroll_into_view_if_needed()
            tab.wait_for_function(f"({loaded})([...document.querySelectorAll('article img')].slice(0, 2))")
            tab.get_by_label("Set").select_option("en intersection")
            tab.get_by_label("Group").select_option("all")
            assert tab.locator("article").count() == 1
            assert "Two editors on the same items" in tab.locator("#compared").inner_text()
            assert "Judges side by side" in tab.locator("#compared").inner_text()
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            tab.close()
        browser.close()
    assert not faults and all(r.startswith(("file:", "data:")) for r in requests)


def test_the_page_wants_nothing_from_elsewhere(page):
    text = page.read_text()
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    assert "<i>k5</i>" not in text and text.count("</script>") == 2
    found = json.loads((page.parent / "leaderboard.json").read_text())["gedit_bench"]
    worst = next(r for r in found["rows"] if (r["editor"], r["judge"]) == ("worse", "mild"))
    assert worst["n_failed"] == 1 and len(found["editors"]) == 4 and len(found["judges"]) == 2
    assert "worse: O 3.250" in leaderboard.summary({"gedit_bench": found})


def test_a_page_that_would_be_too_large_shows_fewer_items(page, tmp_path):
    folders = sorted(f for f in page.parent.parent.iterdir() if (f / "eval.json").exists())
    leaderboard.build(folders, tmp_path / "whole")
    whole = (tmp_path / "whole/leaderboard.html").read_bytes()
    assert whole == page.read_bytes() and whole.count(b'"place"') == 6
    leaderboard.build(folders, tmp_path / "less", most=len(whole) - 500)
    less = (tmp_path / "less/leaderboard.html").read_bytes()
    assert len(less) <= len(whole) - 500 and less.count(b'"place"') == 4  # of each group as many
    assert (tmp_path / "less/leaderboard.json").read_bytes() == (page.parent / "leaderboard.json").read_bytes()


@pytest.mark.slow
def test_ten_thousand_judgements_in_half_a_minute(tmp_path, page):
    """Ten editors of 1,000 items: tables of each, all 45 pairs, and a page that fits."""
    rng, lines = np.random.default_rng(0), []
    noise = Image.fromarray(rng.integers(0, 255, (112, 112, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "WEBP", quality=60)
    picture = judged.base64.b64encode(file.getvalue()).decode()  # as large as thumbnails get
    began = time.monotonic()
    folders = []
    for n in range(10):
        lines = [
            {"id": f"en/{i}", "group": gedit.NAMES[i % 11], "instruction": f"do {i}", "replies": {
                "sc": json.dumps({"score": rng.integers(0, 11, 2).tolist(), "reasoning": "because " * 60}),
                "pq": json.dumps({"score": rng.integers(0, 11, 2).tolist(), "reasoning": "so " * 60})}}
            for i in range(1000)
        ]  # fmt: skip
        (tmp_path / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        folders.append(tmp_path / f"editor{n}")
        how = dict(editor=f"editor{n}", judge="j", predictions=tmp_path / "said.jsonl", progress=False)
        found = judged.run("gedit_bench", folders[-1], **how)
        assert found["n"] == 1000 and found["n_failed"] == 0
        kept = [{"id": f"en/{i}", "source": picture, "edited": picture} for i in range(88)]
        (folders[-1] / "thumbnails.jsonl").write_text("".join(json.dumps(x) + "\n" for x in kept))
    made = leaderboard.build(folders, tmp_path / "out")
    assert time.monotonic() - began < 30
    assert len(made["gedit_bench"]["rows"]) == 10 and len(made["gedit_bench"]["editors"]) == 45
    size = (tmp_path / "out/leaderboard.html").stat().st_size
    assert 1_000_000 < size < 5_000_000
    assert figures.macro([1, 3, 5], ["a", "a", "b"]) == 3.5
