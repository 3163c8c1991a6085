"""The page of MT-bench: models with their means and intervals, by turn and by category; who was graded by whom, with which prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpo.pipeline.report import Picture, draw, number, points, render, table, with_interval, write_whole

DIGITS = 2
"""Of means: further ones say nothing of eighty questions."""


def write_page(summary: Mapping[str, Any], out: Path) -> Path:
    """Write the page of what `mt_bench` or `mt_bench_judgments` returned to the file `out` and return it."""
    rows: Sequence[Mapping[str, Any]] = summary["models"]
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["categories"]))
    means, by_kind = shown_rows(rows)
    named = dict.fromkeys(row["judge"] for row in rows)
    values = {
        "title": "MT-bench",
        "about": f"{', '.join(dict.fromkeys(row['model'] for row in rows))}; judged by {judges(rows)}",
        "numbers": [
            ("questions", number(summary["questions"])),
            ("models", number(len({row["model"] for row in rows}))),
            ("scores", number(sum(row["scores"] for row in rows))),
            ("without a score (−1)", number(sum(sum(row["unreadable"].values()) for row in rows))),
        ],
        "sentences": [*_how(summary), *summary["warnings"]],
        "means": _table(means),
        "kinds": _table(by_kind) if by_kind else None,
        "counted": _table([line for row in rows for line in _counted(row)]),
        "plots": [_picture(judge, [row for row in rows if row["judge"] == judge], kinds) for judge in named] if kinds else [],
    }
    return write_whole(out, render("mt_bench.html.j2", values))


def shown_rows(models: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The means of every judge and model, and those by category (none where no category is known), in words."""
    kinds = dict.fromkeys(kind for row in models for kind in row["categories"])
    by_kind = [
        _names(row)
        | {kind: with_interval(row["categories"][kind], "mean", DIGITS) if kind in row["categories"] else "–" for kind in kinds}
        for row in models
    ]
    return [_means(row) for row in models], by_kind if kinds else []


def _means(row: Mapping[str, Any]) -> dict[str, str]:
    behind = row["behind"]
    return _names(row) | {
        "mean": with_interval({**row, "mean_95": row["interval"]}, "mean", DIGITS), "turn 1": with_interval(row, "turn1", DIGITS),
        "turn 2": with_interval(row, "turn2", DIGITS), "scores": number(row["scores"]),
        "without a score": number(sum(row["unreadable"].values())),
        "behind the best": "" if behind is None else with_interval(behind, "difference", DIGITS).replace("-", "−"),
    }  # fmt: skip


def judges(rows: Sequence[Mapping[str, Any]]) -> str:
    """The judges' names."""
    return ", ".join(dict.fromkeys(row["judge"] or "an unnamed judge" for row in rows)) or "nobody"


def _names(row: Mapping[str, Any]) -> dict[str, str]:
    return {"judge": row["judge"] or "–", "model": row["model"]}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return table(list(rows[0]) if rows else [], rows, text=("judge", "model", "what", "reason"))


def _how(summary: Mapping[str, Any]) -> list[str]:
    """How answers came about and were graded."""
    if "prompts" not in summary:
        return ["The judgments were read from files; nobody was asked anything."]
    prompts, references = summary["prompts"], summary["references"]
    told = [f"The judge's prompts are {prompts['source']}: {', '.join(prompts['names'])} (digest {prompts['digest'][:12]})."]
    against = (
        f"those of {references['questions']} questions against references" if references["questions"] else "without references"
    )
    told.append(f"Answers were graded one at a time, from 1 to 10, {against}; of a second turn the judge sees the first one too.")
    for name, one in summary["sampled"].items():
        kinds: dict[Any, list[str]] = {}
        for kind, temperature in one["temperature"].items():
            kinds.setdefault(temperature, []).append(kind)
        words = "; ".join(f"{'no temperature sent' if t is None else f'{t:g}'}: {', '.join(own)}" for t, own in kinds.items())
        told.append(f"{name}: answers of at most {one['max_tokens']:,} tokens, sampled at the temperatures {words}.")
    for row in summary["models"]:
        if row.get("characters") is not None:
            told.append(f"{row['model']}: answers of {row['characters']:,.0f} characters on average.")
    return list(dict.fromkeys(told))


def _counted(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was cut, refused, empty, unreadable, failed or not asked."""
    parts = {
        "judgments without a score": row["unreadable"],
        "answers": row.get("answers", {}),
        "requests that failed": row.get("failed", {}),
    }
    if row.get("left"):
        parts["not there"] = {"not asked yet": row["left"]}
    return [
        {**_names(row), "what": what, "reason": reason, "count": count}
        for what, own in parts.items()
        for reason, count in own.items()
    ]


def _picture(judge: str, rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Picture:
    def plot(axes: Any) -> None:
        for place, row in enumerate(rows):
            own = [(at, row["categories"][kind]) for at, kind in enumerate(kinds) if kind in row["categories"]]
            own = [(at, one) for at, one in own if one["mean"] is not None]
            shift = (place - (len(rows) - 1) / 2) * min(0.8 / len(rows), 0.14)
            look = {"linestyle": "none", "marker": "o", "markersize": 4, "elinewidth": 1.2}
            points(axes, place, [at + shift for at, _ in own], [one for _, one in own], "mean", row["model"], **look)
        axes.set(ylabel="score", ylim=(0.7, 10.3))
        axes.set_xticks(range(len(kinds)), kinds)
        axes.legend(fontsize=8.5, ncols=min(4, len(rows)))

    caption = f"Mean score by category, with 95% intervals over questions; judge: {judge or 'not named'}."
    return draw(f"mt-bench-{judge}", caption, plot, size=(11.0, 3.6))
