"""RewardBench 2 (arXiv 2506.01937) and RM-Bench (arXiv 2410.16184): correct and incorrect replies in lists, without grades."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmpo.pipeline.metrics import listed_texts
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.literals import spelled
from mmpo.pipeline.sources.messages import read_conversation
from mmpo.pipeline.sources.published.ungraded import constant_margins


def parse_lists(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions, name: str, group: str) -> None:
    """Add a prompt with its correct and incorrect replies, every correct one before every incorrect one."""
    sides = [spelled(row.get(name)) for name in ("chosen", "rejected")]
    for side, texts in zip(("chosen", "rejected"), sides):
        if not listed_texts(texts):
            raise BadRow("not_a_list", {side: repr(texts)[:80], "hint": f"{name} has lists of replies"})
    out.prompt(read_conversation(row.get("prompt")))
    better, worse = ([out.completion(text) for text in dict.fromkeys(texts)] for texts in sides)  # type: ignore[union-attr]
    if set(better) & set(worse):
        raise BadRow("identical_texts", limited=False)
    constant_margins(out, options, better, worse)
    out.count("evaluation_set")
    out.extra({group: row.get(group), "contaminates": name})


_ROW = {"id": "1", "prompt": "Name a planet."}
_ABOUT = {"range": "none: all margins are 1", "direction": "chosen before rejected"}
_TRAPS = {
    "evaluation": "it is what models are measured on: rows say so (`contaminates`), and a build warns",
    "correct replies": "chosen is a list: pairs are of one of it and one of rejected, never of two correct replies",
}

REWARDBENCH2 = Source(
    "rewardbench2",
    "RewardBench 2 (evaluation): correct and incorrect replies; `mmpo evaluate --suite rewardbench2` measures on it",
    parse=partial(parse_lists, name="rewardbench2", group="subset"),
    requires=column_sets("prompt chosen rejected subset num_correct", "prompt chosen rejected subset additional_metadata"),
    samples=(
        FormatSample(
            "a prompt with its correct and incorrect replies",
            ({**_ROW, "chosen": ["Mars, the red one."], "rejected": ["The moon."], "num_correct": 1, "subset": "Factuality"},),
        ),
    ),
    licence="ODC-BY 1.0; replies by models with terms of their own",
    traps=_TRAPS,
    **_ABOUT,
)
RM_BENCH = Source(
    "rm-bench",
    "RM-Bench (evaluation): three correct and three incorrect replies of rising style; `mmpo evaluate --suite rm-bench` measures on it",
    parse=partial(parse_lists, name="rm-bench", group="domain"),
    requires=column_sets("prompt chosen rejected domain"),
    samples=(
        FormatSample(
            "a prompt with its replies by style: short, long, and long with Markdown",
            ({**_ROW, "domain": "chat", "chosen": ["Mars, the red one."], "rejected": ["The moon."]},),
        ),
    ),
    licence="ODC-BY 1.0",
    traps={**_TRAPS, "styles": "the three replies of a side differ in style alone: all nine pairs count, not those of one style"},
    **_ABOUT,
)
