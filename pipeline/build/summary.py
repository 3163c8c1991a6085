"""What a build says at its end, so that nothing passes unseen: two of its pairs in words, and what a reader of the margins should know."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmpo.pipeline.arrow import flat
from mmpo.pipeline.build.options import BuildOptions
from mmpo.pipeline.build.resolve import ResolvedBuild
from mmpo.pipeline.grades.rater_effects import RaterAgreement
from mmpo.pipeline.grades.statistics import GradeGroup
from mmpo.pipeline.sources import get_source
from mmpo.pipeline.tables import SPLITS, as_text

EXAMPLES = 2
EXAMPLE_CHARACTERS = 200
SAME_SCALE_TIMES = 5.0
"""Raters without a declared scale whose grades range so many times as far as others' are taken to use another one."""
LEAST_GRADES = 10
"""Of a rater before it is said that all of them are the same."""
MOST_NAMES = 5


class Example(NamedTuple):
    """A pair in words, its texts cut short; what it is chosen by comes first."""

    negative_margin: float
    ids: tuple[str, str]
    prompt_id: str
    better: str
    worse: str

    def as_json(self) -> dict[str, str | float]:
        """{"better", "worse", "margin"}."""
        return {"better": self.better, "worse": self.worse, "margin": -self.negative_margin}


def with_examples(examples: Sequence[Example], pairs: pa.Table) -> list[Example]:
    """The examples, unless pairs of a table of PAIRS have larger margins: then these, of two prompts."""
    margins = np.asarray(flat(pairs["quality_margin"]))
    most = min(50 * EXAMPLES, len(margins))
    if not most or (len(examples) == EXAMPLES and -margins.max() > examples[-1].negative_margin):
        return list(examples)
    rows = np.flatnonzero(margins >= np.partition(margins, -most)[-most])
    rows = rows[np.argsort(-margins[rows], kind="stable")][:most]
    best: dict[str, tuple[float, tuple[str, str], int]] = {}
    for row, one in zip(rows.tolist(), pairs.select(["chosen_id", "rejected_id", "prompt_id"]).take(pa.array(rows)).to_pylist()):
        new = (-float(margins[row]), (one["chosen_id"], one["rejected_id"]), row)
        best[one["prompt_id"]] = min(best.get(one["prompt_id"], new), new)
        if len(best) == EXAMPLES:
            break
    more = [
        Example(*new[:2], prompt, *(_shown(pairs[side][new[2]]) for side in ("chosen", "rejected"))) for prompt, new in best.items()
    ]
    return largest([*examples, *more])


def _shown(reply: pa.Scalar) -> str:
    return as_text(reply.as_py()[0])[:EXAMPLE_CHARACTERS]


def largest(examples: Sequence[Example]) -> list[Example]:
    """Two of them, of two prompts: those of the largest margins, by ids where they are equal."""
    by_prompt: dict[str, Example] = {}
    for example in sorted(examples):
        by_prompt.setdefault(example.prompt_id, example)
    return list(by_prompt.values())[:EXAMPLES]


def sides_of(positions: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct positions of first user messages, and for each the bits of all sides that it lies on."""
    distinct, inverse = np.unique(positions, return_inverse=True)
    joined = np.zeros(len(distinct), dtype=np.int8)
    np.bitwise_or.at(joined, inverse, sides)
    return distinct, joined


def doubtful_raters(build: ResolvedBuild) -> dict[str, RaterAgreement]:
    """The raters whose agreement with the others may be none, or is below 0."""
    return {name: one for name, one in build.agreement.items() if one.low <= 0}


def rater_warnings(build: ResolvedBuild) -> list[str]:
    """What the user should know of the raters and their scales, one sentence each."""
    found = _of_scales(build)
    what = "grade" if build.rules.evidence == "ratings" else "gap"
    alike = [group for group in build.groups if _same_grades(build, group)]
    varied = {group.rater for group in build.groups if group not in alike}
    if alike and what == "gap" and len(alike) == len(build.groups):
        if not get_source(build.options.format).range.startswith("none"):  # which is said of such formats
            found.append("every gap is the same, by whoever gave it: margins say which reply is better, and not by how much")
    elif alike:
        for names in (sorted({one.rater for one in alike} - varied), sorted({one.rater for one in alike} & varied)):
            aspects = sorted({one.aspect for one in alike if one.rater in names and one.rater in varied})
            inside = f" in {', '.join(aspects)}" if aspects else ""
            found += [f"{_names(names)}: gave everything the same {what}{inside}"] if names else []
    doubtful = doubtful_raters(build)
    for name, one in list(doubtful.items())[:MOST_NAMES]:
        how = "goes against the others" if one.high < 0 else "can't be told from chance by the others' grades"
        found.append(
            f"rater {name!r} {how} (correlation {one.correlation:.2f}, 95% {one.low:.2f} to {one.high:.2f}, {one.items:,} items): is its "
            "scale the other way round? --rater narrows the raters"
        )
    if len(doubtful) > MOST_NAMES:
        found.append(f"{len(doubtful) - MOST_NAMES:,} more raters who go against the others or can't be told from chance")
    return found


def warnings_of(
    build: ResolvedBuild,
    rows: Mapping[str, int],
    ties: int,
    unwitnessed: int,
    first_messages: np.ndarray,
    sides: np.ndarray,
    of_raters: Sequence[str],
) -> list[str]:
    """What the user should know of the margins, one sentence each, the gravest first. of_raters: of `rater_warnings`."""
    pairs, prompts = sum(rows.values()), len(first_messages)
    found = []
    if unwitnessed:
        found.append(
            f"{unwitnessed:,} of {pairs:,} pairs have a margin that no rater witnessed: nobody graded both sides (raters 0), so that it "
            "may be two raters' taste. --min-raters 1 leaves them out"
        )
    found += of_raters
    if ties == pairs:
        found.append(f"all {pairs:,} pairs are ties: every margin is 0, and nothing can be learned from them")
    empty = [name for name, share in zip(SPLITS, build.options.split, strict=True) if share and not rows[name]]
    if empty:
        by = build.options.split_by
        what = (
            f"{prompts:,} distinct first user message{'s' if prompts != 1 else ''}" if by == "first-message" else f"--split-by {by}"
        )
        other = ", or another rule: --split-by prompt or column:NAME" if by == "first-message" else ""
        found.append(
            f"{' and '.join(empty)} hold{'s' if len(empty) == 1 else ''} no pair: splits follow {what}. Add prompts{other}"
        )
    crossing = int((np.bitwise_count(sides) > 1).sum()) if len(sides) else 0
    if build.options.split_by == "prompt" and crossing:
        found.append(
            f"{crossing:,} first user messages lie in more than one split: turns of one conversation may be trained and tested on"
        )
    return found


def same_answer_warnings(found: Mapping[str, int], pairs: int) -> list[str]:
    """What to say of pairs whose replies differ in nothing but one of `answers.DIFFERS`."""
    advice = {
        "thinking": "the grades may be of the same answer; --graded-part answer leaves them out",
        "white space": "a template may write both alike; --graded-part answer leaves them out",
    }
    return [f"{n:,} of {pairs:,} pairs differ in nothing but {name}: {advice[name]}" for name, n in found.items() if n]


def many_pairs_warnings(found: Sequence[tuple[int, int, str]], pairs: int) -> list[str]:
    """What to say of prompts that have very many pairs: pairs, completions and id of each."""
    if not found:
        return []
    most, completions, name = max(found)
    others = f", as those of {len(found) - 1:,} more prompts" if len(found) > 1 else ""
    return [
        f"prompt {name} has {completions:,} completions, which make {most:,} of the {pairs:,} pairs; they were in memory at once whatever "
        f"--memory says{others}. --max-per-prompt keeps fewer, --strategy adjacent or best-worst makes fewer"
    ]


def _same_grades(build: ResolvedBuild, group: GradeGroup) -> bool:
    moments = build.statistics.groups[group]
    return moments.count >= LEAST_GRADES and moments.least == moments.most


def _of_scales(build: ResolvedBuild) -> list[str]:
    """Raters of one aspect without a declared scale whose grades range much farther than others'."""
    if build.options.normalise not in ("none",):
        return []
    by_aspect: dict[str, list[tuple[float, GradeGroup]]] = {}
    for group in build.groups:
        moments = build.statistics.groups[group]
        if (group.low is None or group.high is None) and moments.most > moments.least:
            by_aspect.setdefault(group.aspect, []).append((moments.most - moments.least, group))
    found = []
    for aspect, ranges in by_aspect.items():
        (narrow, first), (wide, last) = min(ranges), max(ranges)
        if wide >= SAME_SCALE_TIMES * narrow:
            found.append(
                f"no scale is declared, and the grades of {aspect!r} do not look like one: rater {first.rater!r} "
                f"{_range(build, first)}, rater {last.rater!r} {_range(build, last)}. Declare scales with --scale in builds of their own "
                "and --normalise minmax, or use --normalise zscore or rank"
            )
    return found


def _range(build: ResolvedBuild, group: GradeGroup) -> str:
    moments = build.statistics.groups[group]
    return f"grades {moments.least:g} to {moments.most:g}"


def _names(names: Sequence[str]) -> str:
    distinct = sorted(set(names))
    more = f" and {len(distinct) - MOST_NAMES} more" if len(distinct) > MOST_NAMES else ""
    return f"rater{'s' if len(distinct) > 1 else ''} {', '.join(map(repr, distinct[:MOST_NAMES]))}{more}"


REMEDIES = {
    "identical_texts": "both replies say the same, so that there is no margin",
    "identical_answers": "both replies give the same answer; --thinking keep with --graded-part all keeps them",
    "thinking_only": "a reply is thinking without an answer; --thinking keep with --graded-part all keeps them",
    "different_prompts": "chosen and rejected reply to different prompts; write both replies under one prompt",
    "several_messages": "a reply is one message; put those before it into the prompt, where both replies share them",
    "history_unknown": "turns before which it is not known what was said: no reply there is the chosen one, or they are not in the file",
    "grade_of_unknown_history": "grades of these turns",
    "no_grade": "an empty grade; --columns names another column, --feedback-only reads rows without grades, for a judge or people to grade",
    "chosen_scored_lower": "--fix-known-defects keeps them as their scores say",
    "grade_not_chosen": "--from, --kind, --rater and --aspect say which grades are used",
    "single_completion": "prompts with one reply; a pair takes two of one prompt",
    "not_drawn": "prompts that the share of their source leaves out",
    "completion_of_undrawn_prompt": "replies to prompts that are not drawn",
    "grade_of_undrawn_prompt": "grades of prompts that are not drawn",
    "in_earlier_source": "the same two replies are a pair of a source named before",
    "no_pair": "prompts whose pairs were all left out",
    "tie": "margin 0; --ties keep keeps them",
    "over_long": "longer than --max-chars",
    "too_short": "a reply shorter than --min-chars",
    "too_many_tokens": "prompt and reply longer than --max-tokens",
    "other_language": "in another language than --language names",
    "reply_in_other_language": "a reply in another language than --language names",
    "contaminated": "more than --decontaminate-share of an evaluation prompt is in them",
    "same_prompt": "prompts with the words of another, which stays",
    "near_duplicate_prompt": "prompts nearly the same as another, which stays (--similarity)",
    "in_two_splits": "prompts nearly the same as one of a later split, which stays",
    "near_duplicate_replies": "both replies are nearly the same (--similarity)",
    "duplicate_pair": "replies nearly those of another pair of the prompt, which stays",
    "grade_of_dropped_prompt": "grades of prompts that a filter left out",
    "completion_of_dropped_prompt": "replies to prompts that a filter left out",
    "min_margin": "a margin below --min-margin",
    "min_raters": "fewer raters who graded both sides than --min-raters",
    "rater_missing": "one of --agree-between did not grade both sides",
    "raters_disagree": "the raters of --agree-between prefer different sides",
}
"""Of reasons for which something was left out: what it is, and what keeps it."""
MOST_REASONS = 6


def left_out(dropped: Mapping[str, int]) -> str:
    """How much was left out for what reason, most first, and what keeps it.

    >>> left_out({"tie": 3, "not_text": 1000})
    'not_text 1,000; tie 3 (margin 0; --ties keep keeps them)'
    """
    found = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{reason} {n:,}{f' ({REMEDIES[reason]})' if reason in REMEDIES else ''}" for reason, n in found[:MOST_REASONS]]
    return "; ".join([*shown, *([f"and {len(found) - MOST_REASONS} more reasons"] if len(found) > MOST_REASONS else [])])


def saturation_warnings(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What to know of grades that a source's own transform cut off; found: of `saturated`."""
    return [
        f"{source}: {one['at_ends']:,} of {one['grades']:,} grades were clipped at the end of their range (--clip): among them "
        "differences are lost"
        for source, one in found.items()
        if one["transform"] and one["at_ends"]
    ]


NOTED = {
    "null_before_scores": "in {n:,} rows a null stands before scores in a list: lists are joined by place, so that where the writer "
    "numbered the grades by place (distilabel's UltraFeedback task does) they may stand one reply off",
    "prompt_in_replies": "in {n:,} rows both replies begin with the whole prompt: it would be trained on as a part of them; cut it off, or "
    "leave the column `prompt` out and give turns",
    "system_of_one_word": "in {n:,} of {lines:,} rows the column `system` is a single word, and was read as the system message of the "
    "prompt: where it says who answered, replies of different systems make no pairs; --columns model=system reads it as the model",
    "template_marks": "{n:,} prompts begin with the marks of a chat template, such as <|im_start|>: a whole chat is taken for one text of "
    "the user, and a model's own template will stand around it; give it as messages",
    **{
        f"{key}_left_out": f"of {{n:,}} messages the {key} was left out: it is no text, not the assistant's, or a second one"
        for key in ("reasoning_content", "reasoning", "thinking")
    },
    "name_left_out": "of {n:,} messages the name was left out: it says who speaks or which tool answers, and no part of what it says",
    "margins_beside_scores": "in {n:,} rows a margin or its standard error stands beside two scores: the scores were read and pairs made "
    "of them anew, with those that had been left out and no standard errors of before; --columns margin=quality_margin,spread=margin_se "
    "reads what stands there (the names of the columns as they are)",
    "keys_left_out": "of {n:,} messages keys were left out that no message here holds (reasoning_details, refusal, calls of a user, ...)",
    "remarks_left_out": "{n:,} remarks (text areas) were left out: they are no grades",
    "other_results_left_out": "of {n:,} annotations results of other tags (marks in texts, relations, ...) were left out",
    "predictions_left_out": "of {n:,} tasks the models' predictions were left out: only what people answered is read",
    "suggestions_left_out": "of {n:,} records the suggestions were left out: only what people answered is read",
    "argilla_status_unknown": "of {n:,} answers it is not known whether they were submitted: Argilla's records do not say so, and only "
    "those of completed records were read; to_datasets() has the status of each",
    "evaluation_not_completed": "{n:,} samples are of an evaluation that was cancelled or ended in an error: what had been graded is read",
    "corrected_scores": "{n:,} scores were corrected in the log: the corrected ones are read",
    "steps_left_out": "in {n:,} samples the model answered more than once, with tools or in turns: only the last answer is the reply",
    "output_as_json": "{n:,} outputs are objects, which are read as JSON text",
    "rounded_scores": "{n:,} scores were rounded to two digits where they were written (promptfoo's CSV): JSON has them as they were given",
    "ratings_reread": "in {n:,} rows distilabel's ratings differ from what the judge wrote under each reply's number, which was read "
    "in their place: it numbers ratings by their place in the judge's reply, and cuts decimals off",
    "ranking_in_display_order": "{n:,} rankings are in the order in which the items were shown, as a Ranker that nobody touched is "
    "sent: many of them speak of answers that were never given",
    "chosen_below_rejected": "in {n:,} of {lines:,} rows the chosen reply has the lower score, so that the rejected one is taken as the "
    "better one: where low scores are good, --format trl --columns score_chosen=-COLUMN,score_rejected=-COLUMN turns them",
    "margin_below_zero": "in {n:,} of {lines:,} rows the margin is below 0, so that the rejected reply is taken as the better one: where "
    "that is not meant, --columns margin=-COLUMN turns the sign",
    "constant_margins": "{n:,} rows say only which reply is better: their margins are all 1, and say nothing of how much; a judge or a "
    "reward model can grade them (--feedback-only reads them without grades)",
    "ids_of_other_texts": "in {n:,} rows prompt_id, first_id and second_id are not those of the texts that stand there: the texts are read",
    "evaluation_set": "{n:,} rows are an evaluation set's: what is trained on them can no longer be measured by it",
    "truthful_qa_prompts": "{n:,} prompts are TruthfulQA's: what is trained on them can no longer be measured by it; --decontaminate FILE "
    "leaves out what the file's evaluation prompts stand in",
    "both_bad": "in {n:,} rows both replies were called bad: they are ties at 0 (--ties drop leaves ties out)",
    "end_mark_cut": "from {n:,} replies the mark <|end_of_text|> was cut off",
    "thinking_apart": "{n:,} replies carry their thinking apart from their text (reasoning_content), which is kept as part of what was "
    "graded: --thinking drop leaves it out, --graded-part answer says that the grades are of the answers alone",
}
"""What is said of what the sources note about rows that are kept."""
SYSTEM_NAMES = {"system", "system prompt", "system message", "context", "instructions", "persona"}
"""Names, in small letters, of columns that may hold a system text; `system` itself is read."""


def reading_warnings(
    noted: Mapping[str, int], unused: Mapping[str, tuple[str, ...]], options: BuildOptions, lines: int
) -> list[str]:
    """What the user should know of the input that was read, a line each. noted: what the sources noted, by name;
    unused: file → its columns that nothing reads; lines: how many were read. What the options decide is not asked again.
    """
    decided = {"thinking_apart"} if options.thinking != "keep" or options.graded_part != "all" else set()
    found = [NOTED.get(name, name + ": {n:,}").format(n=n, lines=lines) for name, n in sorted(noted.items()) if name not in decided]
    files: dict[tuple[str, ...], list[str]] = {}
    for name, columns in unused.items():
        files.setdefault(columns, []).append(name)
    for columns, names in files.items():
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        found.append(f"{names[0]}{others}: columns that are not read: {', '.join(map(repr, columns))}")
        if seen := [column for column in columns if column.casefold().replace("_", " ") in SYSTEM_NAMES]:
            found[-1] += f" (if graders saw {seen[0]!r}, --columns system={seen[0]} puts it before the prompt)"
    return found
