"""What leaves a run: merged, as GGUF, onto the hub; and what an adapter writes, loaded once."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from pretended_hub import Hub, serving
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from evolora import evolve
from evolora.models.base import load_base
from evolora.runs import adapter as adapters
from evolora.runs.adapter import completer

# As llama.cpp's converter is called, but for what it writes.
CONVERTER = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", default="auto")
said = parser.parse_args()
assert (said.model / "model.safetensors").is_file() and (said.model / "tokenizer.json").is_file()
config = json.loads((said.model / "config.json").read_text())
said.outfile.write_text(f"GGUF {config['model_type']} {config['dtype']} {said.outtype}")
"""


@pytest.fixture
def lone(finished: Path, tmp_path: Path) -> Path:
    """The adapter of a run, somewhere else."""
    return Path(shutil.copytree(finished / "best", tmp_path / "lone"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as hub:
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_somebody")
        yield hub


def dtypes(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118


def test_a_merge_has_the_precision_of_the_base_unless_told(
    lone: Path, finished: Path, toy: Any, evolora: Any, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    load_base(str(toy.model), dtype=torch.bfloat16).model.save_pretrained(half)
    for file in toy.model.glob("*token*"):
        shutil.copy2(file, half)
    kept = {"eos_token_id": 0, "temperature": 0.3, "top_p": 0.9, "do_sample": False, "max_new_tokens": 7}
    (half / "generation_config.json").write_text(json.dumps(kept))
    for number, (path, more, right) in enumerate(
        [
            (lone, ["--base", half], "torch.bfloat16"),
            (lone, ["--base", half, "--dtype", "float32"], "torch.float32"),
            (finished, [], "torch.float32"),
            (finished, ["--dtype", "float16"], "torch.float16"),
        ]
    ):
        to = tmp_path / str(number)
        code, _, errors = evolora("export", path, "--to", to, "--merge", *more)
        assert code == 0, errors
        assert dtypes(to) == {right} and AutoModelForCausalLM.from_pretrained(to).dtype == getattr(torch, right[6:])
    assert json.loads((tmp_path / "0" / "generation_config.json").read_text()).items() >= kept.items()
    card = ModelCard.load(tmp_path / "2" / "README.md")
    assert card.data["library_name"] == "transformers" and "AutoPeftModel" not in card.text
    code, _, errors = evolora("export", lone, "--to", tmp_path / "no", "--dtype", "float16")
    assert code == 2 and "--dtype float16: expected --merge" in errors


def test_a_gguf_is_made_by_a_converter_that_is_named(lone: Path, evolora: Any, tmp_path: Path) -> None:
    sources, to = tmp_path / "llama.cpp", tmp_path / "model.gguf"
    words = ["export", lone, "--to", to, "--gguf", "--llama-cpp", sources]
    code, _, errors = evolora(*words)
    assert code == 2 and f"--llama-cpp {sources}: found no convert_hf_to_gguf.py" in errors
    sources.mkdir()
    script = sources / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER)
    code, out, errors = evolora(*words, "--dtype", "float16")
    assert code == 0 and out.strip() == str(to), errors
    assert to.read_text() == "GGUF gpt2 float16 f16"
    assert {path.name for path in tmp_path.iterdir()} >= {"lone", "llama.cpp", "model.gguf"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    code, _, errors = evolora(*words)
    assert code == 2 and f"--to {to}: exists already" in errors
    to.unlink()
    script.write_text("import sys\nsys.exit('Model GPT2LMHeadModel is not supported')\n")
    code, _, errors = evolora(*words)
    assert code == 2 and "ended with 1 and said 'Model GPT2LMHeadModel is not supported'" in errors
    assert not to.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    code, _, errors = evolora("export", lone, "--to", to, "--gguf")
    assert code == 2 and "--gguf: expected --llama-cpp beside it" in errors


def test_an_adapter_goes_to_the_hub_and_comes_back(
    hub: Hub, lone: Path, toy: Any, evolora: Any, tmp_path: Path
) -> None:
    (lone / "optimizer.pt").write_bytes(b"pickled")
    words = ["export", lone, "--to", tmp_path / "out", "--push", "me/sft"]
    code, _, errors = evolora(*words)
    assert code == 2 and str(toy.model) in errors and "expected --base NAME" in errors and not hub.made
    code, _, errors = evolora(*words, "--base", "some/model", "--private")
    assert code == 0, errors
    files = hub.repositories["me/sft"]
    assert files.keys() >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert "optimizer.pt" not in files and "manifest.json" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "some/model"
    assert hub.made[0].get("visibility", hub.made[0].get("private")) in ("private", True)
    (card,) = hub.cards
    assert ModelCard(card).data["base_model"] == "some/model" and ModelCard(card).data["eval_results"]
    # Somebody else starts from it.
    run = ["train", "--data", toy.data, "--reward", toy.reward, "--gens", "1", "--pop", "2", "--elites", "1"]
    run += ["--refiner", "none", "--model", toy.model, "--out", tmp_path / "run", "--eval-prompts", "4"]
    code, _, errors = evolora(*run, "--init", "me/sft")
    assert code == 0, errors
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["init"] == ["me/sft"]
    kept = (tmp_path / "run" / "init" / "0" / "adapter_model.safetensors").read_bytes()
    assert kept == files["adapter_model.safetensors"]
    code, _, errors = evolora(*run[:-3], tmp_path / "other", "--init", "me/none")
    assert code == 2 and "--init me/none: no folder here" in errors and errors.count("\n") == 1
    # Or lets it write, scores it, and takes it further: its chat template, or that it has none, comes with it.
    more = ["--model", toy.model, "--max-new-tokens", "4"]
    said = evolora("generate", "me/sft", "chat", *more)
    assert said[0] == 0 and said[1] == evolora("generate", lone, "chat", *more)[1]
    scored = ["--data", toy.data, "--reward", toy.reward, "--no-base", "--show", "0"]
    assert evolora("evaluate", "me/sft", *more, *scored)[1] == evolora("evaluate", lone, *more, *scored)[1]
    code, _, errors = evolora("export", "me/sft", "--to", tmp_path / "merged", "--merge", "--base", toy.model)
    assert code == 0 and (tmp_path / "merged" / "model.safetensors").is_file(), errors
    for command in (["generate", "me/none", "chat"], ["evaluate", "me/none"], ["export", "me/none", "--to", "x"]):
        code, _, errors = evolora(*command)
        assert code == 2 and "me/none: no folder here" in errors and errors.count("\n") == 1


def test_what_the_hub_refuses_is_said_and_stays(
    hub: Hub, lone: Path, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", lone, "--base", "some/model", "--to"]
    code, _, errors = evolora(*words, tmp_path / "a", "--push", "no/such/name")
    assert code == 2 and "--push no/such/name: " in errors and not (tmp_path / "a").exists()
    hub.refusal = (403, "You don't have the rights to create a model under the namespace you")
    code, _, errors = evolora(*words, tmp_path / "b", "--push", "you/sft")
    assert code == 2 and "--push you/sft: " in errors and "403" in errors and errors.count("\n") == 1
    assert str(tmp_path / "b") in errors and (tmp_path / "b" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, errors = evolora(*words, tmp_path / "c", "--push", "me/sft")
    assert code == 2 and "--push me/sft: " in errors and "offline" in errors.lower()
    monkeypatch.setattr("evolora.runs.exporting.get_token", lambda: None)
    code, _, errors = evolora(*words, tmp_path / "d", "--push", "me/sft")
    assert code == 2 and "found no token, expected one in HF_TOKEN" in errors and not (tmp_path / "d").exists()


def test_several_prompts_and_a_conversation_load_once(
    finished: Path, evolora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = completer(finished, options={"max_new_tokens": 4})
    said = {prompt: "\n".join(complete(prompt)) for prompt in ("chat", "chien", "mer")}
    loaded: list[Path] = []
    one_load = adapters.adapter_folder
    monkeypatch.setattr(adapters, "adapter_folder", lambda path, *more: loaded.append(path) or one_load(path, *more))
    words = ["generate", finished, "chat", "--max-new-tokens", "4", "chien", "--interactive"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("mer\n\n" + "word " * 200 + "\nchat"))
    code, out, errors = evolora(*words)
    assert code == 0 and len(loaded) == 1
    assert out == f"> chat\n{said['chat']}\n> chien\n{said['chien']}\n{said['mer']}\n{said['chat']}\n"
    assert errors.startswith("evolora: prompt 'word ") and errors.count("\n") == 1, "and the next is answered"
    code, _, errors = evolora("generate", finished, "--max-new-tokens", "4")
    assert code == 2 and "PROMPT: found none, expected at least one, or --interactive" in errors
    code, _, errors = evolora("generate", finished, "chat", "--no-such-option")
    assert code == 2 and "--no-such-option" in errors


def test_a_run_whose_reward_was_a_function_writes_and_is_scored_by_another(
    toy: Any, evolora: Any, tmp_path: Path
) -> None:
    def short(completions: list[str], **_: Any) -> list[float]:
        return [1 / (1 + len(text)) for text in completions]

    rows = [{"prompt": f"{word} is", "target": word} for word in ("chat", "chien", "mer", "lune")]
    words: dict[str, Any] = {"gens": 1, "pop": 2, "elites": 1, "refiner": "none", "threads": 1, "max_new_tokens": 4}
    run = evolve(model=str(toy.model), data=rows, reward=short, out=tmp_path / "run", **words).folder
    assert evolora("generate", run, "chat is")[0] == 0
    code, _, errors = evolora("evaluate", run)
    assert code == 2 and "--reward: this run was given the Python function" in errors and errors.count("\n") == 1
    code, out, errors = evolora("evaluate", run, "--reward", "exact", "--no-base")
    assert code == 0 and "test reward 0.0000" in out, errors
    assert evolora("export", run, "--to", tmp_path / "merged", "--merge")[0] == 0
