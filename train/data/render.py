"""Turning a prompt and a reply into token ids, once, by the model's own chat template.

Prompt and reply are rendered *together*: separate renderings double the BOS, put one in the middle and lose the
generation prompt (a defect of the reference implementation). The completion begins at the first token that differs
from the prompt rendered with its generation prompt, because tokenisers merge across that boundary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmpo.pipeline.tables import Message
from mmpo.pipeline.thinking import holds_thinking, thinking_spans, without_thinking
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

    Rules:
    - a template that refuses a system message gets it merged into the first user turn ("system_merged"), and so does
      one that never writes it, or only where the user speaks last ("system_moved");
    - a prompt of which the template leaves a message out, because it does not know the role, is left out ("message_vanished"; the
      roles are in `unwritten`); one whose messages' words it changes is counted ("message_changed");
    - a prompt that the template still writes otherwise once a reply follows (it drops earlier thoughts, say) is left out
      ("prompt_changed"): what is trained on would be no prompt that is ever served, and part of it taken for the reply;
    - a prompt that ends with an assistant's turn is not closed: its replies continue that turn ("turn_continued");
    - a reply that does not stand in the rendering as it stands in the data is counted ("completion_changed"; `trimmed` of them
      differ in the white space around them alone), one of which nothing is written left out ("completion_vanished");
    - thinking in a reply is left out of it with thinking="drop" ("thinking_dropped"), else rendered with it ("thinking_kept"); with
      graded_part="answer" the completion begins behind it. A reply without an answer is left out where the answer is what
      counts ("thinking_only");
    - where the template writes nothing after the reply, the end-of-text token is appended, so that a policy learns to
      stop; a tokenizer that has none is counted ("end_of_text_missing");
    - today is always `PINNED_DATE`;
    - a prompt of more than `max_prompt_length` tokens is dropped ("prompt_too_long"), never cut;
    - prompt and completion of more than `max_length` tokens lose the end of the completion ("completion_truncated").

    `prompts` and `completions` count what was asked for, `too_long` holds the lengths of the prompts that were dropped,
    `first_refusal` says which roles the template refused first, and why. Raises UserError where the tokenizer has no
    chat template, or one that can't be used (`choose_template` gives one).
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        max_prompt_length: int,
        thinking: Literal["keep", "drop"] = "keep",
        graded_part: Literal["answer", "all"] = "all",
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

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt up to its reply, or None (counted) where it is too long, refused, changed or not written whole."""
        self.prompts += 1
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
        ids = self._encode(text)
        if moved is not None:
            self._merged.add(ids)
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            self.too_long.append(len(ids))
            return None
        if goes_on(prompt):
            self.counts["turn_continued"] += 1
        if any(message["content"].strip() not in text for message in prompt):
            self.counts["message_changed"] += 1
        words = prompt[-1]["content"].strip()
        place = text.rfind(words) if words else -1
        self._reply_from = max(0, place if goes_on(prompt) or place < 0 else place + len(words))
        return ids

    def completion(self, prompt: Sequence[Message], prompt_ids: Sequence[int], reply: Sequence[Message]) -> Rendered | None:
        """The reply behind its prompt, or None (counted) where the template refuses it or nothing of it is left."""
        self.completions += 1
        given = self._thought(reply)
        if given is None:
            return None
        reply = given
        if tuple(prompt_ids) in self._merged:
            prompt = merge_system(prompt) or prompt
        try:
            text, _ = self.template.text(prompt, reply)
            if self._is_changed(text, followed(prompt, reply)[-len(reply) :]) and self._is_empty(prompt, reply, text):
                self.counts["completion_vanished"] += 1
                return None
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = self._encode(text)
        if not self.template.closes and (not ids or ids[-1] != self._end):
            if self._end is None:
                self.counts["end_of_text_missing"] += 1
            else:
                ids = (*ids, self._end)
        start = max(common_prefix(prompt_ids, ids), self._answer_start(text, reply, ids))
        truncated = len(ids) > self.max_length
        if truncated:
            ids = ids[: self.max_length]
            self.counts["completion_truncated"] += 1
        if not 1 <= start < len(ids):
            self.counts["completion_empty"] += 1
            return None
        return Rendered(np.array(ids, dtype=np.int32), start, truncated)

    def _thought(self, reply: Sequence[Message]) -> Sequence[Message] | None:
        """The reply with its thinking or without; None where it has no answer and the answer is what counts."""
        if not any(holds_thinking(message["content"]) for message in reply):
            return reply
        answers = [without_thinking(message["content"]) for message in reply]
        if (self.thinking == "drop" or self.graded_part == "answer") and not any((answer or "").strip() for answer in answers):
            self.counts["thinking_only"] += 1
            return None
        if self.thinking == "keep":
            self.counts["thinking_kept"] += 1
            return reply
        self.counts["thinking_dropped"] += 1
        return [{**message, "content": answer or ""} for message, answer in zip(reply, answers, strict=True)]

    def _is_changed(self, text: str, reply: Sequence[Message]) -> bool:
        """Whether the text has other words, or other white space around them, for the reply; counted."""
        written = text[self._reply_from :]
        if all(message["content"] in written for message in reply):
            return False
        self.counts["completion_changed"] += 1
        self.trimmed += all(message["content"].strip() in written for message in reply)
        return True

    def _is_empty(self, prompt: Sequence[Message], reply: Sequence[Message], text: str) -> bool:
        """Whether an empty reply would give the same text, and this one is not empty."""
        empty = [{**message, "content": ""} for message in reply]
        return any(message["content"].strip() for message in reply) and self.template.text(prompt, empty)[0] == text

    def _answer_start(self, text: str, reply: Sequence[Message], ids: Sequence[int]) -> int:
        """Where the answer begins behind the thinking, in tokens; 0 where all of a reply was graded, or there is no thinking in it."""
        spans = thinking_spans(reply[-1]["content"]) if self.graded_part == "answer" else None
        place = text.rfind(reply[-1]["content"][spans[-1][1] :].strip()) if spans else -1
        return common_prefix(self._encode(text[:place]), ids) if place > 0 else 0

    def _encode(self, text: str) -> tuple[int, ...]:
        # The template has written BOS where the model wants one; the tokenizer must not add a second.
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _refused(self, messages: Sequence[Message], error: Exception) -> None:
        self.counts["template_refused"] += 1
        if not self.first_refusal:
            roles = ", ".join(m["role"] for m in messages)
            self.first_refusal = f"the chat template refused a conversation with the roles {roles}: {error}"
