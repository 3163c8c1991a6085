"""From one value per completion to PAIRS: which pairs, their margins and errors, filters, splits."""

from mmpo.pipeline.pairs.choose import RaterGaps, choose_pairs, rater_gaps
from mmpo.pipeline.pairs.filters import FILTERS, filtered_prompts
from mmpo.pipeline.pairs.splits import check_shares, first_user_messages, split_of_prompts, split_position
from mmpo.pipeline.pairs.strategies import STRATEGIES, all_pairs
from mmpo.pipeline.pairs.table import ChosenPairs, pairs_table
from mmpo.pipeline.pairs.uncertainty import own_gaps
