"""A finished model for others: its card, the real name of what it was made of, and an adapter merged into its base."""

from mmpo.train.release.card import EndedRun, write_card
from mmpo.train.release.merge import MERGE_TYPES, merge
from mmpo.train.release.origin import origin_of
