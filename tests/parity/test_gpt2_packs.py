"""GPT-2's pass over whole texts in compiled functions: its values and gradients against the layers' own, by torch in
float64, and where it must stand back."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evolora.engine.cpu.gpt2.train import Gpt2Packs
from evolora.engine.cpu.install import Products, use_kernels
from evolora.engine.eager.generate import Completions, PromptBatch, completion_log_probs, encode
from evolora.engine.eager.kv_cache import make_cache
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.models.base import BaseModel, load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners.imitation import padded

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
    base: BaseModel, n: int, *, targets: list[str] | None = None, rank: int = 8, dropout: float = 0.0
) -> tuple[PopulationModel, Tensor]:
    config = lora_config(base.model, r=rank, target_modules=targets or TARGETS["as GPT-2's are"])
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return PopulationModel(base.model, layout, dropout=dropout), genomes


def texts(base: BaseModel, n: int) -> tuple[PromptBatch, Completions]:
    return encode(base.tokenizer, PROMPTS, "cpu").repeat(n), padded(COMPLETIONS * n, 0)


def values_and_gradient(
    population_model: PopulationModel, genomes: Tensor, base: BaseModel, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and the gradient of the genomes from both."""
    rows = genomes.clone().requires_grad_()
    with population_model.adapted(rows, **options):
        log_probs, entropy = completion_log_probs(population_model.model, *texts(base, len(genomes)))
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
    double = copy.deepcopy(base.model).double()
    use_kernels(base.model, products)
    population_model, genomes = population(base, individuals, targets=TARGETS[targets], rank=rank)
    found = values_and_gradient(population_model, genomes, base)
    assert passes == [True]
    exact = PopulationModel(double, population_model.layout)
    assert_close(found, values_and_gradient(exact, genomes.double(), base))
    assert passes == [True], "float64 is the layers'"


def test_dropout_is_that_of_the_layers(base: BaseModel, passes: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    population_model, genomes = population(base, 2, targets=TARGETS["everything"], dropout=0.4)
    found = values_and_gradient(population_model, genomes, base, dropout_seed=3)
    other = values_and_gradient(population_model, genomes, base, dropout_seed=4)
    assert passes == [True, True]
    assert (found[0] - other[0]).abs().max() > 1e-3
    monkeypatch.setattr(Gpt2Packs, "of", lambda *_, **__: None)
    assert_close(found, values_and_gradient(population_model, genomes, base, dropout_seed=3))
    assert len(passes) == 2


def test_a_first_pass_fills_the_cache_as_the_layers_do(
    base: BaseModel, passes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the weights are not in panels, and one after another; see test_gpt2_read.py."""
    monkeypatch.setattr("evolora.engine.cpu.gpt2.forward.read_packs", lambda *_: None)
    population_model, genomes = population(base, 2)
    batch = encode(base.tokenizer, PROMPTS, "cpu").repeat(2)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)

    def first_pass() -> list[Tensor]:
        cache = make_cache(base.model, 40)
        with torch.no_grad(), population_model.adapted(genomes):
            logits = base.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
        seen = batch.mask.bool()
        states = [state[:, : seen.shape[1]][seen] for layer in cache.layers for state in (layer.keys, layer.values)]
        return [logits[seen], *states]

    found = first_pass()
    assert passes == [False]
    monkeypatch.setattr(Gpt2Packs, "of", lambda *_, **__: None)
    assert_close(tuple(found), tuple(first_pass()), 1e-5)
    assert passes == [False]


def test_rows_do_not_mix(base: BaseModel, passes: list[bool]) -> None:
    population_model, genomes = population(base, 3, dropout=0.0)
    together = values_and_gradient(population_model, genomes, base)[2]
    for index in range(3):
        alone = values_and_gradient(population_model, genomes[index : index + 1], base)
        whole = values_and_gradient(population_model, genomes, base)
        assert_close((alone[0],), (whole[0].unflatten(0, (3, -1))[index],), 1e-5)
    rows = genomes.clone().requires_grad_()
    with population_model.adapted(rows):
        log_probs, _ = completion_log_probs(base.model, *texts(base, 3))
    (gradient,) = torch.autograd.grad(log_probs.unflatten(0, (3, -1))[1].sum(), rows)
    assert gradient[1].abs().max() > 0
    assert torch.equal(gradient[[0, 2]], torch.zeros_like(gradient[[0, 2]]))
    assert together.shape == gradient.shape
    assert all(passes)


def test_several_passes_back_where_torch_is_asked_for_them_and_changed_genomes_are_refused(base: BaseModel) -> None:
    population_model, genomes = population(base, 2, dropout=0.3)
    rows = genomes.clone().requires_grad_()

    def total() -> Tensor:
        with population_model.adapted(rows, dropout_seed=1):
            return completion_log_probs(base.model, *texts(base, 2))[0].sum()

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


def foreign_hook(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.h[0].mlp.c_proj.register_forward_hook(lambda *_: None)


def hook_before(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.h[1].attn.c_attn.register_forward_pre_hook(lambda *_: None)


def trained_weight(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.h[0].attn.c_proj.weight.requires_grad_()


def trained_norm(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.ln_f.weight.requires_grad_()


def trained_embedding(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.wte.weight.requires_grad_()


def other_activation(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.h[0].mlp.act = torch.nn.GELU()


def watched_activation(base: BaseModel, _: PopulationModel) -> None:
    base.model.transformer.h[0].mlp.act.register_forward_hook(lambda *_: None)


def many_threads(_: BaseModel, __: PopulationModel) -> None:
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
def test_left_to_the_layers(
    base: BaseModel, passes: list[bool], change: Callable[[BaseModel, PopulationModel], None]
) -> None:
    population_model, genomes = population(base, 2)
    expected = values_and_gradient(population_model, genomes, base)
    assert passes == [True]
    before = torch.get_num_threads()
    try:
        change(base, population_model)
        found = values_and_gradient(population_model, genomes, base)
    finally:
        torch.set_num_threads(before)
    assert passes == [True]
    if change is not other_activation:
        assert_close(found, expected)


def test_two_populations_are_left_to_the_layers(base: BaseModel, passes: list[bool]) -> None:
    first, genomes = population(base, 2)
    second, _ = population(base, 2, targets=["c_attn"])
    others = torch.randn(2, second.layout.genome_length, generator=torch.Generator().manual_seed(5)) * 0.1
    with second.adapted(others):
        values_and_gradient(first, genomes, base)
    assert not passes


def test_a_base_without_adapters_takes_it_too(
    base: BaseModel, passes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = completion_log_probs(base.model, *texts(base, 1))
    assert passes == [False]
    assert not found[0].requires_grad
    monkeypatch.setattr(Gpt2Packs, "of", lambda *_, **__: None)
    assert_close(found, completion_log_probs(base.model, *texts(base, 1)), 1e-5)
