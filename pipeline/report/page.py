"""What the pages share: the template environment (everything escaped), tables of cells, figures embedded as data."""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmpo.pipeline.errors import UNSEEN
from mmpo.pipeline.metrics import MOST_TEMPERATURE
from mmpo.pipeline.storage.files import Identity, atomic_file

COLOURS = ("#24598f", "#c8622d", "#3f8f6b", "#8a5a9e", "#8c8c3a", "#5b6675")
"""Told apart in print and by colour-blind readers, in this order."""

_STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # names of data and models are text, "$" included
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b1",
    "axes.labelcolor": "#1c2430",
    "axes.grid": True,
    "grid.color": "#e7ebf0",
    "axes.axisbelow": True,
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its PNG and what it shows in words."""

    name: str
    png: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The PNG as a data: URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def draw(name: str, caption: str, *plots: Callable[[Any], None], size: tuple[float, float] = (5.6, 3.5)) -> Picture:
    """A figure with an axes for each of `plots` to fill, side by side; Agg, no global state. size: of one, in inches at 160 dots each."""
    import matplotlib  # a page without pictures does without it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * len(plots), size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
            plot(axes)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
    return Picture(name, buffer.getvalue(), caption)


def points(axes: Any, at: int, x: Sequence[float], rows: Sequence[Mapping[str, Any]], key: str, label: str, **look: Any) -> None:
    """Draw the figure `key` of each row at x with its interval, `KEY_95`, where it has one: a line in the look of the at-th of several."""
    y = [row[key] for row in rows]
    bounds = [row.get(f"{key}_95") or [value] * 2 for row, value in zip(rows, y, strict=True)]
    bars = [[max(0.0, value - low) for value, (low, _) in zip(y, bounds, strict=True)]]
    bars += [[max(0.0, high - value) for value, (_, high) in zip(y, bounds, strict=True)]]
    own = {"color": COLOURS[at % len(COLOURS)], "marker": "os^Dv<"[at % 6], "markersize": 5, "linewidth": 1.4, "elinewidth": 1}
    axes.errorbar(x, y, yerr=bars, label=label, **own | look)


def number(value: Any, digits: int = 3) -> str:
    """A number for readers: thousands apart, `digits` decimals for fractions, an en dash for what is undefined; each of an interval's.

    >>> number(12345), number(0.12345), number(None), number(float("inf")), number([0.12345, 0.5])
    ('12,345', '0.123', '–', '∞', '[0.123, 0.500]')
    """
    if isinstance(value, list):
        return f"[{', '.join(number(one, digits) for one in value)}]"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "∞" if value == "inf" else str(value)
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if value == 0 or 10**-digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def with_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """The figure of that name with its interval, `NAME_95`, where it has one; what is no further from 0 than rounding is 0.

    >>> with_interval({"x": 0.12345, "x_95": [0.1, 1e-17]}, "x"), with_interval({"x": None}, "x")
    ('0.123 [0.100, 0.000]', '–')
    """

    def words(value: Any) -> str:
        return number(0.0 if isinstance(value, float) and abs(value) < 1e-9 else value, digits)

    bounds = row.get(f"{name}_95")
    return words(row.get(name)) + (f" [{words(bounds[0])}, {words(bounds[1])}]" if bounds else "")


def trained_words(trained_on: Mapping[str, Any] | None) -> str:
    """What a model was trained on, as `mmpo evaluate` returns it, in words; nothing for a model that does not say.

    >>> trained_words({"loss": "mmpo", "loss_options": {}, "target": "plain", "gamma": 1.1, "control": "shuffled"})
    'mmpo, target plain, γ 1.100, control shuffled'
    """
    if not trained_on:
        return ""
    known = {
        "target": trained_on["target"],
        "γ": trained_on["gamma"],
        **trained_on["loss_options"],
        "control": trained_on["control"],
    }
    return ", ".join([trained_on["loss"], *(f"{name} {number(value)}" for name, value in known.items() if value is not None)])


def temperature_words(found: Mapping[str, Any]) -> str:
    """What of a temperature, in what `mmpo evaluate` returned, a reader would stumble over, in a sentence; nothing where there is nothing.

    >>> temperature_words({"temperature": 1000.0, "nll": 0.7, "scaled": {"nll": 0.69}})
    'The temperature stands at its bound, 1,000: what this model says foretells no label, and at it every confidence is about one half.'
    """
    if found.get("temperature") is None:
        return ""
    if found["temperature"] > MOST_TEMPERATURE:
        return (
            "The temperature stands at its bound, 1,000: what this model says foretells no label, and at it every confidence is about one "
            "half."
        )
    raw, at = found.get("nll"), found["scaled"].get("nll")
    if raw is None or at is None or at <= 2 * raw:
        return ""
    times = f"{at / raw:,.0f} times the raw one" if raw > 0 else "above the raw one, which is 0"
    return (
        f"At its temperature the nll is {times}: of the n pairs that it was fitted to nearly all are foretold, of which it supposes "
        "that one in n + 2 is wrong, and that keeps confidence below what is right here."
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    text: Sequence[str] = (),
    marked: str = "",
    titles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Columns and rows for the template's `table`. text: columns that hold words; marked: the key whose truth marks a
    row; titles: what stands above a column, else its key with spaces.

    A cell that is a pair (value, css class) is shown with that class, one of three with a shade behind it, from −1 to 1, as well.
    """

    def cell(name: str, value: Any) -> dict[str, Any]:
        value, kind, shade = (*value, 0.0)[:3] if isinstance(value, tuple) else (value, "", 0.0)
        return {"text": number(value), "kind": f"{'' if name in text else 'number'} {kind}".strip(), "shade": shade}

    return {
        "columns": [{"title": (titles or {}).get(name) or name.replace("_", " "), "number": name not in text} for name in columns],
        "rows": [{"cells": [cell(n, row.get(n)) for n in columns], "marked": bool(row.get(marked))} for row in rows],
    }


TEMPLATES = Path(__file__).parent / "templates"


def seen(text: str) -> str:
    r"""The text with what moves or hides other text spelled out: control characters but line ends and tabs, and those that set directions.

    >>> seen("a\u202eb\x1b[1m\n\tc")
    'a\\u202eb\\x1b[1m\n\tc'
    """
    kept = "\n\t\u200c\u200d"  # joiners are part of writing, as of Persian and of emoji
    return UNSEEN.sub(
        lambda found: found.group() if found.group() in kept else found.group().encode("unicode_escape").decode(),
        text.replace("\r\n", "\n"),
    )


def script(name: str) -> tuple[Markup, str]:
    """A script of ours from the templates, and the source that a page's policy allows: it and no other may run."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Markup(text), f"'sha256-{digest}'"


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """The template filled in, every value escaped and with nothing in it that is not seen."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: seen(value) if type(value) is str else value,
    )
    return environment.get_template(template).render(**values).encode("utf-8", "replace")


def write_whole(out: Path, content: bytes, stood: Identity | Literal["now"] = "now") -> Path:
    """The file, whole or not at all; stood as for `atomic_file`. UserError where it can't be written."""
    with atomic_file(out, stood=stood) as temporary:
        temporary.write_bytes(content)
    return out
