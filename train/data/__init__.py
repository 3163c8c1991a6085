"""PAIRS to rendered prompts."""

from mmpo.train.data.chat_template import (
    PLAIN_TEMPLATE,
    REFUSALS,
    ChatTemplate,
    ask_behind,
    choose_template,
    common_prefix,
    pad_token,
)
from mmpo.train.data.pairs import (
    Prepared,
    PromptPairs,
    check_margins,
    check_prompt_scores,
    check_rows,
    check_scores,
    check_sources,
    messages_at,
    of_part,
    prepare,
    prepare_pairs,
    read_pairs,
    usable_pairs,
    with_graded_part,
    with_source_weights,
)
from mmpo.train.data.reasons import or_reason
from mmpo.train.data.render import Rendered, Renderer
from mmpo.train.data.written import asked_behind
