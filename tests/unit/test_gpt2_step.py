"""A step of GPT-2 in compiled functions: where it stands in for the model's own layers, and where it must not."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evolora.engine.cpu.gpt2 import decode as gpt2_step
from evolora.engine.cpu.gpt2.decode import Ahead, Gpt2Step
from evolora.engine.cpu.install import Products, use_kernels
from evolora.engine.cpu.matmul import frozen_linear as frozen_product
from evolora.engine.eager.generate import Completions, encode, generate
from evolora.engine.eager.kv_cache import RoomyCache, RoomyLayer, make_cache, unpacked
from evolora.engine.eager.lora_layers import PopulationModel
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


def loaded(model_folder: Folder, products: Products) -> BaseModel:
    base = load_base(str(model_folder("uneven gpt2")))
    use_kernels(base.model, products)
    return base


@pytest.fixture
def base(model_folder: Folder, products: Products) -> BaseModel:
    return loaded(model_folder, products)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of each step that was made of compiled functions."""
    made: list[int] = []
    run, ahead = Gpt2Step.run, Gpt2Step.ahead

    def counted(self: Gpt2Step, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made.append(len(tokens))
        return run(self, tokens, positions, mask)

    def all_counted(self: Gpt2Step, tokens: Tensor, *others: Any) -> Ahead:
        found = ahead(self, tokens, *others)
        made.extend([len(tokens)] * found.tokens.shape[1])
        return found

    monkeypatch.setattr(Gpt2Step, "run", counted)
    monkeypatch.setattr(Gpt2Step, "ahead", all_counted)
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


def population(base: BaseModel, n: int, targets: list[str] | None = None) -> tuple[Any, Tensor]:
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=targets or ["c_attn", "c_proj"]), seed=0)
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
    prompts = PROMPTS * max(1, individuals)
    population_model, genomes = population(base, max(1, individuals))

    def run(**options: Any) -> tuple[Tensor, Tensor]:
        if not individuals:
            return hidden_states(base, prompts, [-1], **options)
        with population_model.adapted(genomes):
            return hidden_states(base, prompts, [-1], **options)

    ids, features = run()
    assert steps == [len(prompts)] * 7
    assert layers == {"by_product" if products == "torch" or shared == "threads of products" else "whole"}
    with monkeypatch.context() as patched:
        patched.setattr(Gpt2Step, "of", lambda *_: None)
        by_layers = run()
    without_cache = run(use_cache=False)
    assert steps == [len(prompts)] * 7
    for expected in (by_layers, without_cache):
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(features, expected[1], atol=2e-5, rtol=1e-4)


def test_each_product_and_whole_layers_write_the_same_in_any_number_of_threads(
    model_folder: Folder, layers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loaded(model_folder, "compiled")
    population_model, genomes = population(base, 3)
    found = {}
    for name in SHARES:
        share(monkeypatch, name)
        with population_model.adapted(genomes):
            found[name] = hidden_states(base, PROMPTS * 3, [-1])
    assert layers == {"whole", "by_product"}
    alone = found["one thread"]
    for ids, features in found.values():
        assert torch.equal(ids, alone[0]) and torch.equal(features, alone[1])


@pytest.mark.parametrize(("rows", "way"), [(15, "by_product"), (16, "whole")])
def test_threads_take_rows_through_whole_layers_where_each_has_some(
    model_folder: Folder, layers: set[str], rows: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loaded(model_folder, "compiled")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    hidden_states(base, (PROMPTS * 4)[:rows], [-1])
    assert layers == {way}


def test_a_thread_touches_its_own_rows_alone(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    base = loaded(model_folder, "compiled")
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
    expected = hidden_states(base, PROMPTS, [-1])
    monkeypatch.setattr(gpt2_step, "run_rows", in_parts)
    found = hidden_states(base, PROMPTS, [-1])
    assert len(checked) == 3 * 7
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_several_steps_at_a_time_write_what_single_ones_do(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch, kind: str, sampled: bool
) -> None:
    if kind == "large":
        monkeypatch.setattr("evolora.engine.cpu.install.is_small", lambda _: False)
        monkeypatch.setattr(frozen_product, "_LEAST_PRODUCTS", 3)
    base = loaded(model_folder, "compiled")
    population_model, genomes = population(base, 3)
    prompts = PROMPTS * 3
    seeds = np.arange(12, dtype=np.uint64) if sampled else None
    stretches: list[int] = []
    ahead = Gpt2Step.ahead

    def noted(self: Gpt2Step, *arguments: Any) -> Ahead:
        found = ahead(self, *arguments)
        stretches.append(found.tokens.shape[1])
        return found

    def write(ends: list[int], drafts: list[list[int]] | None = None) -> Completions:
        options: dict[str, Any] = {"seeds": seeds, "temperature": 1.4, "drafts": drafts, "keep_features": True}
        with population_model.adapted(genomes):
            batch = encode(base.tokenizer, prompts, "cpu")
            return generate(base.model, batch, max_new_tokens=12, eos_token_ids=ends, pad_token_id=0, **options)

    whole = write([-1])
    ends = whole.ids.unique().tolist()[::7]
    drafts = [row[: 3 * (index % 3)] for index, row in enumerate(whole.rows())]
    for chosen in ({"ends": [-1]}, {"ends": ends}, {"ends": [-1], "drafts": drafts}):
        with monkeypatch.context() as patch:
            patch.setattr(Gpt2Step, "ahead", noted)
            stretches.clear()
            found = write(**chosen)
        with monkeypatch.context() as patch:
            patch.setattr(Gpt2Step, "goes_ahead", False)
            expected = write(**chosen)
        assert max(stretches) > 2 and (chosen["ends"] == [-1] or len(stretches) > 1), "rows left"
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
        for name in ("log_probs", "features"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one[found.mask], other[found.mask]), name


@pytest.mark.parametrize("ahead", [True, False])
def test_a_text_longer_than_the_model_is_an_error_at_its_end(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    base = loaded(model_folder, "compiled")
    if not ahead:
        monkeypatch.setattr(Gpt2Step, "goes_ahead", False)
    batch = encode(base.tokenizer, PROMPTS, "cpu")
    room = base.model.config.n_positions - int(batch.mask.sum(1).max())

    def write(more: int, ends: list[int]) -> Completions:
        return generate(base.model, batch, max_new_tokens=room + more, eos_token_ids=ends, pad_token_id=0)

    # The last token of a completion is never read.
    full = write(1, [-1])
    assert full.mask.all()
    with pytest.raises(IndexError, match=f"position {base.model.config.n_positions} in a model"):
        write(2, [-1])
    ends = full.ids[:, -2].unique().tolist()
    assert torch.equal(write(9, ends).ids[:, 0], full.ids[:, 0]), "who ends in time may have had more room"


def test_one_layer_without_panels_goes_by_product(base: BaseModel, steps: list[int], layers: set[str]) -> None:
    own = vars(base.model.transformer.h[1].mlp.c_proj)
    own.pop("forward", None)
    ids, features = hidden_states(base, PROMPTS, [-1])
    assert steps and layers == {"by_product"}
    expected_ids, expected = hidden_states(base, PROMPTS, [-1], use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_a_large_models_layers_are_whole_from_the_step_that_has_their_panels(
    model_folder: Folder, layers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolora.engine.cpu.install.is_small", lambda _: False)
    monkeypatch.setattr(frozen_product, "_LEAST_PRODUCTS", 4)
    base = loaded(model_folder, "compiled")
    first = hidden_states(base, PROMPTS, [-1])
    assert layers == {"whole", "by_product"}
    layers.clear()
    second = hidden_states(base, PROMPTS, [-1])
    assert layers == {"whole"}
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_a_weight_that_changes_between_batches_counts(base: BaseModel, steps: list[int]) -> None:
    before, _ = hidden_states(base, PROMPTS, [-1])
    for block in base.model.transformer.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.data += 0.1 * layer.weight.data.flip(0)
    steps.clear()
    ids, features = hidden_states(base, PROMPTS, [-1])
    assert steps and not torch.equal(ids, before)
    use_kernels(base.model, "torch")
    expected_ids, expected = hidden_states(base, PROMPTS, [-1], use_cache=False)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


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
    population_model, genomes = population(base, 2, ["c_fc"])
    with population_model.adapted(genomes):
        ids, features = hidden_states(base, PROMPTS * 2, [-1])
        expected_ids, expected = hidden_states(base, PROMPTS * 2, [-1], use_cache=False)
    assert steps and torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


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


def test_a_model_made_for_inference(model_folder: Folder, products: Products) -> None:
    own = loaded(model_folder, products)
    with torch.inference_mode():
        base = BaseModel(copy.deepcopy(own.model), own.tokenizer, own.path)
        use_kernels(base.model, products)
        ids, features = hidden_states(base, PROMPTS, [-1])
        expected_ids, expected = hidden_states(base, PROMPTS, [-1], use_cache=False)
    assert base.model.transformer.h[0].mlp.c_fc.weight.is_inference()
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


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
