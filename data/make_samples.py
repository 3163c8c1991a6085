"""Makes the samples of this folder from the folder of larger real files that MMPO_REAL_DATA names.

    MMPO_REAL_DATA=/path/to/files python data/make_samples.py

Every choice is by content or by digest, so the same files give the same bytes. Sources and licences: README.md.
"""

import gzip
import json
import os
import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
ARENA_PROMPTS, ULTRAFEEDBACK_PAIRS = 120, 240
DEMO_CHARACTERS = 1000
DEMO_MODELS = (
    "Llama-2-70b-chat",
    "Mistral-7B-Instruct-v0.1",
    "claude-instant-1",
    "gpt-4-1106-preview",
    "palm-2-chat-bison-001",
    "vicuna-33b-v1.3",
)
"""One of each maker's chat models: as in most graded sets, some are much better than others."""
# Left out by subject, prompts and replies alike: what everybody opens needs no violence, sex or insults.
UNWANTED = re.compile(
    r"\b(sex\w*|porn\w*|nude\w*|naked|erotic\w*|nsfw|fuck\w*|shit\w*|bitch\w*|slut\w*|rape\w*|incest|kill\w*|murder\w*|suicid\w*"
    r"|bomb\w*|weapon\w*|gun|guns|terror\w*|nazi\w*|hitler|holocaust|genocid\w*|slave\w*|racis\w*|sexis\w*|negro\w*|nigg\w*"
    r"|hate speech|drugs?|cocaine|heroin|meth|poison\w*|torture\w*|abus\w*|stalin|putin|trump|biden|israel\w*|gaza"
    r"|palestin\w*|hamas|ukrain\w*|abortion|jailbreak\w*|hack\w*|malware|fart\w*|sado\w*|fetish\w*|virgin\w*|penis|vagina\w*|breasts?)\b",
    re.IGNORECASE,
)


def main() -> None:
    """Write all samples and print their sizes."""
    folder = os.environ.get("MMPO_REAL_DATA")
    if not folder:
        raise SystemExit("set MMPO_REAL_DATA to the folder with arena_bench_gpt4_scores.parquet and the other files")
    real = Path(folder)
    arena = pd.read_parquet(real / "arena_bench_gpt4_scores.parquet")
    write(HERE / "arena_grades.jsonl.gz", arena_grades(arena))
    write(HERE / "arena_demo.jsonl.gz", arena_demo(arena))
    write(HERE / "judge_samples.jsonl.gz", judge_samples(pd.read_parquet(real / "prometheus_gpt4_3samples.parquet")))
    write(
        HERE / "ultrafeedback_pairs.jsonl",
        ultrafeedback_pairs(pd.read_parquet(real / "ultrafeedback_binarized_1200.parquet")),
    )
    write(HERE / "human_graded_pairs.jsonl", human_pairs(pd.read_parquet(real / "ragchecker_human_pairs.parquet")))


def arena_grades(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a grade, 1 to 10: the prompts whose replies are shortest, all 16 models; repeated judgments stay in."""
    rows = _arena(rows)
    size = rows.assign(size=rows.prompt.str.len() / 4 + rows.response.str.len()).groupby("prompt_id")["size"].mean()
    kept = set(size.sort_values(kind="stable").index[:ARENA_PROMPTS])
    return _arena_rows(rows[rows.prompt_id.isin(kept)])


def arena_demo(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The same grades, more prompts of fewer answers: all but the longest prompts, one model of each maker, its first judgment."""
    rows = _arena(rows)
    rows = rows[(rows.prompt.str.len() <= DEMO_CHARACTERS) & rows.model.isin(DEMO_MODELS)]
    return _arena_rows(rows.sort_values("replica", kind="stable").drop_duplicates(["prompt_id", "model"]))


def _arena(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows.score.notna() & (rows.response.str.strip() != "")]
    rows = rows[~rows.prompt_id.isin(set(rows[unwanted(rows.prompt) | unwanted(rows.response)].prompt_id))]
    return rows[rows.groupby("prompt_id").model.transform("nunique") >= 12]


def _arena_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    rows = rows.sort_values(["prompt_id", "model", "replica"], kind="stable")
    return [
        {
            "prompt": row.prompt,
            "completion": row.response,
            "score": row.score,
            "model": row.model,
            "rater": row.judge,
            "kind": "ai",
        }
        for row in rows.itertuples()
    ]


def judge_samples(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a grade, 1 to 5: each of the judge's three verdicts is a rater, so that margins have standard errors."""
    rows = rows[~rows.prompt_id.isin(set(rows[unwanted(rows.prompt) | unwanted(rows.response)].prompt_id))]
    rows = rows[rows.response.str.strip() != ""].sort_values(["prompt_id", "model"], kind="stable")
    # Second turns quote the model's own first turn, so every model has a prompt of its own: nothing to compare.
    rows = rows[rows.groupby("prompt").model.transform("nunique") > 1]
    return [
        {
            "prompt": row.prompt,
            "completion": row.response,
            "score": int(score),
            "model": row.model,
            "rater": f"gpt-4/{sample}",
            "kind": "ai",
        }
        for row in rows.itertuples()
        for sample, score in enumerate(row.scores, start=1)
    ]


def ultrafeedback_pairs(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a pair in the layout of HuggingFaceH4/ultrafeedback_binarized (messages, overall scores 1 to 10)."""
    rows = rows[~(unwanted(rows.prompt) | unwanted(rows.chosen) | unwanted(rows.rejected))]
    rows = rows[(rows.prompt.str.len() + rows.chosen.str.len() + rows.rejected.str.len()) < 2600]
    rows = rows[(rows.chosen.str.strip() != "") & (rows.rejected.str.strip() != "")]
    order = rows.prompt_id.map(lambda text: blake2b(text.encode(), digest_size=8).hexdigest())
    rows = rows.assign(order=order).sort_values("order").head(ULTRAFEEDBACK_PAIRS)
    return [
        {
            "prompt": row.prompt,
            "chosen": conversation(row.prompt, row.chosen),
            "rejected": conversation(row.prompt, row.rejected),
            "score_chosen": row.score_chosen,
            "score_rejected": row.score_rejected,
        }
        for row in rows.itertuples()
    ]


def human_pairs(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a comparison, gap −2 to 2, sign turned: the source is positive where its *second* answer is better."""
    # NovelQA's authors ask that its answers are not spread; the other nine question sets stay.
    rows = rows[rows.dataset != "novelqa"]
    rows = rows[(rows.response_1.str.strip() != "") & (rows.response_2.str.strip() != "")]
    bad = unwanted(rows.prompt) | unwanted(rows.response_1) | unwanted(rows.response_2)
    rows = rows[~rows.prompt_id.isin(set(rows[bad].prompt_id))]
    rows = rows.sort_values(["prompt_id", "model_1", "model_2", "annotation"], kind="stable")
    return [
        {
            "prompt": row.prompt,
            "first": row.response_1,
            "second": row.response_2,
            "gap": 0 - int(row.overall),
            "rater": f"annotator-{row.annotation + 1}",
            "kind": "human",
            "first_model": row.model_1,
            "second_model": row.model_2,
        }
        for row in rows.itertuples()
    ]


def conversation(prompt: str, reply: str) -> list[dict[str, str]]:
    """The two messages of a one-turn conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def unwanted(texts: pd.Series) -> pd.Series:
    """Whether each text touches a subject that the samples leave out."""
    return texts.str.contains(UNWANTED)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, compressed where the name ends in .gz (without a time stamp: same rows, same bytes)."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    raw = "".join(lines).encode()
    path.write_bytes(gzip.compress(raw, 9, mtime=0) if path.suffix == ".gz" else raw)
    print(f"{path.name}: {len(lines)} rows, {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
