"""Self-contained HTML pages of a dataset and of compared models."""

__all__: list[str] = []
