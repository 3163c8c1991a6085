"""Pairs that say which reply is better and not by how much: HH-RLHF, Skywork's, Tülu 3's, WildFeedback. Their margins are 1, and flagged.

Bai et al. 2022 (arXiv 2204.05862), Liu et al. 2024 (arXiv 2410.18451), Lambert et al. 2024 (arXiv 2411.15124). A judge or a reward model
can grade them: read with --feedback-only they hold no grade at all.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder
from mmpo.pipeline.sources.messages import split_pair

RATER = "labels"
GRADES = (
    "score_chosen", "score_rejected", "chosen_score", "rejected_score", "chosen_rating", "rejected_rating", "chosen-rating",
    "rejected-rating", "chosen_avg_rating", "rejected_avg_rating", "margin", "quality_margin",
)  # fmt: skip
"""Columns of pairs that have grades after all."""


def parse_ungraded(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions, kind: str = "human") -> None:
    """Add a pair of texts with turns or of conversations, the prompt inside both or beside them."""
    if options.need_scores and (graded := [name for name in GRADES if row.get(name) is not None]):
        hint = "these pairs have grades, which this format would take for none: --format ultrafeedback-binarized or trl reads them"
        raise BadRow("graded_pair", {"columns": ", ".join(graded), "hint": hint})
    given = row.get("conversations")
    chosen, rejected = (row.get(name) for name in ("chosen", "rejected"))
    if given is not None:
        chosen, rejected = ([{"role": "assistant", **one}] if isinstance(one, Mapping) else one for one in (chosen, rejected))
    prompt, chosen, rejected = split_pair(row.get("prompt") if given is None else given, chosen, rejected, out.count)
    out.prompt(prompt)
    sides = ((chosen, row.get("chosen_model")), (rejected, row.get("rejected_model")))
    first, second = (out.completion(text, model) for text, model in sides)
    constant_margins(out, options, [first], [second], kind)
    out.extra({"source": row.get("source")})


def constant_margins(
    out: FeedbackBuilder, options: SourceOptions, better: Sequence[int], worse: Sequence[int], kind: str = "human"
) -> None:
    """Each of the better replies before each of the worse ones by 1, noted; nothing where no grades are asked for."""
    if options.need_scores:
        out.count("constant_margins")
        for first in better:
            for second in worse:
                out.comparison(first, second, 1.0, rater=options.rater or RATER, kind=options.kind or kind, limit=1.0)


def _turns(reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Name a planet."}, {"role": "assistant", "content": reply}]


_TEXT = "\n\nHuman: Name a planet.\n\nAssistant: "
_PAIR = {"chosen": _turns("Mars, the red one."), "rejected": _turns("The moon.")}
_ABOUT: dict[str, Any] = {"range": "none: all margins are 1", "direction": "chosen before rejected", "alone": True}
_TRAPS = {
    "no grades": "there is no grade in it: all margins are 1 and say nothing of how much better a reply is",
    "different prompts": "chosen and rejected must share all but the last reply: in some pairs they differ earlier",
}

HH_RLHF = Source(
    "hh-rlhf",
    "HH-RLHF: pairs of conversations as texts with the turns Human and Assistant, without grades",
    parse=parse_ungraded,
    requires=column_sets("chosen rejected"),
    samples=(FormatSample("two conversations", ({"chosen": f"{_TEXT}Mars, the red one.", "rejected": f"{_TEXT}The moon."},)),),
    licence="MIT; harmless-base holds offensive text",
    traps={
        **_TRAPS,
        "empty replies": "some chosen replies are empty",
        "two turns in a row": "a conversation may have two Assistant turns in a row: the last one is the reply",
    },
    **_ABOUT,
)
SKYWORK = Source(
    "skywork",
    "Skywork-Reward-Preference: pairs of conversations chosen from several sets, without grades",
    parse=partial(parse_ungraded, kind="ai"),
    requires=column_sets("chosen rejected source"),
    samples=(FormatSample("two conversations and the set they come from", ({**_PAIR, "source": "magpie"},)),),
    licence="of each source its own",
    traps=_TRAPS,
    **_ABOUT,
)
TULU = Source(
    "tulu",
    "Tülu 3's preference mixtures: a prompt and pairs of conversations, without grades",
    parse=partial(parse_ungraded, kind="ai"),
    requires=column_sets("id source prompt chosen rejected", "id prompt chosen rejected chosen_model rejected_model"),
    samples=(
        FormatSample(
            "a prompt and two conversations that begin with it",
            ({"id": "1", "source": "tulu", "prompt": "Name a planet.", **_PAIR},),
        ),
    ),
    licence="ODC-BY 1.0; replies by models with terms of their own",
    traps=_TRAPS,
    **_ABOUT,
)
WILDFEEDBACK = Source(
    "wildfeedback",
    "WildFeedback and others laid out like it: a conversation, and two replies as one message each, without grades",
    parse=partial(parse_ungraded, kind="ai"),
    requires=column_sets("conversations chosen rejected"),
    samples=(
        FormatSample(
            "a conversation with from and value, and two replies",
            (
                {
                    "conversations": [{"from": "human", "value": "Name a planet."}],
                    "chosen": {"from": "gpt", "value": "Mars, the red one."},
                    "rejected": {"from": "gpt", "value": "The moon."},
                },
            ),
        ),
    ),
    licence="ODC-BY 1.0; replies by models with terms of their own",
    traps={
        "no grades": _TRAPS["no grades"],
        "conversation": "the prompt is the whole conversation, whose turns are from human and gpt",
    },
    **_ABOUT,
)
