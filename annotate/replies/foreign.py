"""Formats that other tools' judges write: a choice of two outputs, two scores, a ranking."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mmpo.annotate.replies.grade import NUMBER, ends_here, number_of
from mmpo.annotate.replies.literals import Literal, Literals, last_that_holds, literals, rationale
from mmpo.annotate.replies.text import ParsedReply, Span, Unparsable, apart, first_and_last_line
from mmpo.annotate.scales import Scale

# A choice of two texts called Output (a) and Output (b)

# The same sentence speaks of somebody else's opinion, or leaves the matter open.
_NOT_OURS = re.compile(
    r"\bassistants?\s{1,3}(?:\([a-z]\)\s{1,3})?(?:[a-z]{1,12}\s{1,3}){0,2}(?:argu|believ|claim|conclud|stat|suggest|prefer|favou?r|say|think|point)"
    r"|\b(?:whether|if|neither|nor|either|cannot|not\s{1,3}(?:clear|sure|true|certain|obvious|think|believe|say))\b[^,;]{0,60}\Z|\bor\s{1,3}\Z",
    re.IGNORECASE | re.ASCII,
)
_SENTENCE = 300
_ASIDE = re.compile(r"\s{1,3}(?:in\s{1,3}terms|in\s{1,3}(?:its|this|that)\s|at\s)", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=64)
def _patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What states a choice inside a sentence (two ways), and what is one where it has a line to itself."""
    output = rf"\boutput\s{{0,3}}\(\s{{0,2}}(?P<label>{'|'.join(map(re.escape, labels))})\s{{0,2}}\)"
    better = re.compile(
        rf"{output}[\"'*`]{{0,4}}\s{{1,3}}(?:is|would\s{{1,3}}be)\s{{1,3}}(?:(?:the|a|clearly|slightly|much|overall|definitely|still)\s{{1,3}}){{0,2}}"
        r"better\b",
        re.IGNORECASE | re.ASCII,
    )
    picked = re.compile(
        r"(?:\b(?:choose|select|prefer|pick|go\s{1,3}with)|\b(?:choice|verdict|answer)\s{1,3}is|"
        r"\bbetter\s{1,3}(?:output|response|option|answer|one)(?:\s{1,3}[a-z]{1,15}){0,8}\s{1,3}is)"
        rf"(?:\s{{0,3}}:)?\s{{1,3}}[\"'*`]{{0,4}}{output}",
        re.IGNORECASE | re.ASCII,
    )
    alone = re.compile(rf"[\s#>*\"'`]{{0,9}}{output}[\s.!*\"'`]{{0,9}}(?P<note>\s\(.*)?", re.IGNORECASE | re.ASCII | re.DOTALL)
    return better, picked, alone


def output_choice(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """The last statement of a choice: "Output (b) is better", "I choose Output (b)", "the better output is Output (b)", or
    "Output (b)" alone on the first or the last line. Where the first line and the conclusion disagree the conclusion wins.

    LLMBar's recorded answers cannot arbitrate that: its parsers look for "(a)" before they look for "(b)", and so have (a) for 139 replies
    that conclude with (b). Where that order decides nothing, this rule agrees with all but 8 of 8,854.

    A mention is no choice, nor is what an assistant in a debate is said to argue, a question, or one aspect ("is better in terms of").
    """
    better, picked, alone = _patterns(tuple(scale.labels))
    stated = [match for match in better.finditer(text) if _ours(text, match) and not _ASIDE.match(text, match.end())]
    stated += [match for match in picked.finditer(text) if _ours(text, match)]
    choices = [match.span("label") for match in stated]
    first, last = first_and_last_line(text)
    # A note in brackets may follow on a first line only: at the end it is a sentence cut short.
    lines = [(span, match) for span in (first, last) if (match := alone.fullmatch(text, *span))]
    choices += [match.span("label") for span, match in lines if not match["note"] or span[0] == first[0]]
    if not choices:
        raise Unparsable("no_verdict")
    label = max(choices)
    value = next(value for known, value in scale.labels.items() if known.lower() == text[slice(*label)].lower())
    return ParsedReply({names[0]: value}, {names[0]: label}, apart(text, _own_line(text, label, better, alone)))


def _ours(text: str, match: re.Match[str]) -> bool:
    """Whether a statement is the judge's own conclusion, by what comes before it in its sentence."""
    before = re.split(r"[.!?\n]", text[max(0, match.start() - _SENTENCE) : match.start()])[-1]
    return _NOT_OURS.search(before) is None


def _own_line(text: str, label: Span, *patterns: re.Pattern[str]) -> list[Span]:
    """The choice's line, where it holds nothing else; a sentence that states the choice is part of the rationale."""
    start, stop = text.rfind("\n", 0, label[0]) + 1, text.find("\n", label[1])
    end = len(text) if stop < 0 else stop
    line = text[start:end].strip(" #>*\"'`.!\f")
    return [(start, end)] if any(pattern.fullmatch(line) for pattern in patterns) else []


# Two scores, "8 10"


def _number(name: str) -> str:
    """A number's pattern, its groups named after `name`."""
    return rf"(?P<{name}>{NUMBER.replace('P<of>', f'P<{name}_of>').replace('P<out>', f'P<{name}_out>')})"


_BLANK = r"[\s*_`]{0,4}"
_ONE, _TWO, _EACH = _number("one"), _number("two"), _number("each")
_WHO = r"(?<![A-Za-z])(?:assistant|model|response|answer|output|candidate|completion)s?[\s*_`]{1,3}"
_WHICH = rf"{_WHO}[\[(#]?(?P<which>1|2|a|b|one|two)(?![A-Za-z0-9])[\])]?"
_BOTH = rf"{_WHO}(?:1|a|one)\s{{1,3}}(?:and|&)\s{{1,3}}(?:{_WHO})?(?:2|b|two)(?![A-Za-z0-9])"
_SCORE = r"(?:scores?|rating|grade)"
_GAP = r"[^\n.\d:;]"
_NEAR = rf"(?:(?!{_WHO}){_GAP})"
_PAIR = rf"{_ONE}(?:\s{{0,3}}[,;|]\s{{0,3}}|\s{{1,3}}(?:and\s{{1,3}})?){_TWO}"
# "a score of 8" says enough; "a 8" does only with its "out of 10".
_GIVEN = rf"(?:{_SCORE}\s{{1,3}}(?:of|is|as)|(?P<weak>an?|as|at))\s{{1,3}}"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


_LINE = _compiled(rf"[\s*_`]{{0,9}}(?:{_SCORE}{_BLANK}:)?{_BLANK}[(\[]?\s{{0,3}}{_PAIR}\s{{0,3}}[)\]]?[\s*_`.]{{0,9}}")
# What a statement says follows from its groups: a pair (one, two), one score for both (each), or one of one text (which, one).
_STATEMENTS = (
    _compiled(rf"\b{_SCORE}\s{{1,3}}of\s{{1,3}}{_ONE}\s{{1,3}}(?:to|for)\s{{1,3}}{_WHICH}"),
    _compiled(rf"\b(?:output|tuple|{_SCORE}){_GAP}{{0,30}}(?:\bis\b|\bare\b|:){_BLANK}[(\[]\s{{0,3}}{_PAIR}\s{{0,3}}[)\]]"),
    _compiled(rf"{_BOTH}{_GAP}{{0,30}}\s(?:are|is|:)\s{{1,3}}{_PAIR}"),
    _compiled(rf"\bboth\s{_GAP}{{0,30}}(?:{_BOTH}{_GAP}{{0,40}})?\b{_GIVEN}{_EACH}"),
    _compiled(rf"{_WHICH}{_NEAR}{{0,60}}?\s{_GIVEN}{_ONE}(?!\s{{1,3}}(?:to|for)\s{{1,3}}{_WHO})"),
    _compiled(
        rf"{_WHICH}(?:['’]s)?{_BLANK}(?:\s{_SCORE})?{_BLANK}(?P<sep>[:=]|\bis\b){_BLANK}(?:{_SCORE}{_BLANK}:{_BLANK})?{_ONE}"
    ),
)
_SECOND = ("2", "b", "two")


def two_scores(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """Two numbers that are all of the first line ("8 10", "8.0, 9.5"), as judges are asked to begin; else those of the last line; else
    what the text says of each: "Assistant 1: 8", "give Assistant 2 a score of 9 out of 10", "the scores are (8, 9)", "both ... a score
    of 8", the last for each. A pair inside the text is none: it may be data that the judge discusses.

    Unparsable("missing_label") where only one of the two has a score. Source of the form: Vicuna's reviews (Chiang et al. 2023).
    """
    for span in first_and_last_line(text):
        line = _LINE.fullmatch(text, *span)
        if line and (values := _pair(line, scale)) is not None:
            return _found(text, values, names, [span])
    return _from_statements(text, scale, names)


def _meant(text: str, match: re.Match[str], groups: dict[str, str | None]) -> bool:
    """Whether the number is a score: not in "Assistant 1: 3 mistakes", nor in "both have a 3 step plan"."""
    if groups.get("weak"):
        return any(groups.get(name) for name in ("one_of", "one_out", "each_of", "each_out"))
    return not groups.get("sep") or ends_here(text, match.end())


def _score(match: re.Match[str], group: str, scale: Scale) -> tuple[float | None, Span]:
    number = re.match(r"[-+]?[\d.]+(?<!\.)", match[group])
    written = number[0] if number else match[group]
    value = number_of(written, match[f"{group}_of"] or match[f"{group}_out"], scale)
    return value, (match.start(group), match.start(group) + len(written))


def _pair(match: re.Match[str], scale: Scale) -> list[tuple[float | None, Span]] | None:
    scores = [_score(match, group, scale) for group in ("one", "two")]
    return None if any(value is None for value, _ in scores) else scores


def _from_statements(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    heard = sorted((match.end(), order, match) for order, pattern in enumerate(_STATEMENTS) for match in pattern.finditer(text))
    scores: list[list[tuple[float | None, Span]]] = [[], []]
    for _, _, match in heard:
        groups = match.groupdict()
        if not _meant(text, match, groups):
            continue
        if groups.get("each"):
            both = _score(match, "each", scale)
            stated = [(0, both), (1, both)]
        elif "two" in groups:
            stated = [(0, _score(match, "one", scale)), (1, _score(match, "two", scale))]
        else:
            stated = [(int(match["which"].lower() in _SECOND), _score(match, "one", scale))]
        for which, score in stated:
            scores[which].append(score)
    if not any(scores):
        raise Unparsable("no_verdict")
    offered = [[score for score in one if score[0] is not None] for one in scores]
    if not all(offered):
        raise Unparsable("out_of_scale" if all(scores) else "missing_label")
    return _found(text, [one[-1] for one in offered], names, [])


def _found(text: str, scores: list[tuple[float | None, Span]], names: Sequence[str], cut: list[Span]) -> ParsedReply:
    values = {name: float(value or 0.0) for name, (value, _) in zip(names, scores, strict=True)}
    return ParsedReply(values, {name: span for name, (_, span) in zip(names, scores, strict=True)}, apart(text, cut))


# A ranking

_NAME_KEYS = ("model", "label", "name", "id")
_RANK_KEYS = ("rank", "position")


def ranking(text: str, scale: Scale, names: Sequence[str]) -> ParsedReply:
    """[{"model": "m", "rank": 1}, {"model": "M", "rank": 2}], also inside an object, also with apostrophes: label → rank, 1 is best.

    Labels count as they are written ("m" is not "M"). The last such list that ranks every label once; ranks are those of an order,
    ties allowed (1, 1, 2 or 1, 1, 3), else Unparsable("not_a_ranking"). `scale` is not read. Source of the form: AlpacaEval.
    """
    found = literals(text)
    lists = [one for one in found.all("[") if any(item.get(*_RANK_KEYS) for _, item in one.members)]
    result = last_that_holds(lists, lambda one: _ranks(text, one, names, found))
    if result is None:
        raise found.nothing()
    return result


def _ranks(text: str, ranked: Literal, names: Sequence[str], found: Literals) -> ParsedReply:
    values: dict[str, float] = {}
    spans: dict[str, Span] = {}
    for _, item in ranked.members:
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
    outer = next(one for one in found.outermost if one.span[0] <= ranked.span[0] < one.span[1])
    words = rationale(text, [outer.span], outer.strings({one.span for one in ranked.within()}))
    return ParsedReply({name: values[name] for name in names}, {name: spans[name] for name in names}, words)
