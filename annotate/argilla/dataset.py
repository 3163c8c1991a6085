"""What a dataset of Argilla asks: fields, questions, hidden metadata, guidelines; how it is made, and how it is read back.

A dataset is made in several requests. Killed between them, it is a draft without records, and the next call adds what is missing.
Annotators see no metadata: which model wrote what, and where a row came from, is for filters of owners and admins.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmpo.annotate.argilla.client import Client, RequestRefused, dataset_of, settings_of
from mmpo.annotate.argilla.display import DISPLAYS
from mmpo.annotate.argilla.records import LETTERS
from mmpo.pipeline.errors import UserError, printable

GRADES = {
    "3": "A much better",
    "2": "A better",
    "1": "A slightly better",
    "0": "tie",
    "-1": "B slightly better",
    "-2": "B better",
    "-3": "B much better",
}
"""The seven signed grades, value and label, as they stand from left to right; positive: A, which is shown first, is better."""

RATIONALE = "rationale"
LONGEST_GUIDELINES = 10_000
NAMES = re.compile(r"(grade|rating_([a-j]))(?:_(.+))?")


@dataclass(frozen=True)
class DatasetDesign:
    """What a dataset must ask. replies: fields for so many; required: how many of them must be rated."""

    questions: str
    aspects: tuple[str, ...]
    replies: int = 2
    required: int = 2
    scale: tuple[int, int] = (1, 5)
    rationale: bool = True
    display: str = "markdown"


@dataclass(frozen=True)
class AskedQuestion:
    """One question of a dataset as Argilla has it now. letter: of the reply that is rated, "" for a comparison.

    low, high: the scale, of a comparison −3 and 3; reworded: its title or labels are no longer those that were pushed.
    """

    id: str
    name: str
    aspect: str
    letter: str
    low: int
    high: int
    reworded: bool


def question_name(aspect: str, letter: str = "") -> str:
    """The name of the question about an aspect, of one reply where a letter is given.

    >>> question_name("overall"), question_name("tone", "b")
    ('grade', 'rating_b_tone')
    """
    start = f"rating_{letter}" if letter else "grade"
    return start if aspect == "overall" else f"{start}_{aspect}"


def _title(aspect: str, letter: str) -> str:
    about = "" if aspect == "overall" else f"{aspect}: "
    return f"{about}Reply {letter.upper()}" if letter else f"{about}Which reply is better, and by how much?"


def _fields(design: DatasetDesign) -> list[dict[str, Any]]:
    markdown = DISPLAYS[design.display].markdown
    chat = {"name": "prompt", "title": "Conversation", "required": True, "settings": {"type": "chat", "use_markdown": markdown}}
    return [chat] + [
        {"name": f"reply_{letter}", "title": f"Reply {letter.upper()}", "required": place < design.required,
         "settings": {"type": "text", "use_markdown": markdown}}
        for place, letter in enumerate(LETTERS[: design.replies])
    ]  # fmt: skip


def _questions(design: DatasetDesign) -> list[dict[str, Any]]:
    if design.questions == "pairs":
        options = [{"value": value, "text": text} for value, text in GRADES.items()]
        settings: dict[str, Any] = {"type": "label_selection", "options": options, "visible_options": len(options)}
        asked = [("", aspect, True) for aspect in design.aspects]
    else:
        settings = {"type": "rating", "options": [{"value": value} for value in range(design.scale[0], design.scale[1] + 1)]}
        letters = LETTERS[: design.replies]
        asked = [(letter, aspect, place < design.required) for place, letter in enumerate(letters) for aspect in design.aspects]
    found = [
        {"name": question_name(aspect, letter), "title": _title(aspect, letter), "required": required, "settings": settings}
        for letter, aspect, required in asked
    ]
    if design.rationale:
        found.append(
            {"name": RATIONALE, "title": "Why? (optional)", "required": False, "settings": {"type": "text", "use_markdown": False}}
        )
    return found


def _properties(design: DatasetDesign) -> list[dict[str, Any]]:
    kinds = {"source": "terms", **{f"model_{letter}": "terms" for letter in LETTERS[: design.replies]}}
    kinds |= {"margin": "float", "margin_se": "float"} if design.questions == "pairs" else {}
    return [
        {"name": name, "title": name, "visible_for_annotators": False, "settings": {"type": kind}} for name, kind in kinds.items()
    ]


def settings_of_design(design: DatasetDesign, guidelines: str) -> dict[str, Any]:
    """The settings of a dataset as the SDK's `Settings.from_json` reads them; `ensure_dataset` makes the same, a part at a time."""
    return {
        "guidelines": guidelines, "fields": _fields(design), "questions": _questions(design), "metadata": _properties(design),
        "vectors": [], "allow_extra_metadata": True, "distribution": {"strategy": "overlap", "min_submitted": 1}, "mapping": None,
    }  # fmt: skip


def guidelines_of(design: DatasetDesign, file: str | None, *, suggest: bool) -> str:
    """The guidelines: a file's text, else ours. Raises UserError: no such file, longer than Argilla takes."""
    if file is None:
        loader = FileSystemLoader(Path(__file__).parent / "templates")
        environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("guidelines.j2").render(design=design, suggest=suggest, grades=list(GRADES.values()))
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--guidelines {file}: can't be read: {error}") from None
    if not 0 < len(text) <= LONGEST_GUIDELINES:
        raise UserError(f"--guidelines {file}: {len(text):,} characters; Argilla takes 1 to {LONGEST_GUIDELINES:,}")
    return text


def asked_of(settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, AskedQuestion]:
    """The grading questions of a dataset by name; those that are none of ours are left out."""
    found: dict[str, AskedQuestion] = {}
    for question in settings["questions"]:
        match = NAMES.fullmatch(question["name"])
        kind = question["settings"]["type"]
        if match is None or kind != ("rating" if match[2] else "label_selection"):
            continue
        letter, aspect = match[2] or "", match[3] or "overall"
        options = question["settings"]["options"]
        reworded = question["title"] != _title(aspect, letter)
        if letter:
            values = [int(option["value"]) for option in options]
            low, high = min(values), max(values)
        else:
            reworded |= {option["value"]: option["text"] for option in options} != GRADES
            low, high = -3, 3
        found[question["name"]] = AskedQuestion(question["id"], question["name"], aspect, letter, low, high, reworded)
    return found


def display_of(settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How the dataset shows texts."""
    prompt = next((field for field in settings["fields"] if field["name"] == "prompt"), None)
    markdown = prompt is not None and prompt["settings"].get("use_markdown")
    return "markdown" if markdown else "plain"


def ensure_dataset(
    client: Client,
    workspace: Mapping[str, Any],
    name: str,
    design: DatasetDesign,
    guidelines: str,
    raters: int | None,
    *,
    own: bool,
) -> tuple[dict[str, Any], bool]:
    """The dataset, made or completed where need be, and whether it is new. own: the guidelines are the user's and replace the old.

    Raises UserError where a dataset of this name asks something else.
    """
    found = dataset_of(client, workspace["id"], name)
    new = found is None
    if found is None:
        found = _made(client, workspace, name, guidelines, raters or 1)
    if found["status"] != "ready":
        _complete(client, found, design, name)
        return dataset_of(client, workspace["id"], name) or found, True
    _check(settings_of(client, found["id"]), design, name)
    change: dict[str, Any] = {"guidelines": guidelines} if own and found["guidelines"] != guidelines else {}
    if raters is not None and found["distribution"]["min_submitted"] != raters:
        change["distribution"] = {"strategy": "overlap", "min_submitted": raters}
    if change and not new:
        client.request("PATCH", f"datasets/{found['id']}", body=change)
    return found, new


def _made(client: Client, workspace: Mapping[str, Any], name: str, guidelines: str, raters: int) -> dict[str, Any]:
    body = {
        "name": name, "workspace_id": workspace["id"], "guidelines": guidelines, "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": raters},
    }  # fmt: skip
    try:
        return client.request("POST", "datasets", body=body)
    except RequestRefused:
        # Asked again after a reply that was lost, or by two people at once: it may be there already.
        found = dataset_of(client, workspace["id"], name)
        if found is None:
            raise
        return found


def _complete(client: Client, dataset: Mapping[str, Any], design: DatasetDesign, name: str) -> None:
    """Add the fields and questions that a draft lacks, and publish it."""
    there = settings_of(client, dataset["id"])
    parts = {"fields": _fields(design), "questions": _questions(design), "metadata-properties": _properties(design)}
    for what, wanted in parts.items():
        have = {one["name"] for one in there[what]}
        foreign = sorted(have - {one["name"] for one in wanted})
        if foreign:
            raise _other(name, f"an unfinished one with {what} {', '.join(map(printable, foreign))}", design)
        for one in wanted:
            if one["name"] not in have:
                _unless_done(client, "POST", f"datasets/{dataset['id']}/{what}", one, "already exists")
    _unless_done(client, "PUT", f"datasets/{dataset['id']}/publish", None, "already been published")


def _unless_done(client: Client, method: str, path: str, body: Mapping[str, Any] | None, done: str) -> None:
    """Send a request; a refusal that says that it was carried out before, by a lost try or by somebody else, is as good."""
    try:
        client.request(method, path, body=body)
    except RequestRefused as error:
        if done not in error.detail:
            raise


def _check(settings: Mapping[str, Sequence[Mapping[str, Any]]], design: DatasetDesign, name: str) -> None:
    """Refuse a dataset that does not ask what is to be pushed."""
    fields = {field["name"] for field in settings["fields"]}
    asked = asked_of(settings)
    wanted = {question["name"] for question in _questions(design)} - {RATIONALE}
    own = {"prompt", "reply_a"} <= fields
    same_kind = {question_name(aspect, "a" if design.questions == "ratings" else "") for aspect in design.aspects} <= set(asked)
    same_scale = design.questions == "pairs" or all((one.low, one.high) == design.scale for one in asked.values())
    extra = {one.aspect for one in asked.values()} - set(design.aspects)
    if not own or not same_kind or not same_scale or extra or (design.questions == "pairs" and not wanted <= set(asked)):
        described = ", ".join(f"{one.name} ({one.low} to {one.high})" for one in asked.values()) or "nothing that mmpo asks"
        raise _other(name, f"one that asks {described}", design)


def _other(name: str, what: str, design: DatasetDesign) -> UserError:
    wanted = f"{design.questions} about {', '.join(design.aspects)}" + (
        f" on {design.scale[0]} to {design.scale[1]}" if design.questions == "ratings" else ""
    )
    return UserError(
        f"the dataset {printable(name)!r} is there already, {what}; to be pushed are {wanted}. What a published dataset asks cannot be "
        "changed: name another by --dataset, or push what it asks (--questions, --aspects, --scale)"
    )
