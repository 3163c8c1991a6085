"""PAIRS to rendered prompts."""

__all__: list[str] = []
