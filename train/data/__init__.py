"""PAIRS to rendered prompts."""

from mmpo.train.data.chat_template import (
    NAMED_TEMPLATES,
    PLAIN_TEMPLATE,
    REFUSALS,
    ChatTemplate,
    ask_behind,
    choose_template,
    common_prefix,
    pad_token,
)
from mmpo.train.data.pairs import Prepared, PromptPairs, check_prompt_scores, prepare, prepare_pairs, usable_pairs, weighted_pairs
from mmpo.train.data.read import (
    check_margins,
    check_rows,
    check_scores,
    check_sources,
    of_part,
    pair_files,
    read_pairs,
    text_batches,
    with_graded_part,
    with_source_weights,
)
from mmpo.train.data.reasons import or_reason
from mmpo.train.data.render import Rendered, Renderer
from mmpo.train.data.rendering import messages_at
from mmpo.train.data.token_store import TokenStore
from mmpo.train.data.written import asked_behind
