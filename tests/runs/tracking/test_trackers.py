"""What is told to trackers: every generation once, whatever ends the run, and whatever a tracker does."""

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evolora.runs.tracking.clients import CLIENTS, Client
from evolora.runs.tracking.trackers import TRACKERS, Trackers
from evolora.runs.tracking.view import Silence, warn

RUN = "ab" * 16


class Told(Client):
    """A tracker that remembers."""

    heard: ClassVar[list[Any]] = []
    fails_at: ClassVar[str] = ""

    def make(self) -> Any:
        self._maybe("make")
        self.id = self.known or "its own"
        return self

    def start(self) -> None: ...

    def _maybe(self, what: str) -> None:
        if what in self.fails_at:
            raise (SystemExit if "exit" in self.fails_at else RuntimeError)(f"cannot {what}\nand more")

    def where(self) -> str:
        return f"{self.name} as {self.id}"

    def store_init_configuration(self, values: Any) -> None:
        self.heard.append(("options", values))

    def log(self, figures: Any, step: int) -> None:
        self._maybe(f"log {step}")
        print("chatter")
        print("chatter", file=sys.stderr)
        self.heard.append((step, figures))

    def finish(self) -> None:
        self._maybe("finish")
        self.heard.append("finish")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setitem(CLIENTS, "told", Told)  # type: ignore[misc]
    monkeypatch.setattr(Told, "heard", [])
    return Told.heard


def line(generation: int) -> dict[str, Any]:
    return {"generation": generation, "validation": generation / 10}


def trackers(folder: Path, said: list[str], *names: str) -> Trackers:
    return Trackers(names or ["told"], folder, name="quiet-otter", run=RUN, say=said.append, warn=said.append)


def test_a_tracker_that_is_named_twice_is_told_once(heard: list[Any], tmp_path: Path) -> None:
    told = trackers(tmp_path, [], "told", "told")
    told.start({}, [])
    told.generation(line(1))
    assert [step for step, *_ in heard if step == 1] == [1]


def test_each_generation_is_told_once_through_a_kill_and_a_resume(heard: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    first = trackers(tmp_path, said)
    first.start({"run": {"seed": 3}, "reward": {"name": "http(url='http://h?api_key=S3cretS3cret')"}}, [])
    for generation in (1, 2, 3):
        first.generation(line(generation))
    # Killed here; the newest checkpoint is of generation 2, and the third is done again.
    again = trackers(tmp_path, said)
    again.start({}, [line(1), line(2)])
    for generation in (3, 4):
        again.generation(line(generation))
    again.summary({"generations": 4, "winner": {"test": {"reward": 0.5, "ci95": [0.4, 0.6], "name": "x"}}})
    again.close()
    options = {"run.seed": 3, "reward.name": "http(url='http://h?api_key=***')"}
    figures = {"winner.test.reward": 0.5, "winner.test.ci95.low": 0.4, "winner.test.ci95.high": 0.6, "generations": 4}
    summary = {f"summary.{name}": value for name, value in figures.items()}
    assert heard == [("options", options), *((step, line(step)) for step in (1, 2, 3, 4)), (4, summary), "finish"]
    assert said == ["told: quiet-otter as its own"] * 2


@pytest.mark.parametrize("noted", ["", "[]", '{"told": 3}', '{"told": {"told": "x", "id": 3}}', "[" * 100_000])
def test_what_was_noted_and_cannot_be_read_is_told_anew(noted: str, heard: list[Any], tmp_path: Path) -> None:
    (tmp_path / TRACKERS).write_text(noted)
    trackers(tmp_path, []).start({}, [line(1), line(2)])
    assert [each[0] for each in heard] == ["options", 1, 2]


@pytest.mark.parametrize("kind", ["", "exit "])
@pytest.mark.parametrize("place", ["make", "log 1", "log 2", "finish"])
def test_who_fails_is_said_once(place: str, kind: str, heard: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Told, "fails_at", kind + place)
    said: list[str] = []
    tracked = trackers(tmp_path, said)
    tracked.start({}, [line(1)])
    for generation in (2, 3):
        tracked.generation(line(generation))
    tracked.summary({"generations": 3})
    tracked.close()
    assert [text for text in said if "told:" in text and "quiet-otter as" not in text] == [
        f"--report-to told: cannot {place}; the run goes on without it"
    ]
    monkeypatch.setattr(Told, "fails_at", "")
    trackers(tmp_path, said).start({}, [line(generation) for generation in (1, 2, 3)])
    told = [each[0] for each in heard if each != "finish" and "validation" in each[1]]
    assert told == [1, 2, 3]


def test_an_interrupt_at_the_end_is_no_interrupt_of_the_run(heard: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    def interrupted(self: Told) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Told, "finish", interrupted)
    said: list[str] = []
    tracked = trackers(tmp_path, said)
    tracked.start({}, [])
    tracked.close()
    assert said[-1] == "interrupted before the trackers had ended"


def test_what_they_print_is_not_seen(heard: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trackers(tmp_path, []).start({}, [line(1)])
    assert capsys.readouterr() == ("", "")


def test_a_figure_that_does_not_exist_is_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    told: list[Any] = []

    class Plain(Told):
        log = Client.log

    client = Plain(tmp_path, "name", RUN, None)
    client.tracker = type("Tracker", (), {"log": lambda _, values, step: told.append((values, step))})()
    client.log({"validation": None, "best": math.pi}, 4)
    assert told == [({"best": math.pi}, 4)]


def test_no_tracker_no_file(tmp_path: Path) -> None:
    none = Trackers(None, tmp_path, name="quiet-otter", run=RUN, say=print, warn=print)
    none.start({"run": {"seed": 0}}, [line(1)])
    none.generation(line(2))
    none.close()
    assert list(tmp_path.iterdir()) == []


def test_a_silent_view_hides_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    class Heard(Silence):
        def say(self, text: str) -> None:
            print("heard", text)

    warn(Silence(), "it failed")
    assert capsys.readouterr() == ("", "it failed\n")
    warn(Heard(), "it failed")
    assert capsys.readouterr() == ("heard it failed\n", "")
