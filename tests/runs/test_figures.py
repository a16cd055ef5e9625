"""Figures and numbers as files."""

import csv
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up import HOSTILE, made_up
from PIL import Image

from evolora.errors import InputError
from evolora.runs.report.figures import write_figures

NAMES = ("fitness", "gains", "diversity-completions", "diversity-weights", "kl")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(keepends=True)))


def test_each_chart_is_an_svg_and_a_png_that_stand_alone(tmp_path: Path) -> None:
    written = write_figures(made_up(tmp_path / "run", 5, 4), tmp_path / "deep" / "figures")
    pictures = [path.name for path in written if path.suffix != ".csv"]
    assert pictures == [f"{name}.{ending}" for name in NAMES for ending in ("svg", "png")]
    for path in written:
        if path.suffix == ".svg":
            elements = list(ElementTree.parse(path).iter())
            references = [value for each in elements for name, value in each.attrib.items() if name.endswith("href")]
            assert references and all(value.startswith("#") for value in references)  # its letters are outlines in it
            assert not [each for each in elements if each.tag.endswith(("}text", "}script", "}image"))]
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size == (1400, 800) and len(picture.convert("RGB").getcolors(2**24) or []) > 20


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 3, 4)
    first, second = (write_figures(run, tmp_path / name) for name in ("first", "second"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    write_figures(made_up(tmp_path / "run", 3, 4, text=f'"quoted", {HOSTILE}\n', prompts=5), tmp_path)
    generations = table(tmp_path / "generations.csv")
    assert [row["generation"] for row in generations] == ["1", "2", "3"]
    assert float(generations[2]["median"]) == pytest.approx(0.5 + 2 / 999) and generations[2]["ppo.gain"] == "0.1"
    assert len(table(tmp_path / "individuals.csv")) == 1 + 3 * 5
    prompts = table(tmp_path / "prompts.csv")
    assert len(prompts) == 5 and prompts[0]["base_completion"] == f'"quoted", {HOSTILE}\n'
    assert {row["winner_reward"] for row in prompts} == {"0.5"}


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    written = write_figures(made_up(tmp_path / "run", 3, 4, fitness=float("nan")), tmp_path / "figures")
    assert "fitness.svg" not in [path.name for path in written] and (tmp_path / "figures" / "gains.svg").is_file()
    assert table(tmp_path / "figures" / "generations.csv")[0]["fitness.best"] == ""


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_up(tmp_path / "run", 2, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--figures .*cannot be written"):
        write_figures(run, tmp_path / "file")
    with pytest.raises(InputError, match="expected the folder of a run"):
        write_figures(tmp_path, tmp_path / "figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("evolora.runs.report.figures.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'evolora\[figures\]'"):
        write_figures(run, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
