"""The pairs that a page shows: extremes, doubtful ones and a sample of every source and size of margin, the same in every run."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mmpo.pipeline.report.dataset.figures import PairFigures, pair_batches, shortened
from mmpo.pipeline.report.page import seen
from mmpo.pipeline.tables import as_text

EXAMPLES = 400
"""Pairs that a page holds."""
OF_EACH = 24
"""Pairs of each kind of extreme."""
PER_PROMPT = 3
"""Pairs of one prompt among those of a kind."""
BYTES = 2_500_000
"""What all texts may take, as JSON."""
LONGEST = (6000, 3000, 1500, 750, 400)
"""Characters of a text that are kept: the first of these at which all texts fit."""
STRATA = 5
"""Sizes of margin that each source is sampled from."""
MOST_VERDICTS = 40_000
"""Of single raters, on a page: a hundred a pair. Of pairs that have more it is said how many are not there."""
MOST_DRAWN = 40_000
"""Rows that the sample is drawn from, the smallest digests of all."""
SAMPLE = "a sample of its source and size of margin"
Said = Callable[[Sequence[tuple[str, str]]], Sequence[Sequence[Mapping[str, Any]]]]
"""From pairs of completion ids to who said what of each."""


def choose(figures: PairFigures, most: int = EXAMPLES) -> dict[int, list[str]]:
    """Rows → why they are shown. Ties among equals are broken by the pairs' ids, so that neither the order of rows nor chance decides."""
    margin, digest = figures.margin, scattered(figures.pair)
    untied, n = margin > 0, len(margin)
    ratio = np.log((figures.chosen_length + 1.0) / (figures.rejected_length + 1.0))

    def doubt() -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(untied & (figures.margin_se > margin), -figures.margin_se / np.maximum(margin, 1e-300), np.inf)

    several = untied & (figures.raters > 1) & (2 * figures.preferring <= figures.raters)
    kinds: list[tuple[str, np.ndarray, Callable[[], np.ndarray]]] = [  # keys one after the other: of very many pairs each is large
        ("largest margins", untied, lambda: -margin),
        ("smallest margins above 0", untied, lambda: margin),
        ("ties", margin == 0, lambda: digest),
        ("most raters don't prefer the chosen one", several, lambda: -margin),
        ("error larger than the margin", untied, doubt),
        ("chosen though far shorter", untied & (ratio < 0), lambda: ratio),
        ("chosen and far longer", untied & (ratio > 0), lambda: -ratio),
    ]
    chosen: dict[int, list[str]] = {}
    for words, among, key_of in kinds:
        key = key_of()
        for row in first_rows(figures, np.flatnonzero(among & (key < np.inf)), key, digest, OF_EACH):
            chosen.setdefault(row, []).append(words)
    edges = np.unique(np.quantile(margin[untied], np.linspace(0, 1, STRATA + 1)))[1:-1] if untied.any() else np.zeros(0)
    # every stratum in turn gives its next pair by digest
    order = _thinned(figures.source, digest)
    sizes = np.where(untied[order], np.searchsorted(edges, margin[order], side="right"), STRATA)
    stratum, drawn = figures.source[order].astype(np.int64) * (STRATA + 1) + sizes, digest[order]
    sorted_by = np.lexsort((drawn, stratum))
    order, stratum, drawn = order[sorted_by], stratum[sorted_by], drawn[sorted_by]
    starts = np.flatnonzero(np.append(True, np.diff(stratum) != 0)) if n else np.zeros(0, np.int64)
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    for row in order[np.lexsort((drawn, turn))][: 2 * most].tolist():
        if len(chosen) >= most:
            break
        chosen.setdefault(row, [SAMPLE])
    return dict(sorted(chosen.items()))


def _thinned(source: np.ndarray, digest: np.ndarray) -> np.ndarray:
    """Of very many rows those of the smallest digests, and all of sources that have few."""
    if len(digest) <= MOST_DRAWN:
        return np.arange(len(digest))
    kept = digest <= np.partition(digest, MOST_DRAWN)[MOST_DRAWN]
    few = np.bincount(source) < MOST_DRAWN // 10
    return np.flatnonzero(kept | few[source])


def scattered(pair: np.ndarray) -> np.ndarray:
    """The pairs' numbers as if drawn at random, the same in every run."""
    mixed = (pair ^ (pair >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(29))


def first_rows(figures: PairFigures, rows: np.ndarray, key: np.ndarray, digest: np.ndarray, most: int) -> Iterator[int]:
    """The rows of the smallest keys, at most PER_PROMPT of a prompt."""
    near = 40 * most
    if len(rows) > near:
        rows = rows[key[rows] <= np.partition(key[rows], near)[near]]
        if len(rows) > 50 * near:  # of very many equal keys those of the smallest digests
            rows = rows[np.argpartition(digest[rows], near)[:near]]
    used: Counter[int] = Counter()
    found = 0
    for row in rows[np.lexsort((digest[rows], key[rows]))].tolist():
        prompt = int(figures.prompt[row])
        if used[prompt] < PER_PROMPT:
            used[prompt] += 1
            found += 1
            yield row
        if found == most:
            return


def shown_pairs(
    dataset: Path, figures: PairFigures, chosen: Mapping[int, Sequence[str]], said: Said | None = None
) -> list[dict[str, Any]]:
    """The pairs as a page shows them, in the order of the rows: whole texts, their numbers, and who said what where `said` is given."""
    found: list[dict[str, Any]] = []
    wanted = np.array(sorted(chosen), dtype=np.int64)
    first = 0
    for split, _, _, batch in pair_batches(dataset):
        low, high = np.searchsorted(wanted, (first, first + batch.num_rows))
        for row in wanted[low:high].tolist():
            found.append(_shown(batch.slice(row - first, 1).to_pylist()[0], split, chosen[row]))
        first += batch.num_rows
        if high == len(wanted):
            break
    if said is not None:
        for one, raters in zip(found, said([(one["chosen_id"], one["rejected_id"]) for one in found]), strict=True):
            one["said"] = [{**rater, "rater": shortened(rater["rater"]), "aspect": shortened(rater["aspect"])} for rater in raters]
        _fewer_verdicts(found)
    return found


def _fewer_verdicts(pairs: Sequence[dict[str, Any]]) -> None:
    """Keeps MOST_VERDICTS in all, as many of each pair, from all over its list; `unsaid` is how many of a pair are left out."""
    sizes = [len(one["said"]) for one in pairs]
    most = max(sizes, default=0)
    while sum(min(size, most) for size in sizes) > MOST_VERDICTS:
        most -= max(1, most // 50)
    for one, size in zip(pairs, sizes, strict=True):
        if size > most:
            one |= {"said": [one["said"][at * size // most] for at in range(most)], "unsaid": size - most}


def _shown(row: Mapping[str, Any], split: str, why: Sequence[str]) -> dict[str, Any]:
    names = ("chosen_id", "rejected_id", "source", "kind", "chosen_model", "rejected_model")
    numbers = ("score_chosen", "score_rejected", "quality_margin", "margin_se", "preferring", "raters")
    return {
        **{name: row[name] if row[name] is None else shortened(row[name]) for name in names},
        **{name: row[name] for name in numbers},
        "split": split,
        "why": list(why),
        "prompt": seen("\n".join(f"{message['role']}: {as_text(message, thinking=True)}" for message in row["prompt"])),
        **{side: seen("\n".join(as_text(message, thinking=True) for message in row[side])) for side in ("chosen", "rejected")},
    }


def payload(pairs: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """The pairs as JSON that may stand inside a script element, and how many characters of a text were kept at most.

    Texts stand in a list of their own, each once, and so do raters with their aspects: a verdict is [its place in `who`, its margin, to
    the four digits that are shown]. `<`, `>`, `&` and the line ends of JavaScript are escapes, so that nothing in a text ends
    the element.
    """
    who: dict[tuple[str, str], int] = {}
    said = [
        [[who.setdefault((one["rater"], one["aspect"]), len(who)), float(f"{one['margin']:.4g}")] for one in pair.get("said", ())]
        for pair in pairs
    ]
    for most in LONGEST:
        texts: dict[str, int] = {}
        rows = []
        for pair, verdicts in zip(pairs, said, strict=True):
            chosen, rejected = cut_alike(pair["chosen"], pair["rejected"], most)
            own = {"prompt": cut(pair["prompt"], most), "chosen": chosen, "rejected": rejected}
            rows.append({**pair, "said": verdicts, **{name: texts.setdefault(text, len(texts)) for name, text in own.items()}})
        written = orjson.dumps({"texts": list(texts), "who": list(who), "pairs": rows}).decode()
        for sign in "<>&\u2028\u2029":
            written = written.replace(sign, f"\\u{ord(sign):04x}")
        if len(written.encode()) <= BYTES:
            break
    return written, most


def cut(text: str, most: int) -> str:
    """The text, or its beginning and its end with a word on what is left out between them.

    >>> cut("a" * 10, 20), cut("a" * 1000, 60)
    ('aaaaaaaaaa', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa … [940 characters not shown] … aaaaaaaaaaaaaaaaaaaa')
    """
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]} … [{len(text) - most:,} characters not shown] … {text[len(text) - most + head :]}"


def cut_alike(one: str, other: str, most: int) -> tuple[str, str]:
    """Two texts cut; where they begin alike further than is kept, the beginning is cut first, so that where they part is seen."""
    same = _common(one, other)
    skip = same - most // 4 if same > most // 2 and max(len(one), len(other)) > most else 0
    if skip <= 0:
        return cut(one, most), cut(other, most)
    words = f"[{skip:,} characters that both begin with not shown] … "
    return words + cut(one[skip:], most), words + cut(other[skip:], most)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
