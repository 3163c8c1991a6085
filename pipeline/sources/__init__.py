"""The formats that feedback comes in. A new one is a file with its Source and one line in SOURCES."""

from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.sources.base import (
    FormatSample,
    RowParser,
    RowReader,
    Source,
    SourceOptions,
    check_options,
    column_sets,
)
from mmpo.pipeline.sources.benchmarks.reward_models import REWARDBENCH2, RM_BENCH
from mmpo.pipeline.sources.builder import KINDS, BadRow, FeedbackBuilder
from mmpo.pipeline.sources.cells import OBJECTS
from mmpo.pipeline.sources.collect import Collected, collect, collect_parts, uncollected
from mmpo.pipeline.sources.feedback import feedback_table
from mmpo.pipeline.sources.generic import (
    FIELDS,
    LAYOUTS,
    LISTS,
    OBJECT_SAMPLES,
    SHEETS,
    TRL_FIELDS,
    TRL_SAMPLES,
    prepare_generic,
    prepare_trl,
)
from mmpo.pipeline.sources.guess import Guess, guesses
from mmpo.pipeline.sources.messages import as_reply, read_calls, read_message, split_pair
from mmpo.pipeline.sources.names import told_wide
from mmpo.pipeline.sources.published.alpaca_eval import ALPACA_EVAL, log_odds
from mmpo.pipeline.sources.published.arena import ARENA
from mmpo.pipeline.sources.published.conversations import COMMUNITY_ALIGNMENT, PRISM
from mmpo.pipeline.sources.published.helpsteer import HELPSTEER, HELPSTEER2, HELPSTEER3
from mmpo.pipeline.sources.published.openai import SUMMARIZE, WEBGPT
from mmpo.pipeline.sources.published.ranked import NECTAR, OASST
from mmpo.pipeline.sources.published.saferlhf import PKU_SAFERLHF
from mmpo.pipeline.sources.published.shp import SHP
from mmpo.pipeline.sources.published.ultrafeedback import ULTRAFEEDBACK, ULTRAFEEDBACK_BINARIZED
from mmpo.pipeline.sources.published.ungraded import HH_RLHF, SKYWORK, TULU, WILDFEEDBACK
from mmpo.pipeline.sources.tools.argilla_export import ARGILLA_EXPORT
from mmpo.pipeline.sources.tools.distilabel import DISTILABEL
from mmpo.pipeline.sources.tools.fastchat import FASTCHAT
from mmpo.pipeline.sources.tools.inspect_logs import INSPECT
from mmpo.pipeline.sources.tools.label_studio import LABEL_STUDIO
from mmpo.pipeline.sources.tools.mlflow import MLFLOW
from mmpo.pipeline.sources.tools.phoenix import PHOENIX
from mmpo.pipeline.sources.tools.promptfoo import PROMPTFOO
from mmpo.pipeline.tables import FEEDBACK

SOURCES: dict[str, Source] = {
    "ultrafeedback": ULTRAFEEDBACK,
    "ultrafeedback-binarized": ULTRAFEEDBACK_BINARIZED,
    "shp": SHP,
    "alpaca-eval": ALPACA_EVAL,
    "helpsteer": HELPSTEER,
    "helpsteer2": HELPSTEER2,
    "helpsteer3": HELPSTEER3,
    "hh-rlhf": HH_RLHF,
    "skywork": SKYWORK,
    "tulu": TULU,
    "wildfeedback": WILDFEEDBACK,
    "nectar": NECTAR,
    "oasst": OASST,
    "pku-saferlhf": PKU_SAFERLHF,
    "webgpt": WEBGPT,
    "summarize": SUMMARIZE,
    "arena": ARENA,
    "prism": PRISM,
    "community-alignment": COMMUNITY_ALIGNMENT,
    "rewardbench2": REWARDBENCH2,
    "rm-bench": RM_BENCH,
    "label-studio": LABEL_STUDIO,
    "argilla-export": ARGILLA_EXPORT,
    "mlflow": MLFLOW,
    "phoenix": PHOENIX,
    "inspect": INSPECT,
    "promptfoo": PROMPTFOO,
    "distilabel": DISTILABEL,
    "fastchat": FASTCHAT,
    "trl": Source(
        "trl",
        "TRL's preference format, texts or messages, with scores or a margin in columns of any name (--columns)",
        prepare=prepare_trl,
        requires=column_sets("chosen rejected"),
        fields=TRL_FIELDS,
        scaled=True,
        samples=TRL_SAMPLES,
    ),
    **{
        name: Source(
            name,
            f"{files} with named columns: one row per rating, prompt, pair or comparison",
            prepare=prepare,
            fields=FIELDS,
            scaled=True,
            samples=samples,
        )
        for name, files, prepare, samples in (
            ("jsonl", "JSON lines or a JSON array", prepare_generic, (*LISTS, *OBJECT_SAMPLES)),
            ("csv", "CSV or TSV", partial(prepare_generic, text=True), SHEETS),
            ("parquet", "Parquet or Arrow", prepare_generic, ()),
        )
    },
    "feedback": Source(
        "feedback",
        "our own FEEDBACK tables, as build --feedback-only, judges and people leave them",
        table=feedback_table,
        requires=(frozenset(FEEDBACK.names),),
        named=False,
    ),
}


def get_source(name: str) -> Source:
    """The source of a name, or of "module:function" (its `parse(row, out, options)`). Raises UserError."""
    if name in SOURCES:
        return SOURCES[name]
    if ":" not in name:
        raise unknown_name("format", name, SOURCES)
    parse = outside_function("format", name, "parse(row, out, options)")
    return Source(name, (parse.__doc__ or name).strip().split("\n")[0], parse=parse)


def outside_function(what: str, name: str, called: str = "") -> Callable[..., Any]:
    """The user's own function that "module:function" names. what: what it is for; called: how it must be called. Raises UserError."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, ValueError) as error:
        raise UserError(f"{what} {name!r}: module {module!r} can't be imported: {error}") from error
    except AttributeError as error:
        raise UserError(f"{what} {name!r}: module {module!r} has no {function!r}") from error
    if not isinstance(found, Callable):
        raise UserError(f"{what} {name!r} is no function" + (f"; it must be called as {called}" if called else ""))
    return found


def fitting(columns: Collection[str]) -> list[str]:
    """The formats that a file with these columns could be in; `jsonl` stands for all that name their columns."""
    present = frozenset(columns) | {name for name, path in OBJECTS.items() if path in columns}
    names = [
        source.name
        for source in SOURCES.values()
        if any(need <= present for need in (*source.requires, *source.folded))
        and not (source.alone and present - frozenset().union(*source.requires))
    ]
    return names + ["jsonl"] * any(present.issuperset(layout.texts + layout.grades) for layout in LAYOUTS)
