"""What a dataset is built from: candidates → models' and judges' grades → people's → calibrated margins, each a stage of its own."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow.compute as pc

from mmpo.annotate.calibrate import JURY
from mmpo.annotate.judge import MODES, find_rubrics, judges_of
from mmpo.cli.commands.agree import run_calibrate
from mmpo.cli.commands.data.build import run_build
from mmpo.cli.commands.generate import run_generate
from mmpo.cli.commands.judge import run_judges
from mmpo.cli.commands.score import run_score
from mmpo.cli.output import say
from mmpo.cli.recipe.model import Recipe
from mmpo.cli.recipe.stages import Stages, read_files, weights_of, without_place
from mmpo.pipeline.api import load_feedback
from mmpo.pipeline.build import BuildOptions
from mmpo.pipeline.errors import PartialResult, UserError
from mmpo.pipeline.options import ENGINE_OPTIONS
from mmpo.pipeline.storage import MANIFEST
from mmpo.train.scoring import scorers_of

KEPT = ("max_rejects", "memory", "scratch", *ENGINE_OPTIONS)
"""Build options of the input that hold for the build of pairs as well."""
OF_THE_INPUT = ("format", "columns", "scale", "fix_known_defects", "rater", "kind", *KEPT)
"""Build options that say how files are read; the others say what is made of the grades."""
MERGED = BuildOptions(format="feedback", feedback_only=True)
Work = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Graded:
    """What the dataset is built from: sources, options and the digests of the inputs.

    parts: the FEEDBACK folders that hold this run's own candidates and grades, and those of earlier rounds, for the next round. gamma: of
    people's votes by the calibrated margins, where these are of one grader. said: stage → its summary.
    """

    sources: list[Any]
    options: BuildOptions
    inputs: list[str]
    parts: Sequence[Path] = ()
    people: Sequence[str] = ()
    gamma: float | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def manifest_text(folder: str | Path) -> str:
    """The manifest of a dataset folder, by which a stage knows what it was made from."""
    return (Path(folder) / MANIFEST).read_text(encoding="utf-8")


def graded(recipe: Recipe, stages: Stages, inputs: list[str], earlier: Graded | None = None) -> Graded:
    """Candidates, graded; as the recipe has it where no stage comes before the build. earlier: a round before, whose feedback is kept.

    Unless the recipe narrows the evidence itself, the pairs come of the calibrated margins, else of the judges' or the models' grades
    alone. Raises PartialResult where models did not get through or people have not graded yet: the same command again goes on.
    """
    assert recipe.build is not None
    if not (recipe.generate or recipe.judge or recipe.score or recipe.calibrate):
        return Graded(list(recipe.inputs), recipe.build, inputs)
    said: dict[str, Any] = {}
    folder = candidates(recipe, stages, inputs, said)
    own = grades(recipe, stages, folder, said)
    parts = [*(earlier.parts if earlier else ()), own]
    people = list(dict.fromkeys([*(earlier.people if earlier else ()), *recipe.people]))
    feedback = own
    if len(parts) + len(people) > 1:
        feedback = stages.out / "feedback"
        sources = [*parts, *_there(recipe, people, own, stages)]
        key = {"sources": [manifest_text(one) for one in sources]}
        said["feedback"] = stages.do(
            "feedback", key, lambda: run_build("feedback", list(map(str, sources)), feedback, MERGED), feedback
        )
    if recipe.calibrate is not None:
        out = stages.out / "calibrated"
        if "human" in recipe.calibrate.to and not _has_people(feedback):
            how = _ask_people(recipe, own, stages, "DIR")
            raise UserError(f"calibrate: nobody has graded the candidates. {how}, and name it: calibrate.people: [DIR]")
        options = dataclasses.replace(recipe.calibrate, out=str(out))
        key = {"options": dataclasses.asdict(recipe.calibrate), "feedback": manifest_text(feedback)}
        source = feedback
        said["calibrate"] = stages.do("calibrate", key, lambda: run_calibrate(source, options), out)
        feedback = out
    options = _options(recipe, said)
    return Graded([feedback], options, [manifest_text(feedback)], parts, people, _gamma(options, said), said)


def _gamma(options: BuildOptions, said: Mapping[str, Any]) -> float | None:
    """The γ at which people's votes are most likely by the margins that the build takes; None where those are of several graders."""
    graders = said.get("calibrate", {}).get("graders", {})
    found = [graders[name]["gamma"] for one in options.raters or () if (name := one.rpartition("@")[0]) in graders]
    return found[0] if len(found) == 1 == len(options.raters or ()) else None


def candidates(recipe: Recipe, stages: Stages, inputs: list[str], said: dict[str, Any]) -> Path:
    """The folder of candidates: those that models write, or those that the build's inputs hold."""
    out, generate, build = stages.out / "candidates", recipe.generate, recipe.build
    assert build is not None
    if generate is None:
        reading = BuildOptions(**{name: getattr(build, name) for name in OF_THE_INPUT}, feedback_only=True)
        key = {"options": dataclasses.asdict(reading), "inputs": inputs}
        said["candidates"] = stages.do("candidates", key, lambda: run_build("candidates", recipe.inputs, out, reading), out)
        return out
    key = {"options": without_place(generate), "models": recipe.models, "local": recipe.local, "inputs": inputs}
    key["weights"] = [weights_of(one.split(",")[0] if isinstance(one, str) else one["model"]) for one in recipe.local]
    work = _finished("models", build.max_rejects, lambda: run_generate(recipe.inputs, out, generate, recipe.models, recipe.local))
    said["generate"] = stages.do("generate", key, work, out)
    return out


def grades(recipe: Recipe, stages: Stages, folder: Path, said: dict[str, Any]) -> Path:
    """The candidates of a folder with the models' and the judges' grades: the folder of the last stage that there is."""
    score, judge, most = recipe.score, recipe.judge, recipe.build.max_rejects if recipe.build else 0.0
    if score is not None:
        of, folder = folder, stages.out / "scored"
        key: dict[str, Any] = {"options": without_place(score), "models": recipe.scorers, "candidates": manifest_text(of)}
        scorers = [vars(one) for one in scorers_of(recipe.scorers)]
        key["weights"] = [weights_of(one[name]) for one in scorers for name in ("model", "reference") if one[name]]
        said["score"] = stages.do("score", key, lambda: run_score(of, stages.out / "scored", score, scorers), folder)
    if judge is not None:
        before, folder = folder, stages.out / "judged"
        key = {"options": dataclasses.asdict(judge), "judges": recipe.judges, "candidates": manifest_text(before)}
        work = _finished("judges", most, lambda: run_judges(before, stages.out / "judged", judge, recipe.judges))
        own = [judge.rubrics, [judge.template], *(_listed(one) for one in recipe.judges if isinstance(one, Mapping))]
        read = read_files(*(name for names in own for name in names))
        said["judge"] = stages.do("judge", key, work, folder, read)
    return folder


def _listed(judge: Mapping[str, Any]) -> list[Any]:
    """What one of several judges names that may be files of its own."""
    rubrics = judge.get("rubrics") or ()
    return [*(rubrics.split(",") if isinstance(rubrics, str) else rubrics), judge.get("template")]


def _finished(who: str, most: float, work: Work) -> Work:
    """The work of a stage that asks: done when nothing is left to ask and at most that share of its requests failed for good."""

    def done() -> dict[str, Any]:
        summary = work()
        rows = summary[who]
        failed, asked = sum(sum(one["failed"].values()) for one in rows), sum(one["requests"] for one in rows)
        if summary["stopped"] or any(one["left"] for one in rows) or failed > most * asked:
            raise PartialResult(
                f"the {who} did not get through; the same command again goes on where they stopped. build.max_rejects, {most:g}, is the "
                "largest share of requests that may fail for good"
            )
        if failed:
            say(f"going on without {failed:,} of {asked:,} answers: build.max_rejects, {most:g}, allows so many to fail")
        return summary

    return done


def _there(recipe: Recipe, people: Sequence[str], own: Path, stages: Stages) -> list[Path]:
    """The folders of people's grades. Raises PartialResult, saying what to push, where one is not there yet."""
    for one in people:
        if not (Path(one) / MANIFEST).is_file():
            raise PartialResult(
                f"calibrate waits for people: {one} is no FEEDBACK folder yet. {_ask_people(recipe, own, stages, one)}. The same command "
                "again goes on from there"
            )
    return list(map(Path, people))


def _ask_people(recipe: Recipe, own: Path, stages: Stages, out: str) -> str:
    """How people are asked about the candidates of a folder."""
    name = "-".join(f"{recipe.out.name} {stages.name}".replace("/", " ").split())
    return (
        f"Have them grade some of the pairs, drawn at random: mmpo argilla push {quote(str(own))} --dataset {quote(name)} --limit 100 "
        f"--raters 2; then mmpo argilla pull --dataset {quote(name)} --out {quote(out)}"
    )


def _has_people(folder: Path) -> bool:
    """Whether any grade of a FEEDBACK folder is a person's."""
    table = load_feedback(folder)
    kinds = (table[name].combine_chunks().flatten().field("kind") for name in ("ratings", "comparisons"))
    return any("human" in pc.unique(one).to_pylist() for one in kinds)


def _options(recipe: Recipe, said: Mapping[str, Any]) -> BuildOptions:
    """The build's options, with whose grades the margins are made of where the recipe does not say it."""
    build = recipe.build
    assert build is not None
    own = {field.name: field.default for field in dataclasses.fields(BuildOptions) if field.name in OF_THE_INPUT}
    own |= {"format": "feedback", "columns": {}} | {name: getattr(build, name) for name in KEPT}
    options = dataclasses.replace(build, **own)
    chosen = build.evidence != "auto" or build.raters is not None or build.kinds is not None
    if recipe.judge is not None:
        aspects = [rubric.name for rubric in find_rubrics(recipe.judge.rubrics)]
        if build.score in ("auto", "overall") and "overall" not in aspects:
            options = dataclasses.replace(options, score=aspects[0] if len(aspects) == 1 else "mean")
    if chosen:
        return options
    if recipe.calibrate is not None:
        written = list(said["calibrate"]["rows"])
        if not written:
            raise UserError(
                "calibrate: no grader is shown to know anything of people, so that there are no margins to train on: have people grade "
                "more pairs, or take the graders as they are: --set calibrate.unproven=keep"
            )
        jury = [name for name in written if name.startswith(f"{JURY}@")]
        return dataclasses.replace(options, evidence="comparisons", raters=tuple(jury or written))
    if recipe.judge is not None:
        raters = tuple(judge.name for judge in judges_of(recipe.judge, recipe.judges))
        return dataclasses.replace(options, evidence=MODES[recipe.judge.mode].gives, raters=raters)
    raters = tuple(one.name for one in scorers_of(recipe.scorers))
    return dataclasses.replace(options, evidence="ratings", raters=raters) if raters else options
