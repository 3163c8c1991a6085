"""Phoenix's annotations of spans, by people, judges and code, joined with the spans' texts and written as JSON lines.

Its client gives two frames, of spans and of their annotations (looked at: arize-phoenix 20.26.1, arize-phoenix-client 3.5.0); `RECIPE`
joins them. Messages stand flattened in the columns `llm.input_messages`, whole requests as JSON in `input.value`.
"""

from collections.abc import Mapping
from typing import Any

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.base import FormatSample, Source, SourceOptions, column_sets
from mmpo.pipeline.sources.builder import FeedbackBuilder
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.sources.messages import read_reply
from mmpo.pipeline.sources.tools.answers import as_list, as_note, as_object

KINDS = {"HUMAN": "human", "LLM": "ai", "CODE": "reward_model"}
"""Who annotates, as Phoenix and as we call it; code that gives a score is a model of rewards."""
INPUT, OUTPUT = "attributes.input.value", "attributes.output.value"
ASKED, SAID = "attributes.llm.input_messages", "attributes.llm.output_messages"
RECIPE = (
    "spans = client.spans.get_spans_dataframe(project_identifier=P); "
    "notes = client.spans.get_span_annotations_dataframe(spans_dataframe=spans, project_identifier=P); "
    'notes.join(spans.filter(regex="^attributes"), on="span_id").reset_index().to_json(FILE, orient="records", lines=True)'
)


def parse_phoenix(row: Mapping[str, Any], out: FeedbackBuilder, options: SourceOptions) -> None:
    """Add one annotation of one span as a grade of its output; the annotation's name is the aspect. Raises BadRow: no_grade (a label
    alone), not_text, and those of messages."""
    name = str(row.get("annotation_name") or "overall")
    score = row.get("result.score")
    if score is None or score != score:
        hint = "a label is no grade: annotate with scores, or read the file by --format jsonl"
        raise BadRow("no_grade", {"annotation_name": name, "result.label": row.get("result.label"), "hint": hint}, limited=False)
    out.prompt(_messages(row.get(ASKED)) or _inside(row.get(INPUT), "messages") or row.get(INPUT))
    said = _messages(row.get(SAID))
    choices = _inside(row.get(OUTPUT), "choices")
    if said:
        reply = said[-1]["content"]
    elif choices and isinstance(choices[0], Mapping) and choices[0].get("message"):
        reply = read_reply(choices[0]["message"], out.count)
    else:
        reply = row.get(OUTPUT)
    given = str(row.get("annotator_kind") or "")
    low, high = options.scale or (None, None)
    out.rating(
        out.completion(reply, row.get("attributes.llm.model_name")),
        score,
        rater=options.rater or str(row.get("identifier") or row.get("user_id") or given.lower() or "annotator"),
        kind=options.kind or KINDS.get(given, given.lower() or "human"),
        aspect=name,
        low=low,
        high=high,
        note=as_note(row.get("result.explanation")),
    )


def _messages(given: Any) -> list[dict[str, Any]] | None:
    """Flattened messages that hold texts alone; None of others, which the request itself has as they were sent."""
    found = structure(given) if isinstance(given, str) else given
    messages: list[dict[str, Any]] = []
    for one in map(as_object, as_list(found)):
        text = one.get("message.content")
        parts = [as_object(part).get("message_content.text") for part in as_list(one.get("message.contents"))]
        texts = [part for part in ([text] if text is not None else parts) if isinstance(part, str)]
        if len(texts) < max(1, len(parts)) or one.get("message.tool_calls"):
            return None
        messages.append({"role": one.get("message.role"), "content": "".join(texts)})
    return messages or None


def _inside(value: Any, key: str) -> list[Any] | None:
    """The list under a key of a request or a completion that stands as JSON in a text; None where there is none."""
    found = structure(value) if isinstance(value, str) and value[:1] == "{" else value
    inside = found.get(key) if isinstance(found, Mapping) else None
    return inside if isinstance(inside, list) and inside else None


def _row(text: str, score: float, **more: Any) -> dict[str, Any]:
    about = {"span_id": f"{int(score):016x}", "annotation_name": "quality", "annotator_kind": "HUMAN", "identifier": "anna"}
    result = {"result.score": score, "result.label": None, "result.explanation": None}
    return {**about, **result, INPUT: "Name a planet.", OUTPUT: text, **more}


def _flat(role: str, text: str) -> list[dict[str, str]]:
    return [{"message.role": role, "message.content": text}]


PHOENIX = Source(
    "phoenix",
    "Phoenix's annotations of spans by people, judges and code, joined with the spans' texts",
    parse=parse_phoenix,
    requires=column_sets(
        f"annotation_name annotator_kind result.score {INPUT} {OUTPUT}",
        f"annotation_name annotator_kind result.score {ASKED} {SAID}",
    ),
    scaled=True,
    export=f"Annotations and spans are two frames of Phoenix's client, to be joined: {RECIPE}.",
    aspects="the annotations' names",
    samples=(
        FormatSample(
            "annotations with the texts of their spans: " + RECIPE,
            (_row("Mars, the red one.", 5.0), _row("The moon.", 2.0)),
            "--score quality --scale 1:5",
        ),
        FormatSample(
            "of calls of a chat model, with their messages apart",
            tuple(
                _row(f'{{"choices": [{{"message": {{"role": "assistant", "content": "{text}"}}}}]}}', score)
                | {INPUT: "{}", ASKED: _flat("user", "Name a planet."), SAID: _flat("assistant", text)}
                for text, score in (("Mars, the red one.", 5.0), ("The moon.", 2.0))
            ),
            "--score quality --scale 1:5",
        ),
    ),
    range="as the annotations have it: --scale",
    direction="higher is better",
    traps={
        "requests": "`input.value` of a call is the whole request as JSON: taken as it is, its prompt is a text of JSON",
        "labels": "an annotation may be a label without a score, which is no grade",
        "identifiers": "an annotation replaces one of the same name and identifier, whoever made it: without identifiers a judge's takes "
        "the place of a person's in Phoenix itself, and what is left is known by its kind alone",
    },
)
