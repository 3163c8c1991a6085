"""Raters and aspects on a dataset's page: whom it calls doubtful, and in which words."""

from pathlib import Path

import pyarrow as pa
import pytest
from grade_cases import feedback, said
from pair_cases import pair, pairs_by_hand

from mmpo.annotate.agreement import rater_overview
from mmpo.pipeline.report import write_report


def page(folder: Path, graded: pa.Table) -> str:
    pairs = pairs_by_hand(folder / "pairs", pair("q", "yes", "no", 1.0))
    return write_report(pairs, folder / "page.html", [], raters=rater_overview(graded)).read_text(encoding="utf-8")


@pytest.mark.parametrize(("pairs", "doubtful"), [(7, False), (49, False), (50, True)])
def test_nobody_is_doubtful_for_a_few_pairs(pairs: int, doubtful: bool, tmp_path: Path) -> None:
    """Two who never agree: of 7 pairs the exact bounds are 0 and 1 − .025^(1/7) = 41%."""
    text = page(tmp_path, feedback(*[[said("ann", 0, 1, 1), said("bob", 0, 1, -1)]] * pairs))
    assert (
        text.count('<td class="number warn" data-of="sides with the others">0.0% [')
        == 2 * doubtful
        == text.count(f"in 0.0% [0.0%, 7.1%] of {pairs} pairs: against")
    )
    assert ("0.0% [0.0%,\u00a041.0%]" in text) == (pairs == 7)


def test_aspects_that_contradict_are_said_to_of_the_pairs_that_both_decide(tmp_path: Path) -> None:
    text = page(tmp_path, feedback(*[[said("gpt", 0, 1, 2, aspect="use"), said("gpt", 0, 1, -1, aspect="truth")]] * 20))
    assert "truth and use prefer opposite replies in 100.0% [83.2%, 100.0%] of the pairs that both decide" in text
