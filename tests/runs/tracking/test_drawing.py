"""The picture at every size: nothing is wider than the screen, nothing jumps, and a prompt keeps its end."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from evolora.engine.progress import Sample
from evolora.runs.tracking.drawing import ASCII, FANCY, draw
from evolora.runs.tracking.figures import cells
from evolora.runs.tracking.shown import Shown
from evolora.runs.tracking.words import WORDS

WIDTHS = (62, 80, 130)


@pytest.fixture
def shown(story: Any) -> Shown:
    told = story(limits={"tokens": 50_000})
    shown = Shown(told.clock)
    shown.say = lambda text: None  # type: ignore[attr-defined]
    told.loads(shown)
    for number in (1, 2, 3):
        told.generation(shown, number)
    shown.progress("update", 4, 12)
    told.now += 1
    return shown


def lines_of(shown: Shown, width: int, height: int = 40, **more: Any) -> list[str]:
    return [line.plain for line in draw(shown, width, height, **more)]


@pytest.mark.parametrize("width", [10, 40, *WIDTHS, 300])
@pytest.mark.parametrize("height", [1, 3, 10, 20, 40])
@pytest.mark.parametrize("glyphs", [FANCY, ASCII])
def test_nothing_is_larger_than_the_screen(shown: Shown, width: int, height: int, glyphs: Any) -> None:
    for state in (shown, Shown(shown.clock)):
        lines = draw(state, width, height, glyphs)
        assert 1 <= len(lines) <= height
        assert max(line.cell_len for line in lines) <= width
        assert glyphs is FANCY or all(line.plain.isascii() for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_all_is_there(shown: Shown, width: int) -> None:
    text = "\n".join(lines_of(shown, width))
    for said in (
        "generation 4 of 20", "20s elapsed", "left", "update 4 of 12", "base 0.020", "best 0.135", "lineage 0.135",
        "ppo +1.500", "evolution +0.375", "rate 1.0e-03", "cut   3%", "equal groups  25%", "tok/s  1,234",
        "memory 1.5 GiB", "tokens 9,000 of 50,000", "seconds 6", "FLOPs 3e+09", "validation 0.135", "what is 'chat' in",
        "I do⏎not", "cat", "evolora words",
    ):  # fmt: skip
        assert said in text, said
    assert "\x1b" not in text, "what a model writes moves no cursor"
    assert "You are asked in many words, You are" not in text.split("prompt")[1][:30], "cut at its head"
    assert re.search(r"what is 'chat' in\s+English\?", re.sub(r"\s+", " ", text)), "never at its end"


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_wanted_stands_above_what_is_followed(shown: Shown, width: int) -> None:
    followed = {"validation.base_reward": 0.25, "validation.reward": 0.625}
    shown.generation({**shown.metrics, **followed, "generation": 4}, 20, 0.2)
    above, below = (line for line in lines_of(shown, width) if line.startswith(("fitness ", "reward ")))
    assert above.startswith("fitness") and "best 0.135" in above
    assert below.startswith("reward") and "base 0.250" in below and "lineage 0.625" in below
    assert ("reward", "0.625") in [(cell.label, cell.value) for cell in cells(shown, left=False)]


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_stay_where_they_are(shown: Shown, width: int) -> None:
    def places(lines: list[str]) -> dict[str, tuple[int, int]]:
        names = "reward|base |best |lineage|added|evolution|learning|rate|KL|cut|equal groups|machine|tok/s|memory"
        found = [(match[0], row, match.start()) for row, line in enumerate(lines) for match in re.finditer(names, line)]
        return {name: (row, place) for name, row, place in reversed(found)}

    before = places(lines_of(shown, width))
    later = {"generation": 4, "ppo.added": -30.0, "validation": -12.3, "clipped_ratio": 1.0}
    shown.generation({**shown.metrics, **later}, 20, 0.2)
    shown.progress("evaluating the refined", 0, 64)
    after = places(lines_of(shown, width))
    assert before == after and len(before) == 14


def test_what_there_is_less_room_for_is_left_out_whole(shown: Shown) -> None:
    for height, there, gone in (
        (40, ("what the words mean", "prompt", "validation", "reward"), ()),
        (19, ("prompt", "reward"), ("what the words mean",)),
        (16, ("prompt", "reward"), ("what the words mean", "validation 0")),
        (10, ("reward", "budget"), ("prompt",)),
        (4, ("generation 4",), ("reward",)),
    ):
        text = "\n".join(lines_of(shown, 80, height))
        assert all(word in text for word in there) and not any(word in text for word in gone), height


def test_texts_of_any_kind_are_shown(shown: Shown) -> None:
    for text in ("", "漢字" * 200, "\x1b[31m\r\x07\u202e", "[bold]no markup[/bold]", "\n\n"):
        shown.base = Sample(text, text, text, math.nan)
        for width in WIDTHS:
            lines = draw(shown, width, 60)
            assert max(line.cell_len for line in lines) <= width
            assert all(each.isprintable() for line in lines for each in line.plain)
    assert "(nothing)" in "\n".join(lines_of(shown, 80))


def test_the_words_of_the_screen_are_explained(shown: Shown) -> None:
    text = "\n".join(lines_of(shown, 80))
    names = r"(?:^| )(base|best|lineage|added|rate|KL|cut|equal groups|tok/s|memory|validation|left)\b"
    labels = re.findall(names, text, re.MULTILINE)
    assert len(set(labels)) == 12 and set(labels) <= set(WORDS)


def test_the_page_has_the_same_words() -> None:
    page = (Path(__file__).parents[3] / "docs" / "screen.md").read_text(encoding="utf-8")
    assert all(f"| {word} | {meaning} |\n" in page for word, meaning in WORDS.items())
