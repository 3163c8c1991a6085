"""`null` on the command line is the same as in a recipe: every option that may be nothing takes it, whatever its default."""

import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter

from mmpo.annotate import GenerateOptions, JudgeOptions
from mmpo.cli.flags import with_flags
from mmpo.pipeline import BuildOptions
from mmpo.pipeline.options import fields_of
from mmpo.train.options import TrainOptions


@pytest.mark.parametrize("options", [BuildOptions, GenerateOptions, JudgeOptions, TrainOptions])
def test_every_option_that_may_be_nothing_takes_null(options: type) -> None:
    @with_flags(options)
    def command(*, given: dict[str, Any]) -> dict[str, Any]:
        return given

    properties = TypeAdapter(options).json_schema()["properties"]
    optional = {name for name in fields_of(options) if {"type": "null"} in properties[name].get("anyOf", ())}
    named_in_help = {name for name, field in fields_of(options).items() if "null:" in (field.description or "")}
    assert named_in_help <= optional
    nothing = dict.fromkeys(inspect.signature(command).parameters)
    got = command(**{**nothing, **{name: "null" for name in nothing if name in optional}})
    assert {name for name, value in got.items() if value is None} == optional
