"""Whatever stands in the place of a value of a tool's export: rows are read or left out by a name, files refused, and nothing fails."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import write_rows
from source_cases import collected

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.sources import SOURCES

OTHERS = (None, "x", 1, {}, [None], [[]], float("nan"))
COLUMNS = {
    "argilla-export": {"completion": "reply", "score": "quality"},
    "mlflow": {"prompt": "request.question", "score": "quality"},
}
LABEL_STUDIO = (
    {"gap": "better*by"},
    {"score_first": "s1", "score_second": "s2"},
    {"completions": "items[].body", "scores": "rank"},
)
SAMPLES = [
    (name, place, (LABEL_STUDIO[place] if name == "label-studio" else COLUMNS.get(name, {})) if source.fields else {})
    for name, source in SOURCES.items()
    if source.direction and not source.licence
    for place in range(len(source.samples))
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def put(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(row)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(("format", "place", "columns"), SAMPLES)
def test_nothing_fails(tmp_path: Path, format: str, place: int, columns: dict[str, str]) -> None:
    row, *rest = SOURCES[format].samples[place].content
    path = tmp_path / "export.jsonl"
    for at in places(row):
        for other in OTHERS:
            write_rows(path, [put(row, at, other), *rest])
            try:
                result = collected(path, format, columns=columns)
            except UserError as error:
                assert "export.jsonl" in str(error)
            else:
                assert result.lines >= result.dropped and len(result.feedback) == result.lines - result.dropped
