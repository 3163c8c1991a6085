"""Turning a prompt and a reply into token ids, once, by the model's own chat template.

Prompt and reply are rendered *together*: separate renderings double the BOS, put one in the middle and lose the
generation prompt (a defect of the reference implementation). The completion begins at the first token that differs
from the prompt rendered with its generation prompt, because tokenisers merge across that boundary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.tables import Message

__all__ = ["PLAIN_TEMPLATE", "Rendered", "Renderer"]

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""Given to a tokenizer that has no chat template, and saved with it, so that what is served is what was trained."""


@dataclass(frozen=True)
class Rendered:
    """One completion behind its prompt: token `ids`, of which those from `start` on (start >= 1) are the completion."""

    ids: tuple[int, ...]
    start: int


class Renderer:
    """Renders prompts and replies with one tokenizer and counts, in `counts`, all that it had to change or drop.

    Rules:
    - a template that refuses a system message gets it merged into the first user turn ("system_merged");
    - a tokenizer without a template gets `PLAIN_TEMPLATE`;
    - where the template writes nothing after the reply, the end-of-text token is appended, so that a policy learns to
      stop;
    - a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
    - prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated").
    """

    def __init__(self, tokenizer: Any, max_length: int, max_prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.counts: Counter[str] = Counter()
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt with its generation prompt, or None (counted) where it is too long or refused."""
        try:
            ids = self._encode(self._template(prompt, [], generation=True))
        except TemplateError as error:
            return self._refused(prompt, error)
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            return None
        return ids

    def completion(self, prompt: Sequence[Message], prompt_ids: Sequence[int], reply: Sequence[Message]) -> Rendered | None:
        """The reply behind its prompt, or None (counted) where the template refuses it or nothing of it is left."""
        try:
            text = self._template(prompt, reply, generation=False)
        except TemplateError as error:
            return self._refused(prompt, error)
        ids = self._encode(text)
        eos = self.tokenizer.eos_token_id
        if eos is not None and not _ends_its_turn(text, reply[-1]["content"]) and (not ids or ids[-1] != eos):
            ids = (*ids, eos)
        start = common_prefix(prompt_ids, ids)
        if len(ids) > self.max_length:
            ids = ids[: self.max_length]
            self.counts["completion_truncated"] += 1
        if not 1 <= start < len(ids):
            self.counts["completion_empty"] += 1
            return None
        return Rendered(ids, start)

    def _template(self, prompt: Sequence[Message], reply: Sequence[Message], *, generation: bool) -> str:
        messages = [{"role": m["role"], "content": m["content"]} for m in (*prompt, *reply)]
        try:
            return self._apply(messages, generation)
        except TemplateError:
            merged = _merge_system(messages)
            if merged is None:
                raise
            text = self._apply(merged, generation)
        if generation:
            self.counts["system_merged"] += 1
        return text

    def _apply(self, messages: list[Message], generation: bool) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        if not isinstance(text, str):
            raise UserError("the chat template did not give one text; name a tokenizer with a single chat template")
        return text

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template has written BOS where the model wants one; the tokenizer must not add a second.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refused(self, prompt: Sequence[Message], error: TemplateError) -> None:
        self.counts["template_refused"] += 1
        if self.counts["template_refused"] == 1:
            roles = ", ".join(m["role"] for m in prompt)
            self.first_refusal = f"the chat template refused a prompt with the roles {roles}: {error}"


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginning.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def _ends_its_turn(text: str, reply: str) -> bool:
    """Whether the template writes anything but white space behind the reply."""
    _, found, rest = text.rpartition(reply.strip())
    return bool(found and rest.strip())


def _merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with a leading system message put before the first user turn; None where that cannot be done."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]
