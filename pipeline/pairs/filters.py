"""Which prompts and pairs are left out, and why: FILTERS. Adding one: a function and a line there.

A filter of pairs takes a FEEDBACK batch, the pairs left so far and the rules. A filter of prompts takes prompts (prompt_id, prompt, tools)
and their rules before any pair is made; what compares all prompts with one another looks at the whole input (`filters.duplicates`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of, parents, row_sums, whole_texts
from mmpo.pipeline.filters import (
    PromptRules,
    Verdict,
    contaminated,
    near_texts,
    other_languages,
    prompt_texts,
    texts_of_prompts,
    token_counts,
)
from mmpo.pipeline.grades.answers import Answers
from mmpo.pipeline.grades.rules import PairRules
from mmpo.pipeline.pairs.agreement import rater_missing, raters_disagree
from mmpo.pipeline.pairs.strategies import STRATEGIES, pair_hash
from mmpo.pipeline.pairs.table import ChosenPairs

SHOWN_CHARACTERS = 200
Mask = np.ndarray | Verdict
"""The pairs or prompts to leave out, shape (rows,), bool; where there is more to say than the reason, with the evidence of each."""


def _none(pairs: ChosenPairs) -> np.ndarray:
    return np.zeros(len(pairs.prompt), dtype=bool)


def _told(out: np.ndarray, told: Callable[[int], dict[str, Any]]) -> Verdict:
    """The mask with what is said of each that it leaves out."""
    return Verdict(out, [told(at) for at in np.flatnonzero(out).tolist()])


def _other_language(prompts: pa.Table, rules: PromptRules) -> Verdict:
    """Prompts in another language than --language names."""
    if not rules.languages:
        return Verdict(np.zeros(prompts.num_rows, dtype=bool), ())
    texts = texts_of_prompts(prompts, calls=False)["said"]
    found = other_languages(texts, rules.languages, rules.language_confidence)
    return Verdict(np.array([one is not None for one in found], dtype=bool), [one for one in found if one is not None])


def _contaminated(prompts: pa.Table, rules: PromptRules) -> Verdict:
    """Prompts that hold much of an evaluation prompt of --decontaminate."""
    if rules.evaluation is None:
        return Verdict(np.zeros(prompts.num_rows, dtype=bool), ())
    return Verdict(*contaminated(flat(prompts["prompt"]), rules.evaluation, rules.decontaminate_share))


def _tie(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of margin 0, where ties are to be dropped."""
    return (pairs.quality_margin == 0) & (rules.ties == "drop")


def _over_long(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs with more characters than allowed in the prompt (all its messages) or in a completion."""
    if rules.max_chars is None:
        return _none(pairs)
    lengths = _characters(table, pairs)
    longest = lengths.max(axis=0)
    return _told(
        longest > rules.max_chars,
        lambda at: {"longest": _SIDES[int(lengths[:, at].argmax())], "characters": int(longest[at]), "limit": rules.max_chars},
    )


_SIDES = ("prompt", "chosen", "rejected")


def _characters(table: pa.Table, pairs: ChosenPairs) -> np.ndarray:
    """Characters of the prompt (all its messages, and the tools on offer), of the chosen and of the rejected reply, shape (3, pairs)."""
    prompts = flat(table["prompt"])
    of_prompt = row_sums(prompts, pc.utf8_length(whole_texts(prompts.flatten())))
    of_prompt = of_prompt + np.asarray(pc.fill_null(pc.utf8_length(flat(table["tools"])), 0))
    of_text = np.asarray(pc.utf8_length(whole_texts(flat(table["completions"]).flatten(), "text")))
    return np.stack([of_prompt[pairs.prompt], of_text[pairs.chosen], of_text[pairs.rejected]])


def _too_short(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs with a reply of fewer characters than --min-chars."""
    if rules.min_chars is None:
        return _none(pairs)
    lengths = _characters(table, pairs)[1:]
    shortest = lengths.min(axis=0)
    return _told(
        shortest < rules.min_chars,
        lambda at: {
            "shortest": _SIDES[1 + int(lengths[:, at].argmin())],
            "characters": int(shortest[at]),
            "limit": rules.min_chars,
        },
    )


def _too_many_tokens(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs whose prompt and longer reply have more tokens together than --max-tokens."""
    if rules.max_tokens is None:
        return _none(pairs)
    prompts, replies = flat(table["prompt"]), whole_texts(flat(table["completions"]).flatten(), "text")
    of_prompt = row_sums(prompts, pa.array(token_counts(whole_texts(prompts.flatten()), rules.tokenizer)))
    of_prompt = (of_prompt + token_counts(flat(table["tools"]), rules.tokenizer))[pairs.prompt]
    of_text = token_counts(replies, rules.tokenizer)
    longer = np.maximum(of_text[pairs.chosen], of_text[pairs.rejected])
    return _told(
        of_prompt + longer > rules.max_tokens,
        lambda at: {"prompt_tokens": int(of_prompt[at]), "reply_tokens": int(longer[at]), "limit": rules.max_tokens},
    )


def _beginning(texts: pa.Array, place: int) -> str:
    return texts[place].as_py()[:SHOWN_CHARACTERS]


def _reply_in_other_language(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs with a reply in another language than --language names, with --language-of all."""
    if not rules.languages or rules.language_of != "all":
        return _none(pairs)
    texts = flat(table["completions"]).flatten().field("text")
    found = other_languages(texts, rules.languages, rules.language_confidence)
    other = np.array([one is not None for one in found], dtype=bool)

    def told(at: int) -> dict[str, Any]:
        side = "chosen" if other[pairs.chosen[at]] else "rejected"
        place = int(getattr(pairs, side)[at])
        return {"reply": side, **(found[place] or {}), "text": _beginning(texts, place)}

    return _told(other[pairs.chosen] | other[pairs.rejected], told)


def _near_replies(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs whose two replies are nearly the same, with --duplicates replies."""
    if "replies" not in rules.duplicates:
        return _none(pairs)
    near = _alike(table, rules)
    value = np.array([near.get((min(a, b), max(a, b)), -1.0) for a, b in zip(pairs.chosen.tolist(), pairs.rejected.tolist())])
    texts = _replies(table, rules)

    def told(at: int) -> dict[str, Any]:
        sides = {side: _beginning(texts, int(getattr(pairs, side)[at])) for side in ("chosen", "rejected")}
        return {"similarity": round(float(value[at]), 4), **sides}

    return _told(value >= 0, told)


def _duplicate_pair(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> Mask:
    """Pairs of a prompt whose replies are both nearly those of another pair that stays, with --duplicates pairs."""
    out = _none(pairs)
    if "pairs" not in rules.duplicates:
        return out
    alike: dict[int, list[int]] = {}
    for one, other in _alike(table, rules):
        alike.setdefault(one, [one]).append(other)
        alike.setdefault(other, [other]).append(one)
    ids = flat(table["completions"]).flatten().field("id")
    stay: set[tuple[int, int]] = set()
    details = {}
    for at in np.lexsort((pairs.rejected, pairs.chosen)).tolist():  # by ids, as the completions of a prompt are
        chosen, rejected = int(pairs.chosen[at]), int(pairs.rejected[at])
        if chosen not in alike and rejected not in alike:
            continue
        same = ((a, b) for a in alike.get(chosen, [chosen]) for b in alike.get(rejected, [rejected]))
        found = min((one for one in same if one in stay), default=None)
        if found is None:
            stay.add((chosen, rejected))
        else:
            out[at] = True
            details[at] = {f"near_{side}_id": ids[place].as_py() for side, place in zip(("chosen", "rejected"), found)}
    return _told(out, lambda at: details[at])


def _alike(table: pa.Table, rules: PairRules) -> dict[tuple[int, int], float]:
    """Completions of one prompt that are nearly the same, by position, the smaller one first, with their similarity."""
    group = parents(offsets_of(flat(table["completions"])))
    return near_texts(_replies(table, rules), group, rules.similarity, rules.shingle)


def _replies(table: pa.Table, rules: PairRules) -> pa.Array:
    """What completions are compared by: their calls with their text, and their thinking where it counts."""
    return whole_texts(flat(table["completions"]).flatten(), "text", thinking=rules.graded_part == "all")


def _small_margin(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of a margin below the least that is wanted."""
    return pairs.quality_margin < rules.min_margin


def _few_raters(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs that fewer raters graded both sides of than are wanted."""
    return pairs.raters < rules.min_raters


def _over_the_cap(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs beyond the largest number of pairs that a prompt may have."""
    strategy, out = STRATEGIES[rules.strategy], _none(pairs)
    most = rules.max_per_prompt or strategy.most
    if most is None:
        return out
    crowded = np.flatnonzero(np.bincount(pairs.prompt, minlength=1)[pairs.prompt] > most)
    ids = flat(table["completions"]).flatten().field("id")
    names = (ids.take(pa.array(side[crowded])).to_pylist() for side in (pairs.chosen, pairs.rejected))
    hashes = np.array([pair_hash(rules.seed, *pair) for pair in zip(*names, strict=True)], dtype="S16")
    # numpy strips trailing NULs of bytes when it compares; two hashes that differ in nothing else do not occur
    rank = np.argsort(np.argsort(hashes, kind="stable"), kind="stable")
    out[crowded] = ~strategy.capped(pairs.prompt[crowded], pairs.quality_margin[crowded], rank, most)
    return out


def _thinking_only(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs with a reply that is thinking without an answer, where the answer is what counts."""
    if rules.graded_part == "all" and rules.thinking == "keep":
        return _none(pairs)
    missing = Answers(table).missing()
    return missing[pairs.chosen] | missing[pairs.rejected]


def _identical_answers(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> np.ndarray:
    """Pairs of replies that differ in their thinking or in the white space around them alone, where the grades are of the answers."""
    if rules.graded_part == "all":
        return _none(pairs)
    return Answers(table).same(pairs.chosen, pairs.rejected) > 0


class OfPrompts(NamedTuple):
    """A filter of prompts; out_of: what it leaves out of some of them, None where all prompts have to be seen."""

    summary: str
    out_of: Callable[[pa.Table, PromptRules], Verdict] | None = None


FILTERS: dict[str, OfPrompts | Callable[[pa.Table, ChosenPairs, PairRules], Mask]] = {
    "other_language": OfPrompts("Prompts in another language than --language names", _other_language),
    "contaminated": OfPrompts("Prompts that hold much of an evaluation prompt of --decontaminate", _contaminated),
    "same_prompt": OfPrompts("Prompts with the same words as another, with --duplicates prompts"),
    "near_duplicate_prompt": OfPrompts("Prompts that are nearly the same as another, with --duplicates prompts"),
    "in_two_splits": OfPrompts("Prompts nearly the same as one of a later split, with --duplicates splits"),
    "thinking_only": _thinking_only,
    "identical_answers": _identical_answers,
    "tie": _tie,
    "over_long": _over_long,
    "too_short": _too_short,
    "too_many_tokens": _too_many_tokens,
    "reply_in_other_language": _reply_in_other_language,
    "near_duplicate_replies": _near_replies,
    "min_raters": _few_raters,
    "rater_missing": rater_missing,
    "raters_disagree": raters_disagree,
    "min_margin": _small_margin,
    "duplicate_pair": _duplicate_pair,
    "max_per_prompt": _over_the_cap,
}
"""By reason: of pairs (FEEDBACK batch, pairs left so far, rules) → the pairs to leave out; of prompts see `OfPrompts`. They run in this
order."""


def filtered(table: pa.Table, pairs: ChosenPairs, rules: PairRules) -> ChosenPairs:
    """The pairs that the rules keep; `dropped` and `left_out` of the result say what was left out and why."""
    for reason, out_of in FILTERS.items():
        if not isinstance(out_of, OfPrompts):
            found = out_of(table, pairs, rules)
            pairs = pairs.without(reason, *found) if isinstance(found, Verdict) else pairs.without(reason, found)
    return pairs


LeftOutPrompts = list[tuple[str, np.ndarray, Sequence[dict[str, Any]]]]
"""A reason, the rows of the prompts that it leaves out, and the evidence of each."""


def filtered_prompts(prompts: pa.Table, rules: PromptRules) -> LeftOutPrompts:
    """What the filters leave out that need no other prompt to decide, each of what those before it leave. prompts: prompt_id, prompt,
    tools."""
    found: LeftOutPrompts = []
    rows = np.arange(prompts.num_rows)
    for reason, filter in FILTERS.items():
        if isinstance(filter, OfPrompts) and filter.out_of is not None and len(rows):
            some = prompts if len(rows) == prompts.num_rows else prompts.take(pa.array(rows)).combine_chunks()
            out, details = filter.out_of(some, rules)
            texts = prompt_texts(some.filter(pa.array(out))) if out.any() else []
            found.append((reason, rows[out], [{**one, "text": text} for one, text in zip(details, texts, strict=True)]))
            rows = rows[~out]
    return found
