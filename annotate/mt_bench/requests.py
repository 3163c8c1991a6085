"""From questions to requests, a stage at a time: first answers, second answers, judgments; and from what a journal holds to answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpo.annotate.asking import Asker, folded
from mmpo.annotate.client import Answer, Failure, Journal, Request, estimated_tokens, key_of
from mmpo.annotate.generate.options import SampledModel
from mmpo.annotate.generate.requests import MESSAGE_TOKENS, Sampling, Takes, Written, kept, written_of
from mmpo.annotate.judge.capabilities import Capabilities, parameters
from mmpo.annotate.judge.options import Judge
from mmpo.annotate.mt_bench.files import READER, TURNS, BenchQuestion
from mmpo.annotate.mt_bench.options import OTHER_TEMPERATURE, TEMPERATURES, MtBenchOptions
from mmpo.annotate.mt_bench.prompts import JudgePrompt, JudgePrompts
from mmpo.annotate.rows import FeedbackRow


def temperature_of(question: BenchQuestion, options: MtBenchOptions) -> float:
    """At which an answer is sampled: as the options say, else the question, else by its category."""
    if options.temperature is not None:
        return options.temperature
    return TEMPERATURES.get(question.category, OTHER_TEMPERATURE) if question.temperature is None else question.temperature


class Answering:
    """The requests to one model."""

    def __init__(self, model: SampledModel, options: MtBenchOptions, takes: Takes) -> None:
        self.model, self.takes = model, takes
        self._options, self._samplings = options, dict[float, Sampling]()

    def sampling(self, question: BenchQuestion) -> Sampling:
        """How an answer to a question is sampled."""
        temperature = temperature_of(question, self._options)
        if temperature not in self._samplings:
            self._samplings[temperature] = Sampling(self.model, self._options.sampling(temperature), self.takes)
        return self._samplings[temperature]

    def request(self, question: BenchQuestion, before: Sequence[str]) -> Request:
        """For the turn after the answers `before`, with a seed of its own."""
        messages = [{"role": "user", "content": question.turns[0]}]
        for answer, turn in zip(before, question.turns[1:]):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        [request] = self.sampling(question).of(FeedbackRow(f"{question.id}/{len(before) + 1}", messages, (), (), ()))
        return request


@dataclass(frozen=True)
class Grading:
    """The requests to one judge. name: as it stands in judgments; found: what its endpoint takes."""

    name: str
    judge: Judge
    options: MtBenchOptions
    prompts: JudgePrompts
    found: Capabilities = field(default_factory=lambda: Capabilities(logprobs=False))

    def request(self, question: BenchQuestion, answers: Sequence[str], turn: int) -> tuple[Request, JudgePrompt, str]:
        """For the answer of that turn; with the prompt, and its words as they stand in judgments."""
        prompt, messages = self.prompts.of(question, answers, turn)
        sent = parameters(self.found, self.options.judge_max_tokens, self.options.judge_temperature)
        asked = messages if self.found.system else folded(messages)
        body = {"model": self.judge.model, "messages": asked, **sent, **self.judge.extra_body}
        tokens = sum(estimated_tokens(message["content"]) for message in messages) + MESSAGE_TOKENS
        apart = self.judge.name if self.judge.same_model else ""
        request = Request(key_of(body, apart=apart), body, tokens, self.options.judge_max_tokens + self.found.room)
        return request, prompt, messages[-1]["content"]


def score_of(answer: Answer) -> tuple[float | None, str]:
    """The score in a judgment, or why there is none: no_verdict, out_of_scale, cut_off, refused, content_filter, ..."""
    [choice] = answer.choices[:1] or (None,)
    if choice is None or choice.finish == "refused":
        return None, "refused"
    read = READER.each([choice])[0]
    return (None, read) if isinstance(read, str) else (read.grades["grade"].value, "")


@dataclass(eq=False, kw_only=True)
class Stage(Asker):
    """Asks one model or judge the requests of one stage that the journal has no answer to. How to ask it comes of `asks`."""

    requests: Sequence[Request]
    asks: Any

    def chunks(self) -> Iterator[tuple[list[Request], int]]:
        """All of them at once: a benchmark has few."""
        known = self.journal.readings([request.key for request in self.requests]) if self.options.cache else {}
        left = list({request.key: request for request in self.requests if request.key not in known}.values())
        yield left, len(self.requests) - len(left)

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """A refusal is an answer, which asking again would not change."""
        return kept(outcome)


@dataclass
class ModelAnswers:
    """One model's answers, as far as they are known. turns: by question (as a text), one written reply per turn; keys, at: of the request
    for a question's last answer, and when that came (seconds since the epoch); failed: reasons of requests that came to nothing."""

    turns: dict[str, list[Written]] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    at: dict[str, float] = field(default_factory=dict)

    def texts(self, question: BenchQuestion) -> list[str]:
        """What was said to a question, in the order of its turns."""
        return [one.text for one in self.turns.get(str(question.id), ())]


def answers_of(answering: Answering, questions: Sequence[BenchQuestion], journal: Journal | None) -> ModelAnswers:
    """What the journal has of a model's answers."""
    found = ModelAnswers()
    for turn in range(TURNS):
        asked = dict(open_requests(answering, questions, found, turn))
        keys = [request.key for request in asked.values()]
        answers, failures = (journal.answers(keys), journal.failures(keys)) if journal else ({}, {})
        times = journal.times(keys) if journal else {}
        for one in questions:
            request = asked.get(str(one.id))
            if request is not None and (answer := answers.get(request.key)):
                found.turns.setdefault(str(one.id), []).append(written_of(answer))
                found.keys[str(one.id)] = request.key
                found.at[str(one.id)] = times[request.key]
            elif request is not None and (failure := failures.get(request.key)):
                found.failed.append(failure.reason)
    return found


def open_requests(
    answering: Answering, questions: Sequence[BenchQuestion], known: ModelAnswers, turn: int
) -> Iterator[tuple[str, Request]]:
    """The requests for a turn (0 or 1), by question: of those whose turns before have answers."""
    for one in questions:
        before = known.texts(one)[:turn]
        if len(before) == turn:
            yield str(one.id), answering.request(one, before)
