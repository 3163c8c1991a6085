"""What the tests of sources share: files and single rows through a format, and what became of them."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmpo.pipeline.arrow import narrow, with_texts
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.options import options_from
from mmpo.pipeline.sources import Collected, FeedbackBuilder, FormatSample, SourceOptions, collect, get_source
from mmpo.pipeline.storage import plan, resolve_inputs

DATA = Path(__file__).parents[2] / "data"


def sample_options(format: str, sample: FormatSample, **more: Any) -> BuildOptions:
    """The options of a build of a format's sample."""
    words = sample.options.split()
    given = {flag[2:].replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    return options_from(BuildOptions, {"format": format, "workers": 1, **given, **more})


def collected(path: Path, format: str, **options: Any) -> Collected:
    """A file of one chunk, each row with its texts."""
    source = get_source(format)
    (chunk,) = plan(resolve_inputs([path], format), whole=source.joined is not None)
    found = collect(chunk, source, SourceOptions(**options))
    return replace(found, feedback=with_texts(found.feedback))


class Added(NamedTuple):
    """A FEEDBACK row, unit and reason of what was dropped of its input row, and whether that is limited."""

    row: dict[str, Any]
    rejects: list[tuple[str, str]]
    limited: bool

    @property
    def ratings(self) -> list[tuple[Any, ...]]:
        """Completion, rater, kind, aspect, score, low and high of each."""
        names = ("completion", "rater", "kind", "aspect", "score", "low", "high")
        return [tuple(rating[name] for name in names) for rating in self.row["ratings"]]

    @property
    def gaps(self) -> list[tuple[Any, ...]]:
        """First, second, gap, limit, rater and kind of each comparison."""
        return [
            tuple(gap[name] for name in ("first", "second", "gap", "limit", "rater", "kind")) for gap in self.row["comparisons"]
        ]

    def told(self) -> dict[str, Any]:
        """What else there is to say."""
        completions, ratings = self.row["completions"], self.row["ratings"]
        return {
            "prompt": self.row["prompt"],
            "texts": [completion["text"] for completion in completions],
            "models": [completion["model"] for completion in completions],
            "notes": [rating["note"] for rating in ratings],
            "extra": json.loads(self.row["extra"] or "null"),
            "limited": self.limited,
        }


def add(format: str, row: Mapping[str, Any], **options: Any) -> Added:
    """One row of a file people.jsonl."""
    out = FeedbackBuilder(format)
    out.at("folder/people.jsonl", 1)
    get_source(format).parser(row.keys(), SourceOptions(**options), "folder/people.jsonl")(row, out)
    [feedback] = narrow(out.finish()).to_pylist()
    return Added(feedback, [(reject[0], reject[2]) for reject in out.rejects], bool(out.limited_rows))


def graded_texts(result: Collected) -> list[tuple[Any, ...]]:
    """Every grade in words, in the order of the rows: prompt (its messages joined by |), completion, score, rater and aspect of ratings;
    prompt, first, second, gap, rater and aspect of comparisons."""
    found: list[tuple[Any, ...]] = []
    for row in result.feedback.to_pylist():
        prompt = "|".join(message["content"] for message in row["prompt"])
        texts = [completion["text"] for completion in row["completions"]]
        found += [(prompt, texts[one["completion"]], one["score"], one["rater"], one["aspect"]) for one in row["ratings"]]
        found += [
            (prompt, texts[one["first"]], texts[one["second"]], one["gap"], one["rater"], one["aspect"])
            for one in row["comparisons"]
        ]
    return found


def reasons(result: Collected) -> dict[str, int]:
    """How often what was dropped for which reason."""
    return dict(Counter(result.rejects["reason"].to_pylist()))


def ultrafeedback(**completion: Any) -> dict[str, Any]:
    """A row of UltraFeedback with one completion, its fields changed."""
    annotations = {
        "helpfulness": {"Type": ["1"], "Rationale": "why type", "Rating": "2", "Rationale For Rating": "why 2"},
        "honesty": {"Rating": "N/A", "Rationale": "creative"},
        "truthfulness": [{"Rating": "4"}, {"Rating": "3.5"}],
        "instruction_following": {"Rating": 5, "Rationale": None},
    }
    full = {"model": "m", "response": "reply", "critique": "fine", "overall_score": 7.5, "annotations": annotations}
    return {"source": "sharegpt", "instruction": "Ask", "completions": [{**full, **completion}]}
