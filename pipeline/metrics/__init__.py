"""What a model is measured by: accuracy, calibration, RewardBench; pure numpy."""

__all__: list[str] = []
