"""What a run will take and send, and what a journal holds, without a single request: `--dry-run`, `--status` and `--show`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from mmpo.annotate.batch import open_batches
from mmpo.annotate.client import Answer, Journal
from mmpo.annotate.judge.capabilities import Capabilities
from mmpo.annotate.judge.options import Judge
from mmpo.annotate.judge.output import nothing_to_ask
from mmpo.annotate.judge.questions import PosedQuestion, Questions, usable
from mmpo.annotate.judge.run import JudgePlan, capabilities_key
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.errors import UserError

SAMPLED_PROMPTS = 2_000
"""Prompts whose requests a dry run renders; what the others take follows from them."""
SHORT_REPLY_SECONDS = 1.0
REASONED_REPLY_SECONDS = 15.0
"""Assumed for a reply where the journal has not measured any of this judge."""
SHORT_REPLY_SHARE, REASONED_REPLY_SHARE = 0.25, 0.35
"""Of the longest reply that a request allows: replies end at their grade, long before it."""
MEASURED_FROM = 5
"""Replies of a judge in the journal from which on the tokens of the others follow, its thinking among them."""


PosedInRow = tuple[FeedbackRow, PosedQuestion]


@dataclass
class Sample:
    """What the rendered requests are, by what the journal has of them."""

    requests: int = 0
    answered: int = 0
    left_prompt_tokens: int = 0
    left_reply_tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def estimate(plan: JudgePlan, *, whole: bool) -> dict[str, Any]:
    """Requests, tokens, cost and time of a run, and what its journal has of it already.

    whole: look at every prompt (`--status`) instead of at an even sample (`--dry-run`). Returns {"requests", "answered", "left",
    "prompts", "sampled", "prompt_tokens", "reply_tokens", "left_cost", "seconds", "judges": [...]}; token counts are estimates, of replies
    as the judge's earlier ones in the journal were billed (reply_tokens_measured), thinking included. Raises UserError.
    """
    sizes = plan.feedback.sizes()
    journal = Journal(plan.journal, read_only=True) if plan.journal.is_file() else None
    with journal or nullcontext():
        judges = [_judge(plan, one, journal, sizes, whole) for one in plan.judges]
    total = sum(row["requests"] for row in judges)
    if not total:
        raise UserError(nothing_to_ask(plan.options))
    costs = [row["left_cost"] for row in judges]
    return {
        "requests": total,
        "answered": sum(row["answered"] for row in judges),
        "left": sum(row["left"] for row in judges),
        "prompts": len(sizes),
        "sampled": any(row["sampled"] for row in judges),
        **{name: sum(row[name] for row in judges) for name in ("prompt_tokens", "reply_tokens")},
        "left_cost": None if None in costs else sum(costs),
        "seconds": max((row["seconds"] for row in judges), default=0.0),
        "journal": str(plan.journal) if journal else None,
        "judges": judges,
    }


def rendered(plan: JudgePlan, count: int) -> list[dict[str, Any]]:
    """So many requests of each judge as they would be sent, with the replies that the journal has to them; nothing is asked.

    Those that have a reply come first, then one of each prompt in the order of the input. Returns [{"rater", "prompt_id", "shown" (ids of
    completions), "aspect", "probed", "body", "replies": [{"text", "thinking", "finish", "grades" or "reason"}]}]; "probed" says whether
    the endpoint's abilities, on which the parameters depend, are known. Raises UserError: there is nothing to ask.
    """
    journal = Journal(plan.journal, read_only=True) if plan.journal.is_file() else None
    with journal or nullcontext():
        found = [one for judge in plan.judges for one in _rendered(plan, judge, journal, count)]
    if not found:
        raise UserError(nothing_to_ask(plan.options))
    return found


def _rendered(plan: JudgePlan, judge: Judge, journal: Journal | None, count: int) -> list[dict[str, Any]]:
    questions, probed = _questions(plan, judge, journal)
    replied: list[PosedInRow] = []
    first: list[PosedInRow] = []
    others: list[PosedInRow] = []
    for rows in plan.feedback.rows(scores=questions.needs_scores, reference=plan.options.reference):
        posed = [(row, list(questions.of(row))) for row in rows]
        have = _answers(journal, [one for _, asked in posed for one in asked])
        for row, asked in posed:
            replied += [(row, one) for one in asked if any(request.key in have for request in one.requests)]
            for kept, more in ((first, asked[:1]), (others, asked[1:])):
                kept += [(row, one) for one in more][: count - len(kept)]
        if len(replied) >= count or (journal is None and len(first) >= count):
            break
    keys = {one.requests[0].key for _, one in replied}
    chosen = [*replied, *(pair for pair in (*first, *others) if pair[1].requests[0].key not in keys)][:count]
    answers = _answers(journal, [one for _, one in chosen])
    return [
        {
            "rater": judge.name,
            "prompt_id": row.prompt_id,
            "shown": [row.ids[place] for place in one.question.shown],
            "aspect": one.question.aspect,
            "probed": probed,
            "body": dict(one.requests[0].body),
            "replies": [
                reply for request in one.requests if request.key in answers
                for reply in _replies(questions, one, answers[request.key])
            ],
        }
        for row, one in chosen
    ]  # fmt: skip


def _answers(journal: Journal | None, posed: list[PosedQuestion]) -> dict[bytes, Answer]:
    """What a journal has of these questions, read or not, by the requests' keys."""
    keys = [request.key for one in posed for request in one.requests]
    if journal is None:
        return {}
    failed = {key: failure.answer for key, failure in journal.failures(keys).items() if failure.answer}
    return {**failed, **journal.answers(keys)}


def _replies(questions: Questions, posed: PosedQuestion, answer: Answer) -> Iterator[dict[str, Any]]:
    for choice, read in zip(answer.choices, questions.reader(posed.question).each(answer.choices)):
        found = (
            {"reason": read} if isinstance(read, str) else {"grades": {name: grade.value for name, grade in read.grades.items()}}
        )
        yield {"text": choice.text, "thinking": choice.thinking, "finish": choice.finish, **found}


def _questions(plan: JudgePlan, judge: Judge, journal: Journal | None) -> tuple[Questions, bool]:
    """A judge's questions, and whether the journal knows what its endpoint can do; else the best is assumed."""
    known = journal.meta(capabilities_key(judge, plan.options)) if journal else None
    assumed = Capabilities(logprobs=plan.options.logprobs != "off", several=True)
    return Questions(judge, plan.options, Capabilities(**known) if known else assumed), bool(known)


def _judge(plan: JudgePlan, judge: Judge, journal: Journal | None, sizes: np.ndarray, whole: bool) -> dict[str, Any]:
    options = plan.options
    questions, probed = _questions(plan, judge, journal)
    every = 1 if whole else max(1, len(sizes) // SAMPLED_PROMPTS)
    sample = _sample(plan, questions, journal, every)
    requests = sample.requests if every == 1 else questions.count(sizes)
    share = requests / max(sample.requests, 1)
    answered = round(sample.answered * share)
    price = plan.prices.of(judge.model, batch=options.batch)
    reply_share = REASONED_REPLY_SHARE if options.reasoning or options.template else SHORT_REPLY_SHARE
    prompts, replies = sample.left_prompt_tokens * share, sample.left_reply_tokens * share * reply_share
    spent = (journal.spent() if journal else {}).get(judge.name, {})
    kept, tokens = (journal.replied() if journal else {}).get(judge.name, (0, 0.0))
    measured = kept >= MEASURED_FROM
    if measured:
        replies = (requests - answered) * tokens
    return {
        "rater": judge.name,
        "model": judge.model,
        "requests": requests,
        "answered": answered,
        "failed": dict(sample.failed),
        "left": requests - answered,
        "sampled": share != 1.0,
        "probed": probed,
        "logprobs": questions.capabilities.logprobs,
        "prompt_tokens": round(prompts),
        "reply_tokens": round(replies),
        "reply_tokens_measured": measured,
        "thinks": questions.thinks,
        "left_cost": price.of(prompts, replies) if price else None,
        "seconds": _seconds(plan, judge, spent, requests - answered, prompts + replies),
        "spent_tokens": int(spent.get("prompt_tokens", 0) + spent.get("reply_tokens", 0)),
        "spent_cost": spent.get("cost", 0.0) if price else None,
        "batches_open": open_batches(journal, judge.name) if journal else 0,
    }


def _sample(plan: JudgePlan, questions: Questions, journal: Journal | None, every: int) -> Sample:
    """Render the requests of one prompt in so many and look them up."""
    sample, place = Sample(), 0
    for rows in plan.feedback.rows(scores=questions.needs_scores, reference=plan.options.reference):
        chosen = islice(rows, -place % every, None, every)
        place += len(rows)
        requests = [request for row in chosen for posed in questions.of(row) for request in posed.requests]
        sample.requests += len(requests)
        found = questions.known(requests, journal) if journal else None
        if found:
            sample.failed.update(failure.reason for failure in found.failures.values())
        for request in requests:
            if found and plan.options.cache and usable(found.replies.get(request.key)):
                sample.answered += 1
            else:
                sample.left_prompt_tokens += request.prompt_tokens
                sample.left_reply_tokens += request.reply_tokens
    return sample


def _seconds(plan: JudgePlan, judge: Judge, spent: dict[str, float], left: int, tokens: float) -> float:
    """Time for what is left: latency over slots, or what the rates allow, whichever is longer."""
    assumed = REASONED_REPLY_SECONDS if plan.options.reasoning else SHORT_REPLY_SECONDS
    measured = spent["seconds"] / spent["requests"] if spent.get("seconds") else assumed
    times = [left * measured / (judge.concurrency or plan.options.concurrency)]
    if judge.requests_per_minute:
        times.append(60 * left / judge.requests_per_minute)
    if judge.tokens_per_minute:
        times.append(60 * tokens / judge.tokens_per_minute)
    return max(times)
