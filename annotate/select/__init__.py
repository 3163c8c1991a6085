"""Which pairs deserve a person next: by what is known of their margins, by graders that disagree, by a head on frozen features."""

from mmpo.annotate.select.choose import in_order
from mmpo.annotate.select.head import LaplaceHead, fit_head
from mmpo.annotate.select.items import RecordItem, feedback_rows, item_of, pair_items, true_ids
from mmpo.annotate.select.known_margins import HUMAN, GradedPairs, KnownMargin, feedback_margins, graded_pairs, known_of
from mmpo.annotate.select.options import Features, SelectOptions
from mmpo.annotate.select.pool import CompletionTexts, Featurize, Pool
from mmpo.annotate.select.run import select
from mmpo.annotate.select.ways import SELECTIONS, Selection, expected_information
