"""What of a conversation stands in its rendering; what is trained on must be what was graded. A `Renderer` goes by these rules and counts:

- a template that refuses a system message gets it merged into the first user turn ("system_merged"), and so does
  one that never writes it, or only where the user speaks last ("system_moved");
- a prompt of which the template leaves a message out, because it does not know the role, is left out ("message_vanished"; the
  roles are in `unwritten`); one whose messages' words it changes is counted ("message_changed");
- a prompt that the template still writes otherwise once a reply follows (it drops earlier thoughts, say) is left out
  ("prompt_changed"): what is trained on would be no prompt that is ever served, and part of it taken for the reply;
- a prompt that ends with an assistant's turn is not closed: its replies continue that turn ("turn_continued");
- tools, or a call of one, of which the template writes nothing: the prompt is left out ("tools_vanished", "tool_calls_vanished"), or the
  reply ("reply_calls_vanished"); thinking apart (reasoning_content) that it leaves out of earlier turns is counted
  ("earlier_thinking_left_out"), a reply whose own it leaves out is left out ("thinking_vanished");
- a reply that does not stand in the rendering as it stands in the data is counted ("completion_changed"; `trimmed` of them
  differ in the white space around them alone), one of which nothing is written left out ("completion_vanished");
- thinking in a reply is left out of it with thinking="drop" ("thinking_dropped"), else rendered with it ("thinking_kept"); with
  graded_part="answer" the completion begins behind it. A reply without an answer is left out where the answer is what
  counts ("thinking_only");
- where the template writes nothing after the reply, the end-of-text token is appended, so that a policy learns to
  stop; a tokenizer that has none is counted ("end_of_text_missing");
- today is always `PINNED_DATE`;
- a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
- prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated"),
  but for what the template asks behind it.
"""

from collections.abc import Sequence
from typing import Any, Literal

from mmpo.pipeline.tables import Message
from mmpo.pipeline.thinking import holds_thinking, thinking_spans, without_thinking
from mmpo.train.data.chat_template import ChatTemplate, goes_on

Thinking = Literal["keep", "drop"]
GradedPart = Literal["answer", "all"]


def trained_part(reply: Sequence[Message], thinking: Thinking, graded_part: GradedPart) -> tuple[Sequence[Message] | None, str]:
    """The reply with its thinking or without, and the name that this is counted under, "" where it holds none.

    None where it has no answer and the answer is what counts.
    """
    if not any(holds_thinking(message["content"]) or message.get("reasoning_content") for message in reply):
        return reply, ""
    answers = [without_thinking(message["content"]) for message in reply]
    answered = any((answer or "").strip() or message.get("tool_calls") for message, answer in zip(reply, answers, strict=True))
    if (thinking == "drop" or graded_part == "answer") and not answered:
        return None, "thinking_only"
    if thinking == "keep":
        return reply, "thinking_kept"
    kept = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in reply]
    return [{**message, "content": answer or ""} for message, answer in zip(kept, answers, strict=True)], "thinking_dropped"


def reply_place(text: str, prompt: Sequence[Message]) -> int:
    """Where in the prompt's text, in characters, its reply may begin: behind its last message, at it where the reply goes on with it."""
    words = prompt[-1]["content"].strip()
    place = text.rfind(words) if words else -1
    return max(0, place if goes_on(prompt) or place < 0 else place + len(words))


def changed(text: str, prompt: Sequence[Message]) -> list[str]:
    """What is counted of a prompt of which a message, white space around it apart, or earlier thinking does not stand in the text."""
    found = ["message_changed"] if any(message["content"].strip() not in text for message in prompt) else []
    return [*found, *(["earlier_thinking_left_out"] if leaves_thinking_out(text, prompt) else [])]


def vanished(template: ChatTemplate, prompt: Sequence[Message], reply: Sequence[Message], text: str, differs: str) -> str:
    """Under which name a reply is left out of which the text lacks all, the thinking or the calls, else ""; differs: `difference`."""
    if differs and is_as_if_empty(template, prompt, reply, text):
        return "completion_vanished"
    if leaves_thinking_out(text, reply):
        return "thinking_vanished"
    return "reply_calls_vanished" if template.lost(prompt, reply, text) else ""


def leaves_thinking_out(text: str, messages: Sequence[Message]) -> bool:
    """Whether thinking that a message carries apart from its content does not stand in the text."""
    return any(thought.strip() not in text for message in messages if (thought := message.get("reasoning_content")))


def difference(text: str, reply: Sequence[Message]) -> Literal["", "trimmed", "changed"]:
    """Whether the text has other white space around the reply, or other words for it."""
    if all(message["content"] in text for message in reply):
        return ""
    return "trimmed" if all(message["content"].strip() in text for message in reply) else "changed"


def is_as_if_empty(template: ChatTemplate, prompt: Sequence[Message], reply: Sequence[Message], text: str) -> bool:
    """Whether an empty reply would give the same text, and this one is not empty."""
    empty = [{**message, "content": ""} for message in reply]
    return any(message["content"].strip() for message in reply) and template.text(prompt, empty)[0] == text


def asked_behind(tokenizer: Any, text: str, reply: Sequence[Message]) -> str:
    """What the text has behind the reply where that asks something (`ask_behind`), else "": the end of a turn is no question."""
    words = reply[-1]["content"].strip()
    behind = text[text.rfind(words) + len(words) :] if words in text else ""
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    return behind if tokenizer.decode(ids, skip_special_tokens=True).strip() else ""


def answer_place(text: str, reply: Sequence[Message]) -> int:
    """Where in the text the answer begins behind the thinking, in characters; 0 where there is no thinking in the reply."""
    spans, thought = thinking_spans(reply[-1]["content"]), reply[-1].get("reasoning_content")
    if not spans and thought:
        behind = text.rfind(thought.strip()) + len(thought.strip())
        return max(0, text.find(reply[-1]["content"].strip(), behind))
    return max(0, text.rfind(reply[-1]["content"][spans[-1][1] :].strip())) if spans else 0
