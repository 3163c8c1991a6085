"""PAIRS to rendered prompts."""

from mmpo.train.data.chat_template import PLAIN_TEMPLATE, choose_template, pad_token
from mmpo.train.data.pairs import check_margins, check_rows, check_sources, read_pairs, usable_pairs
from mmpo.train.data.prompts import Prepared, PromptPairs, prepare
from mmpo.train.data.render import Rendered, Renderer
