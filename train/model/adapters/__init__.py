"""Adapters: LoRA on a model's linear modules, and frozen weights of few bits below it."""

from mmpo.train.model.adapters.lora import add_lora, check_targets, peft_asks_by_the_old_name
from mmpo.train.model.adapters.quantised import check_few_bits, quantisation
