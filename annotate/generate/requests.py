"""From prompts to the requests of one model, and from its answers to candidates, or to the names of what is none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from mmpo.annotate.asking import Ask, folded
from mmpo.annotate.client import TOO_LONG, Answer, Choice, Failure, Request, estimated_tokens, key_of, named_parameter
from mmpo.annotate.generate.options import GenerateOptions, SampledModel
from mmpo.annotate.generate.prompts import unanswerable
from mmpo.annotate.rows import FeedbackRow
from mmpo.pipeline.errors import BadRow, PartialResult, UserError
from mmpo.pipeline.sources import read_calls
from mmpo.pipeline.tables import REPLY_KEYS, without_nulls
from mmpo.pipeline.thinking import parted

MESSAGE_TOKENS = 8
"""Added to the estimate of a request for what chat templates put around its messages."""
WITHHELD = ("refused", "content_filter")
"""Reasons of a client's failures that are the model's last word on a prompt: they are kept as answers and not asked again."""
MOST_TRIES = 6


@dataclass(frozen=True)
class Takes:
    """What an endpoint takes. length: the name of the limit on the reply, "" for none; seed, temperature: whether they can be set; system:
    whether system messages are taken."""

    length: str = "max_tokens"
    seed: bool = True
    temperature: bool = True
    system: bool = True


@dataclass(frozen=True)
class Written:
    """What a model wrote. reason: why it is no candidate of itself ("" where it is): cut, refused, content_filter, empty."""

    text: str
    thinking: str | None = None
    calls: str | None = None
    reason: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """Those of REPLY_KEYS that it has."""
        return {name: value for name, value in zip(REPLY_KEYS, (self.thinking, self.calls)) if value}


class Sampling:
    """The requests of one model: `n` a prompt, each with a seed of its own."""

    def __init__(self, model: SampledModel, options: GenerateOptions, takes: Takes) -> None:
        self.model, self.options, self.takes = model, options, takes
        chosen = {name: getattr(model, name) for name in ("temperature", "top_p", "max_tokens")}
        chosen = {name: getattr(options, name) if value is None else value for name, value in chosen.items()}
        self.length: int = chosen.pop("max_tokens")
        if not takes.temperature:
            del chosen["temperature"]
        if takes.length:
            chosen[takes.length] = self.length
        chosen["stop"] = list(options.stop)
        self.sent = {name: value for name, value in chosen.items() if value not in (None, [])} | dict(model.extra_body)

    def body(self, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A request's body; more: what else is sent."""
        return {"model": self.model.model, "messages": messages, **more, **self.sent}

    def numbers(self, row: FeedbackRow) -> range:
        """The numbers of one prompt's requests; none where it has enough candidates, or can't be answered."""
        first = sum(name == self.model.name for name in row.models)
        return range(first, self.options.n) if not unanswerable(row) else range(0)

    def of(self, row: FeedbackRow) -> list[Request]:
        """The requests for one prompt, in order."""
        if not (numbers := self.numbers(row)):
            return []
        more: dict[str, Any] = {"tools": json.loads(row.tools)} if row.tools else {}
        body = self.body(messages_of(row, self.options.system, takes_system=self.takes.system), **more)
        prompt = sum(estimated_tokens(message["content"]) for message in body["messages"]) + MESSAGE_TOKENS
        prompt += estimated_tokens(row.tools) if row.tools else 0
        apart = self.model.name if self.model.same_model else ""
        found = []
        for number in numbers:
            one = {**body, "seed": seed_of(self.options.seed, row.prompt_id, number)} if self.takes.seed else body
            found.append(Request(key_of(one, number, apart), one, prompt, self.length, number))
        return found


def seed_of(seed: int, prompt_id: str, number: int) -> int:
    """The seed of a candidate, from 0 to 2³¹ - 1: it depends on the run's seed, the prompt and the candidate's number alone.

    >>> seed_of(0, "01bceaff1b7c8da61619ff786d31c8b4", 0) == seed_of(0, "01bceaff1b7c8da61619ff786d31c8b4", 1)
    False
    """
    return int.from_bytes(blake2b(f"{seed}\0{prompt_id}\0{number}".encode(), digest_size=4).digest()) >> 1


def messages_of(row: FeedbackRow, system: str | None, *, takes_system: bool = True) -> list[dict[str, Any]]:
    """The conversation as it is sent. system: put first where the prompt has no system message of its own; takes_system: else it begins
    the first user turn. What assistants thought in earlier turns is left out, and calls' arguments are text, as OpenAI lays them out.
    """
    messages = without_nulls([{key: value for key, value in one.items() if key != "reasoning_content"} for one in row.prompt])
    for message in messages:
        for call in message.get("tool_calls", ()):
            arguments = call["function"].get("arguments")
            if arguments is not None and not isinstance(arguments, str):
                call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages if takes_system else folded(messages)


def written_of(answer: Answer) -> Written:
    """What became of a request, its thinking apart, whether it came apart or between tags."""
    choice = answer.choices[0] if answer.choices else Choice("")
    cut = choice.finish == "length"
    try:
        calls = read_calls(choice.calls)
    except BadRow:
        return Written(choice.text, choice.thinking or None, None, "malformed_tool_calls")
    answered = parted(choice.text)
    if answered is None:  # it ends while it thinks: nothing of it is said
        return Written("", choice.thinking + choice.text, calls, "cut" if cut else "unclosed_thinking")
    text, thought = answered
    thinking = "\n".join(part for part in (choice.thinking.strip(), thought) if part) or None
    said = bool(text.strip() or calls)
    ended = "empty" if not (said or thinking) else "cut" if cut else "" if said else "empty"
    return Written(text, thinking, calls, choice.finish if choice.finish in WITHHELD else ended)


def kept(outcome: Answer | Failure) -> Answer | Failure:
    """The outcome as the journal keeps it: what the model or its filter withheld is an answer, which asking again would not change."""
    if isinstance(outcome, Answer) or outcome.reason not in WITHHELD:
        return outcome
    paid = outcome.answer or Answer((), 0, 0, 0.0)
    said = outcome.withheld or Choice(outcome.message if outcome.reason == "refused" else "")
    return replace(paid, choices=(replace(said, finish=outcome.reason),))


async def probe(ask: Ask, model: SampledModel, options: GenerateOptions, instead: Mapping[str, str] | None = None) -> Takes:
    """What the endpoint takes, found out by a request with the run's own parameters. A parameter that its refusal names is left out where
    the user did not choose it; else that is a UserError, since replies would be others than those asked for. Raises PartialResult."""
    takes, outcome = Takes(), Failure("request", "probe", "no request went through")
    for _ in range(MOST_TRIES):
        sampling = Sampling(model, options, takes)
        row = FeedbackRow("", [{"role": "user", "content": "Say hello."}], (), (), ())
        seed: dict[str, Any] = {"seed": seed_of(options.seed, "", 0)} if takes.seed else {}
        body = sampling.body(messages_of(row, options.system, takes_system=takes.system), **seed)
        outcome = await ask(body)
        if isinstance(outcome, Answer) or outcome.answer is not None or outcome.reason in WITHHELD:
            return takes
        named = named_parameter(outcome.message, body.keys() - {"model", "messages"})
        if TOO_LONG.search(outcome.message):
            raise UserError(
                f"model {model.name}: --max-tokens {sampling.length} is more than its endpoint gives: {outcome.message}. Give fewer"
            )
        if named == takes.length and named:
            takes = replace(takes, length="max_completion_tokens" if named == "max_tokens" else "")
        elif named == "seed":
            takes = replace(takes, seed=False)
        elif named == "temperature" and sampling.sent.get(named) == 1:
            takes = replace(takes, temperature=False)
        elif not named and takes.system and options.system and "system" in outcome.message.lower():
            takes = replace(takes, system=False)
        elif named:
            flag = f"--{named.replace('_', '-')}"
            raise UserError(
                f"model {model.name}: the endpoint refuses {named}={sampling.sent.get(named)!r}: {outcome.message}. "
                f"{(instead or {}).get(named, f'Leave {flag} out, or choose another value')}"
            )
        else:
            break
    if outcome.kind in ("run", "request"):
        raise UserError(f"model {model.name}: the endpoint refuses every request: {outcome.message}")
    raise PartialResult(f"model {model.name}: the endpoint does not answer: {outcome.message}. The same command again goes on")
