"""Models as graders: a reward model, or a policy's implicit reward, grades the completions of FEEDBACK."""

from typing import TYPE_CHECKING, Any

from mmpo.train.scoring.options import ScoreOptions, Scorer, scorers_of

if TYPE_CHECKING:
    from mmpo.train.scoring.run import score


def __getattr__(name: str) -> Any:
    # The command line reads the options without torch.
    if name != "score":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmpo.train.scoring.run import score

    return score
