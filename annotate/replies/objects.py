"""Replies that are JSON: grades of several aspects, and rankings. The formats `aspects-json` and `ranking`."""

import re
from collections.abc import Callable, Sequence

from mmpo.annotate.replies.grade import alone
from mmpo.annotate.replies.literals import Literal, Literals, key_of, literals, texts
from mmpo.annotate.replies.text import ParsedReply, Unparsable, apart
from mmpo.annotate.scales import Scale

__all__ = ["GRADE_KEYS", "aspects_json", "last_that_holds", "ranking"]

GRADE_KEYS = ("grade", "score", "rating", "verdict", "value")
_NAME_KEYS = ("model", "label", "name", "id")
_RANK_KEYS = ("rank", "position")
_NOT_APPLICABLE = re.compile(r"\s*(?:n\s?/\s?a|na|none|null|not[\s_]applicable)\.?\s*", re.IGNORECASE)


def last_that_holds(candidates: Sequence[Literal], read: Callable[[Literal], ParsedReply]) -> ParsedReply | None:
    """What the last candidate says that can be read; the last one's refusal where none can; None without candidates."""
    refusal: Unparsable | None = None
    for candidate in reversed(candidates):
        try:
            return read(candidate)
        except Unparsable as error:
            refusal = refusal or error
    if refusal:
        raise refusal
    return None


def _nothing(text: str, found: Literals) -> Unparsable:
    return Unparsable("truncated" if found.broken_off else "no_verdict")


def aspects_json(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """{"helpfulness": {"reason": "...", "score": "4"}, "clarity": 5, "depth": "N/A"}: the last object that grades every aspect.

    Fences, prose around it, trailing commas and either quotes are fine. "N/A" (or null) is a value of its own: such an aspect has
    none here, and Unparsable("not_applicable") if all are. An aspect that isn't there: "missing_label"; a grade that isn't offered:
    "out_of_scale"; two different ones: "ambiguous"; an object that breaks off: "truncated".
    """
    found = literals(text)
    wanted = {key_of(name) for name in names}
    objects = [one for one in found.objects() if any(key_of(key) in wanted for key, _ in one.members or ())]
    whole = [one for one in objects if wanted <= {key_of(key) for key, _ in one.members or ()}]
    result = last_that_holds(whole, lambda one: _aspects(text, one, scale, names))
    if result is None:
        raise Unparsable("missing_label") if objects and not found.broken_off else _nothing(text, found)
    return result


def _aspects(text: str, graded: Literal, scale: Scale, names: Sequence[str]) -> ParsedReply:
    values: dict[str, float] = {}
    spans: dict[str, tuple[int, int]] = {}
    reasons: list[str] = []
    for name in names:
        given = [value for key, value in graded.members or () if key_of(key) == key_of(name)]
        scores = [one if one.scalar else one.get(*GRADE_KEYS) for one in given]
        reasons += [f"{name}: {reason}" for one in given if not one.scalar for reason in texts(one, [s.span for s in scores if s])]
        if any(score is None or not score.scalar for score in scores):
            raise Unparsable("missing_label")
        if len({score.text for score in scores if score}) > 1:
            raise Unparsable("ambiguous")
        score = scores[-1]
        if score is None or _NOT_APPLICABLE.fullmatch(score.text):
            continue
        label = alone(text, *score.span, scale, any_case=True)
        if label is None or label.value is None:
            raise Unparsable("out_of_scale")
        values[name], spans[name] = label.value, label.span
    if not values:
        raise Unparsable("not_applicable")
    return ParsedReply(values, spans, "\n".join(part for part in (apart(text, [graded.span]), *reasons) if part))


def ranking(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """[{"model": "m", "rank": 1}, {"model": "M", "rank": 2}], also inside an object, also with apostrophes: label → rank, 1 is best.

    Labels count as they are written ("m" is not "M"). The last such list that ranks every label once; ranks are those of an order,
    ties allowed (1, 1, 2 or 1, 1, 3), else Unparsable("not_a_ranking"). `scale` is not read. Source of the form: AlpacaEval.
    """
    found = literals(text)
    lists = [one for one in found.lists() if any(item.get(*_RANK_KEYS) for item in one.items or ())]
    result = last_that_holds(lists, lambda one: _ranks(text, one, names, found))
    if result is None:
        raise _nothing(text, found)
    return result


def _ranks(text: str, ranked: Literal, names: Sequence[str], found: Literals) -> ParsedReply:
    values: dict[str, float] = {}
    spans: dict[str, tuple[int, int]] = {}
    for item in ranked.items or ():
        name, rank = item.get(*_NAME_KEYS), item.get(*_RANK_KEYS)
        if name is None or rank is None or name.text not in names:
            raise Unparsable("not_a_ranking")
        if name.text in values:
            raise Unparsable("ambiguous")
        if not re.fullmatch(r"[1-9][0-9]{0,3}(?:\.0)?", rank.text):
            raise Unparsable("not_a_ranking")
        values[name.text], spans[name.text] = float(rank.text), rank.span
    if set(values) != set(names):
        raise Unparsable("missing_label")
    ranks = sorted(values.values())
    dense = [float(1 + len(set(ranks[:place])) - (rank in ranks[:place])) for place, rank in enumerate(ranks)]
    if ranks not in (dense, [1.0 + ranks.index(rank) for rank in ranks]):
        raise Unparsable("not_a_ranking")
    outer = next(one for one in found.found if one.start <= ranked.start < one.end)
    said = texts(outer, {one.span for one in ranked.within()})
    rationale = "\n".join(part for part in (apart(text, [outer.span]), *said) if part)
    return ParsedReply({name: values[name] for name in names}, {name: spans[name] for name in names}, rationale)
