"""From an options dataclass to the flags of a command and to the pydantic model of a recipe's section.

One dataclass (BuildOptions, TrainOptions) is the source of both, so a flag and a recipe key can't drift apart.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from mmpo.cli.help import FLAGS, HELP
from mmpo.pipeline.errors import UserError

__all__ = ["explain", "flag_of", "model_of", "options_from", "with_flags"]


def flag_of(name: str) -> list[str]:
    """The flags of an option, the first one is the one to write.

    >>> flag_of("min_margin")
    ['--min-margin']
    >>> flag_of("evidence")
    ['--from', '--evidence']
    """
    return FLAGS.get(name) or ["--" + name.replace("_", "-")]


def with_flags(options: type, *, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the command gets one flag for every field of `options`; its `given` holds those that were used.

    The signature keeps its own parameters and must end with `given: dict`. Values arrive as text, bools as bools.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command).parameters.values())[:-1]
        hints = typing.get_type_hints(options)
        fields = [field for field in dataclasses.fields(options) if field.name not in without]

        def call(**arguments: Any) -> Any:
            given = {field.name: arguments.pop(field.name) for field in fields}
            return command(**arguments, given={name: value for name, value in given.items() if value is not None})

        added = [_parameter(field, hints[field.name]) for field in fields]
        call.__doc__ = command.__doc__
        call.__name__ = command.__name__
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        call.__dict__["__signature__"] = inspect.Signature(
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *added]]
        )
        return call

    return decorate


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    flags = flag_of(field.name)
    help_text = _help(field)
    default = _default(field)
    if default not in (None, (), {}, dataclasses.MISSING):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        help_text += f" [default: {shown}]" if not isinstance(default, bool) else ""
    if _is_bool(hint):
        decls = [f"{flags[0]}/--no-{flags[0].removeprefix('--')}"]
        annotation: Any = Annotated[bool | None, typer.Option(*decls, help=help_text, show_default=False)]
    else:
        metavar = "NUMBER" if float in _members(hint) or int in _members(hint) else "TEXT"
        annotation = Annotated[str | None, typer.Option(*flags, help=help_text, metavar=metavar, show_default=False)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("help") or HELP[field.name])


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(typing.get_args(hint))
    return (hint,)


def _is_bool(hint: Any) -> bool:
    return bool in _members(hint)


def _container(hint: Any) -> type | None:
    if str in _members(hint):
        return None  # the options read their own text
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, (tuple, list)):
            return tuple
        if isinstance(origin, type) and (issubclass(origin, dict) or origin is Mapping):
            return dict
    return None


def _from_text(container: type) -> Callable[[Any], Any]:
    """A validator that also takes the written forms: `a=b,c=d` for a mapping, `1:10` or `x,y,z` for a sequence."""

    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if container is tuple:
            return tuple(part.strip() for part in value.replace(":", ",").split(",") if part.strip())
        parts = [part for part in value.split(",") if part.strip()]
        wrong = next((part for part in parts if "=" not in part), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not of the form name=value")
        return {name.strip(): text.strip() for name, _, text in (part.partition("=") for part in parts)}

    return convert


@cache
def model_of(options: type, *, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """The pydantic model with the fields of the dataclass; unknown keys are errors. `optional`: none is required."""
    hints = typing.get_type_hints(options)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        if field.name in without:
            continue
        hint, default = hints[field.name], _default(field)
        container = _container(hint)
        if container is not None:
            hint = Annotated[hint, BeforeValidator(_from_text(container))]
        required = default is dataclasses.MISSING and not optional
        default = ... if required else None if default is dataclasses.MISSING else default
        fields[field.name] = (hint, Field(default, description=_help(field)))
    return create_model(options.__name__, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def options_from(options: type, given: Mapping[str, Any], *, where: str = "", flags: bool = False) -> Any:
    """The dataclass `options` from text or YAML values. Raises UserError naming what is wrong and what is allowed."""
    try:
        model = model_of(options)(**given)
    except ValidationError as error:
        raise UserError(explain(error, model_of(options), where=where, flags=flags)) from None
    return options(**{name: getattr(model, name) for name in given})


def explain(error: ValidationError, model: type[BaseModel], *, where: str = "", flags: bool = False) -> str:
    """One message for all that is wrong: place, what was given, what is allowed, the closest valid key."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        # A union reports each of its members, as a last part of the place that is no key.
        last = str(item["loc"][-1]) if item["loc"] else ""
        union = last in ("float", "int", "str", "bool") or "[" in last
        places.setdefault(item["loc"][:-1] if union else item["loc"], []).append(item)
    return "; ".join(_explain_one(place, items, model, where, flags) for place, items in places.items())


def _explain_one(place: tuple[Any, ...], items: list[Any], model: type[BaseModel], where: str, flags: bool) -> str:
    shown = flag_of(str(place[0]))[0] if flags and place else ".".join(str(part) for part in place)
    start = f"{where}{shown}" if shown else where.rstrip(": ")
    item = items[0]
    if item["type"] == "extra_forbidden":
        allowed = _keys_at(model, place[:-1])
        close = get_close_matches(str(place[-1]), allowed, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"{start}: unknown key{hint} Known: {', '.join(allowed)}"
    if item["type"] == "missing":
        return f"{start}: missing"
    messages = [str(one["msg"]).removeprefix("Value error, ").partition(", unable to")[0] for one in items]
    if all(message.startswith("Input should be ") for message in messages):
        allowed_values = " or ".join(message.removeprefix("Input should be ") for message in messages)
        return f"{start}: {item['input']!r} is not {allowed_values}"
    return f"{start}: {messages[0]}"


def _keys_at(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The keys allowed at a place inside the model; a mapping's own keys (run names) are skipped."""
    for part in place:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        field = fields.get(str(part))
        if field is not None:
            models = [hint for hint in _flatten(field.annotation) if isinstance(hint, type) and issubclass(hint, BaseModel)]
            model = models[0] if models else model
    return [field.alias or name for name, field in model.model_fields.items()]


def _flatten(hint: Any) -> list[Any]:
    return [hint, *(inner for argument in typing.get_args(hint) for inner in _flatten(argument))]
