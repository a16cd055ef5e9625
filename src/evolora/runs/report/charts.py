"""Figures as inline SVG that stretches to the page's width, with HTML for its words, which do not stretch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Values = Sequence[float | None]
_WIDE = _HIGH = 1000
# Beyond it, a dot for each point is noise, and a cost.
_DOTS = 60
_ZONES = 250


@dataclass(frozen=True)
class Line:
    """A line of a chart, or with `dots` only its points, in one of the page's colours."""

    name: str
    values: Values
    color: str
    dots: bool = False
    dashed: bool = False


def chart(
    x: Sequence[float], lines: Sequence[Line], *, x_name: str, band: tuple[str, Values, Values] | None = None
) -> Markup | None:
    """Lines over `x`, with a shaded `band` between two of them; None where there is nothing to draw."""
    every = [value for line in lines for value in line.values] + [value for edge in (band or ())[1:] for value in edge]
    known = [float(value) for value in every if value is not None]
    if not known or not x:
        return None
    counted = all(at == int(at) for at in x)  # as generations are
    x_ticks, y_ticks = _ticks(min(x), max(x), 6), _ticks(min(known), max(known), 5)
    left, right = (min(x), max(x)) if max(x) > min(x) else (min(x) - 1, max(x) + 1)
    low, high = min(y_ticks[0], *known), max(y_ticks[-1], *known)

    def across(value: float) -> float:
        return (value - left) / (right - left) * _WIDE

    def down(value: float) -> float:
        return (high - value) / (high - low) * _HIGH

    parts = [_stroke(f"M0 {down(y):.1f}H{_WIDE}", "zero" if y == 0 else "grid") for y in y_ticks]
    if band is not None:
        pairs = zip(x, band[1], band[2], strict=True)
        whole = [(across(at), down(a), down(b)) for at, a, b in pairs if a is not None and b is not None]
        edge = [f"{at:.1f} {a:.1f}" for at, a, _ in whole] + [f"{at:.1f} {b:.1f}" for at, _, b in reversed(whole)]
        parts.append(Markup('<path class="band" d="M{}Z"/>').format("L".join(edge)) if whole else Markup())
    for line in lines:
        points = [
            None if y is None else (across(at), down(y)) for at, y in zip(x, line.values, strict=True)
        ]  # fmt: skip
        style = f"line c-{line.color}" + (" dashed" if line.dashed else "")
        if not line.dots:
            parts.append(_stroke(_path(points), style))
        if line.dots or (len(x) <= _DOTS and not line.dashed):
            dots = "".join(f"M{point[0]:.1f} {point[1]:.1f}h0" for point in points if point is not None)
            parts.append(_stroke(dots, f"dot c-{line.color}"))
    if len(x) <= _ZONES:
        parts += _zones(x, [across(at) for at in x], lines, x_name)
    legend = [Markup('<li class="c-{}{}">{}</li>').format(line.color, " dashed" if line.dashed else "", line.name)
              for line in lines]  # fmt: skip
    if band is not None:
        legend.append(Markup('<li class="shade">{}</li>').format(band[0]))
    marks = [
        *(Markup('<span class="y" style="top:{:.2f}%">{}</span>').format(down(y) / 10, _tick(y)) for y in y_ticks),
        *(
            Markup('<span class="x" style="left:{:.2f}%">{}</span>').format(across(at) / 10, _tick(at))
            for at in x_ticks
            if left <= at <= right and (at == int(at) or not counted)
        ),
    ]
    return Markup('<ul class="legend">{}</ul>{}<p class="axis">{}</p>').format(
        Markup().join(legend), _plot(parts, marks), x_name
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
        Markup('<span class="x" style="left:{:.2f}%">{}</span>').format((20 + x / right * 960) / 10, _tick(x))
        for x in _ticks(0, right, 6)
        if x <= right and x == int(x)
    ]
    rows = max(place[1] for place in places)
    return Markup('<div class="tree" style="--rows:{:.0f}">{}</div><p class="axis">{}</p>').format(
        rows, _plot(parts, marks), x_name
    )


def _plot(parts: Sequence[Markup], marks: Sequence[Markup]) -> Markup:
    return Markup(
        '<div class="plot"><svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>{}</div>'
    ).format(_WIDE, _HIGH, Markup().join(parts), Markup().join(marks))


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


def _zones(x: Sequence[float], at: Sequence[float], lines: Sequence[Line], x_name: str) -> list[Markup]:
    """What is under the pointer, in words."""
    zones, width = [], _WIDE / max(1, len(x) - 1)
    for index, (value, center) in enumerate(zip(x, at, strict=True)):
        found = [(line.name, line.values[index]) for line in lines]
        words = [f"{name} {y:.4g}" for name, y in found if y is not None]
        title = "\n".join([f"{x_name} {value:.4g}", *words])
        begin, end = max(0.0, center - width / 2), min(_WIDE, center + width / 2)
        zones.append(
            Markup('<rect class="zone" x="{:.1f}" y="0" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
                begin, end - begin, _HIGH, title
            )
        )
    return zones


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


def _tick(value: float) -> str:
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
