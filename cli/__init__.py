"""The commands and the recipes: thin, and the only place that joins pipeline, annotate and train."""

__all__: list[str] = []
