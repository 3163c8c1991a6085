"""Requests through OpenAI's Batch API."""

__all__: list[str] = []
