"""From rows to the requests of one judge, and from its answers to grades. Requests are rendered again whenever they are looked up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpo.annotate.asking import folded
from mmpo.annotate.client import Answer, Failure, Journal, Request, estimated_tokens, key_of
from mmpo.annotate.judge.capabilities import Capabilities, parameters, schema_of
from mmpo.annotate.judge.modes import MODES, NewGrade, Question, names_of, offered, reply_format, scale_of
from mmpo.annotate.judge.options import Judge, JudgeOptions
from mmpo.annotate.judge.prompts import load_template, shown_of
from mmpo.annotate.judge.reading import Reader, ReadReply, combined, dumps, loads
from mmpo.annotate.judge.rubrics import find_rubrics
from mmpo.annotate.pairings import PAIRINGS
from mmpo.annotate.replies import Unparsable
from mmpo.annotate.rows import FeedbackRow

REASONING_TOKENS = 1024
"""Allowed for reasoning, unless --max-tokens says otherwise."""
SAMPLES = 5
"""Replies drawn a question where the endpoint gives no token probabilities, unless --samples says otherwise."""
MESSAGE_TOKENS = 8
"""Added to the estimate of a request for what chat templates put around its messages."""


@dataclass(frozen=True)
class PosedQuestion:
    """A question and its requests: several where several replies are drawn and the endpoint gives one at a time."""

    question: Question
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class KnownReplies:
    """What a journal has of some requests, by key. replies: what was read in those that have an answer; failures: of the others."""

    replies: dict[bytes, list[ReadReply]]
    failures: dict[bytes, Failure]


class Questions:
    """The questions of one judge, by what its endpoint can do."""

    def __init__(self, judge: Judge, options: JudgeOptions, capabilities: Capabilities) -> None:
        self.judge, self.options, self.capabilities = judge, options, capabilities
        self.mode = MODES[options.mode]
        self.form_name, self.form = options.reply or self.mode.reply, reply_format(options)
        self.template = load_template(options.template or self.mode.template)
        self.rubrics = find_rubrics(options.rubrics)
        # One reply's distribution says what others would say, unless the judge thinks first: then it is that of one thought.
        self.thinks = options.reasoning or capabilities.room > 0
        one_is_enough = capabilities.logprobs and not (options.samples and self.thinks)
        self.samples = 1 if one_is_enough else options.samples or SAMPLES
        several = self.samples > 1
        self.replies_a_request = self.samples if several and capabilities.several else 1
        self.requests_a_question = self.samples if several and not capabilities.several else 1
        self._readers: dict[tuple[str, int], Reader] = {}

    @property
    def needs_scores(self) -> bool:
        """Whether the choice of pairs looks at grades that are there already."""
        return self.mode.signed and PAIRINGS[self.options.pairs.partition(":")[0]].reads_scores

    @property
    def by_schema(self) -> bool:
        """Whether the reply may be asked for as JSON by schema."""
        options = self.options
        own = options.template is not None or self.form_name != self.mode.reply
        return self.mode.by_schema and options.structured == "auto" and not options.reasoning and not own

    def of(self, row: FeedbackRow) -> Iterator[PosedQuestion]:
        """The questions about one row, in a fixed order."""
        apart = self.judge.name if self.judge.same_model else ""
        for question in self.mode.questions(row, self.options, self.rubrics):
            body = self._body(row, question)
            prompt = sum(estimated_tokens(message["content"]) for message in body["messages"]) + MESSAGE_TOKENS
            reply = (self.length(question) + self.capabilities.room) * self.replies_a_request
            requests = []
            for draw in range(self.requests_a_question):
                one = {**body, "seed": draw + 1} if self.capabilities.seed and self.requests_a_question > 1 else body
                requests.append(Request(key_of(one, draw, apart), one, prompt, reply, question))
            yield PosedQuestion(question, tuple(requests))

    def count(self, sizes: Sequence[int]) -> int:
        """How many requests so many completions a prompt make."""
        counts = {size: self.mode.count(size, self.options) for size in set(map(int, sizes))}
        groups = 1 if self.form.grades == "aspects" else len(self.rubrics)
        return sum(counts[int(size)] for size in sizes) * groups * self.requests_a_question

    def messages(self, row: FeedbackRow, question: Question) -> list[dict[str, str]]:
        """The messages of one question, for an endpoint that takes system messages."""
        meanings = offered(self.mode, question, self.form)[1]
        return self.template.messages(shown_of(row, question.shown), question.rubrics, meanings, reasoning=self.options.reasoning)

    def schema(self, question: Question) -> dict[str, Any]:
        """The response_format of a reply by schema."""
        return schema_of(list(names_of(question, self.form)), list(scale_of(self.mode, question, self.form).labels))

    def length(self, question: Question) -> int:
        """The longest reply to a question in tokens, room to think unasked apart."""
        if self.options.max_tokens is not None:
            return self.options.max_tokens
        own = not self.form.short or self.options.template is not None
        return self.mode.reply_tokens(len(question.shown)) + (REASONING_TOKENS if self.options.reasoning or own else 0)

    def _body(self, row: FeedbackRow, question: Question) -> dict[str, Any]:
        messages = self.messages(row, question)
        messages = messages if self.capabilities.system else folded(messages)
        temperature = self.options.temperature if self.options.temperature is not None else 1.0 if self.samples > 1 else None
        sent = parameters(self.capabilities, self.length(question), temperature)
        body = {"model": self.judge.model, "messages": messages, **sent}
        if self.replies_a_request > 1:
            body["n"] = self.replies_a_request
        if self.capabilities.schema and self.by_schema:
            body["response_format"] = self.schema(question)
        return {**body, **self.judge.extra_body}

    # Answers

    def reader(self, question: Question) -> Reader:
        """How the replies to a question are read."""
        key = (question.aspect, len(question.shown))
        if key not in self._readers:
            self._readers[key] = Reader(
                self.form_name,
                scale_of(self.mode, question, self.form),
                names_of(question, self.form),
                direct=not self.options.reasoning and self.form.short,
                min_label_probability=self.options.min_mass,
                need_logprobs=self.options.logprobs == "need",
            )
        return self._readers[key]

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """An answer with what was read in it, shortened to what the journal keeps; where no grade can be read, a failure with it."""
        if isinstance(outcome, Failure):
            return outcome
        reader = self.reader(request.about)
        choices = tuple(reader.trimmed(choice) for choice in outcome.choices)
        replies = reader.each(choices)
        kept = replace(outcome, choices=choices, reading=(reader.digest, dumps(replies)))
        reason = _unusable(replies)
        return Failure("request", reason, WHY.get(reason, "the reply holds no grade"), answer=kept) if reason else kept

    def known(self, requests: Sequence[Request], journal: Journal) -> KnownReplies:
        """What the journal has of these requests. A reply is parsed once for each way to read it; what was read is kept beside it.

        A reply that could not be read then and can be now (another --min-mass, a newer reader) becomes an answer: it is paid.
        """
        by_key = {request.key: request for request in requests}
        digests = {key: self.reader(request.about).digest for key, request in by_key.items()}
        readings = journal.readings(list(by_key))
        replies = {key: loads(found[1]) for key, found in readings.items() if found and found[0] == digests[key]}
        unread = journal.answers([key for key in readings if key not in replies])
        failures = journal.failures([key for key in by_key if key not in readings])
        again = {
            key: failure.answer
            for key, failure in failures.items()
            if failure.answer and failure.answer.choices and (failure.answer.reading or (b"",))[0] != digests[key]
        }
        outcomes = {key: self.checked(by_key[key], answer) for key, answer in {**unread, **again}.items()}
        read = {key: outcome if isinstance(outcome, Answer) else outcome.answer for key, outcome in outcomes.items()}
        readable = {key: read[key] for key in again if isinstance(outcomes[key], Answer)}
        journal.keep_readings({key: answer for key, answer in read.items() if key not in readable})
        journal.promote(self.judge.name, readable)
        replies |= {key: loads(answer.reading[1]) for key in (*unread, *readable) if (answer := read[key]) and answer.reading}
        return KnownReplies(replies, {key: failure for key, failure in failures.items() if key not in readable})

    def grades(
        self, posed: PosedQuestion, replies: Sequence[ReadReply], *, drawn: bool = True
    ) -> tuple[list[NewGrade], str, float | None]:
        """The grades of a question, the judge's words, and the least label probability. Raises Unparsable.

        drawn: whether the endpoint is known to sample; replies that may be one and the same have no spread.
        """
        scale = scale_of(self.mode, posed.question, self.form)
        reading = combined(replies, None if self.form.grades == "ranks" else scale, drawn=drawn)
        probabilities = [grade.label_probability for grade in reading.grades.values() if grade.label_probability is not None]
        grades = self.mode.grades(posed.question, reading, scale, self.form.grades)
        return grades, reading.rationale, min(probabilities, default=None)


def usable(replies: Sequence[ReadReply] | None) -> bool:
    """Whether a request with these replies needs no other answer."""
    return replies is not None and not _unusable(replies)


def _unusable(replies: Sequence[ReadReply]) -> str:
    try:
        combined(replies)
    except Unparsable as error:
        return error.reason
    return ""


WHY = {
    "cut_off": "the reply was cut off before its verdict: raise --max-tokens",
    "no_logprobs": "the reply came without log-probabilities of its grade, and --logprobs need insists on them",
    "impossible_logprobs": "its log-probabilities are none: they sum to more than 1 (logits, or probabilities): --logprobs off",
    "low_mass": "too little probability lies on the offered grades (--min-mass)",
    "content_filter": "the endpoint's filter withheld the reply",
    "no_verdict": "no grade stands in the reply as it was asked for; grades are read as they are written (C, not c): --show 5 prints the "
    "replies, --reply reads them another way, --template asks otherwise",
    "out_of_scale": "the reply's grade is none of those offered",
    "empty": "the reply is empty",
    "unclosed_thinking": "the reply was cut off while thinking: raise --max-tokens",
}
"""The message about a reply that can't be read, beyond its reason."""
