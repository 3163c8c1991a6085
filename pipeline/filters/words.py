"""Texts as words and as shingles of words: what is compared where texts are called the same, nearly the same, or parts of one another.

Two texts have the same words when they differ in nothing but case, white space, the width of characters (NFKC) and the marks of sentences
(. , ; : ! ? quotes, dashes). Operators and brackets are words of their own, so that 3*4 and 3/4 differ; so is every character of scripts
that are written without spaces, and every emoji. Marks that stand where no sentence has them are operators too (`_AS_OPERATORS`). All
of it is done by Arrow and numpy; Python looks at distinct words only.
"""

from functools import cache
from hashlib import blake2b
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, parents, row_sums

_PLAIN_MARKS = r"""[.,;:!?"'`\x00-\x08\x0e-\x1f\x7f]+"""
_MARKS = (
    r"""[.,;:!?"'`‘’‚‛“”„‟«»‹›…·¡¿–—。、・「」『』〈〉《》【】\x00-\x08\x0e-\x1f\x7f-\x{a0}\x{ad}"""
    r"""\x{1680}\x{2000}-\x{200f}\x{2028}-\x{202f}\x{205f}-\x{206f}\x{3000}\x{feff}]+"""
)
_APART = r"([^\p{L}\p{N}\p{M}\s]|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_PLAIN_APART = r"([^a-z0-9\s])"
_GUARD = "\ufdd0"
_KEPT = f"{_GUARD}([^{_GUARD}]*){_GUARD}|"
"""What stands between guards stays where marks are taken out, by the same regular expression as theirs."""
_AS_OPERATORS = (
    r"""["'`]:+"""  # {"a":1} is {"a": 1}: taken out as marks are
    r"""|([0-9)])(!)"""  # 5! and (n+1)!
    r"""|([a-z])(['’]+\()"""  # f'(x)
    r"""|(:+\])"""  # a[1:]
    r"""|([!?:]+)([a-z0-9=(\[{&$])"""  # x!=y, !x, a?b:c, 3:4, std::sort, url?id=3: after a sentence's mark comes a space, or the end
    r"""|([.–]+)([0-9])"""  # .5, 3.5, 2019–2020
)
_GUARDED = rf"\1\3{_GUARD}\2\4\5\6\8{_GUARD}\7\9"
_WIDE_MARKS = r"[！？：．]+"
"""Marks of texts without spaces, which another word may follow at once."""
_RAISED = r"([\x{b2}\x{b3}\x{b9}\x{2070}\x{2071}\x{2074}-\x{207f}]+)"
"""Raised digits and signs: x² is x^2, and not x2."""
_FRACTIONS = r"([\x{bc}-\x{be}\x{2150}-\x{215f}])"
"""1½ is 1 1/2, and not 11/2."""
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


class TextWords(NamedTuple):
    """The words of texts. hashes: 64 bits of each word, shape (words,); offsets: where each text's begin, shape (texts + 1,); spelled: a
    dictionary array of the words themselves."""

    hashes: np.ndarray
    offsets: np.ndarray
    spelled: pa.DictionaryArray

    def text(self, start: int, count: int) -> str:
        """Some of the words, joined by spaces."""
        return " ".join(self.spelled.slice(start, count).to_pylist())


class NumberSets(NamedTuple):
    """Sets of 32-bit numbers: those of row i are values[offsets[i]:offsets[i + 1]], ascending, each once."""

    values: np.ndarray
    offsets: np.ndarray


def words_of(texts: pa.Array | pa.ChunkedArray) -> TextWords:
    """The words of each text; of a text of marks alone its characters, of null and of white space none.

    >>> words = words_of(pa.array(["It's 3*4,  not x!=y.", "東京 タ", "?!", None]))
    >>> [words.text(a, b - a) for a, b in zip(words.offsets, words.offsets[1:])]
    ['it s 3 * 4 not x ! = y', '東 京 タ', '? !', '']
    """
    column = pc.fill_null(flat(texts).cast(pa.large_string()), "")
    plain = bool(pc.all(pc.string_is_ascii(column)).as_py() is not False)
    said = pc.replace_substring_regex(_lower(column, plain), _AS_OPERATORS, _GUARDED)
    said = pc.replace_substring_regex(said, _KEPT + (_PLAIN_MARKS if plain else _MARKS), r" \1 ")
    said = pc.replace_substring_regex(said, _PLAIN_APART if plain else _APART, r" \1 ")
    said = pc.utf8_trim_whitespace(said)
    bare = np.flatnonzero(np.asarray(pc.equal(said, "")))
    if len(bare):
        mask = np.zeros(len(said), dtype=bool)
        mask[bare] = True
        spelt = [" ".join("".join(text.split())) for text in _nfkc(column.take(pa.array(bare))).to_pylist()]
        said = pc.replace_with_mask(said, pa.array(mask), pa.array(spelt, pa.large_string()))
    lists = pc.ascii_split_whitespace(said)
    spelled = lists.flatten()
    held = pc.not_equal(spelled, "")
    offsets = np.concatenate([[0], np.cumsum(row_sums(lists, held.cast(pa.int8())))])
    coded = spelled.filter(held).dictionary_encode()
    hashes = np.array([_hash(word) for word in coded.dictionary.to_pylist()], dtype=np.uint64)
    return TextWords(hashes[np.asarray(coded.indices)], offsets, coded)


def _lower(column: pa.Array, plain: bool) -> pa.Array:
    if plain:
        return pc.ascii_lower(column)
    for pattern, put in ((_WIDE_MARKS, " "), (_RAISED, r"^\1"), (_FRACTIONS, r" \1")):
        column = pc.replace_substring_regex(column, pattern, put)
    return pc.utf8_lower(_nfkc(column))


def _nfkc(column: pa.Array) -> pa.Array:
    if _arrow_composes():
        return pc.utf8_normalize(column, "NFKC")
    return pa.array([normalize("NFKC", text) for text in column.to_pylist()], pa.large_string())


@cache
def _arrow_composes() -> bool:
    """Arrow before 26 leaves letters and their marks apart in NFC and NFKC too (apache/arrow#51225)."""
    return pc.utf8_normalize(pa.array(["e\u0301"]), "NFKC")[0].as_py() == "é"


def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """The numbers with every bit depending on all others, so that any 32 of them will do."""
    values = values ^ (values >> _SHIFT)
    values *= _MULTIPLIER
    return values ^ (values >> np.uint64(29))


def keys_of(words: TextWords) -> np.ndarray:
    """64 bits of each text's words in their order, 0 of a text without any, shape (texts,)."""
    lengths = np.diff(words.offsets)
    keys = np.zeros(len(lengths), dtype=np.uint64)
    if not len(words.hashes):
        return keys
    place = np.arange(len(words.hashes)) - np.repeat(words.offsets[:-1], lengths)
    powers = np.concatenate([[np.uint64(1)], np.full(int(lengths.max()) - 1, _MULTIPLIER)]).astype(np.uint64)
    weighted = words.hashes * np.multiply.accumulate(powers)[place]
    held = lengths > 0
    keys[held] = _mixed(np.add.reduceat(weighted, words.offsets[:-1][held]) + lengths[held].astype(np.uint64))
    return keys


def runs_of_words(words: TextWords, count: int) -> np.ndarray:
    """64 bits of the `count` words that begin at each word, shape (words,); those that run past the end of a text mean nothing."""
    total = len(words.hashes)
    found = np.zeros(total, dtype=np.uint64)
    for step in range(count):
        found *= _MULTIPLIER
        if step < total:
            found[: total - step] += words.hashes[step:]
    return _mixed(found)


def beginnings(words: TextWords, count: int) -> np.ndarray:
    """The words at which `count` words of one text begin, ascending."""
    lengths = np.diff(words.offsets)
    place = np.arange(len(words.hashes)) - np.repeat(words.offsets[:-1], lengths)
    return np.flatnonzero(place <= np.repeat(lengths - count, lengths))


def shingles(words: TextWords, count: int) -> NumberSets:
    """The runs of `count` words of each text; of a shorter one, all its words together are its only one."""
    at = beginnings(words, count)
    text = parents(words.offsets)[at]
    lengths = np.diff(words.offsets)
    short = np.flatnonzero((lengths > 0) & (lengths < count))
    rows = np.concatenate([text, short]).astype(np.uint64)
    hashes = np.concatenate([runs_of_words(words, count)[at], keys_of(words)[short]])
    found = np.sort((rows << _SHIFT) | (hashes >> _SHIFT))  # numpy's unique takes ten times as long
    found = found[np.append(True, found[1:] != found[:-1])[: len(found)]]
    offsets = np.searchsorted(found, np.arange(len(lengths) + 1).astype(np.uint64) << _SHIFT)
    return NumberSets(found.astype(np.uint32), offsets)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The share of common members of two sets; of two empty ones 1.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4, 5]))
    0.4
    """
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
