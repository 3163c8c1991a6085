"""What a run of MT-bench has before the first request, and whose answers it grades."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmpo.annotate.client import Prices
from mmpo.annotate.generate.local import LocalEngine
from mmpo.annotate.generate.options import GenerateOptions, SampledModel
from mmpo.annotate.judge.options import Judge
from mmpo.annotate.mt_bench.files import TURNS, BenchQuestion
from mmpo.annotate.mt_bench.options import MtBenchOptions
from mmpo.annotate.mt_bench.prompts import JudgePrompts
from mmpo.annotate.mt_bench.requests import ModelAnswers, temperature_of

WITHOUT_REASON = "empty"
"""What an answer of a file is that says nothing."""
NOT_IN_FILE = "not_in_file"
"""What an answer is that a file of answers does not have; asking again would not bring it."""


@dataclass(frozen=True)
class Contestant:
    """A model with what it said. known: asked in this run; stored: of a file, by question."""

    name: str
    known: ModelAnswers = field(default_factory=ModelAnswers)
    stored: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def texts(self, question: BenchQuestion) -> Sequence[str]:
        """Its answers to a question, in the order of the turns; those that there are."""
        return self.stored.get(str(question.id)) or self.known.texts(question)

    def reasons(self, questions: Sequence[BenchQuestion]) -> Counter[str]:
        """How many of its answers were cut, refused, withheld or empty, or are not in its file."""
        asked = [one.reason for question in questions for one in self.known.turns.get(str(question.id), ()) if one.reason]
        empty = [WITHOUT_REASON for question in questions for text in self.stored.get(str(question.id), ()) if not text.strip()]
        return Counter([*asked, *empty, *[NOT_IN_FILE] * (self.missing(questions) if self.stored else 0)])

    def missing(self, questions: Sequence[BenchQuestion]) -> int:
        """Answers that there are not."""
        return sum(TURNS - len(self.texts(question)) for question in questions)


@dataclass(frozen=True)
class BenchPlan:
    """Everything that can be wrong has been looked at. local: engines, by their names; written: answers of files, by model and question;
    judges: by the names that stand in judgments; references: the file of them."""

    options: MtBenchOptions
    questions: Sequence[BenchQuestion]
    models: Sequence[SampledModel]
    local: Mapping[str, LocalEngine]
    written: Mapping[str, Mapping[str, Sequence[str]]]
    judges: Mapping[str, Judge]
    prompts: JudgePrompts
    prices: Prices
    journal: Path
    references: Path | None

    @property
    def hottest(self) -> GenerateOptions:
        """The options of an answer at the highest temperature of all, by which endpoints are tried."""
        return self.options.sampling(max(temperature_of(one, self.options) for one in self.questions))

    def contestants(self, known: Mapping[str, ModelAnswers]) -> list[Contestant]:
        """All models of the run with their answers. known: of those that were asked, by name."""
        stored = [Contestant(name, stored=answers) for name, answers in self.written.items()]
        return [*stored, *(Contestant(one.name, known.get(one.name, ModelAnswers())) for one in self.models)]

    def graded(self, models: Sequence[Contestant]) -> Iterator[tuple[Contestant, BenchQuestion, int]]:
        """Every answer that a judge grades: whose, to which question, in which turn (1 or 2)."""
        for model in models:
            for question in self.questions:
                yield from ((model, question, turn) for turn in range(1, len(model.texts(question)) + 1))
