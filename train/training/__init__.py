"""A training run: its folder, trainer, passes, checkpoints, callbacks."""

__all__: list[str] = []
