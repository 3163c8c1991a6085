"""LLM judges: questions, rubrics and modes, expected grades, a run and its output."""

from mmpo.annotate.judge.capabilities import Capabilities
from mmpo.annotate.judge.estimate import estimate, rendered
from mmpo.annotate.judge.modes import MODES, Question, offered
from mmpo.annotate.judge.options import Judge, JudgeOptions, judges_of
from mmpo.annotate.judge.prompts import conversation_text, load_template, neutralise_chat_tokens, nonce_of
from mmpo.annotate.judge.questions import Questions
from mmpo.annotate.judge.reading import Reader, Reading, combined, expected
from mmpo.annotate.judge.rubrics import RUBRICS, find_rubrics
from mmpo.annotate.judge.run import judge, prepared
