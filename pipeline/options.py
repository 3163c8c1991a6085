"""The machinery of options: frozen pydantic dataclasses with ranges, choices, flags and help in their fields.

Whoever makes one (Python, a command's flags, a recipe), what is wrong is a UserError: the option, what was given, what is allowed.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from mmpo.pipeline.errors import InvalidValue, UserError, closest, printable, unknown_name
from mmpo.pipeline.margins import mean_target_of

Kind = TypeVar("Kind")
ENGINE_OPTIONS = ("workers", "engine", "ray_address")
"""Options of commands that say where they run, and alter nothing that they make."""


class OneOf:
    """Annotates a text that must be a key of a family's table, so that a new member is allowed as soon as it stands in the table."""

    def __init__(self, table: Iterable[str]) -> None:
        self.names = list(table)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.literal_schema(self.names)
        return core_schema.nullable_schema(schema) if type(None) in get_args(source) else schema


def in_words(names: Iterable[str]) -> str:
    """Names to choose from.

    >>> in_words(["keep", "drop", "ask"])
    'keep, drop or ask'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


class Flags:
    """Annotates a field whose flags on the command line are not its name; the first one is the one to write. once: what to do instead of
    giving it twice, where somebody may well try; of other flags the last one counts.
    """

    def __init__(self, *names: str, once: str = "") -> None:
        self.names, self.once = names, once


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return value


EMPTY = "is empty, as a shell variable that is not set is; give it a value, or leave it out"
"""What an empty text is told: taken for none, it would stand for a default that nobody chose."""


def _listed(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(
            f"{value} is one number: write [1, 10], or '1:10' in quotes, which YAML else takes for a number of base 60"
        )
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.replace(":", ",").split(",") if part.strip())
    if not parts:
        raise ValueError(f"it {EMPTY}")
    return parts


def _mapped(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    if texts and not any(text.strip() for text in texts):
        raise ValueError(f"it {EMPTY}")
    # A comma that no name= follows belongs to the value: columns may have one in their name.
    parts = [part for text in texts for part in re.split(r",(?=[^,]*=|\s*(?:,|$))", text) if part.strip()]
    wrong = next((part for part in parts if "=" not in part), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not of the form name=value")
    return {name.strip(): text.strip() for name, _, text in (part.partition("=") for part in parts)}


def _paths(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return (value,)
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not parts:
        raise ValueError(f"it {EMPTY}")
    return parts


PATHS = BeforeValidator(_paths)
"""Several paths, which may also be written as text, separated by commas."""
LISTED = BeforeValidator(_listed)
"""Several values may also be written as text: x,y,z or 1:10."""
MAPPED = BeforeValidator(_mapped)
"""A mapping may also be written as text, or as several: a=b,c=d."""
NUMBER = BeforeValidator(_no_truth)
"""True and False are no numbers."""
Count = Annotated[int, Field(ge=1), NUMBER]
"""A whole number from 1 up."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), NUMBER]
"""A finite number above 0."""
AtLeastZero = Annotated[float, Field(ge=0, allow_inf_nan=False), NUMBER]
"""A finite number from 0 up."""


def read_gamma(value: Any) -> float | str:
    """A γ as it is given: a number of at least 0, also as text, "auto" or "auto:MEAN" as they are. InvalidValue for anything else.

    >>> read_gamma("1.1"), read_gamma("auto:.9")
    (1.1, 'auto:.9')
    """
    auto = " or 'auto' (or auto:MEAN with a mean target between .5 and 1: auto:.9)"
    text = value.strip() if isinstance(value, str) else ""
    if text.partition(":")[0] == "auto":
        try:
            mean_target_of(text)
        except ValueError:
            raise InvalidValue(f"gamma {value!r} is not a number{auto}") from None
        return text
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise InvalidValue(f"gamma {value!r} is not a number{auto}")
    if not number >= 0:
        raise InvalidValue(f"gamma {value!r} is not 0 or more{auto}")
    return number


def _gamma(value: Any) -> float | str:
    try:
        return read_gamma(value)
    except InvalidValue as error:
        raise ValueError(str(error).removeprefix("gamma ")) from None


Gamma = Annotated[
    float | str,
    PlainValidator(_gamma, json_schema_input_type=float | str),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^auto(:0?\.\d+)?$"}]}),
]
"""A γ: a number of at least 0 (inf allowed), auto, or auto:MEAN (see `mmpo.pipeline.margins.resolve_gamma`)."""
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
"""A number from 0 to 1."""
TextOrPath = Annotated[str, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]
"""A text, given as one or as a path."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def options(cls: type[Kind]) -> type[Kind]:
    """Class decorator: a frozen pydantic dataclass that raises UserError; a field's help is the docstring below it.

    Where a help says {names}, the names of the field's table stand there (OneOf).

    >>> @options
    ... class Sampling:
    ...     draws: Count = 5
    >>> Sampling("7")
    Sampling(draws=7)
    >>> Sampling(draws=0)
    Traceback (most recent call last):
    mmpo.pipeline.errors.UserError: draws: 0 is not 1 or more
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))(cls)
    for name, field in fields_of(made).items():
        if field.description is None:  # pydantic reads the docstrings of the class itself only
            kinds = (base for base in made.__mro__[1:] if hasattr(base, "__pydantic_fields__"))
            field.description = next((fields_of(base)[name].description for base in kinds if name in fields_of(base)), None)
        for table in (found for found in field.metadata if isinstance(found, OneOf)):
            field.description = (field.description or "").replace("{names}", in_words(table.names))
    create: Callable[..., None] = made.__init__

    @wraps(create)
    def checked(self: Any, *values: Any, **named: Any) -> None:
        try:
            create(self, *values, **named)
        except ValidationError as error:
            raise UserError(explain(error, made)) from None
        _check_texts(self)

    made.__init__ = checked
    return made


def _check_texts(made: Any) -> None:
    for name, field in fields_of(type(made)).items():
        value = getattr(made, name)
        inside = value.items() if isinstance(value, Mapping) else ()
        empty = next((f"{name}: {key}= " for key, one in inside if one == ""), f"{name}: it " if value == "" else "")
        if empty and field.get_default(call_default_factory=True) != "":
            raise UserError(empty + EMPTY)
        if (text := unwritable(getattr(made, name))) is not None:
            raise UserError(f"{name}: {text!a} holds bytes that are no UTF-8 text, or half a character; write it anew")


def unwritable(value: Any) -> str | None:
    """The first text in a value that is no UTF-8 (a lone surrogate, as for bytes of another encoding), which no file of ours can hold.

    >>> unwritable({"rater": ["ann", chr(0xDCFF)]}) is None, unwritable("日本") is None
    (False, True)
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value
    inside = chain(value.keys(), value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((text for one in inside if (text := unwritable(one)) is not None), None)


def fields_of(options: type) -> dict[str, FieldInfo]:
    """The fields of an options class or of a pydantic model, by name."""
    return options.__pydantic_fields__  # type: ignore[attr-defined]


def flags_of(options: type, name: str) -> list[str]:
    """The flags of a field, the one to write first."""
    own = [flags.names for flags in fields_of(options)[name].metadata if isinstance(flags, Flags)]
    return list(own[0]) if own else ["--" + name.replace("_", "-")]


def shared(options: Any, kind: type) -> dict[str, Any]:
    """The values of the options that a dataclass has fields for by the same names: its arguments, as far as options say them."""
    return {field.name: getattr(options, field.name) for field in fields(kind) if hasattr(options, field.name)}


def options_from(options: type[Kind], given: Mapping[str, Any], *, where: str = "", flags: bool = False) -> Kind:
    """The options from text or YAML values. `where`: set before the message; `flags`: name fields by their flags. Raises UserError."""
    try:
        made = TypeAdapter(options).validate_python(dict(given))
        _check_texts(made)
        return made
    except ValidationError as error:
        raise UserError(explain(error, options, where=where, flags=flags)) from None
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def check_class(given: object, kind: type) -> None:
    """Raises UserError where options that Python gave are something else.

    >>> check_class({"n": 4}, list)
    Traceback (most recent call last):
    mmpo.pipeline.errors.UserError: options are a dict, {'n': 4}: give list(**options)
    """
    if not isinstance(given, kind):
        made = f"{kind.__name__}(**options)" if isinstance(given, Mapping) else f"{kind.__name__}(...)"
        raise UserError(f"options are a {type(given).__name__}, {printable(repr(given), 80)}: give {made}")


def keys_of_model(kind: type, given: str | Path | Mapping[str, Any], word: str, flag: str) -> dict[str, Any]:
    """The keys of one model: "MODEL" or "MODEL,key=value,...", or a mapping; word, flag: what a model is called in messages, and the
    option that names it. Raises UserError."""
    known = [name for name in fields_of(kind) if name != "same_model"]
    if isinstance(given, kind):  # one that is made already: what of it is no default
        made, given = given, {}
        for name in known:
            if (value := getattr(made, name)) != fields_of(kind)[name].get_default(call_default_factory=True):
                given[name] = value
    if not isinstance(given, Mapping):
        model, *rest = str(given).split(",")
        pairs = [part.partition("=") for part in rest]
        if any(not equals for _, equals, _ in pairs):
            raise UserError(f"{flag} {given}: write MODEL,key=value,...; keys: {', '.join(known[1:])}")
        given = {"model": model, **{key.strip(): value for key, _, value in pairs}}
    values = {key: value.strip() if isinstance(value, str) else value for key, value in given.items() if value is not None}
    for key in values:
        if key not in known:
            raise unknown_name(f"key of a {word}", key, known)
    if not values.get("model"):
        raise UserError(f"a {word} needs a model; given: {given!r}")
    return values


def explain(error: ValidationError, model: type, *, where: str = "", flags: bool = False) -> str:
    """One message for all that is wrong: place, what was given, what is allowed, the closest valid name."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        # A union reports each of its members, as a last part of the place that is no key.
        last = str(item["loc"][-1]) if item["loc"] else ""
        union = last.removeprefix("constrained-") in ("float", "int", "str", "bool") or "[" in last
        union = union and item["type"] not in ("extra_forbidden", "unexpected_keyword_argument")  # of these it is the key
        places.setdefault(item["loc"][:-1] if union else item["loc"], []).append(item)
    # of several values written as one text, that there are too few says it all
    few = {
        place[0]
        for place, items in places.items()
        if len(place) > 1 and items[0]["type"] == "missing" and isinstance(place[-1], int)
    }
    places = {place: items for place, items in places.items() if not place or place[0] not in few or items[0]["type"] == "missing"}
    return "; ".join(_explain_one(place, items, model, where, flags) for place, items in places.items())


def _explain_one(place: tuple[Any, ...], items: list[Any], model: type, where: str, flags: bool) -> str:
    known = flags and place and place[0] in fields_of(model)
    shown = flags_of(model, place[0])[0] if known else ".".join(str(part) for part in place)
    start = f"{where}{shown}" if shown else where.rstrip(": ")
    item = items[0]
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _keys_at(model, place[:-1])
        return f"{start}: unknown key{closest(place[-1], allowed, 0.4) or '.'} Known: {', '.join(allowed)}"
    if item["type"] == "missing":
        too_few = isinstance(place[-1], int)  # of a tuple; else it is a key
        return (
            _too_few(start.removesuffix(f".{place[-1]}"), place, item["input"], model)
            if too_few
            else f"{start}: missing{_help(model, place)}"
        )
    if item["type"] == "string_pattern_mismatch":
        examples = fields_of(_model_at(model, place[:-1]))[str(place[-1])].examples or [item["ctx"]["pattern"]]
        return f"{start}: {item['input']!r} is not of the form of {in_words(examples)}{_help(model, place)}"
    if item["type"] in ("string_too_short", "too_short") and not item["input"]:
        return f"{start}: it {EMPTY}" if item["input"] == "" else f"{start}: it is empty{_help(model, place)}"
    messages = [re.sub(", (unable to|got a) .*", "", str(one["msg"]).removeprefix("Value error, ")) for one in items]
    if not all(message.startswith("Input should be ") for message in messages):
        return f"{start}: {messages[0]}"
    names = [name for one in items if one["type"] == "literal_error" for name in re.findall("'([^']*)'", one["ctx"]["expected"])]
    values = " or ".join(message.removeprefix("Input should be ") for message in messages)
    for theirs, ours in WORDS.items():
        values = re.sub(theirs, ours, values)
    return f"{start}: {item['input']!r} is not {values}{closest(item['input'], names, 0.4)}"


def _help(model: type, place: Sequence[Any]) -> str:
    """What a field is, for a message that it is missing, empty or of another form."""
    field = fields_of(_model_at(model, place[:-1])).get(str(place[-1]))
    return f"; it is: {' '.join(field.description.split())}" if field and field.description else ""


def _too_few(start: str, place: tuple[Any, ...], given: Any, model: type) -> str:
    """Where several values are written as one text."""
    text = ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    field = fields_of(model).get(str(place[0]))
    default = field.get_default() if field else None
    example = field.examples[0] if field and field.examples else ",".join(map(str, default)) if isinstance(default, tuple) else ""
    return f"{start}: {text} has too few values" + (f"; write it as {example}" if example else "")


WORDS = {
    "a valid number": "a number",
    "a valid integer": "a whole number",
    "a valid string": "text",
    "a valid dictionary": "a mapping",
    "greater than or equal to (\\S+)": r"\1 or more",
    "less than or equal to (\\S+)": r"\1 or less",
    "greater than": "above",
    "less than": "below",
}
"""pydantic's words, as regular expressions → plainer ones."""


def _keys_at(model: type, place: Sequence[Any]) -> list[str]:
    """The keys allowed at a place inside the model."""
    return [field.alias or name for name, field in fields_of(_model_at(model, place)).items()]


def _model_at(model: type, place: Sequence[Any]) -> type:
    """The model at a place inside a model; a mapping's own keys (run names) are skipped."""
    for part in place:
        field = {field.alias or name: field for name, field in fields_of(model).items()}.get(str(part))
        models = (
            [hint for hint in _flatten(field.annotation) if isinstance(hint, type) and issubclass(hint, BaseModel)] if field else []
        )
        model = models[0] if models else model
    return model


def _flatten(hint: Any) -> list[Any]:
    return [hint, *(inner for argument in get_args(hint) for inner in _flatten(argument))]
