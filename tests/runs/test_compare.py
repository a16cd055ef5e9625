"""Runs side by side: what differs, what may be compared, and intervals of paired differences."""

import io
import shutil
from pathlib import Path

import pytest
from made_up import HOSTILE, OPTIONS, made_up
from rich.console import Console

from evolora.errors import InputError
from evolora.runs.report.compare import Comparison, compare_runs, write_comparison

NONE = "\N{EN DASH}"


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    other = OPTIONS.replace('"ppo"', '"grpo"') + "clip_range = 0.1\n\n[run]\nout = 'somewhere'\n"
    return [
        made_up(tmp_path / "plain", 3, 4, fitness=0.5),
        made_up(tmp_path / "better", 5, 4, fitness=0.75, options=other),
    ]


def shown(comparison: Comparison, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    comparison.show(console)
    return console.export_text()


def test_the_table_has_intervals_and_the_settings_that_differ(runs: list[Path], tmp_path: Path) -> None:
    found = compare_runs(runs)
    assert found.table[0] == [
        "plain", "3", "0.500 (0.500 to 0.500)", "0.500 (0.500 to 0.500)", "+0.500 (+0.500 to +0.500)", NONE,
        "6,000", "9 G", "1.5",
    ]  # fmt: skip
    assert found.table[1][5] == "+0.250 (+0.250 to +0.250)"
    assert found.settings == [("refiner.clip_range", [NONE, "0.1"]), ("refiner.type", ["ppo", "grpo"])]
    assert found.cautions == []
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count(" data-chart=") == 3 and "plain" in page and "clip_range" in page and "http://" not in page


@pytest.mark.parametrize("width", [62, 80, 130])
def test_the_terminal_has_all_of_it(runs: list[Path], width: int) -> None:
    text = shown(compare_runs(runs), width)
    assert max(map(len, text.splitlines())) <= width
    for said in ("Winner", "+0.250", "refiner.clip_range", "grpo"):
        assert said in text, said


def test_what_cannot_be_compared_is_said(runs: list[Path], tmp_path: Path) -> None:
    other = made_up(tmp_path / "other", 3, 4, prompts=3, options=OPTIONS + '\n[task]\nname = "another"\n')
    found = compare_runs([runs[0], other])
    assert [caution.partition(":")[0] for caution in found.cautions] == [
        "the runs have different tasks", "the winners met different test prompts",
    ]  # fmt: skip
    assert found.table[1][5] == NONE


def test_a_run_that_is_not_finished_has_its_curve_and_no_test(runs: list[Path]) -> None:
    (runs[1] / "summary.json").unlink()
    found = compare_runs(runs)
    assert found.table[1][1] == "5, not finished" and set(found.table[1][2:6]) == {NONE} and found.cautions == []
    assert found.html().count(" data-chart=") == 3


def test_runs_of_one_name_get_names_of_their_own(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    shutil.copytree(runs[0], tmp_path / "twin" / "plain")
    assert list(compare_runs([runs[0], tmp_path / "twin" / "plain"]).runs) == [f"{tmp_path.name}/plain", "twin/plain"]
    assert list(compare_runs([runs[0], runs[0]]).runs) == ["plain", "plain (2)"]


def test_markup_in_options_stays_text(runs: list[Path]) -> None:
    text = HOSTILE.replace("\0", "").replace("\u202e", "") + "[bold]"
    made_up(runs[0].parent / "hostile", 3, 4, options=f"{OPTIONS}word = '{text}'\n")
    found = compare_runs([runs[0], runs[0].parent / "hostile"])
    assert "<script>alert" not in found.html() and "<img" not in found.html()
    assert "[bold]" in shown(found, 200)


def test_bad_input_is_refused(runs: list[Path], tmp_path: Path) -> None:
    for folders, expected in (
        (runs[:1], "found 1 run, expected two or more"),
        ([runs[0], tmp_path], "expected the folder of a run"),
    ):
        with pytest.raises(InputError, match=expected):
            compare_runs(folders)
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(InputError, match="has several seeds, expected the folders of single ones"):
        compare_runs([runs[0], tmp_path])
    with pytest.raises(InputError, match=r"--to .*cannot be written"):
        write_comparison(compare_runs(runs), tmp_path)
