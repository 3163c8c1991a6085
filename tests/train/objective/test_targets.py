"""Targets by name, from a PAIRS table, with what had to be filled in counted."""

import numpy as np
import pyarrow as pa
import pytest

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import target_probability
from mmpo.train.objective import targets

TABLE = pa.table(
    {
        "quality_margin": [0.0, 1.0, 2.0, 3.0],
        "margin_se": [1.0, None, 3.0, 0.0],
        "preferring": pa.array([1, 2, 3, 0], pa.int32()),
        "raters": pa.array([3, 2, 3, 0], pa.int32()),
    }
)


def test_plain() -> None:
    p, counts = targets("plain", TABLE, 1.0)
    assert p.dtype == np.float64 and counts == {}
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-np.arange(4.0))))


def test_noise_aware_fills_the_median_and_counts_it() -> None:
    p, counts = targets("noise-aware", TABLE, 1.0)
    assert counts == {"margin_se_filled": 1}
    np.testing.assert_array_equal(p, target_probability([0, 1, 2, 3], 1.0, [1, 1, 3, 0]))
    with pytest.raises(UserError, match="no pair has a known margin_se"):
        targets("noise-aware", TABLE.slice(1, 1), 1.0)


def test_measured_is_from_votes_alone() -> None:
    p, counts = targets("measured", TABLE, np.inf)
    np.testing.assert_allclose(p, [1.5 / 4, 2.5 / 3, 3.5 / 4, 0.5])
    assert counts == {"pairs_without_raters": 1}


def test_errors_name_what_there_is() -> None:
    with pytest.raises(UserError, match="did you mean 'plain'"):
        targets("plane", TABLE, 1.0)
    with pytest.raises(UserError, match="needs the column 'margin_se'; there are: quality_margin"):
        targets("noise-aware", TABLE.select(["quality_margin"]), 1.0)
    with pytest.raises(ValueError, match="gamma"):
        targets("plain", TABLE, -1.0)
