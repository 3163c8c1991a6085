"""Values of given completions without gradients, and the reference's log-probabilities."""

from mmpo.train.inference.predict import predict_values
from mmpo.train.inference.reference import cached_logprobs, completion_logprobs, reference_logprobs, with_reference

__all__ = ["cached_logprobs", "completion_logprobs", "predict_values", "reference_logprobs", "with_reference"]
