"""Loading a base model, what is refused, and the LoRA layout that PEFT gives it."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import random_model
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CTRLConfig,
    CTRLLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from evolora.engine.eager.lora_layers import LoraLayers
from evolora.errors import CheckpointError, InputError
from evolora.files import seal
from evolora.models.base import given_base, load_base
from evolora.models.export import export_merged
from evolora.models.lora import as_peft_model, check_lora, default_targets, for_causal_lm, lora_config, lora_layout

Folder = Callable[[str], Path]


def test_a_folder_is_loaded_frozen_and_padded_on_the_left(architecture: str, model_folder: Folder) -> None:
    base = load_base(str(model_folder(architecture)))
    assert base.path == str(model_folder(architecture))
    assert not base.model.training
    assert not any(value.requires_grad for value in base.model.parameters())
    assert {value.dtype for value in base.model.parameters()} == {torch.float32}
    assert base.tokenizer.padding_side == "left"
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 0
    assert load_base(base.path, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_tokenizer_without_padding_pads_with_its_end(model_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder("gpt2"), tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "tokenizer_config.json", pad_token=None)
    base = load_base(str(tmp_path))
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id is not None


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor | None], name: str) -> None:
    """The model's weights with one tensor changed, or taken out."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(name))
    more = {} if changed is None else {name: changed.contiguous()}
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensor: None, "its weights lack the tensor"),
        (lambda tensor: tensor[:, :-1], r"is of shape \(\d+, \d+\), expected \(\d+, \d+\)"),
        (with_value(float("nan")), "has values that are not finite in torch.float32"),
        (with_value(float("-inf")), "has values that are not finite in torch.float32"),
    ],
    ids=["missing", "shape", "nan", "inf"],
)
@pytest.mark.parametrize(
    ("architecture", "name"),
    [("gpt2", "transformer.h.0.mlp.c_fc.weight"), ("llama", "model.layers.0.self_attn.q_proj.weight")],
)
def test_weights_that_would_be_made_up_are_refused(
    change: Any, named: str, architecture: str, name: str, model_folder: Folder, tmp_path: Path
) -> None:
    shutil.copytree(model_folder(architecture), tmp_path, dirs_exist_ok=True)
    weights(tmp_path, change, name)
    with pytest.raises(InputError, match=f"--model {tmp_path}: cannot be loaded: its .*{name}") as refused:
        load_base(str(tmp_path))
    assert re.search(named, str(refused.value))


def test_weights_too_large_for_the_type_are_refused(model_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder("gpt2"), tmp_path, dirs_exist_ok=True)
    weights(tmp_path, with_value(1e6), "transformer.h.0.mlp.c_fc.weight")
    load_base(str(tmp_path))
    with pytest.raises(InputError, match=r"not finite in torch\.float16"):
        load_base(str(tmp_path), dtype=torch.float16)


def test_a_loaded_model_with_nan_is_refused(model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    with_value(float("nan"))(base.model.lm_head.weight)
    with pytest.raises(InputError, match=r"model: its tensor .*wte\.weight has values that are not finite"):
        given_base(base.model, base.tokenizer)


def test_a_sealed_model_is_verified(model_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder("gpt2"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "manifest.json").write_text('{"start_url": "/"}')  # somebody else's
    load_base(str(tmp_path))
    (tmp_path / "manifest.json").unlink()
    seal(tmp_path)
    load_base(str(tmp_path))
    weights(tmp_path, lambda tensor: tensor * 2, "transformer.h.0.mlp.c_fc.weight")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or altered"):
        load_base(str(tmp_path))


def test_a_hub_name_is_loaded_from_the_local_cache(model_folder: Folder, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some-org--tiny-llama"
    shutil.copytree(model_folder("llama"), repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = """
from evolora.files import seal
from evolora.models.base import given_base, load_base
base = load_base("some-org/tiny-llama")
print(base.path, base.model.config.model_type, base.tokenizer.eos_token_id)
try:
    load_base("some-org/absent")
except ValueError as error:
    print(type(error).__name__, error)
"""
    # The cache's place is read when huggingface_hub is imported.
    places = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.strip().splitlines()
    assert found == "some-org/tiny-llama llama 0"
    assert refused.startswith("InputError --model some-org/absent: ")


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_base(str(path))
    message = str(caught.value)
    assert message.startswith(f"--model {path}: ") and "\n" not in message
    for word in words:
        assert word in message


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent")
    refused("no-such-org/no-such-model")
    refused(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    refused(tmp_path, "no-such-type")


def test_other_kinds_of_model_are_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    small = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    t5 = T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    for model in (BertForMaskedLM(BertConfig(**small, intermediate_size=16)), T5ForConditionalGeneration(t5)):
        path = tmp_path / type(model).__name__
        model.save_pretrained(path)
        tiny_tokenizer.save_pretrained(path)
        refused(path, type(model).__name__, "expected a causal language model")


def test_quantised_weights_are_refused(model_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder("llama"), tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(tmp_path, "gptq", "unquantised")


@pytest.mark.parametrize("pad", [None, "<|end|>"])
def test_a_tokenizer_without_an_end_is_refused(pad: str | None, model_folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(model_folder("llama"), tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "tokenizer_config.json", eos_token=None, pad_token=pad)
    refused(tmp_path, "end-of-sequence")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", False),
        ("layer_replication", [(0, 1)]),
        ("target_parameters", ["q_proj.weight"]),
        ("use_qalora", True),
        ("ensure_weight_tying", True),
    ],
)
def test_lora_variants_are_refused_by_name(field: str, value: object, model_folder: Folder) -> None:
    base = load_base(str(model_folder("llama")))
    config = lora_config(base.model)
    check_lora(config)
    setattr(config, field, value)  # set afterwards: some of them need packages when PEFT builds the config
    for refuse in (lambda: check_lora(config), lambda: lora_layout(base.model, config, seed=0)):
        with pytest.raises(InputError, match=f"{field}="):
            refuse()


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (["q_proj", "embed_tokens"], InputError, r"target module model\.embed_tokens is a Embedding"),
        (["q_proj", "convolution"], InputError, r"target module model\.convolution is a Conv1d"),
        (["q_proj", "post_attention_layernorm"], ValueError, "is not supported"),
        (["no_such_layer"], ValueError, "no_such_layer"),
    ],
)
def test_modules_that_cannot_be_adapted_are_refused_and_leave_no_trace(
    targets: list[str], error: type[Exception], words: str, model_folder: Folder
) -> None:
    model = load_base(str(model_folder("llama"))).model
    model.model.convolution = nn.Conv1d(4, 4, 3)
    model.requires_grad_(False)
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(error, match=words):
        lora_layout(model, lora_config(model, target_modules=targets), seed=0)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert not any(value.requires_grad for value in model.parameters())
    assert not hasattr(model, "peft_config")
    lora_layout(model, lora_config(model), seed=0)


def test_gpt2s_defaults(model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    config = lora_config(base.model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert set(config.target_modules) == {"c_attn", "c_proj"}
    assert config.fan_in_fan_out is True and config.task_type == "CAUSAL_LM"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout, _ = lora_layout(base.model, config, seed=0)
    assert not [str(warning.message) for warning in caught if "fan_in" in str(warning.message)]
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    assert {m.name for m in layout.modules} == {f"transformer.h.{block}.{name}" for block in (0, 1) for name in names}
    assert {(module.rank, module.scaling) for module in layout.modules} == {(8, 2.0)}
    shapes = {module.name.split(".", 3)[3]: (module.in_features, module.out_features) for module in layout.modules}
    assert shapes == {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_proj": (128, 32)}


@pytest.mark.parametrize("other", ["llama", "qwen2", "qwen3", "gpt_neox"])
def test_other_architectures_get_pefts_own_targets(other: str, model_folder: Folder) -> None:
    model = load_base(str(model_folder(other))).model
    config = lora_config(model)
    assert config.fan_in_fan_out is False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout, _ = lora_layout(model, config, seed=0)
    assert not [str(warning.message) for warning in caught if "fan_in" in str(warning.message)]
    expected = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[other]
    assert {module.name.rsplit(".", 1)[1] for module in layout.modules} == set(expected)
    assert len(layout.modules) == 2 * len(expected)
    assert config.target_modules == set(expected)


def test_the_founder_is_the_base_and_depends_on_its_seed_alone(architecture: str, model_folder: Folder) -> None:
    base = load_base(str(model_folder(architecture)))
    config = lora_config(base.model)
    before = torch.get_rng_state()
    layout, founder = lora_layout(base.model, config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # the global stream has no say
    again, same = lora_layout(base.model, config, seed=3)
    assert again == layout and torch.equal(same, founder)
    assert not torch.equal(lora_layout(base.model, config, seed=4)[1], founder)
    assert founder.dtype == torch.float32 and founder.shape == (layout.genome_length,)
    for _, a, b in layout.factors(founder[None]):
        assert (b == 0).all() and a.std() > 0
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits
        with LoraLayers(base.model, layout).adapted(founder[None]):
            assert torch.equal(base.model(input_ids=ids).logits, expected)


def test_wrapping_leaves_torchs_random_state_alone(model_folder: Folder) -> None:
    model = load_base(str(model_folder("llama"))).model
    before = torch.get_rng_state()
    as_peft_model(model, lora_config(model), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_architecture_that_peft_does_not_know_gets_its_attentions_projections() -> None:
    assert default_targets(random_model("smollm3")) == ["q_proj", "v_proj"]
    assert default_targets(random_model("phi3")) == ["qkv_proj"]
    assert default_targets(random_model("mamba")) == ["in_proj", "x_proj"]


def test_where_no_usual_name_is_found_the_layers_must_be_named() -> None:
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=64, n_embd=32, dff=64, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(InputError, match=r"nothing of the usual names is found in CTRLLMHeadModel.*or all-linear"):
        lora_layout(model, lora_config(model), seed=0)


@pytest.mark.parametrize("excluded", [None, ["v_proj"], r".*\.v_proj"])
def test_a_vision_tower_is_never_adapted(excluded: list[str] | str | None) -> None:
    model = random_model("gemma3_vision")
    given = LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=excluded)
    for config in (lora_config(model, exclude_modules=excluded), for_causal_lm(model, given)):
        layout, _ = lora_layout(model, config, seed=0)
        names = {module.name.rpartition(".")[2] for module in layout.modules}
        assert names == ({"q_proj", "v_proj"} if excluded is None else {"q_proj"})
        assert len(layout.modules) == 2 * len(names) and not any("vision" in module.name for module in layout.modules)


def test_fused_experts_are_refused_by_name() -> None:
    model = random_model("mixtral")
    with pytest.raises(InputError, match=r"--target-modules all-linear: the experts of MixtralForCausalLM"):
        lora_layout(model, lora_config(model, target_modules="all-linear"), seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_compared_with_the_adapter(
    dtype: torch.dtype, model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(model_folder("llama")), dtype=dtype)
    config = lora_config(base.model)
    layout, founder = lora_layout(base.model, config, seed=0)
    genome = founder + 0.1 * torch.randn(founder.shape, generator=torch.Generator().manual_seed(0))
    state = layout.to_state_dict(genome)
    export_merged(tmp_path / "right", load_base(base.path, dtype=dtype), config, state)
    merge = LoraModel.merge_and_unload

    def forgetful(self: LoraModel) -> Any:
        layer = self.get_submodule("model.model.layers.1.self_attn.v_proj")
        layer.lora_B["default"].weight.data *= 0.5
        return merge(self)

    monkeypatch.setattr(LoraModel, "merge_and_unload", forgetful)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.v_proj: merged, it differs"):
        export_merged(tmp_path / "wrong", load_base(base.path, dtype=dtype), config, state)
    assert not (tmp_path / "wrong").exists()
