"""What a run will take, and what a journal holds, without a single request: `--dry-run` and `--status`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mmpo.annotate.client.journal import Journal
from mmpo.annotate.judge.capabilities import Abilities
from mmpo.annotate.judge.one_judge import needs_scores
from mmpo.annotate.judge.options import Judge
from mmpo.annotate.judge.questions import Questions
from mmpo.annotate.judge.run import Prepared, abilities_key
from mmpo.annotate.judge.summary import nothing_to_ask
from mmpo.annotate.rows import rows_of
from mmpo.pipeline.errors import UserError

__all__ = ["look"]

LOOKED_AT = 2_000
"""Prompts whose requests a dry run renders; what the others take follows from them."""
SHORT_REPLY_SECONDS = 1.0
REASONED_REPLY_SECONDS = 15.0
"""Assumed for a reply where the journal has not measured any of this judge."""


@dataclass
class _Looked:
    prompts: int = 0
    requests: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    left_prompt_tokens: int = 0
    left_reply_tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def look(plan: Prepared, *, whole: bool) -> dict[str, Any]:
    """Requests, tokens, cost and time of a run, and what its journal has of it already.

    whole: look at every prompt (`--status`) instead of at an even sample (`--dry-run`). Returns {"requests", "answered", "left",
    "prompts", "sampled", "cost", "left_cost", "seconds", "judges": [...]}; token counts are estimates. Raises UserError.
    """
    sizes = plan.feedback.sizes()
    journal = Journal(plan.journal, read_only=True) if plan.journal.is_file() else None
    try:
        judges = [_judge(plan, one, journal, sizes, whole) for one in plan.judges]
    finally:
        if journal is not None:
            journal.close()
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
        "left_cost": None if None in costs else sum(costs),
        "seconds": max((row["seconds"] for row in judges), default=0.0),
        "journal": str(plan.journal) if journal else None,
        "judges": judges,
    }


def _judge(plan: Prepared, judge: Judge, journal: Journal | None, sizes: Any, whole: bool) -> dict[str, Any]:
    known = journal.meta(abilities_key(judge, plan.options)) if journal else None
    abilities = Abilities(**known) if known else Abilities(logprobs=plan.options.logprobs != "off", several=True)
    questions = Questions(judge, plan.options, abilities)
    requests = questions.count(sizes)
    every = 1 if whole else max(1, len(sizes) // LOOKED_AT)
    seen = _looked(plan, questions, journal, every)
    share = 1.0 if every == 1 else requests / max(seen.requests, 1)
    requests = seen.requests if every == 1 else requests
    spent = (journal.spent() if journal else {}).get(judge.name, {})
    answered = round(seen.answered * share)
    price = plan.prices.of(judge.model, batch=plan.options.batch)
    # Replies end at their grade, long before the limit: a few tokens, or a third of the room for reasoning.
    replies = seen.left_reply_tokens * share * (0.35 if plan.options.reasoning or plan.options.template else 0.25)
    prompts = seen.left_prompt_tokens * share
    return {
        "rater": judge.name,
        "model": judge.model,
        "requests": requests,
        "answered": answered,
        "failed": dict(seen.failed),
        "left": requests - answered,
        "sampled": share != 1.0,
        "probed": bool(known),
        "logprobs": abilities.logprobs,
        "prompt_tokens": round(prompts),
        "reply_tokens": round(replies),
        "left_cost": price.of(prompts, replies) if price else None,
        "seconds": _seconds(plan, judge, spent, requests - answered, prompts + replies),
        "spent_tokens": int(spent.get("prompt_tokens", 0) + spent.get("reply_tokens", 0)),
        "spent_cost": spent.get("cost", 0.0) if price else None,
        "batches_open": _open_batches(journal, judge.name),
    }


def _looked(plan: Prepared, questions: Questions, journal: Journal | None, every: int) -> _Looked:
    """Render the requests of every so-manieth prompt and look them up."""
    seen, place = _Looked(), 0
    scores = needs_scores(plan.options)
    for table in plan.feedback.tables():
        rows = [
            row for row in rows_of(table, scores=scores, reference=plan.options.reference) if plan.feedback.wanted(row.prompt_id)
        ]
        chosen = [row for number, row in enumerate(rows, place) if number % every == 0]
        place += len(rows)
        requests = [request for row in chosen for question in questions.of(row) for request in question.requests]
        keys = [request.key for request in requests]
        kept = journal.answers(keys) if journal and plan.options.cache else {}
        known = {request.key for request in requests if questions.usable(request, kept.get(request.key))}
        if journal:
            seen.failed.update(failure.reason for failure in journal.failures([key for key in keys if key not in known]).values())
        seen.prompts += len(chosen)
        seen.requests += len(requests)
        for request in requests:
            if request.key in known:
                seen.answered += 1
            else:
                seen.left_prompt_tokens += request.prompt_tokens
                seen.left_reply_tokens += request.reply_tokens
    return seen


def _seconds(plan: Prepared, judge: Judge, spent: dict[str, float], left: int, tokens: float) -> float:
    """Time for what is left: latency over slots, or what the rates allow, whichever is longer."""
    options = plan.options
    assumed = REASONED_REPLY_SECONDS if options.reasoning else SHORT_REPLY_SECONDS
    measured = spent["seconds"] / spent["requests"] if spent.get("requests") and spent.get("seconds") else assumed
    times = [left * measured / (judge.concurrency or options.concurrency)]
    if judge.requests_per_minute:
        times.append(60 * left / judge.requests_per_minute)
    if judge.tokens_per_minute:
        times.append(60 * tokens / judge.tokens_per_minute)
    return max(times)


def _open_batches(journal: Journal | None, judge: str) -> int:
    if journal is None:
        return 0
    query = "SELECT count(*) FROM batches WHERE judge = ? AND status NOT IN ('read', 'lost')"
    return sum(int(count) for (count,) in journal.rows(query, (judge,)))
