"""From rows to the requests of one judge, and from its answers back to grades: rendered again, never stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpo.annotate.client.request import Answer, Failure, Request, estimated_tokens, key_of
from mmpo.annotate.judge.capabilities import Abilities, folded, parameters, schema_of
from mmpo.annotate.judge.modes import MODES, Asked, Graded, Row, messages_of, names_of, scale_of
from mmpo.annotate.judge.options import Judge, JudgeOptions
from mmpo.annotate.judge.prompts import load_template
from mmpo.annotate.judge.reading import Choice, Reading, read, trimmed
from mmpo.annotate.judge.rubrics import find_rubrics
from mmpo.annotate.replies import Unparsable

__all__ = ["Question", "Questions"]

THINKING = 1024
"""Tokens allowed for reasoning, unless --max-tokens says otherwise."""


@dataclass(frozen=True)
class Question:
    """What is asked once; several requests where several replies are drawn and the endpoint gives one at a time."""

    asked: Asked
    requests: tuple[Request, ...]


class Questions:
    """The questions of one judge, by what its endpoint can do."""

    def __init__(self, judge: Judge, options: JudgeOptions, abilities: Abilities) -> None:
        self.judge, self.options, self.abilities = judge, options, abilities
        self.mode = MODES[options.mode]
        self.form = options.reply or self.mode.reply
        self.template = load_template(options.template or options.mode)
        self.rubrics = find_rubrics(options.rubrics)
        self.samples = 1 if abilities.logprobs else options.samples

    @property
    def requests_a_question(self) -> int:
        """One, or as many as replies are drawn where the endpoint gives one at a time."""
        return 1 if self.samples == 1 or self.abilities.several else self.samples

    def of(self, row: Row) -> Iterator[Question]:
        """The questions about one row, in a fixed order."""
        for asked in self.mode.asks(row, self.options, self.rubrics):
            body = self._body(row, asked)
            prompt = sum(estimated_tokens(message["content"]) for message in body["messages"]) + 8
            reply = (self._length(asked) + self.abilities.room) * (
                self.samples if self.abilities.several and self.samples > 1 else 1
            )
            apart = self.judge.name if self.judge.twin else ""
            draws = [
                ({**body, "seed": draw + 1} if self.abilities.seed and self.requests_a_question > 1 else body, draw)
                for draw in range(self.requests_a_question)
            ]
            requests = (Request(key_of(one, draw, apart), one, prompt, reply, row.prompt_id, asked) for one, draw in draws)
            yield Question(asked, tuple(requests))

    def count(self, sizes: Sequence[int]) -> int:
        """How many requests so many completions a prompt make."""
        cache: dict[int, int] = {}
        for size in set(map(int, sizes)):
            cache[size] = self.mode.count(size, self.options)
        groups = 1 if self.form == "aspects-json" and self.options.mode != "listwise" else len(self.rubrics)
        return sum(cache[int(size)] for size in sizes) * groups * self.requests_a_question

    def _length(self, asked: Asked) -> int:
        if self.options.max_tokens is not None:
            return self.options.max_tokens
        own = self.form not in ("grade", "labelled") or self.options.template is not None
        short = 16 * len(asked.shown) if self.options.mode == "listwise" else 8
        return short + (THINKING if self.options.reasoning or own else 0)

    def _body(self, row: Row, asked: Asked) -> dict[str, Any]:
        messages = messages_of(row, asked, self.template, self.mode, reasoning=self.options.reasoning, form=self.form)
        messages = messages if self.abilities.system else folded(messages)
        sampled = self.samples > 1
        temperature = self.options.temperature if self.options.temperature is not None else 1.0 if sampled else None
        body = {"model": self.judge.model, "messages": messages, **parameters(self.abilities, self._length(asked), temperature)}
        if sampled and self.abilities.several:
            body["n"] = self.samples
        if self.abilities.schema and self.form == "labelled" and not self.options.reasoning:
            labels = list(scale_of(self.mode, asked, self.form).labels)
            body["response_format"] = schema_of(list(names_of(asked, self.options.mode, self.form)), labels)
        return {**body, **self.judge.extra_body}

    def reading(self, asked: Asked, choices: Sequence[Choice]) -> Reading:
        """The grades in the replies to one question. Raises Unparsable."""
        names, scale = names_of(asked, self.options.mode, self.form), scale_of(self.mode, asked, self.form)
        direct = not self.options.reasoning and self.form in ("grade", "labelled")
        return read(choices, self.form, scale, names, direct=direct, min_mass=self.options.min_mass)

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """An answer that can be read, shortened to what the journal keeps; one that can't be is a failure with the reply beside it."""
        if isinstance(outcome, Failure):
            return outcome
        scale = scale_of(self.mode, request.asked, self.form)
        kept = replace(outcome, choices=tuple(replace(c, tokens=trimmed(c.tokens, scale)) for c in outcome.choices))
        try:
            self.reading(request.asked, kept.choices)
            if self.options.logprobs == "need" and not any(token.top for choice in kept.choices for token in choice.tokens):
                raise Unparsable("no_logprobs")
        except Unparsable as error:
            text = "\n".join(choice.text for choice in kept.choices)
            return Failure("request", error.reason, WHY.get(error.reason, "the reply holds no grade"), reply=text, answer=kept)
        return kept

    def usable(self, request: Request, answer: Answer | None) -> bool:
        """Whether a kept answer can be read as this run reads: with a higher --min-mass it may no longer be one."""
        return answer is not None and isinstance(self.checked(request, answer), Answer)

    def grades(self, question: Question, answers: Sequence[Answer]) -> tuple[list[Graded], str, float | None]:
        """The grades of a question, the judge's words, and the least mass on the offered labels. Raises Unparsable."""
        reading = self.reading(question.asked, [choice for answer in answers for choice in answer.choices])
        masses = [grade.mass for grade in reading.grades.values() if grade.mass is not None]
        scale = scale_of(self.mode, question.asked, self.form)
        return self.mode.grades(question.asked, reading, scale), reading.rationale, min(masses, default=None)


WHY = {
    "cut_off": "the reply was cut off before its verdict: raise --max-tokens",
    "no_logprobs": "the reply came without log-probabilities, and --logprobs need insists on them",
    "low_mass": "too little probability lies on the offered grades (--min-mass)",
    "content_filter": "the endpoint's filter withheld the reply",
    "out_of_scale": "the reply's grade is none of those offered",
    "empty": "the reply is empty",
    "unclosed_thinking": "the reply was cut off while thinking: raise --max-tokens",
}
"""What to tell of a reply that can't be read, beyond its reason."""
