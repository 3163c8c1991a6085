"""The end of a run of MT-bench: answers and judgments in FastChat's layout, the means, a page; looked up in the journal."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mmpo.annotate.asking import most_common, recorded, refuse
from mmpo.annotate.asking.run import USER_ERRORS
from mmpo.annotate.client import Journal, Stop
from mmpo.annotate.mt_bench.figures import categories_of, figures
from mmpo.annotate.mt_bench.files import TURNS, UNREADABLE, Scored, read_judgments, read_questions
from mmpo.annotate.mt_bench.options import MtBenchOptions
from mmpo.annotate.mt_bench.plan import NOT_IN_FILE, BenchPlan, Contestant
from mmpo.annotate.mt_bench.requests import Answering, Grading, score_of, temperature_of
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.storage import dataset_at, digest, name_of, read_manifest, replacing, write_manifest

KIND = "mt-bench"
EVALUATION = "evaluation.json"
PAGE = "page.html"
PUBLISHED = 80
"""Questions that MT-bench has, of which published means are."""


def check_folder(out: Path, models: Sequence[str], judges: Sequence[str]) -> None:
    """Refuse to write over a folder that holds more than this run will write. Raises UserError."""
    files = Counter(file_name(name) for name in models)
    if (twice := next((name for name, count in files.items() if count > 1), None)) is not None:
        raise UserError(f"two models would be written to {twice}.jsonl: give one a name of its own, --model ...,called=...")
    if (stands := dataset_at(out)) is None:
        return
    before = read_manifest(stands)
    if before.get("kind") != KIND:
        raise UserError(f"--out {out} holds what another command wrote; name another folder, or move it away")
    for word, names in (("model", models), ("judge", judges)):
        if lost := sorted(set(before[f"{word}s"]) - set(names)):
            raise UserError(
                f"--out {out} holds results of the {word} {', '.join(lost)}, which this run does not name: name all again (what the "
                "journal holds costs nothing), or another folder"
            )


def file_name(name: str) -> str:
    """A model's name as that of a file.

    >>> file_name("meta-llama/Llama-3.1-8B-Instruct"), file_name("out/my policy/")
    ('meta-llama_Llama-3.1-8B-Instruct', 'out_my_policy')
    """
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "model"


def nothing_said(reasons: Mapping[str, int]) -> str:
    """Why there is nothing, by reason, and what to do."""
    hint = "; --max-tokens is the longest answer" if {"cut", "empty"} & reasons.keys() else ""
    return f"{most_common(Counter(reasons)) or 'nothing was asked'}{hint}"


def finish(
    plan: BenchPlan,
    out: Path,
    answering: Mapping[str, Answering],
    graded: Sequence[Contestant],
    gradings: Sequence[Grading],
    journal: Journal,
    stop: Stop,
) -> dict[str, Any]:
    """Write the folder; the summary. Raises where there is not one score to write."""
    judged = {one.name: _judgments(plan, graded, one, journal) for one in gradings}
    rows = [scored for one in judged.values() for scored in one.rows]
    unreadable = Counter(row.reason for row in rows if row.score is None)
    failed = sum((one.failed for one in judged.values()), Counter[tuple[str, str]]())
    if unreadable.total() == len(rows):
        if stop.reason and stop.reason not in USER_ERRORS:
            raise unfinished(stop, journal)
        reasons = unreadable + Counter(reason for (_, reason), count in failed.items() for _ in range(count))
        hint = "; a score is read where it stands in two pairs of brackets, as in [[8]]" if reasons["no_verdict"] else ""
        refuse(stop, "score", f"no score can be read in any judgment: {most_common(reasons)}{hint}", journal, "--judge-max-tokens")
    table = figures(rows, categories_of(plan.questions), plan.options.bootstrap, plan.options.seed)
    for row in table:
        row |= _about(plan, row, graded, judged[row["judge"]])
    counts = {
        "answers": dict(sum((one.reasons(plan.questions) for one in graded), Counter())),
        "judgments": dict(unreadable),
        "failed": dict(sum((Counter(row["failed"]) for row in table), Counter())),
    }
    summary: dict[str, Any] = {
        "out": name_of(out), "page": name_of(out / PAGE), "questions": len(plan.questions),
        "categories": dict(Counter(one.category for one in plan.questions)),
        "finished": not stop.reason and not any(row["failed"] or row["left"] for row in table),
        "stopped": stop.reason or None, "message": stop.message or None, "counts": counts, "cost": _cost(plan, journal),
        "journal": str(journal.path), "models": table,
        "prompts": {
            "source": plan.prompts.source, "digest": plan.prompts.digest, "names": [one.name for one in plan.prompts.by_kind.values()],
        },
        "references": {"file": plan.references and str(plan.references), "questions": sum(bool(one.references) for one in plan.questions)},
        "sampled": _sampled(plan, answering), "warnings": _warnings(plan, table, gradings),
    }  # fmt: skip
    _write(plan, out, graded, judged, summary)
    return summary


def unfinished(stop: Stop, journal: Journal) -> Exception:
    """What a run that stopped before the first score says."""
    return PartialResult(
        f"stopped before anything was graded: {stop.message}. What came is safe in {journal.path}; the same command again goes on"
    )


class _Judged:
    """What one judge said. lines: rows of FastChat's file; failed: by model and reason; left: by model, answers that were not graded."""

    def __init__(self) -> None:
        self.rows: list[Scored] = []
        self.lines: list[dict[str, Any]] = []
        self.failed: Counter[tuple[str, str]] = Counter()
        self.left: Counter[str] = Counter()


def _judgments(plan: BenchPlan, graded: Sequence[Contestant], grading: Grading, journal: Journal) -> _Judged:
    found = _Judged()
    asked = [(*one, *grading.request(one[1], one[0].texts(one[1]), one[2])) for one in plan.graded(graded)]
    keys = [request.key for *_, request, _, _ in asked]
    answers, failures, times = journal.answers(keys), journal.failures(keys), journal.times(keys)
    for model, question, turn, request, prompt, words in asked:
        if (answer := answers.get(request.key)) is None:
            if failure := failures.get(request.key):
                found.failed[model.name, failure.reason] += 1
            else:
                found.left[model.name] += 1
            continue
        score, reason = score_of(answer)
        found.rows.append(Scored(grading.name, model.name, str(question.id), turn, score, reason))
        shown = UNREADABLE if score is None else int(score) if score == int(score) else score
        found.lines.append(
            {
                "question_id": question.id,
                "model": model.name,
                "judge": [grading.name, prompt.name],
                "user_prompt": words,
                "judgment": answer.text,
                "score": shown,
                "turn": turn,
                "tstamp": times[request.key],
            }
        )
    return found


def _about(plan: BenchPlan, row: Mapping[str, Any], graded: Sequence[Contestant], judged: _Judged) -> dict[str, Any]:
    """What a row says beside its means."""
    [model] = [one for one in graded if one.name == row["model"]]
    failed = Counter({reason: count for (name, reason), count in judged.failed.items() if name == model.name})
    lengths = [len(text) for question in plan.questions for text in model.texts(question)]
    return {
        "answers": dict(model.reasons(plan.questions)),
        "failed": dict(failed + Counter(model.known.failed)),
        "left": judged.left[model.name] + (0 if model.stored else model.missing(plan.questions) - len(model.known.failed)),
        "characters": sum(lengths) / len(lengths) if lengths else None,
    }


def _cost(plan: BenchPlan, journal: Journal) -> float | None:
    """What the journal's requests of this run's models and judges cost; None where a price is not known."""
    asked = [one for one in (*plan.models, *plan.judges.values()) if one.name not in plan.local]
    if any(plan.prices.of(one.model) is None for one in asked):
        return None
    spent = journal.spent()
    return sum(spent.get(one.name, {}).get("cost", 0.0) for one in asked)


def _sampled(plan: BenchPlan, answering: Mapping[str, Answering]) -> dict[str, dict[str, Any]]:
    """How each model's answers were sampled, by category."""
    found: dict[str, dict[str, Any]] = {}
    for name, one in answering.items():
        kinds = {question.category: one.sampling(question).sent.get("temperature") for question in plan.questions}
        found[name] = {"temperature": kinds, "max_tokens": one.sampling(plan.questions[0]).length, "seeds": one.takes.seed}
    return found


def _warnings(plan: BenchPlan, table: Sequence[Mapping[str, Any]], gradings: Sequence[Grading]) -> list[str]:
    told = []
    if len(plan.questions) != PUBLISHED:
        told.append(
            f"published means of MT-bench are over {PUBLISHED} questions, these over {len(plan.questions)}: compare only with the same ones"
        )
    if plan.options.references == "none":
        told.append("nothing was graded against a reference, which published means of math, reasoning and coding were")
    asked = {str(one.id) for one in plan.questions}
    for name, answers in plan.written.items():
        if other := len(answers.keys() - asked):
            told.append(f"{name}: {other:,} answers of its file are to questions that are not asked here")
    for one in gradings:
        if not one.found.temperature:
            told.append(f"{one.name}: its endpoint takes no temperature: its grades are sampled as it likes")
        if not one.found.length:
            told.append(
                f"{one.name}: its endpoint takes no limit of {plan.options.judge_max_tokens:,} tokens: judgments are as long as it likes"
            )
    for row in table:
        if row["mean"] is None:
            told.append(f"{row['judge']}: no score of {row['model']} can be read")
        elif missing := sum(row["failed"].values()) + row["left"] + row["answers"].get(NOT_IN_FILE, 0):
            told.append(
                f"{row['model']}, judged by {row['judge']}: the means lack {missing:,} of {TURNS * len(plan.questions):,} grades"
            )
    return told


def _write(
    plan: BenchPlan, out: Path, graded: Sequence[Contestant], judged: Mapping[str, _Judged], summary: Mapping[str, Any]
) -> None:
    from mmpo.annotate.mt_bench.page import write_page

    with replacing(out) as folder:
        for name in ("model_answer", "model_judgment"):
            (folder / name).mkdir()
        for model in graded:
            _lines(folder / "model_answer" / f"{file_name(model.name)}.jsonl", _answers(plan, model))
        for name, one in judged.items():
            _lines(folder / "model_judgment" / f"{file_name(name)}_single.jsonl", one.lines)
        (folder / EVALUATION).write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
        write_page(summary, folder / PAGE)
        files = [Path(plan.options.questions or ""), *([plan.references] if plan.references else [])]
        recipe = {
            "mt-bench": recorded(plan.options), "judges": {name: _described(one) for name, one in plan.judges.items()},
            "models": {one.name: _described(one) for one in plan.models}, "prompts": summary["prompts"],
            "temperatures": {str(one.id): temperature_of(one, plan.options) for one in plan.questions},
        }  # fmt: skip
        values = {
            "kind": KIND, "models": [one.name for one in graded], "judges": list(judged), "recipe": recipe,
            "inputs": [{"name": path.name, "digest": digest(path)} for path in files],
        }  # fmt: skip
        write_manifest(folder, values, {})


def _described(one: Any) -> dict[str, Any]:
    return {"model": one.model, "base_url": one.public, "headers": dict(one.headers), "extra_body": dict(one.extra_body)}


def _answers(plan: BenchPlan, model: Contestant) -> list[dict[str, Any]]:
    """The rows of FastChat's model_answer: questions with answers to both turns."""
    whole = [question for question in plan.questions if len(model.texts(question)) == TURNS]
    return [
        {
            "question_id": one.id, "answer_id": model.known.keys[str(one.id)].hex() if str(one.id) in model.known.keys else None,
            "model_id": model.name, "choices": [{"index": 0, "turns": list(model.texts(one))}],
            "tstamp": model.known.at.get(str(one.id)),
        }
        for one in whole
    ]  # fmt: skip


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


# Judgments that are there


def mt_bench_judgments(
    judgments: Sequence[str | Path], options: MtBenchOptions | None = None, out: str | Path | None = None
) -> dict[str, Any]:
    """The means of every model in files of judgments (FastChat's JUDGE_single.jsonl); nobody is asked anything.

    options: `questions` gives the categories; `bootstrap` and `seed` are used. out: an HTML page to write. Returns {"judgments" (rows),
    "counts", "models" (as `figures`), "warnings", "page"?}. Raises UserError for another layout.

    >>> import tempfile
    >>> row = {"question_id": 81, "model": "mine", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": 7, "judgment": "Rating: [[7]]"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "gpt-4_single.jsonl")
    ...     _ = path.write_bytes(orjson.dumps(row))
    ...     mt_bench_judgments([path])["models"][0]["model"]
    'mine'
    """
    chosen = options or MtBenchOptions()
    if not judgments:
        raise UserError("name a file of judgments")
    found = read_judgments(judgments)
    known = categories_of(read_questions(chosen.questions)) if chosen.questions is not None else {}
    unreadable = Counter(row.reason for row in found.rows if row.score is None)
    counts = {
        "judgments": dict(unreadable), "readable": found.readable, "outside": found.outside, "repeated": found.repeated,
        "other_questions": sum(row.question not in known for row in found.rows) if known else None,
    }  # fmt: skip
    summary: dict[str, Any] = {
        "judgments": len(found.rows), "questions": len({row.question for row in found.rows}), "counts": counts,
        "models": figures(found.rows, known, chosen.bootstrap, chosen.seed), "warnings": _file_warnings(counts),
    }  # fmt: skip
    if out is not None:
        from mmpo.annotate.mt_bench.page import write_page

        summary["page"] = str(write_page(summary, Path(out)))
    return summary


def _file_warnings(counts: Mapping[str, Any]) -> list[str]:
    told = []
    if readable := counts["readable"]:
        told.append(
            f"{readable:,} judgments are counted as without a score, as the file has them, though one stands in their words "
            "(such as [[rating: 2]], which FastChat does not read)"
        )
    if outside := counts["outside"]:
        told.append(f"{outside:,} scores lie outside 1 to 10; they count as they are")
    if repeated := counts["repeated"]:
        told.append(f"{repeated:,} judgments are of an answer that was judged already; all count, as in the published arithmetic")
    if other := counts["other_questions"]:
        told.append(f"{other:,} judgments are of questions that the file of questions does not have: they are in no category")
    return told
