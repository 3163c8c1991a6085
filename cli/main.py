"""The command line: `mmpo COMMAND ...`.

Exit status: 0 done, 2 wrong input or options, 3 finished in part, 130 interrupted, 143 ended by SIGTERM, 1 our bug.

Only the command that is asked for is imported, so `mmpo --help` costs milliseconds and needs neither torch nor pandas.
"""

import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from difflib import SequenceMatcher, get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from mmpo.cli.completion import stub
from mmpo.cli.entry import INTERRUPTED, say_interrupted, was_interrupted
from mmpo.cli.entry import main as main
from mmpo.cli.help import QUIET, VERBOSE, Command, Group, HelpAll, Quiet, Verbose, with_common

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("mmpo.cli.commands.doctor:doctor", "What is installed, what works, and what each extra would add."),
    "init": ("mmpo.cli.recipe.init:init", "A recipe for a file of your own, written after a look at it."),
    "run": ("mmpo.cli.recipe.run:run", "All stages that a recipe names: pairs, checks, training, comparison."),
    "build": ("mmpo.cli.commands.data.build:build", "Feedback files into a dataset of pairs with quality margins."),
    "generate": ("mmpo.cli.commands.generate:generate", "Prompts into candidates, by models at endpoints or on this machine."),
    "judge": ("mmpo.cli.commands.judge:judge", "LLM judges grade how much better, through any OpenAI-compatible endpoint."),
    "score": ("mmpo.cli.commands.score:score", "Reward models and policies grade completions."),
    "select": ("mmpo.cli.commands.agree:select", "Which pairs deserve a person next."),
    "argilla": (
        "mmpo.cli.commands.argilla:COMMANDS",
        "Grades from people, through Argilla: serve one here, push to it, pull from it.",
    ),
    "validate": ("mmpo.cli.commands.data.dataset:validate", "Check a dataset: contract, leakage, duplicates, margins, ties."),
    "report": (
        "mmpo.cli.commands.data.report:report",
        "A self-contained HTML page to judge a dataset by, or what changed between two.",
    ),
    "rejects": ("mmpo.cli.commands.data.dataset:rejects", "What a build left out, by reason, with examples."),
    "gamma": ("mmpo.cli.commands.data.dataset:gamma", "Suggest γ and show what each γ makes of the margins."),
    "advise": ("mmpo.cli.commands.advise:advise", "Measure whether margins help on these data, and what to set."),
    "export": ("mmpo.cli.commands.data.out:export", "Write a dataset in another tool's format."),
    "push": (
        "mmpo.cli.commands.data.out:push",
        "A dataset or a model to the Hugging Face Hub, in one commit, private unless asked.",
    ),
    "pull": ("mmpo.cli.commands.data.out:pull", "A pushed dataset back as the folder that it was, digests compared."),
    "agree": ("mmpo.cli.commands.agree:agree", "Agreement among raters, judges against people."),
    "calibrate": ("mmpo.cli.commands.agree:calibrate", "Graders' margins onto people's, with errors."),
    "train": ("mmpo.cli.commands.train:train", "Train a policy or a reward model on a dataset."),
    "merge": ("mmpo.cli.commands.train:merge", "An adapter and its base as one whole model."),
    "evaluate": ("mmpo.cli.commands.evaluate:COMMANDS", "Accuracy and calibration of a trained model; benchmarks."),
    "list": ("mmpo.cli.commands.lists:list_", "What can be chosen by name: formats, losses, metrics, ..., one line each."),
    "formats": ("mmpo.cli.commands.lists:formats", "The input formats, one line each."),
    "losses": ("mmpo.cli.commands.lists:losses", "The training objectives, one line each."),
    "rubrics": ("mmpo.cli.commands.lists:rubrics", "What judges can be asked to look at, one line each."),
    "pairings": ("mmpo.cli.commands.lists:pairings", "The ways to choose the pairs that judges compare, one line each."),
    "replies": ("mmpo.cli.commands.lists:replies", "The ways to read a judge's reply, one line each."),
}
"""Every command: where its function is and one line about it. Where a table like this one is named instead, it is a group."""

WITHOUT_PANDAS = {"build", "validate", "report", "rejects", "gamma", "export", "push", "pull", "agree", "calibrate"}
"""Commands that use no pandas, which pyarrow would import: half a second on a busy core. Outside code (module:function) may want it."""

EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "accelerate", "peft", "tokenizers", "sklearn"), "train"),
    **dict.fromkeys(("openai", "httpx2", "scipy", "threadpoolctl"), "judge"),
    **dict.fromkeys(("argilla", "requests", "httpx"), "argilla"),
}
"""Which extra installs a module that the core installation lacks."""

CALLED_ELSEWHERE = {
    **dict.fromkeys(("--lr", "--rate"), "--learning-rate"),
    **dict.fromkeys(
        ("--batch-size", "--train-batch-size", "--per-device-train-batch-size", "--gradient-accumulation-steps"), "--pairs-per-step"
    ),
    **dict.fromkeys(("--num-train-epochs", "--num-epochs", "--n-epochs"), "--epochs"),
    **dict.fromkeys(("--model-name-or-path", "--model-name", "--base-model"), "--model"),
    **dict.fromkeys(("--dataset-name", "--dataset", "--train-file"), "--data"),
    **dict.fromkeys(("--output-dir", "--output", "--save-dir"), "--out"),
    **dict.fromkeys(("--lora-r", "--lora-rank", "--use-peft"), "--lora"),
    "--lora-target-modules": "--lora-targets",
    **dict.fromkeys(("--load-in-4bit", "--load-in-8bit"), "--load-in"),
    "--max-prompt-len": "--max-prompt-length",
    **dict.fromkeys(("--max-len", "--max-seq-len", "--max-seq-length"), "--max-length"),
    "--loss-type": "--loss",
    "--ref-model": "--reference",
    "--optim": "--optimizer",
    "--lr-scheduler-type": "--schedule",
    "--warmup-steps": "--warmup-ratio",
    **dict.fromkeys(("--eval-strategy", "--evaluation-strategy"), "--eval-steps"),
    **dict.fromkeys(("--max-new-tokens", "--max-completion-length"), "--max-tokens"),
    **dict.fromkeys(("--num-proc", "--num-workers"), "--workers"),
    **dict.fromkeys(("--separator", "--delimiter", "--delim", "--seperator"), "--sep"),
}
"""What TRL, transformers and others call an option → what it is called here, offered by the commands that have it."""

_AS_NEAR = 0.07
"""Of names as near as this to the nearest one (0 to 1, difflib's ratio) all are offered."""


def leave_pandas_out(arguments: Sequence[str]) -> None:
    """For the rest of this process, where the command needs none."""
    outside = any(re.search(r":[A-Za-z_]", word) for word in arguments)
    if not outside and _asked_for(arguments) & WITHOUT_PANDAS:
        from mmpo.pipeline import arrow  # imported here: pyarrow, which --help does without

        arrow.leave_pandas_out()


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; messages go to standard error, fewer with -q, more with -v.

    >>> run(["--version"])  # doctest: +ELLIPSIS
    mmpo ...
    0
    """
    before = {name: os.environ.get(name) for name in (QUIET, VERBOSE)}
    began = time.monotonic()
    try:
        status = _run(arguments)
        if os.environ.get(VERBOSE):
            _say_used(time.monotonic() - began)
        return status
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _say_used(seconds: float) -> None:
    """The time, CPU seconds and memory that this process and those it waited for took, where the system tells."""
    from mmpo.pipeline.progress import duration  # imported here: the package mmpo.pipeline loads pyarrow

    try:
        import resource  # Windows has none
    except ImportError:
        told = ""
    else:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(one.ru_utime + one.ru_stime for one in used)
        unit = 1 << (20 if sys.platform == "darwin" else 10)
        told = f", {cpu:.1f} CPU seconds, at most {max(one.ru_maxrss for one in used) / unit:,.0f} MiB in one process"
    print(f"took {duration(seconds)}{told}", file=sys.stderr)


def _run(arguments: Sequence[str]) -> int:
    for word in arguments:
        if not word.isascii() and word != word.encode(errors="replace").decode():
            return _say(f"{word!a} holds bytes that are no UTF-8 text, and what is given is kept in files: write or rename it", 2)
    if (empty := _empty(arguments)) is not None:
        return _say(f"{empty} is empty, as a shell variable that is not set is; give it a value, or leave it out", 2)
    try:
        # Inside: importing a command takes long enough to be interrupted, and may need an extra that is missing.
        words, load = (_line_of_shell(), stub) if "_MMPO_COMPLETE" in os.environ else (arguments, _load)
        command = typer.main.get_command(make_app(_asked_for(words), load))
        gc.enable()
        status = command.main(list(arguments), prog_name="mmpo", standalone_mode=False)
    except (KeyboardInterrupt, Abort):
        status = INTERRUPTED
    except Exception as error:
        if not was_interrupted(error):
            return _failed(error)
        status = INTERRUPTED
    if status == INTERRUPTED:
        return say_interrupted()
    return status if isinstance(status, int) else 0


def _empty(arguments: Sequence[str]) -> str | None:
    """The option, or argument, whose text is empty: taken for none, it would stand for a default, or for the folder at hand.

    >>> _empty(["judge", "rows", "--base-url", ""]), _empty(["judge", "--base-url="]), _empty(["judge", ""]), _empty(["judge"])
    ('--base-url', '--base-url', 'an argument', None)
    """
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word == "":
            return before if before.startswith("-") else "an argument"
        if re.fullmatch("--[a-z-]+=", word):
            return word[:-1]
    return None


def _failed(error: Exception) -> int:
    """The exit status of an error, after its one message; a traceback only where it is our bug, and with -v."""
    if os.environ.get(VERBOSE):
        traceback.print_exception(error)
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        words = str(error).removeprefix("Value error, ") or "wrong usage"
        parameter = getattr(error, "param", None)
        names = getattr(parameter, "opts", ())
        if words.startswith("Missing parameter"):
            metavar, told = getattr(parameter, "metavar", None), getattr(parameter, "help", None)
            name = names[0] if names and names[0].startswith("-") else metavar or words.rpartition(" ")[2]
            words = f"{name} is missing{f': {told}' if told else ''}".rstrip(".")
        if names and names[0].startswith("-") and words.startswith("Input should be "):  # which says nothing of where
            words = f"{names[0]}: {words}"
        return _say(words + _closest_option(error, context), 2, context)
    # Imported here: the package mmpo.pipeline loads pyarrow, which --help does without.
    from mmpo.pipeline.errors import PartialResult, UserError

    if isinstance(error, (UserError, PartialResult)):
        return _say(str(error), 2 if isinstance(error, UserError) else 3)
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is not None:
            line = f"pip install 'mmpo[{extra}]'"
            return _say(f"this command needs the extra {extra!r}: {line} ({error.name} is missing)", 2)
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        where = f"{error.filename}: " if error.filename is not None else ""
        return _say(f"{where}{error.strerror or error}", 2)
    traceback.print_exception(error)
    return 1


def _closest_option(error: Exception, context: Any) -> str:
    """Of an option that there is not: what it is called here, or the nearest ones that there are."""
    given = getattr(error, "option_name", None)
    if given is None or context is None:
        return ""
    known = ["--help", *(name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts))]
    written = given.replace("_", "-")
    close = [name for name in (written, CALLED_ELSEWHERE.get(written, "")) if name in known]
    if not close:
        near = {name: SequenceMatcher(None, name, written).ratio() for name in get_close_matches(written, known, cutoff=0.5)}
        close = [name for name, ratio in near.items() if ratio > max(near.values()) - _AS_NEAR]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def all_commands() -> dict[str, Any]:
    """Every command's name → its function; a group's name → its table, and "GROUP COMMAND" → the function."""
    found: dict[str, Any] = {}
    for name, (where, _) in COMMANDS.items():
        found[name] = _load(name, where)
        if isinstance(found[name], dict):
            found |= {f"{name} {member}": _load(name, of_member) for member, (of_member, _) in found[name].items()}
    return found


def _asked_for(arguments: Sequence[str]) -> set[str]:
    """The command that the arguments name, and the members of its group that they may name.

    >>> sorted(_asked_for(["argilla", "push", "pairs"]))
    ['argilla', 'argilla pairs', 'argilla push']
    """
    place = next((place for place, word in enumerate(arguments) if word in COMMANDS), len(arguments))
    named = arguments[place : place + 1]
    return {*named, *(f"{named[0]} {word}" for word in arguments[place + 1 :])}


def _line_of_shell() -> list[str]:
    """The words of the line that a shell asks completions for, as typer's scripts hand it over."""
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()


def make_app(wanted: Collection[str], load: Callable[[str, str], Any] | None = None) -> typer.Typer:
    """The typer application with the commands in `wanted` imported ("GROUP COMMAND" of a group); the others have one line only.

    load: what imports a command, by its name and where it is.
    """
    load = load or _load
    app = _new_app("mmpo", "Graded feedback into quality margins, and models trained on how much better, not only which.")
    app.callback(invoke_without_command=True)(_top)
    for name, (where, summary) in COMMANDS.items():
        function = load(name, where) if name in wanted else _not_loaded
        if isinstance(function, dict):
            group = _new_app(name, summary)
            group.callback(invoke_without_command=True)(_help_of_group)
            for member, (of_member, line) in function.items():
                full = f"{name} {member}"
                _register(group, member, load(full, of_member) if full in wanted else _not_loaded, line, full in wanted)
            app.add_typer(group, name=name, help=summary, short_help=summary)
        else:
            _register(app, name, function, summary, name in wanted)
    return app


def _new_app(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=Group,
        help=text,
        add_completion=name == "mmpo",
        no_args_is_help=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _register(app: typer.Typer, name: str, function: Callable[..., Any], summary: str, loaded: bool) -> None:
    command = with_common(function) if loaded else function
    app.command(name, cls=Command, help=None if loaded else summary, short_help=summary)(command)


def _help_of_group(context: typer.Context, help_all: HelpAll = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _top(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the versions of mmpo and what is below it.")] = False,
    help_all: HelpAll = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    if show_version:
        from mmpo.cli.installed import versions

        print("\n".join(f"{name} {version}" for name, version in versions().items()))
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _load(name: str, where: str) -> Any:
    module, _, function = where.partition(":")
    return getattr(import_module(module), function)


def _not_loaded() -> None:
    raise AssertionError("a command was asked for that was not imported")


def _say(message: str, status: int, context: Any = None) -> int:
    from mmpo.pipeline.errors import inert  # imported here: the package mmpo.pipeline loads pyarrow

    hint = f"\nSee: {context.command_path} --help" if context is not None else ""
    print(inert(f"error: {message}{hint}"), file=sys.stderr)
    return status
