"""What is minimised: losses, terms, targets."""

__all__: list[str] = []
