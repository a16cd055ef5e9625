"""The other commands, the other ways to say what to tune for, and what is shown meanwhile."""

import csv
import itertools
import json
import re
import sqlite3
import sys
import tomllib
from pathlib import Path
from typing import Any

import pexpect
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolora import InputError, evolve, resume
from evolora.cli import main
from evolora.runs.config_file import read_run_config
from evolora.runs.options import make_options
from evolora.runs.report.inspection import Inspection
from evolora.runs.summary import read_summary
from evolora.runs.tracking.words import WORDS


def winner_reward(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["winner"]["test"]["reward"])


def printed_reward(out: str, split: str = "test") -> float:
    found = re.search(rf"^{split} reward (\d+\.\d{{4}}) \(95% ", out, flags=re.MULTILINE)
    assert found, out
    return float(found[1])


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_summarys_figure(finished: Path, toy: Any, evolora: Any, command: Any) -> None:
    expected = pytest.approx(winner_reward(finished), abs=5e-5)
    assert printed_reward(command("-m", "evolora.cli", "evaluate", finished).stdout) == expected
    # An adapter's folder knows its base model, but not the task.
    code, out, _ = evolora("evaluate", finished / "best", "--data", toy.data, "--reward", toy.reward)
    assert code == 0 and printed_reward(out) == expected
    code, _, errors = evolora("evaluate", finished / "best")
    assert code == 2 and "expected one of --task, --data, --prompt" in errors and errors.count("\n") == 1


def test_evaluate_shows_prompts_and_completions(finished: Path, evolora: Any) -> None:
    _, out, _ = evolora("evaluate", finished, "--show", "2", "--no-base")
    assert len(out.splitlines()) == 3 and out.count("'Translate ") + out.count('"Translate ') == 2


def test_evaluate_puts_the_untouched_base_beside(finished: Path, evolora: Any) -> None:
    _, out, _ = evolora("evaluate", finished)
    summary = json.loads((finished / "summary.json").read_text())
    base = re.search(r"^test reward of the base model (\d+\.\d{4}) \(95% ", out, flags=re.MULTILINE)
    assert base and float(base[1]) == pytest.approx(summary["base"]["test"]["reward"], abs=5e-5)
    assert printed_reward(out) == pytest.approx(summary["winner"]["test"]["reward"], abs=5e-5)
    # What the run's end showed is shown again.
    assert "\n".join(Inspection.from_dict(summary["inspection"]).lines()) in out


def test_evaluate_another_split_task_or_checkpoint(finished: Path, evolora: Any) -> None:
    _, out, _ = evolora("evaluate", finished, "--split", "validation")
    summary = json.loads((finished / "summary.json").read_text())
    assert printed_reward(out, "validation") == pytest.approx(summary["winner"]["validation"], abs=5e-5)
    _, out, _ = evolora("evaluate", finished, "--split", "train")
    assert out.endswith("14 prompts\n")
    # Scored by that task's own reward and length, not by the run's.
    named_by_trl = ["--reward-funcs", "exact", "chrf", "--reward-weights", "2", "1", "--max-completion-length", "4"]
    code, _, errors = evolora("evaluate", finished, "--prompt", "4 + 3 =", "--target", "7", *named_by_trl, "--no-base")
    assert (code, errors.count("TRL's name, ")) == (0, 3)
    code, out, _ = evolora("evaluate", finished, "--prompt", "4 + 3 =", "--target", "7", "--max-new-tokens", "4")
    assert code == 0 and out.endswith("1 prompts\n")
    code, out, _ = evolora("evaluate", finished, "--checkpoint", "gen0002", "--split", "validation")
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert code == 0 and printed_reward(out, "validation") == pytest.approx(metrics[1]["validation.best"], abs=5e-5)


# --- generate ----------------------------------------------------------------------------------------------------

PROMPT = "Translate 'chat' to English:"


def test_generate_greedily_is_what_transformers_and_peft_write(finished: Path, toy: Any, evolora: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy.model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy.model), finished / "best").eval()
    batch = tokenizer([PROMPT], return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch, do_sample=False, max_new_tokens=20, pad_token_id=0)
    expected = tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    for folder in (finished, finished / "best"):
        code, out, _ = evolora("generate", folder, PROMPT, "--max-new-tokens", "20")
        assert code == 0 and out == expected + "\n"


def test_samples_depend_on_the_seed_alone(finished: Path, evolora: Any, command: Any) -> None:
    def sampled(*more: str) -> str:
        code, out, _ = evolora("generate", finished, PROMPT, *more)
        assert code == 0
        return str(out)

    four = sampled("--samples", "4", "--seed", "1")
    assert four == sampled("--samples", "4", "--seed", "1")
    assert four == command("-m", "evolora.cli", "generate", finished, PROMPT, "--samples", "4", "--seed", "1").stdout
    assert four != sampled("--samples", "4", "--seed", "2")
    assert four.startswith(sampled("--samples", "2", "--seed", "1").rstrip("\n")), "a sample has its own key"
    assert four != sampled("--samples", "4", "--seed", "1", "--temperature", "0.3")


# --- export ------------------------------------------------------------------------------------------------------


def test_export_the_adapter(finished: Path, evolora: Any, digest: Any, tmp_path: Path) -> None:
    code, out, _ = evolora("export", finished, "--to", tmp_path / "new" / "adapter")
    assert code == 0 and out.strip() == str(tmp_path / "new" / "adapter")
    plain = digest(finished / "best")
    del plain["manifest.json"]
    assert digest(tmp_path / "new" / "adapter") == plain


def test_export_a_checkpoint_leaves_the_runs_own_files_out(finished: Path, evolora: Any, tmp_path: Path) -> None:
    assert evolora("export", finished, "--checkpoint", "gen0002", "--to", tmp_path / "adapter")[0] == 0
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(name.startswith(("state.", "manifest.")) for name in names)


def test_export_merged(finished: Path, evolora: Any, digest: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert evolora("export", finished, "--merge", "--to", tmp_path / "empty")[0] == 0
    # The run was merged too, by --merge.
    assert digest(tmp_path / "empty")["model.safetensors"] == digest(finished / "merged")["model.safetensors"]
    assert AutoTokenizer.from_pretrained(tmp_path / "empty")(PROMPT)["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# --- what to tune for --------------------------------------------------------------------------------------------


def test_a_single_prompt_and_target_with_the_defaults(command: Any, trainer: str, tmp_path: Path) -> None:
    arguments = ["--prompt", "Translate 'bonjour' to English:", "--target", "hello", "--gens", "2", "--pop", "4"]
    done = command(trainer, *arguments, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z]+-[a-z]+", run.name)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "tiny-gpt2" and summary["generations"] == 1, "it is solved"
    assert summary["held_out"] is False and "nothing is held out" in done.stdout
    assert summary["winner"]["validation"] >= summary["base"]["test"]["reward"]
    assert {path.name for path in run.iterdir()} >= {"best", "summary.json", "config.toml"}


@pytest.mark.parametrize("word", ["none", "None of them"])
def test_a_target_is_text_whatever_it_says(word: str, toy: Any, evolora: Any, tmp_path: Path) -> None:
    options = ["--model", toy.model, "--prompt", "Which?", "--target", word, "--gens", "1", "--out", tmp_path / "run"]
    assert evolora("train", *options)[0] == 0
    assert make_options(read_run_config(tmp_path / "run")).task.target == word


def test_csv_is_jsonl(toy: Any, evolora: Any, facts: Any, finished: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "words.csv", tmp_path / "run"
    rows = [json.loads(line) for line in toy.data.read_text().splitlines()]
    with data.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "target"])
        writer.writeheader()
        writer.writerows(rows)
    assert evolora("train", *toy.options(run, "--data", str(data)))[0] == 0
    assert facts(run).metrics == facts(finished).metrics
    assert facts(run).summary == facts(finished).summary


def test_a_folder_with_a_file_a_split(toy: Any, evolora: Any, tmp_path: Path) -> None:
    data, run = tmp_path / "words", tmp_path / "run"
    data.mkdir()
    lines = toy.data.read_text().splitlines(keepends=True)
    for split, part in (("train", lines[:10]), ("validation", lines[10:14]), ("test", lines[14:])):
        (data / f"{split}.jsonl").write_text("".join(part))
    code, out, _ = evolora("train", *toy.options(run, "--data", str(data), gens=1))
    assert code == 0 and "10 training, 4 validation, 6 test prompts" in out
    assert json.loads((run / "summary.json").read_text())["test_prompts"] == 6


# --- options -----------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file(toy: Any, evolora: Any, tmp_path: Path) -> None:
    file, run = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(
        f'model = "{toy.model}"\ndata = "{toy.data}"\nreward = "{toy.reward}"\n'
        'gens = 9\npop = 3\nelites = 1\ntarget_kl = "none"\ntarget_modules = ["c_attn"]\n'
    )
    assert evolora("train", "--config", file, "--gens", "1", "--out", run)[0] == 0
    config = make_options(read_run_config(run))
    assert (config.evolution.gens, config.evolution.pop, config.evolution.elites) == (1, 3, 1)
    assert config.refiner.target_kl is None and config.lora.target_modules == ["c_attn"]


def test_a_runs_own_config_repeats_it(finished: Path, evolora: Any, facts: Any, tmp_path: Path) -> None:
    run = tmp_path / "again"
    assert evolora("train", "--config", finished / "config.toml", "--out", run)[0] == 0
    assert facts(run) == facts(finished)


def test_another_seed_is_another_run(toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert evolora("train", *toy.options(run, "--seed", "1", gens=1))[0] == 0
    assert facts(run).metrics[0] != facts(finished).metrics[0]


@pytest.mark.parametrize(
    "options",
    [
        ["--refiner", "none"],
        ["--strategy", "none", "--refiner", "ppo"],
        ["--refiner", "grpo", "--loss-type", "dr_grpo", "--scale-rewards", "none", "--clip-range-high", "0.28"],
        ["--refiner", "rloo", "--normalize-advantages", "--rollout-samples", "4", "--minibatches", "2"],
        ["--selection", "rank", "--mutation", "relative", "--crossover", "blend", "--crossover-rate", "1"],
        ["--mutation", "masked", "--crossover", "dare", "--replacement", "steady-state", "--max-age", "2"],
        ["--mutation", "svd", "--islands", "2", "--migrate-every", "1"],
        ["--pop", "2", "--elites", "1", "--no-merge", "--rows-per-slice", "8", "--rl-steps", "2"],
        ["--dtype", "bfloat16", "--rslora"],
    ],
    ids=" ".join,
)
def test_variants_finish_and_resume(options: list[str], toy: Any, evolora: Any, facts: Any, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert evolora("train", *toy.options(whole, *options, gens=3))[0] == 0
    assert evolora("train", *toy.options(resumed, *options, gens=1))[0] == 0
    assert evolora("resume", resumed, "--gens", "3")[0] == 0
    assert facts(resumed) == facts(whole)
    summary = facts(whole).summary
    code, out, _ = evolora("evaluate", whole)
    assert code == 0 and printed_reward(out) == pytest.approx(summary["winner"]["test"]["reward"], abs=5e-5)


def test_version(command: Any) -> None:
    import evolora

    assert command("-m", "evolora.cli", "--version").stdout == f"evolora {evolora.__version__}\n"


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["train", "--help"]) == 0
    screen = capsys.readouterr().out
    assert all(option in screen for option in ("--gens", "--lr", "--config", "--resume", "--dry-run"))
    assert main(["train", "--help-all"]) == 0
    text = capsys.readouterr().out
    words = make_options().vocabulary
    for part, name in words.fields:
        assert re.search(rf"^  --{words.word(part, name).replace('_', '-')}\b", text, flags=re.MULTILINE), name
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("train", "resume", "evaluate", "generate", "export"))


# --- what is shown -----------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(toy: Any, command: Any, trainer: str, tmp_path: Path) -> None:
    done = command(trainer, *toy.options(tmp_path / "run", gens=3))
    assert "\x1b" not in done.stdout + done.stderr and done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("gen ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(word in lines[0] for word in ("best", "mean", "validation", "ppo", "evolution", "tok/s", "left"))
    assert f"adapter: {tmp_path / 'run' / 'best'}" in done.stdout


def test_a_live_screen_on_a_terminal(toy: Any, trainer: str, tmp_path: Path) -> None:
    """It says what is under way from the first second on, and leaves one line a generation."""
    arguments = [trainer, *toy.options(tmp_path / "run", gens=3, reward=toy.slow_reward)]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(40, 80))
    shown = ""
    for wanted in (
        "loading torch", "run folder", "generation 1 of 3", "s left", "what the words mean", r"gen \S*1/3",
        "generation 2 of 3", r"gen \S*3/3", "winner", pexpect.EOF,
    ):  # fmt: skip
        child.expect(wanted)
        shown += child.before + (child.after if isinstance(child.after, str) else "")
    child.close()
    assert child.exitstatus == 0, shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden, and there again"
    assert "Traceback" not in shown
    assert re.findall(r"gen \S*?(\d/3)", shown) == ["1/3", "2/3", "3/3"]


def test_a_signal_while_the_screen_loads_leaves_the_cursor(toy: Any, trainer: str, tmp_path: Path) -> None:
    arguments = [trainer, *toy.options(tmp_path / "run")]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(40, 80))
    child.expect("loading torch")
    child.sendintr()
    child.expect("Interrupted before there was anything new to keep.")
    before = child.before
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130 and "\x1b[?25h" in before


def test_json_lines_are_all_that_is_printed(toy: Any, command: Any, trainer: str, tmp_path: Path) -> None:
    done = command(trainer, *toy.options(tmp_path / "run", "--json-lines", gens=1))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == "" and events[-1]["summary"] == read_summary(tmp_path / "run")
    told = [event["what"] for event in events if event["event"] == "progress"]
    phases = list(dict.fromkeys(told))
    for first, then in itertools.pairwise(
        (
            "loading torch and transformers", "loading the model", "base on validation", "evaluating",
            "rollout 1 of 1", "update", "evaluating the refined", "validating", "saving", "choosing the winner",
            "testing the base", "testing the winner", "writing the report",
        )
    ):  # fmt: skip
        assert phases.index(first) < phases.index(then)
    (generation,) = [event for event in events if event["event"] == "generation"]
    assert generation["metrics"]["generation"] == 1 and generation["done"] == 1
    assert next(event["who"] for event in events if event["event"] == "wrote") == "base"
    assert all({"done", "total"} <= event.keys() for event in events if event["event"] == "progress")


def test_json_lines_stay_json_whatever_a_reward_writes(toy: Any, command: Any, trainer: str, tmp_path: Path) -> None:
    reward = tmp_path / "loud.py"
    deed = "os.write(1, b'noise\\n'); subprocess.run(['echo', 'more'])"
    reward.write_text(f"import os, subprocess\ndef score(completions):\n    {deed}\n    return map(len, completions)\n")
    done = command(trainer, *toy.options(tmp_path / "run", "--json-lines", reward=f"{reward}:score", gens=1))
    assert [json.loads(line) for line in done.stdout.splitlines()][-1]["event"] == "end"
    assert "noise\n" in done.stderr and "more\n" in done.stderr


def test_quiet_is_only_what_it_came_to(toy: Any, evolora: Any, tmp_path: Path) -> None:
    code, out, errors = evolora("train", *toy.options(tmp_path / "run", "--quiet", gens=1))
    assert (code, errors) == (0, "") and out.startswith("\nwords")
    code, out, errors = evolora("resume", tmp_path / "run", "--gens", "2", "--quiet")
    assert code == 0 and "gen " not in out and "2 generations in" in out
    assert evolora("train", "--quiet", "--json-lines")[0::2] == (
        2, "evolora: --quiet and --json-lines: found both, expected one of them\n",
    )  # fmt: skip
    assert "expected no --quiet" in evolora("train", "--quiet", "--reward", "human")[2]


def test_where_the_prints_of_a_reward_go_is_said_once(toy: Any, evolora: Any, tmp_path: Path) -> None:
    reward, run = tmp_path / "talks.py", tmp_path / "run"
    reward.write_text("def talks(completions, **_):\n    print('hello')\n    return [len(t) for t in completions]\n")
    code, out, _ = evolora("train", *toy.options(run, gens=2, reward=f"{reward}:talks"))
    assert code == 0 and "hello" not in out
    assert out.count(f"what the reward prints goes to {run / 'reward.log'}\n") == 1
    assert "hello" in (run / "reward.log").read_text()


def test_the_words_are_explained(evolora: Any) -> None:
    code, out, _ = evolora("words")
    assert code == 0 and [line.split("  ")[0].strip() for line in out.splitlines()] == list(WORDS)


def test_ctrl_c_on_a_terminal_leaves_it_usable(toy: Any, trainer: str, tmp_path: Path) -> None:
    arguments = [trainer, *toy.options(tmp_path / "run", gens=500, reward=toy.slow_reward)]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60, dimensions=(40, 140))
    child.expect("2/500")
    child.sendintr()
    child.expect("finishing this generation")
    child.expect("Resume with: evolora resume")
    child.expect(pexpect.EOF)
    rest = child.before
    child.close()
    assert child.exitstatus == 130 and "Traceback" not in rest
    assert not (tmp_path / "run" / "summary.json").exists()


# --- from Python -------------------------------------------------------------------------------------------------


def test_evolve_with_rows_and_a_function(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[dict[str, list[object]]] = []

    def reward(completions: list[str], prompts: list[str], weight: list[float], **_: object) -> list[float]:
        seen.append({"weight": weight, "prompts": list(prompts)})
        return [len(set(text)) / 10 * factor for text, factor in zip(completions, weight, strict=True)]

    rows = [{"prompt": f"{number} + 1 =", "weight": number / 4} for number in range(1, 7)]
    out = tmp_path / "run"
    result = evolve(model=str(toy.model), data=rows, reward=reward, gens=2, pop=4, mutation_scale=0.1, out=str(out))
    assert "gen 1/2" in capsys.readouterr().out
    assert result.folder == out and result.adapter == out / "best" and result.merged is None
    assert [line["generation"] for line in result.history] == [1, 2]
    assert result.summary == read_summary(out)
    assert all(len(call["weight"]) == len(call["prompts"]) for call in seen)
    # The rows are kept for a resumed run, which needs the function again.
    again = resume(out, reward=reward, options={"gens": 3}, view=None)
    assert capsys.readouterr().out == ""
    assert [line["generation"] for line in again.history] == [1, 2, 3]
    with pytest.raises(InputError, match="reward"):
        resume(out, options={"gens": 4})


def test_evolve_with_a_lambda(toy: Any, tmp_path: Path) -> None:
    result = evolve(
        model=str(toy.model), data=[{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}], gens=1, pop=2, elites=1,
        reward=lambda completions: [float(len(text)) for text in completions], out=str(tmp_path / "run"),
    )  # fmt: skip
    assert result.summary["generations"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"data": []},
        {"data": [{"target": "no prompt"}]},
        {"data": [{"prompt": "a", "target": object()}]},
        {"data": [{"prompt": "a", "target": "b"}], "gens": 0},
        {"data": [{"prompt": "a", "target": "b"}], "generations": 3},
        {"data": [{"prompt": "a", "target": "b"}], "reward": lambda completions, answer: [0.0]},
    ],
)
def test_evolve_refuses_before_any_work(options: dict[str, Any], toy: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        evolve(model=str(toy.model), out=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


def test_several_rewards_at_once(toy: Any, evolora: Any, tmp_path: Path) -> None:
    """A sum of a function of one's own and a gated built-in: each logged apart, remembered, and resumed from text."""
    run = tmp_path / "run"
    reward = f"python({toy.folder / 'reward.py'}:distinct, cache=true) + 0.5 * length(3) * (brevity > 0.1)"
    code, out, _ = evolora("train", *toy.options(run, reward=reward, gens=2))
    assert code == 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ["reward.distinct", "reward.length(target=3)", "reward.brevity"]
    assert all(set(names) <= set(line) for line in metrics)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reward"] == "distinct + 0.5 * length(target=3) * (brevity > 0.1)"
    terms = summary["winner"]["test"]["terms"]
    base = summary["base"]["test"]["terms"]
    assert [f"reward.{name}" for name in terms] == names
    assert all(f"    {name}: {base[name]:.3f} -> {value:.3f}" in out for name, value in terms.items())
    database = sqlite3.connect(run / "rewards.sqlite")
    (kept,) = database.execute("SELECT count(*) FROM scores").fetchone()
    assert kept > 20, "the function says that it may be kept, and the built-in ones are cheaper to ask"
    code, out, _ = evolora("evaluate", run, "--split", "validation", "--no-base")
    assert code == 0
    assert evolora("resume", run, "--gens", "3")[0] == 0
    text = tomllib.loads((run / "config.toml").read_text())["reward"]["name"]
    assert text.startswith(f"python(function={toy.folder}") and text.endswith("length(target=3) * (brevity > 0.1)")


TRL_STYLE = """
import re

def format_reward_func(completions, **kwargs):
    \"\"\"Reward function that checks if the completion has a specific format.\"\"\"
    pattern = r"^.*[aeiou].*$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]

async def logging_reward(prompts, completions, log_metric, trainer_state, **kwargs):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    log_metric("step", trainer_state.global_step)
    return [0.1 * len(set(completion[0]["content"])) for completion in completions]
"""


def test_rewards_in_trls_conversational_form(toy: Any, evolora: Any, tmp_path: Path) -> None:
    """On data of chat messages, functions in the form of TRL's documentation get what TRL gives them."""
    rows = [json.loads(line) for line in toy.data.read_text().splitlines()]
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (tmp_path / "plain.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    (tmp_path / "own.py").write_text(TRL_STYLE)
    run, own = tmp_path / "run", tmp_path / "own.py"
    options = toy.options(run, reward=f"{own}:format_reward_func + {own}:logging_reward", gens=3)
    options[options.index("--data") + 1] = str(tmp_path / "chats.jsonl")
    code, out, errors = evolora("train", *options, "--chat-template", tmp_path / "plain.jinja")
    assert code == 0, errors
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["logged.step"] for line in metrics] == [0, 1, 2]
    assert "winner" in out
    assert {"reward.format_reward_func", "reward.logging_reward"} <= metrics[0].keys()
