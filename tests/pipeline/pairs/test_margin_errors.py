"""margin_se belongs to the way raters merge: ± 1.96 of it holds the true margin in .93 to .97 of pairs, with and without rater biases."""

import numpy as np
import pyarrow as pa
import pytest
from panels import errors, feedback, rms

from mmpo.pipeline.api import grades_of
from mmpo.pipeline.arrow import narrow
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.margins import margin_standard_error, median_standard_error
from mmpo.pipeline.pairs.choose import MOST_COMPLETIONS, between_raters
from mmpo.pipeline.pairs.uncertainty import MOST_GRADES, grid_of
from mmpo.pipeline.sources import FeedbackBuilder

PROMPTS = 4000
SAMPLING = 2 * np.sqrt(0.95 * 0.05 / PROMPTS)


def rated(raters: int, bias: float, prompts: int = PROMPTS, grid: float = 0.0) -> tuple[pa.Table, np.ndarray]:
    """Two answers of each prompt graded by everybody, noise 1, biases of a size, to a grid; and the margins (of a over b)."""
    rng = np.random.default_rng(10 * raters + int(bias))
    margin, biases = rng.normal(0, 1, prompts), rng.normal(0, bias, raters)
    level = rng.uniform(0, 10, prompts).tolist() if grid else [0.0] * prompts
    out = FeedbackBuilder("made")
    for p, m in enumerate(margin.tolist()):
        out.prompt(f"question {p}")
        sides = (out.completion("a"), level[p] + m), (out.completion("b"), level[p])
        for r, own in enumerate(biases.tolist()):
            for side, value in sides:
                grade = value + own + float(rng.normal())
                out.rating(side, round(grade / grid) * grid if grid else grade, rater=f"r{r}", kind="human")
    return narrow(out.finish()), margin


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mean", "median", "rater-effects"])
@pytest.mark.parametrize("bias", [0, 1, 3])
@pytest.mark.parametrize("raters", [3, 4, 6, 9])
def test_intervals_cover(raters: int, bias: float, how: str) -> None:
    error, se = errors(*rated(raters, bias), merge_raters=how)
    share = float(np.mean(np.abs(error) <= 1.96 * se))
    assert 0.93 - SAMPLING <= share <= 0.97 + SAMPLING
    assert rms(se) == pytest.approx(rms(error), rel=0.09)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0, 1])
@pytest.mark.parametrize(("raters", "grid"), [(3, 1.0), (6, 1.0), (7, 1.0), (9, 1.0), (9, 2.0)])
def test_intervals_of_medians_of_whole_grades_cover(raters: int, grid: float, bias: float) -> None:
    """A median of whole grades is a whole one: .89 to .91 of seven or nine raters' intervals held the margin by noise alone."""
    error, se = errors(*rated(raters, bias, 2000, grid), merge_raters="median")
    assert 0.93 - 1.4 * SAMPLING <= float(np.mean(np.abs(error) <= 1.96 * se)) <= 0.975 + 1.4 * SAMPLING
    assert rms(se) == pytest.approx(rms(error), rel=0.09)


def test_a_grid_is_that_of_the_whole_however_it_is_cut() -> None:
    odd, even, many = np.array([1.0, 3.0, 5.0]), np.array([2.0, 4.0]), np.linspace(0, 1, MOST_GRADES + 1)
    grids = [grid_of(np.unique(np.concatenate(found))) for found in ([odd], [even], [odd, even], [many], [odd[:1]])]
    assert grids == [2, 2, 1, 0, 0]


def test_the_median_of_gaps_and_of_unbiased_scores_by_known_factors() -> None:
    """Of normal values the median of 5 has variance .28683 (mean: .2); of the difference of two medians it is twice that of one score's."""
    same = np.zeros((1, 5)) + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    variance = same.var(ddof=1)
    of_gaps = median_standard_error(same, np.full((1, 5), np.nan), [variance], [np.nan])
    of_scores = median_standard_error(same, np.zeros((1, 5)), [variance], [variance / 4])
    assert of_gaps**2 / variance == pytest.approx([0.28683], rel=0.05)
    assert of_scores**2 / variance == pytest.approx([0.28683], rel=0.1)
    assert margin_standard_error(5, variance, variance, np.nan) ** 2 / variance == pytest.approx(0.2)


def test_one_rater_far_from_the_others_leaves_the_median_to_those_between() -> None:
    """Three raters 100 apart: the median score is always the second one's, so that the difference has that rater's whole variance."""
    gaps, middles = np.array([[1.0, -1.0, 0.0]]), np.array([[-100.0, 0.0, 100.0]])
    assert median_standard_error(gaps, middles, [1.0], [1e4]) == pytest.approx([1.0], rel=0.02)


def test_a_variance_within_pairs_takes_no_more_replies_of_a_prompt_than_tell_it() -> None:
    """Of 1,100 replies the thousand of the smallest ids, which are digests: half a million pairs in the place of 604,450."""
    rng, most = np.random.default_rng(0), MOST_COMPLETIONS
    grades = [(rater, f"reply {i}", float(rng.integers(1, 6))) for i in range(most + 100) for rater in ("ann", "ben")]

    def squares(some: list[tuple[str, str, float]]) -> tuple[list[float], set[str]]:
        merged, build = grades_of(feedback([some], low=1.0, high=5.0), BuildOptions(format="feedback"))
        replies = sorted(merged["completions"][0].as_py(), key=lambda one: one["id"])
        [found] = between_raters(merged, build.rules).squares.values()
        return found.tolist(), {one["text"] for one in replies[:most]}

    found, first = squares(grades)
    assert found == pytest.approx(squares([one for one in grades if one[1] in first])[0])
    assert found[2] == most * (most - 1) / 2
