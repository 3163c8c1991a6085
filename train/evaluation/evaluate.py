"""`mmpo evaluate policy|reward`: a trained model's accuracy and calibration on pairs, or on the rows of a benchmark."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import text_lengths
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import resolve_gamma
from mmpo.pipeline.metrics import METRICS, Votes, by_margin, by_source, pair_measures, suite_measures, temperature_fit
from mmpo.pipeline.storage import Identity, atomic_file, identity, read_parts, split_files
from mmpo.train.data import read_pairs, with_graded_part
from mmpo.train.evaluation.pair_values import pair_values
from mmpo.train.evaluation.suite_rows import SuitePairs, suite_pairs
from mmpo.train.messages import warn
from mmpo.train.model import missing_folder
from mmpo.train.objective import LevelTarget, targets
from mmpo.train.options import TrainOptions
from mmpo.train.record import read_record

_SIDES = ("chosen", "rejected")


def evaluate(
    kind: Literal["policy", "reward"],
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    suite: str | None = None,
    gamma: float | str | None = None,
    target: str | None = None,
    beta: float | None = None,
    reference: str | None = None,
    reference_cache: str | None = None,
    votes: str | Path | None = None,
    per_pair: str | Path | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    thinking: Literal["keep", "drop"] | None = None,
    graded_part: Literal["answer", "all"] | None = None,
    tokens_per_batch: int | None = None,
    trust_remote_code: bool = False,
    chat_template: str = "tokenizer",
) -> dict[str, Any]:
    """Measures a model on all pairs of one split of a dataset folder, of one Parquet file of pairs, or on the rows of a benchmark's file
    (see `suite_pairs`; suite: its name, by default what the rows look like; for those, what `suite_measures` returns, "pairs", the measures
    that need no targets over all pairs, "longest_wins": the same suite with lengths in characters as scores, and "counts").

    What is not given comes from the model's own mmpo.json (gamma, target, beta, reference, lengths, thinking), graded_part from the
    dataset's manifest first. gamma: needed for other models; auto and auto:MEAN take it from the folder's training pairs, where it has none
    from the measured ones. reference: for a policy, the model its log-ratios are taken to; the recorded one must have the weights that it
    had then. reference_cache: as for
    training. votes: a Parquet file with chosen_id, rejected_id, preferring and raters, of raters that made no part of the margins, rows of
    one pair added up; without it ece_vote is None, because the votes that PAIRS holds *are* the margin's own. per_pair: a Parquet file to
    write every pair's values to. chat_template: as for training; what we trained carries its own.

    Returns {"pairs", "ties", "accuracy", "ece_target", "ece_label", "ece_vote", "brier", "soft_brier",
    "cross_entropy", "by_margin"}, None where undefined, and "by_source", "mean_logratio_chosen" and
    "mean_logratio_rejected" (policies; no KL), "temperature" (fitted on the validation split where there is another
    one, see "temperature_from"), "scaled" (the same measures at that temperature), "gamma", "target", "split" and
    "counts". Raises UserError.
    """
    record = read_record(model) or {}
    given = {"gamma": gamma, "target": target, "beta": beta, "reference": reference, "chat_template": chat_template}
    given |= {"max_length": max_length, "max_prompt_length": max_prompt_length, "tokens_per_batch": tokens_per_batch}
    given |= {"thinking": thinking, "graded_part": graded_part}
    given |= {"reference_cache": reference_cache, "trust_remote_code": trust_remote_code}
    bench = suite_pairs(data, suite)
    if bench is not None:
        given |= {"gamma": float("inf"), "target": "plain"}  # there is nothing but a winner
    options = _options(kind, str(model), record, {name: value for name, value in given.items() if value is not None})
    trained = record.get("options", {}).get("graded_part")
    options = with_graded_part(options, data, trained if graded_part is None else None)
    pairs = read_pairs(data, split) if bench is None else bench.pairs
    if isinstance(options.gamma, str):
        options = replace(options, gamma=resolve_gamma(options.gamma, _training_margins(data, pairs)))
    cast = None if votes is None else Votes(votes)
    if cast is not None:
        cast.of(pairs)  # said before anything is computed, if there are none
    stood = None if per_pair is None else identity(per_pair)
    if per_pair is not None:
        if Path(per_pair).is_dir():
            raise UserError(f"--per-pair {per_pair} is a folder: name the Parquet file to write")
        Path(per_pair).parent.mkdir(parents=True, exist_ok=True)
    levels = record.get("target_levels") if target is None and bench is None else None  # what training learned, not these votes
    taken = options.target if levels is None else LevelTarget.from_dict(levels)
    other = _other_split(options, data, split, taken)
    splits = [(pairs, f"{data} ({split})"), *([] if other is None else [(other, "")])]
    then = record.get("identity", {})
    reference_weights = None if reference else then.get("reference_weights", then.get("weights"))
    (values, counts), *rest = pair_values(options, splits, reference_weights, taken)
    pairs = pairs.take(pa.array(values["rows"]))
    sources = np.array(pairs["source"].to_pylist(), dtype=object)
    if per_pair is not None:
        _write(Path(per_pair), stood, pairs, values)
    if bench is not None:
        return _on_suite(bench, values, counts)
    fitted_on = "validation" if rest and len(rest[0][0]["z"]) else split
    fit = rest[0][0] if fitted_on != split else values
    temperature = temperature_fit(fit["z"], fit["p"])
    judged = values
    if cast is not None:
        preferring, raters = cast.of(pairs).T
        judged = {**values, "preferring": preferring, "raters": raters}
        counts = {**counts, "pairs_with_votes": int((raters > 0).sum())}
    return {
        "pairs": len(values["z"]),
        "ties": int((values["margin"] == 0).sum()),
        **dict.fromkeys(METRICS),
        **pair_measures(judged),
        "by_margin": by_margin(values["z"], values["margin"], values["p"]),
        "by_source": by_source(values, sources),
        **{f"mean_logratio_{side}": float(values[f"ratio/{side}"].mean()) if kind == "policy" else None for side in _SIDES},
        "temperature": temperature,
        "temperature_from": fitted_on,
        "scaled": pair_measures({**values, "z": values["z"] / (temperature or 1.0)}),
        "gamma": options.gamma if np.isfinite(float(options.gamma)) else "inf",
        "target": options.target,
        "split": split,
        "counts": counts,
    }


def _on_suite(bench: SuitePairs, values: Mapping[str, np.ndarray], counts: dict[str, int]) -> dict[str, Any]:
    """A suite's figures, with those of the longest reply beside them."""
    what = "score" if "score/chosen" in values else "ratio"
    rows, incomplete = bench.scored(values["rows"], values[f"{what}/chosen"], values[f"{what}/rejected"])
    if not rows:
        raise UserError(
            f"no row of {bench.suite} has a value for each of its completions: nothing can be measured (see the warnings)"
        )
    found = suite_measures(bench.suite, rows)
    lengths = (text_lengths(bench.pairs[side])[values["rows"]] for side in _SIDES)
    longest = suite_measures(bench.suite, bench.scored(values["rows"], *lengths)[0], draws=0)
    told = ", ".join(f"{name} ({count:,} rows)" for name, count in found["unknown_subsets"].items())
    if told:
        warn([f"subsets that {bench.suite} does not have are part of no section: {told}"])
    if incomplete:
        warn([f"{incomplete:,} of {len(bench.sizes):,} rows were left out: a completion of theirs has no value"])
    return {
        **pair_measures({name: values[name] for name in ("z", "margin")}),
        "pairs": len(values["z"]),
        **found,
        "longest_wins": {name: longest[name] for name in ("sections", "average")},
        "counts": {**counts, "rows_in": len(bench.sizes), "rows_incomplete": incomplete},
    }


def _options(kind: Literal["policy", "reward"], model: str, record: Mapping[str, Any], given: dict[str, Any]) -> TrainOptions:
    """What is given, and the rest as the model was trained, checked as for training."""
    if record and record["kind"] != kind:
        raise UserError(f"{model} is a {record['kind']} model: evaluate it with `mmpo evaluate {record['kind']}`")
    if missing_folder(model):
        raise UserError(f"there is no folder {model}: name a trained model's folder or a Hugging Face model")
    if "gamma" not in given and "gamma" not in record:
        what = "does not say" if Path(model).exists() else "is no folder here, and a model of the Hub does not say"
        raise UserError(f"{model} {what} which gamma it was trained with: give --gamma")
    trained = record.get("options", {})
    same = ("target", "beta", "length_normalised", "max_length", "max_prompt_length", "thinking")
    known = {name: trained[name] for name in same if name in trained}
    if "max_length" in given:
        known["max_prompt_length"] = min(known.get("max_prompt_length", 512), max(1, given["max_length"] - 1))
    if kind == "policy":
        known["reference"] = _reference(Path(model), trained)
    options = TrainOptions(kind, model=model, gamma=given.pop("gamma", record.get("gamma")), **{**known, **given})
    if kind == "policy" and options.reference is None:
        raise UserError("a policy is measured by its log-ratio to a reference: give --reference")
    return options


def _training_margins(data: str | Path, measured: pa.Table) -> np.ndarray:
    """The margins that a γ is chosen by: those of the folder's train split, else of the measured pairs."""
    files = [] if Path(data).is_file() else split_files(Path(data), "train")
    table = read_parts(files, columns=["quality_margin"]) if files else measured
    return table["quality_margin"].to_numpy()


def _reference(model: Path, trained: Mapping[str, Any]) -> str | None:
    """The reference that a policy of ours was trained against."""
    if (model / "reference" / "config.json").is_file():
        return str(model / "reference")
    return trained.get("reference") or trained.get("model")


def _other_split(options: TrainOptions, data: str | Path, split: str, target: str | LevelTarget) -> pa.Table | None:
    """The validation pairs, to fit the temperature on; None where they are the measured ones, or of no use."""
    if split == "validation" or not any((Path(data) / "validation").glob("*.parquet")):
        return None
    try:
        pairs = read_pairs(data, "validation")
        targets(target, pairs, float(options.gamma))
    except UserError as error:
        warn([f"the temperature is fitted on the measured pairs, the validation split is of no use: {error}"])
        return None
    return pairs


def _write(path: Path, stood: Identity, pairs: pa.Table, values: dict[str, np.ndarray]) -> None:
    """One row per pair: ids, source, margin, target, z, and both completions' scores or log-ratios. stood: see `atomic_file`."""
    table = pairs.select(["prompt_id", "chosen_id", "rejected_id", "source"])
    for name in sorted(set(values) - {"rows"}):
        table = table.append_column(name.replace("/", "_"), pa.array(values[name]))
    with atomic_file(path, stood=stood) as file:
        pq.write_table(table, file, compression="zstd")
