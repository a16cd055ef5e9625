"""The same run under several seeds, by the real command: its bits, its summary, and whatever ends it."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from evolora import InputError, SeedsResult, evolve, resume
from evolora.engine.calibration import available_cores

SEEDS = (0, 1, 2)
two_cores = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")


def options(toy: Any, out: Path, *more: str, reward: str | None = None, seeds: str = "3") -> list[str]:
    """One thread, so that runs side by side round as those one after another."""
    plain = [each for each in toy.options(out, *more, gens=2, reward=reward) if each != "--merge"]
    return [*plain, "--save-every", "1", "--threads", "1", "--seeds", seeds]


@pytest.fixture(scope="module")
def seeded(toy: Any, command: Any, trainer: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run under three seeds that was never interrupted, and what it said. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("seeded") / "run"
    return folder, command(trainer, *options(toy, folder)).stdout


@pytest.fixture
def copied(seeded: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded[0], tmp_path / seeded[0].name))


def same(found: Path, expected: Path, facts: Any) -> None:
    for seed in SEEDS:
        assert facts(found / f"seed-{seed}") == facts(expected / f"seed-{seed}"), seed
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (found, expected))
    for name in ("base", "winner", "gain", "better", "best", "tokens", "flops", "differ"):
        assert ours[name] == theirs[name], name


def rows_tested(run: Path) -> list[str]:
    with closing(sqlite3.connect(run / "lineage.sqlite")) as lineage:
        return [prompt for (prompt,) in lineage.execute("SELECT DISTINCT prompt FROM samples WHERE stage = 'test'")]


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def test_each_is_the_run_of_its_seed_on_the_same_data(
    seeded: tuple[Path, str], toy: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run = tmp_path / "one"
    alone = [each for each in options(toy, run, "--seed", "1", "--split-seed", "0") if each not in ("--seeds", "3")]
    assert evolora("train", *alone)[0] == 0
    assert facts(run) == facts(seeded[0] / "seed-1")
    assert rows_tested(run) == rows_tested(seeded[0] / "seed-0") == rows_tested(seeded[0] / "seed-2")


def test_the_summary_has_means_with_intervals_over_seeds(seeded: tuple[Path, str]) -> None:
    folder, said = seeded
    summary = json.loads((folder / "summary.json").read_text())
    each = [json.loads((folder / f"seed-{seed}" / "summary.json").read_text()) for seed in SEEDS]
    base, winner = ([one[who]["test"]["reward"] for one in each] for who in ("base", "winner"))
    gain = [after - before for before, after in zip(base, winner, strict=True)]
    assert len(set(base)) == 1 and len(set(winner)) > 1
    for name, values in (("winner", winner), ("gain", gain)):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert summary[name]["reward"] == pytest.approx(sum(values) / 3)
        assert summary[name]["ci95"] == pytest.approx([low, high])
        assert f"(95% {low:{'+' * (name == 'gain')}.3f} to {high:{'+' * (name == 'gain')}.3f})" in said
    assert summary["better"] == sum(value > 0 for value in gain) / 3
    validations = [one["winner"]["validation"] for one in each]
    assert validations[summary["best"]] == max(validations)
    assert summary["tokens"]["rollout"] == sum(one["tokens"]["rollout"] for one in each)
    assert summary["seconds"] == pytest.approx(sum(one["seconds"] for one in each))
    for line in ("seed 1, 2 of 3", "over 3 seeds, by Student's t:", "(the same in every seed)", "of 3 seeds beat the"):
        assert line in said
    best = folder / f"seed-{summary['best']}" / "best"
    assert f"adapter: {best} (seed" in said


def test_every_command_takes_the_folder(copied: Path, evolora: Any, digest: Any, tmp_path: Path) -> None:
    best = json.loads((copied / "summary.json").read_text())["best"]
    run = copied / f"seed-{best}"
    code, out, _ = evolora("verify", copied)
    assert code == 0 and {"seeds.json: whole", "summary.json: whole", "seed-2/best: whole"} <= set(out.splitlines())
    code, out, said = evolora("evaluate", copied, "--trust-reward", "--show", "0")
    reward = json.loads((run / "summary.json").read_text())["winner"]["test"]["reward"]
    assert code == 0 and f"\ntest reward {reward:.4f} " in f"\n{out}"
    assert said.startswith(f"{run}: taken, the best of 3 seeds on validation")
    code, generated, _ = evolora("generate", copied, "Translate 'chat' to English:")
    assert (code, generated) == evolora("generate", run, "Translate 'chat' to English:")[:2]
    assert evolora("export", copied, "--to", tmp_path / "exported")[0] == 0
    same_file = "adapter_model.safetensors"
    assert (tmp_path / "exported" / same_file).read_bytes() == (run / "best" / same_file).read_bytes()
    for page in copied.rglob("report.html"):
        page.unlink()
    assert evolora("report", copied)[:2] == (0, f"{copied / 'report.html'}\n")
    page = (copied / "report.html").read_text()
    assert all(f'<a href="seed-{seed}/report.html">' in page for seed in SEEDS)
    assert all((copied / f"seed-{seed}" / "report.html").is_file() for seed in SEEDS)
    assert "Over 3 seeds the winner earns" in page and "https://" not in page


def test_a_finished_one_is_not_run_again(copied: Path, evolora: Any, digest: Any) -> None:
    before = digest(copied)
    code, out, _ = evolora("resume", copied, "--trust-reward")
    assert code == 0 and out.count(": finished before") == 3 and "gen 1/2" not in out
    assert digest(copied) == before


def test_what_is_damaged_is_named(copied: Path, evolora: Any) -> None:
    (copied / "seed-1" / "best" / "adapter_model.safetensors").write_bytes(b"")
    (copied / "seed-2" / "summary.json").unlink()
    (copied / "report.html").write_text("altered")
    code, out, _ = evolora("verify", copied)
    assert code == 1
    faults = [line for line in out.splitlines() if not line.endswith(": whole")]
    assert len(faults) == 3
    for fault, words in zip(
        faults, ("is of another end of seed-2", "report.html: altered", "seed-1/best"), strict=True
    ):
        assert words in fault
    (copied / "seeds.json").write_text("{}")
    code, _, error = evolora("resume", copied)
    assert code == 2 and error.count("\n") == 1 and "seeds.json" in error


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGKILL, ()),
        (signal.SIGINT, ()),
        pytest.param(signal.SIGKILL, ("--seed-workers", "2"), marks=two_cores),
        pytest.param(signal.SIGTERM, ("--seed-workers", "2"), marks=two_cores),
    ],
)
def test_ended_at_any_moment_it_goes_on_to_the_same_bits(
    number: signal.Signals, workers: tuple[str, ...], toy: Any, seeded: tuple[Path, str], launch: Any, evolora: Any,
    facts: Any, digest: Any, tmp_path: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    process = launch("-m", "evolora", "train", *options(toy, run, *workers, reward=toy.slow_reward, seeds="0,1"))
    wait_for(lambda: lines(run / "seed-1") >= 1 and (not workers or lines(run / "seed-0") >= 1), process)
    done = digest(run / "seed-0") if not workers else {}
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert errors == f"Interrupted. Resume with: evolora resume {run}\n"
    code, out, errors = evolora("resume", run)
    assert code == 0, errors
    assert workers or ("seed 0, 1 of 2: finished before" in out and digest(run / "seed-0") == done)
    for seed in (0, 1):  # the reward is the same but for its file's name
        ours, theirs = facts(run / f"seed-{seed}"), facts(seeded[0] / f"seed-{seed}")
        assert (ours.metrics, ours.lineage, ours.adapter) == (theirs.metrics, theirs.lineage, theirs.adapter)


@two_cores
def test_side_by_side_gives_the_same_as_one_after_another(
    seeded: tuple[Path, str], toy: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    code, out, error = evolora("train", *options(toy, tmp_path / "run", "--seed-workers", "2"))
    assert code == 0, error
    same(tmp_path / "run", seeded[0], facts)
    assert re.search("^seed 2  gen 2/2  best ", out, re.MULTILINE) and "over 3 seeds" in out


@pytest.mark.parametrize("workers", [(), pytest.param(("--seed-workers", "2"), marks=two_cores)])
def test_a_reward_that_fails_ends_all_and_what_is_done_is_kept(
    workers: tuple[str, ...], toy: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run, reward, broken = tmp_path / "run", tmp_path / "fails.py", tmp_path / "broken"
    broken.touch()
    reward.write_text(
        "from pathlib import Path\n"
        "def distinct(completions, **kwargs):\n"
        f"    if Path({str(broken)!r}).exists() and Path({str(run / 'seed-1' / 'metrics.jsonl')!r}).exists():\n"
        "        raise ValueError('it broke')\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    code, _, error = evolora("train", *options(toy, run, *workers, reward=f"{reward}:distinct"))
    assert code == 1 and "Traceback (most recent" not in error.splitlines()[0]
    assert re.match(r"evolora: seed [01]: .*distinct", error) and "it broke" in error
    assert error.endswith(f"\nresume with: evolora resume {run}\n")
    assert any((run / f"seed-{seed}" / "config.toml").is_file() for seed in SEEDS)
    broken.unlink()
    assert evolora("resume", run)[0] == 0
    whole = tmp_path / "whole"
    assert evolora("train", *options(toy, whole, reward=f"{reward}:distinct"))[0] == 0
    same(run, whole, facts)


@pytest.mark.parametrize(
    ("more", "fragments"),
    [
        (["--seeds", "0"], ["--seeds 0", "from 2 to 1000"]),
        (["--seeds", "1"], ["--seeds 1", "from 2 to 1000 seeds, --seed is for one run"]),
        (["--seeds", "1,1"], ["--seeds 1,1", "differ"]),
        (["--seeds", "-3"], ["--seeds -3"]),
        (["--seeds", "x"], ["--seeds x", "such as 5, or which, such as 1,2,3"]),
        (["--seeds", "1,2", "--seed", "3"], ["--seed 3", "--seeds 1,2"]),
        (["--seed-workers", "2"], ["--seed-workers 2", "--seeds"]),
        (["--seeds", "2", "--seed-workers", "0"], ["--seed-workers 0"]),
        (["--seeds", "999", "--seed-workers", "999"], ["--seed-workers 999", "cores"]),
        (["--seeds", "2", "--reward", "human"], ["--seeds", "--reward human"]),
        (["--seeds", "2", "--reward", "nonsense"], ["--reward", "nonsense"]),
        (["--seeds", "2", "--target-modules", "nonsense"], ["--target-modules nonsense"]),
        pytest.param(["--seeds", "2", "--seed-workers", "2", "--device", "nonsense"], ["nonsense"], marks=two_cores),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(
    more: list[str], fragments: list[str], toy: Any, evolora: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = toy.options(run)
    for option in {"--reward"} & set(more):
        del given[given.index(option) : given.index(option) + 2]
    code, _, error = evolora("train", *given, "--threads", "1", *more)
    assert code == 2 and error.count("\n") == 1 and error.startswith("evolora: "), error
    assert all(fragment in error for fragment in fragments), error
    assert not run.exists()


def test_changed_data_is_refused_for_a_seed_that_comes_later(
    toy: Any, evolora: Any, launch: Any, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "words.jsonl"
    shutil.copy(toy.data, data)
    process = launch("-m", "evolora", "train", *options(toy, run, "--data", str(data), reward=toy.slow_reward))
    wait_for(lambda: (run / "seed-0" / "summary.json").exists(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    shutil.rmtree(run / "seed-1", ignore_errors=True)
    data.write_text(data.read_text().replace("house", "home"))
    code, _, error = evolora("resume", run)
    assert code == 2 and error.count("\n") == 1 and "what the run depends on has changed: data" in error
    code, out, _ = evolora("resume", run, "--accept-changes")
    assert code == 0 and "not the same in every seed: seed 1: data" in out
    assert json.loads((run / "seed-1" / "summary.json").read_text())["changed"][0]["generation"] == 0


def test_another_ones_folder_runs_no_code_of_its_own(copied: Path, evolora: Any) -> None:
    for seed in SEEDS:
        shutil.rmtree(copied / f"seed-{seed}")
    code, _, error = evolora("resume", copied)
    assert code == 2 and "was not made here, and its reward is the code of" in error and "--trust-reward" in error


def test_one_owner_of_all(seeded: tuple[Path, str], toy: Any, evolora: Any, launch: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch("-m", "evolora", "train", *options(toy, run, reward=toy.slow_reward))
    wait_for(lambda: (run / "seed-0" / "config.toml").exists(), process)
    code, _, error = evolora("resume", run)
    process.kill()
    process.communicate()
    assert code == 2 and f"{run}: in use by pid {process.pid}" in error
    code, _, error = evolora("train", *options(toy, run))
    assert code == 2 and "found seeds.json in it" in error


def test_dry_run_counts_the_seeds(toy: Any, evolora: Any, tmp_path: Path) -> None:
    code, out, _ = evolora("train", *options(toy, tmp_path / "run", "--dry-run", seeds="4,7"))
    assert code == 0 and re.search(
        r"^# seeds: 2, each as above, one after another: [\d.]+ s in all$", out, re.MULTILINE
    )
    (tmp_path / "again.toml").write_text(out)
    assert evolora("train", tmp_path / "again.toml", "--dry-run")[0] == 0


def distinct(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in completions]


def test_from_python(toy: Any, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in toy.data.read_text().splitlines()]
    words: dict[str, Any] = {"model": str(toy.model), "data": rows, "pop": 4, "rl_steps": 1, "threads": 1, "gens": 1}
    with pytest.raises(InputError, match="seed_workers=2: found Python objects as reward"):
        evolve(**{**words, "threads": None}, reward=distinct, seeds=2, seed_workers=2, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    result = evolve(**words, reward=distinct, seeds=[3, 5], out=tmp_path / "run")
    assert isinstance(result, SeedsResult) and list(result.runs) == [3, 5]
    assert result.adapter == result.runs[result.summary["best"]].folder / "best"
    assert (result.adapter / "adapter_config.json").is_file() and len(result.history) == 1
    shutil.rmtree(tmp_path / "run" / "seed-5")
    kept = tmp_path / "run" / "seed-3" / "summary.json"
    before = kept.stat().st_mtime_ns
    with pytest.raises(InputError, match="given the Python function"):
        resume(tmp_path / "run")
    again = resume(tmp_path / "run", reward=distinct)
    assert isinstance(again, SeedsResult)
    for name in ("base", "winner", "gain", "best"):
        assert again.summary[name] == result.summary[name]
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("width", [375, 1440])
def test_the_page_fits_and_leads_to_each_seeds_own(copied: Path, chromium: Any, width: int) -> None:
    chromium.get_log("browser")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        chromium.get((copied / "report.html").as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        wider = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert width < 500 or chromium.execute_script(wider) == 0
        legend = "return [...document.querySelectorAll('#validation .legend li')].map(each => each.textContent)"
        shown = ["seed 0", "seed 1", "seed 2", "mean", "base", "95% interval of the mean over seeds"]
        assert chromium.execute_script(legend) == shown
        chromium.execute_script("document.querySelectorAll('#seeds a')[1].click()")
        assert chromium.current_url == (copied / "seed-1" / "report.html").as_uri()
        assert chromium.get_log("browser") == []
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
