"""Turning a prompt and a reply into token ids, once, by the model's own chat template.

Prompt and reply are rendered *together*: separate renderings double the BOS, put one in the middle and lose the
generation prompt (a defect of the reference implementation). The completion begins at the first token that differs
from the prompt rendered with its generation prompt, because tokenisers merge across that boundary.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mmpo.pipeline.tables import Message
from mmpo.train.data import written
from mmpo.train.data.chat_template import REFUSALS, ChatTemplate, common_prefix, followed, goes_on, merge_system

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False, slots=True)
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
        self.reset()
        self._begun: _Begun | None = None
        self._end = next((t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None), None)

    def reset(self) -> None:
        """Counts begin again."""
        self.counts: Counter[str] = Counter()
        self.prompts = self.completions = self.trimmed = 0
        self.too_long: list[int] = []
        self.unwritten: set[str] = set()
        self.first_refusal = ""

    def prompt_ids(self, prompt: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> np.ndarray | None:
        """Token ids of the prompt up to its reply, (tokens,), int32; None (counted) where it is too long, refused, changed or not written
        whole. tools: their schemas, also for the completions."""
        [self._begun] = self._together([self._prompt(prompt, tools)])
        return None if self._begun is None else self._begun.ids

    def completion(self, reply: Sequence[Message]) -> Rendered | None:
        """The reply behind the last prompt, or None (counted) where the template refuses it or nothing of it is left."""
        if self._begun is None:
            raise RuntimeError("a reply without its prompt: prompt_ids comes first")
        [item] = self._together([self._completion(self._begun, reply)])
        return item

    def conversations(
        self, prompts: Sequence[tuple[Sequence[Message], list[dict[str, Any]] | None, Sequence[Sequence[Message]]]]
    ) -> list[list[Rendered | None] | None]:
        """Of each prompt, with its tools and its replies, the replies behind it; None where the prompt itself is left out. The texts of all
        go through the tokenizer together, which is several times faster than one by one."""
        begun = self._together([self._prompt(prompt, tools) for prompt, tools, _ in prompts])
        asked = [(one, reply) for one, (_, _, replies) in zip(begun, prompts, strict=True) if one for reply in replies]
        items = iter(self._together([self._completion(one, reply) for one, reply in asked]))
        return [
            None if one is None else [next(items) for _ in replies] for one, (_, _, replies) in zip(begun, prompts, strict=True)
        ]

    def _together(self, asking: Sequence["_Asking[Found]"]) -> list[Found]:
        """What each of them comes to; each asks for the ids of one text."""
        found: dict[int, Found] = {}
        texts: dict[int, str] = {}
        for place, one in enumerate(asking):
            try:
                texts[place] = next(one)
            except StopIteration as end:
                found[place] = end.value
        for place, ids in zip(texts, self._encode(list(texts.values())), strict=True):
            try:
                asking[place].send(ids)
            except StopIteration as end:
                found[place] = end.value
        return [found[place] for place in range(len(asking))]

    def _prompt(self, prompt: Sequence[Message], tools: list[dict[str, Any]] | None) -> "_Asking[_Begun | None]":
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
        closes = self.template.closes
        ids = yield text
        if len(ids) > self.max_prompt_length:
            self.counts["prompt_too_long"] += 1
            self.too_long.append(len(ids))
            return None
        if goes_on(prompt):
            self.counts["turn_continued"] += 1
        self.counts.update(written.changed(text, prompt))
        shown = prompt if moved is None else merge_system(prompt) or prompt
        return _Begun(shown, tools, ids, written.reply_place(text, prompt), closes)

    def _completion(self, begun: "_Begun", reply: Sequence[Message]) -> "_Asking[Rendered | None]":
        self.completions += 1
        part, counted = written.trained_part(reply, self.thinking, self.graded_part)
        if counted:
            self.counts[counted] += 1
        if part is None:
            return None
        reply, prompt = part, begun.prompt
        self.template.tools = begun.tools
        try:
            text, _ = self.template.text(prompt, reply)
            if differs := written.difference(text[begun.reply_from :], followed(prompt, reply)[-len(reply) :]):
                self.counts["completion_changed"] += 1
                self.trimmed += differs == "trimmed"
            if vanished := written.vanished(self.template, prompt, reply, text, differs):
                self.counts[vanished] += 1
                return None
        except REFUSALS as error:
            return self._refused([*prompt, *reply], error)
        ids = yield text
        if not begun.closes and (not len(ids) or ids[-1] != self._end):
            if self._end is None:
                self.counts["end_of_text_missing"] += 1
            else:
                ids = np.append(ids, np.int32(self._end))
        start = _shared(begun.ids, ids)
        if self.graded_part == "answer" and (place := written.answer_place(text, reply)):
            start = max(start, _shared(self._encode([text[:place]])[0], ids))
        truncated = len(ids) > self.max_length
        if truncated:
            asked = self._encode([written.asked_behind(self.tokenizer, text, reply)])[0]
            room = max(0, self.max_length - len(asked))
            ids = np.concatenate([ids[:room], asked]) if room > start else ids[:room]
            self.counts["completion_truncated"] += 1
        if not 1 <= start < len(ids):
            self.counts["completion_empty"] += 1
            return None
        return Rendered(ids, start, truncated)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        # The template has written BOS where the model wants one; the tokenizer must not add a second.
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [np.array(one, dtype=np.int32) for one in ids]

    def _refused(self, messages: Sequence[Message], error: Exception) -> None:
        self.counts["template_refused"] += 1
        if not self.first_refusal:
            roles = ", ".join(m["role"] for m in messages)
            self.first_refusal = f"the chat template refused a conversation with the roles {roles}: {error}"


@dataclass(frozen=True)
class _Begun:
    """A prompt whose replies can be rendered. prompt: as the template takes it; ids: (tokens,); reply_from: where in its text, in
    characters, a reply may begin; closes: whether the template writes anything behind a reply."""

    prompt: Sequence[Message]
    tools: list[dict[str, Any]] | None
    ids: np.ndarray
    reply_from: int
    closes: bool


_Asking = Generator[str, np.ndarray, Found]
"""A piece of work that stops where it needs the ids of a text."""


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts share from their beginning."""
    return common_prefix(first.tobytes(), second.tobytes()) // first.itemsize
