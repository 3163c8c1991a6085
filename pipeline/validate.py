"""`validate`: is a dataset folder what it says? Every rule of the PAIRS table, and what usually goes wrong with preference data.

Adding a check: a function over the `Totals` of a pass and a line in CHECKS. One pass over the files, a row group at a time.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmpo.pipeline.arrow import differing_messages, flat, offsets_of, to_numpy
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import target_probability
from mmpo.pipeline.pairs.splits import first_user_messages, split_position
from mmpo.pipeline.storage.dataset import manifest_of, split_files
from mmpo.pipeline.tables import PAIRS, SPLITS, completion_id, metadata, prompt_id

SATURATED = 0.95
"""A target above this pulls like a certain label: the margin behind it no longer matters."""


@dataclass
class Totals:
    """What one pass over a dataset collects; counts of rows that break a rule, by rule."""

    gamma: float | None = None
    rows: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    conversations: dict[float, set[str]] = field(default_factory=lambda: defaultdict(set))
    pairs: set[str] = field(default_factory=set)
    scales: set[str] = field(default_factory=set)
    ties: int = 0
    unsure: int = 0
    saturated: int = 0
    longer: int = 0
    untied: int = 0
    declared: int | None = None

    def found(self, rule: str, mask: np.ndarray, where: str) -> None:
        """Count the rows that break a rule; the first one is named in the message."""
        if mask.any():
            self.broken[rule] += int(mask.sum())
            self.first.setdefault(rule, f"{where}, row {int(np.argmax(mask)) + 1}")


def _take_in(totals: Totals, split: str, path: Path) -> None:
    """Add one file of a split."""
    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
            wrong = [f.name for f in PAIRS if f.name not in schema.names or not schema.field(f.name).type.equals(f.type)]
            if wrong:
                totals.found("schema", np.ones(1, dtype=bool), f"{path.name}: {', '.join(wrong)}")
                return
            totals.scales.add(str(metadata(schema).get("scales")))
            for batch in parquet.iter_batches(batch_size=4096):
                _rows(totals, split, pa.Table.from_batches([batch]), f"{split}/{path.name}")
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: can't be read as Parquet: {error}") from error


def _rows(totals: Totals, split: str, table: pa.Table, where: str) -> None:
    where = f"{where} from row {totals.rows + 1}"
    totals.rows += table.num_rows
    names = ("quality_margin", "margin_se", "score_chosen", "score_rejected", "preferring", "raters")
    margin, se, chosen, rejected, votes, raters = (to_numpy(flat(table[name])) for name in names)
    needed = [n for n in PAIRS.names if n not in ("score_chosen", "score_rejected", "margin_se", "chosen_model", "rejected_model")]
    null = np.zeros(table.num_rows, dtype=bool)
    for name in needed:
        null |= np.asarray(flat(table[name]).is_null())
    totals.found("nulls", null, where)
    totals.found("margin sign", ~(np.nan_to_num(margin, nan=-1.0) >= 0) | ~np.isfinite(margin), where)
    totals.found("standard errors", (se < 0) | np.isinf(se), where)
    one, both = np.isfinite(chosen) != np.isfinite(rejected), np.isfinite(chosen) & np.isfinite(rejected)
    totals.found("scores", one | (both & (np.abs(chosen - rejected - margin) > 1e-9)), where)
    totals.found("votes", (votes < 0) | (votes > raters), where)
    kinds = pc.is_in(flat(table["kind"]), value_set=pa.array(["human", "ai", "reward_model", "mixed"]))
    totals.found("kinds", ~np.asarray(kinds.fill_null(False)), where)
    totals.ties += int((margin == 0).sum())
    totals.unsure += int(np.isnan(se).sum())
    untied = margin > 0
    totals.untied += int(untied.sum())
    if totals.gamma is not None and untied.any():
        totals.saturated += int((target_probability(margin[untied], totals.gamma) > SATURATED).sum())
    if not null.any():
        _texts_and_ids(totals, split, table, where, untied)


def _texts_and_ids(totals: Totals, split: str, table: pa.Table, where: str, untied: np.ndarray) -> None:
    ids = {name: flat(table[name]).to_pylist() for name in ("prompt_id", "chosen_id", "rejected_id")}
    wrong = np.zeros(table.num_rows, dtype=bool)
    replies = {}
    for name in ("chosen", "rejected"):
        column = flat(table[name])
        single = np.diff(offsets_of(column)) == 1
        totals.found("messages", ~single, where)
        if not single.all():
            return
        replies[name] = column.flatten().field("content").to_pylist()
    prompts = flat(table["prompt"])
    starts = np.flatnonzero(np.array([True, *(a != b for a, b in zip(ids["prompt_id"], ids["prompt_id"][1:], strict=False))]))
    for row, messages in zip(starts.tolist(), prompts.take(pa.array(starts)).to_pylist(), strict=True):
        wrong[row] |= not messages or prompt_id(messages) != ids["prompt_id"][row]
    run = np.repeat(starts, np.diff([*starts.tolist(), table.num_rows]))  # every row has the prompt of its run's first one
    wrong |= differing_messages(pa.chunked_array([prompts]), run)
    totals.found("prompt ids", wrong, where)
    # Ids are digests: recomputing them takes a loop, as every digest does.
    for side in ("chosen", "rejected"):
        bad = [i != completion_id(p, t) for i, p, t in zip(ids[f"{side}_id"], ids["prompt_id"], replies[side], strict=True)]
        totals.found("completion ids", np.array(bad, dtype=bool), where)
        totals.found("empty texts", np.array([not t or t.isspace() for t in replies[side]], dtype=bool), where)
    both = list(zip(replies["chosen"], replies["rejected"], strict=True))
    totals.found("identical texts", np.array([chosen == rejected for chosen, rejected in both], dtype=bool), where)
    keys = [min(a, b) + max(a, b) for a, b in zip(ids["chosen_id"], ids["rejected_id"], strict=True)]
    before = len(totals.pairs)
    totals.pairs.update(keys)
    totals.broken["duplicates"] += len(keys) - (len(totals.pairs) - before)
    longer = np.array([len(chosen) > len(rejected) for chosen, rejected in both], dtype=bool)
    totals.longer += int((longer & untied).sum())
    for identity in set(ids["prompt_id"]):
        totals.prompts[identity].add(split)
    for text in first_user_messages(prompts.take(pa.array(starts))):
        totals.conversations[split_position(text)].add(split)


Outcome = tuple[str, int, str]


@dataclass(frozen=True)
class Check:
    """One thing that `validate` looks at. outcome: status (pass, warn or fail), count and message, from the name and the totals."""

    outcome: Callable[[str, Totals], Outcome]
    summary: str


def _rule(good: str, bad: str) -> Check:
    """A rule that no row may break; `Totals.broken` counts those that do, under the check's name."""

    def outcome(name: str, totals: Totals) -> Outcome:
        count = totals.broken[name]
        first = f"; first: {totals.first[name]}" if name in totals.first else ""
        return ("fail", count, bad + first) if count else ("pass", 0, good)

    return Check(outcome, good)


def _scales(name: str, totals: Totals) -> Outcome:
    if len(totals.scales) > 1:
        return "fail", len(totals.scales), f"files of different scales: {'; '.join(sorted(totals.scales))}"
    return "pass", 0, "one scale"


def _ties(name: str, totals: Totals) -> Outcome:
    share = totals.ties / max(totals.rows, 1)
    message = f"{share:.1%} of the pairs have margin 0; data for mmpo and rpo-*, left out by objectives that need a winner"
    return ("warn" if share > 0.5 else "pass"), totals.ties, message


def _length(name: str, totals: Totals) -> Outcome:
    share = totals.longer / max(totals.untied, 1)
    biased = totals.untied >= 50 and not 0.35 <= share <= 0.65
    return ("warn" if biased else "pass"), totals.longer, f"the longer reply is chosen in {share:.1%} of the untied pairs"


def _saturation(name: str, totals: Totals) -> Outcome:
    if totals.gamma is None:
        return "pass", 0, "not checked: name a gamma"
    share = totals.saturated / max(totals.untied, 1)
    message = f"at gamma {totals.gamma:g}, {share:.1%} of the untied targets pass {SATURATED}: margins above them say nothing"
    return ("warn" if share > 0.5 else "pass"), totals.saturated, message


def _errors_known(name: str, totals: Totals) -> Outcome:
    share = totals.unsure / max(totals.rows, 1)
    return "pass", totals.unsure, f"margin_se is unknown for {share:.1%} of the pairs"


def _counts(name: str, totals: Totals) -> Outcome:
    if totals.declared is not None and totals.declared != totals.rows:
        message = f"the manifest says {totals.declared:,} pairs, the files hold {totals.rows:,}"
        return "fail", abs(totals.declared - totals.rows), message
    return "pass", totals.rows, f"{totals.rows:,} pairs, as the manifest says"


CHECKS: dict[str, Check] = {
    "schema": _rule("columns and types as in the data contract", "columns missing or of other types"),
    "row counts": Check(_counts, "as many pairs as the manifest says"),
    "nulls": _rule("no null where a value is needed", "nulls where a value is needed"),
    "messages": _rule("one message a reply", "replies that are not one message"),
    "prompt ids": _rule("prompt ids are the digests of the prompts", "prompt ids that do not fit the prompt"),
    "completion ids": _rule("completion ids are the digests of the texts", "completion ids that do not fit"),
    "empty texts": _rule("no empty reply", "empty replies"),
    "identical texts": _rule("no pair of equal texts", "pairs of equal texts"),
    "duplicates": _rule("no pair twice", "pairs that occur more than once"),
    "margin sign": _rule("margins are finite and 0 or more", "margins that are negative or not finite"),
    "scores": _rule("margins are the differences of the scores", "scores that do not give the margin"),
    "standard errors": _rule("standard errors are 0 or more", "standard errors below 0 or infinite"),
    "known errors": Check(_errors_known, "for how many pairs margin_se is known"),
    "votes": _rule("votes lie between 0 and the raters", "votes below 0 or above the raters"),
    "kinds": _rule("known kinds of raters", "unknown kinds of raters"),
    "leakage": _rule(
        "no prompt and no conversation is on two sides of the split", "prompts or conversations on more than one side of the split"
    ),
    "scales": Check(_scales, "one scale in all files"),
    "ties": Check(_ties, "not mostly pairs of margin 0"),
    "length bias": Check(_length, "neither the longer nor the shorter reply is nearly always chosen"),
    "saturation": Check(_saturation, "targets at --gamma that still tell margins apart"),
}


def validate(dir: str | Path, *, gamma: float | None = None, strict: bool = False) -> dict[str, Any]:
    """Check a dataset folder.

    gamma: in 1/margin-unit; where given, the share of saturated targets is a check of its own. strict: warnings count as failures.
    Returns {"ok", "checks": [{"name", "status": "pass" | "warn" | "fail", "count", "message"}]}.
    Raises UserError where the folder is no dataset of mmpo or holds FEEDBACK.
    """
    folder = Path(dir)
    manifest = manifest_of(folder, "pairs")
    if gamma is not None and not gamma >= 0:
        raise UserError(f"gamma {gamma}: must be 0 or more")
    rows = manifest.get("rows")
    totals = Totals(gamma=gamma, declared=sum(rows.values()) if isinstance(rows, dict) else None)
    for split in SPLITS:
        for path in split_files(folder, split):
            _take_in(totals, split, path)
    totals.broken["leakage"] = sum(len(splits) > 1 for splits in (*totals.prompts.values(), *totals.conversations.values()))
    checks = []
    for name, check in CHECKS.items():
        status, count, message = check.outcome(name, totals)
        checks.append({"name": name, "status": status, "count": count, "message": message})
    bad = ("fail", "warn") if strict else ("fail",)
    return {"ok": not any(check["status"] in bad for check in checks), "checks": checks}
