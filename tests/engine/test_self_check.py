"""The check before a run: right architectures pass, planted faults are refused and named."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import random_model
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine import self_check
from evolora.engine.choose import choose_engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.self_check import Difference, check_engine, checked
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout

Check = Callable[..., Difference]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_base("tiny-gpt2").tokenizer


@pytest.fixture(scope="module")
def check(tokenizer: PreTrainedTokenizerBase) -> Check:
    def run(model: PreTrainedModel, make: Any = None, **lora: Any) -> Difference:
        config = lora_config(model, **lora)
        layout, founder = lora_layout(model, config, seed=0)
        engine = choose_engine(model, layout).engine if make is None else make(model, layout)
        return check_engine(engine, model, config, founder, Text.of(model, tokenizer), name="it")

    return run


@pytest.mark.parametrize(
    "architecture",
    [
        "gpt2", "gpt1", "llama", "mistral", "gemma3", "gemma3_vision", "opt", "mpt", "mixtral", "qwen2_moe", "lfm2",
        "jamba", "mamba", "mamba2", "gpt_neox_japanese", "afmoe",
    ],
)  # fmt: skip
def test_right_ones_pass(architecture: str, check: Check) -> None:
    targets = None if architecture in ("mixtral", "mamba", "mamba2", "afmoe") else "all-linear"
    assert check(random_model(architecture), target_modules=targets).largest < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_by_its_own_rounding(dtype: torch.dtype, check: Check) -> None:
    found = check(random_model("llama").to(dtype))
    assert 1e-4 < found.largest < found.tolerance < 0.5


@pytest.mark.parametrize(
    ("architecture", "layer"), [("recurrent_gemma", "RecurrentGemmaRecurrentBlock"), ("rwkv", "RwkvSelfAttention")]
)
def test_state_that_runs_over_padding_is_refused(architecture: str, layer: str, check: Check) -> None:
    with pytest.raises(InputError, match=rf"in a batch than of the same prompt alone .* the first layer .* {layer}"):
        check(random_model(architecture))


def test_what_breaks_is_refused_in_a_sentence(check: Check) -> None:
    with pytest.raises(InputError, match=r"--model it: MiniMaxForCausalLM cannot be run \(ValueError: MiniMax uses"):
        check(random_model("minimax"))


class _Forgetful(EagerEngine):
    """The genomes are lost."""

    def generate(self, genomes: Tensor | None, *more: Any, **how: Any) -> Any:
        return super().generate(None if genomes is None else torch.zeros_like(genomes), *more, **how)

    def score(self, genomes: Tensor | None, *more: Any, **how: Any) -> Any:
        return super().score(None if genomes is None else torch.zeros_like(genomes), *more, **how)


class _Crossed(EagerEngine):
    """Each genome's rows get the other's."""

    def score(self, genomes: Tensor | None, *more: Any, **how: Any) -> Any:
        return super().score(None if genomes is None else genomes.flip(0), *more, **how)


class _Stale(EagerEngine):
    """Generates with the genomes of the call before."""

    before: Tensor | None = None

    def generate(self, genomes: Tensor | None, *more: Any, **how: Any) -> Any:
        found = super().generate(genomes if self.before is None else self.before, *more, **how)
        self.before = None if genomes is None else genomes.flip(0)
        return found


class _Mixed(EagerEngine):
    """When rows leave, two of those that stay are mixed up."""

    def generate(self, genomes: Any, prompts: Sequence[Any], how: Any, **more: Any) -> Any:
        found = super().generate(genomes, prompts, how, **more)
        return found if len(how.ends) == 1 else found.select(torch.tensor([0, 2, 1, 3]))


def _twice(model: PreTrainedModel, layout: Any) -> EagerEngine:
    """The adapter's scaling is applied twice."""
    return EagerEngine(model, replace(layout, modules=tuple(replace(m, scaling=2 * m.scaling) for m in layout.modules)))


def _one_layer_less(model: PreTrainedModel, layout: Any) -> EagerEngine:
    """One of the adapted layers is not."""
    last = replace(layout.modules[-1], scaling=0.0)
    return EagerEngine(model, replace(layout, modules=(*layout.modules[:-1], last)))


@pytest.mark.parametrize("fault", [_Forgetful, _Crossed, _Stale, _Mixed, _twice, _one_layer_less])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_planted_faults_are_refused(architecture: str, fault: Any, check: Check) -> None:
    model = random_model(architecture)
    assert not check(model, EagerEngine).too_large
    with pytest.raises(InputError, match="log-probabilities differ by"):
        check(model, fault)


def test_layers_that_change_nothing_are_refused(check: Check) -> None:
    model = random_model("gpt2")
    for block in model.transformer.h:
        block.mlp.c_proj.weight.zero_()
    with pytest.raises(InputError, match=r"--target-modules: an adapter there changes nothing"):
        check(model, target_modules=["c_fc"])


def test_a_check_is_made_once_for_a_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    monkeypatch.setenv("EVOLORA_CACHE", str(tmp_path))

    def run(architecture: str, **lora: Any) -> Difference | None:
        model = random_model(architecture)
        config: LoraConfig = lora_config(model, **lora)
        layout, founder = lora_layout(model, config, seed=0)
        engine, text = EagerEngine(model, layout), Text.of(model, tokenizer)
        return checked(engine, model, config, lambda: check_engine(engine, model, config, founder, text, name="it"))

    assert run("llama") is not None and run("llama") is None
    assert run("llama", r=4) is not None and run("qwen2") is not None
    for _ in range(2):  # what is wrong is not remembered as right
        with pytest.raises(InputError):
            run("rwkv")
    monkeypatch.setattr(self_check.torch, "__version__", "another")
    assert run("llama") is not None


def test_a_model_that_another_program_stands_in_the_way_of_is_not_to_blame(tokenizer: PreTrainedTokenizerBase) -> None:
    model = random_model("llama")
    config = lora_config(model)
    layout, founder = lora_layout(model, config, seed=0)
    engine = choose_engine(model, layout).engine

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("module 'triton.language' has no attribute 'float32'")

    model.forward = broken
    for writes, said in ((None, "--model it: .* expected another model"), ("vllm", "--engine vllm: cannot be had: .*")):
        with pytest.raises(InputError, match=said) as refused:
            check_engine(engine, model, config, founder, Text.of(model, tokenizer), name="it", writes=writes)
        assert ("another model" in str(refused.value)) == (writes is None) and "triton" in str(refused.value)
