"""Prompts that hold what an evaluation asks: n-grams of words in common with evaluation prompts.

As Tülu 3 does it (Lambert et al. 2024, arXiv 2411.15124, §3.2): of an evaluation prompt, the words that stand in an n-gram which the
training prompt has too are counted; where they are more than a share of all its words, the training prompt is left out. n = 8 and a share
of .5 are theirs; n = 13 with a share of 0 is GPT-3's rule (Brown et al. 2020, appendix C). An evaluation prompt of fewer than n words
counts where a whole message of the training prompt has the same words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat, offsets_of, parents, ranges
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters.words import beginnings, keys_of, runs_of_words, words_of
from mmpo.pipeline.sources.builder import BadRow
from mmpo.pipeline.sources.cells import reader, top_column
from mmpo.pipeline.sources.literals import NUMPYS_PRINT, is_numpys_print, spelled
from mmpo.pipeline.sources.messages import ROLES, TOOL_ROLES, read_conversation, read_text
from mmpo.pipeline.storage.files import digest
from mmpo.pipeline.storage.inputs import resolve_inputs
from mmpo.pipeline.storage.rows import parse_line, plan, rows
from mmpo.pipeline.storage.text_files import BOM, InputFile, lines, utf8_blocks

NGRAM, SHARE = 8, 0.5
SHOWN_CHARACTERS = 200
COLUMNS = ("prompt", "question", "instruction", "problem", "query", "input", "messages", "conversation", "conversations", "turns")
"""Columns in which evaluation prompts are looked for, in whatever case: of each row the first that holds anything."""
TEXT_FILES = (".txt", ".txt.gz", ".txt.zst")


@dataclass(frozen=True)
class EvaluationPrompts:
    """Evaluation prompts as n-grams. grams: distinct ones, ascending; starts, texts, places: gram i stands in the texts
    texts[starts[i]:starts[i + 1]], at these words; lengths: words of each text; keys: of short texts, ascending, and short: which texts
    they are; names: file and row of each text; shown: how it begins; files: what was read."""

    ngram: int
    grams: np.ndarray
    starts: np.ndarray
    texts: np.ndarray
    places: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    short: np.ndarray
    names: list[tuple[str, int]]
    shown: list[str]
    files: list[dict[str, Any]]


def read_evaluation(paths: Sequence[str], ngram: int = NGRAM, column: str | None = None) -> EvaluationPrompts:
    """The evaluation prompts of files (JSON, CSV, Parquet, Arrow, text with a prompt a line) or dataset folders. Raises UserError."""
    found: dict[str, tuple[str, int]] = {}  # files of judgments have a prompt many times
    files: list[dict[str, Any]] = []
    for file in evaluation_files(paths):
        count = 0
        for row, text in _texts(file, column):
            if text.strip():
                found.setdefault(text, (file.name, row))
                count += 1
        if not count:
            raise UserError(f"--decontaminate {file.name}: holds no prompt")
        files.append({"name": file.name, "digest": digest(file.path), "texts": count})
    return indexed(list(found), ngram, list(found.values()), files)


def indexed(texts: Sequence[str], ngram: int, names: list[tuple[str, int]], files: list[dict[str, Any]]) -> EvaluationPrompts:
    """The texts as n-grams."""
    words = words_of(pa.array(texts, pa.large_string()))
    lengths = np.diff(words.offsets)
    at = beginnings(words, ngram)
    gram, text = runs_of_words(words, ngram)[at], parents(words.offsets)[at]
    order = np.argsort(gram, kind="stable")
    distinct, first = np.unique(gram[order], return_index=True)
    short = np.flatnonzero((lengths < ngram) & (lengths > 0))
    keys = keys_of(words)[short]
    by_key = np.argsort(keys, kind="stable")
    return EvaluationPrompts(
        ngram, distinct, np.append(first, len(order)), text[order], (at - words.offsets[text])[order], lengths, keys[by_key],
        short[by_key], names, [text[:SHOWN_CHARACTERS] for text in texts], files,
    )  # fmt: skip


def evaluation_files(paths: Sequence[str]) -> Iterator[InputFile]:
    """The files behind what --decontaminate names. Raises UserError where there is none."""
    for path in paths:
        if path.lower().endswith(TEXT_FILES):
            if not Path(path).is_file():
                raise UserError(f"--decontaminate: no such file: {path}")
            yield InputFile(path, "text", path)
            continue
        try:
            yield from resolve_inputs([path], "auto")
        except UserError as error:
            raise UserError(f"--decontaminate: {error}") from error


def _texts(file: InputFile, column: str | None) -> Iterator[tuple[int, str]]:
    """Row and text of every evaluation prompt of a file; of a conversation each message of the user. Raises UserError where one
    holds none."""
    if file.kind == "text":
        yield from ((number, line.decode("utf-8", "replace")) for number, line in enumerate(lines(file), 1))
        return
    place = "line" if file.kind in ("json", "csv") else "row"

    def refuse(number: int, reason: str, evidence: Any = None) -> None:
        told = (
            f" ({BARE})"
            if reason == "not_an_object"
            else f" ({', '.join(f'{key}: {one}' for key, one in (evidence or {}).items())})"
        )
        raise UserError(
            f"--decontaminate {file.name}, {place} {number}: {reason}{told if evidence else ''}; mend the file, so that no prompt of it "
            "is missed"
        )

    bare = _array_of_texts(file) if file.kind == "json" else None
    given: Iterator[tuple[int, Any]] = (
        enumerate(bare, 1) if bare is not None else (one for chunk in plan([file]) for one in rows(chunk, refuse))
    )
    readers: dict[tuple[Any, ...], list[tuple[str, Callable[[Any], Any]]]] = {}  # files may mix the columns of several sets
    for number, row in given:
        name, value = "", row
        if bare is None:
            present = tuple(row)
            if present not in readers:
                readers[present] = _readers(present, column)
            if not readers[present]:
                raise UserError(
                    f"--decontaminate {file.name}, {place} {number}: no column {column or ', '.join(COLUMNS)}; it has "
                    f"{', '.join(map(str, present[:20]))}. Name the one that holds the prompts with --decontaminate-column"
                )
            cells = ((name, read(row)) for name, read in readers[present])
            name, value = next((one for one in cells if not _is_empty(one[1])), (readers[present][0][0], None))
        try:
            said = _said(value)
        except BadRow as error:
            refuse(number, error.reason, {**({"column": name} if name else {}), **(error.evidence or {})})
            raise
        yield from ((number, text) for text in said)


BARE = 'write {"prompt": TEXT} a line, one array of texts, or a .txt with a prompt a line'


def _array_of_texts(file: InputFile) -> list[str] | None:
    """The texts of a JSON file that is one array of nothing else."""
    if not next((line for line in lines(file) if line.strip()), b"").lstrip().startswith(b"["):
        return None
    value, _, _ = parse_line(b"".join(utf8_blocks(file)).removeprefix(BOM))
    return value if isinstance(value, list) and value and all(isinstance(one, str) for one in value) else None


def _readers(present: Sequence[Any], column: str | None) -> list[tuple[str, Callable[[Any], Any]]]:
    """Name and reader of the columns that may hold the prompt of rows with these."""
    names = [str(one) for one in present]
    by_case = {one.casefold(): one for one in reversed(names)}
    wanted = [column] if column else [by_case[one] for one in COLUMNS if one in by_case]
    return [(one, reader(one, names)) for one in wanted if top_column(one, names) in names]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple) and not (value.strip() if isinstance(value, str) else value))


def _said(value: Any) -> list[str]:
    """The texts of a cell: a text, texts, or the user's messages of a conversation. Raises BadRow where there is none, or where one of
    them is no text, or numpy printed them."""
    value = read_conversation(value)
    if isinstance(value, str) and is_numpys_print(value):
        raise BadRow("numpys_print", {"hint": NUMPYS_PRINT})
    inside = spelled(value)  # turns that a table keeps as one text
    if isinstance(inside, list) and inside and all(isinstance(one, str | Mapping) for one in inside):
        value = inside
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Mapping):
            role = one.get("role") or one.get("from") or "user"
            if str(role).strip().lower() not in (*ROLES, *TOOL_ROLES):
                raise BadRow("unknown_role", {"role": str(role)[:80]})
            if ROLES.get(str(role).strip().lower()) != "user":
                continue
            content = one.get("content")
            one = read_text(one.get("value") if content is None else content)
            one = one if isinstance(one, str) else type(one)
        if one is not None and not isinstance(one, str):
            raise BadRow("not_text", {"type": (one if isinstance(one, type) else type(one)).__name__})
        found.append(one or "")
    if not any(text.strip() for text in found):
        raise BadRow("no_text", {"hint": "there is no prompt"})
    return found


def contaminated(prompts: pa.ListArray, evaluation: EvaluationPrompts, share: float) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Which prompts (lists of messages) hold more than this share of an evaluation prompt, and for each of them {"file", "row",
    "evaluation", "share", "ngram"}: of the evaluation prompt of which it holds most, and the first n-gram in common with it."""
    messages, size = prompts.flatten(), len(evaluation.lengths)
    row = parents(offsets_of(prompts))
    words = words_of(flat(messages.field("content")))
    at = beginnings(words, evaluation.ngram)
    gram = runs_of_words(words, evaluation.ngram)[at]
    where = np.minimum(np.searchsorted(evaluation.grams, gram), max(len(evaluation.grams) - 1, 0))
    hit = evaluation.grams[where] == gram if len(evaluation.grams) else np.zeros(len(gram), dtype=bool)
    at, where = at[hit], where[hit]
    owner = row[parents(words.offsets)[at]]
    best: dict[int, tuple[float, int, int]] = {}
    for low, high in _cut(owner, np.diff(evaluation.starts)[where]):
        counts = np.diff(evaluation.starts)[where[low:high]]
        there = ranges(evaluation.starts[where[low:high]], counts)
        pair = np.repeat(owner[low:high], counts) * size + evaluation.texts[there]
        place, word = evaluation.places[there], np.repeat(at[low:high], counts)
        order = np.lexsort((place, pair))
        pair, place, word = pair[order], place[order], word[order]
        goes_on = np.append(pair[1:] == pair[:-1], False)  # a word in two n-grams is counted once
        covered = np.where(goes_on, np.minimum(evaluation.ngram, np.diff(place, append=0)), evaluation.ngram)
        found, start = np.unique(pair, return_index=True)
        part = np.add.reduceat(covered, start) / evaluation.lengths[found % size]
        first = np.minimum.reduceat(word, start) if len(start) else start
        for one, value, begins in zip(found.tolist(), part.tolist(), first.tolist()):
            prompt, text = divmod(one, size)
            best[prompt] = max(best.get(prompt, (0.0, 0, 0)), (value, -text, begins))
    result = {
        prompt: (value, -text, words.text(begins, evaluation.ngram))
        for prompt, (value, text, begins) in best.items()
        if value > share
    }
    if len(evaluation.keys):
        keys, lengths = keys_of(words), np.diff(words.offsets)
        place = np.minimum(np.searchsorted(evaluation.keys, keys), len(evaluation.keys) - 1)
        for message in np.flatnonzero((evaluation.keys[place] == keys) & (lengths > 0)).tolist():
            told = words.text(int(words.offsets[message]), int(lengths[message]))
            result[int(row[message])] = (1.0, int(evaluation.short[place[message]]), told)
    out = np.zeros(len(prompts), dtype=bool)
    out[list(result)] = True
    details = []
    for prompt in sorted(result):
        value, text, gram_text = result[prompt]
        file, number = evaluation.names[text]
        details.append(
            {"file": file, "row": number, "share": round(value, 4), "ngram": gram_text, "evaluation": evaluation.shown[text]}
        )
    return out, details


MOST_POSTINGS = 1 << 22


def _cut(owner: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of hits, prompts whole, that have about so many places in evaluation prompts."""
    if not len(owner):
        return
    block = np.cumsum(sizes) // MOST_POSTINGS
    ends = np.flatnonzero((np.diff(owner) != 0) & (np.diff(block) != 0)) + 1
    low = 0
    for high in [*ends.tolist(), len(owner)]:
        yield low, high
        low = high
