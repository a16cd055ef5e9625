"""Models and adapters of somebody else whose files are bad: refused in a sentence, before their weights are read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evolora.errors import InputError
from evolora.models import base
from evolora.models.base import load_base
from evolora.models.export import load_adapter, save_adapter
from evolora.models.lora import lora_config, lora_layout
from evolora.models.sequence_scores import load_classifier


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def place(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_base(str(path))
    message = str(caught.value)
    assert message.startswith(f"--model {path}: ") and "\n" not in message and len(message) < 700
    return message


@pytest.fixture
def model(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("gpt2"), tmp_path / "model"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(base.AutoModelForCausalLM, "from_pretrained", read)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file(name: str, kind: str, model: Path) -> None:
    place(model / name, kind)
    assert f"{name} is a device, pipe or socket" in refusal(model)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_what_is_a_folder_or_a_link_to_itself(name: str, kind: str, model: Path) -> None:
    place(model / name, kind)
    assert "the weights were read" not in refusal(model)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_layer": 10**9}, "asks for 1000000000 layers"),
        ({"vocab_size": 10**12}, "1000000000000 tokens"),
        ({"n_embd": 10**9}, "of width 1000000000"),
        ({"n_positions": 10**12}, "weights"),
        ({"n_head": 0}, "num_attention_heads 0"),
        ({"n_head": -2}, "num_attention_heads -2"),
        ({"n_layer": -1}, "num_hidden_layers -1"),
        ({"n_layer": None}, "n_layer"),
        ({"n_embd": "32"}, "n_embd"),
        ({"vocab_size": [100]}, "vocab_size"),
        ({"activation_function": 1}, "activation_function"),
        ({"architectures": "GPT2LMHeadModel"}, "expected a list of names"),
        ({"architectures": [[]]}, "expected a list of names"),
        ({"model_type": {}}, "cannot be loaded"),
        ({"bos_token_id": {"x": 1}}, "bos_token_id"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Own"}}, "code of its own, which is not run"),
        ({"bos_token_id": "\ud800"}, "surrogate pair"),
    ],
)
def test_a_config_that_cannot_be(values: dict[str, Any], said: str, model: Path) -> None:
    edit(model / "config.json", **values)
    (model / "own.py").write_text("raise SystemExit('it was run')\n")
    assert said in refusal(model)


@pytest.mark.parametrize(
    "values", [{"n_head": 3}, {"activation_function": "none such"}, {"layer_norm_epsilon": float("nan")}]
)
def test_a_config_that_no_model_can_be_made_of(values: dict[str, Any], model: Path) -> None:
    edit(model / "config.json", **values)
    assert "cannot be loaded" in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "{", "\xff", ""])
def test_json_that_is_no_object(name: str, text: str, model: Path) -> None:
    (model / name).write_text(text, encoding="latin-1")
    assert name in refusal(model)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"model_max_length": "8"}),
        ("tokenizer_config.json", {"eos_token": True}),
        ("tokenizer.json", {"model": "x"}),
        ("tokenizer.json", {"decoder": {"type": "none such"}}),
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": [1, "x"]}),
    ],
)
def test_values_of_another_type(name: str, values: dict[str, Any], model: Path) -> None:
    edit(model / name, **values)
    assert "cannot be loaded" in refusal(model)


@pytest.mark.usefixtures("no_weights")
def test_pickled_weights_are_not_read(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled weights (pytorch_model.bin)" in refusal(model)
    with pytest.raises(InputError, match="pickled weights"):
        load_classifier("classifier", str(model), "cpu")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"wte": 3}, {"wte": "../far.safetensors"}, {"wte": "/far.safetensors"}]
)
def test_an_index_stays_in_its_folder(weight_map: Any, model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "far.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "model.safetensors.index.json" in refusal(model)


@pytest.mark.parametrize("size", [0, 7, 8, 100])
def test_weights_that_are_cut(size: int, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert refusal(model)


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn"]}


@pytest.mark.parametrize(
    "values",
    [
        {"r": "8"}, {"r": 0}, {"r": True}, {"r": 1.5}, {"r": None}, {"lora_alpha": None}, {"lora_alpha": "16"},
        {"lora_alpha": float("nan")}, {"lora_dropout": 1}, {"target_modules": 5}, {"target_modules": [5]},
        {"exclude_modules": {}}, {"rank_pattern": {"c_attn": "8"}}, {"rank_pattern": []},
        {"alpha_pattern": {"c_attn": 0}}, {"layers_to_transform": "1"}, {"layers_pattern": 1},
        {"fan_in_fan_out": "yes"}, {"use_rslora": 1}, {"base_model_name_or_path": 3}, {"peft_type": "IA3"},
        {"peft_type": 1}, {"auto_mapping": 1}, {"task_type": {}},
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_whose_values_are_of_another_type(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER | values))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_adapter(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: adapter_config.json has {next(iter(values))} ") and "\n" not in message


HARMLESS = [True, False, "gaussian", "orthogonal", "eva"]


@pytest.mark.parametrize("began", [*HARMLESS, "pissa", "pissa_niter_4", "olora", None])
def test_how_a_finished_adapter_began_says_nothing_unless_it_changed_the_base(
    began: Any, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    loaded = load_base(str(model))
    config = lora_config(loaded.model, r=3)
    layout, genome = lora_layout(loaded.model, config, seed=0)
    genome = torch.randn(genome.shape, generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    save_adapter(folder, loaded, config, layout, genome)
    edit(folder / "adapter_config.json", init_lora_weights=began)
    if began not in HARMLESS:
        with pytest.raises(InputError, match=rf"{folder}: LoraConfig init_lora_weights={began!r}"):
            load_adapter(folder)
        return
    found, state = load_adapter(folder)
    assert torch.equal(lora_layout(loaded.model, found, seed=0)[0].from_state_dict(state), genome)


def test_code_that_comes_with_a_reward_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "own",
                "architectures": ["OwnForSequenceClassification"],
                "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"},
            }
        )
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for load in (lambda: load_classifier("reward-model", str(tmp_path), "cpu"), lambda: load_base(str(tmp_path))):
        with pytest.raises(InputError, match=r"code of its own, which is (never|not) run"):
            load()
    assert not (tmp_path / "ran").exists()
