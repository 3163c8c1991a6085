"""How a finished model is run: what its own mmpo.json says of its training, unless something else is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmpo.pipeline.errors import UserError
from mmpo.train.model import missing_folder
from mmpo.train.options import TrainOptions


def options_as_trained(
    kind: Literal["policy", "reward"], model: str, record: Mapping[str, Any], given: dict[str, Any]
) -> TrainOptions:
    """What is given, and the rest as the model was trained, checked as for training. record: of `read_record`, {} for a model of others.

    Raises UserError for a model of another kind or none, and for a policy without a reference.
    """
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
        raise UserError(f"{model} says nothing of a reference, and a policy is measured by its log-ratio to one: give --reference")
    return options


def trained_part_of(record: Mapping[str, Any]) -> Any:
    """The part of a reply whose grades a model was trained on."""
    return record.get("options", {}).get("graded_part")


def trained_reference_weights(record: Mapping[str, Any], reference: str | None) -> str | None:
    """The digest that a policy's reference must have: none where another one is given."""
    then = record.get("identity", {})
    return None if reference else then.get("reference_weights", then.get("weights"))


def _reference(model: Path, trained: Mapping[str, Any]) -> str | None:
    """The reference that a policy of ours was trained against."""
    if (model / "reference" / "config.json").is_file():
        return str(model / "reference")
    return trained.get("reference") or trained.get("model")
