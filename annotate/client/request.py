"""One request to a judge, in the exact form in which it is sent and kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson


@dataclass(frozen=True)
class Request:
    """key: the digest of the canonical body. tokens: an estimate of what it takes, prompt and longest reply.

    about: what it asks, for whoever reads the reply; opaque here.
    """

    key: bytes
    body: Mapping[str, Any]
    prompt_tokens: int
    reply_tokens: int
    about: Any = None

    @property
    def tokens(self) -> int:
        """Prompt and longest reply together."""
        return self.prompt_tokens + self.reply_tokens


@dataclass(frozen=True)
class Token:
    """One token of a reply: its text, and the most likely tokens in its place with their log-probabilities (maybe none)."""

    text: str
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One reply. finish: the endpoint's finish_reason. tokens: empty where the endpoint gave no log-probabilities.

    thinking: what the model thought before it answered, where the endpoint gives it apart; no part of text. calls: JSON text of its calls
    of tools, "" for none.
    """

    text: str
    finish: str = "stop"
    tokens: tuple[Token, ...] = ()
    thinking: str = ""
    calls: str = ""


@dataclass(frozen=True)
class Answer:
    """What came back. prompt_tokens, reply_tokens: as billed (estimated where the endpoint does not say). seconds: of the request.

    reading: the digest of how the replies were read, and what was read in them; both opaque here, None where nobody has read them.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int
    reply_tokens: int
    seconds: float
    reading: tuple[bytes, bytes] | None = None

    @property
    def text(self) -> str:
        """All replies, one below the other."""
        return "\n".join(choice.text for choice in self.choices)

    def dumps(self) -> bytes:
        """As the journal keeps it."""
        rows = [
            [
                *(c.text, c.finish, [[t.text, t.top] if t.top else [t.text] for t in c.tokens]),
                *((c.thinking, c.calls) if c.calls else (c.thinking,) if c.thinking else ()),
            ]
            for c in self.choices
        ]
        return orjson.dumps(rows)

    @classmethod
    def loads(cls, raw: bytes, prompt_tokens: int, reply_tokens: int, seconds: float) -> "Answer":
        """Back from the journal."""
        choices = tuple(
            Choice(text, finish, tuple(Token(t[0], tuple((a, b) for a, b in t[1]) if len(t) > 1 else ()) for t in tokens), *more)
            for text, finish, tokens, *more in orjson.loads(raw)
        )
        return cls(choices, prompt_tokens, reply_tokens, seconds)


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. kind: "rate_limit", "transient" and "unreachable" pass; "request" concerns this one; "run" ends the run.

    answer: what was paid all the same, with the replies where they could not be read. withheld: the words of a reply that its model or
    the endpoint's filter took back; no journal keeps them here.
    """

    kind: str
    reason: str
    message: str
    retry_after: float | None = None
    answer: Answer | None = None
    withheld: Choice | None = None


def key_of(body: Mapping[str, Any], sample: int = 0, apart: str = "") -> bytes:
    """blake2b-128 of the request (model, parameters, rendered messages) as JSON with sorted keys; `sample` numbers repeated draws.

    apart: the name of a judge that shares all of this with another one of the run.

    The address is no part of it: a server that moved to another port holds the same model.
    """
    digest = blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16)
    if apart:
        digest.update(f"\0{apart}\0".encode())
    if sample:
        digest.update(f"\0{sample}".encode())
    return digest.digest()


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has: a quarter of its ASCII characters, and one each for the others.

    No tokenizer is loaded (they come from a hub, one a model); runs correct it by what the endpoint reports.
    """
    encoded = len(text.encode())
    wide = (encoded - len(text)) // 2  # two extra bytes for most characters beyond Latin
    return max(1, (len(text) - wide) // 4 + wide)
