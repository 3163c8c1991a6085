"""What a run of generating will take and send, and what its journal holds, without a single request: `--dry-run`."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

from mmpo.annotate.asking import AskingOptions
from mmpo.annotate.batch import open_batches
from mmpo.annotate.client import EndpointSettings, Journal, Prices
from mmpo.annotate.generate.options import SampledModel
from mmpo.annotate.generate.output import unanswered
from mmpo.annotate.generate.prompts import unanswerable
from mmpo.annotate.generate.requests import Sampling, Takes
from mmpo.annotate.generate.run import GeneratePlan, takes_key
from mmpo.pipeline.errors import UserError

ROWS_AT_ONCE = 256


def estimate(plan: GeneratePlan) -> dict[str, Any]:
    """Requests, tokens, cost and time of a run, and what its journal has of it already.

    Returns {"requests", "answered", "left", "prompts", "unanswerable", "cost_at_most", "seconds", "journal", "models": [...]}. Prompt
    tokens are estimates; reply tokens and cost (of models at endpoints) are the most that they can be; seconds are None where the journal
    has measured no request of that model yet. Raises UserError: there is nothing to ask.
    """
    journal = Journal(plan.journal, read_only=True) if plan.journal.is_file() else None
    with journal or nullcontext():
        models = [_model(plan, one, journal) for one in plan.models]
    if not sum(row["requests"] for row in models):
        raise UserError(unanswered(plan.feedback, plan.options))
    reasons = Counter(unanswerable(row) for rows in plan.feedback.rows(scores=False, reference=None) for row in rows)
    costs, seconds = [row["cost_at_most"] for row in models if not row["local"]], [row["seconds"] for row in models]
    return {
        **{name: sum(row[name] for row in models) for name in ("requests", "answered", "left")},
        "prompts": reasons.total(),
        "unanswerable": {name: count for name, count in reasons.items() if name},
        "cost_at_most": None if None in costs or not costs else sum(costs),
        "seconds": None if None in seconds else max(seconds),
        "journal": str(plan.journal) if journal else None,
        "models": models,
    }


def _model(plan: GeneratePlan, model: SampledModel, journal: Journal | None) -> dict[str, Any]:
    known = journal.meta(takes_key(model, plan.options)) if journal else None
    sampling = Sampling(model, plan.options, Takes(**known) if known else Takes())
    requests = answered = prompt_tokens = 0
    failed: Counter[str] = Counter()
    for rows in plan.feedback.rows(ROWS_AT_ONCE, scores=False, reference=None):
        asked = [request for row in rows for request in sampling.of(row)]
        keys = [request.key for request in asked]
        have = journal.readings(keys) if journal and plan.options.cache else {}
        failed.update(failure.reason for failure in journal.failures(keys).values()) if journal else None
        requests, answered = requests + len(asked), answered + len(have)
        prompt_tokens += sum(request.prompt_tokens for request in asked if request.key not in have)
    found = left_of(model, plan.options, plan.prices, journal, requests, requests - answered, prompt_tokens, sampling.length)
    return {**found, "local": model.name in plan.local, "failed": dict(failed)}


def left_of(
    model: EndpointSettings, options: AskingOptions, prices: Prices, journal: Journal | None,
    requests: int, left: int, prompt_tokens: int, length: int,
) -> dict[str, Any]:  # fmt: skip
    """What a dry run says of one model. left: of its requests, with so many prompt tokens; length: the longest reply in tokens."""
    price = prices.of(model.model, batch=options.batch)
    spent = (journal.spent() if journal else {}).get(model.name, {})
    measured = spent["seconds"] / spent["requests"] if spent.get("seconds") else None
    return {
        "name": model.name,
        "model": model.model,
        "requests": requests,
        "answered": requests - left,
        "left": left,
        "prompt_tokens": prompt_tokens,
        "reply_tokens_at_most": left * length,
        "cost_at_most": price.of(prompt_tokens, left * length) if price else None,
        "spent_cost": spent.get("cost", 0.0) if price else None,
        "seconds": None if measured is None else left * measured / (model.concurrency or options.concurrency),
        "batches_open": open_batches(journal, model.name) if journal else 0,
    }
