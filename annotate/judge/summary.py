"""The end of a judging run: the folder, its manifest, and what is told of each judge."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpo.annotate.client.journal import Journal
from mmpo.annotate.client.scheduler import Stop
from mmpo.annotate.judge.one_judge import Running, needs_scores
from mmpo.annotate.judge.options import JudgeOptions, public_url
from mmpo.annotate.judge.output import Written, write_feedback
from mmpo.annotate.rows import Feedback
from mmpo.pipeline.accounting import Ledger
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.storage import card, digest, read_manifest, replacing, write_manifest

__all__ = ["finish", "nothing_to_ask"]

NOT_OF_THE_RECIPE = (
    "journal",
    "concurrency",
    "timeout",
    "retries",
    "patience",
    "batch_poll",
    "requests_per_minute",
    "tokens_per_minute",
)
"""Options that change how fast or where, never what comes out."""
OF_THE_USER = ("invalid_api_key", "forbidden", "not_found", "model_not_found", "account_deactivated")


def finish(
    feedback: Feedback, out: Path, options: JudgeOptions, runs: Sequence[Running], journal: Journal, stop: Stop
) -> dict[str, Any]:
    """Write FEEDBACK with the grades; the summary. Raises where there is no grade at all to write."""
    before = read_manifest(feedback.folder)
    recipe = {
        "judge": {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_OF_THE_RECIPE},
        "judges": [_described(run) for run in runs],
        "feedback": before.get("recipe"),
    }
    recipe["judge"]["base_url"] = public_url(options.base_url)
    inputs = [{"name": f"{feedback.folder.name}/{path.name}", "digest": digest(path)} for path in feedback.files]
    metadata = {"recipe": recipe, "inputs": inputs}
    with replacing(out) as folder:
        written = write_feedback(feedback, [run.questions for run in runs], journal, folder, metadata, scores=needs_scores(options))
        if not sum(written.grades.values()):
            _refuse(runs, stop, written, journal)
        ledger = _ledger(written)
        rows = {"feedback": written.rows}
        (folder / "README.md").write_text(card(["feedback"], rows, recipe, feedback=True), encoding="utf-8")
        told = [_told(run, written, journal) for run in runs]
        values = {"kind": "feedback", **metadata, "prompts": written.rows, "rows": rows, "counts": ledger.as_json(), "judges": told}
        write_manifest(folder, values)
    not_asked = {reason: count for reason, count in written.not_asked.items() if count}
    finished = not stop.reason and not any(row["left"] or row["failed"] for row in told)
    return {
        "out": str(out), "prompts": written.rows, "finished": finished, "stopped": stop.reason or None, "message": stop.message or None,
        "replaced": written.replaced, "not_asked": not_asked,
        "cost": sum(row["cost"] or 0.0 for row in told), "journal": str(journal.path), "judges": told,
    }  # fmt: skip


def nothing_to_ask(options: JudgeOptions) -> str:
    """Why no question came of the input."""
    if options.mode == "pointwise":
        return "there is nothing to ask: no prompt has a completion"
    if options.pairs == "best-worst":
        return "there is nothing to ask: best-worst compares graded completions, and none is graded; use --pairs all or random:k"
    most = " and at most 26" if options.mode == "listwise" else ""
    return f"there is nothing to ask: {options.mode} needs prompts with at least two completions{most}"


def _refuse(runs: Sequence[Running], stop: Stop, written: Written, journal: Journal) -> None:
    """Nothing was graded: say why."""
    if not sum(written.requests.values()):
        raise UserError(nothing_to_ask(runs[0].options))
    if stop.reason == "interrupted":
        raise PartialResult("interrupted before the first answer; nothing was written, and the same command again starts over")
    failed = {reason: count for counts in written.failed.values() for reason, count in counts.items()}
    told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(failed.items(), key=lambda item: -item[1])[:4])
    if stop.reason in OF_THE_USER:
        raise UserError(f"the endpoint refuses: {stop.message}")
    message = stop.message or f"no request was answered: {told}; the replies are in {journal.path}"
    raise (PartialResult if stop.reason else UserError)(f"{message}. Nothing was written")


def _ledger(written: Written) -> Ledger:
    ledger = Ledger()
    for name, count in written.requests.items():
        dropped = {**written.failed[name], **({"not_asked_yet": written.left[name]} if written.left[name] else {})}
        ledger.count("judge", "request", created=count, out=written.answered[name], dropped=dropped)
    left = {reason: count for reason, count in written.not_asked.items() if count}
    ledger.count("judge", "prompt", into=written.rows, out=written.rows - sum(left.values()), dropped=left)
    ledger.check()
    return ledger


def _described(run: Running) -> dict[str, Any]:
    judge, template = run.judge, run.questions.template
    return {
        "rater": judge.name, "model": judge.model, "base_url": public_url(judge.base_url), "extra_body": dict(judge.extra_body),
        "template": template.name, "template_digest": template.digest, "rubrics": [rubric.name for rubric in run.questions.rubrics],
        "abilities": run.questions.abilities.as_json(), "samples": run.questions.samples,
    }  # fmt: skip


def _told(run: Running, written: Written, journal: Journal) -> dict[str, Any]:
    """What is said of one judge; tokens and cost are those of all runs on this journal."""
    name = run.judge.name
    spent = journal.spent().get(name, {})
    total, count = written.masses.get(name, (0.0, 0))
    answered, seconds = written.answered[name], spent.get("seconds", 0.0)
    bias, pairs = written.orders.get(name, (0.0, 0))
    asked_twice = run.options.mode == "pairwise" and run.options.orders != "one"
    return {
        "rater": name, "model": run.judge.model, "requests": written.requests[name], "answered": answered,
        "failed": dict(written.failed[name]), "left": written.left[name], "grades": written.grades[name],
        "prompt_tokens": int(spent.get("prompt_tokens", 0)), "reply_tokens": int(spent.get("reply_tokens", 0)),
        "cost": spent.get("cost", 0.0) if run.price else None, "mean_mass": total / count if count else None,
        "seconds_a_request": seconds / spent["requests"] if spent.get("requests") else None, "retried": run.counts.retried,
        "position_bias": bias / pairs if pairs else None, "pairs_both_orders": pairs,
        "one_order_only": asked_twice and written.grades[name] > 0 and not pairs,
    }  # fmt: skip
