"""`mmpo merge`: an adapter and its base as one whole model, which anything loads without peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.storage import atomic_file, atomic_folder
from mmpo.train.messages import disk_full
from mmpo.train.model import kind_of, load_pretrained
from mmpo.train.record import RECORD, read_record
from mmpo.train.release.card import card_of_merged
from mmpo.train.release.origin import Origin, origin_of

MERGE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the weights of a merged model may be saved as."""
_MERGED = "merged"
"""The key of mmpo.json that says that a folder was merged, and of what."""


def merge(model: str | Path, out: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> dict[str, Any]:
    """Writes the base of an adapter's folder with the adapter added to its weights, W + alpha/rank · B·A, as a whole model, with its
    tokenizer, its card and, of a run of ours, its mmpo.json, or nothing at all.

    dtype: of MERGE_TYPES; sums are made in float32, and rounding them to 16 bits loses a part of a small adapter. An earlier merge is
    replaced, any other folder that holds something is left alone. Returns {"out", "kind", "base", "dtype", "parameters"}. Raises UserError.

    >>> import tempfile
    >>> import pyarrow as pa
    >>> from mmpo.pipeline import build_pairs, read_feedback, write_dataset
    >>> both = (("It is.", 5), ("No.", 2))
    >>> rows = [{"prompt": f"Is {n} even?", "completion": text, "score": score} for n in range(6) for text, score in both]
    >>> pairs = build_pairs(read_feedback(pa.Table.from_pylist(rows), scale=(1, 5)))
    >>> from mmpo.train import TrainOptions, train_policy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_dataset(pairs, f"{folder}/pairs", split=(1, 0, 0))
    ...     small = {"tiny_size": 16, "tiny_layers": 1, "eval_split": None, "max_steps": 1}
    ...     _ = train_policy(TrainOptions("policy", data=f"{folder}/pairs", out=f"{folder}/adapter", lora=2, **small))
    ...     merge(f"{folder}/adapter", f"{folder}/whole")["kind"]
    'policy'
    """
    path, target = Path(model), Path(out)
    if dtype not in MERGE_TYPES:
        raise unknown_name("type of weights", dtype, MERGE_TYPES)
    if not (path / "adapter_config.json").is_file():
        raise UserError(_no_adapter(path))
    if path.resolve() == target.resolve():
        raise UserError(f"--out {out} is the adapter itself, which stays as it is: give another folder")
    _check_out(target)
    try:
        return _merged(path, target, dtype, trust_remote_code)
    except Exception as error:
        if not disk_full(error):
            raise
        raise UserError(f"cannot write {out}: the disk is full, or files may not be so large; nothing was written") from error


def _merged(path: Path, target: Path, dtype: str, trust_remote_code: bool) -> dict[str, Any]:
    transformers.logging.disable_progress_bar()
    record = read_record(path) or {}
    kind = record.get("kind") or kind_of(str(path), trust_remote_code=trust_remote_code)
    whole, tokenizer = load_pretrained(kind, str(path), trust_remote_code=trust_remote_code)
    origin = Origin(**record["origin"]) if "origin" in record else origin_of(str(path))
    whole.to(MERGE_TYPES[dtype])
    with atomic_folder(target) as folder:
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if (path / "reference").is_dir():  # a policy's log-ratios are to it, and no other place has it
            shutil.copytree(path / "reference", folder / "reference")
        told = {**(record or {"kind": kind}), "origin": origin.as_dict(), _MERGED: {"adapter": path.resolve().name, "dtype": dtype}}
        with atomic_file(folder / RECORD) as file:
            file.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        (folder / "README.md").write_text(card_of_merged(target.resolve().name, path, told), encoding="utf-8")
        _check_out(target)
    count = sum(value.numel() for value in whole.parameters())
    return {"out": str(target), "kind": kind, "base": origin.name or origin.called, "dtype": dtype, "parameters": count}


def _no_adapter(path: Path) -> str:
    if not path.exists():
        return f"there is no folder {path}: name one that `mmpo train policy ... --lora RANK` wrote, or any adapter of peft"
    if (path / "config.json").is_file():
        record = read_record(path) or {}
        why = ": it was merged" if _MERGED in record else ""
        if record.get("kind") == "reward" and record.get("options", {}).get("lora"):
            why = ": a reward model's adapter is merged at the end of its run"
        return f"{path} holds a whole model, no adapter (no adapter_config.json){why}; there is nothing to merge"
    return f"{path} holds no adapter (no adapter_config.json): name that of a run of `mmpo train policy ... --lora RANK` that has ended"


def _check_out(target: Path) -> None:
    """Raises UserError where the folder holds anything but an earlier merge."""
    if target.is_file():
        raise UserError(f"--out {target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and _MERGED not in (read_record(target) or {}):
        raise UserError(f"--out {target} holds something that no merge wrote, and is left alone: name another folder")
