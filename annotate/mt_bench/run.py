"""`mt_bench`: questions in; answers, judgments and their means out; stopped at any moment and resumed by the same call."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import orjson

from mmpo.annotate.asking import Ask, Endpointlike, Progress, ask_all, check_prices, journal_of, patient, refuse, to_its_end
from mmpo.annotate.client import Answer, Budget, Choice, Endpoint, Journal, Price, Stop, api_key, load_prices
from mmpo.annotate.generate.local import LocalEngine, check_local, endpoints_of, settings_of
from mmpo.annotate.generate.options import SampledModel, check_names, sampled_models
from mmpo.annotate.generate.requests import Takes
from mmpo.annotate.generate.run import what_it_takes
from mmpo.annotate.judge.capabilities import Capabilities, Probe
from mmpo.annotate.judge.capabilities import probe as probe_judge
from mmpo.annotate.judge.options import Judge
from mmpo.annotate.mt_bench.files import (
    READER,
    TURNS,
    BenchQuestion,
    read_answers,
    read_questions,
    references_file,
    with_references,
)
from mmpo.annotate.mt_bench.options import TEMPERATURES, MtBenchOptions, judges_of
from mmpo.annotate.mt_bench.output import check_folder, finish, nothing_said, unfinished
from mmpo.annotate.mt_bench.plan import BenchPlan
from mmpo.annotate.mt_bench.prompts import load_prompts
from mmpo.annotate.mt_bench.requests import Answering, Grading, ModelAnswers, Stage, answers_of, open_requests
from mmpo.annotate.pairings import digest_of
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.options import check_class
from mmpo.pipeline.storage import check_out

TRIED = BenchQuestion("probe", "", ("What is 2 + 2?", "And 3 + 3?"))
"""What a judge's endpoint is tried with."""


def prepared(
    out: str | Path,
    options: MtBenchOptions,
    models: Sequence[Any] = (),
    local: Sequence[LocalEngine] = (),
    judges: Sequence[Any] = (),
    answers: Sequence[str | Path] = (),
) -> BenchPlan:
    """Check options, questions, references, prompts, models, judges, prices and output. Raises UserError."""
    check_class(options, MtBenchOptions)
    if options.questions is None:
        raise UserError("name the file of questions: --questions question.jsonl, in FastChat's layout")
    asked = [*(sampled_models(options.sampling(0.0), models) if models else []), *map(settings_of, local)]
    written = _written(answers)
    names = [*written, *(one.name for one in asked)]
    if not names:
        raise UserError(
            "name what is graded: --model NAME for a model at an endpoint, --model DIR or --local NAME for one on this machine, "
            "--answers FILE for answers that are there"
        )
    check_names(names)
    chosen = judges_of(options, judges, names)
    check_local(local, options.max_tokens, batch=options.batch)
    prices = load_prices(options.prices)
    check_prices(options, [*asked[: len(models)], *chosen.values()], prices)
    read = read_questions(options.questions)
    if options.limit is not None:
        drawn = sorted(read, key=lambda one: digest_of(options.seed, "limit", str(one.id)))[: options.limit]
        read = [one for one in read if one in drawn]
    references = references_file(options.questions, options.references)
    questions = with_references(read, references, options.references)
    prompts = load_prompts(options.judge_prompts)
    for name, known in written.items():
        lacking = [str(one.id) for one in questions if str(one.id) not in known]
        if len(lacking) == len(questions):
            raise UserError(
                f"{name} answers none of the {len(questions)} questions in the file of answers: is it of another benchmark?"
            )
    sources = [options.questions, *answers, *([references] if references else [])]
    check_out(Path(out), sources)
    check_folder(Path(out), names, list(chosen))
    by_name = {one.name: one for one in local}
    return BenchPlan(
        options, questions, asked, by_name, written, chosen, prompts, prices, journal_of(out, options, "mt-bench"), references
    )


def _written(paths: Sequence[str | Path]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The answers of files, by model and question."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for path in paths:
        for name, known in read_answers(path).items():
            if name in found:
                raise UserError(f"--answers {path}: {name} stands in another file too; keep one of them")
            found[name] = known
    return found


def mt_bench(
    out: str | Path,
    *,
    options: MtBenchOptions,
    models: Sequence[Any] = (),
    local: Sequence[LocalEngine] = (),
    judges: Sequence[Any] = (),
    answers: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Have models answer the questions of MT-bench and judges grade every answer; write all of it to the folder `out`.

    models, judges: "NAME" or "NAME,base_url=...,..." or mappings; keys come from the environment. local: models on this machine, such as
    `mmpo.train.LocalModel`. answers: files of answers that are there, in FastChat's layout.
    Returns {"out", "page", "questions", "categories", "finished", "stopped", "message", "counts" (by reason), "cost" (US dollars, None
    where a price is unknown), "seconds" (that this run asked), "journal", "prompts", "references", "models": [...]}: a row for every judge
    and model, as `figures` has it, with "answers" (those by reason that say nothing, were cut or refused), "failed" and "left". `finished`
    is False where requests failed for good or were not sent: the same call again goes on.
    Raises UserError with nothing written, PartialResult where nothing could be written yet.

    >>> options, at = MtBenchOptions(questions="question.jsonl"), {"base_url": "http://127.0.0.1:8000/v1"}
    >>> done = mt_bench("bench", options=options, models=[{"model": "mine", **at}], judges=[{"model": "judge", **at}])  # doctest: +SKIP
    """
    plan = prepared(out, options, models, local, judges, answers)
    remote = [one for one in plan.models if one.name not in plan.local]
    for one in (*remote, *plan.judges.values()):
        api_key(one)
    import_module("openai")  # where the extra is missing, the run ends before a journal is made
    with Journal(plan.journal) as journal:
        stop, began = Stop(), time.monotonic()
        answering: dict[str, Answering] = {}
        known: dict[str, ModelAnswers] = {}
        for turn in range(TURNS if plan.models else 0):
            stages = to_its_end(_answer(plan, turn, journal, progress, stop), stop)
            answering |= {stage.judge.name: stage.asks for stage in stages}
            known = {name: answers_of(one, plan.questions, journal) for name, one in answering.items()}
            if not any(one.turns for one in known.values()):
                failed = sum((Counter(one.failed) for one in known.values()), Counter())
                refuse(stop, "answer", f"no question was answered: {nothing_said(failed)}", journal)
            if stop.reason:
                raise unfinished(stop, journal)
        graded = plan.contestants(known)
        for one in graded:
            if not any(text.strip() for question in plan.questions for text in one.texts(question)):
                raise UserError(
                    f"no answer of {one.name} says anything ({nothing_said(one.reasons(plan.questions))}), so that there is nothing to "
                    "grade. Nothing was written"
                )
        grading = to_its_end(_grade(plan, graded, journal, progress, stop), stop)
        asked = time.monotonic() - began
        if progress:
            progress({}, "writing the results")
        return {**finish(plan, Path(out), answering, graded, [one.asks for one in grading], journal, stop), "seconds": asked}


async def _answer(plan: BenchPlan, turn: int, journal: Journal, progress: Progress | None, stop: Stop) -> list[Stage]:
    """Ask all models for their answers of one turn."""
    options = plan.options

    async def start(endpoint: Endpointlike, budget: Budget, price: Price | None, paid: list[Answer]) -> Stage:
        model, takes = cast(SampledModel, endpoint.judge), Takes()
        if model.name not in plan.local:
            takes = await _takes(plan, model, patient(endpoint, "model", options, paid, stop, progress), journal)
        one = Answering(model, options, takes)
        known = answers_of(one, plan.questions, journal)
        requests = [request for _, request in open_requests(one, plan.questions, known, turn)]
        return Stage(endpoint, options, journal, budget, price, stop, len(requests), "model", requests=requests, asks=one)

    endpoints = endpoints_of(plan.models, plan.local, options.timeout, stop)
    return await ask_all(endpoints, options, journal, plan.prices, progress, stop, start, "there is nothing to ask")


async def _takes(plan: BenchPlan, model: SampledModel, ask: Ask, journal: Journal) -> Takes:
    """What a model's endpoint takes at the highest temperature that the run will send."""
    by_category = ", ".join(f"{name} {value:g}" for name, value in TEMPERATURES.items())
    hint = f"Each category has a temperature of its own ({by_category}); --temperature 1 samples all of them at 1"
    return await what_it_takes(model, plan.hottest, ask, journal, {"temperature": hint} if plan.options.temperature is None else {})


async def _grade(plan: BenchPlan, graded: Sequence[Any], journal: Journal, progress: Progress | None, stop: Stop) -> list[Stage]:
    """Ask all judges for the grades of all answers."""
    options = plan.options
    names = {judge.name: name for name, judge in plan.judges.items()}

    async def start(endpoint: Endpointlike, budget: Budget, price: Price | None, paid: list[Answer]) -> Stage:
        judge = cast(Judge, endpoint.judge)
        ask = patient(endpoint, "judge", options, paid, stop, progress)
        plain = Grading(names[judge.name], judge, options, plan.prompts)
        one = dataclasses.replace(plain, found=await _capabilities(plain, ask, journal))
        requests = [one.request(question, model.texts(question), turn)[0] for model, question, turn in plan.graded(graded)]
        return Stage(endpoint, options, journal, budget, price, stop, len(requests), "judge", requests=requests, asks=one)

    endpoints = [Endpoint(one, options.timeout) for one in plan.judges.values()]
    return await ask_all(endpoints, options, journal, plan.prices, progress, stop, start, "there is nothing to grade")


def capabilities_key(grading: Grading) -> str:
    """The name under which the journal keeps what a judge's endpoint takes."""
    judge, options = grading.judge, grading.options
    asked = [judge.public, judge.model, options.judge_temperature, options.judge_max_tokens, dict(judge.extra_body)]
    return "grading:" + orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()


def known_capabilities(grading: Grading, journal: Journal | None) -> Capabilities | None:
    """What the journal knows of a judge's endpoint; None: nothing."""
    known = journal.meta(capabilities_key(grading)) if journal else None
    return Capabilities(**known) if known else None


async def _capabilities(grading: Grading, ask: Ask, journal: Journal) -> Capabilities:
    """What a judge's endpoint takes: as the journal knows it, else by a probe."""
    if (known := known_capabilities(grading, journal)) is not None:
        return known
    request = grading.request(TRIED, ["2 + 2 is 4."], 1)[0]
    this = Probe(
        ask, grading.judge.name, grading.judge.model, request.body["messages"], grading.options.judge_max_tokens,
        grading.judge.extra_body, _holds_score, "--judge-max-tokens",
    )  # fmt: skip
    found = await probe_judge(this, logprobs=False, draws=False, schema=None, several=False)
    journal.set_meta(capabilities_key(grading), dataclasses.asdict(found))
    return found


def _holds_score(choice: Choice) -> bool:
    return not isinstance(READER.each([choice])[0], str)
