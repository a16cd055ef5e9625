"""Products with frozen weights: what the layer gives, with panels and without, whatever happens to its weight."""

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evolora.engine.cpu import install as kernels
from evolora.engine.cpu.install import _kept, install
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul import frozen_linear as frozen_product
from evolora.engine.cpu.matmul.frozen_linear import (
    _DROPPED_FROM,
    _LEAST_PRODUCTS,
    MOST_ROWS_BY_PANELS,
    FrozenProduct,
    Kept,
    WeightPanels,
)
from evolora.engine.cpu.matmul.panels import arranged
from evolora.models.base import module_tree

KEPT: list[Kept] = ["always", "for few rows", "never"]
KINDS = [nn.Linear, Conv1D]

pytestmark = pytest.mark.usefixtures("at_once")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels are arranged for the first product that may have them."""
    monkeypatch.setattr(frozen_product, "_LEAST_PRODUCTS", 1)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the rows of each product that is not torch's."""
    made: list[int] = []
    own = frozen_product._product

    def noted(x: Tensor, *arguments: Any) -> Tensor:
        made.append(x.numel() // x.shape[-1])
        return own(x, *arguments)

    monkeypatch.setattr(frozen_product, "_product", noted)
    return made


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frozen(kind: type[nn.Module], inner: int = 24, outer: int = 17, *, bias: bool = True) -> Any:
    layer: Any = Conv1D(outer, inner) if kind is Conv1D else nn.Linear(inner, outer, bias=bias)
    layer.requires_grad_(False)
    layer.weight.copy_(drawn(*layer.weight.shape))
    if bias:
        layer.bias.copy_(drawn(outer, seed=1))
    return layer


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (1, 1, 24), (2, 5, 24), (40, 7, 24)])
def test_results_and_gradients_are_those_of_float64(
    kept: Kept, kind: type[nn.Module], bias: bool, shape: tuple[int, ...], products: list[int]
) -> None:
    layer = frozen(kind, bias=bias)
    product = FrozenProduct(layer, kept=kept)
    exact = copy.deepcopy(layer).double()
    x = drawn(*shape, seed=2).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    expected, found = exact(exact_x), product(x)
    assert_close(found, expected)
    gradient = drawn(*expected.shape, seed=3)
    expected.backward(gradient.double())
    found.backward(gradient)
    assert x.grad is not None and exact_x.grad is not None
    assert_close(x.grad, exact_x.grad)
    with torch.no_grad():
        assert torch.equal(product(x), found)
    assert torch.equal(product(x.detach()), found) and not product(x.detach()).requires_grad
    assert len(products) == 5


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 24), (3, 0, 24)])
def test_no_rows(kept: Kept, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    product = FrozenProduct(frozen(kind), kept=kept)
    x = torch.empty(shape, requires_grad=True)
    found = product(x)
    assert found.shape == (*shape[:-1], 17)
    found.sum().backward()
    assert x.grad is not None and x.grad.shape == shape


@pytest.mark.parametrize("kept", KEPT)
def test_inputs_and_weights_that_do_not_lie_in_order(kept: Kept) -> None:
    layer = frozen(nn.Linear)
    layer.weight = nn.Parameter(drawn(24, 17, seed=4).t(), requires_grad=False)
    x = drawn(24, 5, 3, seed=5).permute(2, 1, 0)
    product = FrozenProduct(layer, kept=kept)
    assert_close(product(x), x.double() @ layer.weight.double().t() + layer.bias.double())
    gradient = drawn(17, 5, seed=6).t()
    assert_close(product.to_input(gradient), gradient.double() @ layer.weight.double())


def test_a_bias_that_does_not_lie_in_order() -> None:
    layer = frozen(nn.Linear, 5, 60)
    layer.bias = nn.Parameter(drawn(120, seed=4)[::2], requires_grad=False)
    x = drawn(3, 5, seed=5)
    assert_close(FrozenProduct(layer, kept="always")(x), layer(x))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_threads_do_not_change_a_bit(kept: Kept, rows: int, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_product, "_LEAST_A_THREAD", 1)
    product = FrozenProduct(frozen(nn.Linear, 40, 200), kept=kept)
    x, gradient = drawn(rows, 40, seed=2), drawn(rows, 200, seed=3)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append((product.product(x), product.to_input(gradient)))
    assert_close(found[0][0], product.module(x))
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1])


@pytest.mark.parametrize("kind", KINDS)
def test_panels_are_the_weights_as_the_layer_multiplies_by_it(kind: type[nn.Module]) -> None:
    layer = frozen(kind, 24, 50)
    panels = FrozenProduct(layer, kept="always").panels(3)
    as_used = layer.weight if kind is Conv1D else layer.weight.t().contiguous()
    assert panels is not None and (panels == arranged(as_used.numpy(), transposed=False)).all()


def test_kept_always_or_never() -> None:
    weight = drawn(32, 16)
    always = WeightPanels(weight, transposed=True, kept="always")
    made = always.of(weight, rows=1000)
    assert made is not None
    assert all(always.of(weight, rows=rows) is made for rows in (0, 1, MOST_ROWS_BY_PANELS, _DROPPED_FROM, 5000, 1))
    never = WeightPanels(weight, transposed=True, kept="never")
    assert all(never.of(weight, rows=rows) is None for rows in (1, 2, MOST_ROWS_BY_PANELS, 5000))


def test_made_by_few_rows_used_by_more_and_dropped_by_many() -> None:
    weight = drawn(32, 16)
    panels = WeightPanels(weight, transposed=True, kept="for few rows")
    assert panels.of(weight, rows=MOST_ROWS_BY_PANELS + 1) is None
    made = panels.of(weight, rows=MOST_ROWS_BY_PANELS)
    assert made is not None
    assert panels.of(weight, rows=1) is made
    assert panels.of(weight, rows=_DROPPED_FROM - 1) is made
    assert panels.of(weight, rows=_DROPPED_FROM) is None
    assert panels.of(weight, rows=_DROPPED_FROM - 1) is None
    again = panels.of(weight, rows=1)
    assert again is not None and again is not made


def test_only_after_as_many_products_as_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_product, "_LEAST_PRODUCTS", _LEAST_PRODUCTS)
    weight = drawn(32, 16)
    panels = WeightPanels(weight, transposed=True, kept="for few rows")

    def made_after() -> int:
        """How many products of few rows have plain weights first."""
        count = 0
        while panels.of(weight, rows=2) is None:
            count += 1
            panels.of(weight, rows=MOST_ROWS_BY_PANELS + 1)  # does not count
        return count

    assert made_after() == _LEAST_PRODUCTS - 1 > 1
    assert made_after() == 0
    weight.mul_(2)
    assert made_after() == _LEAST_PRODUCTS - 1
    panels.of(weight, rows=_DROPPED_FROM)
    assert made_after() == _LEAST_PRODUCTS - 1
    panels.of(weight, rows=_DROPPED_FROM)
    panels.of(weight, rows=2)
    panels.of(weight, rows=_DROPPED_FROM)
    assert made_after() == _LEAST_PRODUCTS - 1  # a batch of many starts the count again


def test_the_way_back_has_panels_only_where_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def noted(weight: Any, *, transposed: bool) -> Any:
        asked.append(transposed)
        return arranged(weight, transposed=transposed)

    monkeypatch.setattr(frozen_product, "arranged", noted)
    arrangements = {}
    for kept in KEPT:
        asked.clear()
        product = FrozenProduct(frozen(nn.Linear), kept=kept)
        for _ in range(3):
            product.product(drawn(2, 24)), product.to_input(drawn(2, 17))
        arrangements[kept] = sorted(asked)
    assert arrangements == {"always": [False, True], "for few rows": [True], "never": []}


def change_in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def change_one_entry(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[0, 0] += 1


def change_unseen(layer: nn.Linear) -> None:
    layer.weight.data += 1  # as PEFT's merging does: no version tells of it


def change_data(layer: nn.Linear) -> None:
    layer.weight.data = drawn(32, 16, seed=3)


def change_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(drawn(32, 16, seed=4), requires_grad=False)


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": drawn(32, 16, seed=5)})


@pytest.mark.parametrize(
    "change", [change_in_place, change_one_entry, change_unseen, change_data, change_parameter, load]
)
@pytest.mark.parametrize("rows", [2, MOST_ROWS_BY_PANELS + 1])
@pytest.mark.parametrize("kept", KEPT)
def test_a_weight_that_has_changed_is_not_taken_for_what_it_was(
    change: Callable[[nn.Linear], None], rows: int, kept: Kept
) -> None:
    layer = frozen(nn.Linear, 16, 32, bias=False)
    product = FrozenProduct(layer, kept=kept)
    x, gradient = drawn(rows, 16, seed=6), drawn(rows, 32, seed=7)
    before = product.product(drawn(2, 16)), product.product(x), product.to_input(gradient)
    assert (product.panels(rows) is None) == (kept == "never")
    change(layer)
    found = product.product(x), product.to_input(gradient)
    fresh = FrozenProduct(layer, kept="never")
    assert torch.equal(found[0], fresh.product(x)) and not torch.allclose(found[0], before[1])
    assert torch.equal(found[1], fresh.to_input(gradient)) and not torch.allclose(found[1], before[2])


def test_threads_that_ask_at_once_get_the_same_new_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(32, 16)
    panels = WeightPanels(weight, transposed=True, kept="always")
    panels.of(weight, rows=2)
    weight.mul_(2)
    made: list[int] = []

    def slowly(values: Any, *, transposed: bool) -> Any:
        made.append(1)
        time.sleep(0.1)
        return arranged(values, transposed=transposed)

    monkeypatch.setattr(frozen_product, "arranged", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: panels.of(weight, rows=2), range(4)))
    assert len(made) == 1
    expected = arranged(weight.numpy(), transposed=True)
    assert all(one is found[0] for one in found) and (found[0] == expected).all()


def test_a_copy_with_the_same_weight_shares_the_panels_and_one_with_its_own_does_not() -> None:
    weight = nn.Parameter(drawn(32, 16), requires_grad=False)
    panels = WeightPanels(weight, transposed=True, kept="always")
    made = panels.of(weight, rows=2)
    assert made is not None
    assert copy.deepcopy(panels, {id(weight): weight}).of(weight, rows=2) is made
    memo: dict[int, object] = {}
    own = copy.deepcopy(weight, memo)
    other = copy.deepcopy(panels, memo)
    own.mul_(2)
    found = other.of(own, rows=2)
    assert found is not None and (found == 2 * made).all()
    assert panels.of(weight, rows=2) is made


def trains_its_weight(layer: Any) -> None:
    layer.weight.requires_grad_()


def trains_its_bias(layer: Any) -> None:
    layer.bias.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [trains_its_weight, trains_its_bias])
def test_what_is_trained_gets_its_gradient_and_is_multiplied_by_torch(
    kind: type[nn.Module], change: Callable[[Any], None], products: list[int]
) -> None:
    layer = frozen(kind)
    product = FrozenProduct(layer, kept="always")
    product(drawn(3, 24))
    assert products == [3]
    change(layer)
    (trained,) = (parameter for parameter in layer.parameters() if parameter.requires_grad)
    x = drawn(4, 24, seed=2).requires_grad_()
    results = product(x), layer(x)
    assert torch.equal(*results)
    found, expected = (torch.autograd.grad(result.square().sum(), (trained, x)) for result in results)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert products == [3]
    with torch.no_grad():
        assert_close(product(x), results[0])
    assert products == [3, 4], "without gradients none is trained"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_torch(kind: type[nn.Module], dtype: torch.dtype, products: list[int]) -> None:
    layer = frozen(kind).to(dtype)
    x = drawn(4, 24).to(dtype).requires_grad_()
    product = FrozenProduct(layer, kept="always")
    results = product(x), layer(x)
    assert torch.equal(*results)
    assert torch.equal(*(torch.autograd.grad(result.sum(), x)[0] for result in results))
    with pytest.raises(RuntimeError):
        product(x.detach().float())
    assert not products


def test_autocast_is_left_to_torch(products: list[int]) -> None:
    layer = frozen(nn.Linear)
    x = drawn(4, 24)
    with torch.autocast("cpu", torch.bfloat16):
        found = FrozenProduct(layer, kept="always")(x)
        assert found.dtype == torch.bfloat16 and torch.equal(found, layer(x))
    assert not products


@pytest.mark.parametrize("kept", KEPT)
def test_weights_made_for_inference_are_left_to_torch(kept: Kept, products: list[int]) -> None:
    with torch.inference_mode():
        layer = frozen(nn.Linear)
        x = drawn(4, 24)
        product = FrozenProduct(layer, kept=kept)
        assert torch.equal(product(x), layer(x))
    with torch.no_grad():
        assert torch.equal(product(x.clone()), layer(x))
    assert not products


@pytest.mark.parametrize("kept", KEPT)
def test_inputs_made_for_inference_are_multiplied(kept: Kept, products: list[int]) -> None:
    layer = frozen(nn.Linear)
    product = FrozenProduct(layer, kept=kept)
    with torch.inference_mode():
        x = drawn(4, 24)
        assert_close(product(x), layer(x))
    assert torch.equal(product(x.clone()), product(x))
    assert products == [4, 4, 4]


@pytest.fixture
def stock(architecture: str, model_folder: Callable[[str], Path]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_folder(architecture))
    return model.eval().requires_grad_(False)


def compiled(model: PreTrainedModel, levers: Levers | None = None) -> PreTrainedModel:
    """Another tree of the same weights, with compiled products."""
    tree = module_tree(model)
    install(tree, "compiled", levers or Levers())
    return tree


@pytest.fixture
def large(stock: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A model that counts as a large one, with its kernels."""
    monkeypatch.setattr(kernels, "is_small", lambda _: False)
    return compiled(stock)


def frozen_products(model: nn.Module) -> list[FrozenProduct]:
    found = [vars(module).get("forward") for module in model.modules()]
    return [each for each in found if isinstance(each, FrozenProduct)]


def logits_of(model: nn.Module, rows: int = 4) -> Tensor:
    ids = torch.arange(rows * 9).view(rows, 9) % 50
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def test_a_large_model_computes_the_same_with_and_without(
    stock: PreTrainedModel, large: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _kept(large) == "for few rows"
    off = compiled(stock, Levers(arranged_weights=False))
    monkeypatch.setattr(kernels, "_SHARE_OF_MEMORY", 2**62)
    assert _kept(large) == "never"
    plain = compiled(stock)
    monkeypatch.setattr(kernels, "is_small", lambda _: True)
    assert _kept(large) == "always"
    always = compiled(stock)
    for rows in (1, 2, MOST_ROWS_BY_PANELS // 9, _DROPPED_FROM // 9, _DROPPED_FROM, 3):
        expected = logits_of(plain, rows)
        for model in (large, always, off):
            assert torch.equal(logits_of(model, rows), expected)
    assert len(frozen_products(large)) > 4
    assert all(product.panels(MOST_ROWS_BY_PANELS + 1) is not None for product in frozen_products(large)), (
        "since the last batch"
    )
    assert all(
        product.panels(MOST_ROWS_BY_PANELS + 1) is None for product in frozen_products(plain) + frozen_products(off)
    )


def test_many_rows_give_a_large_models_memory_back(large: PreTrainedModel) -> None:
    logits_of(large, 2)
    assert all(product.panels(MOST_ROWS_BY_PANELS + 1) is not None for product in frozen_products(large))
    logits_of(large, _DROPPED_FROM)
    assert all(product.panels(MOST_ROWS_BY_PANELS + 1) is None for product in frozen_products(large))


def test_gradients_of_a_large_model(stock: PreTrainedModel, large: PreTrainedModel) -> None:
    plain = module_tree(stock)
    install(plain, "torch", Levers())
    assert not frozen_products(plain)
    found, expected = (
        torch.autograd.grad(model(inputs_embeds=embedded).logits.square().sum(), embedded)[0]
        for model in (large, plain)
        for embedded in [drawn(2, 5, large.get_input_embeddings().embedding_dim).requires_grad_()]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("small", [False, True])
def test_an_adapter_merged_into_the_base_counts(
    stock: PreTrainedModel, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "is_small", lambda _: small)
    model = compiled(stock)
    before = logits_of(model)
    targets = ["c_attn"] if stock.config.model_type == "gpt2" else "all-linear"
    config = LoraConfig(
        r=2,
        target_modules=targets,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=targets == ["c_attn"],
    )
    merged = get_peft_model(model, config).merge_and_unload()
    assert frozen_products(merged)
    assert (logits_of(merged) - before).abs().max() > 1e-3
    # The weights, which the tree shares, have changed in place.
    torch.testing.assert_close(logits_of(merged), logits_of(stock), atol=1e-4, rtol=1e-4)


def test_a_small_models_panels_are_always_kept(model_folder: Callable[[str], Path]) -> None:
    stock = AutoModelForCausalLM.from_pretrained(model_folder("gpt2")).eval().requires_grad_(False)
    assert _kept(stock) == "always"
    model = compiled(stock)
    logits_of(model, _DROPPED_FROM)
    assert all(product.panels(_DROPPED_FROM) is not None for product in frozen_products(model))
