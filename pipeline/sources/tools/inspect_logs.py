"""Logs of inspect_ai, .eval and .json, read without inspect_ai: what a model answered in each epoch, and what each scorer said of it.

A grade is a letter per epoch (C, P, I, N: correct, partly, incorrect, no answer), a number or several by name. Epochs that gave one text
repeat its grade. A judge without a verdict leaves the literal NaN, which inspect_ai leaves out of its means: counted, never a grade.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow, UserError
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, Unfolded, column_sets
from mmpo.pipeline.sources.builder import FeedbackBuilder
from mmpo.pipeline.sources.literals import plain_number
from mmpo.pipeline.sources.messages import read_reply
from mmpo.pipeline.sources.tools.answers import as_list, as_note, as_object
from mmpo.pipeline.storage.archives.eval_logs import STILL_WRITTEN, with_scorers

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""What inspect_ai itself makes of letters and (in any case) of words in its means."""
ATTACHED = "attachment://"


def unfold_inspect(row: Mapping[str, Any], options: SourceOptions, count: Callable[[str], None]) -> Unfolded:
    """A row per sample and epoch, with what the log says of the whole evaluation under `eval`. Raises UserError: no log, one that is still
    being written, a header alone."""
    about, samples = row.get("eval"), row.get("samples")
    if not isinstance(about, Mapping):
        raise UserError("is no log of inspect_ai: it has no `eval`. Logs are .eval files, or JSON by `inspect log dump LOG`")
    if row.get("status") == "started":
        raise UserError(STILL_WRITTEN)
    if not isinstance(samples, list):
        raise UserError("the log has no samples, only its header: `inspect log dump LOG` without --header-only writes all")
    about = with_scorers(about, samples)
    for place, sample in enumerate(samples):
        if row.get("status") not in (None, "success"):
            count("evaluation_not_completed")
        yield (
            place,
            {**sample, "eval": about} if isinstance(sample, Mapping) else BadRow("not_an_object", {"sample": repr(sample)[:80]}),
        )


def parse_inspect(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add a sample of an epoch: what the model was asked, its answer, a grade by each scorer. Of several scorers each is an aspect."""
    about, where = row["eval"], {"sample": row.get("id"), "epoch": row.get("epoch")}
    if row.get("error"):
        error = row["error"]
        raise BadRow(
            "sample_error",
            {**where, "error": str(error.get("message") if isinstance(error, Mapping) else error)[:200]},
            limited=False,
        )
    if row.get("invalidation"):
        raise BadRow("invalidated", where, limited=False)
    choices = as_list(as_object(row.get("output")).get("choices"))
    said = as_object(as_object(choices[0]).get("message")) if choices else {}
    if not said:
        raise BadRow("no_output", where, limited=False)
    scores = as_object(row.get("scores"))
    if not scores:
        raise BadRow("not_scored", where, limited=False)
    attached = as_object(row.get("attachments"))
    answer = _message(said, attached)
    out.prompt(_asked(row, attached, out))
    index = out.completion(read_reply(answer, out.count), said.get("model") or about.get("model"))
    scorers = {str(as_object(one).get("name")).split("/")[-1]: one for one in as_list(about.get("scorers"))}
    for name, given in scores.items():
        score = as_object(given)
        value = score.get("value")
        graded_by = _judge(as_object(scorers.get(name)))
        machine = "ai" if graded_by or name.startswith("model_graded") else "reward_model"
        by = {"rater": options.rater or graded_by or name, "kind": options.kind or machine}
        if score.get("history"):
            out.count("corrected_scores")
        aspect = name if max(len(scores), len(scorers)) > 1 else "overall"
        note = as_note(score.get("explanation"))
        for inner, one in value.items() if isinstance(value, Mapping) else [(None, value)]:
            _rate(out, index, one, {**by, "aspect": aspect if inner is None else inner}, note, {**where, "scorer": name}, options)
    out.extra({"task": about.get("task"), "sample": row.get("id")})


def _rate(
    out: FeedbackBuilder,
    index: int,
    value: Any,
    by: dict[str, str],
    note: str | None,
    where: Mapping[str, Any],
    options: SourceOptions,
) -> None:
    low, high = options.scale or (None, None)
    if value is None or value != value:
        out.reject("no_verdict", unit="grade", limited=False, evidence={**where, "explanation": (note or "")[:200]})
        return
    if isinstance(value, bool):
        value, low, high = float(value), 0.0, 1.0
    elif isinstance(value, str):
        check, number = LETTERS.get(value, WORDS.get(value.lower())), plain_number(value, ".")
        value, low, high = (check, 0.0, 1.0) if check is not None else (value if number is None else number, low, high)
    try:
        out.rating(index, value, **by, low=low, high=high, note=note)
    except BadRow as error:
        out.reject(error.reason, unit="grade", limited=error.limited, evidence={**where, **(error.evidence or {})})


def _judge(scorer: Mapping[str, Any]) -> str | None:
    """The model that a scorer asks, where it names one."""
    model = as_object(scorer.get("options")).get("model")
    model = model.get("model") if isinstance(model, Mapping) else model
    return model if isinstance(model, str) else None


def _asked(row: Mapping[str, Any], attached: Mapping[str, str], out: FeedbackBuilder) -> Any:
    """The messages before the first answer, as solvers sent them; of a sample without messages its input."""
    given = row.get("input")
    given = list(map(as_object, given)) if isinstance(given, list) else given
    messages = list(map(as_object, as_list(row.get("messages"))))
    own = len(given) if isinstance(given, list) else 1
    first = next((place for place, one in enumerate(messages) if place >= own and one.get("role") == "assistant"), None)
    if first is None:
        return [_message(one, attached) for one in given] if isinstance(given, list) else _attached(given, attached)
    if first < len(messages) - 1:
        out.count("steps_left_out")
    asked = [_message(one, attached) for one in messages[:first]]
    return asked[0]["content"] if len(asked) == 1 and asked[0]["role"] == "user" and isinstance(asked[0]["content"], str) else asked


def _message(message: Mapping[str, Any], attached: Mapping[str, str]) -> dict[str, Any]:
    """Role, content and calls of a message, its calls laid out as OpenAI does."""
    content = message.get("content")
    if isinstance(content, list):
        content = [
            {key: _attached(value, attached) for key, value in part.items()} if isinstance(part, Mapping) else part
            for part in content
        ]
    found = {"role": message.get("role"), "content": _attached(content, attached)}
    if message.get("tool_call_id"):
        found["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        found["tool_calls"] = [
            {"id": one.get("id"), "type": "function", "function": {"name": one.get("function"), "arguments": one.get("arguments")}}
            for one in map(as_object, as_list(message["tool_calls"]))
        ]
    return found


def _attached(text: Any, attached: Mapping[str, str]) -> Any:
    """The text itself, where the log keeps it apart."""
    return attached.get(text.removeprefix(ATTACHED), text) if isinstance(text, str) and text.startswith(ATTACHED) else text


def _sample(reply: str, grade: str, epoch: int) -> dict[str, Any]:
    said = {"role": "assistant", "content": reply, "model": "a-model"}
    asked = {"role": "user", "content": "Name a planet."}
    scores = {"model_graded_qa": {"value": grade, "answer": reply, "explanation": f"GRADE: {grade}"}}
    output = {"model": "a-model", "choices": [{"message": said}]}
    return {"id": 1, "epoch": epoch, "input": "Name a planet.", "messages": [asked, said], "output": output, "scores": scores}


INSPECT = Source(
    "inspect",
    "Logs of inspect_ai (.eval and .json): every epoch's answer and the scorers' grades of it",
    parse=parse_inspect,
    requires=column_sets("eval input output"),
    folded=column_sets("eval samples"),
    scaled=True,
    aspects="the scorers",
    samples=(
        FormatSample(
            "a log as JSON (an .eval file holds the same), a sample in two epochs",
            (
                {
                    "status": "success",
                    "eval": {"task": "planets", "model": "a-model", "scorers": [{"name": "model_graded_qa"}]},
                    "samples": [_sample("Mars, the red one.", "C", 1), _sample("The moon.", "I", 2)],
                },
            ),
        ),
    ),
    unfold=unfold_inspect,
    range="0 to 1 for letters (I and N 0, P 0.5, C 1) and checks (true, yes); numbers as the scorer gives them",
    direction="C is better than P, P than I; of numbers the higher",
    traps={
        "no verdict": "a judge without a verdict leaves the literal NaN, which is left out of the mean",
        "epochs": "every epoch is a sample of its own with an answer of its own: means over epochs are of several answers",
        "errors": "samples that ended in an error are listed without scores",
        "prompts": "`input` is what the data set has, not what solvers made of it and sent",
    },
)
