"""Loading a model, and running it over a batch."""

from mmpo.train.model.adapters import add_lora, check_few_bits
from mmpo.train.model.attach import attach, plain_model
from mmpo.train.model.attention import ExecutionPlan
from mmpo.train.model.bfloat16 import bfloat16_on_cpu, multiplies_bfloat16
from mmpo.train.model.fingerprint import Fingerprint, fingerprint_of, identity, tokenizer_digest, weights_digest
from mmpo.train.model.forward import body_of, completion_values, inputs_of
from mmpo.train.model.kept_states import StateFile, kept_states, sharing_states, states_below, states_of_others
from mmpo.train.model.layers import freeze_below, inputs_of_layer, keep_lowest, layers_of
from mmpo.train.model.load import (
    check_checkpoint,
    check_hub,
    check_ids,
    check_model,
    check_plan,
    check_same_vocabulary,
    could_be_model,
    disable_dropout,
    idle_parameters,
    kind_of,
    load_frozen,
    load_model,
    load_pretrained,
    load_reference,
    missing_folder,
    positions_of,
)
from mmpo.train.model.probe import choose_plan, probe_group, recomputes, recomputing_exactly
from mmpo.train.model.tiny import tiny_model, tiny_tokenizer
