"""A table of prices: figures that are none are refused, since a budget can't be compared with them."""

from pathlib import Path

import pytest

from mmpo.annotate.client import load_prices
from mmpo.pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {m: [.nan, 1]}", "m: prices are finite numbers from 0 up"),
        ("models: {m: [1, .inf]}", "m: prices are"),
        ("models: {m: [-1, 1]}", "m: prices are"),
        ("batch: .nan\nmodels: {m: [1, 1]}", "batch: prices are"),
        ("models: {m: [1]}", "it needs `models:`"),
        ("[" * 3000, "it needs `models:`"),
    ],
)
def test_prices_that_are_none_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        load_prices(str(tmp_path / "prices.yaml"))
    assert said in str(refused.value)
