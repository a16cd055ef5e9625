"""Which runs were made here, and what others may not do without being trusted."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from evolora.errors import InputError
from evolora.runs.config_file import config_toml, read_run_config
from evolora.runs.identity import IDENTITY, new_identity
from evolora.runs.options import make_options
from evolora.runs.trust import Trust, check_trust, made_here, note_made_here


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    identity = new_identity({})
    identity.write(folder)
    assert note_made_here(folder, identity.run) is None
    return folder


def test_a_run_was_made_where_it_was_made(run: Path, tmp_path: Path) -> None:
    assert made_here(run)
    (tmp_path / "link").symlink_to(run)
    assert made_here(tmp_path / "link")
    assert not made_here(Path(shutil.copytree(run, tmp_path / "copied")))
    run.rename(tmp_path / "moved")
    assert not made_here(tmp_path / "moved")


@pytest.mark.parametrize("identity", [None, "{", '{"run": 3}', '{"run": "../../x"}', f'{{"run": "{"0" * 32}"}}'])
def test_a_run_that_says_otherwise_was_not(identity: str | None, run: Path) -> None:
    (run / IDENTITY).unlink()
    if identity is not None:
        (run / IDENTITY).write_text(identity)
    assert not made_here(run)


def test_a_state_folder_that_cannot_be_written_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    said = note_made_here(run, "0" * 32)
    assert said is not None and "--trust-reward" in said and not made_here(run)


def test_a_relative_state_folder_is_none(monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    note_made_here(run, "0" * 32)
    assert [path.name for path in tmp_path.glob(".local/state/evolora/runs/*")] == ["0" * 32]


def checked(folder: Path, reward: str, *, trust: Trust = False, own: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config_toml(make_options({"reward": reward})))
    known = read_run_config(folder)
    places = {("reward", "name")} if own else set()
    check_trust(folder, known, make_options(known), trust, own={*places}, wanted="--trust-reward")


@pytest.mark.parametrize(
    ("reward", "power"),
    [
        ("/x/rewards.py:polite", "its reward is the code of /x/rewards.py:polite"),
        ("chrf + 0.5 * my.module:polite", "its reward is the code of my.module:polite"),
        ("(exact > 0) * python(/x/rewards.py:polite)", "its reward is the code of /x/rewards.py:polite"),
        ("command('sh -c evil')", "its reward starts the program 'sh -c evil'"),
        ("http('https://h', token_env=PATH)", "it reads the environment variable PATH"),
        ("http('https://h/?x=env:PATH&y=env:HOME')", "it reads the environment variable PATH, HOME"),
        ("env:PATH", "it reads the environment variable PATH"),
    ],
)
def test_code_and_variables_of_a_foreign_run_want_trust(reward: str, power: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        checked(tmp_path / "foreign", reward)
    assert f"{power}" in str(refused.value) and str(refused.value).endswith(": expected --trust-reward")
    checked(tmp_path / "foreign", reward, trust=True)
    checked(tmp_path / "foreign", reward, trust=lambda question: power in question)
    with pytest.raises(InputError):
        checked(tmp_path / "foreign", reward, trust=lambda _: False)


@pytest.mark.parametrize("reward", ["chrf + brevity(limit=8)", "http('https://h/x')", "regex(a)", "human"])
def test_rewards_that_run_no_code_want_none(reward: str, tmp_path: Path) -> None:
    checked(tmp_path / "foreign", reward)


def test_neither_does_a_reward_of_ones_own_nor_a_run_that_was_made_here(tmp_path: Path, run: Path) -> None:
    checked(tmp_path / "foreign", "/x/rewards.py:polite", own=True)
    checked(run, "/x/rewards.py:polite")


def test_the_tests_write_nothing_into_the_users_own_state() -> None:
    assert Path(os.environ["XDG_STATE_HOME"]).is_relative_to(tempfile.gettempdir())
