"""PROMPTS, whatever they stand in, as a FEEDBACK folder: one that is there, or one built of files for the time of the run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpo.annotate.generate.options import GenerateOptions
from mmpo.annotate.rows import Feedback, FeedbackRow
from mmpo.pipeline.build import BuildOptions, build, check_format
from mmpo.pipeline.engines import held_folder
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import batches, dataset_at
from mmpo.pipeline.tables import FEEDBACK

BY_NAME = {
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".xlsm"), "csv"),
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "parquet",
}
"""What files are read as where no format is named; .gz and .zst behind it do not count."""
READING = ("columns", "scale", "encoding", "sep", "sheet", "max_rejects")


@contextmanager
def opened(sources: Sequence[str | Path], options: GenerateOptions) -> Iterator[Feedback]:
    """The prompts as rows of FEEDBACK; files are read by `build` into a folder that goes with the block. Raises UserError."""
    if not sources:
        raise UserError("no prompts are named: give a file, a folder, a glob or a FEEDBACK folder")
    if _is_feedback(sources) and options.format in (None, "feedback"):
        yield Feedback.open(sources[0], options.limit, options.seed)
        return
    format = options.format or _by_name(sources, options)
    given: dict[str, Any] = {name: getattr(options, name) for name in READING}
    reading = BuildOptions(format=format, feedback_only=True, bare_prompts=True, **given)
    with held_folder("mmpo-prompts-") as scratch:
        build(sources, folder := scratch / "prompts", options=reading)
        yield Feedback.open(folder, options.limit, options.seed)


def _is_feedback(sources: Sequence[str | Path]) -> bool:
    return len(sources) == 1 and dataset_at(sources[0]) is not None


def _by_name(sources: Sequence[str | Path], options: GenerateOptions) -> str:
    suffixes = {next((end for end in reversed(Path(one).suffixes) if end in BY_NAME), "") for one in sources}
    formats = {BY_NAME.get(suffix) for suffix in suffixes}
    if len(formats) == 1 and (format := formats.pop()):
        return format
    return check_format(list(map(str, sources)), None, encoding=options.encoding, sep=options.sep, sheet=options.sheet)


def unanswerable(row: FeedbackRow) -> str:
    """Why a prompt can't be answered: no_user_turn, or ends_with_assistant; "" where it can."""
    if not any(message["role"] == "user" and message["content"].strip() for message in row.prompt):
        return "no_user_turn"
    return "ends_with_assistant" if row.prompt[-1]["role"] == "assistant" else ""


def prompt_ids(feedback: Feedback) -> set[str]:
    """The ids of all prompts of a folder."""
    return {one for batch in batches(feedback.files, ["prompt_id"], 16_384, FEEDBACK) for one in batch.column(0).to_pylist()}
