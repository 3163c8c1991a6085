"""Models that grade, held by the actors of a Ray, one at a time: each loads them from where this process did, and computes values."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmpo.pipeline.engines import ActorPool, Actors, said_of_node
from mmpo.pipeline.errors import UserError
from mmpo.train.data import PromptPairs
from mmpo.train.inference import Predictor
from mmpo.train.model import Fingerprint, fingerprint_of, load_pretrained
from mmpo.train.options import TrainOptions, pass_tokens

OF_THE_MODEL = ("weights", "config", "precision")
"""Parts of a fingerprint that two processes must have in common, to give the same values to the same tokens: texts are rendered by the
tokenizer and the template of the first one alone."""


def device_here() -> torch.device:
    """Where this process computes."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@dataclass(frozen=True)
class NamedModel:
    """A model by the folder or the name that it is loaded from. fingerprint: of the one that the first process has; called: in messages;
    longest: tokens of the longest row that it will see."""

    how: TrainOptions
    name: str
    fingerprint: Fingerprint
    called: str
    longest: int
    pad_token: int

    def loaded(self) -> Predictor:
        """The model in this process. Raises UserError where it can't be read, or is another one."""
        try:
            model, _ = load_pretrained(self.how.kind, self.name, trust_remote_code=self.how.trust_remote_code)
        except UserError as error:
            raise said_of_node(error) from error
        here = asdict(fingerprint_of(model, None, bf16=self.how.bf16))
        if differs := [part for part in OF_THE_MODEL if here[part] != asdict(self.fingerprint)[part]]:
            raise said_of_node(
                UserError(
                    f"{self.name} is another model there ({', '.join(differs)} differ): put the same files where all nodes see them under "
                    "this name"
                )
            )
        device = device_here()
        tokens = pass_tokens(self.how.tokens_per_batch, device)
        options = {"tokens": tokens, "bf16": self.how.bf16, "device": device, "pad_token": self.pad_token}
        return Predictor(model, self.how.kind, self.called, self.longest, self.how.layout, options=options)


class HeldModels:
    """What an actor holds: the model that it was called for last."""

    about: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.model: NamedModel | None = None
        self.predict: Predictor | None = None

    def __call__(self, model: NamedModel, prompts: Sequence[PromptPairs]) -> np.ndarray:
        if self.predict is None or self.model != model:
            self.predict = None  # two need not lie on a device together
            self.predict, self.model = model.loaded(), model
        return self.predict(prompts)


class ScoringActors(ExitStack):
    """The actors of a run, which start when something is to be computed; they end with the block."""

    def __init__(self, actors: Actors) -> None:
        super().__init__()
        self.actors = actors

    @cached_property
    def pool(self) -> ActorPool:
        return self.enter_context(self.actors.holding(HeldModels))


@dataclass
class OnActors:
    """Computes one model's values by actors, for `cached_values`."""

    run: ScoringActors
    how: TrainOptions
    name: str
    fingerprint: Fingerprint
    called: str
    pad_token: int

    def __post_init__(self) -> None:
        self.tokens, self.count = pass_tokens(self.how.tokens_per_batch, self.run.actors.device), self.run.actors.count
        self._paths = [self.name] if Path(self.name).exists() else []

    def __call__(self, chunks: Sequence[Sequence[PromptPairs]], longest: int) -> Generator[tuple[int, np.ndarray]]:
        self.run.actors.check(self._paths)
        model = NamedModel(self.how, self.name, self.fingerprint, self.called, longest, self.pad_token)
        with closing(self.run.pool.results((model, chunk) for chunk in chunks)) as found:
            yield from found
