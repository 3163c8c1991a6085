"""Makes messy/ out of judge_samples and arena_grades: the same texts and grades, as people keep them. python data/make_messy.py

ratings.csv is what a spreadsheet of a German Excel saves: semicolons, decimal commas, Windows-1252, a column for each rater, N/A where
one gave none; without answers that are long or hold characters which that encoding lacks. chats.csv has a row for each grade, with the
conversation as JSON in a cell and grades such as 4/5; candidates.csv has no grades, and the answers to a question as JSON in a cell.
"""

import csv
import gzip
import json
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
RATERS = {"gpt-4/1": "Rater 1", "gpt-4/2": "Rater 2", "gpt-4/3": "Rater 3"}
LONGEST = 2000
CHATS = 10
PROMPTS, ANSWERS, SHORT = 24, 3, 800


def main() -> None:
    with gzip.open(HERE / "judge_samples.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    answers: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        key = (row["prompt"], row["completion"], row["model"])
        if len(key[1]) <= LONGEST and "".join(key) == "".join(key).encode("cp1252", "ignore").decode("cp1252"):
            answers.setdefault(key, {})[row["rater"]] = row["score"]
    (HERE / "messy").mkdir(exist_ok=True)
    with open(HERE / "messy" / "ratings.csv", "w", encoding="cp1252", newline="") as file:
        sheet = csv.writer(file, delimiter=";")
        sheet.writerow(["Question", "Answer", "Model", *RATERS.values()])
        for number, ((prompt, text, model), grades) in enumerate(answers.items()):
            missing = list(RATERS)[number % 3] if number % 11 == 5 else None
            given = ["N/A" if name == missing else f"{grades[name]:.1f}".replace(".", ",") for name in RATERS]
            sheet.writerow([prompt, text, model, *given])
    chats: dict[str, list[tuple[str, str, str]]] = {}
    for key in answers:
        chats.setdefault(key[0], []).append(key)
    with open(HERE / "messy" / "chats.csv", "w", encoding="utf-8-sig", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["chat", "reply", "who", "grade", "seen at"])
        for number, (prompt, keys) in enumerate(islice(chats.items(), CHATS)):
            turns = [("system", "You are a helpful assistant."), ("user", prompt)]
            chat = json.dumps([{"role": role, "content": content} for role, content in turns], ensure_ascii=False)
            for key in keys:
                for name, grade in answers[key].items():
                    sheet.writerow([chat, key[1], RATERS[name], f"{grade:g}/5", f"2026-03-{1 + number:02d}"])
    with gzip.open(HERE / "arena_grades.jsonl.gz", "rt", encoding="utf-8") as file:
        graded = [json.loads(line) for line in file]
    candidates: dict[str, list[str]] = {}
    for row in graded:
        texts = candidates.setdefault(row["prompt"], [])
        if len(texts) < ANSWERS and len(row["completion"]) <= SHORT and row["completion"] not in texts:
            texts.append(row["completion"])
    whole = ((prompt, texts) for prompt, texts in candidates.items() if len(texts) == ANSWERS)
    with open(HERE / "messy" / "candidates.csv", "w", encoding="utf-8-sig", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["question", "answers"])
        for prompt, texts in islice(whole, PROMPTS):
            sheet.writerow([prompt, json.dumps(texts, ensure_ascii=False)])


if __name__ == "__main__":
    main()
