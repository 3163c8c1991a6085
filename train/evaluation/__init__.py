"""A trained model measured on pairs, votes and RewardBench."""

__all__: list[str] = []
