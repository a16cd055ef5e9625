"""Bad input is refused before any work: exit code 2, one line that names it, no traceback, no run folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

ROWS = [{"prompt": f"{number} + 1 =", "target": str(number + 1)} for number in range(6)]


def refused(result: tuple[int, str, str], *fragments: str) -> None:
    code, _, errors = result
    assert code == 2, errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("evolora: ")
    for fragment in fragments:
        assert fragment in errors


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--nonsense", "1"], ["--nonsense"]),
        (["--gen", "3"], ["--gen"]),  # no guessing at abbreviations
        (["stray"], ["stray"]),
        (["--gens"], ["--gens"]),
        (["--gens", "three"], ["--gens three"]),
        (["--gens", "2.5"], ["--gens 2.5"]),
        (["--gens", "0"], ["--gens 0"]),
        (["--budget-tokens", "1.5"], ["--budget-tokens 1.5"]),
        (["--budget-seconds", "0"], ["--budget-seconds 0", "greater than 0"]),
        (["--budget-seconds", "inf"], ["--budget-seconds inf"]),
        (["--budget-flops", "-1"], ["--budget-flops -1", "greater than 0"]),
        (["--budget-flops", "1e"], ["--budget-flops 1e"]),
        (["--vllm-slots", "4"], ["--vllm-slots 4 with --engine auto", "--engine vllm"]),
        (["--vllm-sleep"], ["--engine auto with --vllm-sleep", "--engine vllm"]),
        (["--pop", "1", "--elites", "1"], ["--pop 1"]),
        (["--pop", "4", "--elites", "4"], ["--elites 4", "--pop 4"]),
        (["--refine", "9"], ["--refine 9"]),
        (["--refiner", "dpo"], ["--refiner dpo", "'grpo'"]),
        (["--racing", "1.5"], ["--racing 1.5", "less than 1"]),
        (["--racing", "0"], ["--racing 0", "greater than 0"]),
        (["--products", "mkl"], ["--products mkl", "'auto', 'torch' or 'compiled'"]),
        (["--draft-rows", "-1"], ["--draft-rows -1", "greater than or equal to 0"]),
        (["--refiner", "grpo", "--rollout-samples", "1"], ["--rollout-samples 1", "--refiner grpo", "at least 2"]),
        (["--refiner", "rloo", "--rollout-samples", "1"], ["--rollout-samples 1", "--refiner rloo", "at least 2"]),
        (["--refiner", "grpo", "--loss-type", "mean"], ["--loss-type mean", "dapo"]),
        (["--refiner", "grpo", "--scale-rewards", "std"], ["--scale-rewards std", "group"]),
        (["--refiner", "grpo", "--clip-range-high", "0"], ["--clip-range-high 0"]),
        (["--crossover", "average"], ["--crossover average", "uniform"]),
        (["--lora-r", "0"], ["--lora-r 0"]),
        (["--lora-dropout", "1"], ["--lora-dropout 1"]),
        (["--lr", "-1"], ["--lr -1"]),
        (["--lr", "nan"], ["--lr nan"]),
        (["--mutation-scale", "inf"], ["--mutation-scale inf"]),
        (["--failed-reward", "nan"], ["--failed-reward nan"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--device", "nonsense"], ["--device nonsense"]),
        (["--dtype", "int8"], ["--dtype int8"]),
        (["--target-modules", "nonsense"], ["--target-modules nonsense"]),
        (["--target-modules", "wte"], ["wte"]),  # an embedding, which the adapted layers do not carry
        (["--reward", "nonsense"], ["--reward", "nonsense", "similarity"]),
        (["--reward", "no_such_module_here:f"], ["--reward no_such_module_here:f"]),
        (["--reward", "missing.py:f"], ["--reward", "missing.py:f"]),
        (["--reward", "json:nonsense"], ["--reward json:nonsense", "nonsense"]),
        (["--reward", "json:__name__"], ["--reward json:__name__", "str"]),
        (["--max-new-tokens", "200"], ["--max-new-tokens", "200", "128"]),
        (["--resume", "nowhere"], ["--model", "--resume"]),  # a resumed run keeps its options
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options(options: list[str], fragments: list[str], toy: Any, evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(evolora("train", *toy.options(run, *options)), *fragments)
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--task", "nonsense"], ["--task", "nonsense", "translate"]),
        (["--task", "translate", "--data", "words.jsonl"], ["--task", "--data"]),
        (["--prompt", "x", "--task", "translate"], ["--task", "--prompt"]),
        (["--target", "x"], ["--target", "--prompt"]),
        (["--strategy", "none", "--refiner", "none"], ["--strategy none", "--refiner none"]),
        (["--strategy", "es", "--mutation-scale", "0.1"], ["--mutation-scale 0.1", "strategy ga", "strategy es"]),
        (["--prompt", "x"], ["--prompt", "--reward"]),
        (["--prompt", "", "--target", "x"], ["--prompt"]),
        (["--data", "nowhere.jsonl"], ["--data", "nowhere.jsonl"]),
        (["--data", "."], ["--data", "train.jsonl"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--resume"], ["--resume"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["--model", "nowhere/at-all", "--task", "translate"], ["--model nowhere/at-all"]),
        (["--model", "./nowhere", "--task", "translate"], ["--model ./nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_sources(
    options: list[str], fragments: list[str], evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(evolora("train", *options), *fragments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("d.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": \n', ["d.jsonl line 2"]),
        ("d.jsonl", '{"prompt": "a", "target": "b"}\n["c"]\n', ["d.jsonl line 2"]),
        ("d.jsonl", '{"prompt": "a", "target": "b"}\n\n{"target": "b"}\n', ["d.jsonl line 3", "prompt"]),
        ("d.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": "c"}\n', ["d.jsonl line 2", "target"]),
        ("d.jsonl", '{"prompt": 5, "target": "b"}\n', ["d.jsonl line 1", "prompt"]),
        ("d.jsonl", '{"prompt": "a", "target": NaN}\n', ["d.jsonl line 1", "NaN"]),
        ("d.jsonl", "", ["d.jsonl", "no rows"]),
        ("d.csv", "prompt,target\na,b\nc\n", ["d.csv line 3"]),
        ("d.csv", "prompt,target\na,b,c\n", ["d.csv line 2"]),
        ("d.csv", 'prompt,target\n"a,b\n', ["d.csv line 2"]),
        ("d.csv", "prompt,target\n", ["d.csv", "no rows"]),
        ("d.csv", "question,target\na,b\n", ["d.csv line 2", "prompt"]),
        ("d.txt", "a\n", ["d.txt"]),
        (
            "d.csv",
            "prompt,target,split\na,b,test\nc,d,validation\n",
            ["--data", "d.csv", "train"],
        ),
        ("d.csv", "prompt,target,split\na,b,dev\n", ["d.csv line 2", "dev"]),
        ("d.jsonl", json.dumps({"prompt": "word " * 200, "target": "b"}) + "\n", ["prompt", "128"]),
    ],
)
def test_data_files(name: str, text: str, fragments: list[str], toy: Any, evolora: Any, tmp_path: Path) -> None:
    data, run = tmp_path / name, tmp_path / "run"
    data.write_text(text)
    refused(evolora("train", "--model", toy.model, "--data", data, "--out", run), *fragments)
    assert not run.exists()


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("generations = 3\n", ["generations"]),
        ("[evolution]\ngenz = 3\n", ["run.toml", "evolution.genz", "evolution.gens"]),
        ("gens = \n", ["run.toml", "line 1"]),
        ('gens = "many"\n', ["run.toml: gens = 'many'"]),
        ("target_modules = 3\n", ["run.toml: target_modules = 3"]),
        ("lr = 0.1\nstrategy = 'es'\n", ["run.toml: lr = 0.1", "strategy.lr or refiner.lr"]),
        ("pop = 2\n", ["--elites 2", "--pop 2"]),
    ],
)
def test_config_files(text: str, fragments: list[str], toy: Any, evolora: Any, tmp_path: Path) -> None:
    config, run = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(text)
    options = ["--config", config, "--model", toy.model, "--data", toy.data, "--out", run]
    refused(evolora("train", *options), *fragments)
    assert not run.exists()


@pytest.mark.parametrize(
    ("code", "fragments"),
    [
        ("def f(completions, answer):\n    return [0.0] * len(completions)\n", ["answer", "target"]),
        ("f = 3\n", ["own.py:f", "int"]),
        ("def g(completions):\n    return []\n", ["own.py:f"]),
        ("def f(completions)\n", ["own.py:f", "SyntaxError"]),
        ("import no_such_module_here\n", ["own.py:f", "no_such_module_here"]),
    ],
)
def test_rewards(code: str, fragments: list[str], toy: Any, evolora: Any, tmp_path: Path) -> None:
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(code)
    refused(evolora("train", *toy.options(run, reward=f"{own}:f")), *fragments)
    assert not run.exists()


def _masked(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=64)).save_pretrained(folder)


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"][:, :-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("damage", [_masked, _cut_weights, _other_shape, _bad_config, _no_tokenizer])
def test_models(damage: Callable[[Path], None], toy: Any, evolora: Any, tmp_path: Path) -> None:
    model, run = Path(shutil.copytree(toy.model, tmp_path / "model")), tmp_path / "run"
    damage(model)
    refused(evolora("train", *toy.options(run, "--model", str(model))), f"--model {model}")
    assert not run.exists()


def test_out_that_cannot_be_a_folder(toy: Any, evolora: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(evolora("train", *toy.options(file)), f"--out {file}")
    refused(evolora("train", *toy.options(file / "run")), f"--out {file / 'run'}")
    assert file.read_text() == "mine"


def test_folders_that_are_no_run(toy: Any, evolora: Any, finished: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    refused(evolora("resume", plain), str(plain))
    refused(evolora("resume", plain / "nowhere"), str(plain / "nowhere"))
    refused(evolora("evaluate", plain), str(plain))
    refused(evolora("generate", plain, "hello"), str(plain))
    refused(evolora("export", plain, "--to", tmp_path / "to"), str(plain))
    refused(evolora("evaluate", finished, "--checkpoint", "gen0099"), "gen0099", "gen0006")
    assert list(plain.iterdir()) == [] and not (tmp_path / "to").exists()


def test_export_to_what_is_there(evolora: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(evolora("export", finished, "--to", tmp_path), f"--to {tmp_path}")
    refused(evolora("export", finished, "--to", tmp_path / "mine.txt"), f"--to {tmp_path / 'mine.txt'}")
    refused(evolora("export", finished, "--to", tmp_path / "mine.txt" / "x", "--merge"), "--to")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_adapters_that_do_not_fit(toy: Any, evolora: Any, finished: Path, llama: Path, tmp_path: Path) -> None:
    refused(evolora("evaluate", finished, "--model", llama), str(finished / "best"))
    broken = Path(shutil.copytree(finished / "best", tmp_path / "broken"))
    (broken / "manifest.json").unlink()
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    refused(evolora("evaluate", broken), str(broken))
    refused(evolora("export", broken, "--to", tmp_path / "to", "--merge"), str(broken))
    (broken / "adapter_config.json").write_text("{")
    refused(evolora("evaluate", broken), str(broken))
    assert not (tmp_path / "to").exists()


def test_a_merge_makes_the_checks_of_generate(
    toy: Any, evolora: Any, finished: Path, llama: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(finished / "best", tmp_path / "adapter"))
    (adapter / "manifest.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, said in ((str(llama), "does not fit"), ("", "names no base model"), (None, "names no base model")):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        refused(evolora("export", adapter, "--to", tmp_path / "to", "--merge"), str(adapter), said)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    save_file(weights | {name: weights[name][:, :-1].clone()}, adapter / "adapter_model.safetensors")
    refused(evolora("export", adapter, "--to", tmp_path / "to", "--merge"), str(adapter), name)
    assert not (tmp_path / "to").exists()


def test_names_that_no_disk_takes(toy: Any, evolora: Any, finished: Path, tmp_path: Path) -> None:
    long, loop = "x" * 300, tmp_path / "loop"
    loop.symlink_to(loop)
    for arguments in (
        ["generate", long, "word"],
        ["resume", long],
        ["export", finished, "--to", tmp_path / long],
        ["train", *toy.options(tmp_path / long)],
        ["train", *toy.options(tmp_path / "out", "--data", long + ".jsonl")],
        ["train", *toy.options(tmp_path / "out", "--model", long)],
        ["train", long],
        ["train", *toy.options(tmp_path / "out", "--data", str(loop))],
        ["train", *toy.options(tmp_path / "out", "--chat-template", str(loop))],
    ):
        refused(evolora(*arguments))
    # No process can be given a NUL.
    for text in ("\udcff",) if os.environ.get("EVOLORA_REAL") else ("\udcff", "a\0b"):
        refused(evolora("generate", finished, text), "argument 3", "expected text")
        refused(evolora("train", *toy.options(tmp_path / "out", "--data", text)), "expected text")
    config = tmp_path / "config.toml"
    config.write_text('out = "a\\u0000b"')
    refused(evolora("train", config), f"{config}: out", "NUL")
    assert not (tmp_path / "out").exists()


def test_what_is_nested_deeply(toy: Any, evolora: Any, tmp_path: Path) -> None:
    file, run = tmp_path / "deep", tmp_path / "out"
    for text in ("x = " + "[" * 20_000, "x = " + "[" * 100 + "]" * 100, "a" + ".a" * 20_000 + " = 1"):
        file.write_text(text)
        refused(evolora("train", file), str(file), "nested deeper")
    for reward in ("(" * 5000 + "exact" + ")" * 5000, "1 * " + "-" * 5000 + "exact", "(exact > " * 5000):
        refused(evolora("train", *toy.options(run, reward=reward)), "--reward", "within more than 50 others")
    data = file.rename(tmp_path / "deep.jsonl")
    data.write_text('{"prompt": "a", "target": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    refused(evolora("train", *toy.options(run, "--data", str(data))), f"{data} line 1")
    preferences = data.rename(tmp_path / "preferences.jsonl")
    refused(evolora("reward-model", "train", preferences, "--out", run), str(preferences), "line 1")
    assert not run.exists()


def test_what_is_no_file(toy: Any, evolora: Any, finished: Path, tmp_path: Path) -> None:
    pipe, device, run = tmp_path / "pipe.jsonl", tmp_path / "device.jsonl", tmp_path / "out"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        for options in (["--data"], ["--chat-template"], ["--config"], ["--reward"]):
            value = f"json-schema(schema='{path}')" if options == ["--reward"] else str(path)
            refused(evolora("train", *toy.options(run, *options, value)), str(path), "it is a device, pipe or socket")
        refused(evolora("reward-model", "train", path, "--out", run), str(path))
        refused(evolora("train", *toy.options(run, reward=f"{path}:f")), str(path))
    assert not run.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if true %}" * 3000 + "{% endif %}" * 3000,
        "{{ messages[9].content.x }}",
    ],
)
def test_chat_templates(template: str, toy: Any, evolora: Any, tmp_path: Path) -> None:
    file, data = tmp_path / "template.jinja", tmp_path / "chat.jsonl"
    file.write_text(template)
    data.write_text(json.dumps({"prompt": [{"role": "user", "content": "a"}], "target": "b"}) + "\n")
    options = ["--data", str(data), "--chat-template", str(file)]
    refused(evolora("train", *toy.options(tmp_path / "out", *options)), str(data), "the chat template refuses")


def test_no_more_test_prompts_than_asked_for(toy: Any, evolora: Any, tmp_path: Path) -> None:
    caps = ["--max-validation-prompts", "2", "--max-test-prompts", "1"]
    code, shown, errors = evolora("train", *toy.options(tmp_path / "out", *caps, "--refiner", "none", gens=1))
    assert code == 0, errors
    assert "2 validation, 1 test prompts" in shown and "Of 3 test prompts 1 are drawn by the seed" in shown
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["test_prompts"] == 1
    code, shown, errors = evolora("evaluate", tmp_path / "out", "--max-test-prompts", "3", "--no-base")
    assert code == 0 and shown.endswith("3 prompts\n"), errors


def test_prompts_that_cannot_be_completed(evolora: Any, finished: Path) -> None:
    refused(evolora("generate", finished, ""), "prompt")
    refused(evolora("generate", finished, "word " * 200), "prompt", "128")
    refused(evolora("generate", finished, "word", "--samples", "-1"), "--samples -1")
    refused(evolora("generate", finished, "word", "--samples", "some"), "--samples")


def test_no_command(evolora: Any) -> None:
    code, shown, _ = evolora()
    assert code == 0 and shown.startswith("usage: evolora")
    refused(evolora("tune"), "tune")
    refused(evolora("trian"), "trian", "expected train")


def test_the_real_command_says_it_the_same_way(command: Any, trainer: str, tmp_path: Path) -> None:
    done = command(trainer, "--gens", "three", code=2, cwd=tmp_path)
    refused((done.returncode, done.stdout, done.stderr), "--gens three")
    (tmp_path / "own.csv").write_text("prompt,target\na\n")
    done = command("-m", "evolora.cli", "train", "--data", "own.csv", code=2, cwd=tmp_path)
    refused((done.returncode, done.stdout, done.stderr), "own.csv line 2")
    assert [path.name for path in tmp_path.iterdir()] == ["own.csv"]


def test_a_chat_task_on_a_model_without_a_template_names_the_task(evolora: Any, tmp_path: Path) -> None:
    refused(
        evolora("train", "--task", "one-word", "--out", tmp_path / "out"), "--task one-word", "expected --chat-template"
    )
