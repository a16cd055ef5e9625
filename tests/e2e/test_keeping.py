"""`evolora ls`, `show` and `rm` on runs that are whole, under way, stopped and damaged."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from evolora.lock import owned
from evolora.runs.identity import Identity, read_identity
from evolora.runs.options import make_options
from evolora.runs.seeds.folder import Seeds

NAME, FOLDER = "quiet-otter", "20261130-041000-quiet-otter"


@pytest.fixture
def kept(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in `runs/` of the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, Path("runs") / FOLDER))


def listed(evolora: Any, *more: str) -> list[dict[str, Any]]:
    code, out, errors = evolora("ls", "--json", *more)
    assert (code, errors) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_ls_says_of_each_run_how_it_stands(kept: Path, evolora: Any) -> None:
    stopped = Path(shutil.copytree(kept, "runs/stopped"))
    (stopped / "summary.json").unlink()
    Path("runs/no-run").mkdir()
    Path("runs/notes.txt").write_text("mine")
    summary = json.loads((kept / "summary.json").read_text())
    found = {entry["name"]: entry for entry in listed(evolora)}
    assert {name: entry["state"] for name, entry in found.items()} == {NAME: "finished", "stopped": "stopped"}
    run = found[NAME]
    assert run["base"] == summary["base"]["test"]["reward"] and run["winner"] == summary["winner"]["test"]["reward"]
    assert (run["generation"], run["generations"], run["seed"]) == (6, 6, 0)
    assert (run["task"], run["strategy"], run["refiner"]) == ("words", "ga", "ppo")
    assert run["bytes"] == sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    assert found["stopped"]["winner"] is None and found["stopped"]["validation"] is not None
    code, out, errors = evolora("ls")
    head, *lines = out.splitlines()
    assert (code, errors, len(lines)) == (0, "", 2) and head.split()[0] == "name"
    line = next(line for line in lines if line.startswith(NAME))
    assert all(word in line for word in ("words", "ga+ppo", "6/6", "finished", f"-> {run['winner']:.3f}", "MB"))
    assert [entry["name"] for entry in listed(evolora, str(kept))] == [NAME], "a run itself is a list of one"


def test_a_run_under_way(kept: Path, evolora: Any) -> None:
    with owned(kept, print):
        assert [entry["state"] for entry in listed(evolora)] == ["running"]
        assert f"running by pid {os.getpid()} on " in evolora("show", NAME)[1]
        code, _, errors = evolora("rm", NAME, "--yes")
        assert code == 2 and errors.startswith(f"evolora: runs/{FOLDER}: in use by pid {os.getpid()} on ")
    assert [entry["state"] for entry in listed(evolora)] == ["finished"] and (kept / "best").is_dir()


def test_runs_of_an_older_version_stay_readable(kept: Path, evolora: Any) -> None:
    older = kept.rename("runs/translate-20251130-041000")
    identity = read_identity(older)
    assert identity.made is not None
    Identity(identity.run, identity.fingerprint).write(older)
    (entry,) = listed(evolora)
    assert (entry["name"], entry["state"]) == (older.name, "finished")
    assert evolora("show", older.name)[0] == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [
    _cut, _pipe, _folder, lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_text(path.read_text().replace("6", "7")),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "pipe", "folder", "bytes", "deep", "altered"])
@pytest.mark.parametrize("name", ["config.toml", "identity.json", "summary.json", "metrics.jsonl"])
def test_what_is_damaged_is_named(name: str, damage: Callable[[Path], None], kept: Path, evolora: Any) -> None:
    damage(kept / name)
    (entry,) = listed(evolora)
    assert entry["state"] == "damaged" and name in entry["faults"][0]
    code, out, errors = evolora("ls")
    assert (code, errors) == (0, "") and any(line.startswith(f"{NAME}: ") and name in line for line in out.splitlines())
    code, out, errors = evolora("show", NAME)
    assert (code, errors) == (0, "") and f"evolora verify {NAME}" in out
    code, out, _ = evolora("rm", NAME, "--yes")
    assert code == 0 and not kept.exists()


def test_show(kept: Path, evolora: Any) -> None:
    summary = json.loads((kept / "summary.json").read_text())
    code, out, errors = evolora("show", NAME)
    assert (code, errors) == (0, "") and len(out.splitlines()) < 24, "one screen"
    assert out.startswith(f"{NAME}, finished\n")
    low, high = summary["winner"]["test"]["ci95"]
    interval = f"{summary['winner']['test']['reward']:.3f} (95% {low:.3f} to {high:.3f})"
    assert f"{interval} on {summary['test_prompts']} test prompts" in out
    (settings,) = (line for line in out.splitlines() if line.startswith("  settings "))
    assert all(word in settings for word in ("--pop 4", "--gens 6", "--merge", "--mutation-scale 0.1", "--refine 2"))
    assert "--elites" not in settings and "--out" not in settings
    assert "best/, the adapter, merged/, the merged model" in out and "gen0002 gen0004 gen0006" in out
    assert f"evolora resume {NAME} --gens 12" in out
    found = json.loads(evolora("show", NAME, "--json")[1])
    assert found["options"]["evolution.pop"] == 4 and found["summary"]["winner"] == summary["winner"]


def test_the_settings_that_are_shown_make_the_same_run(kept: Path, evolora: Any, facts: Any) -> None:
    out = evolora("show", NAME)[1]
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert evolora("train", *lines["settings"], *lines["machine"], "--out", "again")[0] == 0
    assert facts(Path("again")) == facts(kept)


def test_a_run_is_named_by_its_name_wherever_one_is_asked_for(kept: Path, evolora: Any, adopted: Any) -> None:
    adopted(kept)
    assert evolora("verify", NAME)[1].startswith("identity.json: whole\n")
    assert evolora("evaluate", NAME, "--no-base")[0] == 0
    assert evolora("export", NAME, "--to", "out")[0] == 0 and Path("out/adapter_config.json").is_file()
    assert evolora("export", f"{NAME}/best", "--to", "out2")[0] == 0
    assert evolora("report", NAME)[1] == f"runs/{FOLDER}/report.html\n"
    assert evolora("resume", NAME)[0] == 0 and evolora("train", "--resume", NAME)[0] == 0


def test_a_new_run_has_a_name_everywhere(toy: Any, evolora: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = toy.options(Path("none"), gens=1)
    code, out, _ = evolora("train", *options, "--name", "first.try")
    (folder,) = Path("runs").iterdir()
    assert code == 0 and folder.name.endswith("-first.try") and "run: first.try\n" in out
    assert json.loads((folder / "summary.json").read_text())["name"] == "first.try"
    assert "Run: `first.try`." in (folder / "best" / "README.md").read_text()
    code, _, errors = evolora("train", *options, "--name", "first.try")
    assert code == 2 and errors.startswith(f"evolora: --name first.try: {folder} has that name")
    code, _, errors = evolora("train", "--name", "other", "--out", "elsewhere")
    assert code == 2 and errors.startswith("evolora: --name other with --out: expected one of them")
    assert evolora("resume", "first.try", "--gens", "2")[0] == 0
    assert [entry["generation"] for entry in listed(evolora)] == [2]


def test_rm_takes_the_run_and_nothing_else(kept: Path, evolora: Any, tmp_path: Path) -> None:
    mine, other = kept / "notes.txt", tmp_path / "other"
    mine.write_text("mine")
    other.mkdir()
    (other / "kept.txt").write_text("kept")
    (kept / "best" / "link").symlink_to(other)
    (kept / "wandb").symlink_to(other)
    code, out, errors = evolora("rm", NAME, "--yes")
    assert (code, errors) == (0, "")
    assert out == f"removed runs/{FOLDER}, but for what is no part of a run: notes.txt\n"
    assert [path.name for path in kept.iterdir()] == ["notes.txt"] and (other / "kept.txt").exists()


def test_rm_refuses_all_when_it_refuses_one(kept: Path, evolora: Any, tmp_path: Path) -> None:
    Path("link").symlink_to(kept)
    site = tmp_path / "site"
    site.mkdir()
    (site / "config.toml").write_text("[params]\n")
    for wrong, words in (
        ("link", "found a link"), ("link/", "found a link"), (str(site), "found no run in it"),
        (".", "found no run in it"), ("nobody", "found no run in it"), (str(kept / "best"), "found no run in it"),
    ):  # fmt: skip
        code, _, errors = evolora("rm", NAME, wrong, "--yes")
        assert code == 2 and words in errors and errors.count("\n") == 1
    code, _, errors = evolora("rm", NAME)
    assert (code, errors) == (2, "evolora: rm: found no terminal to ask on, expected --yes\n")
    assert (kept / "summary.json").exists() and (site / "config.toml").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\x03", 130)], ids=["yes", "no", "ctrl-c"])
def test_rm_asks(answer: str, code: int, kept: Path) -> None:
    child = pexpect.spawn(sys.executable, ["-m", "evolora", "rm", NAME], encoding="utf-8", timeout=60)
    child.expect(r"Remove this run\? \[y/N\]")
    child.send(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, kept.exists()) == (code, code != 0)
    assert ("nothing was removed" in child.before) == (code == 130)


def test_a_run_under_several_seeds(kept: Path, evolora: Any) -> None:
    several = Path("runs/20261130-050000-calm-owl")
    for seed in (0, 1):
        shutil.copytree(kept, several / f"seed-{seed}")
    (several / "seeds.json").write_text("{}")
    (several / "seed-1" / "summary.json").unlink()
    entry = next(entry for entry in listed(evolora) if entry["name"] == "calm-owl")
    assert [one["state"] for one in entry["seeds"]] == ["finished", "stopped"]
    out = evolora("ls")[1]
    assert "1 of 2 finished" in out and "\n  calm-owl/seed-0 " in out
    assert evolora("show", "calm-owl/seed-1")[1].startswith("calm-owl/seed-1, stopped\n")
    shutil.copy(several / "seed-0" / "summary.json", several / "seed-1")
    both = next(line for line in evolora("ls")[1].splitlines() if line.startswith("calm-owl "))
    assert "2 of 2 finished" in both and f"{entry['seeds'][0]['base']:.3f} -> " in both
    assert "2 of 2 finished" in evolora("show", "calm-owl")[1]
    assert evolora("rm", "calm-owl", "--yes")[0] == 0
    assert not several.exists() and kept.exists()


def test_a_run_under_several_seeds_that_was_killed_before_the_first_began(kept: Path, evolora: Any) -> None:
    several = Path("runs/20261130-060000-calm-owl")
    several.mkdir()
    (several / "seeds.json").write_text("{}")
    assert "calm-owl" not in evolora("ls")[1], "somebody else's"
    assert evolora("rm", "calm-owl", "--yes")[0] == 2
    Seeds.of("0" * 32, make_options({"seeds": 2, "task": "format", "gens": 3}), {}).write(several)
    (entry,) = [entry for entry in listed(evolora) if entry["name"] == "calm-owl"]
    assert (entry["state"], entry["task"], entry["generation"], entry["generations"]) == ("stopped", "format", 0, 3)
    assert "evolora resume calm-owl\n" in evolora("show", "calm-owl")[1]
    assert evolora("rm", "calm-owl", "--yes")[0] == 0
    assert not several.exists() and kept.exists()


def test_no_runs_at_all(evolora: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert evolora("ls") == (0, "runs: no runs there; 'evolora train' makes one in runs/\n", "")
    assert listed(evolora) == []
    code, _, errors = evolora("ls", "missing")
    assert (code, errors) == (2, "evolora: missing: found no folder there, expected one with runs\n")
    code, _, errors = evolora("show", "missing")
    assert code == 2 and errors.startswith("evolora: missing: found no run there, expected the folder or the name")


def test_a_narrow_terminal_gets_fewer_columns(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    child = pexpect.spawn(sys.executable, ["-m", "evolora", "ls"], encoding="utf-8", timeout=60)
    child.expect(pexpect.EOF)
    lines = child.before.splitlines()
    assert max(map(len, lines)) <= 62 and "finished" in lines[1] and "model" not in lines[0], lines
