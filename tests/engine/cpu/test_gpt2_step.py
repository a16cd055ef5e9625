"""A step of GPT-2 in compiled functions: where it stands in for the model's own layers, and where it must not."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Decoding
from evolora.engine.cpu import install
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gpt2 import decode as gpt2_step
from evolora.engine.cpu.gpt2.decode import Gpt2Step
from evolora.engine.cpu.kv_cache import KernelCache, KernelLayer
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul import frozen_linear as frozen_product
from evolora.engine.cpu.matmul.choice import Products
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.engine.eager.kernels import Steps
from evolora.engine.eager.kv_cache import RoomyCache, RoomyLayer, make_cache
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.models.base import BaseModel, load_base
from evolora.models.lora import lora_config, lora_layout

Folder = Callable[[str], Path]
Hooks = Callable[[Any], None]

PRODUCTS: list[Products] = ["torch", "compiled"]
# Threads, and the rows that one has at least where it takes them through a whole layer.
SHARES = {"one thread": (1, 8), "threads of rows": (2, 1), "threads of products": (2, 1000)}
PROMPTS = ["The sum of 4 and 3 is", "Yes,", "No", "The English word for 'chat' is '"]


@pytest.fixture(params=PRODUCTS)
def products(request: pytest.FixtureRequest) -> Products:
    chosen: Products = request.param
    return chosen


@pytest.fixture
def base(model_folder: Folder) -> BaseModel:
    return load_base(str(model_folder("uneven gpt2")))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of each step that was made of compiled functions."""
    made: list[int] = []
    run, run_steps = Gpt2Step.run, Gpt2Step.run_steps

    def counted(self: Gpt2Step, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made.append(len(tokens))
        return run(self, tokens, positions, mask)

    def all_counted(self: Gpt2Step, tokens: Tensor, *others: Any) -> Steps:
        found = run_steps(self, tokens, *others)
        made.extend([len(tokens)] * found.tokens.shape[1])
        return found

    monkeypatch.setattr(Gpt2Step, "run", counted)
    monkeypatch.setattr(Gpt2Step, "run_steps", all_counted)
    yield made


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """How the layers of those steps were made: whole or by product."""
    ways: set[str] = set()
    for place, name, way in ((gpt2_step, "steps_rows", "whole"), (Gpt2Step, "_by_product", "by_product")):
        own = getattr(place, name)

        def noted(*arguments: Any, way: str = way, own: Any = own) -> None:
            ways.add(way)
            own(*arguments)

        monkeypatch.setattr(place, name, noted)
    return ways


def share(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    threads, least_rows = SHARES[name]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(gpt2_step, "_LEAST_ROWS", least_rows)
    for module in (gpt2_step, frozen_product):
        monkeypatch.setattr(module, "_LEAST_A_THREAD", 1)


def population(base: BaseModel, n: int, targets: list[str] | None = None, **options: Any) -> tuple[CpuEngine, Tensor]:
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=targets or ["c_attn", "c_proj"]), seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return CpuEngine(base.model, layout, **{"products": "compiled", **options}), genomes


def encode(base: BaseModel, prompts: list[str] = PROMPTS) -> list[list[int]]:
    ids: list[list[int]] = base.tokenizer(prompts)["input_ids"]
    return ids


def write(
    engine: EagerEngine,
    genomes: Tensor | None,
    prompts: list[list[int]],
    *,
    use_cache: bool = True,
    **options: Any,
) -> Completions:
    """What an engine writes to `prompts`, each of them by each of `genomes`."""
    how = Decoding(**{"max_new_tokens": 8, "ends": [-1], "pad": 0, "features": True, **options})
    if use_cache:
        return engine.generate(genomes, prompts, how)
    times = 1 if genomes is None else len(genomes)
    with engine.layers.adapted(genomes):
        batch = PromptBatch.of(prompts, pad=0, times=times, device=engine.device)
        return generate(engine.layers, engine.kernels, batch, how, use_cache=use_cache)


def hidden_states(
    engine: EagerEngine, genomes: Tensor | None, prompts: list[list[int]], **options: Any
) -> tuple[Tensor, Tensor]:
    """What an engine writes, and the hidden states that it wrote from."""
    found = write(engine, genomes, prompts, **options)
    assert found.features is not None
    return found.ids, found.features


@pytest.mark.parametrize("shared", SHARES)
@pytest.mark.parametrize("individuals", [0, 1, 3])
def test_it_computes_what_the_layers_do(
    base: BaseModel,
    steps: list[int],
    layers: set[str],
    products: Products,
    shared: str,
    individuals: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share(monkeypatch, shared)
    prompts = encode(base)
    engine, genomes = population(base, max(1, individuals), products=products)
    given = genomes if individuals else None
    rows = len(prompts) * max(1, individuals)
    ids, features = hidden_states(engine, given, prompts)
    assert steps == [rows] * 7
    assert layers == {"by_product" if products == "torch" or shared == "threads of products" else "whole"}
    switched_off, _ = population(base, 1, products=products, levers=Levers(step=False))
    by_layers = hidden_states(switched_off, given, prompts)
    without_cache = hidden_states(engine, given, prompts, use_cache=False)
    assert steps == [rows] * 7
    for expected in (by_layers, without_cache):
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(features, expected[1], atol=2e-5, rtol=1e-4)


def test_each_product_and_whole_layers_write_the_same_in_any_number_of_threads(
    base: BaseModel, layers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, genomes = population(base, 3)
    found = {}
    for name in SHARES:
        share(monkeypatch, name)
        found[name] = hidden_states(engine, genomes, encode(base))
    assert layers == {"whole", "by_product"}
    alone = found["one thread"]
    for ids, features in found.values():
        assert torch.equal(ids, alone[0]) and torch.equal(features, alone[1])


def test_whole_layers_can_be_switched_off(base: BaseModel, layers: set[str]) -> None:
    expected = hidden_states(*population(base, 3), encode(base))
    assert layers == {"whole"}
    layers.clear()
    found = hidden_states(*population(base, 3, levers=Levers(whole_layers=False)), encode(base))
    assert layers == {"by_product"}
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "way"), [(15, "by_product"), (16, "whole")])
def test_threads_take_rows_through_whole_layers_where_each_has_some(
    base: BaseModel, layers: set[str], rows: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    engine, _ = population(base, 1)
    hidden_states(engine, None, encode(base, (PROMPTS * 4)[:rows]))
    assert layers == {way}


def test_a_thread_touches_its_own_rows_alone(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = population(base, 1)
    checked: list[int] = []

    def in_parts(function: Any, arguments: Any, rows: int, threads: int) -> None:
        layers, model, state, *_ = arguments
        room, results = [layers[0][9][i] for i in (0, 1, 4, 5, 7)], [*state[3:], model[5][0]]
        arrays = [array[0] if index in (0, 1, 3, 4) else array for index, array in enumerate(room)] + results
        for array in (*arrays[:5], results[2]):
            array.fill(1)
        for first, last in ((2, 3), (0, 2), (3, rows)):
            before = [array.copy() for array in arrays]
            function(*arguments, first, last)
            for array, was in zip(arrays, before, strict=True):
                others = [row for row in range(rows) if not first <= row < last]
                np.testing.assert_array_equal(array[others], was[others])
                assert (array[first:last] != was[first:last]).any()
            checked.append(last - first)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(gpt2_step, "_LEAST_ROWS", 1)
    expected = hidden_states(engine, None, encode(base))
    monkeypatch.setattr(gpt2_step, "run_rows", in_parts)
    found = hidden_states(engine, None, encode(base))
    assert len(checked) == 3 * 7
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def as_large(monkeypatch: pytest.MonkeyPatch, least_products: int) -> None:
    """Models made from now on are as large ones, whose weights are in panels after so many products."""
    monkeypatch.setattr(install, "is_small", lambda _: False)
    monkeypatch.setattr(frozen_product, "_LEAST_PRODUCTS", least_products)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_several_steps_at_a_time_write_what_single_ones_do(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str, sampled: bool
) -> None:
    if kind == "large":
        as_large(monkeypatch, 3)
    engine, genomes = population(base, 3)
    step_by_step, _ = population(base, 3, levers=Levers(multi_step=False))
    options: dict[str, Any] = {"temperature": 1.4, "max_new_tokens": 12}
    if sampled:
        options["seeds"] = np.arange(12, dtype=np.uint64)
    stretches: list[int] = []
    run_steps = Gpt2Step.run_steps

    def noted(self: Gpt2Step, *arguments: Any) -> Steps:
        found = run_steps(self, *arguments)
        stretches.append(found.tokens.shape[1])
        return found

    monkeypatch.setattr(Gpt2Step, "run_steps", noted)
    whole = write(engine, genomes, encode(base), **options)
    ends = whole.ids.unique().tolist()[::7]
    drafts = [row[: 3 * (index % 3)] for index, row in enumerate(whole.rows())]
    for chosen in ({"ends": [-1]}, {"ends": ends}, {"ends": [-1], "drafts": drafts}):
        stretches.clear()
        found = write(engine, genomes, encode(base), **options, **chosen)
        assert max(stretches) > 2 and (chosen["ends"] == [-1] or len(stretches) > 1), "rows left"
        stretches.clear()
        expected = write(step_by_step, genomes, encode(base), **options, **chosen)
        assert not stretches
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
        for name in ("log_probs", "features"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one[found.mask], other[found.mask]), name


@pytest.mark.parametrize("multi_step", [True, False])
def test_a_text_longer_than_the_model_is_an_error_at_its_end(base: BaseModel, multi_step: bool) -> None:
    engine, _ = population(base, 1, levers=Levers(multi_step=multi_step))
    prompts = encode(base)
    room = base.model.config.n_positions - max(map(len, prompts))

    def further(more: int, ends: list[int]) -> Completions:
        return write(engine, None, prompts, max_new_tokens=room + more, ends=ends)

    # The last token of a completion is never read.
    full = further(1, [-1])
    assert full.mask.all()
    with pytest.raises(IndexError, match=f"position {base.model.config.n_positions} in a model"):
        further(2, [-1])
    ends = full.ids[:, -2].unique().tolist()
    assert torch.equal(further(9, ends).ids[:, 0], full.ids[:, 0]), "who ends in time may have had more room"


def test_one_layer_without_panels_goes_by_product(
    base: BaseModel, products: Products, steps: list[int], layers: set[str]
) -> None:
    engine, _ = population(base, 1, products=products)
    own = vars(engine.layers.model.transformer.h[1].mlp.c_proj)
    own.pop("forward", None)
    ids, features = hidden_states(engine, None, encode(base))
    assert steps and layers == {"by_product"}
    expected_ids, expected = hidden_states(engine, None, encode(base), use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_a_large_models_layers_are_whole_from_the_step_that_has_their_panels(
    base: BaseModel, layers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_large(monkeypatch, 4)
    engine, _ = population(base, 1)
    first = hidden_states(engine, None, encode(base))
    assert layers == {"whole", "by_product"}
    layers.clear()
    second = hidden_states(engine, None, encode(base))
    assert layers == {"whole"}
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_a_weight_that_changes_between_batches_counts(base: BaseModel, products: Products, steps: list[int]) -> None:
    engine, _ = population(base, 1, products=products)
    before, _ = hidden_states(engine, None, encode(base))
    for block in base.model.transformer.h:  # whose weights the engine shares
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.data += 0.1 * layer.weight.data.flip(0)
    steps.clear()
    ids, features = hidden_states(engine, None, encode(base))
    assert steps and not torch.equal(ids, before)
    by_torch, _ = population(base, 1, products="torch")
    expected_ids, expected = hidden_states(by_torch, None, encode(base), use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_rows_that_leave_keep_their_own_adapters(base: BaseModel, products: Products, steps: list[int]) -> None:
    engine, genomes = population(base, 3, products=products)
    ids, features = hidden_states(engine, genomes, encode(base))
    ends = max(ids.unique().tolist(), key=lambda token: len({length(row, token) for row in ids.tolist()}))
    steps.clear()
    left, left_features = hidden_states(engine, genomes, encode(base), ends=[ends])
    assert len(set(steps)) > 1
    for row in range(12):
        own = length(ids[row].tolist(), ends)
        assert torch.equal(left[row, :own], ids[row, :own])
        torch.testing.assert_close(left_features[row, :own], features[row, :own], atol=1e-5, rtol=1e-4)
    steps.clear()
    stay, _ = population(base, 3, products=products, levers=Levers(leave=False))
    stayed, _ = hidden_states(stay, genomes, encode(base), ends=[ends])
    assert torch.equal(stayed, left) and set(steps) == {12}


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
@pytest.mark.parametrize("whose", ["the model's", "the engine's"])
def test_what_else_has_a_part_keeps_it(
    base: BaseModel, products: Products, steps: list[int], change: Hooks, whose: str
) -> None:
    if whose == "the model's":  # which an engine's copy of the tree has, too
        change(base.model)
    engine, _ = population(base, 1, products=products)
    if whose == "the engine's":
        change(engine.layers.model)
    ids, features = hidden_states(engine, None, encode(base))
    assert not steps
    expected_ids, expected = hidden_states(engine, None, encode(base), use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_an_adapter_before_the_activation_comes_before_it(
    base: BaseModel, products: Products, steps: list[int]
) -> None:
    engine, genomes = population(base, 2, ["c_fc"], products=products)
    ids, features = hidden_states(engine, genomes, encode(base))
    expected_ids, expected = hidden_states(engine, genomes, encode(base), use_cache=False)
    assert steps and torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_genomes_out_of_order_and_two_populations_are_left_to_the_layers(
    base: BaseModel, products: Products, steps: list[int]
) -> None:
    engine, genomes = population(base, 2, products=products)
    prompts = encode(base)
    found = hidden_states(engine, genomes.t().contiguous().t(), prompts)
    assert not steps
    expected = hidden_states(engine, genomes, prompts)
    assert steps and torch.equal(found[0], expected[0])
    steps.clear()
    other = LoraLayers(engine.layers.model, engine.layout, layer=engine.kernels.layer)
    with other.adapted(genomes):
        both = hidden_states(engine, genomes, prompts)
        assert not steps and not torch.allclose(both[1], expected[1], atol=1e-3)
    again = hidden_states(engine, genomes, prompts)
    assert steps, "only one of the two is on"
    assert torch.equal(again[1], expected[1])


def test_a_reduced_precision_is_left_to_the_layers(base: BaseModel, products: Products, steps: list[int]) -> None:
    engine, _ = population(base, 1, products=products)
    with torch.autocast("cpu", torch.bfloat16):
        hidden_states(engine, None, encode(base))
    base.model.to(torch.bfloat16)
    reduced, _ = population(base, 1, products=products)
    hidden_states(reduced, None, encode(base))
    assert not steps


def test_a_model_made_for_inference(base: BaseModel, products: Products) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(base.model)
        engine, _ = population(BaseModel(model, base.tokenizer, base.path), 1, products=products)
        ids, features = hidden_states(engine, None, encode(base))
        expected_ids, expected = hidden_states(engine, None, encode(base), use_cache=False)
    assert engine.layers.model.transformer.h[0].mlp.c_fc.weight.is_inference()
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_a_copy_of_the_model_steps_through_its_own_layers(
    base: BaseModel, products: Products, steps: list[int]
) -> None:
    engine, genomes = population(base, 2, products=products)
    expected = hidden_states(engine, genomes, encode(base))
    copied: PreTrainedModel = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.zero_()
    steps.clear()
    engine, _ = population(BaseModel(copied, base.tokenizer, base.path), 2, products=products)
    found = hidden_states(engine, genomes, encode(base))
    assert steps and torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    replica = hidden_states(engine.replica(), genomes, encode(base))
    assert torch.equal(replica[0], expected[0]) and torch.equal(replica[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("kind", "own"), [(RoomyCache, RoomyLayer), (KernelCache, KernelLayer)])
@torch.no_grad()
def test_rows_of_a_cache_from_packs(
    base: BaseModel, dtype: torch.dtype, kind: type[RoomyCache], own: type[RoomyLayer]
) -> None:
    packs, width, rows, length = 3, 7, 5, 4
    packed = make_cache(base.model, width + 2, kind=kind, layer=own)
    index = torch.randint(packs * width, (rows, length), generator=torch.Generator().manual_seed(0))
    states = torch.arange(2 * packs * 2 * width * 4).view(2, packs, 2, width, 4).to(dtype)
    for layer in packed.layers:
        layer.update(states[0], states[1])
    assert isinstance(packed, RoomyCache)
    found = packed.unpacked(index, capacity=9)
    assert type(found) is kind and found.get_seq_length() == length
    for layer in found.layers:
        assert type(layer) is own and layer.is_initialized and layer.dtype == dtype
        for held, source in ((layer.keys, states[0]), (layer.values, states[1])):
            flat = source.transpose(1, 2).flatten(0, 1)
            assert held.shape == (rows, 9, 2, 4) and torch.equal(held[:, :length], flat[index])
