"""The page of a dataset or a model on the Hub: a head (a dataset's lists the splits of each table), and what is known between two marks.

What people write outside the marks, and what they add to the head, stays when the page is written again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.storage import sources_table

START, END = "<!-- mmpo: written anew by each push -->", "<!-- mmpo: end -->"
"""Between them is what is written anew."""
HEAD = re.compile(r"\A---\r?\n(.*?)^---\r?\n", re.DOTALL | re.MULTILINE)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
TAGS = ("preference", "margins", "mmpo")


def configs(kind: str, splits: Sequence[str], folder: str = "") -> list[dict[str, Any]]:
    """The entry of one table: its splits and where their files are."""
    start = f"{folder}/" if folder else ""
    files = [{"split": "train" if split == "feedback" else split, "path": f"{start}{split}/*.parquet"} for split in splits]
    return [{"config_name": kind, "data_files": files}]


def page(name: str, manifest: Mapping[str, Any], tables: list[dict[str, Any]], old: str | None, license: str | None) -> str:
    """The page of a dataset. old: the one that is there. Raises UserError where its head is no YAML."""
    rows = sum(manifest.get("rows", {}).values())
    size = next((word for most, word in SIZES if rows < most), "10M<n<100M")
    head = {**({"license": license} if license else {}), "tags": list(TAGS), "size_categories": [size], "configs": tables}
    return marked_page(name, old, head, _about(name, manifest, tables))


def marked_page(name: str, old: str | None, head: Mapping[str, Any], about: str) -> str:
    """A page with this head and, between the marks, what is told. name: OWNER/NAME; old: the page that is there: what else is in its
    head, its tags too, and what stands outside the marks, stays. Raises UserError where the old head is no YAML.
    """
    kept, body = _parted(old, name)
    tags = list(dict.fromkeys([*kept.get("tags", []), *head.get("tags", [])]))
    whole = {**kept, **head, "tags": tags}
    written = f"{START}\n\n{about}\n{END}\n"
    if START in body and END in body:
        before, _, rest = body.partition(START)
        body = before + written + rest.partition(END)[2].removeprefix("\n")
    else:
        body = f"\n# {name.rpartition('/')[2]}\n\n{written}" if not body.strip() else f"{body.rstrip()}\n\n{written}"
    return f"---\n{yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)}---\n{body}"


def parts_of_page(text: str, name: str) -> tuple[dict[str, Any], str]:
    """The head of a page that `marked_page` made, and what stands between its marks. Raises UserError where the head is no YAML."""
    head, body = _parted(text, name)
    return head, body.partition(START)[2].partition(END)[0].strip("\n")


def _parted(old: str | None, name: str) -> tuple[dict[str, Any], str]:
    found = HEAD.match(old or "")
    if found is None:
        return {}, old or ""
    try:
        head = yaml.safe_load(found[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or not isinstance(head.get("tags", []), list):
        raise UserError(f"{name}: the head of its README.md is no YAML that can be kept; mend it there, then try again")
    return head, (old or "")[found.end() :]


def _about(name: str, manifest: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    pairs = manifest.get("kind") == "pairs"
    what = (
        "Preference pairs with quality margins: `quality_margin` says how much better the chosen reply is, `margin_se` how sure that is."
        if pairs
        else "Graded feedback, one row per prompt: candidate replies and every grade that they were given."
    )
    splits = "\n".join(f"| {split} | {count:,} |" for split, count in manifest.get("rows", {}).items())
    others = "".join(f'\nload_dataset("{name}", "{one["config_name"]}")' for one in tables[1:])
    facts = {
        "made of": ", ".join(sorted({_source(one) for one in manifest.get("inputs", [])})) or None,
        "format": (manifest.get("recipe") or {}).get("format") or None,
        "grades": manifest.get("evidence"),
        "normalisation": manifest.get("normalisation"),
        "scales": ", ".join(_scale(one) for one in manifest.get("scales", [])) or None,
        "seed": (manifest.get("recipe") or {}).get("seed"),
        "left out": _left_out(manifest),
    }
    told = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in facts.items() if value is not None)
    return f"""{what}

```python
from datasets import load_dataset
load_dataset("{name}"){others}
```

`mmpo pull {name} --out FOLDER` gives the folder back as it was pushed, with its manifest (recipe, digests, counts) and what was left out.

| split | rows |
|---|---|
{splits}

| | |
|---|---|
{told}
{sources_table(manifest) if manifest.get("by_source") else ""}"""


def _source(given: Mapping[str, Any]) -> str:
    """An input's name without the folders of the machine that it was read on; of a Hub dataset all of it, with its commit."""
    name, revision = str(given.get("name", "")), given.get("revision")
    return f"{name}@{revision}" if revision else re.split(r"[/\\]", name)[-1]


def _scale(ends: Sequence[float | None]) -> str:
    low, high = ("unbounded" if end is None else f"{end:g}" for end in ends)
    return "unbounded" if low == high == "unbounded" else f"{low} to {high}"


def _left_out(manifest: Mapping[str, Any]) -> str | None:
    counts: dict[str, int] = {}
    for stage in manifest.get("counts", {}).values():
        for unit, one in stage.items():
            for reason, count in one.get("dropped", {}).items():
                counts[f"{unit}: {reason}"] = counts.get(f"{unit}: {reason}", 0) + count
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or None
