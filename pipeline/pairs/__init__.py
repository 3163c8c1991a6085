"""From one value per completion to PAIRS: which pairs, their margins and errors, filters, splits."""

__all__: list[str] = []
