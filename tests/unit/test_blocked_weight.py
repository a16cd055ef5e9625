"""Weights in blocks: the same products to the bit, whatever happens to the weight."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evolora import blocked_weight, kernels
from evolora.blocked_weight import _DROPPED_FROM, _LEAST_PRODUCTS, MOST_ROWS, BlockedWeight
from evolora.kernels import _blocked_weights, _onednn, onednn_works, use_kernels

pytestmark = [
    pytest.mark.skipif(not onednn_works(), reason="this torch has no oneDNN product of plain tensors"),
    pytest.mark.usefixtures("at_once"),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are made by the first product that may."""
    monkeypatch.setattr(blocked_weight, "_LEAST_PRODUCTS", 1)


def is_blocked(weight: Tensor) -> bool:
    return weight.layout != torch.strided


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("inner", "outer"), [(192, 576), (24, 17), (1, 5), (768, 1000)])
@pytest.mark.parametrize("rows", [2, 3, 4, 7, 64, MOST_ROWS])
def test_products_are_the_plain_ones_to_the_bit(transposed: bool, inner: int, outer: int, rows: int) -> None:
    weight = drawn(inner, outer) if transposed else drawn(outer, inner)
    x, bias = drawn(rows, 1, inner, seed=1), drawn(outer, seed=2)
    plain = weight.t() if transposed else weight
    blocks = BlockedWeight(weight, transposed=transposed).of(weight, rows=rows)
    assert is_blocked(blocks)
    for gelu in (False, True):
        assert torch.equal(_onednn(x, blocks, bias, gelu=gelu), _onednn(x, plain, bias, gelu=gelu))


def test_made_by_few_rows_used_by_more_and_dropped_by_many() -> None:
    weight = drawn(32, 16)
    blocked = BlockedWeight(weight, transposed=False)
    assert blocked.of(weight, rows=MOST_ROWS + 1) is weight
    made = blocked.of(weight, rows=MOST_ROWS)
    assert is_blocked(made)
    assert blocked.of(weight, rows=2) is made
    assert blocked.of(weight, rows=1) is weight  # no product of matrices
    assert blocked.of(weight, rows=_DROPPED_FROM - 1) is made
    assert blocked.of(weight, rows=_DROPPED_FROM) is weight
    assert blocked.of(weight, rows=_DROPPED_FROM - 1) is weight
    assert blocked.of(weight, rows=2) is not made


def test_only_after_as_many_products_as_pay_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_weight, "_LEAST_PRODUCTS", _LEAST_PRODUCTS)
    weight = drawn(32, 16)
    blocked = BlockedWeight(weight, transposed=False)

    def made_after() -> int:
        """How many products of few rows have plain weights first."""
        count = 0
        while not is_blocked(blocked.of(weight, rows=2)):
            count += 1
            blocked.of(weight, rows=1), blocked.of(weight, rows=MOST_ROWS + 1)  # neither counts
        return count

    assert made_after() == _LEAST_PRODUCTS - 1 > 8
    assert made_after() == 0
    weight.mul_(2)
    assert made_after() == _LEAST_PRODUCTS - 1
    blocked.of(weight, rows=_DROPPED_FROM)
    assert made_after() == _LEAST_PRODUCTS - 1
    blocked.of(weight, rows=_DROPPED_FROM)
    blocked.of(weight, rows=2)
    blocked.of(weight, rows=_DROPPED_FROM)
    assert made_after() == _LEAST_PRODUCTS - 1  # a batch of many starts the count again


def change_in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def change_unseen(layer: nn.Linear) -> None:
    layer.weight.data += 1  # as PEFT's merging does: no version tells of it


def change_data(layer: nn.Linear) -> None:
    layer.weight.data = drawn(32, 16, seed=3)


def change_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(drawn(32, 16, seed=4), requires_grad=False)


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": drawn(32, 16, seed=5)})


@pytest.mark.parametrize("change", [change_in_place, change_unseen, change_data, change_parameter, load])
@pytest.mark.parametrize("rows", [2, MOST_ROWS + 1])
def test_a_weight_that_has_changed_is_not_taken_for_what_it_was(change: Callable[[nn.Linear], None], rows: int) -> None:
    layer = nn.Linear(16, 32, bias=False).requires_grad_(False)
    blocked = BlockedWeight(layer.weight, transposed=False)
    assert is_blocked(blocked.of(layer.weight, rows=2))
    change(layer)
    x = drawn(rows, 16, seed=6)
    assert torch.equal(_onednn(x, blocked.of(layer.weight, rows=rows), None), _onednn(x, layer.weight, None))


def test_a_copy_with_the_same_weight_shares_the_blocks_and_one_with_its_own_does_not() -> None:
    weight = nn.Parameter(drawn(32, 16), requires_grad=False)
    blocked = BlockedWeight(weight, transposed=False)
    made = blocked.of(weight, rows=2)
    assert copy.deepcopy(blocked, {id(weight): weight}).of(weight, rows=2) is made
    memo: dict[int, object] = {}
    own = copy.deepcopy(weight, memo)
    other = copy.deepcopy(blocked, memo)
    own.mul_(2)
    assert torch.equal(_onednn(drawn(3, 16), other.of(own, rows=3), None), _onednn(drawn(3, 16), own, None))
    assert blocked.of(weight, rows=2) is made


@pytest.fixture
def large(architecture: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A model that counts as a large one, with its kernels."""
    monkeypatch.setattr(kernels, "is_small", lambda _: False)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_folder(architecture))
    model.eval().requires_grad_(False)
    use_kernels(model, "onednn")
    return model


def logits_of(model: nn.Module, rows: int = 4) -> Tensor:
    ids = torch.arange(rows * 9).view(rows, 9) % 50
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def test_a_large_model_computes_the_same_with_and_without(
    large: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = _blocked_weights(large)
    assert len(blocked) > 4
    plain = copy.deepcopy(large)
    monkeypatch.setattr(kernels, "_SHARE_OF_MEMORY", 2**62)
    assert _blocked_weights(plain) == {}
    use_kernels(plain, "onednn")
    for rows in (1, 2, MOST_ROWS + 1, _DROPPED_FROM, 3):
        assert torch.equal(logits_of(large, rows), logits_of(plain, rows))


def test_gradients_of_a_large_model(large: PreTrainedModel) -> None:
    plain = copy.deepcopy(large)
    use_kernels(plain, "torch")
    found, expected = (
        torch.autograd.grad(model(inputs_embeds=embedded).logits.square().sum(), embedded)[0]
        for model in (large, plain)
        for embedded in [drawn(2, 5, large.get_input_embeddings().embedding_dim).requires_grad_()]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_merged_into_the_base_counts(large: PreTrainedModel) -> None:
    before = logits_of(large)
    targets = ["c_attn"] if large.config.model_type == "gpt2" else "all-linear"
    config = LoraConfig(
        r=2,
        target_modules=targets,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=targets == ["c_attn"],
    )
    merged = get_peft_model(large, config).merge_and_unload()
    oracle = copy.deepcopy(merged)
    use_kernels(oracle, "torch")
    assert (logits_of(merged) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(merged), logits_of(oracle), atol=1e-4, rtol=1e-4)


def test_a_small_model_has_none(model_folder: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder("gpt2"))
    assert _blocked_weights(model) == {}
