"""Values of given completions without gradients, and the reference's log-probabilities."""

from mmpo.train.inference.hidden_states import hidden_states
from mmpo.train.inference.local_model import LocalModel
from mmpo.train.inference.local_models import local_models
from mmpo.train.inference.reference import (
    Predictor,
    adapter_off,
    cached_logprobs,
    cached_values,
    predict_values,
    token_runs,
    with_reference,
)
from mmpo.train.inference.reference_store import ReferenceStore, default_folder
from mmpo.train.inference.slots import Draft, Slots
