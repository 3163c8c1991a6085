"""Gathering margins from LLM judges and from people: the package that joins the FEEDBACK table from the outside."""

from mmpo.annotate.agreement import agree
from mmpo.annotate.calibrate import CalibrateOptions, calibrate
from mmpo.annotate.generate import GenerateOptions, generate
from mmpo.annotate.judge import Judge, JudgeOptions, judge
from mmpo.annotate.mt_bench import MtBenchOptions, mt_bench, mt_bench_judgments
from mmpo.annotate.replies import parse_reply
from mmpo.annotate.scales import PREFERENCE, Scale
from mmpo.annotate.select import SelectOptions, select

__all__ = [
    "PREFERENCE",
    "CalibrateOptions",
    "GenerateOptions",
    "Judge",
    "JudgeOptions",
    "MtBenchOptions",
    "Scale",
    "SelectOptions",
    "agree",
    "calibrate",
    "generate",
    "judge",
    "mt_bench",
    "mt_bench_judgments",
    "parse_reply",
    "select",
]


def __dir__() -> list[str]:
    return sorted(__all__)
