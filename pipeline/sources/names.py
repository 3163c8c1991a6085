"""What people and tools call columns, and what their words for the better one of two replies are worth: `left is slightly better`."""

import re
import shlex
from collections.abc import Collection, Iterable

REPLY = "response|answer|completion|output|reply|text|candidate|generation|assistant|model_response|model_output|model_answer"
SCORE = "score|rating|grade|stars|mark|points|note|bewertung"
NAMES = {
    "prompt": "prompt|question|instruction|query|input|user|user_prompt|task|frage|request|conversation|messages|chat|context",
    "completion": f"{REPLY}|antwort|response_text",
    "completions": "completions|responses|answers|outputs|candidates|generations|replies",
    "scores": "scores|ratings|grades|ranks",
    "score": f"{SCORE}|overall|overall_score|overall_rating|quality|label|value",
    "rater": "who|by|(?:rated|graded|judged|labell?ed|annotated)_by|user_id"
    "|(?:rater|annotator|grader|judge|worker|reviewer|labell?er|evaluator|assessor|coder|participant"
    "|prüfer|pruefer|bewerter|gutachter|kodierer|korrektor|teilnehmer)(?:in)?(?:_?(?:id|name|nr))?",
    "model": "model|model_name|system_name|mt_system|generator|source_model|llm",
    "chosen": f"chosen|preferred|accepted|better|(?:chosen|preferred|better)_(?:{REPLY})",
    "rejected": f"rejected|dispreferred|worse|(?:rejected|dispreferred|worse|other)_(?:{REPLY})",
    "score_chosen": f"(?:{SCORE})_chosen|chosen_(?:{SCORE})",
    "score_rejected": f"(?:{SCORE})_rejected|rejected_(?:{SCORE})",
    "margin": "margin|quality_margin|strength|preference_strength|delta",
    "first": rf"first|left|a|(?:{REPLY})_?(?:a|1|left|first)|(?:first|left)_(?:{REPLY})",
    "second": rf"second|right|b|(?:{REPLY})_?(?:b|2|right|second)|(?:second|right)_(?:{REPLY})",
    "score_first": rf"(?:{SCORE})_?(?:a|1|left|first)|(?:first|left)_(?:{SCORE})",
    "score_second": rf"(?:{SCORE})_?(?:b|2|right|second)|(?:second|right)_(?:{SCORE})",
    "first_model": "(?:model|system)_?(?:a|1|left|first)|(?:first|left)_(?:model|system)",
    "second_model": "(?:model|system)_?(?:b|2|right|second)|(?:second|right)_(?:model|system)",
    "gap": "gap|winner|preference|preferred|vote|choice|verdict|overall_preference|comparison|better",
}  # fmt: skip
"""Field → what its column is often called, in small letters with _ between words."""
LESS = re.compile(
    "(^|_)(ranks?|ranking|rang|place|placement|platz|platzierung|errors?|errorrate|mistakes?|fehler|fehlerzahl|fehlerquote|fehlerrate"
    "|harm|harmful|harmfulness|toxic|toxicity|hallucinations?|severity|violations?|verstösse|penalty|penalties|loss|perplexity|costs?|kosten"
    "|latency|schulnoten?)($|_)"
)
"""Names of columns of which less is better."""
REMARK = re.compile(
    "(^|_)(passages?|evidence|snippet|paragraph|hint|references?|gold|comments?|remarks?|notes?|anything|feedback|why|reasons?|reasoning|explain|explanation|rationale|justification|critique"
    "|kommentare?|bemerkung(en)?|anmerkung(en)?|warum|grund|begründung|commentaires?|comentarios?)($|_)"
)
"""What columns are called that hold what somebody says of a reply, or what a reply is measured by."""
LOSER = re.compile("(^|_)(losers?|loses|loss|lost|worse|worst|dispreferred|verlierer|schlechter)($|_)")
WINNER = re.compile("(^|_)(wins?|winner|better|best|prefer.*|besser)($|_)")
"""What a column is called that names the reply that is not the better one, and one that names the better one, too."""
_NAMED = "(?:(?:model|response|answer|reply|output|completion|assistant|system|antwort|réponse|respuesta)_)?"
_SIDES = {1.0: f"{_NAMED}(?:a|1|left|first|links)", -1.0: f"{_NAMED}(?:b|2|right|second|rechts)"}
_ARROW = re.compile("(.*?)_?(>+|<+|=+)_?(.*)")
_TIE = "tie|tied|draw|equal|same|both|neither|none|tie_bothbad|both_bad|both_good|about_the_same|no_preference|c|0"
_EVEN = re.compile(
    "same|equal(?:ly)?|tied?|draw|neutral|similar(?:ly)?|comparable|indifferent|gleich(?:gut|wertig)?|unentschieden|égalité|empate"
)
"""Words of texts that say that neither reply is better, where none of those beside them says more."""
_MORE = re.compile("not|.*n_t|better|best|worse|worst|more|less|than|wins?|won|prefer.*|besser|schlechter|as|to|if|unless|but")
_SAID = re.compile("prefer(?:red|s)?|(?:is|was)|better|best|wins?|won|the|one|i|ist|besser", re.ASCII)
"""Words around a side that say no more than it."""
_STRENGTHS = {
    1: "slightly|marginally|somewhat|a_bit|a_little|negligibly|weakly|etwas|leicht",
    3: "much|far|significantly|clearly|strongly|definitely|a_lot|considerably|substantially|greatly|vastly|viel|deutlich|klar",
}
"""How much better, in words; without any of them it is 2."""
_TURNED = {"a": "b", "1": "2", "left": "right", "first": "second", "links": "rechts", ">": "<"}
_TURNED |= {other: one for one, other in _TURNED.items()}


def plain(name: str) -> str:
    """In small letters, with _ between words.

    >>> plain("A is Better!")
    'a_is_better'
    """
    return re.sub(r"[^\w<>=]+", "_", name.casefold()).strip("_")


def worths(words: Iterable[str]) -> dict[str, float]:
    """Word → what it is worth as a gap, above 0 where the first reply is the better one: 1, or 1, 2 and 3 by how much better the words say.
    What names no side, or no tie, is left out.

    >>> worths(["A", "b-is-better", "b-is-slightly-better", "Tie", "unclear"])
    {'A': 2.0, 'b-is-better': -2.0, 'b-is-slightly-better': -1.0, 'Tie': 0.0}
    >>> worths(["A >> B", "[[B>A]]", "A=B", "<", "They are about the same", "not the same"])
    {'A >> B': 2.0, '[[B>A]]': -1.0, 'A=B': 0.0, '<': -1.0, 'They are about the same': 0.0}
    """
    found = {word: said for word in words if (said := _said(word)) is not None}
    steps = sorted({strength for side, strength in found.values() if side})
    return {word: side * (steps.index(strength) + 1) if side else 0.0 for word, (side, strength) in found.items()}


def _said(word: str) -> tuple[float, int] | None:
    """The side that a word names (0: a tie), and how strongly."""
    text, strength = plain(word), 2
    parts = text.split("_")
    if re.fullmatch(_TIE, text) or (any(map(_EVEN.fullmatch, parts)) and len(parts) <= 7 and not any(map(_MORE.fullmatch, parts))):
        return 0.0, 0
    if arrow := _ARROW.fullmatch(text):
        left, right = (_side(end) for end in (arrow[1], arrow[3]))
        if (arrow[1] or arrow[3]) and (left is None or right is None or left == right):
            return None
        ahead = (left or 1.0) * {">": 1.0, "<": -1.0, "=": 0.0}[arrow[2][0]]
        return ahead, 1 + len(arrow[2]) if ahead else 0
    for step, adverbs in _STRENGTHS.items():
        shorter = re.sub(rf"(?:^|(?<=_))(?:{adverbs})(?:_|$)", "", text)
        text, strength = shorter, step if shorter != text else strength
    kept = "_".join(part for part in text.split("_") if not _SAID.fullmatch(part))
    side = _side(kept)
    return None if side is None else (side, strength)


def _side(text: str) -> float | None:
    return next((side for side, pattern in _SIDES.items() if re.fullmatch(pattern, text)), None)


def speaks_of_a_side(word: str) -> bool:
    """Whether a text that is worth nothing known says something of which reply is better all the same."""
    said = "better|worse|wins?|won|prefer.*|[ab]|links|rechts|left|right|first|second|.*[<>=].*"
    return any(re.fullmatch(said, part) for part in plain(word).split("_")) and plain(word) not in ("n_a", "a_n")


def others(found: dict[str, float]) -> dict[str, float]:
    """The words that belong to those of `worths`, and that later rows may hold: the other side's, and a tie.

    >>> others({"model_a": 1.0})
    {'model_b': -1.0, 'tie': 0.0}
    """
    known = {word.strip().casefold() for word in found}
    names = "|".join(map(re.escape, _TURNED))
    turned = {re.sub(rf"(?<![^\W_])(?:{names})(?![^\W_])", lambda one: _TURNED[one[0]], word.casefold()): -worth
              for word, worth in found.items() if worth}  # fmt: skip
    turned = {word: worth for word, worth in turned.items() if (said := _said(word)) and said[0] * worth > 0}
    return {word: worth for word, worth in {**turned, "tie": 0.0}.items() if word not in known}


def names_sides(texts: Collection[str]) -> bool:
    """Whether texts are all of winners, and one at least of a side."""
    found = worths(texts)
    return len(found) == len(texts) and any(found.values())


def fields_by_name(columns: list[str]) -> dict[str, str]:
    """Field → the column that is called so, the first of several; of two replies numbered 0 and 1, 0 is the first one."""
    fields: dict[str, str] = {}
    numbered = {part[1] for column in columns if (part := re.fullmatch(rf"(?:{REPLY})_?(\d)", plain(column)))}
    shift = {"0": "1", "1": "2"} if numbered == {"0", "1"} else {}

    def shifted(column: str) -> str:
        return re.sub(r"(?<=[a-z_])\d$", lambda end: shift.get(end[0], end[0]), plain(column))

    for name, pattern in NAMES.items():
        exact = [column for column in columns if column == name]
        for column in exact or [one for one in columns if re.fullmatch(pattern, shifted(one))]:
            if column not in fields.values():
                fields[name] = column
                break
    return fields


def wide_fields(columns: Iterable[str]) -> dict[str, str]:
    """The fields of a sheet with a column for each of two or more replies of a row, scores and models beside them; {} of another one.

    >>> wide_fields(["Question", "Response A", "Response B", "Rating A", "Rating B"])
    {'prompt': 'Question', 'completions': 'Response A+Response B', 'scores': 'Rating A+Rating B'}
    """
    words = {"completions": REPLY, "scores": f"{SCORE}|ranks?", "models": "model|model_name"}
    ends: dict[str, dict[str, str]] = {name: {} for name in words}
    columns = [name for name in columns if not set(name) & set("+,=")]
    for column in columns:
        for name, known in words.items():
            if part := re.fullmatch(rf"(?:{known})_?([a-z]|\d+)|([a-z]|\d+)_(?:{known})", plain(column)):
                ends[name].setdefault(part[1] or part[2], column)
    replies = ends["completions"]
    if len(replies) < 2:
        return {}
    found = {name: "+".join(given[end] for end in replies) for name, given in ends.items() if given.keys() == replies.keys()}
    prompt = fields_by_name(columns).get("prompt")
    return ({"prompt": prompt} if prompt else {}) | found


def graded_replies(texts: Iterable[str], grades: Iterable[str]) -> dict[str, str]:
    """The fields of a sheet whose columns of replies and of their grades, two or more, are told apart by the rest of their names.

    >>> graded_replies(["gpt4", "Model B output", "topic"], ["gpt4_score", "Rank of model B", "age"])
    {'completions': 'gpt4+Model B output', 'scores': 'gpt4_score+Rank of model B'}
    """

    def rest(name: str) -> str:
        return "_".join(part for part in plain(name).split("_") if not re.fullmatch(f"{REPLY}|{SCORE}|ranks?|of|for|model", part))

    marks = [name for name in grades if re.search(rf"(^|_)({SCORE}|ranks?)($|_)", plain(name))]
    ends = {rest(name): name for name in reversed(marks) if not set(name) & set("+,=")}
    found = {name: ends[rest(name)] for name in texts if rest(name) in ends and not set(name) & set("+,=")}
    if len(found) < 2 or len(set(found.values())) < len(found):
        return {}
    return {"completions": "+".join(found), "scores": "+".join(found.values())}


def two_sides(texts: Collection[str]) -> dict[str, str]:
    """The two columns whose names differ in the side that they name alone, as `first` and `second`; {} where there are none, or more.

    >>> two_sides(["Réponse A", "Réponse B", "Question"])
    {'first': 'Réponse A', 'second': 'Réponse B'}
    """
    found = []
    for one, other in (("a", "b"), ("1", "2"), ("left", "right"), ("first", "second"), ("links", "rechts")):
        side = re.compile(rf"(?<![a-z0-9]){one}(?![a-z0-9])")
        turned = {side.sub(other, plain(name)): name for name in texts if side.search(plain(name))}
        found += [(turned[plain(name)], name) for name in texts if plain(name) in turned]
    return dict(zip(("first", "second"), found[0])) if len(found) == 1 else {}


def told_wide(columns: Iterable[str], format: str = "") -> str:
    """Which options read such a sheet, in words; "" of another one. format: where that is to be named too."""
    if not (fields := wide_fields(columns)):
        return ""
    scores = fields.get("scores", "").split("+")
    turned = {"scores": "+".join(f"-{name}" for name in scores)} if any(LESS.search(plain(name)) for name in scores) else {}
    named = ",".join(f"{name}={column}" for name, column in ({"prompt": "COLUMN"} | fields | turned).items())
    without = "" if "scores" in fields else " with --feedback-only, without grades; a grade is a column for each reply (scores=...)"
    many, options = fields["completions"].count("+") + 1, f"{format}--columns {shlex.quote(named)}"
    return f"A row holds {many} replies, it seems: {options} reads them{without}."
