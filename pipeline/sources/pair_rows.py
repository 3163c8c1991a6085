"""What the paired formats share: prompt, chosen and rejected as texts or as messages, the prompt inside or outside."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmpo.pipeline.sources.builder import BadRow

Prompt = str | Sequence[Mapping[str, Any]]


def split_pair(prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """The prompt and the two replies of a pair.

    prompt: text, messages or None (inside chosen and rejected). chosen, rejected: both texts, or both messages that
    end with one reply: the reply alone, or the whole conversation, whose beginning is then the prompt. For texts with
    the prompt inside, it is what both share, as in TRL's `extract_prompt`. Raises BadRow: not_text, identical_texts,
    different_prompts, no_prompt, empty_completion, last_message_not_assistant.
    """
    if chosen == rejected:
        raise BadRow("identical_texts", limited=False)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return (prompt, chosen, rejected) if prompt is not None else _shared_text(chosen, rejected)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise BadRow("not_text", {"chosen": type(chosen).__name__, "rejected": type(rejected).__name__})
    before, reply = _reply(chosen)
    other_before, other_reply = _reply(rejected)
    if _plain(before) != _plain(other_before):
        raise BadRow("different_prompts", {"chosen": len(chosen), "rejected": len(rejected)}, limited=False)
    if reply == other_reply:
        raise BadRow("identical_texts", limited=False)
    if before:
        if prompt is not None and not _belongs(prompt, before):
            raise BadRow("different_prompts", {"where": "prompt column"}, limited=False)
        return before, reply, other_reply
    if prompt is None:
        raise BadRow("no_prompt")
    return prompt, reply, other_reply


def _reply(messages: list[Any]) -> tuple[list[Any], str]:
    """The messages before the last one, and the text of the last one."""
    if not messages:
        raise BadRow("empty_completion")
    last = messages[-1]
    if not isinstance(last, Mapping):
        raise BadRow("not_text", {"message": type(last).__name__})
    if last.get("role") != "assistant":
        raise BadRow("last_message_not_assistant", {"role": last.get("role")})
    if last.get("tool_calls") or last.get("function_call"):
        raise BadRow("tool_call", {"role": "assistant"})
    content = last.get("content")
    if not isinstance(content, str):
        raise BadRow("not_text", {"content": type(content).__name__})
    return messages[:-1], content


def _plain(messages: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(m.get("role"), m.get("content")) if isinstance(m, Mapping) else (None, m) for m in messages]


def _belongs(prompt: Any, before: list[Any]) -> bool:
    """Whether a prompt column says the same as the conversation: its messages, or the text of a user message."""
    if isinstance(prompt, str):
        return any(role == "user" and isinstance(text, str) and text.strip() == prompt.strip() for role, text in _plain(before))
    return isinstance(prompt, Sequence) and _plain(prompt) == _plain(before)


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Both texts cut where they begin to differ; a space before that place belongs to the replies."""
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if length and chosen[length - 1] == " ":
        length -= 1
    if not chosen[:length].strip():
        raise BadRow("no_prompt")
    return chosen[:length], chosen[length:], rejected[length:]
