"""Inline SVG for the report, from numbers to markup; colours and fonts come from the page through CSS classes."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

Point = tuple[float, float]

MOST_POINTS = 400  # of one polyline: a pixel or two apart
LABEL_GAP = 15.0  # pixels between the baselines of two direct labels
AROUND = 30.0  # pixels on both sides of a label, where a thread leads to it from the end of its line
LETTER = 7.6  # pixels of a label's letter
LEFT, TOP, BOTTOM = 46.0, 14.0, 44.0  # margins in pixels; the right one is what the labels need, up to half the width


class Line(NamedTuple):
    """One series: a polyline, a level (dashed, across the whole chart) or single rings; the label goes to its end."""

    label: str
    style: str
    points: Sequence[Point]
    shape: Literal["line", "level", "rings"] = "line"


class Axis(NamedTuple):
    """Values low..high on the pixels start..stop; on a log axis whatever is below `low` sits at the edge."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(low, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, about: int) -> list[float]:
        """Roughly `about` round numbers within the axis; on a log axis powers of ten, and the 0 at the edge."""
        if self.log:
            powers = range(math.ceil(math.log10(2 * self.low)), math.floor(math.log10(self.high)) + 1)
            return [0.0, *(10.0**power for power in powers)]
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def decimate(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` of the finite points, evenly spaced by position, first and last kept."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    last, most = len(finite) - 1, min(len(finite), MOST_POINTS)
    return [finite[round(index * last / max(most - 1, 1))] for index in range(most)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Short labels: 0.50 0.75 1.00 with the same precision, or 0 500 1k 1.5M when they reach a thousand."""
    if max(map(abs, ticks), default=0.0) >= 1000:
        sizes = [(1e6, "M") if abs(tick) >= 1e6 else (1e3, "k") if abs(tick) >= 1e3 else (1.0, "") for tick in ticks]
        return [f"{tick / size:g}{suffix}" for tick, (size, suffix) in zip(ticks, sizes, strict=True)]
    decimals = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def spread(wanted: Sequence[float], high: float) -> list[float]:
    """Pixels near those wanted, in the same order, `LABEL_GAP` apart and none above `high`."""
    placed, order = [*wanted], sorted(range(len(wanted)), key=wanted.__getitem__)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + LABEL_GAP)
    for rank, index in enumerate(reversed(order)):
        placed[index] = min(placed[index], high - rank * LABEL_GAP)
    return placed


def line_chart(lines: Sequence[Line], size: tuple[int, int], x_name: str, y_name: str, zero: bool = False) -> Markup:
    """The chart as an <svg>, taller where the labels need it; `zero` makes the y axis start at 0. Nothing where no line
    has a finite point."""
    lines = [line._replace(points=kept) for line in lines if (kept := decimate(line.points))]
    if all(line.shape == "level" for line in lines):
        return Markup("")
    most = int((size[0] / 2 - AROUND) / LETTER)
    lines = [line._replace(label=_shorten(line.label, most)) for line in lines]
    labels = [line.label for line in lines if line.label]
    width, height = size[0], max(size[1], math.ceil(TOP + BOTTOM + LABEL_GAP * len(labels)))
    x = _x_axis(lines, LEFT, width - AROUND - LETTER * max(map(len, labels), default=0))
    y = _y_axis(lines, height - BOTTOM, TOP, zero)
    marks = "".join([*_frame(x, y, x_name), *(_draw(line, x, y) for line in lines), *_labels(lines, x, y)])
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(f"{y_name} against {x_name}")}">{marks}</svg>')


def strip(values: Sequence[tuple[str, float]], low: float, high: float, style: str, width: int = 96) -> Markup:
    """Named values as dots on a common scale low..high, each with its name and value to point at."""
    axis = Axis(low, high if high > low else low + 1, 6.0, width - 6.0)
    told = [(f"{axis.at(value):.1f}", escape(f"{name}: {value:.3f}")) for name, value in values]
    dots = "".join(f'<circle cx="{at}" cy="9" r="3.5"><title>{text}</title></circle>' for at, text in told)
    head = f'<svg class="strip {escape(style)}" viewBox="0 0 {width} 18" width="{width}" height="18" role="img"'
    label = ", ".join(text for _, text in told)
    return Markup(f'{head} aria-label="{label}"><path d="M2 9H{width - 2}"></path>{dots}</svg>')


def whisker(
    mean: float,
    half: float,
    values: Sequence[tuple[str, float]],
    ends: tuple[float, float],
    style: str = "",
    zero: bool = False,
) -> Markup:
    """A mean with its interval and named values as dots, on a scale between `ends`, with a line at 0 if `zero`.

    `half` is the interval's half width; NaN draws none.
    """
    width, axis = 240, Axis(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, 6.0, 234.0)
    told = f"{mean:.3f}" + ("" if math.isnan(half) else f", {mean - half:.3f} to {mean + half:.3f}")
    marks = [f'<path class="rail" d="M2 11H{width - 2}"></path>']
    if zero:
        marks.append(f'<path class="zero" d="M{axis.at(0):.1f} 1V21"></path>')
    if not math.isnan(half):
        marks.append(f'<path class="span" d="M{axis.at(mean - half):.1f} 11H{axis.at(mean + half):.1f}"></path>')
    for name, value in values:
        text = escape(f"{name}: {value:.3f}")
        marks.append(f'<circle cx="{axis.at(value):.1f}" cy="11" r="2.5"><title>{text}</title></circle>')
    marks.append(f'<path class="mean" d="M{axis.at(mean):.1f} 4V18"><title>{told}</title></path>')
    head = f'<svg class="whisker {escape(style)}" viewBox="0 0 {width} 22" width="{width}" height="22" role="img"'
    return Markup(f'{head} aria-label="{told}">{"".join(marks)}</svg>')


def _text(x: float, y: float, style: str, text: str, anchor: str = "start") -> str:
    """A text beside a point."""
    return f'<text class="{escape(style)}" x="{x:.1f}" y="{y:.1f}" dy="4" text-anchor="{anchor}">{escape(text)}</text>'


def _x_axis(lines: Sequence[Line], start: float, stop: float) -> Axis:
    """Linear from 0; logarithmic when one line ends at less than an eighth of the longest."""
    ends = [max(x for x, _ in line.points) for line in lines if line.shape == "line"]
    positive = [x for line in lines for x, _ in line.points if x > 0]
    shortest, longest = min((end for end in ends if end > 0), default=1.0), max(positive, default=1.0)
    log = longest > 8 * shortest
    return Axis(min(positive) / 2, longest * 1.02, start, stop, True) if log else Axis(0.0, longest, start, stop)


def _y_axis(lines: Sequence[Line], start: float, stop: float, zero: bool) -> Axis:
    """The range of the values and a little more; never of zero length."""
    values = [y for line in lines for _, y in line.points]
    margin = 0.06 * (max(values) - min(values)) or 0.05 * (abs(max(values)) or 1.0)
    return Axis(0.0 if zero else min(values) - margin, max(values) + margin, start, stop)


def _frame(x: Axis, y: Axis, x_name: str) -> Iterator[str]:
    """Grid lines, tick labels and the name of the x axis."""
    rows, columns = y.ticks(5), x.ticks(max(2, int((x.stop - x.start) / 70)))
    for tick, text in zip(rows, tick_labels(rows), strict=True):
        yield f'<path class="grid" d="M{x.start:.1f} {y.at(tick):.1f}H{x.stop:.1f}"></path>'
        yield _text(x.start - 8, y.at(tick), "tick", text, "end")
    for tick, text in zip(columns, tick_labels(columns), strict=True):
        yield _text(x.at(tick), y.start + 17, "tick", text, "middle")
    yield _text(x.stop, y.start + 35, "axis", x_name + ", log scale" * x.log, "end")


def _draw(line: Line, x: Axis, y: Axis) -> str:
    """The marks of one series; a line with a single point becomes a ring."""
    style, pixels = escape(line.style), [(f"{x.at(a):.1f}", f"{y.at(b):.1f}") for a, b in line.points]
    if line.shape == "level":
        return f'<path class="level {style}" d="M{x.start:.1f} {pixels[0][1]}H{x.stop:.1f}"></path>'
    if line.shape == "rings" or len(pixels) == 1:
        return "".join(f'<circle class="{style}" cx="{a}" cy="{b}" r="3.5"></circle>' for a, b in pixels)
    return f'<polyline class="{style}" points="{" ".join(f"{a},{b}" for a, b in pixels)}"></polyline>'


def _labels(lines: Sequence[Line], x: Axis, y: Axis) -> Iterator[str]:
    """Direct labels in the right margin, each as near its line's last value as the others allow, with a thread to it."""
    named = [line for line in lines if line.label]
    ends = [y.at(line.points[-1][1]) for line in named]
    for line, end, height in zip(named, ends, spread(ends, y.start), strict=True):
        way = f"M{x.stop + 2:.1f} {end:.1f}L{x.stop + 18:.1f} {height:.1f}"
        yield f'<path class="thread {escape(line.style)}" d="{way}"></path>'
        yield _text(x.stop + 21, height, f"label {line.style}", line.label)


def _shorten(label: str, most: int) -> str:
    """A label of at most `most` letters, its end left out where it is longer."""
    return label if len(label) <= most else label[: max(most - 1, 0)] + "\N{HORIZONTAL ELLIPSIS}"
