"""Values of given completions without gradients, and the reference's log-probabilities."""

__all__: list[str] = []
