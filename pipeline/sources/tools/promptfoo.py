"""Results of promptfoo (JSON, JSON lines, CSV): what every provider answered to every prompt and test, and how it was scored.

The whole output's score is aspect `overall`; every assertion's is an aspect under its metric or type. What a rubric's judge said stands
only among the assertions: the reason of an output that passed is a fixed sentence. A judge whose reply could not be read is scored 0 there:
counted, never a grade. CSV rounds scores to two digits and has only the prompts' templates.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, Unfolded, column_sets
from mmpo.pipeline.sources.builder import FeedbackBuilder
from mmpo.pipeline.sources.literals import spelled
from mmpo.pipeline.sources.messages import read_conversation
from mmpo.pipeline.sources.tools.answers import as_list, as_note, as_object

MODEL_GRADED = re.compile(
    r"(not-)?(llm-rubric|model-graded|g-eval|factuality|answer-relevance|context-|search-rubric|select-best|moderation|pi|conversation-relevance)"
)
"""Types of assertions whose scores come from a model."""
UNREAD = ("Could not extract JSON", "No output", "API error", "API call error", "Invalid response")
"""How the reason begins where the judge's reply could not be read."""
PASSED = ("All assertions passed", "Assertion passed")
_OUTPUT = re.compile(r"\[(?P<provider>.+?)\] (?:\[eval-[^\]]*\] )?(?P<template>.+)", re.DOTALL)
_OF_FILE = re.compile(r"(?:[^:\n]+: )?[^\s:]+\.(?:txt|md|jsonl?|ya?ml|csv|j2|py|[cm]?[jt]s)\b: ")
_FORMULA = re.compile(r"'(?=[\s\u200b-\u200d]*[=@+-])")
"""What stands before a cell that a spreadsheet would take for a formula."""
_AGAIN = re.compile(r" \d+$")
"""By what a heading that stands there again is told from the first."""
_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def unfold_promptfoo(row: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Unfolded:
    """A row per output. Raises UserError for what are no results of promptfoo."""
    whole = row.get("results")
    if isinstance(whole, Mapping):
        if not isinstance(whole.get("results"), list):
            raise UserError(
                "`results` holds no list `results`: export the evaluation anew by `promptfoo export eval ID -o out.json`"
            )
        for place, one in enumerate(whole["results"]):
            yield place, one if isinstance(one, Mapping) else BadRow("not_an_object", {"result": repr(one)[:80]})
    elif "Status" in row and "Score" in row:
        yield from ((0, one) for one in _of_sheet(row, count))
    else:
        yield 0, row


def _of_sheet(row: Mapping[str, Any], count: Callable[[str], None]) -> list[Mapping[str, Any] | BadRow]:
    """The outputs of a test in CSV: each column `[provider] template` and those behind it, up to the next one."""
    names, found = list(row), []
    outputs = [at for at, name in enumerate(names[:-2]) if _OUTPUT.fullmatch(name) and names[at + 1].startswith("Status")]
    if not outputs:
        hint = "each output has a column `[provider] template` with a column Status behind it: export anew, as CSV or as JSON"
        raise BadRow("no_output", {"columns": names[:8], "hint": hint})
    variables = {name: _unmarked(row[name]) for name in names[: outputs[0]]}
    for at, end in zip(outputs, [*outputs[1:], len(names)]):
        name, beside = names[at], {_AGAIN.sub("", heading): heading for heading in names[at + 1 : end]}
        once = _AGAIN.sub("", name)
        output = _OUTPUT.fullmatch(once if once in names[:at] else name)
        assert output is not None
        template = output["template"]
        prompt = _VARIABLE.sub(lambda one: variables.get(one[1], one[0]), template)
        if (
            "{{" in prompt
            or "{%" in prompt
            or _OF_FILE.match(template)
            or ("{{" not in template and variables.keys() - {"Description"})
        ):
            hint = "CSV has only the prompts' labels, and this one is no template that names the variables alone: export as JSON"
            found.append(BadRow("template", {"prompt": template[:200], "hint": hint}))
            continue
        score, reason = (row.get(beside.get(heading, "")) for heading in ("Score", "Grader Reason"))
        if row[names[at + 1]] == "ERROR":
            error = {"prompt": prompt[:80], "provider": output["provider"], "error": str(row[name] or reason)[:200]}
            found.append(BadRow("provider_error", error, limited=False))
            continue
        count("rounded_scores")
        graded = {"score": float(score) if score and re.fullmatch(r"-?[\d.]+", score) else score, "reason": reason}
        response = {"output": _unmarked(row[name]) or None}
        found.append({"prompt": {"raw": prompt}, "provider": output["provider"], "response": response, "gradingResult": graded})
    return found


def _unmarked(cell: str | None) -> str:
    """A cell's text without the mark that keeps spreadsheets from taking it for a formula."""
    return _FORMULA.sub("", cell or "", count=1) if (cell or "")[:1] == "'" else cell or ""


def parse_promptfoo(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add an output and its scores."""
    where = {name: row.get(name) for name in ("id", "testIdx", "promptIdx")}
    prompt, provider = (spelled(row.get(name)) for name in ("prompt", "provider"))
    response, graded = (as_object(spelled(row.get(name))) for name in ("response", "gradingResult"))
    if response.get("output") is None:
        error = response.get("error") or row.get("error")
        raise BadRow("provider_error" if error else "no_output", {**where, "error": str(error)[:200]}, limited=False)
    if not graded:
        raise BadRow("not_graded", where, limited=False)
    text = response["output"]
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
        out.count("output_as_json")
    raw = prompt["raw"] if isinstance(prompt, Mapping) and "raw" in prompt else row.get("prompt")
    out.prompt(read_conversation(raw))
    name = provider.get("label") or provider.get("id") if isinstance(provider, Mapping) else provider
    index = out.completion(text, name)
    parts = [
        one
        for one in as_list(graded.get("componentResults"))
        if isinstance(one, Mapping) and isinstance(one.get("assertion"), Mapping)
    ]
    judge = _judge(row)
    machine = not parts or any(_is_model_graded(one) for one in parts)
    unread = [one for one in parts if _is_unread(one)]
    seen: Counter[str] = Counter()
    low, high = options.scale or (None, None)

    def rate(score: Any, aspect: str, model: bool, note: Any) -> None:
        by = {
            "rater": options.rater or (judge if model and judge else "promptfoo"),
            "kind": options.kind or ("ai" if model else "reward_model"),
        }
        note = as_note(note)
        try:
            out.rating(index, score, **by, aspect=aspect, low=low, high=high, note=None if note in PASSED else note)
        except BadRow as error:
            told = {**where, "aspect": aspect, **(error.evidence or {})}
            out.reject(error.reason, unit="grade", limited=error.limited, evidence=told)

    reasons = [one.get("reason") for one in parts if _is_model_graded(one)] or [graded.get("reason")]
    if not unread:
        rate(graded.get("score"), "overall", machine, "\n".join(str(one) for one in reasons if one))
    for one in parts:
        assertion = one["assertion"]
        aspect = str(assertion.get("metric") or assertion.get("type"))
        seen[aspect] += 1
        if one in unread:
            out.reject("judge_failed", unit="grade", limited=False, evidence={**where, "reason": str(one.get("reason"))[:200]})
        else:
            place = f" {seen[aspect]}" if seen[aspect] > 1 else ""
            rate(one.get("score"), aspect + place, _is_model_graded(one), one.get("reason"))
    out.extra({"promptfoo": {name: value for name, value in where.items() if value is not None} or None})


def _is_model_graded(component: Mapping[str, Any]) -> bool:
    return bool(MODEL_GRADED.match(str(component["assertion"].get("type"))))


def _is_unread(component: Mapping[str, Any]) -> bool:
    """Whether it is a score of 0 for a judge's reply that could not be read."""
    return _is_model_graded(component) and component.get("score") == 0 and str(component.get("reason")).startswith(UNREAD)


def _judge(row: Mapping[str, Any]) -> str | None:
    """The provider that grades, where the test names one."""
    provider = as_object(as_object(row.get("testCase")).get("options")).get("provider")
    provider = provider.get("id") if isinstance(provider, Mapping) else provider
    return provider if isinstance(provider, str) else None


def _output(text: str, score: float) -> dict[str, Any]:
    part = {"assertion": {"type": "llm-rubric", "value": "names a planet"}, "pass": score > 0.5, "score": score, "reason": "..."}
    graded = {"pass": score > 0.5, "score": score, "reason": "...", "componentResults": [part]}
    return {
        "promptIdx": 0,
        "testIdx": 0,
        "prompt": {"raw": "Name a planet."},
        "response": {"output": text},
        "gradingResult": graded,
    }


PROMPTFOO = Source(
    "promptfoo",
    "Results of promptfoo (JSON, JSON lines, CSV): every provider's outputs with their scores, by assertion",
    parse=parse_promptfoo,
    requires=column_sets("prompt response gradingResult"),
    folded=(*column_sets("evalId results"), frozenset(("Status", "Score", "Named Scores", "Grader Reason", "Comment"))),
    export="Results are written by `promptfoo export eval ID -o out.json`; a configuration holds none.",
    scaled=True,
    aspects="the metrics or types of assertions",
    samples=(
        FormatSample(
            "an evaluation as JSON",
            (
                {
                    "evalId": "e",
                    "results": {"version": 3, "results": [_output("The moon.", 0.1), _output("Mars, the red one.", 0.9)]},
                },
            ),
        ),
        FormatSample("outputs as JSON lines", (_output("The moon.", 0.1), _output("Mars, the red one.", 0.9))),
    ),
    unfold=unfold_promptfoo,
    range="0 to 1, unless a function of the user's own scores otherwise",
    direction="higher is better",
    traps={
        "unread judges": "a judge's reply that could not be read is a failed assertion with score 0",
        "fixed reasons": "the reason of an output that passed is a fixed sentence; what the judge said stands in componentResults",
        "rounded scores": "CSV rounds scores to two digits, and its five headers stand again for every output",
        "several prompts": "outputs of one test are answers to several prompts: only those to one text compete",
    },
)
