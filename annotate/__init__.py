"""Gathering margins from LLM judges and from people: the package that joins the FEEDBACK table from the outside."""

from mmpo.annotate.agreement import agree
from mmpo.annotate.judge.options import Judge, JudgeOptions
from mmpo.annotate.judge.run import judge
from mmpo.annotate.replies import parse_reply
from mmpo.annotate.scales import PREFERENCE, Scale

__all__ = ["PREFERENCE", "Judge", "JudgeOptions", "Scale", "agree", "judge", "parse_reply"]
