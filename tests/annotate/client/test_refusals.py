"""What an error's body says, in every shape in which servers send it, and which of our parameters its words name."""

import json
from typing import Any

import pytest

from mmpo.annotate.client import named_parameter

SENT = ("max_tokens", "logprobs", "top_logprobs", "temperature", "n", "seed", "response_format")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"detail": "temperature must be 1 for this model"}, "temperature"),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "n"], "msg": "Extra inputs are not permitted", "input": 1}]}, "n"),
        ({"error": "top_logprobs must be at most 5"}, "top_logprobs"),
        ({"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}, "max_tokens"),
        ({"error": {"message": "not offered", "param": "logprobs", "code": "unsupported_parameter"}}, "logprobs"),
        ([{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
        ({"errors": [{"title": "Bad request", "detail": "responseFormat: not known"}]}, "response_format"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"no log-probs here"}}'}}}, "logprobs"),
        ('{"message": {"detail": "Unexpected fields: {\'n\'}"}}', "n"),
        (b"Max tokens is too large", "max_tokens"),
        ("Log probabilities are not supported by this model", "logprobs"),
        ("top_logprobs needs logprobs", "top_logprobs"),
        # None of ours is what is refused.
        ("the maximum context length is 8192 tokens; please reduce max_tokens", None),
        ({"detail": [{"loc": ["body", "messages"], "msg": "Field required", "input": {"temperature": 0}}]}, None),
        ("max_completion_tokens is unknown, and n samples can't be drawn by my_seed", None),
        ("", None),
        (None, None),
        ([[[[[[[[[[[["seed"]]]]]]]]]]]], "seed"),
    ],
)  # fmt: skip
def test_the_parameter_that_a_refusal_names_is_found_in_any_shape_of_body(body: Any, named: str | None) -> None:
    assert named_parameter(body, SENT) == named
    if isinstance(body, dict | list):
        assert named_parameter(json.dumps(body), SENT) == named
