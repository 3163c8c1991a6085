"""Requests to an OpenAI-compatible endpoint: journal, limits, cost, retries. It knows nothing of grades."""

from mmpo.annotate.client.address import (
    OPENAI,
    EndpointSettings,
    Headers,
    api_key,
    base_url_of,
    check_address,
    proxy_for,
    public_url,
)
from mmpo.annotate.client.chat_reply import answer_of, loads
from mmpo.annotate.client.cost import Budget, Price, Prices, load_prices
from mmpo.annotate.client.endpoint import REQUESTS_PER_POOL, Endpoint
from mmpo.annotate.client.failures import (
    ABOUT_LENGTH,
    OF_THE_RUN,
    TOO_LONG,
    backoff,
    failure_of_status,
    named_parameter,
    refusal_of,
    retry_after,
    scrub,
)
from mmpo.annotate.client.journal import Journal, spent_by
from mmpo.annotate.client.rate_limits import Bucket, Limits
from mmpo.annotate.client.request import Answer, Choice, Failure, Request, Token, estimated_tokens, key_of
from mmpo.annotate.client.scheduler import MAX_FAILURES_WITHOUT_SUCCESS, RATE_LIMIT_RETRIES, Scheduler, Stop
