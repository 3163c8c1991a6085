"""The two tables that pass between stages, FEEDBACK and PAIRS, and the rule that makes ids. Schema version 2, which reads 1.

Everything else in mmpo is a function from one of these tables to the other, or from files into the first.
"""

import json
from collections.abc import Collection, Mapping, Sequence
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
MESSAGE_KEYS = ("reasoning_content", "tool_calls", "tool_call_id")
"""What a message may carry beside role and content: fields of their own only where a dataset has any, null where a message has none.

reasoning_content: what the assistant thought, apart from what it said; tool_calls: the JSON text of a list in OpenAI's layout, arguments as
objects; tool_call_id: which call a message of the role `tool` answers.
"""
REPLY_KEYS = MESSAGE_KEYS[:2]
"""Those that completions have."""
TOOLS = "tools"
"""The column with the schemas of the tools that the assistant is offered, as the JSON text of a list; only where a dataset has any."""
OPTIONAL_KEYS = (*MESSAGE_KEYS, TOOLS)
MESSAGE_COLUMNS = ("prompt", "chosen", "rejected")

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
REPAIR = "repair"
"""The stage, in REJECTS, of what was repaired and kept."""


def with_keys(schema: pa.Schema, keys: Collection[str]) -> pa.Schema:
    """FEEDBACK or PAIRS, or some of their columns, with those of OPTIONAL_KEYS that a dataset has; other schemas as they are."""
    if not keys or "prompt" not in schema.names:
        return schema
    added = dict.fromkeys(MESSAGE_COLUMNS, MESSAGE_KEYS) | {"completions": REPLY_KEYS}
    fields = [
        pa.field(one.name, _with_fields(one.type, [key for key in added[one.name] if key in keys])) if one.name in added else one
        for one in schema
    ]
    tools = [pa.field(TOOLS, TEXT)] if TOOLS in keys and TOOLS not in schema.names else []
    return pa.schema([*fields, *tools], schema.metadata)


def _with_fields(kind: pa.ListType, names: Sequence[str]) -> pa.ListType:
    own = {field.name: field.type for field in kind.value_type.fields}
    return pa.list_(pa.struct({**own, **dict.fromkeys(names, TEXT)}))


def keys_of(schema: pa.Schema) -> tuple[str, ...]:
    """Those of OPTIONAL_KEYS that a table of FEEDBACK or PAIRS has fields for."""
    found = set(schema.names) & {TOOLS}
    for name in {*MESSAGE_COLUMNS, "completions"} & set(schema.names):
        kind = getattr(schema.field(name).type, "value_type", None)
        if kind is not None and pa.types.is_struct(kind):
            found |= {field.name for field in kind.fields} & set(MESSAGE_KEYS)
    return tuple(key for key in OPTIONAL_KEYS if key in found)


def held_keys(table: pa.Table) -> tuple[str, ...]:
    """Those of OPTIONAL_KEYS of which a table holds any value."""
    found = {TOOLS} if TOOLS in table.column_names and table[TOOLS].null_count < table.num_rows else set()
    for name in {*MESSAGE_COLUMNS, "completions"} & set(table.column_names):
        for chunk in table[name].chunks:
            rows = chunk.flatten()
            for key in {field.name for field in rows.type.fields} & set(MESSAGE_KEYS):
                if rows.field(key).null_count < len(rows):
                    found.add(key)
    return tuple(key for key in OPTIONAL_KEYS if key in found)


def prompt_bytes(messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> bytes:
    """The bytes that a prompt's id is the digest of: compact JSON of [{"role", "content", ...}, ...], in this order those of MESSAGE_KEYS
    that are set, as `as_said` has them; and, where there are tools, a NUL and their JSON with sorted keys.

    They are those of `json.dumps(messages, ensure_ascii=False, separators=(",", ":"))`; orjson writes the same (tested) at a
    tenth of the time. Raises TypeError or ValueError (orjson.JSONEncodeError, UnicodeEncodeError) on lone surrogates and on content that is
    no text.
    """
    plain = orjson.dumps(as_said(messages))
    if tools is None:
        return plain
    written = tools.encode()  # first, as the JSON of a lone surrogate is ASCII
    try:
        return plain + b"\0" + _dumped(json.loads(tools)).encode()
    except (ValueError, RecursionError):  # no JSON, which `validate` says
        return plain + b"\0" + written


def as_said(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Role and content of messages and those of MESSAGE_KEYS that they have, by what is said: two writings of the same are equal.

    Of tool calls that is `said_calls`; the id of a call, which servers draw at random, is its number among all calls, so that what a tool
    answered still goes to its call. An id that no call before it has stays as it is.

    >>> calls = '[{"id":"x7","type":"function","function":{"name":"f","arguments":{"b":1,"a":2}}}]'
    >>> for message in as_said([{"role": "assistant", "content": "", "tool_calls": calls},
    ...                         {"role": "tool", "content": "3", "tool_call_id": "x7"}]): print(message)
    {'role': 'assistant', 'content': '', 'tool_calls': '[{"arguments":{"a":2,"b":1},"name":"f"}]'}
    {'role': 'tool', 'content': '3', 'tool_call_id': 0}
    """
    said: list[dict[str, Any]] = [message_of(message) for message in messages]
    numbers: dict[str, int] = {}
    count = 0
    for message in said:
        if len(message) == 2:
            continue
        for call in _calls(message.get("tool_calls")):
            if call.get("id") is not None:
                numbers[str(call["id"])] = count
            count += 1
        if "tool_calls" in message:
            message["tool_calls"] = said_calls(message["tool_calls"])
        if message.get("tool_call_id") in numbers:
            message["tool_call_id"] = numbers[message["tool_call_id"]]
    return said


def said_calls(tool_calls: str) -> str:
    """What stored tool calls say: JSON with sorted keys of the list of each function's name and arguments; what is no list of calls as it
    is. No arguments are the same as empty ones. Raises UnicodeEncodeError on lone surrogates.

    >>> said_calls('[{"id":"x7","type":"function","function":{"name":"f"}}]')
    '[{"arguments":{},"name":"f"}]'
    """
    told = [call.get("function") for call in _calls(tool_calls)]
    if not told or not all(isinstance(one, dict) for one in told):
        return tool_calls
    tool_calls.encode()
    given = [{"name": one.get("name"), "arguments": one.get("arguments")} for one in told]
    return _dumped([{**one, "arguments": {} if one["arguments"] in (None, "") else one["arguments"]} for one in given])


def _calls(tool_calls: str | None) -> list[dict[str, Any]]:
    """The calls that a stored text holds; none where it is no list of objects."""
    try:
        found = json.loads(tool_calls or "[]")
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def prompt_id(messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> str:
    """The id of a prompt: blake2b-128 of `prompt_bytes`, 32 hexadecimal digits.

    >>> prompt_id([{"role": "user", "content": "Hi"}])
    '01bceaff1b7c8da61619ff786d31c8b4'
    """
    if isinstance(messages, str):
        raise TypeError('prompt_id takes messages, [{"role": "user", "content": ...}], and a text was given')
    return blake2b(prompt_bytes(messages, tools), digest_size=16).hexdigest()


def user_prompt_id(text: str) -> str:
    """The `prompt_id` of one user message that carries nothing else, in a fourth of the time.

    >>> user_prompt_id("Hi") == prompt_id([{"role": "user", "content": "Hi"}])
    True
    """
    return blake2b(b'[{"role":"user","content":' + orjson.dumps(text) + b"}]", digest_size=16).hexdigest()


def completion_id(prompt: str, text: str, reasoning_content: str | None = None, tool_calls: str | None = None) -> str:
    """The id of a completion: blake2b-128 of its prompt's id, a NUL and its text, 32 hexadecimal digits.

    Of one that thinks apart or calls tools it is that of the prompt's id, a byte 1 and the `prompt_bytes` of its message: calls that differ
    in their random ids or in the order of keys are the same completion.

    >>> completion_id(prompt_id([{"role": "user", "content": "Hi"}]), "Hello!")
    'd5a840294b0ac912629868f6aadb244c'
    """
    if reasoning_content is None and tool_calls is None:
        return blake2b(f"{prompt}\0{text}".encode(), digest_size=16).hexdigest()
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning_content, "tool_calls": tool_calls}
    return blake2b(prompt.encode() + b"\1" + prompt_bytes([message]), digest_size=16).hexdigest()


def set_keys(message: Mapping[str, Any]) -> dict[str, str]:
    """Those of MESSAGE_KEYS that a message, or a completion, has and that are not null."""
    return {key: message[key] for key in MESSAGE_KEYS if message.get(key) is not None}


def message_of(message: Mapping[str, Any]) -> dict[str, str]:
    """Role and content of a message and those of MESSAGE_KEYS that it has, as they are stored."""
    said = {"role": message["role"], "content": message["content"]}
    return said if len(message) == 2 else said | set_keys(message)


def without_nulls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates and other tools take them: without keys that are null, and tool calls as lists."""
    return [
        {key: json.loads(value) if key == "tool_calls" else value for key, value in message.items() if value is not None}
        for message in messages
    ]


def as_text(message: Mapping[str, Any], *, thinking: bool = False) -> str:
    """What a message says, for people and for judges: its content, and its tool calls a line each; thinking: what it thought as well.

    >>> as_text({"content": "", "tool_calls": '[{"function": {"name": "add", "arguments": {"a": 1}}}]'})
    'calls add({"a": 1})'
    """
    said = [message["content"]] if message["content"] else []
    if thinking and message.get("reasoning_content"):
        said.insert(0, f"thinks: {message['reasoning_content']}")
    for call in json.loads(message.get("tool_calls") or "[]"):
        arguments = call["function"].get("arguments", {})
        given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        said.append(f"calls {call['function']['name']}({given})")
    return "\n".join(said)


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
