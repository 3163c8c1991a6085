"""Train, validation and test, by the hash of what `--split-by` names: what shares it falls on one side, and stays there when data is added.

first-message: the conversation's first user message, so that all its turns and the same question under another system prompt stay
together. prompt: the whole prompt. column:NAME: a value that the input's rows carry, kept in `extra`.
"""

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of
from mmpo.pipeline.errors import UserError, unknown_name


def split_position(text: str) -> float:
    """Where a first user message falls in [0, 1): its blake2b-64 as a fraction."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """Three shares that sum to 1. Raises UserError."""
    if isinstance(shares, str) or len(shares) != 3 or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        given = shares if isinstance(shares, str) else ",".join(map(str, shares))
        raise UserError(f"--split {given}: give three shares (train, validation, test) from 0 to 1 that sum to 1")
    return (shares[0], shares[1], shares[2])


def first_user_messages(prompts: pa.ListArray) -> list[str]:
    """The first user message of each prompt; its first message where there is none."""
    messages, offsets = prompts.flatten(), offsets_of(prompts)
    roles = messages.field("role")
    is_user = np.asarray(pc.equal(roles, "user")) if len(roles) else np.zeros(0, dtype=bool)
    users = np.flatnonzero(is_user)
    at = np.searchsorted(users, offsets[:-1])
    first = np.where(at < len(users), users[np.minimum(at, max(len(users) - 1, 0))] if len(users) else 0, offsets[:-1])
    first = np.where((first >= offsets[:-1]) & (first < offsets[1:]), first, offsets[:-1])
    return messages.field("content").take(pa.array(first)).to_pylist()


def _kept(feedback: pa.Table, column: str) -> list[str | None]:
    """The kept value of each row as JSON, None where there is none."""
    values = ((json.loads(extra) if extra else {}).get(column) for extra in flat(feedback["extra"]).to_pylist())
    return [None if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values]


def _values_of(feedback: pa.Table, column: str) -> list[str]:
    """The value of a kept column of each prompt, as JSON. Raises UserError, with the prompt, where there is none."""
    values = _kept(feedback, column)
    if None in values:
        text = first_user_messages(flat(feedback["prompt"]).slice(values.index(None), 1))[0]
        raise UserError(f"--split-by column:{column}: the prompt {text[:80]!r} has no value there")
    return [value for value in values if value is not None]


def check_one_value(rows: pa.Table, by: str) -> None:
    """Refuse rows of one prompt that the rule puts on two sides. rows: FEEDBACK, not merged. Raises UserError naming prompt and values."""
    column = split_column(by)
    if column is None:
        return
    first: dict[str, str | None] = {}
    for row, (prompt, value) in enumerate(zip(flat(rows["prompt_id"]).to_pylist(), _kept(rows, column), strict=True)):
        if first.setdefault(prompt, value) != value:
            text = first_user_messages(flat(rows["prompt"]).slice(row, 1))[0]
            raise UserError(
                f"--split-by column:{column}: the prompt {text[:80]!r} has two values there, {first[prompt]} and {value}; one prompt is on "
                "one side. Give it one value, or split by another column"
            )


SPLIT_RULES: dict[str, Callable[[pa.Table], list[str]]] = {
    "first-message": lambda feedback: first_user_messages(flat(feedback["prompt"])),
    "prompt": lambda feedback: flat(feedback["prompt_id"]).to_pylist(),
}
"""What `--split-by` may be beside column:NAME: FEEDBACK (or PAIRS) → the text whose hash says where each row falls."""
COLUMN = "column:"


def split_column(by: str) -> str | None:
    """The column that a rule column:NAME names, None for other rules. Raises UserError where there is no such rule."""
    if by in SPLIT_RULES:
        return None
    if not by.startswith(COLUMN) or by == COLUMN:
        raise unknown_name("rule (--split-by)", by, [*SPLIT_RULES, "column:NAME"])
    return by.removeprefix(COLUMN)


def split_positions(feedback: pa.Table, by: str = "first-message") -> np.ndarray:
    """Where each row falls in [0, 1) by the rule, shape (rows,)."""
    column = split_column(by)
    keys = SPLIT_RULES[by](feedback) if column is None else _values_of(feedback, column)
    return np.array([split_position(text) for text in keys], dtype=np.float64)


def split_of_positions(positions: np.ndarray, shares: tuple[float, float, float]) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each position, shape (rows,)."""
    bounds = np.array([shares[0], shares[0] + shares[1]])
    side = np.searchsorted(bounds, positions, side="right")
    # Rounding must not send a prompt to a side whose share is 0.
    return np.minimum(side, 2 if shares[2] else 1 if shares[1] else 0)


def split_of_prompts(feedback: pa.Table, shares: tuple[float, float, float], by: str = "first-message") -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each row of FEEDBACK, shape (rows,)."""
    return split_of_positions(split_positions(feedback, by), shares)
