"""What a run leaves in its folder, file by file."""

import json
import sqlite3
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolora.engine.calibration import available_cores
from evolora.files import verify
from evolora.models.cost import PURPOSES
from evolora.models.export import load_adapter
from evolora.models.lora import lora_layout
from evolora.population.population import genome_sha256
from evolora.runs.config_file import config_toml, read_run_config, with_checksum
from evolora.runs.options import make_options
from evolora.runs.report.inspection import Inspection
from evolora.strategies.operators import CROSSOVERS, MUTATIONS


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, which Python alone would accept."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_folder_holds_these_and_no_leftovers(finished: Path) -> None:
    assert {entry.name for entry in finished.iterdir()} == {
        "config.toml", "checkpoints", "best", "merged", "metrics.jsonl", "lineage.sqlite", "summary.json",
        "identity.json", "report.html",
    }  # fmt: skip
    assert [entry.name for entry in sorted((finished / "checkpoints").iterdir())] == ["gen0002", "gen0004", "gen0006"]
    leftovers = [path for path in finished.rglob("*") if path.name.startswith(".") or path.suffix == ".partial"]
    assert leftovers == []


def test_config_holds_every_resolved_option_and_loads_back(finished: Path, toy: Any) -> None:
    values = tomllib.loads((finished / "config.toml").read_text())
    config = make_options(read_run_config(finished))
    assert (config.evolution.gens, config.evolution.pop) == (6, 4)
    assert config.model.name == str(toy.model) and config.run.out == str(finished)
    # Resolved, so that a resumed run cannot resolve them otherwise.
    assert config.engine.device == "cpu" and config.engine.threads == available_cores()
    assert config.evolution.refine == 2 and config.evolution.accept == "better"
    assert isinstance(config.completion.max_new_tokens, int)
    for part, own in config.parts().items():
        assert all(value is None for name, value in own.items() if name not in values.get(part, {})), part
    assert with_checksum(config_toml(config)) == (finished / "config.toml").read_text()


def test_an_option_switched_off_stays_off_when_the_config_is_read_back(evolora: Any, toy: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, _ = evolora("train", *toy.options(run, "--target-kl", "none", gens=1))
    assert code == 0
    assert make_options(read_run_config(run)).refiner.target_kl is None


def test_checkpoints_are_peft_adapters_with_whole_manifests(finished: Path, toy: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(toy.model)
    for folder in (finished / "checkpoints").iterdir():
        verify(folder)
        sums = strict((folder / "manifest.json").read_text())
        assert {"adapter_config.json", "adapter_model.safetensors", "state.json", "state.safetensors"} <= set(sums)
        for name, expected in sums.items():
            assert sha256((folder / name).read_bytes()).hexdigest() == expected
        model = PeftModel.from_pretrained(base, folder)
        assert model.peft_config["default"].r == 8
        model.unload()


def test_best_has_adapter_tokenizer_and_model_card(finished: Path, toy: Any) -> None:
    best = finished / "best"
    summary = strict((finished / "summary.json").read_text())
    card = (best / "README.md").read_text()
    for side in ("base", "winner"):
        assert f"{summary[side]['test']['reward']:.3f}" in card
    for name, was, now in Inspection.from_dict(summary["inspection"]).shares():
        assert f"{name} {was:.0%} -> {now:.0%}" in card
    assert all(f"warning: {warning}" in card for warning in summary["inspection"]["warnings"])
    assert "library_name: peft" in card and "`model`" in card and "distinct" in card
    text = "Translate 'chat' to English:"
    assert (
        AutoTokenizer.from_pretrained(best)(text)["input_ids"]
        == AutoTokenizer.from_pretrained(toy.model)(text)["input_ids"]
    )


def test_merged_equals_base_with_adapter(finished: Path, toy: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "merged", padding_side="left")
    batch = tokenizer(["Translate 'chat' to English:", "Translate 'maison' to"], return_tensors="pt", padding=True)
    merged = AutoModelForCausalLM.from_pretrained(finished / "merged").eval()
    base = AutoModelForCausalLM.from_pretrained(toy.model).eval()
    with torch.no_grad():
        untouched = base(**batch).logits
        adapted = PeftModel.from_pretrained(base, finished / "best").eval()(**batch).logits
        found = merged(**batch).logits
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(found, adapted, rtol=0, atol=1e-5)
    assert (adapted - untouched).abs().max() > 1e-2  # or the comparison above says nothing


def test_metrics_are_one_strict_line_a_generation(finished: Path) -> None:
    lines = [strict(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["fitness.worst"] <= line["fitness.mean"] <= line["fitness.best"]
        assert line["validation"] <= line["validation.best"]
        assert line["failed"] == 0
    spent = [f"{kind}.{purpose}" for kind in ("tokens", "flops", "time") for purpose in PURPOSES]
    for name in (*spent, "time.loop", "time.total", "validation.best"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    for before, line in zip([dict.fromkeys(lines[0], 0), *lines], lines, strict=False):
        assert all(line[name] > before[name] for name in spent), "all grow: each generation evaluates and refines"
        assert line["time.loop"] == pytest.approx(before["time.loop"] + line["time.generation"])
        assert sum(line[f"time.{purpose}"] for purpose in PURPOSES) <= line["time.loop"] <= line["time.total"]
        # Two passes over every rollout (--epochs) and one of replay, each no longer than 64 completions: or fewer.
        assert line["tokens.rollout"] <= line["tokens.update"] <= 3 * line["tokens.rollout"]


def test_summary_has_the_figures_and_the_winners_checksum(finished: Path, toy: Any) -> None:
    summary = strict((finished / "summary.json").read_text())
    assert (summary["seed"], summary["model"], summary["task"]) == (0, toy.model.name, "words")
    assert summary["generations"] == 6 and summary["seconds"] > 0 and summary["version"]
    last = strict((finished / "metrics.jsonl").read_text().splitlines()[-1])
    for kind in ("tokens", "flops", "time"):
        assert set(summary[kind]) - {"loop", "memory.test"} == {*PURPOSES, "test"} and min(summary[kind].values()) > 0
        assert summary[kind]["rollout"] == last[f"{kind}.rollout"] and summary[kind]["update"] == last[f"{kind}.update"]
        assert summary[kind]["evaluation"] >= last[f"{kind}.evaluation"], "the final choice comes on top"
    assert summary["time"]["loop"] == last["time.loop"] < summary["seconds"]
    # Base and winner on each test prompt, and nothing else.
    assert 2 * summary["test_prompts"] <= summary["tokens"]["test"]
    for side in ("base", "winner"):
        low, high = summary[side]["test"]["ci95"]
        assert low <= summary[side]["test"]["reward"] <= high
    assert isinstance(summary["winner"]["id"], int)
    lora, state = load_adapter(finished / "best")
    base = AutoModelForCausalLM.from_pretrained(toy.model)
    layout, _ = lora_layout(base, lora, seed=0)
    assert summary["winner"]["genome_sha256"] == genome_sha256(layout.from_state_dict(state))
    # And with nothing of evolora's: the factors in the order of the model's layers, A before B.
    tensors = load_file(finished / "best" / "adapter_model.safetensors")
    order = [f"{module.name}.lora_{factor}.weight" for module in layout.modules for factor in "AB"]
    row = torch.cat([tensors[f"base_model.model.{key}"].flatten() for key in order])
    assert summary["winner"]["genome_sha256"] == sha256(row.numpy().tobytes()).hexdigest()


def test_lineage_is_a_family_tree(finished: Path) -> None:
    database = sqlite3.connect(finished / "lineage.sqlite")
    people = {row[0]: row[1:] for row in database.execute("SELECT id, generation, operator FROM individuals")}
    assert len(people) == database.execute("SELECT count(*) FROM individuals").fetchone()[0]
    assert people[0] == (0, "base")
    known = {"base", "ppo", "copy", "average", "soup", *CROSSOVERS, *MUTATIONS}
    assert {name for _, operator in people.values() for name in operator.split("+")} <= known
    parents: dict[int, list[int]] = {}
    for child, parent in database.execute("SELECT child, parent FROM parents ORDER BY child, position"):
        assert child in people and parent in people and people[parent][0] <= people[child][0] and parent < child
        parents.setdefault(child, []).append(parent)
    assert set(people) - set(parents) == {0}, "everybody but the base has a parent"
    for child, (_, operator) in people.items():
        crossed = any(name in CROSSOVERS for name in operator.split("+"))
        # The first average of a lineage comes of the refined one alone, the next of the average before it too.
        assert child == 0 or len(parents[child]) in ((2,) if crossed else (1, 2) if operator == "average" else (1,))
        if operator == "average" and len(parents[child]) == 2:
            assert [people[parent][1] for parent in parents[child]] == ["average", "ppo"]
    for generation in range(1, 7):
        stages = dict(
            database.execute(
                "SELECT stage, count(*) FROM fitness WHERE generation = ? GROUP BY stage", (generation,)
            ).fetchall()
        )
        assert stages["population"] == 4 and stages["refined"] == 2 and stages["validation"] >= 1
    assert all(row[0] in people for row in database.execute("SELECT individual FROM fitness"))
    summary = json.loads((finished / "summary.json").read_text())
    for side, individual in (("base", 0), ("winner", summary["winner"]["id"])):
        found = database.execute("SELECT fitness FROM fitness WHERE stage = 'test' AND individual = ?", (individual,))
        assert found.fetchone()[0] == summary[side]["test"]["reward"]
        rewards = database.execute("SELECT reward FROM samples WHERE stage = 'test' AND individual = ?", (individual,))
        scores = [row[0] for row in rewards]
        assert sum(scores) / len(scores) == pytest.approx(summary[side]["test"]["reward"], abs=1e-12)
    samples = database.execute("SELECT prompt, completion, reward FROM samples WHERE stage = 'validation'").fetchall()
    assert samples and all(prompt.startswith("Translate") for prompt, _, _ in samples)
    assert all(reward == len(set(completion)) / 10 for _, completion, reward in samples)
    database.close()
