"""GPT-2's pass over whole texts in compiled functions: its values and gradients against the layers' own, by torch in
float64, and where it must stand back."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from evolora.engine.base import Completions, Scoring, differentiable_scores
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gpt2.train import Gpt2Packs
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul.choice import Products
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.eager.score import completion_log_probs
from evolora.models.base import BaseModel, load_base
from evolora.models.lora import lora_config, lora_layout

Folder = Callable[[str], Path]

PRODUCTS: list[Products] = ["torch", "compiled"]
TARGETS = {
    "as GPT-2's are": ["c_attn", "c_proj"],
    "everything": ["c_attn", "c_proj", "c_fc"],
    "one": ["attn.c_proj"],
    "before GELU": ["c_fc"],
}
PROMPTS = ["The sum of 4 and 3 is", "Yes,", "No", "Yes,"]
COMPLETIONS = [[5, 7, 9, 1], [4], [3, 3, 8, 2, 6, 1], [4, 2]]


@pytest.fixture
def base(model_folder: Folder) -> BaseModel:
    return load_base(str(model_folder("uneven gpt2")))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each pass that was made of compiled functions, whether for a gradient."""
    made: list[bool] = []
    forward = Gpt2Packs.forward

    def counted(self: Gpt2Packs, hidden: Tensor, attend: Any, kept: Any, *others: Any) -> Any:
        made.append(kept is not None)
        return forward(self, hidden, attend, kept, *others)

    monkeypatch.setattr(Gpt2Packs, "forward", counted)
    yield made


def population(
    base: BaseModel, n: int, *, targets: list[str] | None = None, rank: int = 8, **options: Any
) -> tuple[CpuEngine, Tensor]:
    config = lora_config(base.model, r=rank, target_modules=targets or TARGETS["as GPT-2's are"])
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return CpuEngine(base.model, layout, **options), genomes


def prompts_of(base: BaseModel) -> list[list[int]]:
    prompts: list[list[int]] = base.tokenizer(PROMPTS)["input_ids"]
    return prompts


def scores(
    engine: EagerEngine, genomes: Tensor, base: BaseModel, *, entropy_gradient: bool = True, **options: Any
) -> tuple[Tensor, Tensor]:
    completions = Completions.of_ids(COMPLETIONS * len(genomes), 0)
    how = Scoring(entropy_gradient=entropy_gradient, **options)
    return differentiable_scores(engine, genomes, prompts_of(base), completions, how)


def values_and_gradient(
    engine: EagerEngine, genomes: Tensor, base: BaseModel, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and the gradient of the genomes from both."""
    rows = genomes.clone().requires_grad_()
    log_probs, entropy = scores(engine, rows, base, **options)
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    (gradient,) = torch.autograd.grad((log_probs * weights - 0.3 * entropy * weights.flip(0)).sum(), rows)
    return log_probs.detach(), entropy.detach(), gradient


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 2e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance * float(other.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("individuals", "rank"), [(1, 8), (3, 8), (3, 3), (2, 11)])
def test_values_and_gradients_are_those_of_float64(
    base: BaseModel, passes: list[bool], products: Products, targets: str, individuals: int, rank: int
) -> None:
    engine, genomes = population(base, individuals, targets=TARGETS[targets], rank=rank, products=products)
    found = values_and_gradient(engine, genomes, base)
    assert passes == [True]
    exact = EagerEngine(copy.deepcopy(base.model).double(), engine.layout)
    assert_close(found, values_and_gradient(exact, genomes.double(), base))
    assert passes == [True], "float64 is the layers'"


def test_dropout_is_that_of_the_layers(base: BaseModel, passes: list[bool]) -> None:
    engine, genomes = population(base, 2, targets=TARGETS["everything"])
    seeds = np.arange(2, dtype=np.uint64)
    found = values_and_gradient(engine, genomes, base, dropout=0.4, dropout_seeds=seeds)
    other = values_and_gradient(engine, genomes, base, dropout=0.4, dropout_seeds=seeds + 4)
    assert passes == [True, True]
    assert (found[0] - other[0]).abs().max() > 1e-3
    by_layers, _ = population(base, 2, targets=TARGETS["everything"], levers=Levers(train=False))
    assert_close(found, values_and_gradient(by_layers, genomes, base, dropout=0.4, dropout_seeds=seeds))
    exact = EagerEngine(copy.deepcopy(base.model).double(), engine.layout)
    assert_close(found, values_and_gradient(exact, genomes.double(), base, dropout=0.4, dropout_seeds=seeds))
    assert len(passes) == 2


def test_a_first_pass_fills_the_cache_as_the_layers_do(base: BaseModel, passes: list[bool]) -> None:
    """Where the weights are not in panels, and one after another; see test_gpt2_read.py."""
    batch = base.tokenizer(PROMPTS * 2, return_tensors="pt", padding=True)
    seen = batch["attention_mask"].bool()

    def first_pass(levers: Levers) -> tuple[Tensor, ...]:
        engine, genomes = population(base, 2, levers=levers)
        cache = engine.kernels.make_cache(engine.layers.model, 40)
        with torch.no_grad(), engine.layers.adapted(genomes):
            logits = engine.layers.model(
                **batch, position_ids=(seen.cumsum(1) - 1).clamp(min=0), past_key_values=cache, use_cache=True
            ).logits
        states = [state[:, : seen.shape[1]][seen] for layer in cache.layers for state in (layer.keys, layer.values)]
        return logits[seen], *states

    found = first_pass(Levers(prefill=False))
    assert passes == [False]
    assert_close(found, first_pass(Levers(prefill=False, train=False)), 1e-5)
    assert passes == [False]


def test_rows_do_not_mix(base: BaseModel, passes: list[bool]) -> None:
    engine, genomes = population(base, 3)
    whole = values_and_gradient(engine, genomes, base)
    for index in range(3):
        alone = values_and_gradient(engine, genomes[index : index + 1], base)
        assert_close((alone[0],), (whole[0].unflatten(0, (3, -1))[index],), 1e-5)
    rows = genomes.clone().requires_grad_()
    log_probs, _ = scores(engine, rows, base)
    (gradient,) = torch.autograd.grad(log_probs.unflatten(0, (3, -1))[1].sum(), rows)
    assert gradient[1].abs().max() > 0
    assert torch.equal(gradient[[0, 2]], torch.zeros_like(gradient[[0, 2]]))
    assert whole[2].shape == gradient.shape
    assert all(passes)


def test_several_passes_back_where_torch_is_asked_for_them_and_changed_genomes_are_refused(base: BaseModel) -> None:
    engine, genomes = population(base, 2)
    prompts, completions = prompts_of(base), Completions.of_ids(COMPLETIONS * 2, 0)
    rows = genomes.clone().requires_grad_()
    how = Scoring(dropout=0.3, dropout_seeds=np.arange(2, dtype=np.uint64))

    def total() -> Tensor:
        with engine.layers.adapted(rows):
            batch = PromptBatch.of(prompts, pad=0, times=2, device=rows.device)
            return completion_log_probs(engine.layers, engine.kernels, batch, completions, how)[0].sum()

    loss = total()
    (first,) = torch.autograd.grad(loss, rows, retain_graph=True)
    (second,) = torch.autograd.grad(loss, rows)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, rows)
    loss = total()
    with torch.no_grad():
        rows.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def foreign_hook(model: GPT2LMHeadModel) -> None:
    model.transformer.h[0].mlp.c_proj.register_forward_hook(lambda *_: None)


def hook_before(model: GPT2LMHeadModel) -> None:
    model.transformer.h[1].attn.c_attn.register_forward_pre_hook(lambda *_: None)


def trained_weight(model: GPT2LMHeadModel) -> None:
    model.transformer.h[0].attn.c_proj.weight.requires_grad_()


def trained_norm(model: GPT2LMHeadModel) -> None:
    model.transformer.ln_f.weight.requires_grad_()


def trained_embedding(model: GPT2LMHeadModel) -> None:
    model.transformer.wte.weight.requires_grad_()


def other_activation(model: GPT2LMHeadModel) -> None:
    model.transformer.h[0].mlp.act = nn.GELU()


def watched_activation(model: GPT2LMHeadModel) -> None:
    model.transformer.h[0].mlp.act.register_forward_hook(lambda *_: None)


def many_threads(_: GPT2LMHeadModel) -> None:
    torch.set_num_threads(7)


@pytest.mark.parametrize(
    "change",
    [
        foreign_hook,
        hook_before,
        trained_weight,
        trained_norm,
        trained_embedding,
        other_activation,
        watched_activation,
        many_threads,
    ],
)
@pytest.mark.parametrize("whose", ["the model's", "the engine's"])
def test_left_to_the_layers(
    base: BaseModel, passes: list[bool], change: Callable[[GPT2LMHeadModel], None], whose: str
) -> None:
    engine, genomes = population(base, 2)
    expected = values_and_gradient(engine, genomes, base)
    assert passes == [True]
    before = torch.get_num_threads()
    try:
        if whose == "the model's":  # which an engine's copy of the tree has, too
            change(base.model)
            engine = CpuEngine(base.model, engine.layout)
        else:
            change(engine.layers.model)
        found = values_and_gradient(engine, genomes, base)
    finally:
        torch.set_num_threads(before)
    frozen = whose == "the model's" and change in (trained_weight, trained_norm, trained_embedding)
    assert passes == [True] * (2 if frozen else 1), "what the caller trains is frozen in an engine's tree"
    if change is not other_activation:
        assert_close(found, expected)


def test_another_engines_adapters_in_the_same_tree_are_left_to_the_layers(base: BaseModel, passes: list[bool]) -> None:
    engine, genomes = population(base, 2)
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=["c_attn"]), seed=0)
    second = LoraLayers(engine.layers.model, layout, layer=engine.kernels.layer)
    others = torch.randn(2, layout.genome_length, generator=torch.Generator().manual_seed(5)) * 0.1
    assert engine._head is not None  # which the model is asked for outside any call
    with second.adapted(others):
        values_and_gradient(engine, genomes, base)
    assert not passes


def test_a_base_without_adapters_takes_it_too(base: BaseModel, passes: list[bool]) -> None:
    completions = Completions.of_ids(COMPLETIONS, 0)

    def found(levers: Levers) -> tuple[Tensor, Tensor]:
        engine, _ = population(base, 1, levers=levers)
        scored = engine.score(None, prompts_of(base), completions, Scoring(gradient=True))
        return scored.log_probs, scored.entropy

    compiled = found(Levers(prefill=False))
    assert passes == [False]
    assert not compiled[0].requires_grad
    assert_close(compiled, found(Levers(prefill=False, train=False)), 1e-5)
    assert passes == [False]
