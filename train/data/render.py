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
from mmpo.train.data.chat_template import check_template, with_pinned_date

__all__ = ["Rendered", "Renderer"]

REFUSALS = (TemplateError, TypeError)  # TypeError: what Jinja raises where a template adds text to a missing value
_STAND_IN = "A stand-in reply."
"""Put behind each prompt to see what the template makes of the prompt once a reply follows, and writes behind that."""


@dataclass(frozen=True)
class Rendered:
    """One completion behind its prompt: token `ids`, of which those from `start` on (start >= 1) are the completion."""

    ids: tuple[int, ...]
    start: int


class Renderer:
    """Renders prompts and replies with one tokenizer and counts, in `counts`, all that it had to change or drop.

    Rules:
    - a template that refuses a system message gets it merged into the first user turn ("system_merged"), and so does
      one that writes it only where the user speaks last ("system_moved");
    - a prompt that the template still writes otherwise once a reply follows (it drops earlier thoughts, say) is left out
      ("prompt_changed"): what is trained on would be no prompt that is ever served, and part of it taken for the reply;
    - where the template writes nothing after the reply, the end-of-text token is appended, so that a policy learns to
      stop; a tokenizer that has none is counted ("end_of_text_missing");
    - today is always `mmpo.train.data.chat_template.PINNED_DATE`;
    - a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
    - prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated").

    `prompts` and `completions` count what was asked for, `too_long` holds the lengths of the prompts that were dropped,
    `first_refusal` says which roles the template refused first, and why. Raises UserError where the tokenizer has no
    chat template, or one that can't be used (`mmpo.train.data.chat_template.choose_template` gives one).
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
        self._closes = False  # whether the template writes anything but white space behind a reply
        self._merged: set[tuple[int, ...]] = set()  # prompts whose system message had to be moved
        template = tokenizer.get_chat_template()
        pinned = with_pinned_date(template)
        self._options: dict[str, Any] = {} if pinned == template else {"chat_template": pinned}
        self._end = next((t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None), None)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt with its generation prompt, or None (counted) where it is too long, refused or changed."""
        self.prompts += 1
        try:
            text = self._template(prompt, [], generation=True)
        except REFUSALS as error:
            return self._refused(prompt, error)
        moved = None
        if self._changes(prompt, text):
            moved = self._moved(prompt)
            if moved is None:
                self.counts["prompt_changed"] += 1
                return None
            self.counts["system_moved"] += 1
        ids = self._encode(moved or text)
        if moved is not None:
            self._merged.add(ids)
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            self.too_long.append(len(ids))
            return None
        return ids

    def completion(self, prompt: Sequence[Message], prompt_ids: Sequence[int], reply: Sequence[Message]) -> Rendered | None:
        """The reply behind its prompt, or None (counted) where the template refuses it or nothing of it is left."""
        self.completions += 1
        if tuple(prompt_ids) in self._merged:
            prompt = _merge_system(prompt) or prompt
        try:
            text = self._template(prompt, reply, generation=False)
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = self._encode(text)
        if not self._closes and (not ids or ids[-1] != self._end):
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

    def _changes(self, prompt: Sequence[Message], text: str) -> bool:
        """Whether the template writes the prompt, whose `text` ends with the generation prompt, otherwise before a reply."""
        try:
            answered = self._template(prompt, [{"role": "assistant", "content": _STAND_IN}], generation=False)
            _, found, behind = answered.rpartition(_STAND_IN)
            self._closes = bool(found and behind.strip())
            same = common_prefix(text, answered)
            if same >= len(text.rstrip()):
                return False
            alone = self._template(prompt, [], generation=False)
        except REFUSALS:
            return False  # its replies are refused as well, one by one
        # What both ways of ending the prompt share is the prompt itself. Behind its last words a template may put what
        # depends on the turn being the last one.
        shared = text[: common_prefix(text, alone)]
        words = prompt[-1]["content"].strip()
        place = shared.rfind(words) if words else -1
        return same < (place + len(words) if place >= 0 else len(shared.rstrip()))

    def _moved(self, prompt: Sequence[Message]) -> str | None:
        """The prompt with its system message in the first user turn, or None where there is none or that changes too."""
        merged = _merge_system(prompt)
        if merged is None:
            return None
        try:
            text = self._template(merged, [], generation=True)
        except REFUSALS:
            return None
        return None if self._changes(merged, text) else text

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
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation, **self._options)
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


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many tokens, or characters, two sequences share from their beginning.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return position
    return min(len(first), len(second))


def _merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """The messages with a leading system message put before the first user turn; None where that cannot be done."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *messages[2:]]
