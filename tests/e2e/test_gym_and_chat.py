"""Tasks that are generated, and data of chat messages, by the real command."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from evolora.tasks.task import load_task

GCD = "gym:gcd(max_numbers=2, max_value=30, template='{question} =', train=20, validation=6, test=8)"
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def short(out: Path, *more: str, gens: int = 1) -> list[str]:
    return [
        "train", "--gens", str(gens), "--pop", "4", "--save-every", "1", "--threads", "1",
        "--out", str(out), *more,
    ]  # fmt: skip


def test_a_gym_task_runs_resumes_and_is_evaluated(command: Any, evolora: Any, facts: Any, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    shown = command("-m", "evolora.cli", *short(whole, "--task", GCD, gens=2)).stdout
    assert "20 training, 6 validation, 8 test prompts; reward verifiable" in shown
    assert "highest-rewarded completions" in shown and "same text" in shown
    assert evolora(*short(resumed, "--task", GCD))[0] == 0
    # Another process, with another hash seed, generates the same task.
    done = subprocess.run(
        [sys.executable, "-m", "evolora.cli", "resume", str(resumed), "--gens", "2"],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert facts(resumed) == facts(whole)
    _, out, _ = evolora("evaluate", whole)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["held_out"] and summary["task"] == GCD
    assert f"\ntest reward {summary['winner']['test']['reward']:.4f} (95% " in out
    assert f"\ntest reward of the base model {summary['base']['test']['reward']:.4f} (95% " in out
    # With another seed, the questions would be others.
    assert load_task(task=GCD, seed=1).test != load_task(task=GCD, seed=0).test


@pytest.fixture
def chat_data(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    rows = [
        {"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{a} + 2 ="}], "target": a + 2}
        for a in range(1, 16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def chat_model(toy: Any, tmp_path: Path) -> Path:
    """The toy model, with a chat template."""
    model = Path(shutil.copytree(toy.model, tmp_path / "chat-model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    return model


def test_chat_messages_become_prompts(
    command: Any, evolora: Any, facts: Any, toy: Any, chat_data: Path, chat_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    own = tmp_path / "own.py"  # as a function for TRL reads the conversational format
    own.write_text(
        "def distinct(prompts, completions, **kwargs):\n"
        "    assert all([m['role'] for m in prompt] == ['system', 'user'] for prompt in prompts)\n"
        "    return [len(set(completion[0]['content'])) / 10 for completion in completions]\n"
    )
    options = ["--data", str(chat_data), "--reward", f"{own}:distinct + 0.1 * similarity"]
    command("-m", "evolora.cli", *short(run, "--model", str(chat_model), *options))
    database = sqlite3.connect(run / "lineage.sqlite")
    prompts = {prompt for (prompt,) in database.execute("SELECT prompt FROM samples")}
    database.close()
    assert prompts <= {f"<system> Add.\n<user> {a} + 2 =\n<assistant>" for a in range(1, 16)} and len(prompts) > 3
    # A template from a file gives a model without one the same prompts, and so the same run.
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    filed = tmp_path / "filed"
    more = ["--model", str(toy.model), "--chat-template", str(tmp_path / "t.jinja")]
    assert evolora(*short(filed, *more, *options))[0] == 0
    one, other = facts(run), facts(filed)
    assert (one.metrics, one.lineage, one.adapter) == (other.metrics, other.lineage, other.adapter)
    assert AutoTokenizer.from_pretrained(filed / "best").chat_template == TEMPLATE
    assert evolora("resume", filed, "--gens", "2")[0] == 0
    # A prompt for `generate` is what the user says.
    _, said, _ = evolora("generate", run, "3 + 2 =")
    plain = shutil.copytree(run / "best", tmp_path / "plain")  # without a run its card knows
    more = ["--max-new-tokens", length(run)]
    for words in (["3 + 2 ="], ["--no-chat", "<user> 3 + 2 =\n<assistant>"]):
        assert evolora("generate", plain, *words, *more)[1] == said != ""
    card = plain / "README.md"
    (plain / "manifest.json").unlink()
    card.write_text(card.read_text().replace("- conversational\n", ""))  # tuned on text, on a model with a template
    assert evolora("generate", plain, "<user> 3 + 2 =\n<assistant>", *more)[1] == said
    card.unlink()  # anybody's, with a template
    assert evolora("generate", plain, "3 + 2 =", *more)[1] == said
    # The template of the run goes wherever it goes, and is not asked for again.
    (tmp_path / "t.jinja").unlink()
    alone = shutil.copytree(filed / "best", tmp_path / "alone")
    assert evolora("generate", filed, "3 + 2 =")[:2] == evolora("generate", alone, "3 + 2 =", *more)[:2]
    assert evolora("export", filed, "--to", tmp_path / "merged", "--merge")[0] == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == TEMPLATE


def length(run: Path) -> int:
    line = next(text for text in (run / "config.toml").read_text().splitlines() if text.startswith("max_new_tokens"))
    return int(line.split("=")[1])


def test_chat_messages_without_a_template_are_refused(evolora: Any, toy: Any, chat_data: Path, tmp_path: Path) -> None:
    arguments = short(tmp_path / "run", "--model", str(toy.model), "--data", str(chat_data))
    code, _, said = evolora(*arguments)
    assert code == 2 and str(chat_data) in said and "--chat-template" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
