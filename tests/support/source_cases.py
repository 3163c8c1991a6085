"""What the tests of sources share: files and single rows through a format, and what became of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmpo.pipeline.sources import BadRow, Collected, FeedbackBuilder, SourceOptions, collect, get_source
from mmpo.pipeline.storage import plan, resolve_inputs

__all__ = ["DATA", "add", "collected", "dropped", "ratings", "reasons", "ultrafeedback"]

DATA = Path(__file__).parents[2] / "data"


def collected(path: Path, format: str, **options: Any) -> Collected:
    """A file of one chunk."""
    (chunk,) = plan(resolve_inputs([path], format))
    return collect(chunk, get_source(format), SourceOptions(**options))


def add(format: str, row: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], list[str]]:
    """One row of a file people.jsonl as a FEEDBACK row, and the reasons of what was dropped of it."""
    out = FeedbackBuilder(format)
    out.at("folder/people.jsonl", 1)
    get_source(format).parser(row.keys(), SourceOptions(**options), "folder/people.jsonl")(row, out)
    [feedback] = out.finish().to_pylist()
    return feedback, [reject[2] for reject in out.rejects]


def dropped(format: str, row: Mapping[str, Any], **options: Any) -> tuple[str, bool]:
    """Why a row is dropped whole, and whether that is limited."""
    with pytest.raises(BadRow) as caught:
        add(format, row, **options)
    return caught.value.reason, caught.value.limited


def ratings(row: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Completion, rater, kind, aspect, score, low and high of each rating."""
    names = ("completion", "rater", "kind", "aspect", "score", "low", "high")
    return [tuple(rating[name] for name in names) for rating in row["ratings"]]


def reasons(result: Collected) -> dict[str, int]:
    """How often what was dropped for which reason."""
    return dict(Counter(result.rejects["reason"].to_pylist()))


def ultrafeedback(**completion: Any) -> dict[str, Any]:
    """A row of UltraFeedback with one completion, its fields changed."""
    annotations = {
        "helpfulness": {"Type": ["1"], "Rationale": "why type", "Rating": "2", "Rationale For Rating": "why 2"},
        "honesty": {"Rating": "N/A", "Rationale": "creative"},
        "truthfulness": [{"Rating": "4"}, {"Rating": "3.5"}],
        "instruction_following": {"Rating": 5, "Rationale": None},
    }
    full = {"model": "m", "response": "reply", "critique": "fine", "overall_score": 7.5, "annotations": annotations}
    return {"source": "sharegpt", "instruction": "Ask", "completions": [{**full, **completion}]}
