"""The files beside the parts: digests, the manifest's figures, the parts' metadata, the card, and what was dropped."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mmpo.pipeline.checks.findings import Findings
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import MANIFEST, batches
from mmpo.pipeline.storage.dataset import manifest_files
from mmpo.pipeline.storage.files import file_digest
from mmpo.pipeline.storage.parts import about_part, part_schema
from mmpo.pipeline.tables import REJECTS, REPAIR, SPLITS

RECORDED = ("source", REPAIR, "pair", "filter")
"""The stages of a build of which everything dropped stands in rejects.parquet; of the others at most that."""


def look_at_folder(found: Findings) -> None:
    """All that is no row."""
    _digests(found)
    _metadata(found)
    _counts(found)
    _card(found)
    _rejects(found)


def _digests(found: Findings) -> None:
    files = manifest_files(found.manifest)
    known = {name: digest for name, digest in files.items() if digest is not None}
    if not known:
        found.unknown["digests"] = "not known: the manifest has none, as that of version 0.1.0; building again writes them"
    for name, digest in known.items():
        path = found.folder / name
        if path.is_file() and dict(file_digest(path)) != dict(digest):
            found.fault("digests", name)
    here = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()} - {MANIFEST}
    if files:
        parts = {name for name in files if name.endswith(".parquet") and "/" in name}  # those are looked at as parts
        for name in sorted(set(files) - here - parts - {"README.md", "rejects.parquet"}):
            found.fault("files", f"{name} is gone")
        for name in sorted(
            name for name in here - set(files) if not (name.endswith(".parquet") and name.split("/")[0] in found.rows)
        ):
            found.fault("files", f"{name}: the manifest does not name it")


def _metadata(found: Findings) -> None:
    for name in manifest_files(found.manifest):
        path = found.folder / name
        if not (name.endswith(".parquet") and "/" in name) or not path.is_file():
            continue
        try:
            about = about_part(part_schema(path), name)
        except UserError:
            continue  # told where the part is read
        other = [key for key, value in about.items() if found.manifest.get(key) != value]
        if not about:
            found.fault("metadata", f"{name} has none")
        if other:
            found.fault("metadata", f"{name}: {', '.join(other)}")


def _counts(found: Findings) -> None:
    """The manifest's rows and prompts are those of the parts; counts balance, and what leaves a stage enters the next one."""
    manifest = found.manifest
    if found.unread:
        found.unknown["row counts"] = "not known: not all parts could be read"
    else:
        rows = {name: count for name, count in manifest.get("rows", {}).items() if count}
        here = {name: count for name, count in found.rows.items() if count}
        for name in rows.keys() | here.keys():
            if rows.get(name, 0) != here.get(name, 0):
                words = f"{name}: the manifest says {rows.get(name, 0)}, the parts hold {here.get(name, 0):,}"
                found.fault("row counts", words, _gap(rows.get(name, 0), here.get(name, 0)))
        prompts = manifest.get("prompts")
        if prompts is not None and prompts != found.figures["prompts"] and not found.broken["nulls"]:
            words = f"the manifest says {prompts} prompts, the parts hold {found.figures['prompts']:,}"
            found.fault("row counts", words, _gap(prompts, found.figures["prompts"]))
        if manifest.get("kind") == "pairs" and not found.broken["nulls"]:
            _said_of_pairs(found)
            _said_of_sources(found)
    counts = manifest.get("counts") or {}
    if not counts:
        found.unknown["counts"] = "not known: the manifest has none"
        return
    try:
        _balance(found, counts)
    except (KeyError, TypeError, AttributeError) as error:
        found.fault("counts", f"the counts in the manifest are damaged: {error!r}")


def _said_of_sources(found: Findings) -> None:
    """Of several sources each gave as many pairs as the manifest says."""
    for name in found.mixture:
        said, here = found.manifest.get("by_source", {}).get(name, {}).get("pairs"), found.pairs_of[name]
        if said != here:
            found.fault("sources", f"{name}: the manifest says {said} pairs, the parts hold {here:,}", _gap(said, here))


def _said_of_pairs(found: Findings) -> None:
    """What else a manifest says of its pairs, where it does: how many nobody witnessed, how many ties are of unequal values (no more than
    there are ties that were kept), and the margins of its examples, the largest of two prompts."""
    manifest, unwitnessed = found.manifest, found.broken["witnesses"]
    if manifest.get("unwitnessed", unwitnessed) != unwitnessed:
        words = f"the manifest says {manifest['unwitnessed']} pairs without a rater of both sides, the parts hold {unwitnessed:,}"
        found.fault("row counts", words, _gap(manifest["unwitnessed"], unwitnessed))
    rounded, ties = manifest.get("rounded_ties", 0), found.figures["ties"]
    if not isinstance(rounded, int) or not 0 <= rounded <= ties:
        found.fault("row counts", f"the manifest says {rounded} ties of unequal values, the parts hold {ties:,} ties")
    examples, largest = manifest.get("examples"), sorted(found.largest.values(), reverse=True)
    if examples is not None and [one.get("margin") if isinstance(one, Mapping) else None for one in examples] != largest:
        found.fault("row counts", f"the margins of the manifest's examples are not the largest of two prompts, {largest}")


def _gap(one: Any, other: int) -> int:
    return abs(one - other) if isinstance(one, int) else 1


def _balance(found: Findings, counts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    by_unit: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for stage, units in counts.items():
        for unit, entry in units.items():
            if entry["in"] + entry["created"] != entry["out"] + entry["merged"] + sum(entry["dropped"].values()):
                found.fault("counts", f"stage {stage}, unit {unit} does not balance")
            by_unit.setdefault(unit, []).append((stage, entry))
    for unit, entries in by_unit.items():
        for (before, one), (after, other) in pairwise(entries):
            if one["out"] != other["in"]:
                found.fault("counts", f"{one['out']:,} of unit {unit} leave stage {before}, {other['in']:,} enter stage {after}")
    rows = found.manifest.get("rows", {})
    if "pair" in by_unit and rows and by_unit["pair"][-1][1]["out"] != sum(rows.values()):
        found.fault("counts", f"{by_unit['pair'][-1][1]['out']:,} pairs come out, rows are {sum(rows.values()):,}")


def _card(found: Findings) -> None:
    """README.md is a Hugging Face dataset card whose head names the splits that hold rows."""
    import yaml  # here: every command would wait for it

    path = found.folder / "README.md"
    try:
        head = path.read_text(encoding="utf-8").split("---\n")[1]
        configs = yaml.safe_load(head)["configs"]
        named = {file["split"]: file["path"] for config in configs for file in config["data_files"]}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, RecursionError) as error:
        why = "is gone" if isinstance(error, FileNotFoundError) else "has no head that names the splits"
        found.fault("card", f"README.md {why}")
        return
    feedback = found.manifest.get("kind") == "feedback"
    held = {"train": "feedback/*.parquet"} if feedback else {name: f"{name}/*.parquet" for name in SPLITS if found.rows[name]}
    if named != held and not found.unread:
        found.fault(
            "card", f"README.md names {', '.join(sorted(named)) or 'no split'}; there are {', '.join(sorted(held)) or 'none'}"
        )


def _rejects(found: Findings) -> None:
    """rejects.parquet holds what the counts say was dropped."""
    path, table = found.folder / "rejects.parquet", Counter[tuple[str, str, str]]()
    if not path.is_file():
        found.fault("rejects", "rejects.parquet is gone")
        return
    try:
        for batch in batches([path], ["unit", "stage", "reason"], 65_536, REJECTS):
            table.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    except UserError as error:
        found.fault("rejects", str(error))
        return
    counts = found.manifest.get("counts") or {}
    if not counts or found.broken["counts"]:
        found.unknown["rejects"] = "not known: there are no counts to hold them against"
        return
    dropped = {
        (unit, REPAIR if name == "repaired" else stage, reason): n
        for stage, units in counts.items()
        for unit, entry in units.items()
        for name in ("dropped", "repaired")
        for reason, n in entry.get(name, {}).items()
    }
    for key in table.keys() | dropped.keys():
        rows, told = table[key], dropped.get(key, 0)
        if rows > told or (
            rows < told and key[1] in RECORDED and "grade" not in (key[0] if key[1] not in ("source", REPAIR) else "")
        ):
            found.fault("rejects", f"{' '.join(key)}: {rows:,} rows, {told:,} in the counts", abs(rows - told))
