"""People instead of a reward: their votes move the winner to their taste, and none of them is lost."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rater import preferred, rate
from selenium import webdriver

from evolora.human import VoteStore
from evolora.rewards import sentiment

Taste = Callable[[str], float]


def cheerful(text: str) -> float:
    return sentiment([text])[0]


def varied(text: str) -> float:
    return float(len(set(text)))


@contextlib.contextmanager
def rater_at_the_store(folder: Path, taste: Taste, *, wanted: int = 6, at_most: int = 10**9) -> Iterator[list[int]]:
    """Somebody who votes without a browser, through the run's file, in a thread of this process: as often as a
    generation has `wanted`, like the page."""
    stop, votes = threading.Event(), [0]

    def rate() -> None:
        while not (folder / "votes.sqlite").exists():
            if stop.wait(0.05):
                return
        store = VoteStore(folder / "votes.sqlite")
        while not stop.is_set() and votes[0] < at_most:
            question = store.next_question("somebody")
            if question is None or store.count(question.generation) >= wanted:
                time.sleep(0.02)
                continue
            side = preferred(question.left, question.right, taste)
            a = "left" if question.a_is_left else "right"
            choice = "tie" if side == "tie" else "a" if side == a else "b"
            votes[0] += store.vote(question.id, "somebody", choice) == "accepted"  # type: ignore[arg-type]
        store.close()

    thread = threading.Thread(target=rate, daemon=True)
    thread.start()
    yield votes
    stop.set()
    thread.join(timeout=10)


def written_in_the_test(run: Path, individual: int) -> dict[str, str]:
    database = sqlite3.connect(run / "lineage.sqlite")
    query = "SELECT prompt, completion FROM samples WHERE stage = 'test' AND individual = ?"
    return dict(database.execute(query, (individual,)).fetchall())


def options(toy: Any, out: Path, *more: str) -> list[str]:
    return toy.options(out, "--votes", "6", "--eval-prompts", "6", *more, gens=3, reward="human")


def test_people_judge_while_rl_follows_another_reward(toy: Any, evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = toy.options(run, "--votes", "6", "--eval-prompts", "6", "--fitness", "human", gens=2)
    with rater_at_the_store(run, varied) as votes:
        code, _, err = evolora("train", *words)
    assert code == 0 and votes[0] == 12, err
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reward"], summary["fitness"], summary["votes"]["count"]) == ("distinct", "human", 12)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A strength is a probability; what RL follows counts characters.
    assert all(0 < line["fitness.worst"] <= line["fitness.best"] < 1 for line in lines)
    rewards = {line["population.reward"] for line in lines} | {line["ppo.reward"] for line in lines}
    assert all(reward > 0.2 for reward in rewards) and summary["base"]["test"]["reward"] > 0.2


def test_a_scripted_rater_at_the_page_gets_what_he_likes(
    chromium: webdriver.Chrome, launch: Any, evolora: Any, tmp_path: Path
) -> None:
    """On the bundled task, by at most 200 votes in a real browser: at least 90% of the winner's completions of held-out
    prompts please the rater more than the base model's."""
    run = tmp_path / "run"
    process = launch(
        "-m", "evolora.cli", "train", "--task", "sentiment", "--reward", "human",
        "--votes", "12", "--gens", "6", "--out", run,
    )  # fmt: skip
    address = next(found[1] for line in process.stdout if (found := re.search(r"Rate completions at (\S+)", line)))
    rest: list[str] = []
    reader = threading.Thread(target=lambda: rest.extend(process.stdout), daemon=True)
    reader.start()
    votes = rate(chromium, address, process, cheerful)
    process.wait(timeout=120)
    reader.join(timeout=10)
    assert process.returncode == 0, process.stderr.read()
    summary = json.loads((run / "summary.json").read_text())
    store = VoteStore(run / "votes.sqlite")
    assert store.count() == summary["votes"]["count"] <= votes <= 200
    assert len({vote.generation for vote in store.decided()}) == 6
    assert summary["votes"]["agreement"] >= 0.6
    base, winner = (written_in_the_test(run, who) for who in (0, summary["winner"]["id"]))
    pleased = [preferred(winner[prompt], base[prompt], cheerful) == "left" for prompt in winner]
    assert len(pleased) == 90 and sum(pleased) >= 0.9 * len(pleased)
    assert "Rate completions" not in "".join(rest) and "reward human" not in process.stderr.read()

    # The votes leave in the form of TRL's trainers, and come back once.
    file = tmp_path / "votes.jsonl"
    code, out, _ = evolora("votes", "export", run, "--to", file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    decided = [vote for vote in store.decided() if vote.outcome in ("a", "b")]
    assert code == 0 and out.startswith(f"{len(rows)} votes") and len(rows) == len(decided)
    assert all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows)
    assert all(preferred(row["chosen"], row["rejected"], cheerful) == "left" for row in rows)
    store.close()
    assert evolora("votes", "import", run, file)[1].startswith("0 votes added")
    code, out, _ = evolora("reward-model", "train", run, "--out", tmp_path / "model")
    assert code == 0 and "held-out agreement" in out and (tmp_path / "model" / "model.safetensors").is_file()
    # What the votes say of an adapter can be asked again.
    code, out, _ = evolora("evaluate", run, "--no-base")
    assert code == 0 and f"test reward {summary['winner']['test']['reward']:.4f}" in out


def test_a_killed_run_goes_on_with_its_votes(toy: Any, launch: Any, command: Any, facts: Any, tmp_path: Path) -> None:
    """Killed between two votes, rated on, it ends with the same bits as one that was never stopped."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with rater_at_the_store(whole, varied) as votes:
        command("-m", "evolora.cli", "train", *options(toy, whole))
    assert votes == [18]
    process = launch("-m", "evolora.cli", "train", *options(toy, killed))
    with rater_at_the_store(killed, varied, at_most=9):
        deadline = time.monotonic() + 120
        store = None
        while store is None or store.count() < 9:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
            if store is None and (killed / "votes.sqlite").exists():
                store = VoteStore(killed / "votes.sqlite")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.count() == 9
    with rater_at_the_store(killed, varied) as votes:
        command("-m", "evolora.cli", "rate", killed)
    assert votes == [9] and store.count() == 18
    store.close()
    found, expected = facts(killed), facts(whole)
    assert found.metrics == expected.metrics
    assert found.summary == expected.summary
    assert found.adapter == expected.adapter


def test_ctrl_c_while_it_waits_stops_at_once_and_keeps_the_generations(toy: Any, launch: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch("-m", "evolora.cli", "train", *options(toy, run, "--save-every", "100"))
    with rater_at_the_store(run, varied, at_most=8) as votes:
        deadline = time.monotonic() + 120
        while votes[0] < 8:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and f"evolora resume {run}" in errors
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["gen0001"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--reward", "human + exact"], "stands alone"),
        (["train", "--reward", "human", "--racing", "0.1"], "--racing 0.1 with --reward human"),
        (["train", "--reward", "human", "--rating-host", "example.org"], "host"),
        (["rate", "{finished}"], "expected a run with --reward human"),
        (["votes", "export", "{finished}", "--to", "{tmp}/x.jsonl"], "found no votes.sqlite"),
        (["votes", "import", "{finished}", "{tmp}/gone.jsonl"], "expected a JSONL file"),
        (["votes", "import", "{tmp}", "{tmp}/good.jsonl"], "expected the folder of a run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, finished: Path, evolora: Any, tmp_path: Path
) -> None:
    (tmp_path / "good.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    given = [one.format(finished=finished, tmp=tmp_path) for one in arguments]
    out = ["--out", str(tmp_path / "run")] if given[0] == "train" else []
    code, _, errors = evolora(*given, *out)
    assert code == 2 and said in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_package_that_serves_the_page_is_asked_for_before_any_work(toy: Any, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['flask'] = None; from evolora.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", hidden, "train", *options(toy, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'evolora[human]'" in done.stderr and not (tmp_path / "run").exists()
