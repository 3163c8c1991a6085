"""What the commands that ask models say while they do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmpo.annotate.asking import keys_of_model
from mmpo.cli.output import say
from mmpo.pipeline.progress import ProgressReporter, waiting

if TYPE_CHECKING:
    from mmpo.annotate.generate import GenerateOptions

WORDS = {
    "stopping": "stopping: waiting for what is in flight; Ctrl-C again leaves at once",
    "writing": "writing feedback",
}


def counted(reasons: Mapping[str, int]) -> str:
    """Counts by reason in words, most first."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


@contextmanager
def asking(title: str) -> Iterator[Any]:
    """A function of each model's counts; what earlier runs had answered already is no work of this one, and counted beside it."""
    with ProgressReporter(title, "requests") as report:

        def show(counts: dict[str, Any], what: str) -> None:
            if what:
                say(WORDS.get(what, what))
            for name, one in counts.items():
                report(name, one.done - one.cached, one.total - one.cached, told_of(one))

        yield show


def say_end(summary: Mapping[str, Any], written: str) -> None:
    """The last lines of a run that asked: why it stopped, what is `written` and where, and how the rest is got."""
    if summary["stopped"]:
        say(f"stopped: {summary['message']}", always=True)
    say(written)
    if not summary["finished"]:
        say(f"not finished: what came is safe in {summary['journal']}; the same command again asks for the rest", always=True)


def local_engine(given: str | Mapping[str, Any]) -> Any:
    """The model on this machine that `--local` names."""
    from mmpo.train import LocalModel
    from mmpo.train.options import LocalOptions

    return LocalModel(**keys_of_model(LocalOptions, given, "local model", "--local"))


@contextmanager
def local_engines(given: Sequence[str | Mapping[str, Any]], options: "GenerateOptions") -> Iterator[list[Any]]:
    """The models that `--local` names, on the engine that the options name, as long as the block lasts."""
    if not given:
        yield []
        return
    from mmpo.train import local_models
    from mmpo.train.options import LocalOptions

    asked = [keys_of_model(LocalOptions, one, "local model", "--local") for one in given]
    with local_models(asked, engine=options.engine, ray_address=options.ray_address, workers=options.workers) as found:
        yield found


def told_of(counts: Any) -> str:
    """A line about one model: what it has done, and what it waits for."""
    parts = {
        "known before": counts.cached, "in flight": counts.in_flight, "retried": counts.retried,
        "failed": sum(counts.failed.values()), "tokens": counts.prompt_tokens + counts.reply_tokens,
    }  # fmt: skip
    cost = [f"${counts.cost:.4f}"] if counts.priced else []
    wait = [waiting(*found)] if (found := counts.waiting()) else []
    return ", ".join([*(f"{number:,} {name}" for name, number in parts.items() if number), *cost, *wait])
