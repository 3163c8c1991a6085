"""Conversations as others write them, read as messages of ours, and the prompt and replies of a pair.

Roles go by other names (human, gpt), content comes in parts, and a chat may stand in a cell as JSON or as "Human: … Assistant: …".
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmpo.pipeline.errors import BadRow
from mmpo.pipeline.sources.literals import structure
from mmpo.pipeline.tables import MESSAGE_KEYS, as_said, said_calls

Prompt = str | Sequence[Mapping[str, Any]]
Count = Callable[[str], None]
"""Takes the name of something that was left out of a row that is kept."""
ReadMessage = tuple[str, str] | tuple[str, str, str | None, str | None, str | None]
"""Role and content; of a message that carries any of MESSAGE_KEYS also these, in their order."""


class Reply(NamedTuple):
    """A reply that thinks apart from its text or calls tools (JSON text, as it is stored)."""

    text: str
    reasoning_content: str | None = None
    tool_calls: str | None = None


ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""The roles that are read, in lower case → the role that is stored."""
TOOL_ROLES = ("tool", "function", "ipython", "observation")
"""The roles of what a tool answers, all stored as `tool`."""
TEMPLATE_MARKS = ("<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>", "<start_of_turn>", "<|user|>", "<s>[INST]", "[INST]")
"""What a text begins with that a chat template has written."""
_ROLES = {**ROLES, **dict.fromkeys(TOOL_ROLES, "tool")}
THINKING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message under which servers and data sets keep what a model thought before its reply."""
THOUGHTS = ("thinking", "reasoning")
"""Types of parts of a content that hold it."""
REFUSED_PARTS = (
    *THOUGHTS, "tool_use", "tool_result", "redacted_thinking", "refusal", "audio", "input_audio", "audio_url", "video", "video_url",
    "document", "file", "input_file",
)  # fmt: skip
"""Types of parts that are refused under a reason of their own, TYPE_part, where no message can hold them; others are unknown_part."""


def uncounted(_: str) -> None:
    """For whoever does not keep counts."""


_KEYS = {"role", "from", "content", "value", "name", "images", "tool_calls", "function_call", "tool_call_id", *THINKING}


def read_message(message: Any, count: Count = uncounted) -> ReadMessage:
    """A message {"role" or "from", "content" or "value", ...}, its keys under the names of MESSAGE_KEYS; what of it can't be kept is left
    out and counted.

    Raises BadRow: not_text, malformed_tool_calls, unknown_role, and those of `read_parts`.
    """
    if not isinstance(message, Mapping):
        raise BadRow("not_text", {"message": type(message).__name__})
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is str and role in ROLES and type(content) is str:
        return ROLES[role], content  # as most are
    role = role or message.get("from")
    if message.get("images"):
        raise BadRow("images", {"role": role})
    if content is None:
        content = message.get("value")
    if not isinstance(role, str):
        raise BadRow("not_text", {"role": role, "content": type(content).__name__})
    known = _ROLES.get(role) or _ROLES.get(role.strip().lower())
    text, thought, called = read_parts(content)
    thinking, calls, answered = _thinking(message, known, count), None, message.get("tool_call_id")
    if known == "assistant":
        calls = _joined_calls(read_calls(message.get("tool_calls") or message.get("function_call")), read_calls(called))
        if thinking is None:
            thinking = thought
        elif thought not in (None, thinking):
            count("thinking_left_out")
    elif known and (thought or called):
        raise _refused_part("thinking" if thought else "tool_use", {"role": role[:80]})
    if text is None and (calls or thinking):
        text = ""
    if not isinstance(text, str):
        raise BadRow("not_text", {"role": role, "content": type(content).__name__})
    if known is None:
        raise BadRow("unknown_role", {"role": role[:80], "allowed": sorted(_ROLES)})
    if message.get("name"):
        count("name_left_out")
    if any(given for key, given in message.items() if key not in _KEYS or (key == "tool_calls" and known != "assistant")):
        count("keys_left_out")
    answered = str(answered) if known == "tool" and answered not in (None, "") else None
    if thinking is None and calls is None and answered is None:
        return known, text
    return known, text, thinking, calls, answered


def _thinking(message: Mapping[str, Any], role: str | None, count: Count) -> str | None:
    """What the assistant thought, from the first of the keys that servers use; others, and other roles' are left out and counted."""
    found: str | None = None
    for key in THINKING:
        given = message.get(key)
        if not given or _is_blank(given):
            continue
        text = _thought(given)
        if role == "assistant" and isinstance(text, str) and found in (None, text):
            found = text
        else:
            count(f"{key}_left_out")
    return found


def _thought(given: Any) -> Any:
    """The text of what stands under a key of thinking: a text, or parts of text or of thinking; None of other parts."""
    try:
        text, thought, _ = read_parts(given)
    except BadRow:
        return None
    return thought or text


def _is_blank(given: Any) -> bool:
    """Whether it is a text of white space alone, which is no thinking."""
    return isinstance(given, str) and not given.strip()


def _joined_calls(given: str | None, called: str | None) -> str | None:
    """The calls under a key of the message, or those among the parts of its content; where there are both, they must say the same."""
    if given and called and said_calls(given) != said_calls(called):
        hint = "the calls in tool_calls are others than those in the content's parts of type tool_use"
        raise BadRow("malformed_tool_calls", {"tool_calls": given[:200], "hint": hint})
    return given or called


def read_calls(given: Any) -> str | None:
    """Tool calls in OpenAI's layout (a list, one function call, or either as JSON text) as they are stored; None where there are none.

    Arguments that are the JSON text of an object become that object, since templates write them as JSON; nulls that a table put in the
    place of missing keys go. Raises BadRow malformed_tool_calls.

    >>> read_calls([{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}])
    '[{"id":"a","type":"function","function":{"name":"add","arguments":{"a":1}}}]'
    """
    if not given:
        return None
    calls = structure(given) if isinstance(given, str) else given
    calls = [calls] if isinstance(calls, Mapping) else calls
    found = []
    for call in calls if isinstance(calls, list) else [None]:
        outer: Mapping[str, Any] = call if isinstance(call, Mapping) else {}
        if "function" not in outer:  # the call alone, as it was before there were tools
            outer = {"type": "function", "function": outer}
        function = outer["function"]
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            hint = "calls are [{id, type, function: {name, arguments}}, ...], as OpenAI lays them out"
            raise BadRow("malformed_tool_calls", {"tool_calls": repr(given)[:200], "hint": hint})
        function = {key: value for key, value in function.items() if value is not None}
        if "arguments" in function:
            function["arguments"] = _arguments(function["arguments"])
        found.append({key: value for key, value in {**outer, "function": function}.items() if value is not None})
    return _json(found, "malformed_tool_calls") if found else None


def _arguments(given: Any) -> Any:
    """The object that a text spells as JSON and that can be written again as it is; all else as it is."""
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(given, parse_constant=_refused)
    except (ValueError, RecursionError):
        return given
    return found if isinstance(found, dict) else given


def _refused(name: str) -> Any:
    raise ValueError(name)


def read_tools(given: Any) -> str | None:
    """The schemas of tools (a list of objects, or it or each of them as JSON text) as they are stored, without keys that are null; None
    where there are none. Raises BadRow malformed_tools."""
    if not given or (isinstance(given, str) and not given.strip()):
        return None
    tools = structure(given) if isinstance(given, str) else given
    tools = [structure(one) if isinstance(one, str) else one for one in tools] if isinstance(tools, list) else tools
    if not isinstance(tools, list) or not all(isinstance(one, Mapping) for one in tools):
        raise BadRow(
            "malformed_tools", {"tools": repr(given)[:200], "hint": "tools are a list of objects: the JSON schema of each"}
        )
    return _json(_filled(tools), "malformed_tools") if tools else None


def _filled(value: Any) -> Any:
    """JSON without the nulls of objects, which tables put in the place of missing keys."""
    if isinstance(value, Mapping):
        return {key: _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _json(value: Any, reason: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(reason, {"value": repr(value)[:200], "hint": f"not all of it is JSON: {error}"}) from error


def read_parts(content: Any) -> tuple[Any, str | None, list[dict[str, Any]]]:
    """The text of a list of parts ({"type": "text", "text": …} or texts), joined as chat templates join them, what parts of THOUGHTS hold
    (blank lines between them), and the calls of parts {"type": "tool_use", "id", "name", "input"} in OpenAI's layout; all else as it is.

    Raises BadRow: images, or TYPE_part of REFUSED_PARTS, unknown_part.

    >>> read_parts([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"])
    ('ab', 'hm', [])
    """
    if not isinstance(content, list) or not content:
        return content, None, []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in content:
        kind, text = (str(part.get("type") or ""), part.get("text")) if isinstance(part, Mapping) else ("", part)
        if isinstance(part, Mapping) and (part.get("image") or part.get("image_url") or "image" in kind):
            raise BadRow("images", {"part": kind[:80]})
        if kind in THOUGHTS:
            thought = _thought(next((part[key] for key in (*THOUGHTS, "text") if part.get(key)), ""))
            if not isinstance(thought, str):
                raise _refused_part(kind, {"part": repr(part)[:200]})
            thoughts += [thought] if thought.strip() else []
        elif kind == "tool_use":
            function = {"name": part.get("name"), "arguments": part.get("input")}
            calls.append({"id": part.get("id"), "type": "function", "function": function})
        elif isinstance(text, str):
            texts.append(text)
        elif kind in ("", "text"):
            return content, None, []
        else:
            raise _refused_part(kind, {"type": kind[:80]})
    return "".join(texts), "\n\n".join(thoughts) or None, calls


def _refused_part(kind: str, evidence: Mapping[str, Any]) -> BadRow:
    reason = f"{kind}_part" if kind in REFUSED_PARTS else "unknown_part"
    return BadRow(reason, {**evidence, "hint": "of a content's parts text is read, and of the assistant's thinking and tool_use"})


def read_text(content: Any) -> Any:
    """The text of a list of parts where there can be no more than text; all else as it is. Raises BadRow: as `read_parts`, and
    thinking_part or tool_use_part.

    >>> read_text([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    'ab'
    """
    text, thought, calls = read_parts(content)
    if thought or calls:
        raise _refused_part("thinking" if thought else "tool_use", {})
    return text


def read_content(content: Any) -> Any:
    """A reply given as its text or in parts: its text, or a Reply; all else as it is. Raises BadRow: as `read_parts`."""
    text, thought, calls = read_parts(content)
    return Reply(text, thought, read_calls(calls)) if thought or calls else text


_OPENERS = frozenset('[{"H \t\r\n\f\v')
"""What a text begins with that may be a chat: most are ruled out by their first character."""
_STRUCTURE = re.compile(r"[\s\"\\]*(?:\[\s*)?\{\s*\\*[\"']")  # with quotes and backslashes where it was written as JSON twice
_MESSAGES = re.compile(r"[\s\"\\]*\[\s*\{\s*\\*[\"'](?:role|from|content|value)\\*[\"']\s*:")
_HUMAN = re.compile(r"\s*Human:")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def read_conversation(value: Any) -> Any:
    """A prompt as a text or as messages: a chat that stands in a text as JSON (of JSON), as Python writes it, or "Human: … Assistant:" is
    read as messages; all else is returned as it is.

    Raises BadRow: malformed_messages, where a text evidently is a chat and can't be read as one.

    >>> read_conversation('[{"role": "user", "content": "Hi"}]')
    [{'role': 'user', 'content': 'Hi'}]
    >>> read_conversation("\\n\\nHuman: Hi\\n\\nAssistant:")
    [{'role': 'user', 'content': 'Hi'}]
    """
    if not isinstance(value, str) or value[:1] not in _OPENERS:
        return value
    turns = read_turns(value) if _HUMAN.match(value) else None
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else _messages_in(value)


def _messages_in(value: Any) -> Any:
    """The messages that a text spells; all else as it is."""
    if not isinstance(value, str) or value[:1] not in _OPENERS or not _STRUCTURE.match(value):
        return value
    found = structure(value)
    found = found.get("messages", [found]) if isinstance(found, dict) else found
    if isinstance(found, list) and found and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in found):
        return found
    if _MESSAGES.match(value):
        raise BadRow("malformed_messages", {"text": value[:200]})
    return value


def read_turns(text: str) -> list[dict[str, str]] | None:
    """The turns of a text "\\n\\nHuman: … \\n\\nAssistant: …" (HH-RLHF), without the white space around them; None where it
    does not begin with one."""
    first, *rest = _TURN.split("\n\n" + text.lstrip())
    if first or not rest:
        return None
    return [{"role": _SPEAKERS[name], "content": said.strip()} for name, said in zip(rest[::2], rest[1::2])]


def read_reply(value: Any, count: Count = uncounted) -> Any:
    """A reply's text, or a Reply: given as a text, in parts, or as one message of the assistant (JSON in a text too); all else as it is.

    Raises BadRow: as read_message; malformed_messages; several_messages; last_message_not_assistant.
    """
    if isinstance(value, str) and value[:1] not in _OPENERS:
        return value
    found = _messages_in([value] if isinstance(value, Mapping) else value)
    if isinstance(found, list) and found and all(isinstance(one, Mapping) and one.keys() & {"role", "from"} for one in found):
        if len(found) > 1:
            roles = ", ".join(str(one.get("role") or one.get("from")) for one in found[:6])
            raise several_messages({"completion": f"a list of {len(found)}: {roles}"[:80]})
        return _reply(found, count)[1]
    if isinstance(value, str) and found is not value:
        raise BadRow("malformed_messages", {"completion": value[:200]})
    return read_content(value)


def several_messages(evidence: Mapping[str, Any], *, limited: bool = True) -> BadRow:
    """What a reply of more than one message is refused as."""
    hint = "a reply is one message by the assistant; those before it belong to the prompt, where both replies share them"
    return BadRow("several_messages", {**evidence, "hint": hint}, limited=limited)


def split_pair(prompt: Any, chosen: Any, rejected: Any, count: Count = uncounted) -> tuple[Prompt, str | Reply, str | Reply]:
    """The prompt and the two replies of a pair.

    prompt: text, messages or None (inside chosen and rejected). chosen, rejected: both texts, or both messages that end with one reply:
    the reply alone (also without a list around it), or the whole conversation, whose beginning is then the prompt. Texts with the prompt
    inside must have turns ("\\n\\nHuman: … \\n\\nAssistant: …"). Messages may stand in a text as JSON. count: told what was left out of a
    message.
    Raises BadRow: not_text, identical_texts, different_prompts, several_messages, no_prompt, empty_completion, last_message_not_assistant,
    and those of read_message.
    """
    if chosen == rejected:
        raise BadRow("identical_texts", limited=False)
    prompt, chosen, rejected = read_conversation(prompt), _messages_in(chosen), _messages_in(rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        turns = _turns_of_both(prompt, chosen, rejected)
        if turns is None and prompt is not None:
            if isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt):
                count("prompt_in_replies")
            return prompt, chosen, rejected
        if turns is None:
            raise BadRow(
                "no_prompt", {"hint": "replies as texts need a column `prompt`, or turns: '\\n\\nHuman: … \\n\\nAssistant: …'"}
            )
        chosen, rejected = turns
    chosen, rejected = ([one] if isinstance(one, Mapping) else one for one in (chosen, rejected))
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadRow("not_text", {"chosen": type(chosen).__name__, "rejected": type(rejected).__name__})
    before, reply = _reply(chosen, count)
    other_before, other_reply = _reply(rejected, count)
    first, other = _plain(before), _plain(other_before)
    if first != other:
        lengths = {"chosen": len(chosen), "rejected": len(rejected)}
        shared = next((i for i, (one, two) in enumerate(zip(first, other)) if one != two), min(len(first), len(other)))
        if all(rest[:1] == [] or rest[0]["role"] == "assistant" for rest in (first[shared:], other[shared:])):
            raise several_messages(lengths | {"shared": shared}, limited=False)
        raise BadRow("different_prompts", lengths, limited=False)
    if _said(reply) == _said(other_reply):
        raise BadRow("identical_texts", limited=False)
    if before:
        if prompt is not None and not _belongs(prompt, first):
            if first[0]["role"] == "assistant":
                raise several_messages({"chosen": len(chosen), "rejected": len(rejected)}, limited=False)
            raise BadRow("different_prompts", {"where": "prompt column"}, limited=False)
        return before, reply, other_reply
    if prompt is None:
        raise BadRow("no_prompt")
    return prompt, reply, other_reply


def _turns_of_both(prompt: Any, chosen: str, rejected: str) -> tuple[list[Any], list[Any]] | None:
    """The turns of both texts where they have some and (given a prompt) begin with it."""
    a, b = (read_turns(text) if _HUMAN.match(text) else None for text in (chosen, rejected))
    if not a or not b or (prompt is not None and not _belongs(prompt, _plain(a[:-1]))):
        return None
    return a, b


def _reply(messages: list[Any], count: Count) -> tuple[list[Any], str | Reply]:
    """The messages before the last one, and the last one as a reply."""
    if not messages:
        raise BadRow("empty_completion")
    role, *said = read_message(messages[-1], count)
    if role != "assistant":
        raise BadRow("last_message_not_assistant", {"role": role})
    text, *keys = said
    return messages[:-1], Reply(text or "", *keys[:2]) if keys else text or ""


def as_reply(given: str | Reply) -> Reply:
    """A reply with all its parts."""
    return given if isinstance(given, Reply) else Reply(given)


def reply_of(candidate: Mapping[str, Any], text: Any, count: Count = uncounted) -> Any:
    """The reply of a candidate that is an object: its text (or a message) and, where it thinks apart or calls tools, these too."""
    reply = read_reply(text, count)
    thinking, calls = _thinking(candidate, "assistant", count), read_calls(candidate.get("tool_calls"))
    if reply is None and (thinking or calls):
        reply = ""
    return Reply(reply, thinking, calls) if isinstance(reply, str) and (thinking or calls) else reply


def _said(reply: str | Reply) -> Reply:
    """A reply by what it says (`tables.as_said`)."""
    text, thinking, calls = as_reply(reply)
    return Reply(text, thinking, calls and said_calls(calls))


def _plain(messages: Sequence[Any]) -> list[dict[str, Any]]:
    return as_said([dict(zip(("role", "content", *MESSAGE_KEYS), read_message(message))) for message in messages])


def _belongs(prompt: Any, before: list[dict[str, Any]]) -> bool:
    """Whether a prompt column says the same as the conversation: its messages, or the text of a user message."""
    if isinstance(prompt, str):
        return any(one["role"] == "user" and one["content"].strip() == prompt.strip() for one in before)
    return isinstance(prompt, Sequence) and _plain(prompt) == before


def with_system(prompt: Any, system: Any) -> Any:
    """The prompt with a system text as its first message; of one that has it already, as it is.

    Raises BadRow: not_text; two_system_messages, where the prompt begins with another one.
    """
    text = read_text(system)
    if not isinstance(text, str):
        raise BadRow("not_text", {"system": type(system).__name__})
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence):
        return prompt  # which the builder refuses
    first = read_message(messages[0]) if messages else ("", "")
    if first[0] == "system" and first[1].strip() != text.strip():
        raise BadRow("two_system_messages", {"system": text[:80], "prompt": first[1][:80]})
    return messages if first[0] == "system" else [{"role": "system", "content": text}, *messages]
