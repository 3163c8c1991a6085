"""PAIRS to rendered prompts."""

from mmpo.train.data.chat_template import PLAIN_TEMPLATE, choose_template, pad_token
from mmpo.train.data.pairs import check_margins, check_rows, check_sources, read_pairs, usable_pairs
from mmpo.train.data.prompts import Prepared, PromptPairs, prepare
from mmpo.train.data.render import Rendered, Renderer

__all__ = [
    "PLAIN_TEMPLATE",
    "Prepared",
    "PromptPairs",
    "Rendered",
    "Renderer",
    "check_margins",
    "check_rows",
    "check_sources",
    "choose_template",
    "pad_token",
    "prepare",
    "read_pairs",
    "usable_pairs",
]
