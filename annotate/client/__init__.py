"""Requests to an OpenAI-compatible endpoint: journal, limits, cost, retries. It knows nothing of grades."""

from mmpo.annotate.client.cost import Budget, load_prices
from mmpo.annotate.client.endpoint import A_POOL, Endpoint, answer_of
from mmpo.annotate.client.failures import retry_after, scrub
from mmpo.annotate.client.journal import Journal
from mmpo.annotate.client.rate_limits import Bucket, Limits
from mmpo.annotate.client.request import Answer, Failure, Request
from mmpo.annotate.client.scheduler import HOPELESS, LONGEST_BACKOFF, RATE_LIMIT_PATIENCE, Engine, Stop

__all__ = [
    "A_POOL",
    "HOPELESS",
    "LONGEST_BACKOFF",
    "RATE_LIMIT_PATIENCE",
    "Answer",
    "Bucket",
    "Budget",
    "Endpoint",
    "Engine",
    "Failure",
    "Journal",
    "Limits",
    "Request",
    "Stop",
    "answer_of",
    "load_prices",
    "retry_after",
    "scrub",
]
