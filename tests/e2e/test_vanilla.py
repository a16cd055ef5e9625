"""What a run exports works without evolora: plain transformers and PEFT load it and reproduce the run's figures."""

import json
import re
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest

from evolora import evolve
from evolora.models.base import model_path
from evolora.tasks.task import bundled_task

# Loads an adapter (or the base alone), completes the prompts greedily in one left-padded batch, prints the completions.
SCRIPT = """
import json, sys
import torch
from difflib import SequenceMatcher
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.load(open(sys.argv[1]))
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(job["adapter"], padding_side="left")
batch = tokenizer(job["prompts"], return_tensors="pt", padding=True)

def complete(model):
    ids = model.eval().generate(
        **batch, do_sample=False, repetition_penalty=1.0, max_new_tokens=job["max_new_tokens"],
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)

# The run's own precision, as its card says: weights may be stored in half of it.
base = AutoModelForCausalLM.from_pretrained(job["model"], dtype="float32")
found = {
    "base": complete(base),
    "auto": complete(AutoPeftModelForCausalLM.from_pretrained(job["adapter"], dtype="float32")),
    "peft": complete(PeftModel.from_pretrained(base, job["adapter"])),
}
figures = {
    side: sum(
        SequenceMatcher(None, text.strip(), target.strip()).ratio() for text, target in zip(texts, job["targets"])
    ) / len(texts)
    for side, texts in found.items()
}
assert not any(name.split(".")[0] == "evolora" for name in sys.modules)
print(json.dumps({"completions": found, "similarity": figures}))
"""


def vanilla(
    command: Any, folder: Path, run: Path, model: str | Path, prompts: list[str], targets: list[str]
) -> dict[str, Any]:
    job = {
        "adapter": str(run / "best"),
        "model": str(model),
        "prompts": prompts,
        "targets": targets,
        "max_new_tokens": tomllib.loads((run / "config.toml").read_text())["completion"]["max_new_tokens"],
    }
    (folder / "vanilla.py").write_text(SCRIPT)
    (folder / "job.json").write_text(json.dumps(job))
    result: dict[str, Any] = json.loads(command(folder / "vanilla.py", folder / "job.json", cwd=folder).stdout)
    return result


def recorded_tests(run: Path) -> dict[str, tuple[list[str], list[str]]]:
    """The test prompts and completions that the run recorded, of the base and of the winner."""
    winner = json.loads((run / "summary.json").read_text())["winner"]["id"]
    database = sqlite3.connect(run / "lineage.sqlite")
    found = {}
    for side, individual in (("base", 0), ("winner", winner)):
        rows = database.execute(
            "SELECT prompt, completion FROM samples WHERE stage = 'test' AND individual = ? ORDER BY rowid",
            (individual,),
        ).fetchall()
        found[side] = ([prompt for prompt, _ in rows], [completion for _, completion in rows])
    database.close()
    return found


def test_bundled_model_on_translate(command: Any, translated: Path, tmp_path: Path) -> None:
    run = translated
    task = bundled_task("translate")
    prompts = [example.prompt for example in task.test]
    targets = [str(example.columns["target"]) for example in task.test]
    found = vanilla(command, tmp_path, run, model_path("tiny-gpt2"), prompts, targets)
    summary = json.loads((run / "summary.json").read_text())
    for side, figure in (("base", "base"), ("winner", "auto"), ("winner", "peft")):
        assert found["similarity"][figure] == pytest.approx(summary[side]["test"]["reward"], abs=1e-9)
    assert found["completions"]["peft"] == recorded_tests(run)["winner"][1]
    assert found["completions"]["base"] != found["completions"]["peft"]


def test_toy_gpt2(command: Any, finished: Path, toy: Any, tmp_path: Path) -> None:
    recorded = recorded_tests(finished)
    prompts = recorded["winner"][0]
    found = vanilla(command, tmp_path, finished, toy.model, prompts, [""] * len(prompts))
    assert found["completions"]["base"] == recorded["base"][1]
    assert found["completions"]["auto"] == found["completions"]["peft"] == recorded["winner"][1]
    assert recorded["winner"][1] != recorded["base"][1]
    summary = json.loads((finished / "summary.json").read_text())
    distinct = [len(set(text)) / 10 for text in found["completions"]["peft"]]
    assert sum(distinct) / len(distinct) == pytest.approx(summary["winner"]["test"]["reward"], abs=1e-9)


def test_another_architecture_and_a_python_reward(command: Any, llama: Path, toy: Any, tmp_path: Path) -> None:
    def distinct(completions: list[str], **_: object) -> list[float]:
        return [len(set(text)) / 10 for text in completions]

    splits = ["train"] * 8 + ["validation"] * 8 + ["test"] * 4
    lines = toy.data.read_text().splitlines()
    rows = [{**json.loads(line), "split": split} for line, split in zip(lines, splits, strict=True)]
    result = evolve(
        model=str(llama), data=rows, reward=distinct, gens=5, pop=6, mutation_scale=0.1, max_new_tokens=8,
        target_modules=["q_proj", "v_proj", "down_proj"], out=str(tmp_path / "run"),
    )  # fmt: skip
    recorded = recorded_tests(result.folder)
    prompts = recorded["winner"][0]
    found = vanilla(command, tmp_path, result.folder, llama, prompts, [""] * len(prompts))
    assert found["completions"]["base"] == recorded["base"][1]
    assert found["completions"]["auto"] == found["completions"]["peft"] == recorded["winner"][1]
    assert recorded["winner"][1] != recorded["base"][1]


def test_the_cards_own_code_runs(command: Any, finished: Path, tmp_path: Path) -> None:
    prompts, completions = recorded_tests(finished)["winner"]
    card = (finished / "best" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    assert code.count("this folder") == 2 and "a prompt" in code
    script = tmp_path / "card.py"
    script.write_text(code.replace("this folder", str(finished / "best")).replace('"a prompt"', repr(prompts[0])))
    assert command(script, cwd=tmp_path).stdout == completions[0] + "\n"
