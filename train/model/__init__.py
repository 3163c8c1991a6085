"""Loading a model, and running it over a batch."""

__all__: list[str] = []
