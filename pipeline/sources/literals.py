"""What a text spells: numbers with a decimal mark, lists and objects as JSON or as Python writes them; and what only looks like one."""

import ast
import io
import re
import tokenize
import warnings
from typing import Any

import orjson

_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


def plain_number(text: str, decimal: str) -> float | None:
    """The number that a text spells with this decimal mark, None where it spells none: neither thousands that are parted, nor nan.

    >>> [plain_number(text, ",") for text in ("3,5", "−4", "3.5", "1_0")], plain_number("3,5", ".")
    ([3.5, -4.0, None, None], None)
    """
    if decimal == ",":
        if "." in text:
            return None
        text = text.replace(",", ".")
    try:
        found = float(text.replace("−", "-"))  # which would also take 1_000
    except ValueError:
        return None
    return None if "_" in text or found - found else found


def comma_hint(text: str, decimal: str | None) -> str:
    """What would read a text that is a number with another decimal mark, or with its thousands parted; "" where it is neither.

    >>> comma_hint("3,5", "."), comma_hint("1,234", ".")
    ('--decimal , reads it', 'write 1234 where the comma parts thousands or, where the comma is the decimal mark, --decimal , reads 1.234')
    """
    if decimal == "." and _THOUSANDS.fullmatch(text):
        other = (
            f" or, where the comma is the decimal mark, --decimal , reads {text.replace(',', '.')}" if text.count(",") == 1 else ""
        )
        return f"write {text.replace(',', '')} where the comma parts thousands{other}"
    if decimal == "." and DECIMAL_COMMA.fullmatch(text):
        return "--decimal , reads it"
    if decimal == "," and plain_number(text, ".") is not None:
        return "--decimal . reads it"
    if _POINTS.fullmatch(text):
        return f"write {text.replace('.', '')}{'' if decimal == ',' else ' and give --decimal ,'}: thousands are not parted"
    return ""


NUMPYS_PRINT = (
    "the cell is what numpy prints of an array, without commas and with numbers cut short, which can't be read back: write the file as "
    "JSON lines or Parquet, or the column as JSON"
)
_SIDE_BY_SIDE = re.compile(r"""(?:['"\d\]}.]|None|nan|True|False)\s+(?:['"\[{\d+-]|None|nan|True|False)|\barray\(""")
_VALUES = frozenset((tokenize.STRING, tokenize.NUMBER))
_NAMES = frozenset(("array", "dtype", "object", "float32", "int32", "None", "True", "False", "nan"))
_SPACE = frozenset((tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT))


def is_numpys_print(text: str) -> bool:
    """Whether a cell is what numpy prints of an array: values side by side, or array(...).

    >>> [is_numpys_print(text) for text in ("['a' 'b']", "[1. 2.5]", "array([1, 2])", "['a', \"'b' 'c'\"]", "[1, 2]", "[sic] it's 1 2")]
    [True, True, True, False, False, False]
    """
    text = text.strip()
    if not text.startswith(("[", "array(")) or not text.endswith(("]", ")")) or not _SIDE_BY_SIDE.search(text):
        return False
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            tokens = [one for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.type not in _SPACE]
    except (tokenize.TokenError, SyntaxError):
        return False
    if any(one.type == tokenize.NAME and one.string not in _NAMES for one in tokens):
        return False  # a text in brackets
    ends = [one.type in _VALUES or one.string in ("]", "}", ")", "None", "True", "False", "nan") for one in tokens]
    begins = [one.type in _VALUES or one.string in ("[", "{", "None", "True", "False", "nan") for one in tokens]
    signs = [one.string == "-" for one in tokens]
    beside = zip(ends, begins[1:], signs[1:], strict=False)
    return any(one.string == "array" for one in tokens) or any(end and (begin or sign) for end, begin, sign in beside)


_BRACKETS = frozenset('[{"')


def spelled(value: Any) -> Any:
    """The list or object that a table keeps as its text; all else as it is.

    >>> spelled('[1, 2]'), spelled("[sic] a reply"), spelled("4")
    ([1, 2], '[sic] a reply', '4')
    """
    found = structure(value) if isinstance(value, str) and value.lstrip()[:1] in _BRACKETS else value
    return found if isinstance(found, list | dict) else value


def structure(text: str) -> Any:
    """What a text spells as JSON, or as Python writes lists and dicts; None where it spells neither, or numpy printed it. Of a structure
    that was written as JSON twice or more often, the structure.

    >>> structure('[1, "a"]'), structure("['a', None]"), structure("[1, 2"), structure("['a' 'b']")
    ([1, 'a'], ['a', None], None, None)
    >>> structure('"[1, \\\\"a\\\\"]"'), structure('"[sic]"')
    ([1, 'a'], '[sic]')
    """
    try:
        found = orjson.loads(text)
        inside = structure(found) if isinstance(found, str) and found.lstrip()[:1] in _BRACKETS else None
        return inside if isinstance(inside, list | dict) else found
    except orjson.JSONDecodeError:
        pass
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            found = ast.literal_eval(text.strip())
            return (
                None if isinstance(found, list) and is_numpys_print(text) else found
            )  # Python joins texts that stand side by side
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
