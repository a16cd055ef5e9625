"""What is shown of a run, drawn: lines of text for any width, on a terminal or in a notebook."""

import math
from collections.abc import Callable
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from evolora.runs.tracking import figures
from evolora.runs.tracking.curve import curve
from evolora.runs.tracking.shown import Shown

WIDEST = 130
# From this width on the curve stands beside the figures, which take so much of it.
_BESIDE, _FIGURES = 110, 82
_LABEL = 11
_CELL = 16
_CURVE = 3
# Room for a text of the sample.
_PROMPT_LINES, _TEXT_LINES = 3, 2


class Glyphs(NamedTuple):
    """What a screen can show."""

    spinner: str
    bar: tuple[str, str]
    cut: str
    newline: str
    unknown: str
    curve: Callable[[str], str]


FANCY = Glyphs("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", ("━", "─"), "…", "⏎", "\N{REPLACEMENT CHARACTER}", str)
ASCII = Glyphs(
    "|/-\\",
    ("#", "-"),
    "...",
    " / ",
    "?",
    lambda line: "".join(" .:#"[min(3, (ord(each) - 0x2800).bit_count())] for each in line),
)


def generation_line(shown: Shown, width: int) -> Text:
    """The last generation, for what stays above the picture."""
    line = Text()
    for cell in figures.fitting(figures.cells(shown, left=False), width):
        line.append(f"{cell.label} ", "dim").append(f"{cell.value}  ", cell.style)
    line.rstrip()
    return line


def draw(shown: Shown, width: int, height: int, glyphs: Glyphs = FANCY) -> list[Text]:
    """At most so many lines of at most so many cells. Where not all has room, the least is left out."""
    lines = _fitting(shown, min(width, WIDEST), height, glyphs)
    for line in lines:
        line.truncate(width)
    return lines


def _fitting(shown: Shown, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    head, footer = [Text(), *_head(shown, width, glyphs)], [Text("what the words mean: evolora words", "dim")]
    if not shown.curve and shown.base is None:
        return head[-height:]
    beside = width >= _BESIDE
    rows = _figures(shown, _FIGURES if beside else width)
    if beside:
        lines = _curve(shown, width - _FIGURES, len(rows), glyphs)
        for row, line in zip(rows, lines, strict=True):
            row.truncate(_FIGURES, pad=True)
            row.append(line)
    blocks = [rows, [] if beside else _curve(shown, width, _CURVE, glyphs), _sample(shown, width, glyphs), footer]
    for missing in ([], [3], [3, 1], [3, 1, 2], [3, 1, 2, 0]):
        lines = head + [
            line
            for place, block in enumerate(blocks)
            if block and place not in missing
            for line in _apart(place, block)
        ]
        if len(lines) <= height:
            return lines
    return head[-height:]


def _apart(place: int, block: list[Text]) -> list[Text]:
    return [Text(), *block] if place in (0, 2) else block


def _head(shown: Shown, width: int, glyphs: Glyphs) -> list[Text]:
    clock = f"  {figures.duration(shown.elapsed)} elapsed"
    if not math.isnan(shown.left):
        clock += f"  {figures.duration(shown.left):>7} left"
    frame = glyphs.spinner[int(shown.elapsed * 8) % len(glyphs.spinner)]
    under_way = Text().append(f"{frame} ", "cyan").append(figures.phase(shown), "bold")
    if not shown.gens and not shown.limits:
        return [_spread(under_way, Text(clock.strip(), "dim"), width)]
    number = len(shown.curve) + (0 if shown.share >= 1 else 1)
    name = f"generation {number}" + (f" of {shown.gens}" if shown.gens else "")
    share = 0.0 if math.isnan(shown.share) else shown.share
    room = max(width - len(name) - len(clock) - 7, 0)
    full = round(share * room)
    line = Text().append(f"{name}  ", "bold").append(glyphs.bar[0] * full, "cyan")
    line.append(glyphs.bar[1] * (room - full), "dim").append(f" {share:>4.0%}").append(clock, "dim")
    return [line, _spread(under_way, Text(shown.title, "dim"), width)]


def _spread(left: Text, right: Text, width: int) -> Text:
    """Both at their ends of a line, or the left one alone."""
    room = width - left.cell_len - right.cell_len
    if room < 2:
        left.truncate(width)
        return left
    return left.append(" " * room).append(right)


def _figures(shown: Shown, width: int) -> list[Text]:
    rate, memory, speed = shown.of_refiner("lr"), shown.figure("time.memory"), shown.figure("time.tokens_per_second")
    rows: list[tuple[str, list[tuple[str, str, str]]]] = [
        (
            "reward" if math.isnan(shown.followed) else "fitness",
            [
                ("base", figures.reward(shown.base_reward), ""),
                ("best", figures.reward(shown.best_reward), "bold green"),
                ("lineage", figures.reward(shown.figure("validation")), ""),
            ],
        ),
        ("added", [(who, figures.gain(value), "bold") for who, value in sorted(shown.added.items(), reverse=True)]),
        (
            "learning",
            [
                ("rate", f"{'-':>7}" if math.isnan(rate) else f"{rate:.1e}", ""),
                ("KL", figures.reward(shown.of_refiner("kl")), ""),
                ("cut", figures.percent(shown.figure("clipped_ratio")), ""),
                ("equal groups", figures.percent(shown.of_refiner("equal_groups")), ""),
            ],
        ),
        (
            "machine",
            [
                ("tok/s", f"{'-':>6}" if math.isnan(speed) else f"{speed:>6,.0f}", ""),
                ("memory", "-" if math.isnan(memory) else f"{memory / 2**30:.1f} GiB", ""),
            ],
        ),
    ]
    if shown.refiner is None and shown.metrics:  # nobody learns by RL
        rows[2] = ("writing", [("cut", figures.percent(shown.figure("clipped_ratio")), "")])
    if not math.isnan(shown.followed):
        before = figures.reward(shown.figure("validation.base_reward"))
        rows.insert(1, ("reward", [("base", before, ""), ("lineage", figures.reward(shown.followed), "")]))
    lines = [
        line
        for label, cells in rows
        for line in _flow(
            label, [Text().append(f"{name} ", "dim").append(value, style) for name, value, style in cells], width
        )
    ]
    return lines + _flow("budget", _budget(shown), width)


def _budget(shown: Shown) -> list[Text]:
    """What is used, of the limits that are set."""
    purposes = ("evaluation", "rollout", "update")
    used = {
        "tokens": sum(shown.figure(f"tokens.{purpose}") for purpose in purposes[:2]),
        "seconds": shown.figure("time.loop"),
        "FLOPs": sum(shown.figure(f"flops.{purpose}") for purpose in purposes),
    }
    found = []
    for name, value in used.items():
        limit = shown.limits.get(name.lower())
        text = _named(name, "-" if math.isnan(value) else figures.amount(value))
        found.append(text if limit is None else text.append(f" of {figures.amount(limit)}", "dim"))
    return found


def _named(name: str, value: str, style: str = "") -> Text:
    return Text().append(f"{name} ", "dim").append(value, style)


def _flow(label: str, cells: list[Text], width: int) -> list[Text]:
    """Cells behind a label, of one width each, on as many lines as they need."""
    lines = [Text().append(label.ljust(_LABEL), "dim")]
    for text in cells:
        text = text.copy()
        if text.cell_len < _CELL:
            text.truncate(_CELL, pad=True)
        if lines[-1].cell_len > _LABEL and lines[-1].cell_len + len(text.plain.rstrip()) > width:
            lines.append(Text(" " * _LABEL))
        lines[-1].append(text).append(" ")
    for line in lines:
        line.rstrip()
    return lines


def _curve(shown: Shown, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Validation over the generations, with its scale."""
    known = [value for value in (*shown.curve, shown.base_reward) if not math.isnan(value)]
    low, high = (min(known), max(known)) if known else (math.nan, math.nan)
    values = list(shown.curve) if math.isnan(shown.base_reward) else [shown.base_reward, *shown.curve]
    share = shown.share if shown.share > 0 else 1.0
    span = 1 + shown.gens if shown.gens else max(len(values), math.ceil(len(values) / share))
    drawn = curve(values, span, max(width - _LABEL - 7, 1), height, low, high)
    scale = [figures.reward(high), *[" " * 5] * (height - 2), figures.reward(low)]
    return [
        Text()
        .append(("validation" if not row else "").ljust(_LABEL), "dim")
        .append(f"{scale[row]}  ", "dim")
        .append(glyphs.curve(line), "green")
        for row, line in enumerate(drawn)
    ]


def _sample(shown: Shown, width: int, glyphs: Glyphs) -> list[Text]:
    """A prompt, whose end matters; its target; what the base and the best write."""
    if shown.base is None and shown.best is None:
        return []
    sample = shown.base or shown.best
    assert sample is not None
    room = max(width - _LABEL, 20)
    lines = _labelled("prompt", _last(readable(sample.prompt, glyphs), room, _PROMPT_LINES, glyphs.cut))
    if sample.target is not None:
        lines += _labelled("target", _first(readable(sample.target, glyphs), room, 1, glyphs.cut))
    for name, one in (("base", shown.base), ("best", shown.best)):
        if one is not None:
            texts = _first(readable(one.completion, glyphs) or "(nothing)", room - 7, _TEXT_LINES, glyphs.cut)
            written = _labelled(name, texts, "bold green" if name == "best" else "")
            written[0] = _spread(written[0], Text(figures.reward(one.reward), "dim"), width)
            lines += written
    return lines


def _labelled(label: str, texts: list[str], style: str = "") -> list[Text]:
    labels = [label, *[""] * (len(texts) - 1)]
    return [
        Text().append(name.ljust(_LABEL), "dim").append(text, style) for name, text in zip(labels, texts, strict=True)
    ]


def readable(text: str, glyphs: Glyphs) -> str:
    """One line, whose characters all have a shape: nothing that was written moves the cursor."""
    shown = text.strip().replace("\n", glyphs.newline)
    return "".join(each if each.isprintable() else glyphs.unknown for each in shown)


def _pieces(text: str, width: int) -> list[str]:
    """Of that many cells each."""
    pieces, piece, size = [], "", 0
    for each in text:
        wide = cell_len(each)
        if size + wide > width:
            pieces.append(piece)
            piece, size = "", 0
        piece, size = piece + each, size + wide
    return [*pieces, piece]


def _first(text: str, width: int, lines: int, cut: str) -> list[str]:
    """The beginning of a text, in so many lines."""
    pieces = _pieces(text, width)
    if len(pieces) <= lines:
        return pieces
    return [*pieces[: lines - 1], set_cell_size(pieces[lines - 1], width - len(cut)) + cut]


def _last(text: str, width: int, lines: int, cut: str) -> list[str]:
    """The end of a text, in so many lines."""
    if len(_pieces(text, width)) <= lines:
        return _pieces(text, width)
    while len(pieces := _pieces(cut + text, width)) > lines:
        text = text[max(1, (len(pieces) - lines - 1) * width // 2) :]
    return pieces
