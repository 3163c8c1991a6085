"""LLM judges: questions, rubrics and modes, expected grades, a run and its output."""

__all__: list[str] = []
