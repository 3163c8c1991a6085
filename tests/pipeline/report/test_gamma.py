"""`mmpo gamma`: fits of γ to votes that made no part of the margin, their intervals, and where there is nothing to fit to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import refused
from folders import pairs_folder, split_folder, write_rows

from mmpo.annotate.agreement import agree
from mmpo.cli.main import run
from mmpo.pipeline import build_pairs, read_feedback, write_dataset
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import MEAN_TARGET, fit_gamma_to_votes, target_probability
from mmpo.pipeline.metrics import fit_gamma
from mmpo.pipeline.report import suggest_gamma
from mmpo.pipeline.tables import PAIRS

GAMMA = 0.8


def simulated(seed: int, prompts: int = 60, replies: int = 4) -> tuple[np.ndarray, ...]:
    """Margins of grades from 1 to 10, and one vote on each pair by a rater with a utility of its own for every reply.

    Utilities are γ·grade and Gumbel noise, whose difference is logistic: a vote for the better one has probability σ(γ·margin), and the
    votes on one prompt's pairs depend on one another.
    """
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(replies, 1)
    grades = rng.integers(1, 11, (prompts, replies))
    liking = GAMMA * grades + rng.gumbel(size=grades.shape)
    margin = (grades[:, first] - grades[:, second]).ravel()
    sign = np.where(margin >= 0, 1, -1)
    votes = (liking[:, first] - liking[:, second]).ravel() * sign > 0
    return np.abs(margin).astype(float), votes.astype(float), np.ones(len(margin)), np.repeat(np.arange(prompts), len(first))


@pytest.mark.parametrize(("runs", "least", "most"), [(20, 17, 20), pytest.param(100, 90, 99, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prompts", [20, 60])
def test_interval_covers_the_planted_gamma(runs: int, least: int, most: int, prompts: int) -> None:
    found = [fit_gamma(*simulated(seed, prompts)) for seed in range(runs)]
    assert {fit.method for fit in found} == {"cluster-robust, by prompt"}
    assert least <= sum(fit.low <= GAMMA <= fit.high for fit in found) <= most
    assert np.mean([fit.high - fit.low for fit in found]) < 3.0 / np.sqrt(prompts) + 0.5


def test_pairs_taken_as_independent_would_cover_less() -> None:
    """That votes of a prompt depend on one another is why intervals go by prompt: by pair they are narrower."""
    m, k, n, prompt = simulated(0, 400)
    by_prompt, by_pair = fit_gamma(m, k, n, prompt), fit_gamma(m, k, n, np.arange(len(m)))
    assert by_pair.gamma == by_prompt.gamma
    assert by_pair.high - by_pair.low < 0.9 * (by_prompt.high - by_prompt.low)


def test_fit_by_hand() -> None:
    """Five prompts, margin 1, three of four votes for the chosen one: σ(γ) = ¾, γ = ln 3, entropy of ¾ in nats."""
    fit = fit_gamma(np.ones(5), np.full(5, 3.0), np.full(5, 4.0), np.arange(5))
    assert fit.gamma == pytest.approx(np.log(3))
    assert fit.cross_entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert (fit.pairs, fit.clusters, fit.votes) == (5, 5, 20)
    assert fit_gamma([1.0, 2.0], [1, 1], [2, 1], [7, 7])[1:4] == (None, None, "none: too few prompts")


def test_where_votes_never_contradict_the_interval_is_the_likelihoods() -> None:
    """20 votes, all for the better one by 1: 20·log σ(γ) ≥ −1.9207, so σ(γ) ≥ e^−.096; and all against: γ is 0 and may be that small."""
    fit = fit_gamma(np.ones(20), np.ones(20), np.ones(20), np.arange(20))
    q = np.exp(-1.920729 / 20)
    assert (fit.gamma, fit.high, fit.method) == (np.inf, np.inf, "profile likelihood")
    assert fit.low == pytest.approx(np.log(q / (1 - q)), rel=0.01)
    none = fit_gamma(np.ones(20), np.zeros(20), np.ones(20), np.arange(20))
    assert (none.gamma, none.low) == (0.0, 0.0) and 0 < none.high < 0.3


def graded(
    scores: dict[str, Sequence[float]], kinds: dict[str, str] | None = None, sources: Sequence[str] = ("a",)
) -> list[dict[str, Any]]:
    """A row per rating: each rater's scores of the replies 0 and 1 of every prompt, two scores for each."""
    return [
        {"prompt": f"Q{i // 2}", "completion": f"reply {i % 2}", "score": score, "rater": rater, "kind": (kinds or {}).get(rater, "human")}
        for rater, given in scores.items()
        for i, score in enumerate(given)
    ]  # fmt: skip


def feedback_of(tmp_path: Path, rows: list[dict[str, Any]]) -> pa.Table:
    return read_feedback(write_rows(tmp_path / "grades.jsonl", rows), "jsonl", scale=(1, 10))


def test_each_rater_is_left_out_in_turn(tmp_path: Path) -> None:
    """Gaps 2, 1 and −1: without each the margin is 0, ½ and 1½, its own vote 1, 1 and 0. Prompt two: 3 and 3 of two raters."""
    rows = graded({"ann": (5, 3, 9, 6), "ben": (4, 3, 8, 5), "cat": (3, 4)})
    found = suggest_gamma(feedback_of(tmp_path, rows))
    [fit] = found["fits"]
    m, k = [0.0, 0.5, 1.5, 3.0, 3.0], [1, 1, 0, 1, 1]
    assert fit["gamma"] == pytest.approx(fit_gamma_to_votes(m, k, np.ones(5)))
    assert (fit["pairs"], fit["prompts"], fit["votes"], fit["source"]) == (4, 2, 4, "all sources")
    assert (fit["margins_of"], fit["votes_of"]) == ("the other people (ratings)", "one of the people left out")
    assert found["not_fitted"] is None


def noisy(seed: int, raters: dict[str, str], prompts: int = 80) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(5, 2, 2 * prompts)
    scores = {rater: np.clip(np.round(truth + rng.normal(0, 1.5, len(truth))), 1, 10).tolist() for rater in raters}
    return graded(scores, raters)


def test_a_judge_against_people_is_what_agree_calls_the_best_gamma(tmp_path: Path) -> None:
    feedback = feedback_of(tmp_path, noisy(0, {"gpt": "ai", "ann": "human", "ben": "human"}))
    [best] = agree(feedback, bootstrap=0)["calibration"]
    fits = {(fit["margins_of"], fit["votes_of"]): fit for fit in suggest_gamma(feedback)["fits"]}
    fit = fits["the mean of judges (ratings)", "people (ratings)"]
    assert fit["gamma"] == pytest.approx(best["gamma"], rel=1e-6)
    assert fit["gamma_95"][0] < best["gamma"] < fit["gamma_95"][1]
    assert set(fits) == {
        ("the mean of judges (ratings)", "people (ratings)"),
        ("the other people (ratings)", "one of the people left out"),
    }


@pytest.mark.parametrize(("runs", "least", "most"), [(10, 8, 10), pytest.param(100, 90, 99, marks=pytest.mark.slow)])
def test_a_judges_scores_and_peoples_votes_give_the_planted_gamma(tmp_path: Path, runs: int, least: int, most: int) -> None:
    """A judge scores every reply, a person compares the same pairs, shown in any order; γ is planted in the person's votes."""
    covered = 0
    for seed in range(runs):
        rng, judged, compared = np.random.default_rng(seed), [], []
        for prompt in range(50):
            scores = rng.integers(1, 11, 3)
            liking = GAMMA * scores + rng.gumbel(size=3)
            judged.append({"prompt": f"Q{prompt}", "completions": [f"reply {i}" for i in range(3)], "scores": scores.tolist()})
            for i, j in (rng.permutation(pair) for pair in ((0, 1), (0, 2), (1, 2))):
                gap = 1 if liking[i] > liking[j] else -1
                compared.append({"prompt": f"Q{prompt}", "first": f"reply {i}", "second": f"reply {j}", "gap": gap})
        scored = read_feedback(write_rows(tmp_path / "judged.jsonl", judged), "jsonl", scale=(1, 10), rater="gpt", kind="ai")
        votes = read_feedback(write_rows(tmp_path / "votes.jsonl", compared), "jsonl", scale=(-1, 1), rater="ann", kind="human")
        both = pa.concat_tables([scored, votes.cast(scored.schema)])
        [fit] = suggest_gamma(both)["fits"]
        assert (fit["margins_of"], fit["votes_of"]) == ("the mean of judges (ratings)", "people (comparisons)")
        if seed == 0:
            [best] = agree(both, bootstrap=0)["calibration"]
            assert fit["gamma"] == pytest.approx(best["gamma"], rel=1e-6)
        covered += fit["gamma_95"][0] <= GAMMA <= fit["gamma_95"][1]
    assert least <= covered <= most


def test_fits_are_by_source_where_there_are_several(tmp_path: Path) -> None:
    parts = [feedback_of(tmp_path, noisy(seed, {"ann": "human", "ben": "human"})) for seed in range(2)]
    column = parts[0].column_names.index("source")
    named = []
    for part, name in zip(parts, ("one", "two"), strict=True):
        ids = pa.array([f"{name}{row}" for row in part["prompt_id"].to_pylist()])
        named.append(part.set_column(column, "source", pa.array([name] * len(part))).set_column(0, "prompt_id", ids))
    fits = suggest_gamma(pa.concat_tables(named))["fits"]
    assert [fit["source"] for fit in fits] == ["all sources", "one", "two"]
    assert fits[0]["votes"] == fits[1]["votes"] + fits[2]["votes"]


def test_pairs_say_what_would_give_a_fit_and_take_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feedback = feedback_of(tmp_path, noisy(0, {"ann": "human", "ben": "human"}))
    pairs = build_pairs(feedback)
    write_dataset(pairs, tmp_path / "pairs", split=(0.5, 0.25, 0.25))
    assert run(["gamma", str(tmp_path / "pairs"), "--json"]) == 0
    said = capsys.readouterr()
    found = orjson.loads(said.out)
    assert found["fits"] == [] and "--votes FILE" in found["not_fitted"] and found["not_fitted"] in said.err
    means = {row["name"]: row for row in found["conventions"]}
    assert means["mean target 0.9"]["mean_target"] == pytest.approx(0.9) and "1–10 grades" in means["published 2.2"]["unit"]

    def votes(name: str, preferring: Sequence[float], raters: Sequence[float]) -> str:
        table = pairs.select(["chosen_id", "rejected_id"]).append_column("preferring", pa.array(preferring))
        pq.write_table(table.append_column("raters", pa.array(raters)), tmp_path / name)
        return str(tmp_path / name)

    rng = np.random.default_rng(1)
    margin = pairs["quality_margin"].to_numpy()
    others = rng.binomial(3, 1 / (1 + np.exp(-GAMMA * margin))).tolist()
    # votes are read on all splits
    assert run(["gamma", str(tmp_path / "pairs"), "--votes", votes("others.parquet", others, [3] * len(others)), "--json"]) == 0
    [fit] = orjson.loads(capsys.readouterr().out)["fits"]
    assert fit["gamma"] == pytest.approx(fit_gamma_to_votes(margin, others, [3] * len(others)))
    assert fit["gamma_95"][0] < GAMMA < fit["gamma_95"][1] and fit["pairs"] == int((margin > 0).sum())
    own = votes("own.parquet", pairs["preferring"].to_pylist(), pairs["raters"].to_pylist())
    refused(
        ["gamma", str(tmp_path / "pairs"), "--votes", own], tmp_path, capsys, "those of the margins' own raters", "made no part"
    )


def votes_of(folder: Path, pairs: pa.Table, share: float, extra: pa.Table | None = None) -> Path:
    """Four votes on every pair, of which so many go to the chosen completion; then rows of `extra`, as they are."""
    n = pairs.num_rows
    table = pairs.select(["chosen_id", "rejected_id"]).append_column("preferring", pa.array([4 * share] * n))
    table = table.append_column("raters", pa.array([4.0] * n))
    pq.write_table(table if extra is None else pa.concat_tables([table, extra]), folder / "votes.parquet")
    return folder / "votes.parquet"


def test_votes_that_match_nothing_and_votes_given_twice_are_counted(tmp_path: Path) -> None:
    """A pair twice, the second time the other way round, and two pairs of another dataset."""
    pairs = build_pairs(feedback_of(tmp_path, noisy(0, {"ann": "human"}, prompts=12)))
    first = {"chosen_id": pairs["rejected_id"][0].as_py(), "rejected_id": pairs["chosen_id"][0].as_py()}
    others = [{"chosen_id": f"a{i}", "rejected_id": f"b{i}"} for i in range(2)]
    extra = pa.Table.from_pylist([{**one, "preferring": 1.0, "raters": 4.0} for one in (first, *others)])
    n = pairs.num_rows
    clean = suggest_gamma(pairs, votes_of(tmp_path, pairs, 0.75))
    assert clean["votes"] == {"pairs": n, "matched": n, "unmatched": 0, "repeated_rows": 0} and clean["warnings"] == []
    found = suggest_gamma(pairs, votes_of(tmp_path, pairs, 0.75, extra))
    assert found["votes"] == {"pairs": n + 2, "matched": n, "unmatched": 2, "repeated_rows": 1}
    unmatched, repeated = found["warnings"]
    assert f"2 of the {n + 2} pairs with votes are not among the {n} here" in unmatched
    assert "rows of a pair that an earlier row is of: 1." in repeated
    assert [fit["with_margin"] for fit in (*clean["fits"], *found["fits"])] == pytest.approx([0.75, 0.75])


def test_numbers_say_which_pairs_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """γ is of the train split, or of all splits where that is empty; votes on pairs of any split are fitted to."""
    feedback = feedback_of(tmp_path, noisy(0, {"ann": "human"}, prompts=40))
    pairs = build_pairs(feedback)
    votes = votes_of(tmp_path, pairs, 0.75)
    said = {}
    for name, split in (("most", (0.5, 0.25, 0.25)), ("tested", (0, 0, 1))):
        write_dataset(pairs, tmp_path / name, split=split)
        assert run(["gamma", str(tmp_path / name), "--votes", str(votes), "--json"]) == 0
        output = capsys.readouterr()
        said[name] = orjson.loads(output.out), output.err
    found, words = said["most"]
    assert found["pairs"] == pq.ParquetDataset(tmp_path / "most" / "train").read().num_rows < found["fits"][0]["pairs"]
    assert (found["pairs_of"], found["votes_on"]) == ("the train split", "all splits")
    assert (
        f"pairs: {found['pairs']} (the train split)" in words
        and "on all splits, with 95% intervals; mean target: of the train" in words
    )
    found, words = said["tested"]
    assert (found["pairs_of"], found["votes_on"]) == (
        "all splits",
        "all splits",
    ) and "what each γ makes of the untied margins of all" in words
    assert suggest_gamma(feedback)["pairs_of"] == "all pairs of this FEEDBACK"


def test_votes_against_the_margins_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = build_pairs(feedback_of(tmp_path, noisy(0, {"ann": "human"}, prompts=12)))
    write_dataset(pairs, tmp_path / "pairs", split=(1, 0, 0))
    assert run(["gamma", str(tmp_path / "pairs"), "--votes", str(votes_of(tmp_path, pairs, 0.25)), "--json"]) == 0
    said = capsys.readouterr()
    [fit] = orjson.loads(said.out)["fits"]
    assert (fit["gamma"], fit["with_margin"]) == (0.0, 0.25)
    assert "25% side with the margins of the pairs" in said.err.replace("\n", " ") and "the fitted γ is 0" in said.err


def test_of_one_rater_nothing_is_fitted(tmp_path: Path) -> None:
    found = suggest_gamma(feedback_of(tmp_path, noisy(0, {"ann": "human"})))
    assert found["fits"] == [] and "no pair of completions was graded by two raters" in found["not_fitted"]
    assert found["gamma"] > 0


def test_votes_of_another_kind_of_file_are_told_what_makes_one(tmp_path: Path) -> None:
    folder = pairs_folder(tmp_path / "pairs", [{"prompt": "Q", "completion": text, "score": n} for n, text in enumerate("AB")])
    votes = write_rows(tmp_path / "votes.jsonl", [{"chosen_id": "a", "rejected_id": "b", "preferring": 1, "raters": 1}])
    with pytest.raises(UserError, match=r"no readable Parquet file.*Votes are a Parquet file with a row a pair.*read_json"):
        suggest_gamma(folder, votes)


def test_gamma_reads_the_training_pairs(tmp_path: Path) -> None:
    said = {
        "margin_se": 0.5,
        "preferring": 1,
        "raters": 1,
        "kind": "ai",
        "source": "ours",
        "prompt": [],
        "chosen": [],
        "rejected": [],
    }
    rows = [
        said | {"prompt_id": f"p{margin}", "chosen_id": "c", "rejected_id": "d", "quality_margin": margin} for margin in range(5)
    ]
    found = suggest_gamma(split_folder(tmp_path / "data", train=[*rows], test=[rows[0] | {"quality_margin": 1.5}]))
    margins = np.array([1.0, 2.0, 3.0, 4.0])
    assert (found["pairs"], found["ties"]) == (5, 1)
    assert target_probability(margins, found["gamma"]).mean() == pytest.approx(MEAN_TARGET, abs=1e-12)
    rows = found["what_each_gamma_makes"]
    (mine,) = [row for row in rows if row["note"] == "suggested"]
    assert mine["mean_target"] == pytest.approx(MEAN_TARGET) and mine["noise_aware"] < MEAN_TARGET
    assert [row["saturated"] for row in rows] == sorted(row["saturated"] for row in rows)
    with pytest.raises(UserError, match="none of the 1 pairs"):
        suggest_gamma(pa.Table.from_pylist(rows[:1], schema=PAIRS))
