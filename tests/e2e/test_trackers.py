"""`--report-to`: what each tracker has of a run, read back from its own files, is what `metrics.jsonl` says."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# MLflow begins late, and has to be told what it missed.
EARLY, ALL = ("tensorboard", "trackio", "wandb"), ("tensorboard", "trackio", "wandb", "mlflow")
KEY = "S3cretOfTheTests"


def installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if find_spec(name) is not None]


@dataclass(frozen=True)
class Reported:
    """A run of two generations that was resumed for a third one, and where its trackers keep what they have."""

    run: Path
    trackio: Path
    mlflow: Path
    said: str
    errors: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    def figures(self, *, numbers: bool) -> dict[int, dict[str, Any]]:
        """What a tracker should have of each generation."""
        own = ("run", "check")
        return {
            line["generation"]: {
                name: value
                for name, value in line.items()
                if name not in own and value is not None and (not numbers or not isinstance(value, str))
            }
            for line in self.lines
        }

    def summary(self) -> dict[str, Any]:
        found = json.loads((self.run / "summary.json").read_text())
        return {
            "summary.generations": found["generations"],
            "summary.base.test.reward": found["base"]["test"]["reward"],
            "summary.winner.test.reward": found["winner"]["test"]["reward"],
            "summary.winner.test.ci95.low": found["winner"]["test"]["ci95"][0],
        }


@pytest.fixture(scope="module")
def reported(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported")
    run, trackio, mlflow = folder / "quiet-otter", folder / "trackio", folder / "mlruns"
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(trackio),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": mlflow.as_uri(),
    }
    said = errors = ""
    reward = f"{toy.reward} + 0 * contains(text='--token {KEY}')"
    for arguments in (
        ["train", *toy.options(run, reward=reward, gens=2), "--report-to", *installed(EARLY)],
        ["resume", str(run), "--gens", "3", "--report-to", *installed(ALL)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "evolora", *arguments],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        said, errors = said + done.stdout, errors + done.stderr
    return Reported(run, trackio, mlflow, said, errors)


def test_where_each_keeps_the_run_is_said_and_nothing_else(reported: Reported) -> None:
    lines = [line for line in reported.said.splitlines() if line.startswith(tuple(f"{name}:" for name in ALL))]
    assert len(lines) == len(installed(EARLY)) + len(installed(ALL))
    assert reported.errors == ""
    for chatter in ("Trackio", "\n* ", "wandb: Tracking", "🏃"):
        assert chatter not in reported.said


def test_no_tracker_has_a_key(reported: Reported) -> None:
    assert KEY in (reported.run / "config.toml").read_text(), "it was there to be found"
    kept = [*reported.trackio.rglob("*"), *reported.mlflow.rglob("*")]
    kept += [*(reported.run / "wandb").rglob("*"), *(reported.run / "tensorboard").rglob("*")]
    files = [path for path in kept if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_tensorboard(reported: Reported) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reported.run / "tensorboard"))
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in found.setdefault(event.step, {}), f"{tag} twice"
            found[event.step][tag] = event.value
    for generation, figures in reported.figures(numbers=True).items():
        told = {name: value for name, value in found[generation].items() if not name.startswith("summary.")}
        assert told == pytest.approx(figures, rel=1e-6)  # it keeps float32
    assert sorted(found) == [1, 2, 3]
    assert {name: found[3][name] for name in reported.summary()} == pytest.approx(reported.summary(), rel=1e-6)
    assert "summary.generations" in found[2] and "summary.generations" not in found[1]


def test_trackio(reported: Reported) -> None:
    pytest.importorskip("trackio")
    run_id = json.loads((reported.run / "identity.json").read_text())["run"]
    with sqlite3.connect(reported.trackio / "evolora.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        ((options,),) = database.execute("SELECT config FROM configs").fetchall()
    assert {name for name, _, _ in rows} == {f"quiet-otter-{run_id[:6]}"}
    told = [(step, json.loads(text)) for _, step, text in rows]
    summaries = [one for one in told if "summary.generations" in one[1]]
    assert [one for one in told if one not in summaries] == list(reported.figures(numbers=False).items())
    assert [step for step, _ in summaries] == [2, 3] and reported.summary().items() <= summaries[-1][1].items()
    assert json.loads(options)["evolution.gens"] == 3 and json.loads(options)["lora.r"] == 8


def records(path: Path) -> Iterator[Any]:
    """Those of a wandb file: LevelDB's log format with a header of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb(reported: Reported) -> None:
    pytest.importorskip("wandb")
    run_id = json.loads((reported.run / "identity.json").read_text())["run"]
    files = sorted((reported.run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {path.stem for path in files} == {f"run-{run_id}"}
    told: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for path in files:
        for record in records(path):
            if record.HasField("run"):
                assert (record.run.display_name, record.run.project) == ("quiet-otter", "evolora")
            if record.HasField("history"):
                assert record.history.step.num not in told, "twice"
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                told[record.history.step.num] = {
                    name: value for name, value in items.items() if not name.startswith("_")
                }
            if record.HasField("summary"):
                summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
    assert told == reported.figures(numbers=False)
    assert reported.summary().items() <= summary.items()


def test_mlflow_is_told_what_it_missed(reported: Reported) -> None:
    pytest.importorskip("mlflow")
    run = json.loads((reported.run / "trackers.json").read_text())["mlflow"]["id"]
    (folder,) = reported.mlflow.glob(f"*/{run}")
    told: dict[int, dict[str, float]] = {}
    for path in (path for path in (folder / "metrics").rglob("*") if path.is_file()):
        for line in path.read_text().splitlines():
            _, value, step = line.split()
            told.setdefault(int(step), {})[path.relative_to(folder / "metrics").as_posix()] = float(value)
    for generation, figures in reported.figures(numbers=True).items():
        plain = {
            "".join(sign if sign.isalnum() or sign in "/_.- " else "_" for sign in name): figures[name]
            for name in figures
        }
        own = {name: value for name, value in told[generation].items() if not name.startswith("summary.")}
        assert own == pytest.approx(plain)
    assert sorted(told) == [1, 2, 3] and reported.summary().items() <= told[3].items()
    assert (folder / "params" / "evolution.gens").read_text() == "3"


def test_a_tracker_that_fails_ends_nothing(toy: Any, command: Any, tmp_path: Path) -> None:
    """A wandb without a key, at the start; trackio whose database goes, in the middle; the run is as it is."""
    if installed(("trackio", "wandb")) != ["trackio", "wandb"]:
        pytest.skip("needs trackio and wandb")
    run = tmp_path / "run"
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, sys
os.environ |= {{"WANDB_MODE": "online", "WANDB_BASE_URL": "http://localhost:1", "HOME": {str(tmp_path)!r}}}
os.environ["TRACKIO_DIR"] = {str(tmp_path / "trackio")!r}
from accelerate.tracking import TrackioTracker
log = TrackioTracker.log
def fails(self, values, step=None, **kwargs):
    if step == 2:
        raise RuntimeError("the disk of --token {KEY} is full")
    log(self, values, step, **kwargs)
TrackioTracker.log = fails
from evolora.__main__ import main
sys.exit(main(sys.argv[1:]))
""")
    done = command(script, "train", *toy.options(run, gens=3), "--report-to", "trackio", "wandb")
    said = [line for line in done.stdout.splitlines() if "the run goes on without it" in line]
    assert len(said) == 2
    assert said[0].startswith("--report-to wandb: ") and "key" in said[0].lower()
    assert said[1] == "--report-to trackio: the disk of --token *** is full; the run goes on without it"
    assert json.loads((run / "summary.json").read_text())["generations"] == 3
    noted = json.loads((run / "trackers.json").read_text())
    assert noted["trackio"]["told"] == 1 and "wandb" not in noted


@pytest.mark.parametrize("name", ALL)
def test_one_that_is_not_installed_is_refused(name: str, evolora: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("evolora.runs.tracking.clients.find_spec", lambda _: None)
    code, _, errors = evolora("train", "--report-to", name, "--out", tmp_path / "run")
    expected = f"found no package {name}, expected it installed: pip install 'evolora[{name}]'"
    assert (code, errors) == (2, f"evolora: --report-to {name}: {expected}\n")
    assert not (tmp_path / "run").exists()


def test_one_that_nobody_knows_is_refused(evolora: Any, tmp_path: Path) -> None:
    code, _, errors = evolora("train", "--report-to", "tensorboard", "tensorbord", "--out", tmp_path / "run")
    assert code == 2
    assert (
        errors.startswith("evolora: --report-to tensorbord: input should be 'tensorboard', ")
        and errors.count("\n") == 1
    )
