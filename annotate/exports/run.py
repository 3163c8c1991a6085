"""`mmpo export`: a dataset of pairs in another tool's format, a batch at a time, whole or not at all. The formats are in EXPORTS."""

from pathlib import Path
from typing import Any

from mmpo.annotate.exports.base import Export, ExportOptions, opened
from mmpo.annotate.exports.judge_rows import JUDGE
from mmpo.annotate.exports.lines import JSONL, REWARDBENCH
from mmpo.annotate.exports.people import ARGILLA, LABEL_STUDIO
from mmpo.annotate.exports.trl import OPENRLHF, TRL_DPO, TRL_REWARD
from mmpo.pipeline.errors import UserError, unknown_name
from mmpo.pipeline.storage import atomic_file, on_disk

EXPORTS: dict[str, Export] = {
    "trl-dpo": TRL_DPO,
    "trl-reward": TRL_REWARD,
    "rewardbench": REWARDBENCH,
    "openrlhf": OPENRLHF,
    "judge": JUDGE,
    "argilla": ARGILLA,
    "label-studio": LABEL_STUDIO,
    "jsonl": JSONL,
}
"""The formats of `mmpo export --to`."""


def export(dataset: str | Path, to: str, out: str | Path, options: ExportOptions | None = None) -> dict[str, Any]:
    """Write the dataset folder in the format `to` (a key of EXPORTS) as `out`, a file or folder as the format has it.

    Returns {"out", "to", "pairs": {split: written}, "left_out": {reason: pairs}, "lost": {what of FACETS: of how many pairs}, "gamma" (null
    where it says nothing), "next": what to do with it}; splits without pairs are not written. Written under a temporary name
    beside `out` and renamed, so that nothing half-written is left. UserError for an unknown format, a folder that is no dataset, an `out`
    that exists or is inside the dataset, nothing to write, or a full disk.
    """
    if to not in EXPORTS:
        raise unknown_name("export format", to, EXPORTS)
    kind, target = EXPORTS[to], Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already; name another file or folder by --out, or remove it first")
    if target.resolve().is_relative_to(Path(dataset).resolve()):
        raise UserError(
            f"--out {target} is inside the dataset folder {dataset}, which holds only what its manifest names; name another place"
        )
    pairs = opened(on_disk(dataset), kind, options or ExportOptions(), to)
    with atomic_file(target, over_empty_folder=True, stood=None) as temporary:
        following = kind.write(pairs, temporary)
    return {
        "out": str(target),
        "to": to,
        "pairs": pairs.counts,
        "left_out": dict(pairs.left_out),
        "lost": dict(pairs.lost),
        "gamma": pairs.gamma,
        "next": (following or "").replace("{out}", str(target)),
    }
