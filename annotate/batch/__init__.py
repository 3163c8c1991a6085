"""Requests through OpenAI's Batch API."""

from mmpo.annotate.batch.queue import Queue

__all__ = ["Queue"]
