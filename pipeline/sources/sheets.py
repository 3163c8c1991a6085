"""Rows of CSV in formats with columns of their own: cells, which are all text, as the kinds of value that the format has there.

Which kinds a column has is what the format's own samples hold: numbers, true and false, lists and objects. Columns of texts stay what they
are, so that a reply of "4" is no number.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.base import NumberedRow, Source
from mmpo.pipeline.sources.literals import NUMPYS_PRINT, comma_hint, is_numpys_print, plain_number, structure
from mmpo.pipeline.storage.text_files import NumberCell

TRUTH = {"true": True, "false": False}


def typed(found: Iterable[NumberedRow], source: Source, decimal: str = ".") -> Iterator[NumberedRow]:
    """The rows with their cells as the format has them; a cell that spells no such value stays text, for the format to refuse.

    decimal: the decimal mark of numbers.
    """
    kinds = column_kinds(source.name)
    for number, row in found:
        yield number, {name: value_of(cell, kinds[name], decimal) if name in kinds and cell else cell for name, cell in row.items()}


def mended(row: Mapping[str, Any] | BadRow, decimal: str) -> str:
    """What would read a cell of a row that its format refused, where such a cell may be the reason; else "", as of a row that was refused
    before it was taken apart or joined with others."""
    if isinstance(row, BadRow):
        return ""
    texts = [(name, cell.strip()) for name, cell in row.items() if isinstance(cell, str)]
    lists = [f"{name}: {NUMPYS_PRINT}" for name, cell in texts if is_numpys_print(cell)]
    return "; ".join(lists + [f"{name}: {hint}" for name, cell in texts if (hint := comma_hint(cell, decimal))])


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


def value_of(cell: str, kinds: frozenset[type], decimal: str = ".") -> Any:
    """What a cell spells of one of these kinds; else the cell.

    >>> numbers = frozenset([float])
    >>> [value_of(cell, numbers) for cell in ("4", " 4.5", "n/a", "1_0")], value_of("False", frozenset([bool]))
    ([4, 4.5, 'n/a', '1_0'], False)
    >>> value_of("4,5", numbers), value_of("4,5", numbers, ",")
    ('4,5', 4.5)
    >>> value_of('["a"]', frozenset([list])), value_of("[sic] a reply", frozenset([list]))
    (['a'], '[sic] a reply')
    """
    if isinstance(cell, NumberCell):
        return cell.number if float in kinds else cell
    text = cell.strip()
    if bool in kinds and text.casefold() in TRUTH:
        return TRUTH[text.casefold()]
    if float in kinds and (found := plain_number(text, decimal)) is not None:
        return int(text) if text.lstrip("+-").isdigit() else found
    if list in kinds and text[:1] in ("[", "{"):
        inside = structure(text)
        return inside if isinstance(inside, (list, dict)) else cell
    return cell
