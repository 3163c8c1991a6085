"""What each of several sources of one build says for itself beside its options: its inputs and name, its weight and its share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.options import NUMBER, Positive, TextOrPath, fields_of, options

CALLED = {"from": "evidence", "normalize": "normalise", "files": "inputs", "paths": "inputs"}
"""Keys that one may well try, and what the options are called."""


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


@options
class MixedSource:
    """One of several sources that are mixed in a build, beside its options."""

    inputs: Annotated[tuple[TextOrPath, ...], BeforeValidator(_several), Field(min_length=1)]
    """files, folders, globs or Hub dataset names, one or a list"""
    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^,=\n]+$", examples=["people", "judge"])] = "all"
    """what it is called in the column `source` and in tables; default: its format"""
    weight: Positive = 1.0
    """what each of its pairs counts for in training, where others count 1"""
    share: Annotated[float, Field(gt=0, le=1), NUMBER] = 1.0
    """the share of its prompts that are drawn, by a hash of seed and prompt: a larger share holds all that a smaller one holds"""
    margin_times: Positive = 1.0
    """what its margins, their errors and scores are multiplied by, after all else"""


def _plain(value: Any) -> Any:
    """What is given of a source, as JSON holds it: manifests keep it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def read_sources(value: Any) -> Any:
    """The list of sources that a YAML file holds, by itself or under `sources`; of a list in Python the same, paths as texts. Raises
    ValueError."""
    if not isinstance(value, str | Path):
        return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
    import yaml  # here: every command would wait for it

    try:
        found = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = (
            f"{problem} in line {mark.line + 1}"
            if (mark := getattr(error, "problem_mark", None)) and (problem := getattr(error, "problem", None))
            else error
        )
        raise ValueError(
            f"{value} can't be read as YAML: {why}. It is a file with a list of sources, each with its inputs and format; a file of "
            "data is named without --sources"
        ) from None
    if isinstance(found, dict) and "sources" in found:
        if others := [str(key) for key in found if key != "sources"]:
            raise ValueError(
                f"{value} holds {', '.join(others)} beside `sources`: give that as flags, or make it a recipe (mmpo run)"
            )
        found = found["sources"]
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError(
            f"{value} holds no list of sources; write one such as: [{{inputs: a.jsonl, format: shp}}, {{inputs: b.jsonl, format: webgpt}}]"
        )
    return found


def check_keys(
    given: Mapping[str, Any], of_a_source: Sequence[str], of_all: Sequence[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is given of a source: the fields of MixedSource, and the options. Raises UserError for a key that is neither."""
    own, known = list(fields_of(MixedSource)), [*fields_of(MixedSource), *of_a_source]
    for key in given:
        if key in CALLED:
            raise UserError(f"{where}the key {key!r} is called {CALLED[key]!r} here; write that")
        if key not in known and key in of_all:
            raise UserError(f"{where}{key} is of the whole build: give it once, beside `sources`")
        if key not in known:
            raise UserError(f"{where}{unknown_name('key', key, known)}")
    return {key: value for key, value in given.items() if key in own}, {k: v for k, v in given.items() if k not in own}
