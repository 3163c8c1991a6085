"""What a judge of MT-bench is shown: prompts of our own (prompts.yaml), or those of a file of FastChat's, filled in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import yaml

from mmpo.annotate.judge.prompts import neutralise_chat_tokens, nonce_of
from mmpo.annotate.mt_bench.files import BenchQuestion
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.metrics import check_columns, file_rows
from mmpo.pipeline.storage import resolve_inputs, text_digest
from mmpo.pipeline.tables import Message

OWN = Path(__file__).with_name("prompts.yaml")
FASTCHAT = {
    "single": "single-v1", "reference": "single-math-v1",
    "two-turns": "single-v1-multi-turn", "two-turns-reference": "single-math-v1-multi-turn",
}  # fmt: skip
"""What FastChat calls the prompts of each kind."""
FIELDS = {
    "single": ("question", "answer"), "reference": ("question", "answer", "ref_answer_1"),
    "two-turns": ("question_1", "question_2", "answer_1", "answer_2"),
    "two-turns-reference": ("question_1", "question_2", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2"),
}  # fmt: skip
"""What the prompts of each kind may hold, the graded answer at least; ours a nonce too."""


@dataclass(frozen=True)
class JudgePrompt:
    """One prompt. parts: literal texts, each with the field that follows it (None at the end)."""

    name: str
    system: str
    parts: tuple[tuple[str, str | None], ...]

    def filled(self, values: Mapping[str, str]) -> str:
        """The prompt with its fields filled in; what is filled in is never looked at for fields."""
        return "".join(text + (values[field] if field is not None else "") for text, field in self.parts)


@dataclass(frozen=True)
class JudgePrompts:
    """The prompts of a run, by kind. source: whose they are, in words; digest: of all of them; own: ours, whose marks hold a nonce."""

    source: str
    digest: str
    own: bool
    by_kind: Mapping[str, JudgePrompt]

    def of(self, question: BenchQuestion, answers: Sequence[str], turn: int) -> tuple[JudgePrompt, list[Message]]:
        """The prompt for an answer, the last of those that are given, and its messages."""
        kind = (
            ("two-turns-reference" if turn == 2 else "reference") if question.references else "two-turns" if turn == 2 else "single"
        )
        prompt, seen = self.by_kind[kind], question.turns[:turn]
        texts = {f"question_{place}": text for place, text in enumerate(seen, 1)}
        texts |= {f"answer_{place}": text for place, text in enumerate(answers[:turn], 1)}
        texts |= {f"ref_answer_{place}": text for place, text in enumerate(question.references, 1)}
        texts |= {"question": seen[0], "answer": answers[0]}
        if self.own:
            texts = {name: neutralise_chat_tokens(text) for name, text in texts.items()}
            texts["nonce"] = nonce_of(str(question.id), list(texts.values()))
        system = [{"role": "system", "content": prompt.system}] if prompt.system.strip() else []
        return prompt, [*system, {"role": "user", "content": prompt.filled(texts)}]


def load_prompts(path: str | None) -> JudgePrompts:
    """Our own prompts, or those of a file in FastChat's layout. Raises UserError: another layout, a prompt or a field of one missing."""
    source = OWN if path is None else Path(path)
    if path is None:
        stored = yaml.safe_load(OWN.read_text(encoding="utf-8"))
        rows = {kind: stored[kind] for kind in FIELDS}
    else:
        rows = _fastchat(source)
    found = {}
    for kind, row in rows.items():
        fields = (*FIELDS[kind], *(("nonce",) if path is None else ()))
        found[kind] = JudgePrompt(row["name"], row["system_prompt"], _parts(source, row, fields))
    return JudgePrompts(
        "mmpo's own" if path is None else f"of the file {source.name}",
        text_digest(repr([(one.name, one.system, one.parts) for one in found.values()])),
        path is None,
        found,
    )


def _fastchat(path: Path) -> dict[str, Mapping[str, str]]:
    if not path.is_file():
        raise UserError(f"--judge-prompts {path}: there is no such file; it is FastChat's judge_prompts.jsonl")
    [file] = resolve_inputs([path], "mt-bench")
    named: dict[str, Mapping[str, str]] = {}
    columns = ("name", "system_prompt", "prompt_template")
    for number, row in file_rows(file):
        check_columns(f"{path}, row {number}", row, columns, "judge prompts")
        if not all(isinstance(row[name], str) for name in columns):
            raise UserError(f"{path}, row {number}: {', '.join(columns)} must be texts")
        named[row["name"]] = row
    missing = [name for name in FASTCHAT.values() if name not in named]
    if missing:
        raise UserError(f"--judge-prompts {path}: it lacks {', '.join(missing)}; prompts there: {', '.join(named) or 'none'}")
    return {kind: named[name] for kind, name in FASTCHAT.items()}


def _parts(path: Path, row: Mapping[str, str], fields: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    where = f"{path.name}, prompt {row['name']}"
    try:
        parts = tuple((text, field) for text, field, _, _ in Formatter().parse(row["prompt_template"]))
    except ValueError as error:
        raise UserError(f"{where}: its prompt_template is not as FastChat fills it in: {error}") from None
    used, answer = (
        {field for _, field in parts if field is not None},
        next(one for one in reversed(fields) if one.startswith("answer")),
    )
    if used - set(fields) or answer not in used:
        told = f"does not show {{{answer}}}" if answer not in used else f"asks for {', '.join(sorted(used - set(fields)))}"
        raise UserError(f"{where}: its prompt_template {told}; what it may hold: {{{'}, {'.join(fields)}}}")
    return parts
