"""The end of a run of generating: FEEDBACK with the candidates in it, its manifest, and the summary of each model.

A second pass over the input looks every answer up in the journal.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from mmpo.annotate.asking import MAX_REJECT_REPLY, most_common, recorded, refuse
from mmpo.annotate.client import Journal, Stop
from mmpo.annotate.generate.options import GenerateOptions, SampledModel
from mmpo.annotate.generate.prompts import prompt_ids, unanswerable
from mmpo.annotate.generate.requests import Written, written_of
from mmpo.annotate.rows import Feedback, FeedbackRow, rows_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import (
    RowAccounting,
    dataset_at,
    describe,
    made_of,
    name_of,
    read_manifest,
    read_parquet,
    replacing,
    write_feedback,
)
from mmpo.pipeline.tables import FEEDBACK, completion_id, keys_of, with_keys

if TYPE_CHECKING:
    from mmpo.annotate.generate.run import GenerateRun


@dataclass
class ModelTotals:
    """What came of one model's requests. candidates: new completions; repeated: replies that say what a completion of the prompt says
    already; left: not asked (yet); reasons: replies that are no candidates, and kept: those that became some all the same; failed: requests
    without a reply."""

    requests: int = 0
    candidates: int = 0
    repeated: int = 0
    left: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def holds_key(name: str) -> str:
    """The name under which the journal keeps which of REPLY_KEYS a model's replies have."""
    return f"holds:{name}"


def check_folder(out: Path, feedback: Feedback, names: Sequence[str]) -> None:
    """Refuse to write over a folder that holds more than this run will write. Raises UserError."""
    if (before := dataset_at(out)) is None:
        return
    recipe = read_manifest(before).get("recipe") or {}
    if "generate" not in recipe:
        raise UserError(f"--out {out} holds what another command wrote; name another folder, or move it away")
    lost = sorted({one["called"] for one in recipe["models"]} - set(names))
    if lost:
        raise UserError(
            f"--out {out} holds candidates of {', '.join(lost)}, which this run does not name: name all models again (what they have "
            "written is in the journal and costs nothing), or another folder"
        )
    if prompt_ids(Feedback.open(out)) - prompt_ids(feedback):
        raise UserError(f"--out {out} holds prompts that are not in the input: it is of another run; name another folder")


def unanswered(feedback: Feedback, options: GenerateOptions) -> str:
    """Why there is nothing to ask."""
    reasons = Counter(unanswerable(row) for rows in feedback.rows(scores=False, reference=None) for row in rows)
    if reasons.pop("", 0):
        return f"there is nothing to ask: every prompt has {options.n} candidates of each model already; raise --n for more"
    told = {
        "no_user_turn": "no user says anything in them",
        "ends_with_assistant": "the assistant has the last word already",
    }
    shown = "; ".join(f"{name} {count:,} ({told[name]})" for name, count in reasons.items())
    return (
        f"no prompt can be answered: {shown or 'there are none'}. A prompt is a text, or messages of which the last is the user's"
    )


def finish(
    feedback: Feedback,
    out: Path,
    options: GenerateOptions,
    runs: Sequence["GenerateRun"],
    journal: Journal,
    stop: Stop,
    machines: Mapping[str, Any],
) -> dict[str, Any]:
    """Write FEEDBACK with the candidates; the summary. machines: what the manifest says of the engine of local models. Raises where there
    is no new candidate at all to write."""
    before = read_manifest(feedback.folder)
    built = bool(before.get("recipe", {}).get("bare_prompts"))
    recipe = {"generate": recorded(options), "models": [_described(run) for run in runs], "feedback": before.get("recipe")}
    inputs = made_of(feedback.folder, feedback.files)
    metadata = {"recipe": recipe, "inputs": before["inputs"] if built else inputs}
    totals, unasked = [ModelTotals() for _ in runs], Counter[str]()
    keys = {key for run in runs for key in journal.meta(holds_key(run.judge.name)) or ()}

    # What reading left out stays known.
    left_out = read_parquet(feedback.folder / "rejects.parquet").to_pylist() if built else []
    prompts = 0

    def parts() -> Iterator[tuple[pa.Table, list[dict[str, Any]]]]:
        nonlocal prompts
        for number, table in enumerate(feedback.tables()):
            prompts += table.num_rows
            answered, rejected = _answered(table, feedback, runs, journal, keys, totals, unasked)
            yield answered, rejected if number else [*left_out, *rejected]

    with replacing(out) as folder:
        digests = write_feedback(folder, metadata, parts())
        if not any(one.candidates or one.repeated for one in totals):
            found = sum((one.reasons + one.failed for one in totals), Counter())
            hint = "; --max-tokens is the longest reply" if found["cut"] or found["empty"] else ""
            refuse(stop, "reply", f"no reply became a candidate: {most_common(found)}{_unsent(totals, unasked)}{hint}", journal)
        accounting = _accounted(before["counts"] if built else {}, totals, prompts, unasked)
        spent = journal.spent()
        models = [_summary(run, one, spent.get(run.judge.name, {})) for run, one in zip(runs, totals)]
        engine = {"engine": dict(machines)} if any(row["local"] for row in models) else {}
        describe(folder, metadata, prompts, accounting, digests, models=models, **engine)
    costs = [row["cost"] for row in models if not row["local"]]
    reasons = sum((one.reasons + one.failed for one in totals), Counter())
    finished = not stop.reason and not any(row["left"] or row["failed"] for row in models)
    return {
        "out": name_of(out), "prompts": prompts, "candidates": sum(one.candidates for one in totals), "finished": finished,
        "stopped": stop.reason or None, "message": stop.message or None, "counts": dict(reasons), "unanswerable": dict(+unasked),
        "cost": None if None in costs or not costs else sum(costs),
        "journal": str(journal.path), "models": models,
    }  # fmt: skip


def _unsent(totals: Sequence[ModelTotals], unasked: Counter[str]) -> str:
    """What was never asked, in words."""
    left, prompts = sum(one.left for one in totals), +unasked
    words = [f"{left:,} requests were not sent"] if left else []
    words += [f"{prompts.total():,} prompts were not asked ({most_common(prompts)})"] if prompts else []
    return "".join(f"; {one}" for one in words)


def _described(run: "GenerateRun") -> dict[str, Any]:
    model: SampledModel = run.sampling.model
    return {
        "called": model.name, "model": model.model, "base_url": model.public, "headers": dict(model.headers),
        "sent": run.sampling.sent, "takes": dataclasses.asdict(run.sampling.takes),
    }  # fmt: skip


def _summary(run: "GenerateRun", totals: ModelTotals, spent: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one model; tokens, cost and seconds are those of all runs on this journal."""
    requests = spent.get("requests", 0)
    return {
        "name": run.judge.name, "model": run.judge.model, "requests": totals.requests, "candidates": totals.candidates,
        "repeated": totals.repeated, "reasons": dict(totals.reasons), "kept": dict(totals.kept), "failed": dict(totals.failed),
        "left": totals.left, "prompt_tokens": int(spent.get("prompt_tokens", 0)), "reply_tokens": int(spent.get("reply_tokens", 0)),
        "cost": spent.get("cost", 0.0) if run.price else None,
        "seconds_a_request": spent["seconds"] / requests if requests else None,
        "local": "weights" in run.judge.extra_body, "retried": run.counts.retried, "seeds": run.sampling.takes.seed,
    }  # fmt: skip


def _accounted(
    read: Mapping[str, Mapping[str, Mapping[str, Any]]], totals: Sequence[ModelTotals], prompts: int, unasked: Mapping[str, int]
) -> RowAccounting:
    """The counts of reading, where prompts were read from files, and those of this run."""
    accounting = RowAccounting()
    for stage, units in read.items():
        for unit, counts in units.items():
            accounting.count(stage, unit, **{"into" if name == "in" else name: value for name, value in counts.items()})
    for one in totals:
        dropped = {**(one.reasons + one.failed), **({"not_asked_yet": one.left} if one.left else {})}
        accounting.count("generate", "request", created=one.requests, out=one.candidates, merged=one.repeated, dropped=dropped)
    dropped = dict(+Counter(unasked))
    accounting.count("generate", "prompt", into=prompts, out=prompts - sum(dropped.values()), dropped=dropped)
    return accounting


# The second pass


def _answered(
    table: pa.Table,
    feedback: Feedback,
    runs: Sequence["GenerateRun"],
    journal: Journal,
    keys: set[str],
    totals: Sequence[ModelTotals],
    unasked: Counter[str],
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The table with the candidates behind those that a row has, in the order of models and numbers, and what is no candidate."""
    rows, stored = list(rows_of(table, scores=False, reference=None)), table.to_pylist()
    wanted = [feedback.wanted(row.prompt_id) for row in rows]
    unasked.update("not_drawn" if not drawn else unanswerable(row) for row, drawn in zip(rows, wanted))
    del unasked[""]
    rejected: list[dict[str, Any]] = []
    for run, own in zip(runs, totals):
        asked = [(place, request) for place, row in enumerate(rows) if wanted[place] for request in run.sampling.of(row)]
        names = [request.key for _, request in asked]
        answers, failures = journal.answers(names), journal.failures(names)
        own.requests += len(asked)
        for place, request in asked:
            about = {"model": run.judge.name, "number": request.about}
            if answer := answers.get(request.key):
                written = written_of(answer)
                rejected += _added(stored[place], rows[place], written, about, run.options, own)
            elif failure := failures.get(request.key):
                own.failed[failure.reason] += 1
                rejected.append(_reject(rows[place], failure.reason, {**about, "message": failure.message}))
            else:
                own.left += 1
    schema = with_keys(FEEDBACK, {*keys, *keys_of(table.schema)})
    return pa.Table.from_pylist(stored, schema), rejected


def _added(
    stored: dict[str, Any], row: FeedbackRow, written: Written, about: Mapping[str, Any], options: Any, totals: ModelTotals
) -> list[dict[str, Any]]:
    """Add a candidate to a stored row, unless it is none; then what is to be known of it."""
    if written.reason and (written.reason not in options.keep or not written.text.strip()):
        totals.reasons[written.reason] += 1
        said = {**about, "reply": written.text[:MAX_REJECT_REPLY], "thinking": (written.thinking or "")[-MAX_REJECT_REPLY:]}
        return [_reject(row, written.reason, {name: value for name, value in said.items() if value != ""})]
    identity = completion_id(row.prompt_id, written.text, written.thinking, written.calls)
    if any(one["id"] == identity for one in stored["completions"] or ()):
        totals.repeated += 1
        return []
    if written.reason:
        totals.kept[written.reason] += 1
    totals.candidates += 1
    stored["completions"] = [
        *(stored["completions"] or ()),
        {"id": identity, "text": written.text, "model": about["model"], **written.keys},
    ]
    return []


def _reject(row: FeedbackRow, reason: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "unit": "request", "stage": "generate", "reason": reason, "file": None, "row": None, "prompt_id": row.prompt_id,
        "evidence": orjson.dumps(details).decode(),
    }  # fmt: skip
