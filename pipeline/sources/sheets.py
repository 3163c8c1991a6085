"""Rows of CSV in formats with columns of their own: cells, which are all text, as the kinds of value that the format has there.

Which kinds a column has is what the format's own samples hold: numbers, true and false, lists and objects. Columns of texts stay what they
are, so that a reply of "4" is no number.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from mmpo.pipeline.sources.base import NumberedRow, Source
from mmpo.pipeline.sources.messages import structure

TRUTH = {"true": True, "false": False}


def typed(found: Iterable[NumberedRow], source: Source) -> Iterator[NumberedRow]:
    """The rows with their cells as the format has them; a cell that spells no such value stays text, for the format to refuse."""
    kinds = column_kinds(source.name)
    for number, row in found:
        yield number, {name: value_of(cell, kinds[name]) if name in kinds and cell else cell for name, cell in row.items()}


@lru_cache
def column_kinds(format: str) -> Mapping[str, frozenset[type]]:
    """Column → the types (bool, float, list) that are no text and stand there in samples of the format, and in `Source.typed`."""
    from mmpo.pipeline.sources import get_source

    source = get_source(format)
    found: dict[str, set[type]] = {name: {kind} for name, kind in source.typed.items()}
    for row in (row for sample in source.samples if not isinstance(sample.content, str) for row in sample.content):
        for name, value in row.items():
            kind = {bool: bool, int: float, float: float, list: list, dict: list}.get(type(value))
            if kind:
                found.setdefault(name, set()).add(kind)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def value_of(cell: str, kinds: frozenset[type]) -> Any:
    """What a cell spells of one of these kinds; else the cell.

    >>> numbers = frozenset([float])
    >>> [value_of(cell, numbers) for cell in ("4", " 4.5", "n/a", "1_0")], value_of("False", frozenset([bool]))
    ([4, 4.5, 'n/a', '1_0'], False)
    >>> value_of('["a"]', frozenset([list])), value_of("[sic] a reply", frozenset([list]))
    (['a'], '[sic] a reply')
    """
    text = cell.strip()
    if bool in kinds and text.casefold() in TRUTH:
        return TRUTH[text.casefold()]
    if float in kinds and "_" not in text:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    if list in kinds and text[:1] in ("[", "{"):
        inside = structure(text)
        return inside if isinstance(inside, (list, dict)) else cell
    return cell
