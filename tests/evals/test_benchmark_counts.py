"""Public benchmarks against the counts behind published percentages, and against small tables worked by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from edit_rl_jax.evals.judges import public
from edit_rl_jax.evals.judges.ties import Ties
from scripts import eval_rm

pytestmark = pytest.mark.usefixtures("few_draws")
GROUPS = {2: 186, 3: 150, 4: 148}


def lines(file, rows):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def evaluate(name, folder, rows, predictions, **options):
    data = lines(folder / "rows.jsonl", rows)
    said = lines(folder / "predictions.jsonl", predictions)
    return public.run(name, folder / "out", data=data, predictions=said, progress=False, **options)


def tiger_rows(groups=GROUPS):
    """Pairs as on the hub: candidates in the order B, A, (C, D); every fifth group of two is a tie."""
    for size, count in groups.items():
        for n, (i, j) in itertools.product(range(count), itertools.combinations("ABCD"[:size], 2)):
            name, images = f"{size}x{n}_{i}vs{j}", {"source_image": "s.png", "candidate_1": "1", "candidate_2": "2"}
            ranking = "A=B" if size == 2 and n % 5 == 0 else "B>A" if i + j == "AB" else f"{i}>{j}"
            about = {"comparison_type": f"{i}vs{j}", "dataset": f"{size}pair", "num_candidates": size}
            yield {"id": name, "instruction": "do", "ranking": ranking, **about, **images}


@pytest.mark.parametrize(
    "right,kind", [((105, 64, 17), "scores"), ((85, 41, 11), "verdicts"), ((48, 17, 2), "verdicts")]
)
def test_strict_accuracy_of_484_groups(right, kind, tmp_path):
    """Each group that should be wrong has one wrong pair: its last."""
    rows, said = list(tiger_rows()), []
    for row in rows:
        size, n = int(row["id"][0]), int(row["id"][2:].split("_")[0])
        i, j = row["comparison_type"][0], row["comparison_type"][-1]
        wrong = n >= right[size - 2] and row["comparison_type"] == {2: "AvsB", 3: "BvsC", 4: "CvsD"}[size]
        order = {"A=B": 0, f"{i}>{j}": 1, f"{j}>{i}": -1}[row["ranking"]]
        order = (order or 2) * -1 if wrong else order
        verdict = f"{i}>{j}" if order > 0 else f"{j}>{i}" if order else "A=B"
        one = {"score_1": 5.0 + order, "score_2": 5.0} if kind == "scores" else {"verdict": verdict}
        said.append({"id": row["id"], **one})
    found = evaluate("editreward_bench_tiger", tmp_path, rows, said)
    assert found["official_accuracy"] == pytest.approx(sum(right) / 484, abs=1e-12) and found["n_groups"] == 484
    strict = found["strict"]
    assert [strict[f"K={k}"]["n"] for k in (2, 3, 4)] == [186, 150, 148]
    assert [strict[f"K={k}"]["accuracy"] for k in (2, 3, 4)] == pytest.approx(
        [r / n for r, n in zip(right, GROUPS.values())]
    )
    ties = len(range(0, 186, 5))
    pairs = found["pairwise"]
    assert pairs["K=2"]["accuracy"] == pytest.approx(right[0] / 186) and pairs["K=2"]["n"] == 186
    assert pairs["K=3"]["accuracy"] == pytest.approx(1 - (150 - right[1]) / 450) and pairs["K=3"]["n"] == 450
    assert pairs["K=4"]["accuracy"] == pytest.approx(1 - (148 - right[2]) / 888) and pairs["all"]["n"] == 1524
    assert found["n"] == 1524 and found["n_without_ties"] == 1524 - ties and found["problems"] == {}
    low, high = found["official_accuracy_ci95"]
    p = sum(right) / 484
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(p * (1 - p) / 484), rel=0.15)
    if right == (105, 64, 17):
        assert f"{100 * found['official_accuracy']:.2f}" == "38.43"


def test_the_rule_of_two_and_upstreams_quirks(tmp_path):
    """Groups of the released code's layout. Threshold of K = 2 chosen on the test set: |differences| 1 (tie), 1 (A>B),
    3 (A>B): at 0 two are right, at 1 two, so 0; with a second tie of 1 it is 1, and the A>B of 1 is still right by
    order, although with ties it is not."""
    vote = lambda ranking: {"human_vote": {"ranking": ranking}, "prompt": "do", "path_src": "s"}
    two = lambda name, ranking: {"id": name, "paths_generated": ["a", "b"], **vote(ranking)}
    three = lambda name, ranking: {"id": name, "paths_generated": ["a", "b", "c"], **vote(ranking)}
    rows = [two("t1", "A=B=Good"), two("t2", "A=B=Bad"), two("p1", "A>B"), two("p2", "B<A"), two("q", "A=B")]
    rows += [three("u", "C>A>B"), three("v", "A > B > C"), three("w", "A>B=C")]
    scores = {"t1": (1, 0), "t2": (0, 1), "p1": (1, 0), "p2": (3, 0), "q": (2, 2)}
    scores |= {"u": (2, 1, 3), "v": (1, 1, 0), "w": (3, 2, 2)}
    said = []
    for name, values in scores.items():
        for i, j in itertools.combinations(range(len(values)), 2):
            pair = {"score_1": float(values[i]), "score_2": float(values[j])}
            said.append({"id": f"{name}_{'ABC'[i]}vs{'ABC'[j]}", **pair})
    found = evaluate("editreward_bench_tiger", tmp_path, rows, said, ties=Ties("oracle", upstream=True))
    assert found["tie_threshold_of_2"] == 1.0
    assert found["strict"]["K=2"]["accuracy"] == 1.0  # all five, p1 by order alone
    assert found["pairwise"]["K=2"]["accuracy"] == 4 / 5  # p1 is within the threshold
    # u and w are in order; v has equal scores, which are no order
    assert found["strict"]["K=3"]["accuracy"] == pytest.approx(2 / 3) and found["official_accuracy"] == 7 / 8
    assert found["pairwise"]["K=3"]["accuracy"] == 7 / 8  # without the tie of w, v's A=B is wrong
    # the released code: q is always wrong, equal scores count as the later first: A=B of v wrong, B=C of w
    upstream = found["upstream"]
    assert upstream["strict"]["K=2"]["accuracy"] == 4 / 5 and upstream["tie_threshold_of_2"] == 1.0
    assert upstream["pairwise"]["K=2"]["accuracy"] == 3 / 5  # q is read as A>B
    assert upstream["strict"]["K=3"]["accuracy"] == pytest.approx(2 / 3)


def test_upstream_takes_the_later_of_equal_scores_for_the_first(tmp_path):
    vote = lambda ranking: {"human_vote": {"ranking": ranking}, "prompt": "do", "path_src": "s"}
    rows = [{"id": "g", "paths_generated": ["a", "b", "c"], **vote("B>A>C")}]
    rows += [{"id": "h", "paths_generated": ["a", "b"], **vote("B>A")}]
    said = [("g_AvsB", 1, 1), ("g_AvsC", 1, 0), ("g_BvsC", 1, 0), ("h_AvsB", 2, 2)]
    said = [{"id": n, "score_1": float(a), "score_2": float(b)} for n, a, b in said]
    found = evaluate("editreward_bench_tiger", tmp_path, rows, said, ties=Ties(upstream=True))
    whole = {"accuracy": 1.0, "ci95": [1.0, 1.0], "n": 2}
    assert found["official_accuracy"] == 0.0 and found["upstream"]["strict"]["all"] == whole
    assert found["upstream"]["pairwise"]["K=4"] == {"accuracy": None, "accuracy_ci95": None, "n": 0}


VOTES = {"leftvote": 240, "rightvote": 263, "tievote": 24, "bothbad_vote": 392}
SAID = ("A>B", "B>A", "A=B=Good", "A=B=Bad")
RELEASED = {  # verdicts of two judges by vote, counted in the benchmark's own results, and what it publishes of them
    "gpt4o": ({"leftvote": (154, 37, 6, 43), "rightvote": (34, 209, 5, 15), "tievote": (8, 11, 5, 0),
               "bothbad_vote": (105, 159, 4, 124)}, "53.54"),
    "gemini-1.5-pro": ({"leftvote": (136, 54, 1, 49), "rightvote": (26, 192, 0, 45), "tievote": (5, 12, 0, 7),
                        "bothbad_vote": (79, 126, 1, 186)}, "55.93"),
}  # fmt: skip


def genai(folder, labels, verdicts, name="genai_bench"):
    """Through the script, from recorded labels alone."""
    told = lines(folder / "labels.jsonl", [{"id": i, "verdict": v} for i, v in enumerate(labels)])
    said = lines(folder / "said.jsonl", [{"id": str(i), "verdict": v} for i, v in enumerate(verdicts)])
    flags = ["--benchmark", name, "--labels", str(told), "--predictions", str(said), "--output", str(folder / "out")]
    assert eval_rm.main(flags) == 0
    return json.loads((folder / "out/eval.json").read_text())


@pytest.mark.parametrize("judge", RELEASED)
def test_genai_bench_official_accuracy_of_released_verdicts(judge, tmp_path):
    table, published = RELEASED[judge]
    assert {vote: sum(row) for vote, row in table.items()} == VOTES
    both = [(vote, said) for vote, row in table.items() for said, n in zip(SAID, row) for _ in range(n)]
    found = genai(tmp_path, *zip(*both))
    assert f"{100 * found['official_accuracy']:.2f}" == published and found["n"] == 919 and found["n_invalid"] == 0
    merged = table["leftvote"][0] + table["rightvote"][1] + sum(sum(table[v][2:]) for v in ("tievote", "bothbad_vote"))
    assert found["accuracy_with_ties"] == pytest.approx(merged / 919)
    decided = table["leftvote"][0] + table["rightvote"][1]
    assert found["accuracy_without_ties"] == pytest.approx(decided / 503) and found["n_without_ties"] == 503
    low, high = found["official_accuracy_ci95"]
    assert low < found["official_accuracy"] < high and (high - low) / 2 == pytest.approx(0.032, abs=0.003)


@pytest.mark.parametrize("said,official,with_ties", [("A=B=Bad", 392, 416), ("A=B", 416, 416), ("A>B", 240, 240)])
def test_genai_bench_always_the_same(said, official, with_ties, tmp_path):
    found = genai(tmp_path, [v for v, n in VOTES.items() for _ in range(n)], [said] * 919)
    assert found["official_accuracy"] == pytest.approx(official / 919)
    assert found["accuracy_with_ties"] == pytest.approx(with_ties / 919)
    assert said != "A=B=Bad" or f"{100 * found['accuracy_with_ties']:.2f}" == "45.27"
    assert found["accuracy_without_ties"] == pytest.approx(240 / 503 if said == "A>B" else 0.0)
    assert found["verdicts_without_kind"] == (919 if said == "A=B" else 0)
    assert found["accuracy_of_equal_words"] == pytest.approx({"A=B=Bad": 392, "A=B": 0, "A>B": 240}[said] / 919)


def test_genai_bench_by_scores(tmp_path):
    """Scores tell good from bad by a level: ties around 8 are good, around 2 bad; decided pairs differ by 3."""
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote"] * 10
    pairs = {"leftvote": (6.0, 3.0), "rightvote": (3.0, 6.0), "tievote": (8.0, 7.9), "bothbad_vote": (2.0, 2.1)}
    image = {"source_image": "s", "left_output_image": "l", "right_output_image": "r"}
    rows = [{**image, "instruct_prompt": f"do {i}", "vote_type": v} for i, v in enumerate(votes)]
    said = [{"id": str(i), "score_1": pairs[v][0], "score_2": pairs[v][1]} for i, v in enumerate(votes)]
    found = evaluate("genai_bench", tmp_path, rows, said)
    assert found["official_accuracy"] == found["accuracy_with_ties"] == found["accuracy_without_ties"] == 1.0
    assert found["tie_threshold"] == pytest.approx(0.1) and found["good_threshold"] == pytest.approx(2.05)
    assert found["tie_threshold_from"].startswith("held-out") and found["good_threshold_from"].startswith("held-out")
    upstream = evaluate("genai_bench", tmp_path, rows, said, ties=Ties("oracle", upstream=True))
    assert upstream["upstream"]["accuracy_with_ties"] == 1.0 and "oracle" in upstream["tie_threshold_from"]


def test_compass(tmp_path):
    """IA: 2 of 3, VC: 1 of 2, VQ: 2 of 2; the mean is (2/3 + 1/2 + 1) / 3, pooled 5 of 7."""
    table = [  # dimension, label, winner's and loser's score
        ("IA", "preference", 1.0, 0.0), ("IA", "preference", 1e-6, 0.0), ("IA", "preference", 0.5, 0.5),
        ("VC", "tie", 0.5, 0.5 + 0.9e-5), ("VC", "tie", 0.5, 0.5 + 1.1e-5),
        ("VQ", "tie", 0.0, 0.0), ("VQ", "preference", -1.0, -2.0),
    ]  # fmt: skip
    image = {"source_image": "s", "winner": "w", "loser": "l"}
    rows = [{"dimension": d, "label": l, "prompt": f"do {i}", **image} for i, (d, l, *_) in enumerate(table)]
    said = [{"id": i, "score_1": a, "score_2": b} for i, (*_, a, b) in enumerate(table)]
    found = evaluate("editreward_compass", tmp_path, rows, said)
    assert found["official_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert {k: r["accuracy"] for k, r in found["by_dimension"].items()} == pytest.approx(
        {"IA": 2 / 3, "VC": 1 / 2, "VQ": 1}
    )
    assert found["accuracy_with_ties"] == 5 / 7 and found["accuracy_without_ties"] == 3 / 4
    assert (found["tie_threshold"], found["tie_threshold_from"]) == (1e-5, "fixed by the benchmark")
    assert found["n"] == 7 and found["missing_dimensions"] == []


def mmrb2_row(name, chosen):
    answer = lambda side: {"model_name": "m", "response_content": [["image", f"{name}{side}"]]}
    prompt = [["image", "one.png"], ["text", "put it"], ["image", "two.png"], ["text", "there"]]
    return {
        "id": name,
        "prompt_content": prompt,
        "response_a": answer("a"),
        "response_b": answer("b"),
        "chosen": chosen,
    }


def test_mmrb2_both_ways_round(tmp_path):
    rows = [{"pairs": [mmrb2_row("p", "A"), mmrb2_row("q", "B"), mmrb2_row("r", "A")]}]
    said = [
        {"id": "p", "verdict": "A>B", "verdict_reverse": "B>A"},  # right twice: B was shown first and A won
        {"id": "q", "verdict": "A>B", "verdict_reverse": "A>B"},  # always the first shown: right once
        {"id": "r", "verdict": "A=B", "verdict_reverse": None},  # a tie, and nothing
    ]
    found = evaluate("mmrb2_edit", tmp_path, rows, said)
    assert found["official_accuracy"] == 3 / 6 and found["n"] == 3 and found["n_judgements"] == 6
    assert found["forward"]["accuracy"] == 1 / 3 and found["reverse"]["accuracy"] == 2 / 3
    assert found["n_judgements_invalid"] == 1 and found["orders_agree"] == 1 / 2
    scored = [{"id": n, "score_1": a, "score_2": 0.0} for n, a in (("p", 1.0), ("q", 1.0), ("r", 0.0))]
    found = evaluate("mmrb2_edit", tmp_path, rows, scored)
    assert found["official_accuracy"] == found["forward"]["accuracy"] == 1 / 3 and found["n_judgements"] == 6
    alone = evaluate("mmrb2_edit", tmp_path, rows, [{"id": n, "verdict": "A>B"} for n in "pqr"])
    assert alone["official_accuracy"] == 2 / 3 and alone["n_judgements"] == 3
    assert alone["orders"].startswith("the given one only")


RATINGS = [  # editor, instruction, rating, score
    ("x", 0, 1.0, 0.1), ("x", 1, 2.0, 0.2), ("x", 2, 3.0, 0.9), ("x", 3, 3.0, 0.7),
    ("y", 0, 2.0, 0.5), ("y", 1, 1.0, 0.6), ("y", 2, 0.0, 0.8), ("y", 3, 5.0, 0.4),
]  # fmt: skip


def test_ranks_by_hand(tmp_path):
    """x: ranks of ratings 1, 2, 3.5, 3.5 and scores 1, 2, 4, 3: r = 4.5 / sqrt(4.5 * 5). y: ratings 3, 2, 1, 4,
    scores 2, 3, 4, 1: reversed, -1."""
    rows = [
        {"id": i, "model": m, "instruction": f"do {n}", "input_path": "s", "output_path": "o", "score": g}
        for i, (m, n, g, _) in enumerate(RATINGS)
    ]
    said = [{"id": i, "score": s} for i, (*_, s) in enumerate(RATINGS)]
    found = evaluate("imagenhub", tmp_path, rows, said)
    x, mean = 4.5 / math.sqrt(4.5 * 5), (4.5 / math.sqrt(4.5 * 5) - 1) / 2
    assert found["by_model"]["x"]["spearman"] == pytest.approx(x) and found["by_model"]["y"]["spearman"] == -1.0
    assert found["spearman"] == pytest.approx(mean)
    assert found["official_spearman"] == pytest.approx((math.exp(2 * mean) - 1) / (math.exp(2 * mean) + 1))
    # within an instruction x and y are two edits: 0, 1: y above x in the scores, in the ratings above, below; 2, 3: ...
    ratings, scores = (np.array([r[k] for r in RATINGS]).reshape(2, 4) for k in (2, 3))
    signs = np.sign((ratings[1] - ratings[0]) * (scores[1] - scores[0]))
    assert signs.tolist() == [1, -1, 1, -1]
    second = found["second_form"]
    assert second["spearman_within_instruction"] == 0.0 and second["instructions_counted"] == 4
    even = np.sign(scores - scores.mean(0))  # two scores standardised are 1 and -1
    assert second["spearman_standardised"] == pytest.approx(spearmanr(even.ravel(), ratings.ravel()).statistic)
    low, high = found["spearman_ci95"]
    assert -1 <= low <= mean <= high <= 1


def test_an_edit_without_a_score_has_no_rank_and_is_counted(tmp_path):
    rows = [
        {"id": i, "model": m, "prompt": f"do {n}", "input": "s", "gen": "o", "score": g}
        for i, (m, n, g, _) in enumerate(RATINGS)
    ]
    rows += [{**rows[0], "id": 8, "model": "z"}, {**rows[1], "id": 9, "score": "good"}]
    said = [{"id": i, "score": s} for i, (*_, s) in enumerate(RATINGS[:-1])] + [{"id": 8, "score": 1.0}]
    found = evaluate("aurora_bench", tmp_path, rows, said)
    assert found["pointwise_by_model"]["y"]["n"] == 4 and found["pointwise_by_model"]["y"]["invalid"] == 1
    assert found["pointwise_by_model"]["z"]["spearman"] is None and found["pointwise_models_without_correlation"] == 1
    assert found["pointwise_spearman"] == pytest.approx((4.5 / math.sqrt(4.5 * 5) - 1) / 2)
    assert (found["n"], found["n_invalid"]) == (10, 2) and "official_accuracy" not in found
    assert found["problems"]["unknown label"]["ids"] == ["9"]


def test_aurora_pairs_and_ratings_side_by_side(tmp_path):
    pair = lambda i, a, b: {
        "id": f"p{i}", "prompt": f"do {i}", "path_src": "s", "path1": "a", "path2": "b",
        "model1_dim1_score": a, "model2_dim1_score": b, "model1_dim2_score": 9,
    }  # fmt: skip
    rows = [pair(0, 4, 2), pair(1, 2, 4), pair(2, 3, 3)]
    rows += [
        {"id": i, "model": m, "prompt": "do", "input": "s", "gen": "o", "score": g}
        for i, (m, _, g, _) in enumerate(RATINGS)
    ]
    said = [{"id": i, "score": s} for i, (*_, s) in enumerate(RATINGS)]
    said += [{"id": "p0", "score_1": 1.0, "score_2": 0.0}, {"id": "p1", "score_1": 1.0, "score_2": 0.0}]
    said += [{"id": "p2", "score_1": 1.0, "score_2": 1.0}]
    found = evaluate("aurora_bench", tmp_path, rows, said, ties=Ties(0.5))
    assert found["official_accuracy"] == found["accuracy_with_ties"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["accuracy_without_ties"] == 1 / 2 and found["pointwise_n"] == 8
    assert found["pointwise_spearman"] == pytest.approx((4.5 / math.sqrt(4.5 * 5) - 1) / 2)
