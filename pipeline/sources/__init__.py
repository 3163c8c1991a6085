"""The formats that feedback comes in. A new one is a file with a `parse` function and one line in SOURCES."""

from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from typing import Any

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.sources.alpaca_eval import ALPACA_EVAL_SAMPLE, log_odds, parse_alpaca_eval
from mmpo.pipeline.sources.base import (
    Collected,
    FormatSample,
    RowParser,
    RowReader,
    Source,
    SourceOptions,
    check_options,
    collect,
    collect_parts,
)
from mmpo.pipeline.sources.builder import KINDS, BadRow, FeedbackBuilder
from mmpo.pipeline.sources.cells import OBJECTS
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
from mmpo.pipeline.sources.helpsteer3 import HELPSTEER3_SAMPLE, parse_helpsteer3
from mmpo.pipeline.sources.messages import as_reply, read_calls, read_message, split_pair
from mmpo.pipeline.sources.shp import SHP_SAMPLE, parse_shp
from mmpo.pipeline.sources.ultrafeedback import ULTRAFEEDBACK_SAMPLE, parse_ultrafeedback
from mmpo.pipeline.sources.ultrafeedback_binarized import BINARIZED_SAMPLE, parse_ultrafeedback_binarized
from mmpo.pipeline.tables import FEEDBACK


def _columns(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in sets)


SOURCES: dict[str, Source] = {
    "ultrafeedback": Source(
        "ultrafeedback",
        "UltraFeedback as published: four completions per prompt, overall score 1-10 and four aspects 1-5 by GPT-4",
        parse=parse_ultrafeedback,
        requires=_columns("instruction completions"),
        named=False,
        samples=(ULTRAFEEDBACK_SAMPLE,),
    ),
    "ultrafeedback-binarized": Source(
        "ultrafeedback-binarized",
        "UltraFeedback in pairs with two scores: HuggingFaceH4, allenai (1-10) and Argilla (1-5)",
        parse=parse_ultrafeedback_binarized,
        requires=_columns(
            "chosen rejected score_chosen score_rejected",
            "chosen rejected chosen-rating rejected-rating",
            "chosen rejected chosen_avg_rating rejected_avg_rating",
        ),
        named=False,
        samples=(BINARIZED_SAMPLE,),
    ),
    "shp": Source(
        "shp",
        "Stanford Human Preferences: two Reddit comments and their votes (heavy tails: normalise with log or rank)",
        parse=parse_shp,
        requires=_columns("history human_ref_A human_ref_B score_A score_B"),
        samples=(SHP_SAMPLE,),
    ),
    "alpaca-eval": Source(
        "alpaca-eval",
        "AlpacaEval annotations: a judge's preference over one reference as a log-odds, the reference 0",
        parse=parse_alpaca_eval,
        requires=_columns("instruction output_1 output_2 preference"),
        clipped=True,
        samples=(ALPACA_EVAL_SAMPLE,),
    ),
    "helpsteer3": Source(
        "helpsteer3",
        "HelpSteer3's preferences: how much better one of two replies is, -3 to 3, by up to three people each",
        parse=parse_helpsteer3,
        requires=_columns("context response1 response2 overall_preference"),
        named=False,
        samples=(HELPSTEER3_SAMPLE,),
    ),
    "trl": Source(
        "trl",
        "TRL's preference format, texts or messages, with scores or a margin in columns of any name (--columns)",
        prepare=prepare_trl,
        requires=_columns("chosen rejected"),
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
    present = set(columns) | {name for name, path in OBJECTS.items() if path in columns}
    names = [source.name for source in SOURCES.values() if any(need <= present for need in source.requires)]
    return names + ["jsonl"] * any(present.issuperset(layout.texts + layout.grades) for layout in LAYOUTS)
