"""A curve of characters."""

import math
from collections.abc import Sequence

# A braille character's dots from the bottom up, of its left column and its right one.
_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
_BRAILLE = 0x2800


def curve(values: Sequence[float], span: int, width: int, height: int, low: float, high: float) -> list[str]:
    """The values, of `span` that there will be, as lines of braille, filled below; what is NaN goes on as it was.

    >>> print("|".join(curve([0, 1, 2, 3, 4, 5, 6, 7], span=8, width=4, height=2, low=0, high=7)))
    ⠀⠀⣠⣾|⣠⣾⣿⣿
    """
    dots = [_level(value, 4 * height, low, high) for value in _columns(values, span, 2 * width)]
    lines = []
    for row in reversed(range(height)):
        cells = []
        for place in range(0, 2 * width, 2):
            bits = 0
            for side, level in enumerate(dots[place : place + 2]):
                bits |= sum(_DOTS[side][: max(0, min(4, level - 4 * row))])
            cells.append(chr(_BRAILLE + bits))
        lines.append("".join(cells))
    return lines


def _columns(values: Sequence[float], span: int, columns: int) -> list[float]:
    """A value for each column as far as there are any, between two of them on the line."""
    known: list[float] = []
    for value in values:
        known.append(value if not math.isnan(value) or not known else known[-1])
    found = []
    for column in range(columns):
        place = column * (max(span, len(known)) - 1) / max(columns - 1, 1)
        left = math.floor(place)
        if left >= len(known) or (left == len(known) - 1 and place > left and column):
            break
        right = min(left + 1, len(known) - 1)
        found.append(known[left] + (known[right] - known[left]) * (place - left))
    return found


def _level(value: float, levels: int, low: float, high: float) -> int:
    if math.isnan(value):
        return 0
    share = (value - low) / (high - low) if high > low else 0.0
    return 1 + round(min(max(share, 0.0), 1.0) * (levels - 1))
