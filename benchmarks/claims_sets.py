"""benchmarks/claims.py: the graded sets, as rows of JSON lines: a rating (prompt, completion, score, rater, aspect) or a comparison
(prompt, first, second, gap, rater; gap > 0: the first is better).

Sets without grades (labels alone, ranks alone, one reply a prompt) are no part of it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from human_cases import Rows, Scale, compared, table, tulu
from human_sets import mqm, pandalm, ragchecker, summeval

from mmpo.pipeline import BuildOptions, build, build_pairs, load_feedback

PAIRS_OF_A_PROMPT = 20


def rated(frame, prompt: str = "prompt", completion: str = "response", score: str = "score", rater: str | None = None) -> Rows:
    """One rating a row."""
    names = {prompt: "prompt", completion: "completion", score: "score", **({rater: "rater"} if rater else {})}
    frame = frame[list(names)].rename(columns=names).dropna(subset=["score"])
    return [{**row, "score": float(row["score"])} for row in frame.to_dict("records") if row["completion"].strip()]


def arena(folder: Path) -> Rows:
    """GPT-4's grades of up to 16 models; some answers were judged twice or three times."""
    return rated(table(folder, "arena_bench_gpt4_scores"), rater="judge")


def alpaca(folder: Path) -> Rows:
    """GPT-4-turbo's log-odds against one reference, ten models a prompt, without those that game the judge and the reference itself."""
    frame = table(folder, "alpaca_eval2_pref")
    frame = frame[~frame["generator"].isin(["NullModel", "gpt4_gamed", "gpt4_1106_preview"])]
    frame = frame.sample(frac=1, random_state=0).groupby("prompt_id").head(10).sort_index()
    p = (frame["preference"] - 1).clip(1e-7, 1 - 1e-7)
    return rated(frame.assign(score=np.log(p / (1 - p))))


def wildbench(folder: Path) -> Rows:
    """Two judges; the prompts are not kept, only their ids."""
    frame = table(folder, "wildbench_scores")
    frame = frame[frame["wb_version"] == frame["wb_version"].max()] if frame["judge"].nunique() == 1 else frame
    return rated(frame, prompt="session_id", rater="judge")


def prometheus(folder: Path) -> Rows:
    """GPT-4, asked three times: each time is a rater."""
    frame = table(folder, "prometheus_gpt4_3samples").explode("scores")
    frame["rater"] = frame.groupby(level=0).cumcount().astype(str)
    return rated(frame, score="scores", rater="rater")


def usr(folder: Path) -> Rows:
    """Means of three people over 60 dialogues."""
    return rated(table(folder, "usr_topicalchat_human_mean"), score="overall")


def vicuna(folder: Path) -> Rows:
    """Two answers graded at once, 1 to 10, by GPT-4."""
    frame = table(folder, "vicuna80_pair_reviews").dropna(subset=["score_1", "score_2"])
    frame = frame[frame["judge"].str.contains("gpt-4")]
    return compared(frame.assign(gap=frame["score_1"] - frame["score_2"]), "response_1", "response_2", "gap", "judge")


def ultrafeedback(folder: Path) -> Rows:
    """One pair a prompt."""
    frame = table(folder, "ultrafeedback_binarized_1200")
    frame = frame.assign(gap=frame["score_chosen"] - frame["score_rejected"], rater="gpt-4")
    return compared(frame, "chosen", "rejected", "gap", "rater")


class GradedSet(NamedTuple):
    """rows: of the folder of real files; scale: low and high of scores, or of gaps; None: unbounded. score: how aspects merge."""

    rows: Callable[[Path], Rows]
    scale: Scale
    what: str
    score: str = "overall"


SETS = {
    "arena": GradedSet(arena, (1, 10), "GPT-4, 1–10"),
    "alpaca": GradedSet(alpaca, None, "GPT-4-turbo, log-odds"),
    "wildbench": GradedSet(wildbench, (1, 10), "two judges, 1–10"),
    "prometheus": GradedSet(prometheus, (1, 5), "GPT-4 three times, 1–5"),
    "ultrafeedback": GradedSet(ultrafeedback, (-9, 9), "GPT-4, 1–10, one pair a prompt"),
    "vicuna": GradedSet(vicuna, (-9, 9), "GPT-4, two at once, 1–10"),
    "summeval": GradedSet(
        lambda folder: [row for row in summeval(folder) if row["rater"].startswith("expert")], (1, 5), "three experts, 1–5", "mean"
    ),
    "mqm-ende": GradedSet(lambda folder: mqm(folder, "en-de"), None, "three people, error scores"),
    "mqm-zhen": GradedSet(lambda folder: mqm(folder, "zh-en"), None, "three people, error scores"),
    "usr": GradedSet(usr, (1, 5), "three people, 1–5"),
    "tulu": GradedSet(tulu, (-2, 2), "people, −2 to 2"),
    "ragchecker": GradedSet(ragchecker, (-2, 2), "two people, −2 to 2"),
    "pandalm": GradedSet(pandalm, (-1, 1), "three people, −1 to 1"),
}
QUICK = ("prometheus", "usr", "tulu", "ragchecker")


def feedback_of(name: str, folder: Path) -> pa.Table:
    """The FEEDBACK of a set, by way of `mmpo build`."""
    import json

    known = SETS[name]
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / f"{name}.jsonl", Path(temporary) / "feedback"
        rows = known.rows(folder)
        source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        options = BuildOptions(format="jsonl", scale=known.scale, feedback_only=True, max_rejects=0.1, workers=1)
        build(source, out, options=options)
        return load_feedback(out)


def pairs_of(name: str, folder: Path) -> pa.Table:
    """PAIRS of a set, at most 20 a prompt."""
    return build_pairs(feedback_of(name, folder), score=SETS[name].score, max_per_prompt=PAIRS_OF_A_PROMPT)
