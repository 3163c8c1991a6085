"""What a dataset's page states in numbers: against pandas on built and on real data, and by hand where a figure is our own."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folders import pairs_folder
from pair_cases import frame, pair, pairs_by_hand

from mmpo.pipeline import BuildOptions, UserError, build
from mmpo.pipeline.metrics import interval, part_draws, ratio_intervals
from mmpo.pipeline.metrics.calibration import Parts
from mmpo.pipeline.report import longer_wins, read_figures, source_rows
from mmpo.pipeline.report.dataset.measures import (
    duplicate_rows,
    length_figures,
    margin_figures,
    meeting_map,
    model_rows,
    near_duplicates,
    score_map,
    votes_rows,
)
from mmpo.pipeline.storage import read_manifest

REAL = Path(os.environ.get("MMPO_REAL_DATA", "/nowhere")) / "wmt_mqm_human.parquet"


def built(folder: Path) -> Path:
    """200 prompts, four replies of models a to d, whose grades and lengths go together, by two raters; some ties."""
    draw = np.random.default_rng(0)
    rows = []
    for prompt in range(200):
        for model in "abcd":
            size = int(draw.integers(1, 40))
            for rater in ("ann", "bob"):
                score = int(np.clip(draw.normal(3 + size / 40 - 0.3 * "abcd".index(model), 1), 1, 5))
                rows.append(
                    {
                        "prompt": f"q{prompt}",
                        "completion": f"{model}{prompt} " + "x" * size,
                        "score": score,
                        "model": model,
                        "rater": rater,
                    }
                )
    return pairs_folder(folder, rows, scale=(1, 5), workers=1)


def real(folder: Path) -> Path:
    """People's grades of translations by 13 systems, by three of ten raters each."""
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not there: MMPO_REAL_DATA names the folder of real data")
    table = pd.read_parquet(REAL)
    table = table[table.test_set.str.contains("generalMT")].rename(columns={"lp": "source_column"})
    table.to_parquet(folder.with_suffix(".parquet"))
    columns = {"prompt": "prompt", "completion": "response", "score": "mqm_score", "rater": "rater", "model": "system"}
    build(folder.with_suffix(".parquet"), folder, options=BuildOptions(format="parquet", columns=columns, workers=1))
    return folder


@pytest.mark.parametrize("made", [built, real])
def test_figures_are_those_of_pandas(made: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = made(tmp_path / "pairs")
    figures, table = read_figures(folder), frame(folder)
    margin = table.quality_margin
    assert figures.prompts == table.prompt_id.nunique()
    assert figures.splits == {split: int((table.split == split).sum()) for split in ("train", "validation", "test")}
    assert figures.margin.tolist() == margin.tolist() and figures.prompt.tolist() == pd.factorize(table.prompt_id)[0].tolist()
    about = margin_figures(figures)
    assert about["ties"] == pytest.approx((margin == 0).mean())
    sure = table[(margin > 0) & table.margin_se.notna()]
    assert about["unsure"] == pytest.approx((sure.quality_margin < 2 * sure.margin_se).mean())

    uneven = table[(margin > 0) & (table.chosen_length != table.rejected_length)]
    assert longer_wins(figures)["share"] == pytest.approx((uneven.chosen_length > uneven.rejected_length).mean())
    ratio = np.log((table.chosen_length + 1) / (table.rejected_length + 1))
    both = pd.DataFrame({"margin": [*margin, *-margin], "ratio": [*ratio, *-ratio]})
    assert length_figures(figures)["correlation"] == pytest.approx(both.corr("spearman").iloc[0, 1])

    [source] = source_rows(figures)
    assert (source["pairs"], source["mean_margin"]) == (len(table), pytest.approx(margin.mean()))
    assert source["median_margin"] == pytest.approx(margin.median()) and source["mean_se"] == pytest.approx(table.margin_se.mean())

    sides = pd.concat(
        [
            table.assign(model=table.chosen_model, id=table.chosen_id, score=table.score_chosen, signed=margin),
            table.assign(model=table.rejected_model, id=table.rejected_id, score=table.score_rejected, signed=-margin),
        ]
    )
    sides["won"] = 0.5 + 0.5 * np.sign(sides.signed)
    replies = sides.drop_duplicates("id")
    met = sides[sides.chosen_model != sides.rejected_model].groupby("model")
    rows = {row["model"]: row for row in model_rows(figures)}
    assert set(rows) == set(sides.model)
    for name, row in rows.items():
        mine = replies[replies.model == name]
        assert (row["completions"], row["pairs"]) == (len(mine), met.size()[name])
        assert row["score"] == pytest.approx(mine.score.mean())
        assert (row["wins"], row["margin"]) == (pytest.approx(met.won.mean()[name]), pytest.approx(met.signed.mean()[name]))
    assert list(rows) == list(met.signed.mean().sort_values(ascending=False).index)

    untied = table[margin > 0]
    by_raters = untied.groupby("raters")
    assert {row["raters"]: row["pairs"] for row in votes_rows(figures)} == by_raters.size().to_dict()
    for row in votes_rows(figures):
        mine = untied[untied.raters == row["raters"]]
        expected = (mine.preferring == mine.raters).mean() if row["raters"] else None
        assert row["all"] == (None if expected is None else pytest.approx(expected))
        assert row["half"] == (pytest.approx((2 * mine.preferring <= mine.raters).mean()) if row["raters"] > 1 else None)


def test_an_interval_over_clusters_is_what_resampling_says() -> None:
    """200 clusters of 1 to 9 rows whose values go together: resampled and linearised bounds differ by less than a tenth of their width."""
    draw = np.random.default_rng(1)
    cluster = np.repeat(np.arange(200), draw.integers(1, 10, 200))
    value = (draw.random(len(cluster)) < draw.random(200)[cluster]).astype(float)
    sums = [np.bincount(cluster, one)[:, None] for one in (value, np.ones(len(value)))]
    [found] = ratio_intervals(*sums)
    drawn = part_draws({"": Parts(value, np.ones(len(value)))}, cluster, 4000, 0)[""]
    resampled = interval(drawn, float(value.mean()), 200)
    assert found is not None and resampled is not None
    width = resampled[1] - resampled[0]
    assert np.abs(np.array(found) - resampled).max() < 0.1 * width
    independent = 2 * 1.96 * math.sqrt(value.mean() * (1 - value.mean()) / len(value))
    assert found[1] - found[0] > 1.2 * independent  # rows of a cluster are no independent witnesses


def test_few_clusters_have_no_interval_and_a_whole_share_the_exact_one() -> None:
    few, many = np.ones((4, 1)), np.ones((20, 1))
    assert ratio_intervals(few, few) == [None]
    assert ratio_intervals(many, many) == [[pytest.approx(0.025 ** (1 / 20)), 1.0]]
    assert ratio_intervals(0 * many, many) == [[0.0, pytest.approx(1 - 0.025 ** (1 / 20))]]


def test_models_scores_and_meetings_by_hand(tmp_path: Path) -> None:
    """a beats b by 2 and by 4 and loses to c by 1: signed margins 2, 4, -1; c never meets b. Two replies of one model meet as no pair."""
    rows = [
        pair("p", "one", "two", 2, models=("a", "b"), score_chosen=5, score_rejected=3),
        pair("q", "three", "four", 4, models=("a", "b"), score_chosen=5, score_rejected=1),
        pair("q", "five", "three", 1, models=("c", "a"), score_chosen=6, score_rejected=5),
        pair("r", "six", "seven", 9, models=("a", "a"), score_chosen=10, score_rejected=1),
        pair("s", "eight", "nine", 0, models=(None, "b"), score_chosen=1, score_rejected=1),
    ]
    figures = read_figures(pairs_by_hand(tmp_path / "pairs", *rows))
    found = {row["model"]: row for row in model_rows(figures)}
    assert list(found) == ["a", "c", "b"]
    assert {name: (row["completions"], row["pairs"]) for name, row in found.items()} == {"a": (4, 3), "b": (3, 2), "c": (1, 1)}
    assert found["a"]["wins"] == pytest.approx(2 / 3) and found["a"]["margin"] == pytest.approx(5 / 3)
    assert found["b"]["wins"] == 0 and found["b"]["margin"] == -3 and found["c"]["wins"] == 1
    assert found["a"]["score"] == pytest.approx((5 + 5 + 10 + 1) / 4)
    places = [found[name]["number"] for name in "abc"]
    margins, counts = meeting_map(figures, places)
    assert counts.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]
    assert margins[0].tolist()[1:] == [3, -1] and margins[1, 0] == -3 and np.isnan(margins[1, 2])
    bins, shares = score_map(figures, places)
    assert bins == [(1, 1), (3, 3), (5, 5), (6, 6), (10, 10)]
    assert shares.tolist() == [[0.25, 0, 0.5, 0, 0.25], [2 / 3, 1 / 3, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_duplicates_by_hand(tmp_path: Path) -> None:
    """Of four prompts two are twins across splits; "No." stands under three of them, and the pair's two uses of "Yes." are one reply."""
    rows = [pair("Is it?", "Yes.", "No.", 1), pair("Is it?", "Yes.", "Perhaps.", 2), pair("Why?", "So.", "No.", 1)]
    others = [pair("is  IT?", "Yes!", "No.", 1), pair("Who?", "I.", "You.", 1)]
    counts = [row["count"] for row in duplicate_rows(read_figures(pairs_by_hand(tmp_path / "pairs", *rows, test=others)))]
    of = [row["of"] for row in duplicate_rows(read_figures(tmp_path / "pairs"))]
    assert counts == [1, 2, 3, 3] and of == [4, 4, 9, 9]


def test_prompts_that_differ_in_what_they_carry_are_no_twins(tmp_path: Path) -> None:
    """Tools on offer, and calls before; the same call under another id makes the same prompt."""
    turns = [
        [{"role": "user", "content": "rain there?"}, {"role": "assistant", "content": "", "tool_calls": calls(city)},
        {"role": "tool", "content": "no", "tool_call_id": "c"}] for city in ("Paris", "Rome")
    ]  # fmt: skip
    offers = [[{"type": "function", "function": {"name": name}}] for name in ("weather", "radar")]
    rows = [
        {"prompt": prompt, "tools": offer, "completion": text, "score": score}
        for prompt, offer in [*((turn, offers[0]) for turn in turns), ("and now?", offers[0]), ("and now?", offers[1])]
        for text, score in (("yes", 1), ("no", 2))
    ]
    figures = read_figures(pairs_folder(tmp_path / "pairs", rows), 100)
    assert [row["count"] for row in duplicate_rows(figures)[:2]] == [0, 0] and figures.prompts == 4
    assert [row["count"] for row in near_duplicates(figures)[0]] == [0, 0]


def calls(city: str) -> list[dict[str, object]]:
    return [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}]


def test_votes_by_hand(tmp_path: Path) -> None:
    votes = [(3, 3, 1), (2, 3, 1), (1, 3, 1), (1, 2, 1), (2, 2, 1), (1, 1, 1), (0, 0, 1), (0, 3, 0)]
    rows = [pair(f"p{i}", "a", "b", margin, preferring=k, raters=n) for i, (k, n, margin) in enumerate(votes)]
    found = {
        row["raters"]: (row["pairs"], row["all"], row["half"])
        for row in votes_rows(read_figures(pairs_by_hand(tmp_path / "pairs", *rows)))
    }
    assert found == {0: (1, None, None), 1: (1, 1.0, None), 2: (2, 0.5, 0.5), 3: (3, pytest.approx(1 / 3), pytest.approx(1 / 3))}


@pytest.mark.parametrize(
    ("change", "words"), [({"quality_margin": float("inf")}, "not finite"), ({"chosen_id": None}, "no chosen_id")]
)
def test_rows_that_say_nothing_are_named(change: dict[str, object], words: str, tmp_path: Path) -> None:
    folder = pairs_by_hand(tmp_path / "pairs", pair("p", "a", "b", 1), {**pair("q", "a", "b", 1), **change})
    with pytest.raises(UserError, match=rf"part-00000.parquet: row 2 has .*{words}"):
        read_figures(folder)


def test_the_manifest_counts_the_same(tmp_path: Path) -> None:
    folder = built(tmp_path / "pairs")
    figures = read_figures(folder)
    manifest = read_manifest(folder)
    assert (figures.splits, figures.prompts) == (manifest["rows"], manifest["prompts"])


def test_near_duplicates_by_hand(tmp_path: Path) -> None:
    """Twenty words, of which the last differs: 15 runs of five words are common, of 17 different ones. A twin in other case is the
    same by its words; of the three the one of the smallest id stays, and what lies in train while like one of test is told apart."""
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    rows = [pair(f"{words} twenty", "a", "b", 1), pair(f"{words} score", "a", "b", 1), pair("another thing", "a", "b", 1)]
    figures = read_figures(pairs_by_hand(tmp_path / "pairs", *rows, test=[pair(f"{words} TWENTY!", "a", "b", 1)]), 100)
    found, alike = near_duplicates(figures)
    assert [(row["count"], row["of"]) for row in found] == [(2, 4), (2, 4)]
    assert sorted(one.details["similarity"] for one in alike) in ([0.8824, 1.0], [0.8824, 0.8824])
    assert near_duplicates(read_figures(tmp_path / "pairs", 3)) == ([], [])  # more prompts than are held
