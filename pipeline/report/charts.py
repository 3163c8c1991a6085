"""Charts as SVG: bars and lines that follow the reader's colours, light, dark or on paper; laid out here, drawn by the template `chart`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmpo.pipeline.margins import Floats

WIDTH, HEIGHT = 460.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 26.0, 42.0
Point = tuple[float, float]


@dataclass
class Chart:
    """A chart laid out, in units of its view box (x to the right, y down).

    caption: what it shows, in words; advice: what to do where it looks bad. bars: (x, y, width, height, series); lines: (points of an SVG
    polyline, series); bands: (points of a polygon, series); whiskers: (x, y of the top, y of the foot, series); dots: (x, y, series);
    rules: x or y of reference lines; ticks: (place, text); legend: (series, text).
    """

    caption: str
    advice: str
    x_label: str
    y_label: str
    bars: list[tuple[float, float, float, float, int]] = field(default_factory=list)
    lines: list[tuple[str, int]] = field(default_factory=list)
    bands: list[tuple[str, int]] = field(default_factory=list)
    whiskers: list[tuple[float, float, float, int]] = field(default_factory=list)
    dots: list[tuple[float, float, int]] = field(default_factory=list)
    rules: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    legend: list[tuple[int, str]] = field(default_factory=list)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most so many and one.

    >>> ticks(0, 27.6), ticks(0, 1)
    ([0.0, 10.0, 20.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9)), power * 10)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, math.floor(high / step + 1e-9) + 1)]


def scaled(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value stands between two ends, for a range that may be of no width."""
    width = high - low or 1.0
    return lambda value: round(start + (float(value) - low) / width * (end - start), 2)


def short(value: float) -> str:
    """A number at a tick.

    >>> short(0.25), short(1200000.0), short(25000), short(4000), short(-3)
    ('0.25', '1.2M', '25k', '4,000', '-3')
    """
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or abs(value) >= size == 1e6:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def histogram(
    series: Sequence[tuple[str, Floats]],
    edges: Floats,
    *,
    caption: str,
    advice: str,
    x_label: str,
    shares: bool = False,
    labels: Mapping[float, str] | None = None,
    rules: Sequence[float] = (),
    intervals: Sequence[Sequence[Sequence[float]]] = (),
) -> Chart:
    """Bars of how many values fall between the edges, shape (bins + 1,); series: names and counts, (bins,) each, side by side.

    shares: of each series instead of counts; labels: ticks of the x axis; rules: values at which lines stand; intervals: bounds of each
    bar of each series, in the unit of the bars.
    """
    chart = Chart(caption, advice, x_label, "share of pairs" if shares else "pairs")
    heights = [counts / max(float(counts.sum()), 1.0) if shares else counts.astype(float) for _, counts in series]
    tops = [float(one.max(initial=0)) for one in heights] + [float(bound[1]) for one in intervals for bound in one]
    top = max(tops, default=1.0) or 1.0
    x, y = _axes(chart, (float(edges[0]), float(edges[-1])), (0.0, top * 1.04), labels)
    for place, one in enumerate(heights):
        for at, height in enumerate(one.tolist()):
            left, right = x(edges[at]), x(edges[at + 1])
            width = (right - left) / len(heights)
            if height:
                chart.bars.append(
                    (round(left + place * width, 2), y(height), round(max(width - 0.6, 0.4), 2), round(y(0) - y(height), 2), place)
                )
            if intervals:
                low, high = intervals[place][at]
                chart.whiskers.append((round(left + (place + 0.5) * width, 2), y(high), y(low), place))
    chart.rules = [x(value) for value in rules if edges[0] <= value <= edges[-1]]
    chart.legend = [(place, name) for place, (name, _) in enumerate(series)] if len(series) > 1 else []
    return chart


def line_chart(
    series: Sequence[Mapping[str, Any]],
    *,
    caption: str,
    advice: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] = (0.0, 1.0),
    log: bool = False,
    labels: Mapping[float, str] | None = None,
    rules: Sequence[float] = (),
    levels: Sequence[float] = (),
) -> Chart:
    """Lines through points. series: {"name", "x", "y"}, and "low" with "high" for a band, or "bounds" (a pair or None each) for whiskers.

    log: the x axis; rules: values of x, levels: values of y at which lines of reference stand.
    """
    chart = Chart(caption, advice, x_label, y_label)
    turned = math.log10 if log else float
    every = [turned(value) for one in series for value in one["x"]]
    x, y = _axes(chart, (min(every), max(every)), y_range, {turned(at): words for at, words in labels.items()} if labels else None)
    for place, one in enumerate(series):
        at = [x(turned(value)) for value in one["x"]]
        if "low" in one:
            around = [*zip(at, map(y, one["low"]), strict=True), *reversed(list(zip(at, map(y, one["high"]), strict=True)))]
            chart.bands.append((_points(around), place))
        points = list(zip(at, map(y, one["y"]), strict=True))
        chart.lines.append((_points(points), place))
        if "bounds" in one:
            chart.dots += [(*point, place) for point in points]
            chart.whiskers += [(at[i], y(pair[1]), y(pair[0]), place) for i, pair in enumerate(one["bounds"]) if pair]
    chart.rules = [x(turned(value)) for value in rules]
    chart.levels = [y(value) for value in levels]
    chart.legend = [(place, one["name"]) for place, one in enumerate(series)] if len(series) > 1 else []
    return chart


def _axes(
    chart: Chart, x_range: tuple[float, float], y_range: tuple[float, float], labels: Mapping[float, str] | None
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    x = scaled(*x_range, LEFT, WIDTH - RIGHT)
    y = scaled(*y_range, HEIGHT - BOTTOM, TOP)
    named = labels or {value: short(value) for value in ticks(*x_range)}
    chart.x_ticks = [(x(value), words) for value, words in named.items()]
    chart.y_ticks = [(y(value), short(value)) for value in ticks(*y_range, 4)]
    return x, y


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def counted(values: Floats, edges: Floats) -> Floats:
    """How many values fall between the edges; those outside count at the ends."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(float)
