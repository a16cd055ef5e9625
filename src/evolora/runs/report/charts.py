"""Figures as inline SVG that stretches to the page's width, with HTML for its words, which do not stretch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Values = Sequence[float | None]
Band = tuple[str, Values, Values]
_WIDE = _HIGH = 1000
# Beyond it, a dot for each point is noise, and a cost.
_DOTS = 60
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Line:
    """A line of a chart, or with `dots` only its points, in one of the page's colours; over `x` where that is not the
    chart's."""

    name: str
    values: Values
    color: str
    dots: bool = False
    dashed: bool = False
    x: Sequence[float] | None = None


@dataclass(frozen=True)
class Figure:
    """What a chart shows, for the page and for files: `name` is the file's, `band` is shaded between two lines, and
    `labels` say what the points are where that is not their `x`."""

    name: str
    title: str
    x_name: str
    y_name: str
    x: Sequence[float]
    lines: Sequence[Line]
    band: Band | None = None
    labels: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing of it was measured."""
        return all(value is None for line in self.lines for value in line.values)

    def html(self) -> Markup | None:
        """The chart; None where there is nothing to draw."""
        words = {"x_name": self.x_name, "y_name": self.y_name, "title": self.title}
        return chart(self.x, self.lines, **words, band=self.band, labels=self.labels)


@dataclass(frozen=True)
class _Scale:
    """Where the values of a chart lie in its square."""

    left: float
    right: float
    low: float
    high: float

    def across(self, value: float) -> float:
        return (value - self.left) / (self.right - self.left) * _WIDE

    def down(self, value: float) -> float:
        return (self.high - value) / (self.high - self.low) * _HIGH


def chart(
    x: Sequence[float],
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str = "",
    band: Band | None = None,
    title: str = "",
    labels: Sequence[str] = (),
) -> Markup | None:
    """Lines over `x`, with a shaded `band` between two of them; None where there is nothing to draw."""
    every = [value for line in lines for value in line.values] + [value for edge in (band or ())[1:] for value in edge]
    known = [float(value) for value in every if value is not None]
    all_x = [at for line in lines for at in (x if line.x is None else line.x)]
    if not known or not all_x:
        return None
    x_ticks, y_ticks = _ticks(min(all_x), max(all_x), 6), _ticks(min(known), max(known), 5)
    left, right = (min(all_x), max(all_x)) if max(all_x) > min(all_x) else (min(all_x) - 1, max(all_x) + 1)
    scale = _Scale(left, right, min(y_ticks[0], *known), max(y_ticks[-1], *known))
    parts = [_stroke(f"M0 {scale.down(y):.1f}H{_WIDE}", "zero" if y == 0 else "grid") for y in y_ticks]
    if band is not None:
        pairs = zip(x, band[1], band[2], strict=True)
        whole = [
            (scale.across(at), scale.down(a), scale.down(b)) for at, a, b in pairs if a is not None and b is not None
        ]
        edge = [f"{at:.1f} {a:.1f}" for at, a, _ in whole] + [f"{at:.1f} {b:.1f}" for at, _, b in reversed(whole)]
        parts.append(Markup('<path class="band" d="M{}Z"/>').format("L".join(edge)) if whole else Markup())
    for line in lines:
        parts += _drawn(line, x if line.x is None else line.x, scale)
    legend = [Markup('<li class="c-{}{}">{}</li>').format(line.color, " dashed" if line.dashed else "", line.name)
              for line in lines]  # fmt: skip
    if band is not None:
        legend.append(Markup('<li class="shade">{}</li>').format(band[0]))
    counted = all(at == int(at) for at in all_x)  # as generations are
    marks = [
        *(
            Markup('<span class="y" style="top:{:.2f}%">{}</span>').format(scale.down(y) / 10, word)
            for y, word in zip(y_ticks, _axis(y_ticks), strict=True)
        ),
        *(
            Markup('<span class="x" style="left:{:.2f}%">{}</span>').format(scale.across(at) / 10, word)
            for at, word in zip(x_ticks, _axis(x_ticks), strict=True)
            if left <= at <= right and (at == int(at) or not counted)
        ),
    ]
    named = Markup('<p class="axis over">{}</p>').format(y_name) if y_name else Markup()
    hover = _hover(x, lines, x_name, scale, labels)
    return Markup('<ul class="legend">{}</ul>{}{}<p class="axis">{}</p>').format(
        Markup().join(legend), named, _plot(parts, marks, title or f"{y_name} by {x_name}", hover), x_name
    )


def _drawn(line: Line, x: Sequence[float], scale: _Scale) -> list[Markup]:
    points = [
        None if y is None else (scale.across(at), scale.down(y)) for at, y in zip(x, line.values, strict=True)
    ]  # fmt: skip
    parts = []
    if not line.dots:
        parts.append(_stroke(_path(points), f"line c-{line.color}" + (" dashed" if line.dashed else "")))
    if line.dots or (len(x) <= _DOTS and not line.dashed):
        dots = "".join(f"M{point[0]:.1f} {point[1]:.1f}h0" for point in points if point is not None)
        parts.append(_stroke(dots, f"dot c-{line.color}"))
    return parts


def _hover(x: Sequence[float], lines: Sequence[Line], x_name: str, scale: _Scale, labels: Sequence[str]) -> str:
    """What the page's script says of the points under the pointer."""

    def shown(values: Values) -> list[float | None]:
        return [None if value is None else float(f"{value:.5g}") for value in values]

    return json.dumps(
        {
            "name": x_name,
            "box": [scale.left, scale.right, scale.low, scale.high],
            "x": shown(x),
            "labels": list(labels),
            "lines": [
                [line.name, line.color, shown(line.values), *([] if line.x is None else [shown(line.x)])]
                for line in lines
            ],
        },
        separators=(",", ":"),
    )


def tree(places: Sequence[tuple[float, float, str, str]], edges: Sequence[tuple[int, int]], x_name: str) -> Markup:
    """Dots at (x, y), each with a colour and a title, and the lines between them."""
    right = max(1.0, *(place[0] for place in places))
    lowest = max(1.0, *(place[1] for place in places))
    at = [(20 + x / right * (_WIDE - 40), 40 + y / lowest * (_HIGH - 80)) for x, y, _, _ in places]
    parts = [
        _stroke("".join(f"M{at[a][0]:.1f} {at[a][1]:.1f}L{at[b][0]:.1f} {at[b][1]:.1f}" for a, b in edges), "edge")
    ]
    for (x, y), (_, _, color, title) in zip(at, places, strict=True):
        parts.append(
            Markup('<path class="dot big c-{}" d="M{:.1f} {:.1f}h0"><title>{}</title></path>').format(
                color, x, y, title
            )
        )
    marks = [
        Markup('<span class="x" style="left:{:.2f}%">{}</span>').format((20 + x / right * 960) / 10, short(x))
        for x in _ticks(0, right, 6)
        if x <= right and x == int(x)
    ]
    rows = max(place[1] for place in places)
    return Markup('<div class="tree" style="--rows:{:.0f}">{}</div><p class="axis">{}</p>').format(
        rows, _plot(parts, marks, "who descends from whom"), x_name
    )


def _plot(parts: Sequence[Markup], marks: Sequence[Markup], title: str, hover: str | None = None) -> Markup:
    read = Markup(' tabindex="0" data-chart="{}"').format(hover) if hover is not None else Markup()
    return Markup(
        '<div class="plot" role="img" aria-label="{}"{}><svg viewBox="0 0 {} {}" preserveAspectRatio="none" '
        'aria-hidden="true">{}</svg>{}</div>'
    ).format(title, read, _WIDE, _HIGH, Markup().join(parts), Markup().join(marks))


def _stroke(path: str, style: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(style, path) if path else Markup()


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A line with a gap where a point is missing."""
    text, drawing = "", False
    for point in points:
        if point is not None:
            text += f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}"
        drawing = point is not None
    return text


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose the interval.

    >>> _ticks(0.13, 0.92, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def short(value: float, *, digits: int = 6, unit_of: float | None = None) -> str:
    """A number as an axis or a table has it: a large one in thousands, millions and so on, or in the unit that another
    one has.

    >>> short(0.25), short(20138, digits=3), short(1.65e12), short(5000, unit_of=20000)
    ('0.25', '20.1 k', '1.65 T', '5 k')
    """
    largest = abs(value if unit_of is None else unit_of)
    size, unit = next(((size, unit) for size, unit in _UNITS if largest >= (1e4 if unit == "k" else size)), (1.0, ""))
    scaled = value / size
    shown = f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.{digits}g}"
    return f"{shown} {unit}".strip().replace("-", "\N{MINUS SIGN}") if scaled else "0"


def _axis(ticks: Sequence[float]) -> list[str]:
    """The ticks in one unit."""
    return [short(tick, unit_of=max(map(abs, ticks))) for tick in ticks]
