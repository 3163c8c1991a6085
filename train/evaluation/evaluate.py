"""`mmpo evaluate policy|reward`: a trained model's accuracy and calibration on pairs, or on the rows of a benchmark."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import text_lengths
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.margins import resolve_gamma
from mmpo.pipeline.metrics import Votes, against_other, evaluation_measures, suite_measures, suite_warnings
from mmpo.pipeline.storage import (
    MANIFEST,
    Identity,
    atomic_file,
    identity,
    on_disk,
    read_parquet,
    read_parts,
    refuse_url,
    split_files,
)
from mmpo.train.data import read_pairs, weighted_pairs, with_graded_part
from mmpo.train.evaluation.as_trained import options_as_trained, trained_part_of, trained_reference_weights
from mmpo.train.evaluation.folder import PAIR_VALUES, SUMMARY, check_evaluation, write_evaluation
from mmpo.train.evaluation.pair_values import pair_values
from mmpo.train.evaluation.suite_rows import SuitePairs, suite_pairs
from mmpo.train.messages import warn
from mmpo.train.model import check_hub, could_be_model
from mmpo.train.objective import LevelTarget, targets
from mmpo.train.options import TrainOptions
from mmpo.train.record import read_record, trained_on

_SIDES = ("chosen", "rejected")
_IDS = ("prompt_id", "chosen_id", "rejected_id")


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
    against: str | Path | None = None,
    out: str | Path | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    thinking: Literal["keep", "drop"] | None = None,
    graded_part: Literal["answer", "all"] | None = None,
    tokens_per_batch: int | None = None,
    trust_remote_code: bool = False,
    chat_template: str = "tokenizer",
) -> dict[str, Any]:
    """Measures a model on all pairs of one split of a dataset folder, of one Parquet file of pairs, or on the rows of a benchmark's file
    (see `suite_pairs`; suite: its name, by default what the rows look like; for those, what `suite_measures` returns as well, and
    "longest_wins": the same suite with lengths in characters as scores; no measure against targets is defined).

    What is not given comes from the model's own mmpo.json (gamma, target, beta, reference, lengths, thinking), graded_part from the
    dataset's manifest first. gamma: needed for other models; auto and auto:MEAN take it from the folder's training pairs, where it has none
    from the measured ones. reference: for a policy, the model its log-ratios are taken to; the recorded one must have the weights that it
    had then. reference_cache: as for training. votes: a Parquet file of chosen_id, rejected_id, preferring and raters, by raters that made
    no part of the margins, rows of one pair added up; without it ece_vote is None, because the votes that PAIRS holds *are* the margin's
    own. per_pair: a Parquet file to write every pair's values to. chat_template: as for training; what we trained carries its own.

    against: another model's folder (or Hub name), a folder that `out` wrote of it, or its per-pair file: "against" then holds the
    differences on the pairs that both have, with 95% intervals, by the targets of this evaluation. out: a folder to write evaluation.json,
    pairs.parquet (as per_pair) and page.html to, whole. bootstrap: samples of prompts behind each interval (0: none), by the seed.

    Returns what `evaluation_measures` returns (the temperature is fitted on the validation split where there is another one, else
    cross-fitted), None where undefined, and "mean_logratio_chosen" and "mean_logratio_rejected" (policies; no KL), "gamma", "target",
    "split", "counts", "trained_on" (what the model was trained on, its control named, as its mmpo.json says), and of a benchmark what its
    suite returns. Raises UserError.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> from mmpo.pipeline import build_pairs, read_feedback, write_dataset
    >>> both = (("It is.", 5), ("No.", 2))
    >>> rows = [{"prompt": f"Is {n} even?", "completion": text, "score": score} for n in range(6) for text, score in both]
    >>> pairs = build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5)))
    >>> from mmpo.train import TrainOptions, train_reward
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_dataset(pairs, f"{folder}/pairs", split=(1, 0, 0))
    ...     small = {"tiny_size": 16, "tiny_layers": 1, "eval_split": None, "max_steps": 1}
    ...     _ = train_reward(TrainOptions("reward", data=f"{folder}/pairs", out=f"{folder}/model", **small))
    ...     evaluate("reward", f"{folder}/model", f"{folder}/pairs", split="train", bootstrap=0)["pairs"]
    6
    """
    if bootstrap < 0 or seed < 0:
        raise UserError(f"--{'bootstrap' if bootstrap < 0 else 'seed'} {min(bootstrap, seed)}: must be a whole number from 0 up")
    record = read_record(model) or {}
    given = {"gamma": gamma, "target": target, "beta": beta, "reference": reference, "chat_template": chat_template}
    given |= {"max_length": max_length, "max_prompt_length": max_prompt_length, "tokens_per_batch": tokens_per_batch}
    given |= {"thinking": thinking, "graded_part": graded_part}
    given |= {"reference_cache": reference_cache, "trust_remote_code": trust_remote_code}
    data = on_disk(data)
    for given_path, flag in ((per_pair, "--per-pair"), (out, "--out")):
        if given_path is not None:
            refuse_url(given_path, flag)
    bench = suite_pairs(data, suite)
    if bench is not None:
        given |= {"gamma": float("inf"), "target": "plain"}  # there is nothing but a winner
    given = {name: value for name, value in given.items() if value is not None}
    options = options_as_trained(kind, str(model), record, dict(given))
    options = with_graded_part(options, data, trained_part_of(record) if graded_part is None else None)
    pairs = read_pairs(data, split) if bench is None else bench.pairs
    if isinstance(options.gamma, str):
        options = replace(options, gamma=resolve_gamma(options.gamma, _training_margins(data, pairs, record)))
    cast = None if votes is None else Votes(votes)
    if cast is not None:
        cast.of(pairs)  # said before anything is computed, if there are none
    rival = None if against is None else _rival(kind, str(against), data, options, given)
    stood = None if per_pair is None else identity(per_pair)
    if per_pair is not None:
        if Path(per_pair).is_dir():
            raise UserError(f"--per-pair {per_pair} is a folder: name the Parquet file to write")
        Path(per_pair).parent.mkdir(parents=True, exist_ok=True)
    if out is not None:
        check_evaluation(out)
    levels = record.get("target_levels") if target is None and bench is None else None  # what training learned, not these votes
    taken = options.target if levels is None else LevelTarget.from_dict(levels)
    other = None if bench is not None else _other_split(options, data, split, taken)
    splits = [(pairs, f"{data} ({split})"), *([] if other is None else [(other, "")])]
    (values, counts), *rest = pair_values(options, splits, trained_reference_weights(record, reference), taken)
    given_pairs, pairs = pairs, pairs.take(pa.array(values["rows"]))
    if per_pair is not None:
        _write(Path(per_pair), stood, pairs, values)
    judged = {name: values[name] for name in ("z", "margin", *(("p",) if bench is None else ()))}
    if cast is not None:
        preferring, raters = cast.of(pairs).T
        judged |= {"preferring": preferring, "raters": raters}
        counts = {**counts, "pairs_with_votes": int((raters > 0).sum()), "repeated_rows_of_votes": cast.repeated}
        warn(cast.warnings(pairs))
    sources = np.array(pairs["source"].to_pylist(), dtype=object)
    prompts = pairs["prompt_id"].to_pylist()
    lengths = tuple(text_lengths(pairs[side]) for side in _SIDES)
    fitted_on = rest[0][0] if rest else None
    found = evaluation_measures(judged, prompts, sources, lengths, fitted_on=fitted_on, draws=bootstrap, seed=seed)
    found |= {"trained_on": trained_on(record)}
    found |= {f"mean_logratio_{side}": float(values[f"ratio/{side}"].mean()) if kind == "policy" else None for side in _SIDES}
    if bench is None:
        found |= {"gamma": options.gamma if np.isfinite(float(options.gamma)) else "inf", "target": options.target, "split": split}
        found |= {"counts": counts}
    else:
        found |= _on_suite(bench, values, counts)
    if against is not None:
        theirs = _values_of(rival, given_pairs, str(data), taken) if isinstance(rival, tuple) else _read_values(Path(str(rival)))
        found |= {"against": _against(str(against), pairs, judged, theirs, bootstrap, seed)}
        found["against"]["other_trained_on"] = _trained_on(Path(str(against)))
    if out is not None:
        title = f"{Path(str(model)).name} on {Path(data).name}" + ("" if bench else f" ({split})")
        write_evaluation(
            out, {"model": str(model), "kind": kind, "data": str(data), **found}, title, lambda to: _write(to, "now", pairs, values)
        )
    return found


# --- another model --------------------------------------------------------------------------------------------------------------


Rival = tuple[TrainOptions, str | None]
"""The options that another model is run with, and the digest that its reference must have."""


def _rival(
    kind: Literal["policy", "reward"], against: str, data: str | Path, options: TrainOptions, given: Mapping[str, Any]
) -> Rival | Path:
    """How the other model is run, on our targets; or the file with its values, of a folder that `--out` wrote or by itself.

    Raises UserError where it is neither.
    """
    path = Path(against)
    values = path / PAIR_VALUES if path.is_dir() else path
    if values.is_file():
        return values
    if ((path / MANIFEST).is_file() or any(path.glob("*/*.parquet"))) and not (path / "config.json").is_file():
        raise UserError(
            f"--against {against}: that is a dataset, no model and no evaluation of one. It takes a model's folder or Hugging Face name "
            "(owner/name), a folder that --out wrote, or a file that --per-pair wrote; --data names the dataset"
        )
    if not could_be_model(against):
        raise UserError(
            f"--against {against}: there is no such folder or file. It takes a model's folder or Hugging Face name (owner/name), a folder "
            "that --out wrote, or a file that --per-pair wrote"
        )
    check_hub(against)
    record = read_record(against)
    own = ("beta", "reference", "chat_template", "gamma", "target")
    same = {name: value for name, value in given.items() if name not in own} | {"gamma": options.gamma, "target": options.target}
    if record is None:  # that says nothing of itself is run as the measured one is
        alike = (
            "max_length",
            "max_prompt_length",
            "thinking",
            *(("beta", "reference", "length_normalised") if kind == "policy" else ()),
        )
        same |= {name: getattr(options, name) for name in alike}
    record = record or {}
    theirs = options_as_trained(record.get("kind", kind), against, record, same)
    theirs = with_graded_part(theirs, data, None if "graded_part" in given else trained_part_of(record))
    return theirs, trained_reference_weights(record, None)


def _trained_on(against: Path) -> dict[str, Any] | None:
    """What the other model was trained on, as its folder or that of its evaluation says."""
    try:
        return trained_on(read_record(against)) or json.loads((against / SUMMARY).read_text(encoding="utf-8")).get("trained_on")
    except (OSError, ValueError):
        return None


def _values_of(rival: Rival, pairs: pa.Table, where: str, taken: Any) -> pa.Table:
    """The other model's z of the pairs, beside their ids."""
    [(values, _)] = pair_values(rival[0], [(pairs, where)], rival[1], taken)
    return pairs.select(list(_IDS)).take(pa.array(values["rows"])).append_column("z", pa.array(values["z"]))


def _read_values(path: Path) -> pa.Table:
    table = read_parquet(path)
    for name in (*_IDS, "z"):
        if name not in table.column_names:
            raise unknown_name(
                f"column in {path}; what `--per-pair` writes has {', '.join(_IDS)} and z, and not", name, table.column_names
            )
    return table


def _against(
    name: str, pairs: pa.Table, values: Mapping[str, np.ndarray], theirs: pa.Table, draws: int, seed: int
) -> dict[str, Any]:
    """The differences on the pairs that both models measured; how many pairs one of them alone has."""
    z = dict(zip(zip(*(theirs[key].to_pylist() for key in _IDS), strict=True), theirs["z"].to_pylist(), strict=True))
    keys = list(zip(*(pairs[key].to_pylist() for key in _IDS), strict=True))
    both = np.array([key in z for key in keys], dtype=bool)
    if not both.any():
        raise UserError(
            f"--against {name}: none of its {len(z):,} pairs is among the {len(keys):,} measured ones: is it of other data?"
        )
    mine = {key: value[both] for key, value in values.items()}
    prompts = [key[0] for key, shared in zip(keys, both, strict=True) if shared]
    other = np.array([z[key] for key, shared in zip(keys, both, strict=True) if shared], dtype=np.float64)
    found = against_other(mine, other, prompts, draws=draws, seed=seed)
    left = {"this_alone": int((~both).sum()), "other_alone": len(set(z) - set(keys))}
    return {"other": name, "pairs": int(both.sum()), "prompts": len(set(prompts)), **left, **found}


# --- a benchmark ----------------------------------------------------------------------------------------------------------------


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
    warn(suite_warnings(found))
    if incomplete:
        warn([f"{incomplete:,} of {len(bench.sizes):,} rows were left out: a completion of theirs has no value"])
    return {
        **found,
        "longest_wins": {name: longest[name] for name in ("sections", "average")},
        "counts": {**counts, "rows_in": len(bench.sizes), "rows_incomplete": incomplete},
    }


def _training_margins(data: str | Path, measured: pa.Table, record: Mapping[str, Any]) -> np.ndarray:
    """The margins that a γ is chosen by: those of the folder's train split, else of the measured pairs; of the sources that the model was
    trained on (weight above 0), where there are any.
    """
    files = [] if Path(data).is_file() else split_files(Path(data), "train")
    table = read_parts(files, columns=["quality_margin", "source"]) if files else measured
    used = weighted_pairs(table, record.get("options", {}).get("source_weights", {}), checked=False)
    return (used if used.num_rows else table)["quality_margin"].to_numpy()


def _other_split(options: TrainOptions, data: str | Path, split: str, target: str | LevelTarget) -> pa.Table | None:
    """The validation pairs, to fit the temperature on; None where they are the measured ones, or of no use."""
    if split == "validation" or not any((Path(data) / "validation").glob("*.parquet")):
        return None
    try:
        pairs = read_pairs(data, "validation")
        if (targets(target, pairs, float(options.gamma))[0] == 0.5).all():
            raise UserError(f"the target of each of its {pairs.num_rows:,} pairs is ½, as of ties")
    except UserError as error:
        warn([f"the temperature is cross-fitted on the measured prompts, the validation split is of no use: {error}"])
        return None
    return pairs


def _write(path: Path, stood: Identity | Literal["now"], pairs: pa.Table, values: dict[str, np.ndarray]) -> None:
    """One row per pair: ids, source, margin, target, z, and both completions' scores or log-ratios. stood: see `atomic_file`."""
    table = pairs.select(["prompt_id", "chosen_id", "rejected_id", "source"])
    for name in sorted(set(values) - {"rows"}):
        table = table.append_column(name.replace("/", "_"), pa.array(values[name]))
    with atomic_file(path, stood=stood) as file:
        pq.write_table(table, file, compression="zstd")
