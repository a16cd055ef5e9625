"""Data as people bring it, through the real command: columns, chat turns, tools, system prompts, splits."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

TEMPLATE = (
    "{% if tools %}[{% for tool in tools %}{{ tool.name }}{% endfor %}] {% endif %}{{ 'long' if think else 'short' }}\n"
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}<assistant>"
)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test, whose turns end with the answer."""
    made = tmp_path_factory.mktemp("data")

    def row(a: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": [{"type": "text", "text": f"{a} + 2 ="}]}]
        turns.append({"role": "assistant", "content": str(a + 2)})
        return {"turns": turns, "tools": [{"name": "add"}]}

    written(made / "train.json", [row(a) for a in range(12)])
    written(made / "test.jsonl", [row(a) for a in range(90, 93)])
    return made


@pytest.fixture(scope="module")
def asked(toy: Any, folder: Path, command: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on them, and what it said."""
    model = Path(shutil.copytree(toy.model, tmp_path_factory.mktemp("model") / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    run = model.parent / "run"
    done = command(
        *("-m", "evolora.cli", "train"),
        *toy.options(
            run, "--model", str(model), "--data", str(folder), "--prompt-column", "turns", gens=1, reward="similarity"
        ),
        *("--system-prompt", "Add.", "--chat-template-kwargs", "think=true"),
    )
    return run, done.stdout + done.stderr


def test_the_prompt_is_what_the_template_makes_of_all_that_was_given(asked: tuple[Path, str]) -> None:
    run, said = asked
    database = sqlite3.connect(run / "lineage.sqlite")
    prompts = {prompt for (prompt,) in database.execute("SELECT prompt FROM samples")}
    database.close()
    assert prompts and prompts <= {
        f"[add] long\n<system> Add.\n<user> {a} + 2 =\n<assistant>" for a in (*range(12), *range(90, 93))
    }
    assert "The data has no validation split: 15% of its training prompts" in said
    assert ": 10 training, 2 validation, 3 test prompts" in said


def test_an_adapter_is_asked_as_it_was_tuned_to_be(asked: tuple[Path, str], evolora: Any, tmp_path: Path) -> None:
    run, _ = asked
    more = ("--max-new-tokens", "4")
    _, own, _ = evolora("generate", run, "3 + 2 =", *more)
    plain = shutil.copytree(run / "best", tmp_path / "plain")  # an adapter without a run knows no data
    _, same, _ = evolora("generate", plain, "long\n<system> Add.\n<user> 3 + 2 =\n<assistant>", "--no-chat", *more)
    assert own == same != ""
    # Other data has columns of its own, and the same system prompt.
    data = written(tmp_path / "other.json", [{"prompt": f"{a} + 3 =", "target": str(a + 3)} for a in range(4)])
    code, shown, _ = evolora("evaluate", run, "--data", data, "--no-base", "--reward", "exact", *more)
    assert code == 0 and "long\\n<system> Add.\\n<user>" in shown
    assert evolora("evaluate", run)[0] == 0


def test_what_cannot_be_loaded_leaves_nothing_behind(
    toy: Any, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    run = tmp_path / "run"
    code, _, said = evolora("train", *toy.options(run, "--data", "some-org/none"))
    assert code == 2 and said.startswith("evolora: --data some-org/none is no file or folder") and said.count("\n") == 1
    assert not run.exists()


def test_the_end_of_a_run_keeps_to_its_budget(toy: Any, evolora: Any, tmp_path: Path) -> None:
    data = written(tmp_path / "large.jsonl", [{"prompt": f"{a} + 1 =", "target": str(a + 1)} for a in range(1500)])
    run = tmp_path / "run"
    options = toy.options(run, "--data", str(data), "--refiner", "none", reward="exact", gens=1)
    code, said, _ = evolora("train", *options, "--budget-tokens", "2000")
    assert code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert 64 <= summary["test_prompts"] < 225 and summary["tokens"]["test"] < 2000
    assert f"The budget is enough for {summary['test_prompts']} of 225 test prompts at the end" in said
    _, said, _ = evolora("evaluate", run, "--no-base")
    assert "225 prompts" in said
