"""People grade in Argilla: push, pull, and merging what they said."""

__all__: list[str] = []
