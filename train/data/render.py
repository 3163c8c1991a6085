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
from mmpo.train.data import written
from mmpo.train.data.chat_template import REFUSALS, ChatTemplate, common_prefix, followed, goes_on, merge_system


@dataclass(frozen=True, eq=False)
class Rendered:
    """One completion behind its prompt: token `ids`, (tokens,), int32, of which those from `start` >= 1 on are the completion;
    truncated: whether it has lost its end.
    """

    ids: np.ndarray
    start: int
    truncated: bool = False


class Renderer:
    """Renders prompts and replies with one tokenizer and counts, in `counts`, all that it had to change or drop.

    The rules, and the names that are counted under, are those of `written`.

    `prompts` and `completions` count what was asked for, `too_long` holds the lengths of the prompts that were dropped,
    `first_refusal` says which roles the template refused first, and why. Raises UserError where the tokenizer has no
    chat template, or one that can't be used (`choose_template` gives one).
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        max_prompt_length: int,
        thinking: written.Thinking = "keep",
        graded_part: written.GradedPart = "all",
    ) -> None:
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer)
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.thinking, self.graded_part = thinking, graded_part
        self.counts: Counter[str] = Counter()
        self.prompts = self.completions = self.trimmed = 0
        self.too_long: list[int] = []
        self.unwritten: set[str] = set()
        self.first_refusal = ""
        self._merged: set[tuple[int, ...]] = set()  # prompts whose system message had to be moved
        self._reply_from = 0  # where in the last prompt's text its reply may begin
        self._end = next((t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None), None)

    def prompt_ids(self, prompt: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> tuple[int, ...] | None:
        """Token ids of the prompt up to its reply, or None (counted) where it is too long, refused, changed or not written whole.
        tools: their schemas, also for the completions."""
        self.prompts += 1
        self.template.tools = tools
        try:
            text, merged = self.template.prompt(prompt)
        except REFUSALS as error:
            return self._refused(prompt, error)
        if merged:
            self.counts["system_merged"] += 1
        moved, gone = None, self.template.unwritten(prompt)
        if self.template.changes(prompt, text) or gone:
            moved = self.template.moved(prompt) if gone in ([], [0]) else None
            if moved is None:
                self.counts["message_vanished" if gone else "prompt_changed"] += 1
                self.unwritten |= {prompt[place]["role"] for place in gone}
                return None
            self.counts["system_moved"] += 1
            text = moved
        if lost := self.template.lost(prompt, (), text, moved=moved is not None):
            self.counts[f"{lost}_vanished"] += 1
            return None
        ids = self._encode(text)
        if moved is not None:
            self._merged.add(ids)
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            self.too_long.append(len(ids))
            return None
        if goes_on(prompt):
            self.counts["turn_continued"] += 1
        self.counts.update(written.changed(text, prompt))
        self._reply_from = written.reply_place(text, prompt)
        return ids

    def completion(self, prompt: Sequence[Message], prompt_ids: Sequence[int], reply: Sequence[Message]) -> Rendered | None:
        """The reply behind its prompt, or None (counted) where the template refuses it or nothing of it is left."""
        self.completions += 1
        part, counted = written.trained_part(reply, self.thinking, self.graded_part)
        if counted:
            self.counts[counted] += 1
        if part is None:
            return None
        reply = part
        if tuple(prompt_ids) in self._merged:
            prompt = merge_system(prompt) or prompt
        try:
            text, _ = self.template.text(prompt, reply)
            if differs := written.difference(text[self._reply_from :], followed(prompt, reply)[-len(reply) :]):
                self.counts["completion_changed"] += 1
                self.trimmed += differs == "trimmed"
            if vanished := written.vanished(self.template, prompt, reply, text, differs):
                self.counts[vanished] += 1
                return None
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = self._encode(text)
        if not self.template.closes and (not ids or ids[-1] != self._end):
            if self._end is None:
                self.counts["end_of_text_missing"] += 1
            else:
                ids = (*ids, self._end)
        start = common_prefix(prompt_ids, ids)
        if self.graded_part == "answer" and (place := written.answer_place(text, reply)):
            start = max(start, common_prefix(self._encode(text[:place]), ids))
        truncated = len(ids) > self.max_length
        if truncated:
            asked = self._encode(written.asked_behind(self.tokenizer, text, reply))
            room = max(0, self.max_length - len(asked))
            ids = (*ids[:room], *asked) if room > start else ids[:room]
            self.counts["completion_truncated"] += 1
        if not 1 <= start < len(ids):
            self.counts["completion_empty"] += 1
            return None
        return Rendered(np.array(ids, dtype=np.int32), start, truncated)

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template has written BOS where the model wants one; the tokenizer must not add a second.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refused(self, messages: Sequence[Message], error: Exception) -> None:
        self.counts["template_refused"] += 1
        if not self.first_refusal:
            roles = ", ".join(m["role"] for m in messages)
            self.first_refusal = f"the chat template refused a conversation with the roles {roles}: {error}"
