"""FEEDBACK to one value per rater and completion: which grades, normalised, merged, with rater and position effects."""

__all__: list[str] = []
