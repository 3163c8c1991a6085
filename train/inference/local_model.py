"""A language model on this machine that answers chat requests: `mmpo generate --local`."""

import json
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from mmpo.pipeline.options import options_from
from mmpo.train.data import Renderer, choose_template, or_reason
from mmpo.train.inference.slots import Draft, Slots
from mmpo.train.model import check_model, fingerprint_of, load_pretrained, positions_of
from mmpo.train.options import LocalOptions

REFILL = 8
"""Places are filled when one in so many is free: reading a few prompts at a time costs less than one by one."""


class LocalModel:
    """Writes replies with a causal language model of transformers, in float32, on the GPU where there is one.

    model: a folder or a Hugging Face name; options: the other fields of `LocalOptions`. Raises UserError for a model that can't be used.

    It is what `mmpo.annotate.generate(..., local=[LocalModel("my-model")])` takes.
    """

    def __init__(self, model: str, **options: Any) -> None:
        chosen = options_from(LocalOptions, {"model": model, **options}, where="a local model's ")
        self.name, self.slots = chosen.name, chosen.batch
        loaded, self.tokenizer = load_pretrained("policy", model, trust_remote_code=chosen.trust_remote_code)
        choose_template(self.tokenizer, chosen.chat_template)
        check_model(loaded, model, 1)
        self.digest = fingerprint_of(loaded, self.tokenizer).name
        self.model = loaded.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
        config = loaded.config.get_text_config()
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        self.most = min((one for one in (positions_of(loaded), window) if one), default=1 << 20)
        """Tokens of prompt and reply together."""
        self.renderer = Renderer(self.tokenizer, self.most, self.most - 1)
        ends = getattr(loaded.generation_config, "eos_token_id", None)
        several = ends if isinstance(ends, list) else [ends]
        self.ends = frozenset(one for one in (*several, self.tokenizer.eos_token_id) if one is not None)
        self._slots = Slots(self.model, self.tokenizer, chosen.batch)

    def serve(self, inbox: "queue.SimpleQueue[Any]", halted: Callable[[], bool]) -> None:
        """Answer what comes until None does: objects with a `body`, a chat request as OpenAI's API has it, and a function `done`, which
        takes the chat completion, or the reason and the message of why there is none. halted: asked at every token, whether to
        begin nothing more; what it raises ends the work."""
        waiting: list[Draft] = []
        open_ = True
        while open_ or waiting or self._slots.drafts:
            while open_ and (not inbox.empty() or not (waiting or self._slots.drafts)):
                work = inbox.get()
                open_ = work is not None
                if work is not None and (draft := self._draft(work)):
                    waiting.append(draft)
            if halted() and waiting:
                for draft in waiting:
                    draft.about.done(("interrupted", "stopped before this reply had begun"))
                waiting = []
            free = self._slots.free
            if waiting and (free * REFILL >= self.slots or not self._slots.drafts):
                chosen = _alike(waiting, free)
                waiting = [draft for draft in waiting if draft not in chosen]
                self._end(self._slots.add(chosen))
            if self._slots.drafts:
                self._end(self._slots.step())

    def _draft(self, work: Any) -> Draft | None:
        """The draft of a request; None where it can't be answered, which is said then."""
        body: Mapping[str, Any] = work.body
        ids, reason = or_reason(self.renderer, lambda: self.renderer.prompt_ids(_stored(body["messages"]), body.get("tools")))
        most = int(body.get("max_tokens") or 1024)
        if ids is None:
            work.done((reason, f"the prompt can't be written for {self.name}: {reason} {self.renderer.first_refusal}".strip()))
            return None
        if len(ids) + most > self.most:
            message = f"a prompt of {len(ids)} tokens and a reply of up to {most} are beyond the context length of {self.name}, {self.most}"
            work.done(("context_length_exceeded", message))
            return None
        temperature = body.get("temperature")
        return Draft(
            tuple(ids.tolist()), most,
            1.0 if temperature is None else float(temperature), float(body.get("top_p") or 1.0), int(body.get("seed") or 0),
            self.ends, tuple(body.get("stop") or ()), work,
        )  # fmt: skip

    def _end(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            written = draft.token_ids[:-1] if draft.token_ids[-1] in self.ends else draft.token_ids
            text = str(self.tokenizer.decode(written, skip_special_tokens=True))
            at = min((place for stop in draft.stops if (place := text.find(stop)) >= 0), default=len(text))
            message = {"role": "assistant", "content": text[:at]}
            usage = {"prompt_tokens": len(draft.prompt), "completion_tokens": len(draft.token_ids)}
            draft.about.done({"choices": [{"message": message, "finish_reason": draft.finish}], "usage": usage})


def _alike(waiting: Sequence[Draft], most: int) -> list[Draft]:
    """The drafts to read next: the one that has waited longest, and those whose prompts are its own or as long, as nearly as there are."""
    first = waiting[0].prompt
    return sorted(waiting, key=lambda draft: (draft.prompt != first, abs(len(draft.prompt) - len(first)), draft.prompt))[:most]


def _stored(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of a request as templates read them: arguments of calls as objects where they are the JSON of one."""
    found = json.loads(json.dumps(messages))
    for function in (call["function"] for message in found for call in message.get("tool_calls") or ()):
        with suppress(TypeError, ValueError):
            function["arguments"] = json.loads(function.get("arguments"))
    return found
