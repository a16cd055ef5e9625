"""What runs are called, and how one is found by it."""

import re
import time
from pathlib import Path

import pytest

from evolora.errors import InputError
from evolora.runs.keeping.names import find_run, named_time, new_folder, run_name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str) -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    return folder


def test_a_new_folder_is_sorted_by_time_and_called_by_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_folder(None)
    assert re.fullmatch(r"runs/\d{8}-\d{6}-[a-z]+-[a-z]+", str(folder))
    assert run_name(folder) == folder.name[16:] and named_time(folder) is not None
    monkeypatch.setattr(time, "strftime", lambda _: "20991231-235959")
    assert new_folder(None).name > folder.name


def test_no_two_runs_are_called_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    make("20261130-041000-calm-owl")
    make("calm-fox")
    words = iter(["calm", "owl", "calm", "fox", "calm", "wren"])
    monkeypatch.setattr("secrets.choice", lambda _: next(words))
    assert run_name(new_folder(None)) == "calm-wren"


def test_a_name_of_ones_own(here: Path) -> None:
    assert re.fullmatch(r"runs/\d{8}-\d{6}-lr-3e_4\.b", str(new_folder("lr-3e_4.b")))
    make("20261130-041000-baseline")
    with pytest.raises(InputError, match=r"^--name baseline: runs/20261130-041000-baseline has that name"):
        new_folder("baseline")


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "..", ".hidden", "-x", "_x", "x" * 51, "a\nb", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match=r"(?s)^--name .*: expected at most 50 letters"):
        new_folder(name)


def test_a_run_is_found_by_its_name_its_folders_name_or_its_path() -> None:
    folder, older = make("20261130-041000-calm-owl"), make("translate-20251130-041000")
    (folder / "best").mkdir()
    assert [find_run(text) for text in ("calm-owl", folder.name, str(folder))] == [folder] * 3
    assert find_run("translate-20251130-041000") == older == find_run(older)
    assert find_run("calm-owl/best") == folder / "best"
    assert find_run("nobody") == Path("nobody")
    Path("calm-owl").mkdir()
    assert find_run("calm-owl") == Path("calm-owl"), "what is there by that path goes before"


def test_of_two_of_one_name_the_folders_are_asked_for() -> None:
    one, other = make("20261130-041000-calm-owl"), make("calm-owl")
    with pytest.raises(InputError, match=f"^calm-owl: {one} and {other} have that name, expected the folder of one"):
        find_run("calm-owl")
