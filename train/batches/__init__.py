"""Rendered prompts to tensors: tries, layouts, steps."""

__all__: list[str] = []
