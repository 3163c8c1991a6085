"""What judging costs: prices by model in one editable table (prices.yaml), and a budget that is never passed."""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import yaml

from mmpo.pipeline.errors import UserError

TABLE = Path(__file__).parent / "prices.yaml"
DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$|-\d{4}$")


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens of prompt and of reply."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        """What so many tokens cost, in US dollars."""
        return (prompt_tokens * self.prompt + reply_tokens * self.reply) / 1e6


@dataclass(frozen=True)
class Prices:
    """The table. batch: the share of the price that the Batch API takes."""

    models: dict[str, Price]
    batch: float = 1.0

    def of(self, model: str, *, batch: bool = False) -> Price | None:
        """The price of a model or of its dated release; None where the table does not have it."""
        price = self.models.get(model) or self.models.get(DATED.sub("", model))
        if price is None or not batch:
            return price
        return Price(price.prompt * self.batch, price.reply * self.batch)


def load_prices(path: str | None = None) -> Prices:
    """The package's table, or a user's. Raises UserError."""
    file = Path(path) if path else TABLE
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        models = {str(name): Price(float(prompt), float(reply)) for name, (prompt, reply) in values["models"].items()}
        batch = float(values.get("batch", 1.0))
    except OSError as error:
        raise UserError(f"--prices {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--prices {file}: it needs `models:` with NAME: [prompt, reply] in dollars a million tokens ({error})"
        ) from None
    wrong = next((name for name, price in models.items() if not (0 <= price.prompt < inf and 0 <= price.reply < inf)), None)
    if wrong is not None or not 0 <= batch < inf:  # a budget compares with costs, and nothing is above one that is no number
        raise UserError(f"--prices {file}: {'batch' if wrong is None else wrong}: prices are finite numbers from 0 up")
    return Prices(models, batch)


@dataclass
class Budget:
    """US dollars: `spent` for good, `reserved` for what is in flight at the most that it can cost; `most` is never passed."""

    most: float | None = None
    spent: float = 0.0
    reserved: dict[bytes, float] = field(default_factory=dict)
    held: float = 0.0

    def reserve(self, key: bytes, cost: float) -> bool:
        """Set the most that a request can cost aside; False where that would pass the limit."""
        if self.most is not None and self.spent + self.held + cost > self.most:
            return False
        self.release(key)
        self.reserved[key] = cost
        self.held += cost
        return True

    def release(self, key: bytes) -> None:
        """Give back what was set aside."""
        self.held -= self.reserved.pop(key, 0.0)
        if not self.reserved:  # exactly: a rest of rounding would read as something that may still come back, and be waited for
            self.held = 0.0

    def settle(self, key: bytes, cost: float) -> None:
        """What it cost in the end."""
        self.release(key)
        self.spent += cost
