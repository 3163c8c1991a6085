"""Controls: training on targets that know less, so that what margins buy can be told from what comes along with them. Imports no torch.

Matched smoothing shows what softness alone buys; shuffled margins what targets of the same distribution buy that know nothing of their
pair. Ties stay as they are in both.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from mmpo.pipeline.errors import UserError
from mmpo.pipeline.margins import Floats
from mmpo.pipeline.storage import text_digest

CONTROLS = {
    "matched": "every untied pair gets the mean target of all of them: cdpo with ε = 1 − mean target, which knows no margin",
    "shuffled": "margins, with their targets, are permuted over the untied pairs of all prompts, by the seed and their ids",
}
_ASK_FOR_NO_MARGIN = {"dpo", "cdpo", "robust", "ipo", "sft", "centering"}


def check_control(control: str, terms: Iterable[str]) -> None:
    """Raises UserError where the objective would not see the control."""
    names = [name for name in terms if name not in ("sft", "centering")]
    if control == "matched" and set(names) - {"mmpo", "gdpo"}:
        raise UserError(
            f"control 'matched' gives pairs a mean target, which {', '.join(names) or 'this objective'} does not train on: take --loss mmpo"
        )
    if not set(names) - _ASK_FOR_NO_MARGIN:
        raise UserError(
            f"control {control!r} changes nothing: {', '.join(names) or 'this objective'} reads no margin; leave it out"
        )
    if "listwise" in names:
        raise UserError(
            "listwise reads the completions' scores, which belong to no pair: a control of it is none; take --loss mmpo"
        )


def controlled(control: str, p: Floats, margin: Floats, weight: Floats, names: Sequence[str], seed: int) -> tuple[Floats, Floats]:
    """Targets and margins of a control, from those of all training pairs, each (pairs,). The mean is weighted as the pairs are; what is
    drawn goes by the pairs' names and the seed, so that the same pairs get the same in whatever order they stand.
    """
    p, margin, decided = p.copy(), margin.copy(), np.flatnonzero(margin > 0).tolist()
    if control == "shuffled":
        told = {pair: (float(margin[pair]), float(p[pair])) for pair in decided}  # of pairs that stand there twice
        digests = {pair: text_digest(f"{seed}\0{names[pair]}") for pair in decided}
        places = sorted(decided, key=lambda pair: (names[pair], told[pair]))
        drawn = sorted(decided, key=lambda pair: (digests[pair], told[pair]))
        p[places], margin[places] = p[drawn], margin[drawn]
    elif weight[decided].sum() > 0:
        p[decided] = np.average(p[decided], weights=weight[decided])
    return p, margin
