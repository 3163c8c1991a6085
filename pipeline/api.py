"""The Python surface: what `mmpo build` does, in steps, on tables that fit in memory. Large inputs go through `build`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import flat, large, narrow
from mmpo.pipeline.build import (
    BuildOptions,
    ResolvedBuild,
    check_format,
    check_rejects,
    look_at,
    merged_grades,
    none_left,
    prompt_rules,
    resolve_build,
    with_duplicates,
    with_learned,
    without_dropped,
)  # fmt: skip
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.filters import CONFIDENCE, NGRAM, SHARE, SHINGLE, SIMILARITY
from mmpo.pipeline.grades import drop_thinking, grade_statistics, merge_prompts
from mmpo.pipeline.interactive import InShort, Summary, arrow_table, as_file, check_table, is_table, refuse_other, shown_table
from mmpo.pipeline.options import shared
from mmpo.pipeline.pairs import check_shares, choose_pairs, pairs_table, split_of_prompts
from mmpo.pipeline.sources import SourceOptions, collect, get_source
from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import PartWriter, card, manifest_of, read_manifest, replacing, write_manifest
from mmpo.pipeline.storage.files import FileDigest
from mmpo.pipeline.storage.inputs import resolve_inputs
from mmpo.pipeline.storage.objects import name_of, on_disk
from mmpo.pipeline.storage.parts import read_parts, split_files
from mmpo.pipeline.storage.rows import plan
from mmpo.pipeline.storage.text_files import InputFile
from mmpo.pipeline.tables import FEEDBACK, PAIRS, REJECTS, SPLITS, keys_of, metadata, with_keys, with_metadata

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

Table: TypeAlias = Union[pa.Table, "DataFrame", "Dataset"]
"""A table of pyarrow, pandas or datasets."""
Input: TypeAlias = str | Path | Sequence[str | Path] | Table
"""What feedback is read from: paths, globs or names of Hub datasets, or a table."""


def read_feedback(path: Input, format: str = "", *, max_rejects: float = 0.01, **options: Any) -> pa.Table:
    """FEEDBACK from files, folders, globs or Hub datasets, one row per prompt, in the order of the prompts' ids.

    path: also a DataFrame of pandas, a Dataset of `datasets` or a Table of pyarrow, read as a file of the same rows. format: may be left
    out where the columns of the first file fit one alone, where `columns` names them, and of tables, whose columns then have the names of
    `parquet`. options: the fields of `sources.SourceOptions` (columns, scale, decimal, na, ...). `to_pandas` and `to_dataset` go back.
    Raises UserError as `mmpo build` does, also where more than `max_rejects` of the rows are unreadable or invalid, or no row is left.

    >>> read_feedback("data/ultrafeedback_pairs.jsonl", format="ultrafeedback-binarized").num_rows
    238
    >>> import pandas
    >>> frame = pandas.DataFrame({"question": ["Why?"] * 2, "answer": ["So.", "Because."], "anna": [1, 4], "ben": [2, None]})
    >>> found = read_feedback(frame, columns={"prompt": "question", "completion": "answer", "score": "anna+ben"}, scale=(1, 5))
    >>> [(one["rater"], one["score"]) for one in found["ratings"][0].as_py()]
    [('anna', 1.0), ('ben', 2.0), ('anna', 4.0)]
    """
    if is_table(path):
        with as_file(path, format) as (file, read_as):
            return _read_feedback([file], read_as, max_rejects, options)
    refuse_other(path)
    return _read_feedback([path] if isinstance(path, (str, Path)) else list(path), format, max_rejects, options)


def _read_feedback(given: Sequence[Any], format: str, max_rejects: float, options: dict[str, Any]) -> pa.Table:
    """given: paths, or files of ours."""
    for name in options:
        if name not in SourceOptions.__dataclass_fields__:
            raise unknown_name("option of read_feedback", name, SourceOptions.__dataclass_fields__)
    ours = [one for one in given if isinstance(one, InputFile)]
    if not format and not ours:
        reading = {name: options.get(name) for name in ("encoding", "sep", "sheet")}
        format = check_format(given, None, columns="columns" in options, **reading)
    source = get_source(format)
    source_options = _source_options(format, options)
    files = ours or resolve_inputs(
        given, format, encoding=source_options.encoding, separator=source_options.sep, sheet=source_options.sheet
    )
    parts = [collect(chunk, source, source_options) for chunk in plan(files, whole=source.joined is not None)]
    rejects = [part.rejects for part in parts]
    check_rejects(parts, max_rejects, files, rejects)
    if any(table.num_rows for table in rejects) and not any(part.feedback.num_rows for part in parts):
        dropped = Counter(reason for table in rejects for reason in table["reason"].to_pylist())
        lines = sum(part.lines for part in parts)
        raise none_left("no row of the input is left", dropped, lines, lines, rejects)
    merged, _ = merge_prompts(pa.concat_tables([part.feedback for part in parts]).combine_chunks())
    return narrow(merged)


def _source_options(format: str, given: Mapping[str, Any]) -> SourceOptions:
    """Options of a source, those of `mmpo build` also as its text ("1:5"); columns may be numbers, as those of pandas without names."""
    own = {name: given[name] for name in ("need_scores", "keep") if name in given}
    named = {name: value for name, value in given.items() if name not in own}
    if isinstance(columns := named.get("columns"), Mapping):
        named["columns"] = {field: str(column) for field, column in columns.items()}
    checked = BuildOptions(format=format, feedback_only=True, **named)
    return SourceOptions(**shared(checked, SourceOptions), **own)


def build_pairs(
    feedback: pa.Table,
    strategy: str = "all",
    *,
    evidence: str = "auto",
    kinds: Sequence[str] | None = None,
    raters: Sequence[str] | None = None,
    aspects: Sequence[str] | None = None,
    normalise: str = "none",
    score: str = "auto",
    merge_raters: str = "mean",
    rater_weights: str = "fitted",
    one_order: str = "drop",
    max_per_prompt: int | None = None,
    min_margin: float = 0.0,
    min_raters: int = 0,
    agree_between: Sequence[str] = (),
    ties: str = "keep",
    max_chars: int | None = None,
    min_chars: int | None = None,
    max_tokens: int | None = None,
    tokenizer: str | Path | None = None,
    languages: Sequence[str] = (),
    language_of: str = "prompts",
    language_confidence: float = CONFIDENCE,
    duplicates: Sequence[str] = (),
    similarity: float = SIMILARITY,
    shingle: int = SHINGLE,
    decontaminate: Sequence[str | Path] = (),
    decontaminate_column: str | None = None,
    decontaminate_ngram: int = NGRAM,
    decontaminate_share: float = SHARE,
    seed: int = 0,
    thinking: str = "keep",
    graded_part: str = "all",
) -> pa.Table:
    """PAIRS from FEEDBACK: the same pairs and margins as `mmpo build` with the same options makes.

    Raises UserError: unknown options, mixed scales that nothing normalises, evidence that is not there.

    >>> import pyarrow as pa
    >>> from mmpo.pipeline import read_feedback
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> feedback = read_feedback(pa.Table.from_pylist(rows), scale=(1, 5))
    >>> build_pairs(feedback)["quality_margin"].to_pylist()
    [3.0]
    """
    options = BuildOptions(
        format="feedback", evidence=evidence, kinds=tuple(kinds) if kinds else None, raters=tuple(raters) if raters else None,
        aspects=tuple(aspects) if aspects else None, normalise=normalise, score=score, merge_raters=merge_raters,
        rater_weights=rater_weights, one_order=one_order, strategy=strategy, max_per_prompt=max_per_prompt, min_margin=min_margin,
        min_raters=min_raters, agree_between=tuple(agree_between), ties=ties, max_chars=max_chars, min_chars=min_chars,
        max_tokens=max_tokens, tokenizer=tokenizer, languages=tuple(languages), language_of=language_of,
        language_confidence=language_confidence, duplicates=tuple(duplicates), similarity=similarity, shingle=shingle,
        decontaminate=tuple(decontaminate), decontaminate_column=decontaminate_column, decontaminate_ngram=decontaminate_ngram,
        decontaminate_share=decontaminate_share, seed=seed, thinking=thinking, graded_part=graded_part,
    )  # fmt: skip
    if "splits" in options.duplicates:
        raise UserError(
            "duplicates 'splits': build_pairs makes no splits; `mmpo build --duplicates splits` does, or take 'prompts'"
        )
    rules = prompt_rules(options)
    merged, resolved = grades_of(check_table(feedback, FEEDBACK, "build_pairs"), options)
    if rules.any:
        dropped, held = look_at([merged], [resolved], rules)
        tables = [dropped]
        for number, table in with_duplicates(tables.__getitem__, {name: [one] for name, one in held.items()}, rules):
            tables[number] = table
        merged, _ = without_dropped(merged, tables[0], RowAccounting())
    pairs = pairs_table(merged, choose_pairs(merged, resolved.rules, resolved.pooled))
    return pairs.cast(with_metadata(pairs.schema, {**resolved.metadata(), "pooled_variance": resolved.pooled_variance()}))


def grades_of(feedback: pa.Table, options: BuildOptions) -> tuple[pa.Table, ResolvedBuild]:
    """FEEDBACK with the grades that a build of these options uses, normalised, one row per prompt; and what it found of them."""
    rows = large(feedback).combine_chunks()
    resolved = resolve_build(grade_statistics(rows), options)
    rows = drop_thinking(rows)[0] if options.thinking == "drop" else rows
    merged = merged_grades(rows, resolved, RowAccounting())
    return merged, with_learned(resolved, lambda build, function: [function(merged, build.rules)])


def write_dataset(pairs: Table, out: str | Path, *, split: Sequence[float] = (0.9, 0.05, 0.05)) -> dict[str, Any]:
    """Write PAIRS as a dataset folder, split by the first user message, whole or not at all. pairs: also as a DataFrame or a Dataset.

    Returns {"out", "prompts", "pairs": {split: rows}, "rejected": {}}. Raises UserError.

    >>> import tempfile
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> pairs = build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_dataset(pairs, f"{folder}/pairs")["pairs"]
    {'train': 1, 'validation': 0, 'test': 0}
    """
    shares = check_shares(split)
    pairs = check_table(arrow_table(pairs), PAIRS, "write_dataset")
    if not pairs.num_rows:
        raise UserError("write_dataset: the table holds no pair")
    kept = {key: value for key, value in metadata(pairs.schema).items() if key != "schema_version"}
    kept["recipe"] = {**kept.get("recipe", {}), "split": list(shares), "split_by": "first-message"}
    schema = with_keys(PAIRS, keys_of(pairs.schema))
    pairs = (
        pairs.select(schema.names).cast(schema).sort_by([("prompt_id", "ascending"), ("chosen_id", "ascending")]).combine_chunks()
    )
    side = split_of_prompts(pairs, shares)
    rows: dict[str, int] = {}
    digests: dict[str, FileDigest] = {}
    with replacing(Path(out)) as folder:
        for index, name in enumerate(SPLITS):
            part = pairs.filter(pa.array(side == index))
            writer = PartWriter(folder / name, "part", kept)
            step = max(1, int(part.num_rows * (64 << 20) / max(part.nbytes, 1)))
            for start in range(0, part.num_rows, step):
                writer.write(part.slice(start, step))
            writer.close()
            digests |= writer.digests
            rows[name] = part.num_rows
        pq.write_table(REJECTS.empty_table(), folder / "rejects.parquet")
        (folder / "README.md").write_text(card([name for name in SPLITS if rows[name]], rows, kept), encoding="utf-8")
        prompts = len(pc.unique(flat(pairs["prompt_id"])))
        write_manifest(folder, {"kind": "pairs", **kept, "prompts": prompts, "rows": rows, "counts": {}}, digests)
    return Summary({"out": name_of(out), "prompts": prompts, "pairs": rows, "rejected": {}})


def load_pairs(dir: str | Path, split: str | None = None) -> pa.Table:
    """The PAIRS of a dataset folder, of one split or of all. Raises UserError where there are none, naming the splits present.

    >>> import tempfile
    >>> rows = [{"prompt": "Why?", "completion": text, "score": score} for text, score in (("So.", 2), ("Because.", 5))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_dataset(build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5))), f"{folder}/pairs")
    ...     load_pairs(f"{folder}/pairs", "train")["score_chosen"].to_pylist()
    [5.0]
    """
    folder = on_disk(dir)
    manifest_of(folder, "pairs")
    present = [name for name in SPLITS if split_files(folder, name)]
    if split is not None and split not in present:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(present)}")
    return read_parts([path for name in ([split] if split else present) for path in split_files(folder, name)], PAIRS)


def load_feedback(dir: str | Path) -> pa.Table:
    """The FEEDBACK of a folder that `build --feedback-only` wrote. Raises UserError.

    >>> import json, tempfile
    >>> from mmpo.pipeline import BuildOptions, build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "grades.jsonl").write_text(json.dumps({"prompt": "Why?", "completion": "So.", "score": 2}))
    ...     _ = build(f"{folder}/grades.jsonl", f"{folder}/out", options=BuildOptions(format="jsonl", feedback_only=True))
    ...     load_feedback(f"{folder}/out").num_rows
    1
    """
    folder = on_disk(dir)
    manifest_of(folder, "feedback")
    return read_parts(split_files(folder, "feedback"), FEEDBACK)


def feedback_table(given: str | Path | pa.Table, caller: str) -> pa.Table:
    """FEEDBACK as a function takes it, a folder of it or a table. Raises UserError naming the `caller` where a table is none."""
    return check_table(given, FEEDBACK, caller) if is_table(given) else load_feedback(given)


class DatasetFolder:
    """A dataset folder that `mmpo build` or `write_dataset` wrote, in a line: what stands in it. Raises UserError where it is none.

    folder, manifest: where it is and what its manifest says; rows: split → rows.

    >>> import tempfile
    >>> pairs = build_pairs(read_feedback("data/human_graded_pairs.jsonl", "jsonl", scale=(-2, 2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_dataset(pairs, f"{folder}/pairs", split=(0.8, 0, 0.2))
    ...     DatasetFolder(f"{folder}/pairs")
    Pairs: ... train, 0 validation, ... test; 183 prompts; in ...pairs
    """

    def __init__(self, dir: str | Path) -> None:
        self.folder = on_disk(dir)
        self.manifest = read_manifest(self.folder)
        self.rows: dict[str, int] = dict(self.manifest.get("rows") or {})

    def pairs(self, split: str | None = None) -> pa.Table:
        """Its PAIRS, as `load_pairs`."""
        return load_pairs(self.folder, split)

    def feedback(self) -> pa.Table:
        """Its FEEDBACK, as `load_feedback`."""
        return load_feedback(self.folder)

    def __len__(self) -> int:
        return sum(self.rows.values())

    def _shown(self) -> InShort:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        line = f"{str(self.manifest.get('kind', 'dataset')).capitalize()}: {counts}; {self.manifest.get('prompts', 0):,} prompts"
        return InShort(f"{line}; in {self.folder}", ("", ""), [(name, f"{count:,}") for name, count in self.rows.items()])

    def __repr__(self) -> str:
        return repr(self._shown())

    def _repr_html_(self) -> str:
        return self._shown()._repr_html_()


def show(what: pa.Table | str | Path) -> InShort | DatasetFolder:
    """FEEDBACK or PAIRS, or the folder of a dataset, in a line, and in notebooks as a small table of its first rows.

    In notebooks `%load_ext mmpo.pipeline` shows every table of mmpo's so.

    >>> show(build_pairs(read_feedback("data/human_graded_pairs.jsonl", "jsonl", scale=(-2, 2))))
    Pairs: 183 of 183 prompts; margins 0 to 2, ... in the mean; ... ties
    """
    return shown_table(what) if isinstance(what, pa.Table) else DatasetFolder(what)
