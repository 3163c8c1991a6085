"""Turning a prompt and a reply into token ids, once, by the model's own chat template.

Prompt and reply are rendered *together*: separate renderings double the BOS, put one in the middle and lose the
generation prompt (a defect of the reference implementation). The completion begins at the first token that differs
from the prompt rendered with its generation prompt, because tokenisers merge across that boundary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpo.pipeline.tables import Message
from mmpo.train.data.chat_template import REFUSALS, ChatTemplate, common_prefix, merge_system


@dataclass(frozen=True, eq=False)
class Rendered:
    """One completion behind its prompt: token `ids`, (tokens,), int32, of which those from `start` >= 1 on are the completion."""

    ids: np.ndarray
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
    - today is always `PINNED_DATE`;
    - a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
    - prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated").

    `prompts` and `completions` count what was asked for, `too_long` holds the lengths of the prompts that were dropped,
    `first_refusal` says which roles the template refused first, and why. Raises UserError where the tokenizer has no
    chat template, or one that can't be used (`choose_template` gives one).
    """

    def __init__(self, tokenizer: Any, max_length: int, max_prompt_length: int) -> None:
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer)
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.counts: Counter[str] = Counter()
        self.prompts = self.completions = 0
        self.too_long: list[int] = []
        self.first_refusal = ""
        self._merged: set[tuple[int, ...]] = set()  # prompts whose system message had to be moved
        self._end = next((t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None), None)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt with its generation prompt, or None (counted) where it is too long, refused or changed."""
        self.prompts += 1
        try:
            text, merged = self.template.text(prompt, generation=True)
        except REFUSALS as error:
            return self._refused(prompt, error)
        if merged:
            self.counts["system_merged"] += 1
        moved = None
        if self.template.changes(prompt, text):
            moved = self.template.moved(prompt)
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
            prompt = merge_system(prompt) or prompt
        try:
            text, _ = self.template.text(prompt, reply)
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = self._encode(text)
        if not self.template.closes and (not ids or ids[-1] != self._end):
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
        return Rendered(np.array(ids, dtype=np.int32), start)

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template has written BOS where the model wants one; the tokenizer must not add a second.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refused(self, messages: Sequence[Message], error: Exception) -> None:
        self.counts["template_refused"] += 1
        if not self.first_refusal:
            roles = ", ".join(m["role"] for m in messages)
            self.first_refusal = f"the chat template refused a conversation with the roles {roles}: {error}"
