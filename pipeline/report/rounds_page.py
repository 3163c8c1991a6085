"""The page of a loop: what the policy of every round gained on held-out prompts, and how far its graders could be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpo.pipeline.report.page import Picture, draw, number, points, render, table, with_interval, write_whole

MEASURE, GAIN, LEFT_OUT = "measure", "measure gain", "left out"
TRUST = (
    "round",
    "grader",
    "human pairs",
    "agreement",
    "nats raw",
    "nats calibrated",
    "ECE raw",
    "ECE calibrated",
    "map",
    "γ",
    "used",
)


def rounds_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Two tables, a row per policy in words. "replies": what of its replies is left out; "policies": its measure, its gains over the start
    by the measure and by each grader, each with the number of prompts that it is over, pairs, accuracy, cost."""

    def over(row: Mapping[str, Any], name: str, prompts: str) -> str:
        count = row.get(prompts)
        return with_interval(row, name) + ("" if count is None else f" ({count:,})")

    graders = list(dict.fromkeys(name for row in rows for name in row["gains"]))
    has = any(row.get("measure") is not None for row in rows)
    replies, policies = [], []
    for row in rows:
        which, known = {"policy": row["run"], "round": row["round"]}, row.get("replies", {})
        reasons = [f"{name} {count:,}" for name, count in sorted(known.get("left_out", {}).items(), key=lambda item: -item[1])]
        left_out = {LEFT_OUT: ", ".join(reasons) or number(0 if known else None)}
        counts = {"asked": "requests", "replies": "kept", "repeated": "repeated", "prompts without": "without_reply"}
        replies.append({**which, **{name: known.get(key) for name, key in counts.items()}, **left_out})
        measures = {MEASURE: over(row, "measure", "measure_prompts"), GAIN: over(row, "measure_gain", "measure_gain_prompts")}
        gains = {f"gain by {name}": over(row["gains"].get(name, {}), "gain", "prompts") for name in graders}
        of_pairs = {"pairs": row.get("pairs"), "accuracy on pairs": with_interval(row, "accuracy")}
        spent = {"asked of judges": row.get("requests"), "cost so far, $": row.get("cost")}
        policies.append({**which, **(measures if has else {}), **gains, **of_pairs, **spent})
    return {"replies": replies, "policies": policies}


def write_rounds(rows: Sequence[Mapping[str, Any]], out: str | Path, title: str) -> Path:
    """Write the page to the file `out` (PNGs of its plots beside it, OUT.NAME.png) and return it.

    rows: one per policy and round, the start's first, as `mmpo run` keeps them in rounds.json: "run", "round", "replies"
    {"requests", "kept", "repeated", "left_out" by reason, "without_reply"}, "gains" {grader: {"gain", "gain_95", "prompts"}}, "measure",
    "measure_prompts", "measure_gain", "measure_gain_prompts", "pairs", "accuracy", "graders" {grader: what calibration found}, "requests",
    "cost"; absent figures are shown as a dash. UserError where the page can't be written.
    """
    page, shown = Path(out), rounds_tables(rows)
    policies = list(dict.fromkeys(row["run"] for row in rows if row["round"]))
    pictures = [picture for picture in (_measures(rows, policies), _gains(rows, policies)) if picture is not None]
    for picture in pictures:
        write_whole(page.with_name(f"{page.stem}.{picture.name}.png"), picture.png)
    trust = [
        {
            "round": row["round"] if len(policies) == 1 or row["round"] == 1 else f"{row['round']}, {row['run']}", "grader": name,
            "human pairs": one["human_pairs"], "agreement": one["agreement"], "nats raw": one["cross_entropy"]["raw"],
            "nats calibrated": one["cross_entropy"]["calibrated"], "ECE raw": one["ece"]["raw"], "ECE calibrated": one["ece"]["calibrated"],
            "map": one["method"], "γ": one["gamma"], "used": "yes" if one["written"] else "no",
        }
        for row in rows if row["round"] and (row["round"] > 1 or row["run"] == policies[0]) for name, one in row.get("graders", {}).items()
    ]  # fmt: skip
    values = {
        "title": title,
        "numbers": [("rounds", number(max(row["round"] for row in rows))), ("policies", number(len(policies)))],
        **{
            name: table(tuple(one[0]), one, text=tuple(column for column, cell in one[0].items() if isinstance(cell, str)))
            for name, one in shown.items()
        },
        "trust": table(TRUST, trust, text=("grader", "map", "used")),
        "plots": pictures,
    }
    return write_whole(page, render("rounds.html.j2", values))


def _by_round(
    rows: Sequence[Mapping[str, Any]], policies: Sequence[str], axes: Any, of: Any, key: str, start: Mapping[str, Any]
) -> None:
    """A line a policy over the rounds, from the start, with intervals. of: row → what holds the figure `key`, or None."""
    for at, name in enumerate(policies):
        found = [(0, start), *((row["round"], of(row)) for row in rows if row["run"] == name)]
        found = [(x, one) for x, one in found if one and one.get(key) is not None]
        aside = 0.06 * (at - (len(policies) - 1) / 2)
        points(axes, at, [x + aside for x, _ in found], [one for _, one in found], key, name)
    axes.set(xlabel="round", xticks=range(max(row["round"] for row in rows) + 1))
    axes.legend(fontsize=9, loc="upper left")


def _measures(rows: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> Picture | None:
    if not any(row.get("measure") is not None for row in rows):
        return None

    def plot(axes: Any) -> None:
        _by_round(rows, policies, axes, lambda row: row, "measure", rows[0])
        axes.set(ylabel="measure of replies")

    return draw(
        "measure",
        "The measure of replies to held-out prompts by round, with 95% intervals over prompts; round 0 is the start model.",
        plot,
    )


def _gains(rows: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> Picture | None:
    graders = list(dict.fromkeys(name for row in rows for name in row["gains"]))
    if not graders:
        return None

    def plot_of(grader: str) -> Any:
        def plot(axes: Any) -> None:
            axes.axhline(0, color="#5b6675", linestyle="--", linewidth=1)
            _by_round(rows, policies, axes, lambda row: row["gains"].get(grader), "gain", {"gain": 0.0})
            axes.set(ylabel=f"gain by {grader}")

        return plot

    words = (
        "How much better a grader finds replies to held-out prompts than the start model's, in its own units, with 95% intervals."
    )
    return draw("gains", words, *(plot_of(one) for one in graders[:4]))
