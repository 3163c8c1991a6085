"""LLM judges: questions, rubrics and modes, expected grades, a run and its output."""

from mmpo.annotate.judge.capabilities import Abilities
from mmpo.annotate.judge.estimate import look
from mmpo.annotate.judge.modes import MODES, Asked, Row, messages_of
from mmpo.annotate.judge.options import Judge, JudgeOptions, check_judge_options, judges_of
from mmpo.annotate.judge.prompts import conversation_text, harmless, load_template, nonce_of
from mmpo.annotate.judge.questions import Questions
from mmpo.annotate.judge.reading import Choice, Token, expected, read, trimmed
from mmpo.annotate.judge.rubrics import RUBRICS, find_rubrics
from mmpo.annotate.judge.run import judge, prepared

__all__ = [
    "MODES",
    "RUBRICS",
    "Abilities",
    "Asked",
    "Choice",
    "Judge",
    "JudgeOptions",
    "Questions",
    "Row",
    "Token",
    "check_judge_options",
    "conversation_text",
    "expected",
    "find_rubrics",
    "harmless",
    "judge",
    "judges_of",
    "load_template",
    "look",
    "messages_of",
    "nonce_of",
    "prepared",
    "read",
    "trimmed",
]
