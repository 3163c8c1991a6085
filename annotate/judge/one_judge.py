"""One judge at work: the questions that have no usable answer yet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from mmpo.annotate.asking import Asker
from mmpo.annotate.client import Answer, Failure, Request
from mmpo.annotate.judge.options import JudgeOptions
from mmpo.annotate.judge.questions import Questions, usable
from mmpo.annotate.rows import Feedback

ROWS_AT_ONCE = 32


@dataclass(eq=False, kw_only=True)
class JudgeRun(Asker):
    """Asks one judge everything that the journal has no answer to."""

    questions: Questions
    feedback: Feedback

    def checked(self, request: Request, outcome: Answer | Failure) -> Answer | Failure:
        """An answer with the grades that were read in it."""
        return self.questions.checked(request, outcome)

    def chunks(self) -> Iterator[tuple[list[Request], int]]:
        """Rows are read and rendered in the order of the input."""
        reference = cast(JudgeOptions, self.options).reference
        for rows in self.feedback.rows(ROWS_AT_ONCE, scores=self.questions.needs_scores, reference=reference):
            requests = [request for row in rows for posed in self.questions.of(row) for request in posed.requests]
            left = requests
            if self.options.cache:
                replies = self.questions.known(requests, self.journal).replies
                left = [request for request in requests if not usable(replies.get(request.key))]
            yield left, len(requests) - len(left)
