"""Runs that start from adapters: --init."""

import json
import shutil
import sqlite3
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evolora import evolve, resume

SMALL = [
    "--gens",
    "1",
    "--pop",
    "3",
    "--elites",
    "1",
    "--eval-prompts",
    "4",
    "--validation-prompts",
    "4",
    "--threads",
    "1",
]
ALONE = ["--refiner", "none", "--max-new-tokens", "4"]

Make = Callable[..., Path]


@pytest.fixture
def adapter(toy: Any, tmp_path: Path) -> Make:
    """Writes a finished adapter of the toy model, as another trainer would, its B not zero."""

    def make(name: str = "sft", *, seed: int = 0, **config: Any) -> Path:
        said = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, **config}
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(toy.model), LoraConfig(task_type="CAUSAL_LM", **said)
        )
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def options(toy: Any, out: Path, *more: object) -> list[str]:
    return ["train", "--data", str(toy.data), "--reward", toy.reward, *SMALL, "--out", str(out), *map(str, more)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_starts_from_an_adapter_and_needs_its_folder_no_more(
    toy: Any, evolora: Any, adapter: Make, tmp_path: Path
) -> None:
    sft, run = adapter(rank_pattern={"h.1.attn.c_attn": 2}, alpha_pattern={"h.1.attn.c_attn": 3}), tmp_path / "run"
    before = weights(sft)
    reference = ["--rl-steps", "1", "--kl-weight", "0.1", "--lora-dropout", "0", "--max-new-tokens", "4", "--merge"]
    code, out, errors = evolora(*options(toy, run, "--init", sft, *reference))
    assert code == 0, errors
    assert f"starts from {sft}" in out and "  sft  " in out and "base model" not in out.split("test prompts:")[1]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["init"] == ["sft"]
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["lora"] | {"r": 4, "alpha": 8, "target_modules": ["c_attn"], "dropout": 0.0} == config["lora"]
    assert config["model"]["name"] == str(toy.model), "the one that the adapter names"
    # It is what is compared with, what the KL is measured from, and in the folder of the run.
    shutil.rmtree(sft)
    code, out, _ = evolora("evaluate", run, "--show", "0")
    own, base = (line.split("reward ")[1] for line in reversed(out.splitlines()[-2:]))
    assert code == 0 and base.startswith("of what it started from ")
    assert float(base.split()[5]) == pytest.approx(summary["base"]["test"]["reward"], abs=1e-4)
    assert float(own.split()[0]) == pytest.approx(summary["winner"]["test"]["reward"], abs=1e-4)
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(metrics["ppo.kl"]) < 1e-3, "of a rollout by who began"
    assert weights(run / "init" / "0").keys() == before.keys()
    code, out, errors = evolora("resume", run, "--gens", "2")
    assert code == 0, errors
    # What comes out is complete in itself, and goes in again.
    assert json.loads((run / "best" / "adapter_config.json").read_text())["rank_pattern"]
    assert evolora("generate", run / "best", "chat", "--max-new-tokens", "4")[0] == 0
    assert evolora("verify", run)[0] == 0
    kept = run / "init" / "0" / "adapter_model.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert f"{kept}: truncated or altered" in evolora("verify", run)[1]
    code, _, errors = evolora("evaluate", run, "--show", "0")
    assert code == 1 and str(kept) in errors
    code, _, errors = evolora("resume", run, "--gens", "3")
    assert code != 0 and str(kept) in errors and "Traceback" not in errors
    shutil.rmtree(run / "init")
    assert f"{run / 'init' / '0' / 'manifest.json'}: missing" in evolora("verify", run)[1]


def test_an_unbeaten_adapter_leaves_as_it_came(toy: Any, evolora: Any, adapter: Make, tmp_path: Path) -> None:
    sft, run = adapter(init_lora_weights=False, use_rslora=True), tmp_path / "run"
    (tmp_path / "flat.py").write_text("def flat(completions, **kwargs):\n    return [0.5] * len(completions)\n")
    more = ["--init", str(sft), "--reward", f"{tmp_path / 'flat.py'}:flat", *ALONE]
    assert evolora(*options(toy, run, *more))[0] == 0
    assert json.loads((run / "summary.json").read_text())["winner"]["id"] == 0
    left, came = weights(run / "best"), weights(sft)
    assert left.keys() == came.keys() and all(torch.equal(left[name], came[name]) for name in came)
    assert "unchanged base, the adapter `sft`" in (run / "best" / "README.md").read_text()
    said = [evolora("generate", folder, "chat", "--max-new-tokens", "4")[1] for folder in (sft, run, run / "best")]
    assert len(set(said)) == 1
    # A run's folder stands for its winner.
    code, _, errors = evolora(*options(toy, tmp_path / "next", "--init", run, "--lora-r", "4", *ALONE))
    assert code == 0, errors
    assert json.loads((tmp_path / "next" / "summary.json").read_text())["init"] == ["run"]


@pytest.mark.parametrize("strategy", ["ga", "pbt", "random"])
def test_several_are_the_first_population(strategy: str, toy: Any, evolora: Any, adapter: Make, tmp_path: Path) -> None:
    begun, run = [adapter("one"), adapter("two", seed=1)], tmp_path / "run"
    more = ["--refiner", "ppo", "--rl-steps", "1", "--max-new-tokens", "4"] if strategy == "pbt" else ALONE
    more += ["--refine", "3"] if strategy == "pbt" else []
    code, _, errors = evolora(*options(toy, run, "--strategy", strategy, "--init", *begun, *more))
    assert code == 0, errors
    assert json.loads((run / "summary.json").read_text())["init"] == ["one", "two"]
    with closing(sqlite3.connect(run / "lineage.sqlite")) as database:
        born = database.execute("SELECT id, operator, genome_sha256 FROM individuals WHERE generation = 0").fetchall()
    assert sorted(row[:2] for row in born) == [(0, "base"), (1, "initial")] and born[0][2] != born[1][2]


def test_from_python_with_the_model_in_hand(toy: Any, adapter: Make, tmp_path: Path) -> None:
    words: dict[str, Any] = {"gens": 1, "pop": 2, "elites": 1, "refiner": "none", "threads": 1, "max_new_tokens": 4}
    rows = [{"prompt": "chat", "target": "cat"}, {"prompt": "chien", "target": "dog"}]

    def short(completions: list[str], **_: Any) -> list[float]:
        return [1 / (1 + len(text)) for text in completions]

    run = evolve(data=rows, reward=short, init=adapter(), out=tmp_path / "run", **words)
    assert run.summary["init"] == ["sft"]
    assert resume(run.folder, reward=short, gens=2).summary["generations"] == 2


def test_what_does_not_go_with_an_adapter_is_refused(toy: Any, evolora: Any, adapter: Make, tmp_path: Path) -> None:
    one, small = adapter("one"), adapter("small", r=2)
    dora, far = adapter("dora", use_dora=True), adapter("far", target_modules=["c_proj"])
    bad = Path(shutil.copytree(one, tmp_path / "bad"))
    tensors = weights(bad)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, bad / "adapter_model.safetensors")
    cases: list[tuple[list[object], list[str]]] = [
        (["--init", one, "--lora-r", "8"], ["--lora-r 8", f"--init {one} has 4"]),
        (["--init", one, "--target-modules", "c_attn", "c_proj"], ["--target-modules c_attn c_proj", "has c_attn"]),
        (["--init", one, "--rslora"], ["--rslora True", "has False"]),
        (["--init", one, small], [f"--init {small}", "one layout"]),
        (["--init", one, far], [f"--init {far}", "one layout"]),
        (["--init", dora], [str(dora), "use_dora=True"]),
        (["--init", bad], [f"--init {bad}", "not finite"]),
        (["--init", one, one, one, one], ["found 4 adapters", "at most 3", "--pop 3"]),
        (["--init", one, one, "--strategy", "es"], ["found 2 adapters", "at most 1", "--strategy es"]),
        (["--init", tmp_path / "nowhere"], [f"--init {tmp_path / 'nowhere'}", "expected an adapter"]),
        (["--init", toy.model], [str(toy.model), "expected a PEFT adapter"]),
        (["--init"], ["--init: found no value"]),
        (["--init", one, "--model", "tiny-gpt2"], [str(one), "does not fit --model tiny-gpt2"]),
    ]
    for more, said in cases:
        code, _, errors = evolora(*options(toy, tmp_path / "run", *more, *ALONE))
        assert code == 2 and all(part in errors for part in said), (more, errors)
        assert errors.count("\n") == 1 and not (tmp_path / "run").exists(), more


def test_the_copies_that_it_keeps_need_room(
    toy: Any, evolora: Any, adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    needed = []
    one, other = adapter("one", r=256), adapter("other", r=256, seed=1)
    for more in ([], ["--init", one], ["--init", one, other]):
        lora = ["--model", toy.model, "--lora-r", "256", "--target-modules", "c_attn"] if not more else []
        code, _, errors = evolora(*options(toy, tmp_path / "run", *lora, *more, *ALONE))
        assert code == 2 and ("what it starts from" in errors) == bool(more), errors
        needed.append(float(errors.split("at least ")[1].split(" MB")[0].replace(",", "")))
    assert needed[0] < needed[1] < needed[2]
