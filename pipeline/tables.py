"""The two tables that pass between stages, FEEDBACK and PAIRS, and the rule that makes ids. Schema version 2, which reads 1.

Everything else in mmpo is a function from one of these tables to the other, or from files into the first.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import orjson
import pyarrow as pa

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no `probabilities`; where its tables are read they are null."""
SPLITS = ("train", "validation", "test")
METADATA_KEY = b"mmpo"

Message = dict[str, str]

TEXT, INDEX, NUMBER = pa.string(), pa.int32(), pa.float64()
MESSAGE = pa.struct({"role": TEXT, "content": TEXT})
MESSAGES = pa.list_(MESSAGE)
COMPLETION = pa.struct(dict.fromkeys(("id", "text", "model"), TEXT))
_GRADED = dict.fromkeys(("rater", "kind", "aspect"), TEXT)
_SCORED, _COMPARED = (dict.fromkeys(names, NUMBER) for names in (("score", "low", "high", "spread"), ("gap", "limit", "spread")))
_SAID = {"note": TEXT, "probabilities": pa.list_(NUMBER)}
RATING = pa.struct({"completion": INDEX, **_GRADED, **_SCORED, **_SAID})
COMPARISON = pa.struct({"first": INDEX, "second": INDEX, **_GRADED, **_COMPARED, **_SAID})

FEEDBACK = pa.schema(
    {
        "prompt_id": TEXT,
        "prompt": MESSAGES,
        "completions": pa.list_(COMPLETION),
        "ratings": pa.list_(RATING),
        "comparisons": pa.list_(COMPARISON),
        "source": TEXT,
        "extra": TEXT,
    }
)
"""One row a prompt: the candidate replies and every grade anybody gave them (data contract: docs/data-contract.md)."""

PAIRS = pa.schema(
    {
        **dict.fromkeys(("prompt_id", "chosen_id", "rejected_id"), TEXT),
        **dict.fromkeys(("prompt", "chosen", "rejected"), MESSAGES),
        **dict.fromkeys(("score_chosen", "score_rejected", "quality_margin", "margin_se"), NUMBER),
        **dict.fromkeys(("preferring", "raters"), pa.int32()),
        **dict.fromkeys(("kind", "chosen_model", "rejected_model", "source"), TEXT),
    }
)
"""One row a pair, in Hugging Face's conversational preference format with an explicit prompt."""

REJECTS = pa.schema(
    {
        **dict.fromkeys(("unit", "stage", "reason", "file"), TEXT),
        "row": pa.int64(),
        **dict.fromkeys(("prompt_id", "evidence"), TEXT),
    }
)
"""One row for everything dropped; `row` is the 1-based line or row of `file`, `evidence` a JSON object; both may be null."""


def prompt_bytes(messages: Sequence[Message]) -> bytes:
    """The bytes that a prompt's id is the digest of: compact JSON of [{"role", "content"}, ...], keys in that order.

    They are those of `json.dumps(messages, ensure_ascii=False, separators=(",", ":"))`; orjson writes the same (tested) at a
    tenth of the time. Raises TypeError or ValueError (orjson.JSONEncodeError) on lone surrogates and on content that is no text.
    """
    return orjson.dumps([{"role": message["role"], "content": message["content"]} for message in messages])


def prompt_id(messages: Sequence[Message]) -> str:
    """The id of a prompt: blake2b-128 of `prompt_bytes`, 32 hexadecimal digits.

    >>> prompt_id([{"role": "user", "content": "Hi"}])
    '01bceaff1b7c8da61619ff786d31c8b4'
    """
    return blake2b(prompt_bytes(messages), digest_size=16).hexdigest()


def completion_id(prompt: str, text: str) -> str:
    """The id of a completion: blake2b-128 of its prompt's id, a NUL and its text, 32 hexadecimal digits."""
    return blake2b(f"{prompt}\0{text}".encode(), digest_size=16).hexdigest()


def is_readable(version: Any) -> bool:
    """Whether tables of a schema version, as files and manifests name it, can be read."""
    return version in READABLE_VERSIONS and not isinstance(version, bool)


def readable_versions() -> str:
    """For messages: "1 and 2"."""
    return " and ".join(map(str, READABLE_VERSIONS))


def metadata(schema: pa.Schema) -> dict[str, Any]:
    """What mmpo wrote beside a table, from the Parquet key `mmpo`; {} where there is none."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    return json.loads(raw) if raw else {}


def with_metadata(schema: pa.Schema, values: Mapping[str, Any]) -> pa.Schema:
    """The schema with `values` (a JSON object) and the schema version under the Parquet key `mmpo`."""
    kept = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA_KEY}
    raw = json.dumps({"schema_version": SCHEMA_VERSION, **values}, ensure_ascii=False).encode()
    return schema.with_metadata({**kept, METADATA_KEY: raw})
