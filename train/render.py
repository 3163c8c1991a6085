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
from mmpo.train.template import check_template

__all__ = ["Rendered", "Renderer"]

REFUSALS = (TemplateError, TypeError)  # TypeError: what Jinja raises where a template adds text to a missing value


@dataclass(frozen=True)
class Rendered:
    """One completion behind its prompt: token `ids`, of which those from `start` on (start >= 1) are the completion."""

    ids: tuple[int, ...]
    start: int


class Renderer:
    """Renders prompts and replies with one tokenizer and counts, in `counts`, all that it had to change or drop.

    Rules:
    - a template that refuses a system message gets it merged into the first user turn ("system_merged");
    - where the template writes nothing after the reply, the end-of-text token is appended, so that a policy learns to
      stop; a tokenizer that has none is counted ("end_of_text_missing");
    - a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
    - prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated").

    `prompts` and `completions` count what was asked for, `too_long` holds the lengths of the prompts that were dropped,
    `first_refusal` says which roles the template refused first, and why. Raises UserError where the tokenizer has no
    chat template, or one that can't be used (`mmpo.train.template.choose_template` gives one).
    """

    def __init__(self, tokenizer: Any, max_length: int, max_prompt_length: int) -> None:
        check_template(tokenizer)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.counts: Counter[str] = Counter()
        self.prompts = self.completions = 0
        self.too_long: list[int] = []
        self.first_refusal = ""
        self._end = next((t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None), None)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt with its generation prompt, or None (counted) where it is too long or refused."""
        self.prompts += 1
        try:
            ids = self._encode(self._template(prompt, [], generation=True))
        except REFUSALS as error:
            return self._refused(prompt, error)
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            self.too_long.append(len(ids))
            return None
        return ids

    def completion(self, prompt: Sequence[Message], prompt_ids: Sequence[int], reply: Sequence[Message]) -> Rendered | None:
        """The reply behind its prompt, or None (counted) where the template refuses it or nothing of it is left."""
        self.completions += 1
        try:
            text = self._template(prompt, reply, generation=False)
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = self._encode(text)
        if not _ends_its_turn(text, reply[-1]["content"]) and (not ids or ids[-1] != self._end):
            if self._end is None:
                self.counts["end_of_text_missing"] += 1
            else:
                ids = (*ids, self._end)
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
        except REFUSALS:
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

    def _refused(self, messages: Sequence[Message], error: Exception) -> None:
        self.counts["template_refused"] += 1
        if not self.first_refusal:
            roles = ", ".join(m["role"] for m in messages)
            self.first_refusal = f"the chat template refused a conversation with the roles {roles}: {error}"


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
    """Whether the template writes anything but white space behind the reply; of an empty one that can't be told."""
    if not reply.strip():
        return False
    _, found, rest = text.rpartition(reply.strip())
    return bool(found and rest.strip())


def _merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with a leading system message put before the first user turn; None where that cannot be done."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]
