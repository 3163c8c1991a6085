"""`select`: FEEDBACK in, the pairs that deserve a person next out."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmpo.annotate.select.choose import in_order
from mmpo.annotate.select.items import feedback_rows, item_of, pair_items
from mmpo.annotate.select.known_margins import feedback_margins, graded_pairs
from mmpo.annotate.select.options import SelectOptions
from mmpo.annotate.select.output import check_list, list_rows, write_list
from mmpo.annotate.select.pool import Featurize, Pool
from mmpo.annotate.select.ways import SELECTIONS
from mmpo.pipeline.api import feedback_table
from mmpo.pipeline.arrow import large, without_texts
from mmpo.pipeline.errors import UserError
from mmpo.pipeline.grades import grade_statistics, merge_prompts
from mmpo.pipeline.progress import Progress


def select(
    feedback: str | Path | pa.Table,
    out: str | Path | None = None,
    *,
    featurize: Featurize | None = None,
    progress: Progress | None = None,
    **given: Any,
) -> dict[str, Any]:
    """The pairs of completions that deserve a person next; feedback: a FEEDBACK folder, or a table of that schema; given: SelectOptions.

    featurize: makes features of completions where the way needs them (information, gap): `mmpo.train.completion_features`. out: a file
    .jsonl or .csv to write. Returns {"by", "pairs": the rows of that file, "candidates", "reasons": counts, "left_out": by reason,
    "fitted", "seconds", "out"?}; fitted, of ways that fit a head: {"features", "width", "people", "others": pairs, "spread", "looked_at"}.

    Raises UserError: no pair left, nothing that the way goes by (no graders, one grader, ties alone, features that do not vary), unknown
    names.

    >>> from mmpo.pipeline import read_feedback
    >>> rows = [
    ...     {"prompt": f"{n} + 1?", "completion": text, "score": score + shift * (n % 2), "rater": rater}
    ...     for n in range(12)
    ...     for text, score in ((f"{n + 1}.", 4), ("I know.", 2), ("No.", 1))
    ...     for rater, shift in (("ann", 0), ("bob", 1))
    ... ]
    >>> feedback = read_feedback(pa.Table.from_pylist(rows), scale=(1, 5), kind="ai")
    >>> found = select(feedback, by="random", limit=2)
    >>> found["candidates"], len(found["pairs"])
    (36, 2)
    """
    options, started = SelectOptions(**given), time.monotonic()
    if out is not None:
        check_list(Path(out))
    where = "the table" if isinstance(feedback, pa.Table) else str(feedback)
    table, _ = merge_prompts(large(feedback_table(feedback, "select")).combine_chunks())
    names = without_texts(table)
    groups = grade_statistics(names).groups
    graded = graded_pairs(names, groups, options.to, options.raters, by_models=SELECTIONS[options.by].by_models)
    left_out: Counter[str] = Counter()
    rows = list(feedback_rows(table, left_out))
    known = feedback_margins(names, groups)[0]
    items = [item for row in rows for item in pair_items(row, options.pairs, options.seed, known)]
    left_out["no_pair"] += len(rows) - len({item.prompt_id for item in items})
    free = [item for item in items if (item.prompt_id, frozenset(item.ids)) not in graded.people]
    left_out["graded_already"] += len(items) - len(free)
    if not free:
        raise _nothing(where, len(rows), len(items), options)
    context = [item_of(row, range(len(row.ids)), {}) for row in rows]
    pool = Pool(free, context, graded, options.seed, options.features, featurize)
    chosen = in_order(pool, options.by, options.limit, options.per_prompt, progress)
    summary: dict[str, Any] = {
        "by": options.by, "pairs": list_rows(chosen, options.seed), "candidates": len(free), "prompts": len(rows),
        "reasons": dict(Counter(one.reason for one in chosen)), "left_out": dict(+left_out), "fitted": pool.about,
    }  # fmt: skip
    if out is not None:
        write_list(Path(out), summary["pairs"])
        summary["out"] = str(out)
    return summary | {"seconds": time.monotonic() - started}


def _nothing(where: str, prompts: int, pairs: int, options: SelectOptions) -> UserError:
    if pairs:
        return UserError(
            f"{where}: nothing is left to ask: {', '.join(options.to)} graded all {pairs:,} pairs (--pairs {options.pairs}) already. Add "
            "completions (mmpo generate), or name with --to whose second opinion is wanted"
        )
    return UserError(
        f"{where} has no pair to choose from in {prompts:,} prompts (--pairs {options.pairs}): a pair takes two completions of a prompt; "
        "mmpo generate adds some"
    )
