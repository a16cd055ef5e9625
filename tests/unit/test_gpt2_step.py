"""A step of GPT-2 in compiled functions: where it stands in for the model's own layers, and where it must not."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evolora import gpt2_step
from evolora.cache import RoomyCache, RoomyLayer, make_cache, unpacked
from evolora.gpt2_step import Gpt2Step
from evolora.kernels import Products, onednn_works, use_kernels
from evolora.model import BaseModel, load_base, lora_config, lora_layout
from evolora.population_model import PopulationModel
from evolora.rollout import encode, generate

Folder = Callable[[str], Path]
Hooks = Callable[[Any], None]

PRODUCTS = ["torch", *(["onednn"] if onednn_works() else [])]
PROMPTS = ["The sum of 4 and 3 is", "Yes,", "No", "The English word for 'chat' is '"]


@pytest.fixture
def base(model_folder: Folder) -> BaseModel:
    return load_base(str(model_folder("gpt2")))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of each step that was made of compiled functions."""
    made: list[int] = []
    run = Gpt2Step.run

    def counted(self: Gpt2Step, hidden: Tensor, mask: Tensor, cache: RoomyCache) -> Tensor:
        made.append(len(hidden))
        return run(self, hidden, mask, cache)

    monkeypatch.setattr(Gpt2Step, "run", counted)
    yield made


def population(base: BaseModel, n: int, targets: tuple[str, ...] = ("c_attn", "c_proj")) -> tuple[Any, Tensor]:
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=targets), seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return PopulationModel(base.model, layout, dropout=0.5), genomes


def hidden_states(base: BaseModel, prompts: list[str], ends: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """What a model writes to `prompts`, and the hidden states that it wrote from."""
    batch = encode(base.tokenizer, prompts, "cpu")
    found = generate(
        base.model, batch, max_new_tokens=8, eos_token_ids=ends, pad_token_id=0, keep_features=True, **options
    )
    assert found.features is not None
    return found.ids, found.features


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("individuals", [0, 1, 3])
def test_it_computes_what_the_layers_do(
    base: BaseModel,
    steps: list[int],
    products: Products,
    threads: int,
    individuals: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_kernels(base.model, products)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(gpt2_step, "_LEAST_A_THREAD", 1)
    prompts = PROMPTS * max(1, individuals)
    population_model, genomes = population(base, max(1, individuals))

    def run(**options: Any) -> tuple[Tensor, Tensor]:
        if not individuals:
            return hidden_states(base, prompts, [-1], **options)
        with population_model.adapted(genomes):
            return hidden_states(base, prompts, [-1], **options)

    ids, features = run()
    assert steps == [len(prompts)] * 7
    with monkeypatch.context() as patched:
        patched.setattr("evolora.gpt2_pass.gpt2_step", lambda *_: None)
        by_layers = run()
    without_cache = run(use_cache=False)
    assert steps == [len(prompts)] * 7
    for expected in (by_layers, without_cache):
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(features, expected[1], atol=2e-5, rtol=1e-4)


def test_rows_that_leave_keep_their_own_adapters(base: BaseModel, steps: list[int]) -> None:
    population_model, genomes = population(base, 3)
    with population_model.adapted(genomes):
        ids, features = hidden_states(base, PROMPTS * 3, [-1])
        ends = max(ids.unique().tolist(), key=lambda token: len({length(row, token) for row in ids.tolist()}))
        steps.clear()
        left, left_features = hidden_states(base, PROMPTS * 3, [ends])
    assert len(set(steps)) > 1
    for row in range(12):
        own = length(ids[row].tolist(), ends)
        assert torch.equal(left[row, :own], ids[row, :own])
        torch.testing.assert_close(left_features[row, :own], features[row, :own], atol=1e-5, rtol=1e-4)


def length(tokens: list[int], end: int) -> int:
    """Up to and with the first `end`."""
    return tokens.index(end) + 1 if end in tokens else len(tokens)


def shifted(*places: str) -> Hooks:
    """Add one to the outputs of these modules of the first block."""

    def hook(model: Any) -> None:
        for place in places:
            model.transformer.h[0].get_submodule(place).register_forward_hook(lambda _, __, output: output + 1)

    return hook


def looking_on(model: Any) -> None:
    model.transformer.ln_f.register_forward_pre_hook(lambda *_: None)


def other_norm(model: Any) -> None:
    own = model.transformer.h[1].ln_2
    model.transformer.h[1].ln_2 = nn.Sequential(copy.deepcopy(own))


@pytest.mark.parametrize(
    "change",
    [
        *(
            shifted(place)
            for place in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp", "mlp.c_fc", "mlp.act", "mlp.c_proj")
        ),
        looking_on,
        other_norm,
    ],
)
def test_what_else_has_a_part_keeps_it(base: BaseModel, steps: list[int], change: Hooks) -> None:
    change(base.model)
    ids, features = hidden_states(base, PROMPTS, [-1])
    assert not steps
    expected_ids, expected = hidden_states(base, PROMPTS, [-1], use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_an_adapter_before_the_activation_comes_before_it(base: BaseModel, steps: list[int]) -> None:
    population_model, genomes = population(base, 2, ("c_fc",))
    with population_model.adapted(genomes):
        ids, features = hidden_states(base, PROMPTS * 2, [-1])
        expected_ids, expected = hidden_states(base, PROMPTS * 2, [-1], use_cache=False)
    assert not steps and torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)
    hidden_states(base, PROMPTS, [-1])
    assert steps, "without an individual on it, the hook does nothing"


def test_dropout_genomes_out_of_order_and_two_populations_are_left_to_the_layers(
    base: BaseModel, steps: list[int]
) -> None:
    population_model, genomes = population(base, 2)
    with population_model.adapted(genomes, dropout_seed=1):
        hidden_states(base, PROMPTS * 2, [-1])
    assert not steps
    in_columns = genomes.t().contiguous().t()
    with population_model.adapted(in_columns):
        found = hidden_states(base, PROMPTS * 2, [-1])
    assert not steps
    with population_model.adapted(genomes):
        expected = hidden_states(base, PROMPTS * 2, [-1])
    assert steps and torch.equal(found[0], expected[0])
    steps.clear()
    other, others = population(base, 2)
    with population_model.adapted(genomes), other.adapted(others):
        both = hidden_states(base, PROMPTS * 2, [-1])
        assert not steps and not torch.allclose(both[1], expected[1], atol=1e-3)
    with other.adapted(others):
        hidden_states(base, PROMPTS * 2, [-1])
    assert steps, "only one of the two is on"


def test_a_reduced_precision_is_left_to_the_layers(base: BaseModel, steps: list[int]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        hidden_states(base, PROMPTS, [-1])
    base.model.to(torch.bfloat16)
    hidden_states(base, PROMPTS, [-1])
    assert not steps


def test_a_copy_of_the_model_steps_through_its_own_layers(base: BaseModel, steps: list[int]) -> None:
    expected = hidden_states(base, PROMPTS, [-1])
    copied = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.zero_()
    steps.clear()
    found = hidden_states(BaseModel(copied, base.tokenizer, base.path), PROMPTS, [-1])
    assert steps and torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@torch.no_grad()
def test_rows_of_a_cache_from_packs(base: BaseModel, dtype: torch.dtype) -> None:
    packs, width, rows, length = 3, 7, 5, 4
    packed = make_cache(base.model, width + 2)
    index = torch.randint(packs * width, (rows, length), generator=torch.Generator().manual_seed(0))
    states = torch.arange(2 * packs * 2 * width * 4).view(2, packs, 2, width, 4).to(dtype)
    for layer in packed.layers:
        layer.update(states[0], states[1])
    found = unpacked(packed, index, capacity=9)
    assert isinstance(found, RoomyCache) and found.get_seq_length() == length
    for layer in found.layers:
        assert isinstance(layer, RoomyLayer) and layer.is_initialized and layer.dtype == dtype
        for held, source in ((layer.keys, states[0]), (layer.values, states[1])):
            flat = source.transpose(1, 2).flatten(0, 1)
            assert held.shape == (rows, 9, 2, 4) and torch.equal(held[:, :length], flat[index])
