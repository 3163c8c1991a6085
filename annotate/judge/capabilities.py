"""What an endpoint can do, found out by asking it before anything is spent: log-probabilities, several replies, its parameter names.

Servers differ silently: some return no log-probabilities though asked for them, some ignore `n` or a JSON schema, some refuse
`max_tokens`, a temperature or a system message, and some models think before they answer, whoever asks. A question with a plain answer is
sent as the run would send it, with the run's own limit on the reply; what a refusal names, by whatever status, is left out, and the
question asked again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpo.annotate.asking import Ask, folded
from mmpo.annotate.client import TOO_LONG, Answer, Choice, Failure, named_parameter
from mmpo.annotate.judge.reading import has_distributions
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.tables import Message
from mmpo.pipeline.thinking import holds_thinking

PLAIN = ("What is 2 + 2?", ("2 + 2 is 4.", "2 + 2 is 5."))
"""The conversation and the replies that a probe asks about."""
MAX_TRIES = 10
UNASKED_REASONING_TOKENS = 4096
"""What a model that thinks unasked gets for it, at every reply; less where the endpoint takes no reply that long."""
LEAST_ROOM = 512
NAMING = ("request", "run", "transient")
"""Kinds of failures in which an endpoint may name a parameter that it does not take: hosted models refuse one by 403, servers by 500."""
TOP_LOGPROBS, FEWER_TOP_LOGPROBS = 20, 5
"""Alternatives asked for at each token, among which the labels must be: the most that OpenAI gives, and what smaller ones allow."""


@dataclass(frozen=True)
class Capabilities:
    """What the probe found. logprobs: alternatives with each token. several: `n` replies in one request.

    schema: JSON by schema is honoured. length: the name of the limit on the reply; "" where none is taken. temperature: can be set.
    seed: is taken, so that replies drawn one at a time differ at endpoints that would give the same one again. top: alternatives with
    each token. system: a system message is taken. room: tokens for thinking that was not asked for.
    """

    logprobs: bool = True
    several: bool = True
    schema: bool = False
    length: str = "max_tokens"
    temperature: bool = True
    seed: bool = False
    top: int = TOP_LOGPROBS
    system: bool = True
    room: int = 0


@dataclass(frozen=True)
class Probe:
    """What is sent: model, messages, the longest reply in tokens, and what goes along with every request. name: the judge's, for
    messages. holds_grade: whether a reply can be read. flag: the option that says how long a reply may be."""

    ask: Ask
    name: str
    model: str
    messages: Sequence[Message]
    length: int
    extra: Mapping[str, Any]
    holds_grade: Callable[[Choice], bool]
    flag: str = "--max-tokens"

    async def send(self, found: Capabilities, **more: Any) -> Answer | Failure:
        """One request with the parameters that the endpoint takes as far as is known."""
        messages = self.messages if found.system else folded(self.messages)
        return await self.ask(
            {"model": self.model, "messages": messages, **parameters(found, self.length, None), **more, **self.extra}
        )


async def probe(
    this: Probe, *, logprobs: bool, draws: bool, schema: Mapping[str, Any] | None, several: bool = True
) -> Capabilities:
    """Ask until a request goes through. logprobs: whether the run has a use for them; draws: whether it draws several replies a question
    even then; schema: the response_format that it would send; several: whether a run without log-probabilities draws several.

    Raises UserError for what is wrong with key, model or address, PartialResult where the endpoint is away.
    """
    found, reply = await _until_taken(this, Capabilities(logprobs=logprobs, several=False))
    thinks = any(map(_thinks, reply.choices))
    # A thought that the template opens shows no tag until it ends.
    if thinks or any(choice.finish == "length" and not this.holds_grade(choice) for choice in reply.choices):
        roomier, longer = await _until_taken(this, replace(found, room=UNASKED_REASONING_TOKENS))
        found, reply = (roomier, longer) if thinks or any(map(_thinks, longer.choices)) else (found, reply)
    if found.logprobs:
        found = replace(found, logprobs=any(map(has_distributions, reply.choices)))
    if draws or (several and (found.room or not found.logprobs)):
        outcome = await this.send(found, n=2)
        found = replace(found, several=isinstance(outcome, Answer) and len(outcome.choices) == 2)
        if not found.several:
            found = replace(found, seed=isinstance(await this.send(found, seed=1), Answer))
    if schema:
        outcome = await this.send(found, response_format=schema)
        text = outcome.choices[0].text.strip() if isinstance(outcome, Answer) and outcome.choices else ""
        found = replace(found, schema=text.startswith("{") and text.endswith("}"))
    return found


async def _until_taken(this: Probe, found: Capabilities) -> tuple[Capabilities, Answer]:
    failure = Failure("request", "probe", "no request went through")
    for _ in range(MAX_TRIES):
        outcome = await this.send(found)
        if isinstance(outcome, Answer):
            return found, outcome
        failure = outcome
        if not found.room and TOO_LONG.search(outcome.message):
            raise UserError(
                f"judge {this.name}: {this.flag} {this.length} is more than its endpoint gives: {outcome.message}. Give fewer"
            )
        named = named_parameter(outcome.message, parameters(found, 1, None)) if outcome.kind in NAMING else None
        simpler = _without(found, named or "", outcome.message) if named or outcome.kind == "request" else None
        if simpler is None:
            break
        found = simpler
    if failure.answer is not None:  # refused or filtered, but taken: the parameters are right
        return found, failure.answer
    if failure.kind in ("run", "request"):
        raise UserError(f"judge {this.name}: the endpoint refuses every request: {failure.message}")
    raise PartialResult(f"judge {this.name}: the endpoint does not answer: {failure.message}. The same command again goes on")


def _thinks(choice: Choice) -> bool:
    """Whether the model thinks before it answers: apart from the text, between tags in it, or until its tokens were used up."""
    cut_off = choice.finish == "length" and not choice.text.strip()
    return bool(choice.thinking.strip()) or cut_off or holds_thinking(choice.text)


def _without(found: Capabilities, named: str, message: str) -> Capabilities | None:
    """The capabilities without the parameter that a refusal names; where it names none, without what is dispensable. None: nothing is
    left."""
    if found.room:  # without it the same question was taken
        return replace(found, room=found.room // 2) if found.room >= 2 * LEAST_ROOM else None
    if named == "logprobs" and found.logprobs:
        return replace(found, logprobs=False)
    if named == found.length and named:
        return replace(found, length="max_completion_tokens" if named == "max_tokens" else "")
    if named == "temperature":
        return replace(found, temperature=False)
    if not named and "system" in message.lower() and found.system:
        return replace(found, system=False)
    if found.logprobs:
        return replace(found, top=FEWER_TOP_LOGPROBS) if found.top > FEWER_TOP_LOGPROBS else replace(found, logprobs=False)
    if found.temperature:
        return replace(found, temperature=False)
    return replace(found, length="max_completion_tokens") if found.length == "max_tokens" else None


def schema_of(names: list[str], labels: list[str]) -> dict[str, Any]:
    """The response_format of a JSON object with one of the labels for each name; labels that are whole numbers are numbers."""
    numeric = all(label.isdigit() for label in labels)
    values = {"type": "integer", "enum": [int(label) for label in labels]} if numeric else {"type": "string", "enum": labels}
    schema = {"type": "object", "properties": dict.fromkeys(names, values), "required": names, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "grades", "strict": True, "schema": schema}}


def parameters(found: Capabilities, length: int, temperature: float | None) -> dict[str, Any]:
    """The parameters that the endpoint takes: its limit on the reply (length, and room to think), log-probabilities, temperature."""
    values: dict[str, Any] = {}
    if found.length:
        values[found.length] = length + found.room
    if found.logprobs:
        values |= {"logprobs": True, "top_logprobs": found.top}
    if found.temperature:
        values["temperature"] = 0 if temperature is None else temperature
    return values
