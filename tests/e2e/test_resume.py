"""A run that was stopped, however it was stopped, ends with the same bits as one that never was."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def seeded() -> random.Random:
    """Other moments in every test run; EVOLORA_TEST_SEED repeats those of a failure."""
    seed = int(os.environ.get("EVOLORA_TEST_SEED", time.time_ns() % 2**32))
    print(f"EVOLORA_TEST_SEED={seed}")
    return random.Random(seed)


def generations(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Whether the condition came true before the process ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "the command hangs"
        time.sleep(0.005)
    return False


def equal(found: Any, expected: Any) -> None:
    """Piece by piece, so that a failure says which."""
    assert found.summary == expected.summary
    assert found.metrics == expected.metrics
    for table, rows in expected.lineage.items():
        assert found.lineage[table] == rows, table
    assert found.adapter == expected.adapter


def test_killed_again_and_again_ends_the_same(
    toy: Any, finished: Path, launch: Any, command: Any, facts: Any, trainer: str, tmp_path: Path
) -> None:
    rng, run = seeded(), tmp_path / "run"
    ways = [
        ["-m", "evolora.cli", "resume", run],
        [trainer, "--resume", run],
        [trainer, "--out", run, "--resume"],
    ]
    kills = 0
    process = launch(trainer, *toy.options(run, reward=toy.slow_reward))
    # In the first generation, early, later, and at or after the last: while the winner is tested and exported.
    for reached in (0, rng.randint(1, 3), rng.randint(4, 5), 6):
        begun = wait_for(lambda goal=reached: (run / "config.toml").exists() and generations(run) >= goal, process)
        if not begun:
            break
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = launch(*ways[kills % len(ways)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert kills >= 3
    equal(facts(run), facts(finished))
    assert [path.name for path in run.rglob("*.partial")] == []
    _scaled_once(run / "best", toy.model)


def _scaled_once(adapter: Path, model: Path) -> None:
    """The adapter adds alpha / r * B A, once, however often the run was resumed."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(model)
    batch = tokenizer(["Translate 'chat' to English:"], return_tensors="pt")
    by_hand = AutoModelForCausalLM.from_pretrained(model).eval()
    from peft import PeftModel

    with torch.no_grad():
        for key, a in tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = config["lora_alpha"] / config["r"] * tensors[key.replace("lora_A", "lora_B")] @ a
            by_hand.get_submodule(path).weight += delta.T  # GPT-2's Conv1D keeps its weight transposed
        expected = by_hand(**batch).logits
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
        torch.testing.assert_close(loaded(**batch).logits, expected, rtol=0, atol=1e-4)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    toy: Any, finished: Path, launch: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    from evolora.files import verify

    run = tmp_path / "run"
    process = launch("-m", "evolora.cli", "train", *toy.options(run, "--save-every", "100", reward=toy.slow_reward))
    assert wait_for(lambda: generations(run) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"Interrupted. Resume with: evolora resume {run}\n"
    (checkpoint,) = (run / "checkpoints").iterdir()
    verify(checkpoint)
    assert not (run / "summary.json").exists()
    code, out, _ = evolora("resume", run)
    assert code == 0 and f"from {checkpoint}" in out
    equal(facts(run), facts(finished))


def test_a_second_ctrl_c_stops_at_once(toy: Any, launch: Any, tmp_path: Path) -> None:
    run, reward = tmp_path / "run", tmp_path / "stuck.py"
    reward.write_text("import time\ndef stuck(completions, **kw):\n    print('in', flush=True)\n    time.sleep(60)\n")
    process = launch("-m", "evolora.cli", "train", *toy.options(run, reward=f"{reward}:stuck"))
    deadline = time.monotonic() + 60
    while not (run / "reward.log").exists() or "in" not in (run / "reward.log").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if line.startswith("Interrupted"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and f"evolora resume {run}" in errors


def test_a_finished_run_is_left_as_it_is(finished: Path, evolora: Any, digest: Any) -> None:
    before = digest(finished)
    for arguments in (["resume", finished], ["train", "--resume", finished], ["train", "--out", finished, "--resume"]):
        code, out, _ = evolora(*arguments)
        assert code == 0 and "winner" in out
    assert digest(finished) == before


def test_a_finished_run_given_merge_is_merged(
    finished: Path, adopted: Any, evolora: Any, tmp_path: Path, digest: Any
) -> None:
    run = adopted(Path(shutil.copytree(finished, tmp_path / "run")))
    shutil.rmtree(run / "merged")
    code, out, _ = evolora("resume", run, "--merge")
    assert code == 0 and f"merged:  {run / 'merged'}" in out
    weights = "merged/model.safetensors"
    assert digest(run)[weights] == digest(finished)[weights]


def test_more_generations_equal_a_run_that_had_them_from_the_start(
    toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert evolora("train", *toy.options(run, gens=3))[0] == 0
    assert facts(run).summary["generations"] == 3
    assert evolora("resume", run, "--gens", "6")[0] == 0
    equal(facts(run), facts(finished))


def test_an_extension_that_is_killed_at_its_end_equals_one_that_is_not(
    toy: Any, launch: Any, command: Any, facts: Any, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command("-m", "evolora", "train", *toy.options(whole, gens=2, reward=toy.slow_reward))
    command("-m", "evolora", "train", *toy.options(run, gens=1, reward=toy.slow_reward))
    process = launch("-m", "evolora", "resume", run, "--gens", "2")
    assert wait_for(lambda: (run / "checkpoints" / "gen0002").exists(), process)
    process.kill()
    process.communicate()
    assert json.loads((run / "summary.json").read_text())["generations"] == 1, "it was killed before it had ended"
    out = command("-m", "evolora", "resume", run).stdout
    equal(facts(run), facts(whole))
    assert "\n2 generations in " in out
    assert "whole" in command("-m", "evolora", "verify", run).stdout


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", _cut),
        ("state.safetensors", _flip),
        ("state.json", _flip),
        ("adapter_model.safetensors", _flip),
        ("manifest.json", _cut),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    name: str, damage: Callable[[Path], None], copied: Path, finished: Path, evolora: Any, facts: Any
) -> None:
    (copied / "summary.json").unlink()
    damaged = copied / "checkpoints" / "gen0006" / name
    damage(damaged)
    code, out, _ = evolora("resume", copied)
    assert code == 0
    assert f"passed over: {damaged}" in out and "resumed after generation 4" in out
    equal(facts(copied), facts(finished))


def _middle(path: Path) -> None:
    """A hole, and rubbish."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:50] + "\n", *lines[3:]]))


def _sql(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("metrics.jsonl", _middle, "line 2 is altered"),
        ("metrics.jsonl", Path.unlink, "has no line of generation 1"),
        ("metrics.jsonl", lambda path: path.write_text(path.read_text().replace("best", "bust", 1)), "line 1 is"),
        ("lineage.sqlite", lambda path: _sql(path, "UPDATE fitness SET fitness = 9"), "generation 1 are altered"),
        ("lineage.sqlite", lambda path: _sql(path, "DROP TABLE samples"), "generation 1 are altered"),
        ("lineage.sqlite", _cut, "altered"),
        ("lineage.sqlite", Path.unlink, "missing"),
        ("lineage.sqlite", lambda path: path.write_bytes(b""), "empty"),
        (
            "lineage.sqlite",
            lambda path: path.write_text("no database, but long enough to be one " * 99),
            "cannot be read",
        ),
    ],
)
def test_what_lies_beside_a_checkpoint_is_made_again_from_it(
    name: str, damage: Callable[[Path], Any], said: str, copied: Path, finished: Path, evolora: Any, facts: Any
) -> None:
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints" / "gen0006")
    for leftover in (copied / "checkpoints" / ".gen0006.partial", copied / ".best.partial"):
        leftover.mkdir()
    damage(copied / name)
    gone = not (copied / name).exists()
    code, out, _ = evolora("resume", copied)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith(f"{copied / name}: ")]
    assert said in line and line.endswith("made again from gen0004")
    assert gone or f"set aside as {name}.damaged-1" in line
    assert (copied / f"{name}.damaged-1").exists() != gone
    assert not list(copied.rglob("*.partial"))
    equal(facts(copied), facts(finished))


def test_what_no_checkpoint_holds_is_said_to_be_missing(copied: Path, finished: Path, evolora: Any, facts: Any) -> None:
    """As one holds nothing that was saved before evolora kept it there."""
    from evolora.files import seal

    (copied / "summary.json").unlink()
    for checkpoint in (copied / "checkpoints").iterdir():
        for side in ("state.metrics.jsonl", "state.lineage.sqlite"):
            (checkpoint / side).unlink()
        (checkpoint / "manifest.json").unlink()
        seal(checkpoint)
    _middle(copied / "metrics.jsonl")
    _cut(copied / "lineage.sqlite")
    code, out, _ = evolora("resume", copied, "--gens", "7")
    assert code == 0
    assert "metrics.jsonl.damaged-1, begun again with what is left\n" in out
    assert "lineage.sqlite.damaged-1, begun again with what is left\n" in out
    assert [line["generation"] for line in facts(copied).metrics] == [1, 7]


@pytest.mark.parametrize("text", ["{", "[]", '{"winner": 1}', '{"generations": 6}'])
def test_half_a_summary_is_made_again(text: str, copied: Path, finished: Path, evolora: Any, facts: Any) -> None:
    (copied / "summary.json").write_text(text)
    code, out, _ = evolora("resume", copied)
    assert code == 0 and "set aside as summary.json.damaged-1; it is made again from the last checkpoint" in out
    equal(facts(copied), facts(finished))


def test_a_finished_run_whose_history_has_a_hole_is_mended(
    copied: Path, finished: Path, evolora: Any, facts: Any
) -> None:
    _middle(copied / "metrics.jsonl")
    code, out, _ = evolora("resume", copied)
    assert code == 0 and "set aside as metrics.jsonl.damaged-1, made again from gen0006" in out
    equal(facts(copied), facts(finished))


@pytest.mark.parametrize("manifest", ["[]", "{}", "3", "null", '{"state.json": 1}'])
def test_a_manifest_of_another_kind_is_passed_over(manifest: str, copied: Path, evolora: Any) -> None:
    from evolora.files import newest_checkpoint

    (copied / "checkpoints" / "gen0006" / "manifest.json").write_text(manifest)
    newest, (fault,) = newest_checkpoint(copied)
    assert newest == copied / "checkpoints" / "gen0004" and "gen0006" in fault


def test_the_newest_checkpoints_and_the_best_stay(
    toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = toy.options(run, "--save-every", "1", "--keep", "2")
    assert evolora("train", *options)[0] == 0
    assert facts(run).metrics == facts(finished).metrics and facts(run).adapter == facts(finished).adapter
    values = [line["validation.best"] for line in facts(run).metrics]
    best = 1 + values.index(max(values))
    kept = [folder.name for folder in sorted((run / "checkpoints").iterdir())]
    assert kept == sorted({f"gen{best:04d}", "gen0005", "gen0006"})
    assert evolora("resume", run, "--gens", "7", "--keep", "1")[0] == 0
    assert len(list((run / "checkpoints").iterdir())) <= 2


def test_too_little_room_is_said_before_any_work(
    toy: Any, copied: Path, evolora: Any, digest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    code, _, errors = evolora("train", *toy.options(tmp_path / "run"))
    assert code == 2 and len(errors.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert "0.0 MB free on its disk, expected at least" in errors and "3 checkpoints and the winner" in errors
    (copied / "summary.json").unlink()
    before = digest(copied)
    assert evolora("resume", copied)[0] == 2
    assert digest(copied) == before


def test_a_disk_that_fills_up_ends_the_run_in_a_sentence(
    toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tmp_path / "run", [0]
    usage = shutil.disk_usage

    def filling(path: Path) -> Any:
        calls[0] += 1
        return usage(path) if calls[0] < 3 else shutil._ntuple_diskusage(10**9, 10**9, 0)

    monkeypatch.setattr("shutil.disk_usage", filling)
    code, _, errors = evolora("train", *toy.options(run))
    assert code == 1 and len(errors.splitlines()) == 1
    assert "no room for a checkpoint" in errors and errors.endswith(f"resume with: evolora resume {run}\n")
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["gen0002"]
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert evolora("resume", run)[0] == 0
    equal(facts(run), facts(finished))


def test_when_no_checkpoint_is_whole_nothing_is_lost(copied: Path, evolora: Any, digest: Any) -> None:
    (copied / "summary.json").unlink()
    for checkpoint in (copied / "checkpoints").iterdir():
        _flip(checkpoint / "state.safetensors")
    before = digest(copied)
    code, _, errors = evolora("resume", copied, "--gens", "9")
    assert code == 1
    for checkpoint in (copied / "checkpoints").iterdir():
        assert str(checkpoint / "state.safetensors") in errors
    assert len(errors.splitlines()) == 1
    assert digest(copied) == before


def test_a_partial_last_line_of_the_metrics_is_dropped(copied: Path, finished: Path, evolora: Any, facts: Any) -> None:
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints" / "gen0006")
    metrics = copied / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    assert evolora("resume", copied)[0] == 0
    equal(facts(copied), facts(finished))


def test_other_data_than_at_the_checkpoint_is_refused(toy: Any, evolora: Any, digest: Any, tmp_path: Path) -> None:
    data, run = tmp_path / "own.jsonl", tmp_path / "run"
    data.write_text(toy.data.read_text())
    options = toy.options(run, gens=2)
    options[options.index("--data") + 1] = str(data)
    assert evolora("train", *options)[0] == 0
    data.write_text(toy.data.read_text().replace("cat", "cow"))
    before = digest(run)
    code, _, errors = evolora("resume", run, "--gens", "3")
    assert code == 2 and "has changed: data " in errors and len(errors.splitlines()) == 1
    assert digest(run) == before


def test_a_folder_that_holds_a_run_is_refused(finished: Path, toy: Any, evolora: Any, digest: Any) -> None:
    before = digest(finished)
    code, _, errors = evolora("train", *toy.options(finished))
    assert code == 2 and f"--out {finished}" in errors and f"evolora resume {finished}" in errors
    assert digest(finished) == before


def spent_after_two(finished: Path, facts: Any, kind: str, *purposes: str) -> int:
    line = facts(finished).metrics[1]
    return sum(line[f"{kind}.{purpose}"] for purpose in purposes)


def test_a_budget_of_tokens_stops_and_more_of_it_goes_on(
    toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    budget = spent_after_two(finished, facts, "tokens", "evaluation", "rollout")  # an update generates nothing
    assert evolora("train", *toy.options(run, "--budget-tokens", str(budget)))[0] == 0
    assert facts(run).summary["generations"] == 2
    assert evolora("resume", run, "--budget-tokens", "none")[0] == 0
    equal(facts(run), facts(finished))


def test_a_budget_of_flops_stops_and_more_of_it_goes_on(
    toy: Any, finished: Path, evolora: Any, facts: Any, digest: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    budget = spent_after_two(finished, facts, "flops", "evaluation", "rollout", "update")
    # One less is reached in the same generation, one more in the next.
    assert evolora("train", *toy.options(run, "--budget-flops", f"{budget - 1}"))[0] == 0
    assert facts(run).summary["generations"] == 2
    before = {name: sha for name, sha in digest(run).items() if not name.startswith("lineage")}
    assert evolora("resume", run, "--budget-flops", f"{budget}")[0] == 0
    assert {name: sha for name, sha in digest(run).items() if not name.startswith("lineage")} == before
    assert evolora("resume", run, "--budget-flops", f"{budget + 1}")[0] == 0
    assert facts(run).summary["generations"] == 3
    # Any of several budgets stops a run.
    assert evolora("resume", run, "--budget-flops", "1e30", "--budget-tokens", "1")[0] == 0
    assert facts(run).summary["generations"] == 3
    assert evolora("resume", run, "--budget-flops", "1e30", "--budget-tokens", "none")[0] == 0
    equal(facts(run), facts(finished))


def test_a_budget_of_seconds_counts_all_generations_and_nothing_else(
    toy: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", toy.options(tmp_path / "run")
    at = options.index("--gens")
    del options[at : at + 2]  # or they would end it

    def loop() -> list[float]:
        return [json.loads(line)["time.loop"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert evolora("train", *options, "--budget-seconds", "0.001")[0] == 0
    (first,) = loop()
    assert first >= 0.001
    # Set-up, choice and test take time too, which does not count: this is longer than the loop was, if only just.
    assert evolora("resume", run, "--budget-seconds", str(first * 1.001))[0] == 0
    assert len(loop()) == 2 and loop()[0] == first
    code, out, _ = evolora("resume", run, "--budget-seconds", str(3 * loop()[-1]))
    *earlier, last = loop()
    assert code == 0 and max(earlier) < 3 * loop()[1] <= last
    assert f"gen {len(loop())} (" in out, "there is no number of generations to show"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["time"]["loop"] == last and summary["generations"] == len(loop())
    assert "gens" not in (run / "config.toml").read_text()
    # Without a budget the default number of generations is back.
    if len(loop()) < 20:
        assert evolora("resume", run, "--budget-seconds", "none")[0] == 0
        assert len(loop()) == 20


def test_races_and_memories_resume_to_the_same(tmp_path: Path) -> None:
    from evolora import evolve
    from evolora.runs.api import resume

    words = {"chat": "cat", "chien": "dog", "pain": "bread", "eau": "water", "lait": "milk", "main": "hand"}
    rows = [{"prompt": f"Translate '{word}' to English:", "target": target} for word, target in words.items()]
    options: dict[str, Any] = {
        "data": rows, "pop": 5, "racing": 0.3, "racing_block": 2, "rollout_prompts": 6, "rl_steps": 1,
        "mutation_scale": 0.1, "save_every": 2, "lora_r": 2,
    }  # fmt: skip
    whole = evolve(out=str(tmp_path / "whole"), gens=4, **options)
    evolve(out=str(tmp_path / "parts"), gens=2, **options)
    parts = resume(tmp_path / "parts", options={"gens": 4})

    def untimed(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if not name.startswith("time.")}

    assert [untimed(line) for line in parts.history] == [untimed(line) for line in whole.history]
    assert parts.summary["winner"] == whole.summary["winner"]
    assert parts.summary["tokens"] == whole.summary["tokens"] and parts.summary["flops"] == whole.summary["flops"]
    assert sum(line["racing.dropped"] for line in whole.history) > 0
    # All six prompts come up in each generation: elites that stay are not asked again.
    forgetful = evolve(out=str(tmp_path / "forgetful"), gens=4, remember=False, **options)
    assert forgetful.history[-1]["tokens.evaluation"] > 1.2 * whole.history[-1]["tokens.evaluation"]
    assert [line["fitness.best"] for line in forgetful.history] == pytest.approx(
        [line["fitness.best"] for line in whole.history]
    )


@pytest.mark.parametrize(
    "options",
    [
        {
            "mutation_scale": 0.01,
            "keep_optimiser": True,
            "kl_target": 0.5,
            "kl_horizon": 6,
            "critic": "individual",
            "refine": 2,
        },
        {"mutation_scale": 0.01, "keep_optimiser": True, "refiner": "grpo", "rollout_samples": 2},
        {"keep_optimiser": True, "strategy": "pbt", "entropy_weight": 0.01, "kl_weight": 0.1},
    ],
    ids=["ppo", "grpo", "pbt"],
)
def test_what_individuals_carry_resumes_to_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    from evolora import evolve
    from evolora.runs.api import resume

    words = {"chat": "cat", "chien": "dog", "pain": "bread", "eau": "water", "lait": "milk", "main": "hand"}
    rows = [{"prompt": f"Translate '{word}' to English:", "target": target} for word, target in words.items()]
    options = {
        "data": rows, "pop": 4, "rollout_prompts": 6, "rl_steps": 1, "save_every": 2,
        "lora_r": 2, "lr": 1e-2, "accept": "always", **options,
    }  # fmt: skip
    whole = evolve(out=str(tmp_path / "whole"), gens=4, **options)
    evolve(out=str(tmp_path / "parts"), gens=2, **options)
    parts = resume(tmp_path / "parts", options={"gens": 4})

    def untimed(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if not name.startswith("time.")}

    assert [untimed(line) for line in parts.history] == [untimed(line) for line in whole.history]
    assert parts.summary["winner"] == whole.summary["winner"]
    forgetful = evolve(out=str(tmp_path / "forgetful"), gens=4, **{**options, "keep_optimiser": False})
    assert untimed(forgetful.history[0]) == untimed(whole.history[0]), "the first refinement has nothing to take up"
    assert [untimed(line) for line in forgetful.history] != [untimed(line) for line in whole.history]
    if options.get("strategy") == "pbt":
        rates = [line["ppo.lr"] for line in whole.history]
        assert len(set(rates)) > 1 and whole.history[0]["ppo.refined"] == whole.history[0]["ppo.accepted"] == 4
    if "kl_target" in options:
        assert len({line["ppo.kl_weight"] for line in whole.history}) > 1


def test_a_checkpoint_of_another_version_is_refused(
    digest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evolora import evolve
    from evolora.errors import InputError
    from evolora.runs import api as runs
    from evolora.runs import snapshot

    folder = tmp_path / "run"
    rows = [{"prompt": f"{number} + 1 =", "target": str(number + 1)} for number in range(6)]
    evolve(data=rows, gens=1, pop=2, elites=1, refiner="none", max_new_tokens=2, out=str(folder))
    before = digest(folder)
    whole = snapshot.read_state

    def older(checkpoint: Path) -> dict[str, Any]:
        return {name: value for name, value in whole(checkpoint).items() if name != "spent.flops.update"}

    monkeypatch.setattr(snapshot, "read_state", older)
    with pytest.raises(InputError, match=r"flops\.update'?, expected a checkpoint of this version"):
        runs.resume(folder, options={"gens": 2})
    assert digest(folder) == before
