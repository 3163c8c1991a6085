"""Requests to an OpenAI-compatible endpoint: journal, limits, cost, retries. It knows nothing of grades."""

__all__: list[str] = []
