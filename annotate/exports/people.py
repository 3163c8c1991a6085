"""For people to grade anew: Label Studio's tasks with the labelling config beside them, Argilla's records with the dataset's settings.

Which reply comes first is drawn by hash, and nothing that people see says which was chosen, by what margin or by which model. What they
answer comes back through `mmpo build --format label-studio` and `mmpo argilla pull`.
"""

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mmpo.annotate.exports.base import Export, ExportedPairs, Pair, dumped, without_thinking
from mmpo.pipeline.tables import TOOLS, as_text, message_of, set_keys, without_nulls

SEED = 0
QUESTION = "grade"
TASKS_A_FILE = 50_000
"""Label Studio reads a file of tasks whole, of 250 MB at most."""
COLUMNS = ("prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected", "source")


def _tasks(pairs: ExportedPairs) -> Iterable[Pair]:
    from mmpo.annotate.argilla.records import order_of
    from mmpo.annotate.judge.prompts import conversation_text

    for _, row in _rows(pairs, ()):
        item = _item(row)
        first, second = order_of(item, "pairs", SEED)
        texts = {one: row[side][-1] for one, side in zip(item.ids, ("chosen", "rejected"))}
        data = {
            "prompt": conversation_text(item.prompt, item.tools),
            "reply_a": as_text(texts[first]),
            "reply_b": as_text(texts[second]),
            "messages": without_nulls(item.prompt),
            **({"first": [said(texts[first])], "second": [said(texts[second])]} if pairs.keys else {}),
            **({TOOLS: item.tools} if item.tools else {}),
            "prompt_id": item.prompt_id,
            "first_id": first,
            "second_id": second,
            "source": row["source"],
        }
        yield {"data": data}


def said(message: Pair) -> Pair:
    """A message as other tools take it."""
    return without_nulls([message])[0]


def _rows(pairs: ExportedPairs, more: Iterable[str]) -> Iterable[tuple[str, Pair]]:
    """Every pair with its split."""
    columns = [*COLUMNS, *more, *({TOOLS} & set(pairs.keys))]
    return ((split, row) for split in pairs.parts for row in pairs.rows(split, columns))


def _item(row: Pair) -> Any:
    from mmpo.annotate.select import RecordItem, known_of

    ids, replies = (row["chosen_id"], row["rejected_id"]), (row["chosen"][-1], row["rejected"][-1])
    carried = tuple(map(set_keys, replies))
    return RecordItem(
        row["prompt_id"], [message_of(message) for message in row["prompt"]], ids, tuple(one["content"] for one in replies),
        (row.get("chosen_model"), row.get("rejected_model")), row["source"],
        {frozenset(ids): known_of(row)} if "raters" in row else {}, carried if any(carried) else (), row.get(TOOLS),
    )  # fmt: skip


def write_label_studio(pairs: ExportedPairs, target: Path) -> str:
    """tasks-00000.json and so on, and config.xml: each a pair in two fields, one of seven grades to be chosen."""
    from mmpo.annotate.argilla.dataset import GRADES

    target.mkdir()
    _write_lists(target, "tasks-{:05d}.json", _tasks(pairs))
    choices = "\n".join(
        f"    <Choice value={quoteattr(words)} hotkey={quoteattr(str(key))}/>" for key, words in enumerate(GRADES.values(), start=1)
    )
    (target / "config.xml").write_text(CONFIG.format(question=QUESTION, choices=choices), encoding="utf-8")
    worth = ",".join(f"{words}={value}" for value, words in GRADES.items())
    first, second = ("first", "second") if pairs.keys else ("reply_a", "reply_b")
    return (
        "import the tasks into a project with config.xml as its labelling interface; its JSON export: mmpo build EXPORT.json --format "
        f"label-studio --columns prompt=messages,first={first},second={second},gap={QUESTION} --gap-of '{worth}' --out FOLDER"
    )


CONFIG = """<View>
  <Header value="Conversation"/>
  <Text name="conversation" value="$prompt" valueType="text"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1">
      <Header value="Reply A"/>
      <Text name="side_a" value="$reply_a" valueType="text"/>
    </View>
    <View style="flex: 1">
      <Header value="Reply B"/>
      <Text name="side_b" value="$reply_b" valueType="text"/>
    </View>
  </View>
  <Header value="Which reply is better, and by how much?"/>
  <Choices name="{question}" toName="conversation" choice="single" required="true">
{choices}
  </Choices>
</View>
"""


def _write_lists(folder: Path, name: str, rows: Iterable[Pair], most: int = TASKS_A_FILE) -> None:
    """Files with a list of rows each, at most so many, a row at a time."""
    waiting = iter(rows)
    for number in range(1 << 31):
        chunk = islice(waiting, most)
        first = next(chunk, None)
        if first is None:
            return
        with (folder / name.format(number)).open("wb") as file:
            file.write(b"[\n" + dumped(first))
            file.writelines(b",\n" + dumped(row) for row in chunk)
            file.write(b"\n]\n")


def write_argilla(pairs: ExportedPairs, target: Path) -> str:
    """The folder that the SDK's `Dataset.to_disk` writes: records as `mmpo argilla push` makes them, every text neutralised."""
    from mmpo.annotate.argilla.dataset import DatasetDesign, guidelines_of, settings_of_design
    from mmpo.annotate.argilla.records import fields_of, metadata_of, order_of, record_id, too_many_messages

    design = DatasetDesign("pairs", ("overall",))
    settings = settings_of_design(design, guidelines_of(design, None, suggest=False))
    about = {name: settings[name] for name in ("guidelines", "allow_extra_metadata", "distribution")}
    (target / ".argilla").mkdir(parents=True)
    (target / ".argilla" / "settings.json").write_bytes(dumped(settings))
    (target / ".argilla" / "dataset.json").write_bytes(dumped({"name": "pairs", "status": "draft", **about}))

    def records() -> Iterable[Pair]:
        for split, row in _rows(pairs, KNOWN):
            item = _item(row)
            if too_many_messages(item, design.display):
                pairs.left_out["too_many_messages"] += 1
                pairs.counts[split] -= 1
                continue
            order = order_of(item, "pairs", SEED)
            yield {
                "id": record_id("pairs", item.prompt_id, item.ids),
                "fields": fields_of(item, order, design.display),
                "metadata": metadata_of(item, order, design.display),
                "suggestions": {},
                "responses": {},
                "vectors": {},
            }

    _write_lists(target, "records.json", records(), sys.maxsize)
    return (
        "argilla.Dataset.from_disk('{out}', name=NAME, workspace=WORKSPACE) makes the dataset and logs its records; mmpo argilla pull "
        "reads what people answer"
    )


KNOWN = ("chosen_model", "rejected_model", "quality_margin", "margin_se", "preferring", "raters", "kind")
_BLIND = frozenset(("turns", "system", "prefixes", "tools", "thinking"))
LABEL_STUDIO = Export(
    "folder of Label Studio's tasks to grade anew, with the labelling config",
    write_label_studio,
    "Label Studio 1.23.2: tasks imported, answered and exported through its API",
    "folder",
    _BLIND,
    reads=without_thinking,
)
ARGILLA = Export(
    "folder of Argilla's records to grade anew, with the dataset's settings",
    write_argilla,
    "argilla 2.8.0: Dataset.from_disk against a real server, answers pulled",
    "folder",
    _BLIND | {"order", "margins", "errors", "models", "raters"},
    reads=without_thinking,
)
