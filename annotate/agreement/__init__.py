"""Agreement among raters in margins, and of judges with people."""

from mmpo.annotate.agreement.against import votes
from mmpo.annotate.agreement.agree import agree
from mmpo.annotate.agreement.margins import read_margins
from mmpo.annotate.agreement.patterns import patterns, signed_ranks
from mmpo.annotate.agreement.statistics import OF_TWO, agreement_of_all, agreement_of_two, rank_correlation

__all__ = [
    "OF_TWO",
    "agree",
    "agreement_of_all",
    "agreement_of_two",
    "patterns",
    "rank_correlation",
    "read_margins",
    "signed_ranks",
    "votes",
]
