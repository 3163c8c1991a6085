"""Many requests to several models: options, journal, budget, progress, Ctrl-C; what judging and generating share."""

from mmpo.annotate.asking.asker import Asker, Counts, Endpointlike
from mmpo.annotate.asking.options import (
    SHARED,
    AskingOptions,
    asked_models,
    check_prices,
    journal_of,
    json_object,
    keys_of_model,
    recorded,
)
from mmpo.annotate.asking.run import (
    MAX_REJECT_REPLY,
    Ask,
    Progress,
    ask_all,
    folded,
    most_common,
    patient,
    refuse,
    to_its_end,
)
