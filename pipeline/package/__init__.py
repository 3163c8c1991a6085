"""The package `mmpo` itself: its version, and its four packages when they are asked for. Importing it imports none of them."""

from importlib import import_module
from typing import Any

_PARTS = ("annotate", "cli", "pipeline", "train")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a fifth of what a shell's completion takes

        return version("mmpo")
    if name in _PARTS:
        return import_module(f"mmpo.{name}")
    raise AttributeError(f"module 'mmpo' has no attribute {name!r}; it has {', '.join(_PARTS)} and __version__")


def __dir__() -> list[str]:
    return [*_PARTS, "__version__"]
