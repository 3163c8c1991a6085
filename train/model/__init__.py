"""Loading a model, and running it over a batch."""

from mmpo.train.model.checks import (
    check_checkpoint,
    check_ids,
    check_model,
    check_plan,
    check_same_vocabulary,
    idle_parameters,
)
from mmpo.train.model.fingerprint import Fingerprint, fingerprint_of, identity, weights_digest
from mmpo.train.model.flex import FLEX
from mmpo.train.model.forward import (
    ATTENTIONS,
    ExecutionPlan,
    attach,
    body_of,
    completion_values,
    inputs_of,
    plain_model,
)
from mmpo.train.model.load import add_lora, disable_dropout, load_model, load_pretrained, load_reference, missing_folder
from mmpo.train.model.logprobs import HEADS, linear_logprobs, model_logprobs
from mmpo.train.model.masks import ATTENTION_TYPES, attention_types, tree_masks
from mmpo.train.model.probe import choose_plan, probe_group
from mmpo.train.model.recompute import recomputes, recomputing_exactly
from mmpo.train.model.segments import SEGMENTS, segment_attention
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer

__all__ = [
    "ATTENTIONS",
    "ATTENTION_TYPES",
    "FLEX",
    "HEADS",
    "SEGMENTS",
    "ExecutionPlan",
    "Fingerprint",
    "add_lora",
    "attach",
    "attention_types",
    "body_of",
    "check_checkpoint",
    "check_ids",
    "check_model",
    "check_plan",
    "check_same_vocabulary",
    "choose_plan",
    "completion_values",
    "disable_dropout",
    "fingerprint_of",
    "identity",
    "idle_parameters",
    "inputs_of",
    "linear_logprobs",
    "load_model",
    "load_pretrained",
    "load_reference",
    "missing_folder",
    "model_logprobs",
    "plain_model",
    "probe_group",
    "recomputes",
    "recomputing_exactly",
    "segment_attention",
    "tiny_model",
    "tiny_tokenizer",
    "tree_masks",
    "weights_digest",
]
