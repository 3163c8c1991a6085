"""OpenAI's comparisons: WebGPT (Nakano et al. 2021, arXiv 2112.09332) and summarize-from-feedback (Stiennon et al. 2020, 2009.01325)."""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import BadRow, FeedbackBuilder, as_number
from mmpo.pipeline.sources.literals import spelled

PEOPLE = "annotators"
CENTRED = 1e-6
AXES = ("overall", "accuracy", "coverage", "coherence")


def parse_webgpt(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a question with two answers and how much better the first one is: its score, of which the second's is the opposite."""
    question = spelled(row.get("question"))
    scores = [as_number(row.get(f"score_{side}"), f"score_{side}") for side in (0, 1)]
    if abs(sum(scores)) > CENTRED:
        raise BadRow("scores_not_opposite", {"score_0": scores[0], "score_1": scores[1]}, limited=False)
    out.prompt(question["full_text"] if isinstance(question, Mapping) and "full_text" in question else row.get("question"))  # type: ignore[arg-type]
    first, second = (out.completion(row.get(f"answer_{side}")) for side in (0, 1))
    out.comparison(first, second, scores[0], rater=options.rater or PEOPLE, kind=options.kind or "human", limit=1.0)
    out.extra({"dataset": question.get("dataset") if isinstance(question, Mapping) else None})


def parse_summarize(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a text with two summaries and a worker's choice, or with one summary and a worker's grades 1-7 (the axis evaluations)."""
    info, worker = spelled(row.get("info")), str(row.get("worker") or options.rater or PEOPLE)
    out.prompt(summary_prompt(info if isinstance(info, Mapping) else {}))
    summary = spelled(row.get("summary"))
    if isinstance(summary, Mapping):
        reply = out.completion(summary.get("text"), summary.get("policy"))
        axes = summary.get("axes")
        if not isinstance(axes, Mapping):
            raise BadRow("not_an_object", {"axes": type(axes).__name__})
        given = {aspect: axes[aspect] for aspect in AXES if aspect in axes}
        if not any(value is not None for value in given.values()):
            raise BadRow("no_grade", {"axes": sorted(map(str, axes))[:8]}, limited=False)
        for aspect, value in given.items():
            if value is None:
                out.reject("no_grade", unit="grade", limited=False, evidence={"aspect": aspect})
            else:
                out.rating(reply, value, rater=worker, kind="human", aspect=aspect, low=1.0, high=7.0)
        return
    summaries, choice = spelled(row.get("summaries")), row.get("choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, Mapping) for one in summaries):
        raise BadRow("not_a_list", {"summaries": repr(summaries)[:80], "hint": "two objects with text and policy"})
    if isinstance(choice, bool) or choice not in (0, 1):
        raise BadRow("unknown_winner", {"choice": repr(choice)[:80], "known": [0, 1]})
    first, second = (out.completion(one.get("text"), one.get("policy")) for one in summaries)
    out.comparison(first, second, 1.0 - 2 * int(choice), rater=worker, limit=1.0)
    extra = row.get("extra")
    out.extra({"confidence": extra.get("confidence") if isinstance(extra, Mapping) else None, "split": row.get("split")})


def summary_prompt(info: Mapping[str, Any]) -> str:
    r"""The text to be summarised as the published models were asked.

    >>> summary_prompt({"subreddit": "pets", "title": "Help", "post": "My cat."})
    'SUBREDDIT: r/pets\n\nTITLE: Help\n\nPOST: My cat.\n\nTL;DR:'
    """
    post, article = info.get("post"), info.get("article")
    if not isinstance(post, str) and not isinstance(article, str):
        raise BadRow("not_text", {"info": sorted(map(str, info))[:8], "hint": "info holds a post or an article"})
    names = {"SUBREDDIT: r/": info.get("subreddit"), "TITLE: ": info.get("title"), "POST: ": post, "": article}
    return "\n\n".join([*(f"{name}{told}" for name, told in names.items() if told), "TL;DR:"])


_INFO = {"id": "t3_1", "post": "Name a planet.", "title": "Planets", "subreddit": "space", "site": None, "article": None}


def _axis(text: str, overall: int) -> dict[str, Any]:
    return {"info": _INFO, "summary": {"text": text, "policy": "ref", "axes": {"overall": overall}}, "worker": "w1"}


WEBGPT = Source(
    "webgpt",
    "WebGPT's comparisons: two answers to a question and scores from -1 to 1 that are each other's opposite",
    parse=parse_webgpt,
    requires=column_sets("question answer_0 answer_1 score_0 score_1"),
    samples=(
        FormatSample(
            "a question, two answers and their scores",
            (
                {
                    "question": {"dataset": "eli5", "id": "1", "full_text": "Name a planet."},
                    "answer_0": "The moon.",
                    "answer_1": "Mars, the red one.",
                    "score_0": -0.5,
                    "score_1": 0.5,
                },
            ),
        ),
    ),
    range="-1..1",
    direction="the higher score is the better answer",
    licence="none stated on the card",
    traps={
        "relative scores": "a score is of one pair only: the same answer has another one beside another answer, so that it is no rating",
        "not opposite": "scores that do not sum to 0 are of no comparison that is known",
    },
)
SUMMARIZE = Source(
    "summarize",
    "summarize-from-feedback: two summaries of a post or article and a worker's choice, or one summary and grades 1-7",
    parse=parse_summarize,
    requires=column_sets("info summaries choice", "info summary worker"),
    samples=(
        FormatSample(
            "two summaries; `choice` says which one (0 or 1) is better",
            (
                {
                    "info": _INFO,
                    "summaries": [{"text": "The moon.", "policy": "sup1"}, {"text": "Mars, the red one.", "policy": "sup4"}],
                    "choice": 1,
                    "worker": "w1",
                    "extra": {"confidence": 8},
                },
            ),
        ),
        FormatSample("axis evaluations: a summary and a worker's grades", (_axis("Mars, the red one.", 7), _axis("The moon.", 2))),
    ),
    range="which of two; axes 1..7",
    direction="choice is the better summary's number; axes: higher is better",
    licence="none stated on the card; posts are Reddit's",
    traps={
        "choice": "choice is the place of the better summary: taken as a gap, 1 says that the first one is better",
        "confidence": "extra.confidence is not known to say how much or which one: it is kept beside the pair and no grade",
        "workers": "several workers judge the same pair: each is a rater, not another pair",
    },
)
