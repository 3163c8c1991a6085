"""`mmpo evaluate`: a trained model's accuracy and calibration on the pairs of a dataset or a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mmpo.pipeline import margins
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.logistic import sigmoid
from mmpo.train.checks import nothing_left, rendering_warnings, warn
from mmpo.train.data import prepare, read_pairs
from mmpo.train.folder import read_record
from mmpo.train.measures import by_source, pair_measures
from mmpo.train.model_checks import check_ids, check_model
from mmpo.train.models import load_pretrained, load_reference
from mmpo.train.predict import predict_values
from mmpo.train.reference import cached_logprobs
from mmpo.train.render import Renderer
from mmpo.train.steps import pass_tokens
from mmpo.train.targets import targets
from mmpo.train.template import choose_template
from mmpo.train.trainer import pad_token

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Settings:
    """How the model was trained and how it is to be measured."""

    kind: str
    model: str
    gamma: float
    target: str
    beta: float
    reference: str | None
    max_length: int
    max_prompt_length: int
    tokens: int | None
    trust_remote_code: bool
    chat_template: str


def evaluate(
    kind: Literal["policy", "reward"],
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    gamma: float | None = None,
    target: str | None = None,
    beta: float | None = None,
    reference: str | None = None,
    votes: str | Path | None = None,
    per_pair: str | Path | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    tokens_per_batch: int | None = None,
    trust_remote_code: bool = False,
    chat_template: str = "tokenizer",
) -> dict[str, Any]:
    """Measures a model on all pairs of one split of a dataset folder, or of one Parquet file of pairs.

    What is not given comes from the model's own mmpo.json (gamma, target, beta, reference, lengths). gamma: needed
    for other models. reference: for a policy, the model its log-ratios are taken to. votes: a Parquet file with
    chosen_id, rejected_id, preferring and raters, of raters that made no part of the margins; without it ece_vote is
    None, because the votes that PAIRS holds *are* the margin's own. per_pair: a Parquet file to write every pair's
    values to. chat_template: as for training; what we trained carries its own.

    Returns {"pairs", "ties", "accuracy", "ece_target", "ece_label", "ece_vote", "brier", "soft_brier",
    "cross_entropy", "by_margin"}, None where undefined, and "by_source", "mean_logratio_chosen" and
    "mean_logratio_rejected" (policies; no KL), "temperature" (fitted on the validation split where there is another
    one, see "temperature_from"), "scaled" (the same measures at that temperature), "gamma", "target", "split" and
    "counts". Raises UserError.
    """
    record = read_record(model) or {}
    trained = record.get("options", {})
    if record and record["kind"] != kind:
        raise UserError(f"{model} is a {record['kind']} model: evaluate it with `mmpo evaluate {record['kind']}`")
    if gamma is None and "gamma" not in record:
        raise UserError(f"{model} does not say which gamma it was trained with: give --gamma")
    settings = _Settings(
        kind=kind,
        model=str(model),
        gamma=float(record["gamma"]) if gamma is None else gamma,
        target=target or trained.get("target", "plain"),
        beta=trained.get("beta", 0.1) if beta is None else beta,
        reference=reference or _reference(Path(model), trained),
        max_length=max_length or trained.get("max_length", 1024),
        max_prompt_length=max_prompt_length or trained.get("max_prompt_length", 512),
        tokens=tokens_per_batch,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
    )
    if kind == "policy" and settings.reference is None:
        raise UserError("a policy is measured by its log-ratio to a reference: give --reference")
    pairs = read_pairs(data, split)
    values, counts = _run(settings, pairs, f"{data} ({split})")
    temperature, fitted_on = _temperature(settings, data, split, values)
    pairs = pairs.take(pa.array(values["rows"]))
    if per_pair is not None:
        _write(Path(per_pair), pairs, values)
    return {
        "pairs": len(values["z"]),
        "ties": int((values["margin"] == 0).sum()),
        **pair_measures(values["z"], values["p"], values["margin"]),
        "ece_vote": _vote_error(pairs, sigmoid(values["z"]), votes),
        "by_margin": margins.by_margin(values["z"], values["margin"], values["p"]),
        "by_source": by_source(values, np.array(pairs["source"].to_pylist(), dtype=object)),
        "mean_logratio_chosen": _mean(values, "ratio/chosen"),
        "mean_logratio_rejected": _mean(values, "ratio/rejected"),
        "temperature": temperature,
        "temperature_from": fitted_on,
        "scaled": pair_measures(values["z"] / (temperature or 1.0), values["p"], values["margin"]),
        "gamma": settings.gamma if np.isfinite(settings.gamma) else "inf",
        "target": settings.target,
        "split": split,
        "counts": counts,
    }


def _reference(model: Path, trained: dict[str, Any]) -> str | None:
    """The reference that a policy of ours was trained against."""
    if (model / "reference" / "config.json").is_file():
        return str(model / "reference")
    return trained.get("reference") or trained.get("model")


def _run(settings: _Settings, pairs: pa.Table, where: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Every pair's z, target and margin, by table row, and the counts of what could not be rendered.

    where: the measured split, for what is said of it; of another one ("") nothing is said and nothing may be left.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_pretrained(settings.kind, settings.model, trust_remote_code=settings.trust_remote_code)
    choose_template(tokenizer, settings.chat_template)
    check_model(model, settings.model, settings.max_length)
    p, about = targets(settings.target, pairs, settings.gamma)
    renderer = Renderer(tokenizer, settings.max_length, settings.max_prompt_length)
    prepared = prepare(pairs, p, renderer)
    counts = {"pairs_in": pairs.num_rows, **about, **prepared.counts}
    if where and not prepared.prompts:
        raise nothing_left(renderer, where, counts)
    warn(rendering_warnings(renderer) if where else ())
    check_ids(prepared.prompts, model, tokenizer, settings.model)
    options: dict[str, Any] = {"tokens": pass_tokens(settings.tokens, device), "pad_token": pad_token(tokenizer), "device": device}
    values = predict_values(model, settings.kind, prepared.prompts, **options)
    names, scale = ("score/chosen", "score/rejected"), 1.0
    if settings.kind == "policy" and settings.reference is not None:
        names, scale = ("ratio/chosen", "ratio/rejected"), settings.beta
        trust = settings.trust_remote_code
        reference = load_reference(settings.reference, tokenizer, settings.max_length, trust_remote_code=trust)
        check_ids(prepared.prompts, reference, tokenizer, settings.reference)
        known = cached_logprobs(reference, prepared.prompts, None, tokenizer=tokenizer, **options)
        values = [value - prompt.reference for value, prompt in zip(values, known, strict=True)]
    if not prepared.prompts:
        return {"z": np.zeros(0)}, counts
    chosen, rejected = (
        np.concatenate([value[getattr(prompt, side)] for prompt, value in zip(prepared.prompts, values, strict=True)])
        for side in ("chosen", "rejected")
    )
    rows = np.concatenate([prompt.rows for prompt in prepared.prompts])
    order = np.argsort(rows, kind="stable")
    found = {"z": scale * (chosen - rejected), names[0]: chosen, names[1]: rejected, "rows": rows}
    values_by_row = {name: value[order] for name, value in found.items()}
    margin = pairs["quality_margin"].to_numpy()
    used = rows[order]
    return {**values_by_row, "p": p[used], "margin": margin[used]}, counts


def _temperature(settings: _Settings, data: str | Path, split: str, values: dict[str, np.ndarray]) -> tuple[float | None, str]:
    """The temperature that fits best, and the split it was fitted on: another one than the measured one, if there is one."""
    if split != "validation" and any((Path(data) / "validation").glob("*.parquet")):
        other, _ = _run(settings, read_pairs(data, "validation"), "")
        if len(other["z"]):
            return margins.temperature_fit(other["z"], other["p"]), "validation"
    return margins.temperature_fit(values["z"], values["p"]), split


def _vote_error(pairs: pa.Table, q: np.ndarray, votes: str | Path | None) -> float | None:
    """ece_vote against votes joined by the pair's ids; a pair given the other way round is turned."""
    if votes is None:
        return None
    wanted = ["chosen_id", "rejected_id", "preferring", "raters"]
    try:
        table = pq.ParquetFile(votes).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read the votes in {votes}: {error}") from error
    for name in wanted:
        if name not in table.column_names:
            raise unknown_name(f"column in {votes}; votes need {', '.join(wanted)}, and not", name, table.column_names)
    known: dict[tuple[str, str], tuple[float, float]] = {}
    for chosen, rejected, preferring, raters in zip(*(table[name].to_pylist() for name in wanted), strict=True):
        known[chosen, rejected] = (preferring, raters)
        known[rejected, chosen] = (raters - preferring, raters)
    ids = zip(pairs["chosen_id"].to_pylist(), pairs["rejected_id"].to_pylist(), strict=True)
    found = np.array([known.get(pair, (0.0, 0.0)) for pair in ids], dtype=np.float64)
    return margins.ece_vote(q, found[:, 0], found[:, 1])


def _mean(values: dict[str, np.ndarray], name: str) -> float | None:
    return float(values[name].mean()) if name in values else None


def _write(path: Path, pairs: pa.Table, values: dict[str, np.ndarray]) -> None:
    """One row a pair: ids, source, margin, target, z, and both completions' scores or log-ratios."""
    table = pairs.select(["prompt_id", "chosen_id", "rejected_id", "source"])
    for name in sorted(set(values) - {"rows"}):
        table = table.append_column(name.replace("/", "_"), pa.array(values[name]))
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = path.with_name(path.name + ".part")
    pq.write_table(table, sibling, compression="zstd")
    sibling.replace(path)
