"""Replies written continuously: every place of a batch that becomes free is filled at once, and a prompt's tokens are computed once.

A reply keeps its place until it ends. Keys and values of all places stand in one buffer a layer, each place's from its beginning, so that
nothing is moved when replies of other lengths come and go; a place that ends is filled by the last one.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmpo.pipeline.errors import UserError

GROWTH = 64
"""Positions by which the buffers grow at least, and then by half."""
CLOSE = 1e-2
"""How far log-probabilities may lie from those of a plain pass when a model is tried: float32 leaves some 1e-5."""


@dataclass(eq=False)
class Draft:
    """A reply that is being written. prompt: its prompt's token ids. ends: token ids that end it, stops: texts that do. token_ids: what is
    written so far; finish: "stop" or "length" once it has ended, "" before. about: the caller's own."""

    prompt: tuple[int, ...]
    most: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    about: Any = None
    token_ids: list[int] = field(default_factory=list)
    finish: str = ""

    def __post_init__(self) -> None:
        drawn = torch.Generator().manual_seed(self.seed)
        self.chances: list[float] = torch.rand(self.most, generator=drawn).tolist()

    @property
    def length(self) -> int:
        """Tokens of prompt and longest reply."""
        return len(self.prompt) + self.most


class Slots:
    """Places for so many replies of one causal language model. tokenizer: decodes replies in which texts to stop at are looked for.

    Raises UserError for a model whose replies would not be its own this way: a try on two short rows shows it.
    """

    def __init__(self, model: Any, tokenizer: Any, slots: int) -> None:
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.device = next(model.parameters()).device
        self.drafts: list[Draft] = []
        self.rows = max(slots, 2)
        """Places in the buffers: a model is tried on two."""
        self.lengths = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self._longest = 0
        self._cache = DynamicCache()
        accepted = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in accepted
        self._positioned = "position_ids" in accepted
        self._check()

    @property
    def free(self) -> int:
        """Places that nothing is written in."""
        return self.slots - len(self.drafts)

    @torch.inference_mode()
    def add(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Read the prompts of some drafts, each different one once, and write their first tokens; those that end with it."""
        prompts = list(dict.fromkeys(draft.prompt for draft in drafts))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(sizes.max()), dtype=torch.long)
        for row, prompt in zip(ids, prompts):
            row[: len(prompt)] = torch.tensor(prompt)
        mask = (torch.arange(ids.shape[1]) < sizes[:, None]).long()
        last = torch.unique(sizes - 1)
        cache = DynamicCache()
        more: dict[str, Any] = {"logits_to_keep": last.to(self.device)} if self._keeps else {}
        logits = self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), past_key_values=cache, use_cache=True, **more
        ).logits
        column = torch.searchsorted(last, sizes - 1) if self._keeps else sizes - 1
        sources = torch.tensor([place[draft.prompt] for draft in drafts])
        begin, end = len(self.drafts), len(self.drafts) + len(drafts)
        self._store(cache, sources.to(self.device), begin, int(sizes.max()))
        self.lengths[begin:end] = sizes[sources].to(self.device)
        self.drafts += drafts
        self._longest = max(self._longest, int(sizes.max()))
        return self._written(logits[sources, column[sources]], begin)

    @torch.inference_mode()
    def step(self) -> list[Draft]:
        """Write one token of every draft; those that end with it."""
        return self._written(self._next_logits([draft.token_ids[-1] for draft in self.drafts]), 0)

    def _next_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        rows = len(tokens)
        lengths = self.lengths[:rows]
        mask = (torch.arange(self._longest + 1, device=self.device) <= lengths[:, None]).long()
        # A row's new key stands at the row's own length, before positions that are another row's.
        positions: dict[str, Any] = {"position_ids": lengths[:, None]} if self._positioned else {}
        ids = torch.tensor(tokens, device=self.device)[:, None]
        cache = self._cache
        logits = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions).logits[:, -1]
        self.lengths[:rows] += 1
        self._longest += 1
        return logits

    def _store(self, cache: DynamicCache, sources: torch.Tensor, begin: int, length: int) -> None:
        """Copy keys and values of prompts into places from `begin` on."""
        if not self._cache.layers:
            self._cache.layers = [_SlotLayer(self) for _ in cache.layers]
        for ours, layer in zip(self._cache.layers, cache.layers, strict=True):
            ours.take_in(layer.keys, layer.values, sources, begin, length)

    def _written(self, logits: torch.Tensor, begin: int) -> list[Draft]:
        """Draw a token for the drafts from `begin` on, and take out those that end."""
        drafts = self.drafts[begin:]
        for draft, token in zip(drafts, drawn_tokens(logits, drafts)):
            draft.token_ids.append(token)
            if token in draft.ends or self._says_stop(draft):
                draft.finish = "stop"
            elif len(draft.token_ids) >= draft.most:
                draft.finish = "length"
        ended = [place for place in range(len(self.drafts)) if self.drafts[place].finish]
        found = [self.drafts[place] for place in ended]
        for place in reversed(ended):
            self._release(place)
        if ended:
            self._longest = int(self.lengths[: len(self.drafts)].max()) if self.drafts else 0
        return found

    def _release(self, place: int) -> None:
        last = len(self.drafts) - 1
        if place != last:
            length = int(self.lengths[last])
            for layer in self._cache.layers:
                layer.move(last, place, length)
            self.lengths[place] = self.lengths[last]
            self.drafts[place] = self.drafts[last]
        self.drafts.pop()

    def _says_stop(self, draft: Draft) -> bool:
        if not draft.stops:
            return False
        # A character may take four tokens; what ended before this token was seen then.
        tail = self.tokenizer.decode(draft.token_ids[-4 * (max(map(len, draft.stops)) + 1) :])
        return any(stop in tail for stop in draft.stops)

    @torch.inference_mode()
    def _check(self) -> None:
        """Raise UserError where two rows of different lengths, side by side, do not go on as each does by itself."""
        rows = [(1, 2, 3, 4, 5), (3, 1)]
        try:
            self.add([Draft(row, 2) for row in rows])
            tokens = [draft.token_ids[-1] for draft in self.drafts]
            ours = self._next_logits(tokens).float().log_softmax(-1)
            for row, token, found in zip(rows, tokens, ours):
                ids = torch.tensor([[*row, token]], device=self.device)
                plain = self.model(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)
                off = float((plain - found).abs().max())
                if not off <= CLOSE:
                    raise ValueError(f"log-probabilities differ by {off:.2g}")
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{type(self.model).__name__} can't write several replies side by side here ({error}): serve it, for instance by vLLM, and "
                "name it by --model NAME,base_url=..."
            ) from error
        self.drafts, self._longest = [], 0


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer, shape (rows, heads, positions, size): a place's next ones are written at its own length."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.of = slots

    def _buffers(self, like: torch.Tensor, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, with room for so many positions."""
        held = self.keys.shape[2] if self.keys is not None else 0
        if positions > held:
            size = max(positions + GROWTH, held + held // 2)
            for name in ("keys", "values"):
                grown = like.new_zeros(self.of.rows, like.shape[1], size, like.shape[3])
                if held:
                    grown[:, :, :held] = getattr(self, name)
                setattr(self, name, grown)
            self.is_initialized = True
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def take_in(self, keys: torch.Tensor, values: torch.Tensor, sources: torch.Tensor, begin: int, length: int) -> None:
        """Rows of a prompts' cache into places from `begin` on."""
        for buffer, new in zip(self._buffers(keys, length), (keys, values)):
            buffer[begin : begin + len(sources), :, :length] = new[sources, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """One place's content, so many positions, into another one."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[target, :, :length] = buffer[source, :, :length]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token of every place behind what it has; all that attention looks at."""
        rows, positions = len(key_states), self.of._longest + 1
        keys, values = self._buffers(key_states, positions)
        at = (torch.arange(rows, device=key_states.device), slice(None), self.of.lengths[:rows])
        keys[at], values[at] = key_states[:, :, 0], value_states[:, :, 0]
        return keys[:rows, :, :positions], values[:rows, :, :positions]

    def get_seq_length(self) -> int:
        """Of the longest place."""
        return self.of._longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that attention looks at, and where they begin."""
        return self.of._longest + query_length, 0


def drawn_tokens(logits: torch.Tensor, drafts: Sequence[Draft]) -> list[int]:
    """A token for each draft from its distribution: softmax(logits / temperature), cut to the likeliest tokens that have top_p together.

    logits: shape (drafts, vocabulary). A draft's chance, drawn from its own seed, picks the token by the inverse of the distribution
    function; temperature 0 takes the likeliest.
    """
    logits = logits.float()
    chosen = logits.argmax(-1)
    sampled = [place for place, draft in enumerate(drafts) if draft.temperature > 0]
    for cut in (False, True):
        places = [place for place in sampled if (drafts[place].top_p < 1) == cut]
        if not places:
            continue
        these = [drafts[place] for place in places]
        column = [(d.temperature, d.top_p, d.chances[len(d.token_ids)]) for d in these]
        temperature, top_p, chance = torch.tensor(column, device=logits.device).T[:, :, None]
        probabilities = (logits[places] / temperature).softmax(-1)
        order = None
        if cut:
            probabilities, order = probabilities.sort(-1, descending=True)
            probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, 0.0)
        total = probabilities.cumsum(-1)
        found = torch.searchsorted(total, chance * total[:, -1:], right=True).clamp_(max=total.shape[1] - 1)
        chosen[places] = (found if order is None else order.gather(1, found))[:, 0]
    return chosen.tolist()
