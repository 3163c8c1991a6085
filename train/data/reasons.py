"""Why a prompt or a reply is not rendered, for those who ask of each one."""

from collections.abc import Callable
from typing import TypeVar

from mmpo.train.data.render import Renderer

Found = TypeVar("Found")
LEAVES_OUT = (
    "prompt_too_long", "template_refused", "message_vanished", "prompt_changed", "tools_vanished", "tool_calls_vanished",
    "thinking_only", "completion_vanished", "reply_calls_vanished", "thinking_vanished", "completion_empty",
)  # fmt: skip
"""Those of a Renderer's counts under which a prompt or a reply is left out; the others say what was changed."""


def or_reason(renderer: Renderer, render: Callable[[], Found | None]) -> tuple[Found | None, str]:
    """What rendering gives; where that is None, under which name of LEAVES_OUT it was counted."""
    before = [renderer.counts[name] for name in LEAVES_OUT]
    found = render()
    if found is not None:
        return found, ""
    return None, next(name for name, count in zip(LEAVES_OUT, before, strict=True) if renderer.counts[name] > count)
