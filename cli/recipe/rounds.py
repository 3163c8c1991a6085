"""Rounds: the stages of a recipe again and again, each time on what the policy of the round before writes; a page over all of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpo.cli.output import print_rows, say
from mmpo.cli.recipe.feedback import Graded
from mmpo.cli.recipe.model import ROUND, Recipe
from mmpo.cli.recipe.models import Done, run_stages
from mmpo.cli.recipe.sampled import Replies, counted_replies, held_out, measured, sampled, values_of
from mmpo.cli.recipe.stages import Stages, write_json

START = "(start)"
"""What the model that the loop begins with is called beside the policies."""
MEASURED = tuple(f"{name}{part}" for name in ("measure", "measure_gain") for part in ("", "_95", "_prompts"))
"""Of the recipe's measure, in a policy's row; the start has no gain."""


def run_rounds(recipe: Recipe, stages: Stages, inputs: list[str]) -> dict[str, Any]:
    """Go round. Every run is a policy of its own; the first round, whose candidates the start model writes, is of all of them.

    A round's stages lie in OUT/round-N, or OUT/round-N/RUN from the second on where there are several runs; a policy's replies to held-out
    prompts in `sampled` there. The page OUT/rounds.html is written anew after every round.

    Returns {"out", "page", "dataset" (the last round's), "runs": {name: measures of the last round}, "rounds": rows}: a row per policy
    and round, {"run", "round", "replies": `counted_replies`, "gains": {rater: ...}, "measure", ..., "accuracy", "agreement", "cost", ...};
    what is unknown is None.
    """
    assert recipe.rounds is not None and recipe.generate is not None
    start, several = next(iter(recipe.runs.values())).model, len(recipe.runs) > 1
    policies, before = dict.fromkeys(recipe.runs, start), dict[str, Graded]()
    rows: list[dict[str, Any]] = []
    last: dict[str, Done] = {}
    first = Replies(stages.out / _place(1, "") / "candidates", _place(1, ""))
    for number in range(1, recipe.rounds + 1):
        shared = number == 1 or not several
        for names in [list(recipe.runs)] if shared else [[name] for name in recipe.runs]:
            place = _place(number, "" if shared else names[0])
            one = _of_round(recipe, number, place, policies[names[0]], names, stages)
            done = run_stages(one, stages.below(place), inputs, before.get(names[0]) if recipe.keep == "all" else None)
            assert done.graded is not None
            if number == 1:
                prompts = held_out(recipe, stages, first.folder)
                began = values_of(recipe, first, prompts)
                rows.append(_start(recipe, prompts, first, began))
            for name in names:
                before[name], last[name] = done.graded, done
                policies[name] = str(stages.out / place / "models" / name)
                at = _place(number, name if several else "")
                after = _of_round(recipe, number + 1, _place(number + 1, name if several else ""), policies[name], [name], stages)
                found = sampled(after, stages.below(f"{at}/sampled"), prompts, first, began)
                rows.append(_row(name, number, done, found))
        page = _write(recipe, stages, rows)
    _print(recipe, rows, page)
    measures = {name: done.summary["runs"][name] for name, done in last.items()}
    dataset = next(iter(last.values())).summary["dataset"]
    return {"out": str(stages.out), "dataset": dataset, "page": str(page), "runs": measures, "rounds": rows}


def _place(number: int, name: str) -> str:
    """What a round is called: in ids, as the folder of its stages and as the model that writes its candidates."""
    return f"round-{number}" + (f"/{name}" if name else "")


def _of_round(recipe: Recipe, number: int, place: str, policy: str, names: list[str], stages: Stages) -> Recipe:
    """The recipe of one round: its candidates are of `policy`, by seeds of the round's own, and go on training it.

    Journals are of the whole loop: what was asked is not asked again by another round, and --max-cost is a budget for all of them.
    """
    assert recipe.generate is not None
    runs = {name: dataclasses.replace(recipe.runs[name], model=policy) for name in names}
    some = next(iter(runs.values()))
    writer = {"model": policy, "called": place, "chat_template": some.chat_template if number == 1 else "tokenizer"}
    writer["trust_remote_code"] = some.trust_remote_code
    journal = recipe.generate.journal or str(stages.out / "generate.sqlite")
    generate = dataclasses.replace(recipe.generate, seed=recipe.generate.seed + number - 1, journal=journal)
    judge = recipe.judge
    if judge is not None:
        judge = dataclasses.replace(judge, journal=judge.journal or str(stages.out / "judge.sqlite"))
    people = [one.replace(ROUND, place) for one in recipe.people]
    local = [*recipe.local, writer]
    changed = {"generate": generate, "judge": judge, "local": local, "people": people, "runs": runs, "rounds": None}
    return recipe.model_copy(update=changed)


def _start(recipe: Recipe, prompts: Path, candidates: Replies, values: Mapping[str, float]) -> dict[str, Any]:
    """The row of the model that the loop begins with; it gains nothing over itself."""
    assert recipe.generate is not None
    found = measured(recipe, values, values)
    row = {"run": START, "round": 0, "gains": {}, "replies": counted_replies(candidates, prompts, recipe.generate.n)}
    return row | {name: found.get(name) for name in MEASURED[:3]}


def _row(name: str, number: int, done: Done, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the policy that a round trained, and of the round's graders."""
    assert done.graded is not None
    said = done.graded.said
    calibrated = said.get("calibrate", {}).get("graders", {})
    graders = {
        grader: {
            "human_pairs": one["human_pairs"], "agreement": one["agreement"]["people_only"], "cross_entropy": one["cross_entropy"],
            "ece": one["ece"], "method": one["method"], "gamma": one["gamma"], "written": one["written"],
        }
        for grader, one in calibrated.items()
    }  # fmt: skip
    of = done.summary["runs"][name]
    return {
        "run": name, "round": number, "gains": found["graders"], "graders": graders,
        "replies": found["replies"], **{key: found.get(key) for key in MEASURED},
        "pairs": sum(done.built.get("pairs", {}).values()), "accuracy": of["accuracy"], "accuracy_95": of.get("accuracy_95"),
        "candidates": said["generate"]["candidates"], **_asked(said, found["said"]),
    }  # fmt: skip


def _asked(*said: Mapping[str, Any]) -> dict[str, Any]:
    """Requests to judges of a round's stages, and what the whole loop has cost so far in US dollars: None where a price is unknown."""
    judged = [one["judge"]["judges"] for one in said if "judge" in one]
    paid = [*(judged[-1] if judged else ()), *(one for one in said[0]["generate"]["models"] if not one["local"])]
    costs = [one["cost"] for one in paid]
    return {
        "requests": sum(one["requests"] for several in judged for one in several),
        "cost": None if None in costs else sum(costs, 0.0),
    }


def _write(recipe: Recipe, stages: Stages, rows: list[dict[str, Any]]) -> Path:
    from mmpo.pipeline.report import write_rounds

    write_json(stages.out / "rounds.json", {"title": recipe.title, "keep": recipe.keep, "rows": rows})
    return write_rounds(rows, stages.out / "rounds.html", recipe.title)


def _print(recipe: Recipe, rows: list[dict[str, Any]], page: Path) -> None:
    """The rounds on standard error: what each policy wrote, and what it gained."""
    from mmpo.pipeline.report import rounds_tables

    tables = rounds_tables(rows)
    print_rows(f"{recipe.title}: replies to held-out prompts ({recipe.measures.split})", tables["replies"])
    print_rows("of those that were kept, 95% intervals over prompts (how many)", tables["policies"])
    say(f"table:   {page.with_suffix('.json')}")
    say(f"page:    {page}")
