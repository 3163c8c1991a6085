"""Train, validation and test, by the hash of the conversation's first user message.

So all pairs of a prompt, all turns of a conversation and the same question under another system prompt fall on one side, and stay
there when data is added.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpo.pipeline.arrow import flat, offsets_of
from mmpo.pipeline.errors import UserError


def split_position(text: str) -> float:
    """Where a first user message falls in [0, 1): its blake2b-64 as a fraction."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """Three shares that sum to 1. Raises UserError."""
    if len(shares) != 3 or any(not 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise UserError(
            f"--split {','.join(map(str, shares))}: give three shares (train, validation, test) from 0 to 1 that sum to 1"
        )
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


def split_of_prompts(feedback: pa.Table, shares: tuple[float, float, float]) -> np.ndarray:
    """0 (train), 1 (validation) or 2 (test) for each row of FEEDBACK, shape (rows,)."""
    positions = np.array([split_position(text) for text in first_user_messages(flat(feedback["prompt"]))])
    bounds = np.array([shares[0], shares[0] + shares[1]])
    side = np.searchsorted(bounds, positions, side="right")
    # Rounding must not send a prompt to a side whose share is 0.
    return np.minimum(side, 2 if shares[2] else 1 if shares[1] else 0)
