"""The pairs and margins of a build against a few lines of pandas that share no code with it, on data made here and on real data."""

from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from folders import write_rows

from mmpo.pipeline import BuildOptions, build, load_pairs

SCALE = (0.0, 10.0)


def ratings(seed: int = 3, prompts: int = 60) -> pd.DataFrame:
    """Ratings of two to nine answers a prompt by one to three raters, with decimals and many equal scores."""
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(prompts):
        raters = rng.permutation(["ann", "bob", "eve"])[: rng.integers(1, 4)]
        for c in range(rng.integers(2, 10)):
            for rater in raters:
                score = round(min(10.0, max(0.0, rng.normal(5, 2))) * 2) / 2
                rows.append((f"question {p}\u2028 ü", f"answer {c} to {p}", rater, score))
    return pd.DataFrame(rows, columns=["prompt", "completion", "rater", "score"])


def built(frame: pd.DataFrame | list[pd.DataFrame], out: Path, **options: Any) -> pd.DataFrame:
    parts = enumerate(frame if isinstance(frame, list) else [frame])
    paths = [write_rows(out.with_name(f"{out.name}{i}.jsonl"), part.to_dict("records")) for i, part in parts]
    build(paths, out, options=BuildOptions(format="jsonl", kind="human", scale=SCALE, **options))
    table = load_pairs(out).to_pandas()
    for column in ("prompt", "chosen", "rejected"):
        table[column] = [messages[0]["content"] for messages in table[column]]
    return table


def by_text(rows: pd.DataFrame) -> dict[tuple[str, frozenset[str]], tuple[str | None, float]]:
    """(prompt, the two texts) → (the chosen text, None of a tie; margin)."""
    return {
        (row.prompt, frozenset((row.chosen, row.rejected))): (row.chosen if row.quality_margin else None, row.quality_margin)
        for row in rows.itertuples()
    }


def expected(frame: pd.DataFrame) -> dict[tuple[str, frozenset[str]], tuple[str | None, float]]:
    """All pairs of each prompt by the mean over raters."""
    result = {}
    for prompt, of_prompt in frame.groupby(["prompt", "completion"])["score"].mean().groupby(level=0):
        ranked = of_prompt.droplevel(0)
        for a, b in combinations(ranked.index, 2):
            gap = ranked[a] - ranked[b]
            result[prompt, frozenset((a, b))] = ((a if gap > 0 else b) if gap else None, abs(gap))
    return result


def same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key, (chosen, margin) in wanted.items():
        assert found[key][1] == pytest.approx(margin, abs=1e-11)
        if margin > 1e-9:
            assert found[key][0] == chosen


def test_all_pairs_and_margins(tmp_path: Path) -> None:
    frame = ratings()
    same(by_text(built(frame, tmp_path / "out")), expected(frame))


def test_best_against_worst_and_adjacent_follow_the_scores(tmp_path: Path) -> None:
    """Score ties make the choice of a text free, never its score: the margins are the independent ones."""
    frame = ratings(seed=4)
    scores = frame.groupby(["prompt", "completion"])["score"].mean()
    worst = built(frame, tmp_path / "bw", strategy="best-worst")
    spans = scores.groupby(level=0).agg(lambda s: s.max() - s.min())
    assert len(worst) == len(spans)
    np.testing.assert_allclose(worst.set_index("prompt")["quality_margin"].sort_index(), spans.sort_index(), atol=1e-12)
    adjacent = built(frame, tmp_path / "adj", strategy="adjacent")
    for prompt, of_prompt in scores.groupby(level=0):
        gaps = np.sort(-np.diff(np.sort(of_prompt.to_numpy())[::-1]))
        np.testing.assert_allclose(np.sort(adjacent.loc[adjacent.prompt == prompt, "quality_margin"]), gaps, atol=1e-12)


def test_a_cap_takes_the_smallest_hashes_after_ties_are_dropped(tmp_path: Path) -> None:
    frame = ratings(seed=5)
    whole = built(frame, tmp_path / "whole", strategy="adjacent", ties="drop", seed=7)
    capped = built(frame, tmp_path / "capped", strategy="adjacent", ties="drop", seed=7, max_per_prompt=2)
    digest = [blake2b(f"7\0{row.chosen_id}\0{row.rejected_id}".encode(), digest_size=16).hexdigest() for row in whole.itertuples()]
    kept = whole.assign(digest=digest).sort_values("digest").groupby("prompt_id").head(2)
    assert set(zip(kept.chosen_id, kept.rejected_id)) == set(zip(capped.chosen_id, capped.rejected_id))
    assert (capped.quality_margin > 0).all()
    assert 0 < len(capped) < len(whole)


@pytest.mark.parametrize("strategy", ["all", "best-random", "adjacent", "stratified"])
@pytest.mark.parametrize("normalise", ["none", "rank"])
def test_order_and_files_change_nothing(tmp_path: Path, strategy: str, normalise: str) -> None:
    frame = ratings(seed=6)
    shuffled = frame.sample(frac=1, random_state=1)
    parts = [shuffled[:100], shuffled[100:101], shuffled[101:]]
    options = {"strategy": strategy, "normalise": normalise, "max_per_prompt": 3, "seed": 11}
    columns = ["prompt_id", "chosen_id", "rejected_id", "quality_margin", "margin_se", "preferring", "raters"]
    one = built(frame, tmp_path / "one", **options)[columns]
    many = built(parts, tmp_path / "many", **options)[columns]
    pd.testing.assert_frame_equal(one, many, check_exact=False, atol=1e-12, rtol=0)


def test_standard_errors_by_hand(tmp_path: Path) -> None:
    """Pair x: own gaps 2 and 4 (n = 2, mean 3, s² = 2); pair y: gaps 1 and 1 (s² = 0); pair z: one rater, gap 5; v as x, w as y.

    s0² = (2·1 + 0·1 + 2·1 + 0·1)/4 = 1. se_x = √((4·1 + 1·2)/5/2) = √.6, se_y = √((4 + 0)/5/2) = √.4, se_z = s0 = 1.
    """
    rows = [("x", "a", "r", 6), ("x", "b", "r", 4), ("x", "a", "s", 7), ("x", "b", "s", 3)]
    rows += [("y", "a", "r", 5), ("y", "b", "r", 4), ("y", "a", "s", 9), ("y", "b", "s", 8), ("z", "a", "r", 6), ("z", "b", "r", 1)]
    rows += [({"x": "v", "y": "w"}[prompt], *rest) for prompt, *rest in rows if prompt != "z"]
    frame = pd.DataFrame(rows, columns=["prompt", "completion", "rater", "score"])
    found = built(frame, tmp_path / "out").set_index("prompt").drop(index=["v", "w"])
    assert found["margin_se"].to_dict() == pytest.approx({"x": 0.6**0.5, "y": 0.4**0.5, "z": 1.0}, abs=1e-12)
    assert found["quality_margin"].to_dict() == {"x": 3.0, "y": 1.0, "z": 5.0}
    assert found["raters"].to_dict() == {"x": 2, "y": 2, "z": 1}
    assert found["preferring"].to_dict() == {"x": 2, "y": 2, "z": 1}


@pytest.mark.parametrize(("prompts", "gap"), [(1, 0.0), (1, 0.3), (3, 0.3), (9, 0.0)])
def test_few_pairs_or_raters_that_never_differ_make_no_error_known(prompts: int, gap: float, tmp_path: Path) -> None:
    """Three degrees of freedom are not worth the four that a pool counts as; and agreement, however often, is no certainty."""
    scores = {("a", "r"): 0.7, ("b", "r"): 0.1, ("a", "s"): 0.6 + gap, ("b", "s"): 0.0}
    rows = [(f"q{p}", text, rater, score) for p in range(prompts) for (text, rater), score in scores.items()]
    frame = pd.DataFrame(rows, columns=["prompt", "completion", "rater", "score"])
    found = built(frame, tmp_path / "out")
    assert len(found) == prompts and found["margin_se"].isna().all()


def test_real_grades(tmp_path: Path, real_data: Path) -> None:
    """GPT-4's grades of sixteen models' answers, all pairs, against pandas."""
    frame = pd.read_parquet(real_data / "arena_bench_gpt4_scores.parquet", columns=["prompt", "response", "score"]).dropna()
    frame = frame.rename(columns={"response": "completion"}).assign(rater="gpt-4")
    frame = frame[frame.completion.str.strip() != ""]
    found = built(frame, tmp_path / "out")
    assert len(found) > 20_000
    same(by_text(found), expected(frame))
