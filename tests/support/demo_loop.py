"""`make demo-loop`: recipes/loop.yaml on this machine, with a judge and people who play; no key, no download, no cost, minutes.

    python tests/support/demo_loop.py [--out out/loop] [--rounds 3] [--set KEY=VALUE ...]

The truth is known: a reply is as good as its words (simulated_judge.quality). The judge sees it bent, with noise and a liking for what is
shown first; people see it straight, on another scale and with noise of their own, and grade some pairs of every round when the loop waits
for them. The model that the loop begins with writes these words at random. So the loop can be checked: its policy must write better
replies to held-out prompts than the policy of the same loop with a judge that knows nothing. That one drifts as training drifts: the
interval of its gain is over prompts, and doesn't hold what another draw of the judge's noise would have made of it.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openai_server import serving
from simulated_judge import quality, unit

from mmpo.pipeline import load_feedback
from mmpo.pipeline.report import write_rounds

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = re.compile(r"\w+")
GOOD = WORDS.findall("because example first second finally measure compare reason detail number name place date cause result")
BAD = WORDS.findall("stuff things whatever maybe somehow really very basically nice good okay sort kind like anyway")
PLAIN = WORDS.findall("the a of and to it is in that on with for as by at")
WORTH = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0)}
TOPICS = WORDS.findall(
    "rain bread trains bees glass salt tides maps clocks rust soap wool ink kites bells yeast coal wind moss sleep"
)
ASKED = (
    "Explain {} to a child.",
    "Why does {} matter?",
    "Describe {}.",
    "What about {}?",
    "Tell me about {}.",
    "How would you teach {}?",
)
JUDGES = {"judge": {"scale": 0.8, "bend": 0.6, "bias": 0.5, "noise": 0.5}, "coin": {"scale": 0.0, "bias": 0.5, "noise": 1.2}}
"""How the judges play, in grades: see simulated_judge.JudgeModel. coin knows nothing."""
PEOPLE = {"anna": 0.9, "ben": 0.7}
"""Points of a person's margin per unit of quality."""
NOISE, PAIRS = 0.6, 60
WAITING = 3
"""The exit status of a loop that waits for people."""


def truth(prompt: Sequence[Mapping[str, Any]], reply: str) -> float:
    """What a reply is worth, -4 to 4: `evaluate.measure` of the demo."""
    return quality(reply, WORTH)


def main(arguments: list[str] | None = None) -> int:
    """Make the start model, run the loop and its control, say what was gained; 1 where it is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/loop"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--topics", type=int, default=len(TOPICS))
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    start_model(out, options.topics)
    gains, rows = {}, []
    with serving({"models": JUDGES, "worth": WORTH}) as server:
        for judge in JUDGES:
            sets = [*settings(out, judge, server.base_url), f"rounds={options.rounds}", *options.sets]
            if status := run_loop(out, judge, sets):
                return status
            found = json.loads((out / judge / "rounds.json").read_text())["rows"]
            gains[judge] = found[-1]["measure_gain_95"]
            rows += [{**row, "run": f"judge: {judge}", "gains": {}} for row in found if row["round"] or not rows]
    page = write_rounds(rows, out / "rounds.html", "The loop, and the same with a judge that knows nothing")
    told = {judge: f"{low:+.2f} to {high:+.2f}" for judge, (low, high) in gains.items()}
    print(f"true score, held-out prompts, {options.rounds} rounds against none: judge {told['judge']}, coin {told['coin']} (95%)")
    print(f"both loops: {page}")
    return 0 if gains["judge"][0] > max(0, gains["coin"][1]) else 1


def settings(out: Path, judge: str, base_url: str) -> list[str]:
    """What of the recipe is the demo's own."""
    found = [f"out={out / judge}", f"generate.prompts=[{out / 'prompts.jsonl'}]", f"training.model={out / 'start'}"]
    found += [f"judge.base_url={base_url}", f"judge.model={judge}", f"calibrate.people=['{out / judge}-people/{{round}}']"]
    return [*found, "evaluate.measure=demo_loop:truth"] + ["calibrate.unproven=keep"] * (judge == "coin")


def run_loop(out: Path, judge: str, sets: Sequence[str]) -> int:
    """Run the recipe to its end; whenever it waits for people, let them grade."""
    flags = [part for value in sets for part in ("--set", value)]
    graded = 0
    while (status := mmpo("run", str(ROOT / "recipes" / "loop.yaml"), *flags)) == WAITING:
        graded += 1
        if people_grade(out / judge / f"round-{graded}" / "judged", Path(f"{out / judge}-people/round-{graded}")):
            return 1
    return status


def start_model(out: Path, topics: int) -> None:
    """A tiny model that writes sentences of the words, drawn at random; and the prompts."""
    draw = random.Random(0)
    prompts = [ask.format(topic) for topic in TOPICS[:topics] for ask in ASKED]
    (out / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    if (out / "start" / "config.json").is_file():
        return
    rows = [
        {"prompt": prompt, "chosen": sentence(draw), "rejected": sentence(draw), "margin": 1}
        for prompt in prompts
        for _ in range(8)
    ]
    (out / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mmpo("build", f"{out}/words.jsonl", "--format", "jsonl", "--split", "1,0,0", "--out", f"{out}/words")
    sizes = ("--tiny-size", "48", "--tiny-vocab", "600", "--max-length", "96", "--max-prompt-length", "48", "--eval-split", "null")
    rates = ("--loss", "sft", "--epochs", str(6 * len(TOPICS) / topics), "--learning-rate", "3e-3")
    mmpo("train", "policy", "--data", f"{out}/words", "--model", "tiny", *sizes, *rates, "--out", f"{out}/start")


def sentence(draw: random.Random) -> str:
    """Words of all kinds, drawn at random."""
    return " ".join(draw.choice(draw.choice((GOOD, BAD, PLAIN))) for _ in range(draw.randint(5, 12))) + "."


def people_grade(judged: Path, out: Path) -> int:
    """Have people grade a round, into FEEDBACK as `mmpo argilla pull` writes it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in graded_by_people(judged)))
    return mmpo("build", str(source), "--format", "jsonl", "--scale=-3:3", "--feedback-only", "--out", str(out))


def graded_by_people(judged: Path) -> list[dict[str, Any]]:
    """What two people say of pairs of a folder, drawn at random, on whole points from -3 to 3."""
    pairs = [
        (row["prompt"], *(row["completions"][one[side]]["text"] for side in ("first", "second")))
        for row in load_feedback(judged).to_pylist()
        for one in row["comparisons"]
        if one["first"] < one["second"]
    ]
    rows = []
    for prompt, first, second in random.Random(judged.parent.name).sample(pairs, min(PAIRS, len(pairs))):
        for person, scale in PEOPLE.items():
            gap = scale * (quality(first, WORTH) - quality(second, WORTH)) + NOISE * unit(person, first, second)
            gap = max(-3, min(3, round(gap)))
            rows.append({"prompt": prompt, "first": first, "second": second, "gap": gap, "rater": person, "kind": "human"})
    return rows


def mmpo(*words: str) -> int:
    """Run a command; its exit status."""
    print("$ mmpo " + " ".join(words), file=sys.stderr, flush=True)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    line = [sys.executable, "-c", "from mmpo.cli.main import main; main()", *words]
    return subprocess.run(line, check=False, env={**os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "sk-demo"}).returncode


if __name__ == "__main__":
    sys.exit(main())
