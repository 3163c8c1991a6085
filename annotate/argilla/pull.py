"""`mmpo argilla pull`: people's answers from a dataset of Argilla into a FEEDBACK folder, one grade a submitted answer.

The folder is written whole or not at all. A second pull into it adds what is new, takes changed answers as they are now, drops
those that their rater took back (discarded, or a draft again), and keeps those that are gone from Argilla (a deleted user, record
or dataset).
"""

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmpo.annotate.agreement import choose_columns, compared
from mmpo.annotate.argilla.answers import ANSWERS, HumanGrade, Key, PulledAnswers, Raters, read_answers, reject_row
from mmpo.annotate.argilla.client import (
    Client,
    Unreachable,
    connect,
    dataset_of,
    datasets_of,
    members_of,
    records_of,
    settings_of,
    users_of,
    workspace_of,
)
from mmpo.annotate.argilla.dataset import AskedQuestion, asked_of
from mmpo.annotate.argilla.merge import Merged, merge_answers
from mmpo.annotate.argilla.options import PullOptions
from mmpo.annotate.client import public_url
from mmpo.pipeline.api import load_feedback
from mmpo.pipeline.errors import PartialResult, UserError, printable
from mmpo.pipeline.progress import Progress
from mmpo.pipeline.storage import (
    RowAccounting,
    check_out,
    dataset_at,
    describe,
    read_manifest,
    read_parts,
    replacing,
    url_of,
    write_feedback,
)

FILE = ".answers.parquet"
"""Hidden, so that a folder of FEEDBACK is read without it."""
SLICE = 4096


def pull(
    dataset: str,
    out: str | Path,
    workspace: str | None = None,
    *,
    options: PullOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the answers of a dataset as FEEDBACK; the key comes from the environment variable ARGILLA_API_KEY.

    Returns counts: "grades", "new", "changed", "unchanged", "withdrawn", "kept" (gone from Argilla, by why), "responses" and
    "records" by what became of them, "raters" with their grades, "left_out" by reason, "agreement" (what `agree` returns, or None
    and why in "agreement_note"), "finished": whether every submitted answer is in.

    Raises UserError (no server, wrong key, no such workspace or dataset, a folder that holds something else) and PartialResult
    (Argilla went away while it was read; nothing was written).
    """
    options, folder = options or PullOptions(), Path(out)
    check_out(folder)
    with connect(options.api_url) as client:
        space = workspace_of(client, workspace)
        earlier = _earlier(folder, dataset, space["name"], options)
        base = None if options.feedback is None else load_feedback(options.feedback)
        found = _dataset(client, space, dataset, folder if earlier is not None else None)
        asked, users, records = _responses(client, space, found, progress)
    raters = Raters(users, real_names=options.real_names)
    answers = read_answers(records, asked, raters, trust_labels=options.trust_labels)
    old, before = earlier or ({}, None)
    merged = merge_answers(answers, old, raters, before=before, base=base, source=f"argilla:{dataset}")
    if not merged.answers:
        raise UserError(_nothing(dataset, client, answers, merged))
    about = {
        "dataset": dataset, "dataset_id": found["id"], "workspace": space["name"], "api_url": public_url(client.url),
        "real_names": options.real_names, "feedback": None if options.feedback is None else Path(options.feedback).name,
        "aspects": sorted({one.aspect for one in asked.values()}),
    }  # fmt: skip
    _write(folder, merged, answers, about)
    return _summary(folder, merged, answers, raters, asked, compared=base is not None)


def status(
    dataset: str,
    workspace: str | None = None,
    *,
    api_url: str | None = None,
    real_names: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How far people are with a dataset; nothing is written. The key comes from the environment variable ARGILLA_API_KEY.

    Returns "dataset", "workspace", "url", "records", "raters_wanted" (submitted answers that complete a record), "complete", "begun"
    (some answers, too few) and "untouched" records, "people": a row per annotator of the workspace, and who else answered, with "name"
    (a pseudonym unless real_names), "submitted", "draft", "discarded", "left" (records that are not complete and that they have not
    done) and "last" (when they last changed an answer), "grades", and "agreement" so far (what `agree` returns without intervals, or
    None and why in "agreement_note").

    Raises UserError (no server, wrong key, no such workspace or dataset) and PartialResult (Argilla went away while it was read).
    """
    with connect(api_url) as client:
        space = workspace_of(client, workspace)
        found = _dataset(client, space, dataset, None)
        asked, users, records = _responses(client, space, found, progress)
        invited = members_of(client, space["id"])
        url = public_url(client.url)
    raters = Raters(users, real_names=real_names)
    merged = merge_answers(
        read_answers(records, asked, raters, trust_labels=False), {}, raters, before=None, base=None, source=f"argilla:{dataset}"
    )
    wanted = int(found["distribution"]["min_submitted"])
    by_record = [{one["user_id"]: one for one in record.get("responses") or ()} for record in records]
    submitted = [sum(one["status"] == "submitted" for one in answers.values()) for answers in by_record]
    open_ = [answers for answers, count in zip(by_record, submitted, strict=True) if count < wanted]
    people = []
    for user in dict.fromkeys([*invited, *(user for answers in by_record for user in answers)]):
        own = [answers[user] for answers in by_record if user in answers]
        counts = Counter(one["status"] for one in own)
        done = sum(user in answers and answers[user]["status"] != "draft" for answers in open_)
        people.append(
            {
                "name": raters.of(user), **{status: counts[status] for status in ("submitted", "draft", "discarded")},
                "left": len(open_) - done, "last": max((str(one["updated_at"]) for one in own), default=None),
            }
        )  # fmt: skip
    agreement, note = _agreement(merged, None) if merged.answers else (None, "nobody has submitted an answer yet")
    return {
        "dataset": dataset, "workspace": space["name"], "url": url, "records": len(records), "raters_wanted": wanted,
        "complete": sum(count >= wanted for count in submitted), "begun": sum(0 < count < wanted for count in submitted),
        "untouched": sum(not count for count in submitted), "people": sorted(people, key=lambda one: (-one["submitted"], one["name"])),
        "grades": len(merged.answers), "agreement": agreement, "agreement_note": note,
    }  # fmt: skip


def _responses(
    client: Client, space: Mapping[str, Any], found: Mapping[str, Any], progress: Progress | None
) -> tuple[dict[str, AskedQuestion], dict[str, str], list[dict[str, Any]]]:
    """What a dataset asks, its workspace's users by id, and its records with their responses. Raises UserError, PartialResult."""
    try:
        asked = asked_of(settings_of(client, found["id"]))
        users = users_of(client, space["id"])
        records = records_of(client, found["id"], ["responses"], progress)
    except Unreachable as error:
        raise PartialResult(f"{error}. Nothing was written; run the same command again") from None
    if not asked:
        raise UserError(
            f"the dataset {printable(found['name'])!r} asks nothing that mmpo can read; pull one that `mmpo argilla push` made"
        )
    return asked, users, records


def _dataset(client: Client, space: Mapping[str, Any], name: str, folder: Path | None) -> dict[str, Any]:
    """The dataset of a name. folder: that of an earlier pull. Raises UserError."""
    found = dataset_of(client, space["id"], name)
    if found is not None:
        return found
    names = ", ".join(sorted(printable(one["name"]) for one in datasets_of(client, space["id"]))) or "none"
    kept = f" What was pulled before is still in {folder}." if folder else ""
    raise UserError(
        f"no dataset {printable(name)!r} in workspace {printable(space['name'])!r} at {client.url}; there are: {names}. It was renamed or "
        f"deleted, or never pushed: `mmpo argilla push` makes it.{kept}"
    )


def _earlier(folder: Path, dataset: str, workspace: str, options: PullOptions) -> tuple[dict[Key, HumanGrade], pa.Table] | None:
    """The answers and the FEEDBACK of an earlier pull into the same folder, None where there was none. Raises UserError."""
    if url_of(folder):
        if (stands := dataset_at(folder)) is None:
            return None
        folder = stands
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    about = read_manifest(folder).get("argilla")
    if about is None:
        raise UserError(
            f"--out {folder} holds a dataset that was not pulled from Argilla; name another folder (to add people's grades to that one: "
            f"--feedback {folder} --out NEW)"
        )
    if missing := {"dataset", "workspace", "real_names", "feedback"} - about.keys():
        raise UserError(
            f"--out {folder}: its manifest is damaged, it lacks argilla's {', '.join(sorted(missing))}; name another folder"
        )
    if (about["dataset"], about["workspace"]) != (dataset, workspace):
        raise UserError(
            f"--out {folder} holds the answers of {printable(about['dataset'])!r} (workspace {printable(about['workspace'])!r}), not of "
            f"{printable(dataset)!r}; name another folder"
        )
    for flag, before, now in (
        ("--real-names", about["real_names"], options.real_names),
        ("--feedback", about["feedback"], None if options.feedback is None else Path(options.feedback).name),
    ):
        if before != now:
            how = "without" if not before else f"with {flag}" + (f" {before}" if isinstance(before, str) else "")
            raise UserError(f"--out {folder} was pulled {how} {'' if before else flag}: do so again, or name another folder")
    rows = read_parts([folder / FILE], ANSWERS, nullable=None).to_pylist()
    answers = [HumanGrade(**row) for row in rows]
    return {one.key: one for one in answers}, load_feedback(folder)


def _accounted(answers: PulledAnswers, merged: Merged) -> RowAccounting:
    accounting = RowAccounting()
    homeless = {"not_in_feedback": len(merged.homeless)} if merged.homeless else {}
    accounting.count("pull", "grade", created=len(merged.answers) + len(merged.homeless), out=len(merged.answers), dropped=homeless)
    for unit, counts in (("record", answers.records), ("response", answers.responses)):
        dropped = {reason: count for reason, count in counts.items() if reason != "used" and count}
        accounting.count("pull", unit, into=sum(counts.values()), out=counts["used"], dropped=dropped)
    return accounting


def _write(folder: Path, merged: Merged, answers: PulledAnswers, about: Mapping[str, Any]) -> None:
    metadata = {"recipe": {"argilla": dict(about)}, "inputs": []}
    table = merged.table
    rejects = answers.rejects + [_homeless(one) for one in merged.homeless]
    with replacing(folder) as temporary:
        slices = ((table.slice(start, SLICE), ()) for start in range(0, table.num_rows, SLICE))
        digests = write_feedback(temporary, metadata, chain([(table.slice(0, 0), rejects)], slices))
        pq.write_table(pa.Table.from_pylist([vars(one) for one in merged.answers], ANSWERS), temporary / FILE, compression="zstd")
        describe(temporary, metadata, table.num_rows, _accounted(answers, merged), digests, argilla=dict(about))


def _homeless(one: HumanGrade) -> dict[str, Any]:
    evidence = {"record": one.record, "rater": one.rater, "first_id": one.first_id, "second_id": one.second_id, "value": one.value}
    return reject_row("grade", "not_in_feedback", one.prompt_id, evidence)


def _nothing(dataset: str, client: Client, answers: PulledAnswers, merged: Merged) -> str:
    reasons = {**answers.responses, "used": 0, "not_in_feedback": len(merged.homeless)}
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()) if count)
    why = f"no answer gives a grade ({counts})" if counts else "nobody has submitted an answer yet"
    return f"{printable(dataset)!r} at {client.url}: {why}; nothing was written"


def _agreement(merged: Merged, kinds: list[str] | None) -> tuple[dict[str, Any] | None, str | None]:
    """How far raters agree, without intervals, which take longer than all the rest (`mmpo agree` has them); or why nothing is known."""
    try:
        return compared(merged.table, choose_columns(merged.table, kinds=kinds)), None
    except UserError as error:
        return None, str(error)


def _summary(
    folder: Path, merged: Merged, answers: PulledAnswers, raters: Raters, asked: Mapping[str, AskedQuestion], *, compared: bool
) -> dict[str, Any]:
    left_out = {
        reason: count for reason, count in answers.responses.items() if reason not in ("used", "draft", "discarded") and count
    }
    if merged.homeless:
        left_out["not_in_feedback"] = len(merged.homeless)
    agreement, note = _agreement(merged, None if compared else ["human"])
    return {
        "out": str(folder), "prompts": merged.table.num_rows, "grades": len(merged.answers), "new": merged.new,
        "changed": merged.changed, "unchanged": merged.unchanged, "withdrawn": merged.withdrawn, "replaced": merged.replaced,
        "kept": dict(merged.kept), "responses": dict(answers.responses), "records": dict(answers.records),
        "raters": dict(sorted(Counter(one.rater for one in merged.answers).items())), "nameless": sorted(raters.nameless),
        "reworded": sorted(one.name for one in asked.values() if one.reworded), "metadata_missing": answers.metadata_missing,
        "left_out": left_out, "agreement": agreement, "agreement_note": note, "finished": not left_out,
    }  # fmt: skip
