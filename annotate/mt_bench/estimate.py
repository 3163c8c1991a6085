"""What a run of MT-bench will take and send, and what its journal holds, without a single request: `--dry-run`."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from mmpo.annotate.client import EndpointSettings, Journal, Request
from mmpo.annotate.generate.estimate import left_of
from mmpo.annotate.generate.requests import Takes
from mmpo.annotate.generate.run import takes_key
from mmpo.annotate.mt_bench.files import TURNS
from mmpo.annotate.mt_bench.plan import BenchPlan
from mmpo.annotate.mt_bench.requests import Answering, Grading, ModelAnswers, answers_of, open_requests
from mmpo.annotate.mt_bench.run import known_capabilities


def estimate(plan: BenchPlan) -> dict[str, Any]:
    """Requests, tokens, cost and time of a run, and what its journal has of it already.

    Returns {"requests", "answered", "left", "questions", "cost_at_most", "seconds", "journal", "models": [...]}, a row for every model and
    judge, as for `mmpo generate`. Prompt tokens are estimates: of what follows on answers that are not there yet, the most that they can
    be, as reply tokens and cost are.
    """
    journal = Journal(plan.journal, read_only=True) if plan.journal.is_file() else None
    with journal or nullcontext():
        known: dict[str, ModelAnswers] = {}
        rows = [_model(plan, one, journal, known) for one in plan.models]
        rows += [_judge(plan, name, journal, known) for name in plan.judges]
    costs, seconds = [row["cost_at_most"] for row in rows if not row["local"]], [row["seconds"] for row in rows]
    return {
        **{name: sum(row[name] for row in rows) for name in ("requests", "answered", "left")},
        "questions": len(plan.questions),
        "cost_at_most": None if None in costs else sum(costs),
        "seconds": None if None in seconds else sum(seconds),
        "journal": str(plan.journal) if journal else None,
        "models": rows,
    }


def _model(plan: BenchPlan, model: Any, journal: Journal | None, known: dict[str, ModelAnswers]) -> dict[str, Any]:
    takes = journal.meta(takes_key(model, plan.hottest)) if journal else None
    one = Answering(model, plan.options, Takes(**takes) if takes else Takes())
    known[model.name] = found = answers_of(one, plan.questions, journal if plan.options.cache else None)
    length = one.sampling(plan.questions[0]).length
    left = [request.prompt_tokens for turn in range(TURNS) for request in _left(one, plan, found, turn)]
    # Second turns whose first answers are not there yet: the question, the longest answer, the second question.
    for question in plan.questions:
        if not found.texts(question):
            left.append(one.request(question, [""]).prompt_tokens + length)
    return _row(plan, model, "answers", TURNS * len(plan.questions), left, length, journal)


def _left(one: Answering, plan: BenchPlan, found: ModelAnswers, turn: int) -> list[Request]:
    asked = dict(open_requests(one, plan.questions, found, turn))
    return [asked[str(q.id)] for q in plan.questions if str(q.id) in asked and len(found.texts(q)) == turn]


def _judge(plan: BenchPlan, name: str, journal: Journal | None, known: dict[str, ModelAnswers]) -> dict[str, Any]:
    plain = Grading(name, plan.judges[name], plan.options, plan.prompts)
    found = known_capabilities(plain, journal)
    grading = plain if found is None else Grading(name, plain.judge, plan.options, plan.prompts, found)
    models = plan.contestants(known)
    here = [grading.request(question, model.texts(question), turn)[0] for model, question, turn in plan.graded(models)]
    answered = journal.readings([request.key for request in here]) if journal and plan.options.cache else {}
    left = [request.prompt_tokens for request in here if request.key not in answered]
    unwritten: list[int] = []
    for model in models:
        for question in plan.questions if not model.stored else ():  # what a file of answers lacks never comes
            texts = [*model.texts(question), *[""] * TURNS][:TURNS]
            for turn in range(len(model.texts(question)) + 1, TURNS + 1):
                answers = (turn - len(model.texts(question))) * plan.options.max_tokens
                unwritten.append(grading.request(question, texts, turn)[0].prompt_tokens + answers)
    length = plan.options.judge_max_tokens + grading.found.room
    return _row(plan, plain.judge, "grades", len(here) + len(unwritten), left + unwritten, length, journal)


def _row(
    plan: BenchPlan, model: EndpointSettings, what: str, requests: int, left: Sequence[int], length: int, journal: Journal | None
) -> dict[str, Any]:
    """left: prompt tokens of the requests that are left; length: the longest reply."""
    found = left_of(model, plan.options, plan.prices, journal, requests, len(left), sum(left), length)
    return {**found, "asked_for": what, "local": model.name in plan.local}
