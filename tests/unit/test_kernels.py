"""The kernels: each computes what the layer that it stands in for computes, with its gradients."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from evolora import cached_attention, gpt2_step
from evolora.compiled_adapter import Adapter
from evolora.kernels import (
    _attention,
    _attention_mask,
    _gelu,
    _in_memory,
    _linear,
    _mlp,
    _processor_maker,
    fastest_products,
    onednn_works,
    use_kernels,
)
from evolora.model import load_base
from evolora.rollout import encode, generate

Folder = Callable[[str], Path]

needs_onednn = pytest.mark.skipif(not onednn_works(), reason="this torch has no oneDNN product of plain tensors")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_onednn
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 1, 24), (40, 7, 24)])
def test_products_and_their_gradients(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = nn.Linear(24, 17) if kind is nn.Linear else Conv1D(17, 24)
    layer.requires_grad_(False)
    layer.weight.copy_(drawn(*layer.weight.shape))
    layer.bias.copy_(drawn(17, seed=1))
    x = drawn(*shape, seed=2)
    expected_x, found_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = layer(expected_x), _linear(layer, found_x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(_linear(layer, x), expected, atol=1e-5, rtol=1e-5)
    gradient = drawn(*shape[:-1], 17, seed=3)
    expected.backward(gradient)
    found.backward(gradient)
    assert found_x.grad is not None
    torch.testing.assert_close(found_x.grad, expected_x.grad, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_a_weight_that_is_trained_keeps_its_gradient() -> None:
    layer = nn.Linear(8, 8)
    x = drawn(4, 8)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    found = torch.autograd.grad(_linear(layer, x).square().sum(), layer.weight)[0]
    torch.testing.assert_close(found, expected)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 8).requires_grad_(False).to(dtype)
    x = drawn(4, 8).to(dtype)
    assert torch.equal(_linear(layer, x), layer(x))


def test_gelu() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    module = NewGELUActivation()
    torch.testing.assert_close(_gelu(module, x), module(x), atol=1e-6, rtol=1e-6)
    expected = torch.autograd.grad(module(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(_gelu(module, x).sum(), x)[0], expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_gelu_within_the_product_before_it_and_where_something_stands_between() -> None:
    module = GPT2MLP(48, GPT2Config(n_embd=16)).eval().requires_grad_(False)
    x = drawn(3, 2, 16)
    passes: list[str] = []
    module.act.register_forward_hook(lambda *_: passes.append("gelu"))
    with torch.no_grad():
        expected = module(x)
        module.act._forward_hooks.clear()
        torch.testing.assert_close(_mlp(module, x), expected, atol=1e-6, rtol=1e-5)
        assert passes == ["gelu"]
        # An adapted layer adds to its product before GELU comes.
        module.c_fc.register_forward_hook(lambda _, __, output: output + 1)
        adapted = _mlp(module, x)
        assert torch.equal(adapted, module(x)) and not torch.allclose(adapted, expected)
    module.c_fc._forward_hooks.clear()
    x.requires_grad_()
    found, plain = (torch.autograd.grad(pass_(x).square().sum(), x)[0] for pass_ in (lambda x: _mlp(module, x), module))
    torch.testing.assert_close(found, plain)


@needs_onednn
@torch.no_grad()
def test_peft_around_the_layer_before_gelu_is_heard(model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    lora = LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    tokens = torch.arange(12).view(2, 6)
    plain = AutoModelForCausalLM.from_pretrained(str(model_folder("gpt2")))
    before = base.model(tokens).logits
    adapted = get_peft_model(base.model, lora).eval()
    expected = get_peft_model(plain, lora).eval()
    expected.load_state_dict(adapted.state_dict())
    found = adapted(tokens).logits
    torch.testing.assert_close(found, expected(tokens).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)
    batch = encode(base.tokenizer, ["Yes,", "No"], "cpu")
    written = [
        generate(model, batch, max_new_tokens=6, eos_token_ids=[-1], pad_token_id=0, use_cache=use_cache).ids
        for model, use_cache in ((base.model, True), (plain, False))
    ]
    assert torch.equal(*written)


def test_which_states_lie_in_the_order_of_the_cache() -> None:
    room = drawn(3, 10, 2, 4)
    found = _in_memory(room[:, :7].transpose(1, 2))
    assert found is not None and found.data_ptr() == room.data_ptr() and torch.equal(found, room)
    others = {
        "head by head": drawn(3, 2, 10, 4),
        "not from its beginning": room[:, 2:].transpose(1, 2),
        "beside queries": drawn(3, 10, 3, 2, 4)[:, :, 1].transpose(1, 2),
        "every other position": room[:, ::2].transpose(1, 2),
        "some heads": room[:, :, :1].transpose(1, 2),
        "one row for all": room[:1].expand(3, -1, -1, -1).transpose(1, 2),
    }
    assert [name for name, states in others.items() if _in_memory(states) is not None] == []


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
def test_decoding_attends_to_the_cache_by_the_compiled_pass(
    architecture: str, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(model_folder(architecture)))
    passes: list[tuple[int, ...]] = []
    own = cached_attention.attend_arrays

    def counted(adapter: Adapter, x: Any, states: Any, *others: Any, append: int) -> None:
        passes.append(states.shape[:2])
        own(adapter, x, states, *others, append=append)

    for module in (cached_attention, gpt2_step):
        monkeypatch.setattr(module, "attend_arrays", counted)
    prompts = encode(base.tokenizer, ["The sum of 4 and 3 is", "Yes,", "No"], "cpu")
    generate(base.model, prompts, max_new_tokens=5, eos_token_ids=[-1], pad_token_id=0)
    assert passes.count((3, 1)) == 4 * base.model.config.num_hidden_layers


@pytest.mark.parametrize("key_heads", [6, 2, 1])
@pytest.mark.parametrize(("asked", "positions"), [(1, 9), (4, 9), (9, 9), (40, 40)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention(key_heads: int, asked: int, positions: int, scaling: float | None) -> None:
    rows, heads, size = 3, 6, 8
    module = nn.Module()
    module.num_key_value_groups = heads // key_heads
    query = drawn(rows, heads, asked, size).requires_grad_()
    key = drawn(rows, key_heads, positions, size, seed=1).requires_grad_()
    value = drawn(rows, key_heads, positions, size + 2, seed=2).requires_grad_()
    mask = torch.ones(asked, positions).tril(positions - asked).bool().repeat(rows, 1, 1, 1)
    mask[1, :, :, :2] = False  # padding on the left
    scores = query @ key.repeat_interleave(heads // key_heads, 1).mT * (size**-0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~mask, -1e30).softmax(-1)
    expected = (weights @ value.repeat_interleave(heads // key_heads, 1)).transpose(1, 2)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    real = mask.any(-1)[:, 0]  # queries that may look somewhere; the others are padding
    for given in (mask, additive):
        if given.dtype == torch.bool and asked * positions <= 1024:
            continue  # small masks come additive
        found, _ = _attention(module, query, key, value, given, scaling=scaling)
        assert found.isfinite().all()
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
        for one, other in zip(
            torch.autograd.grad(found[real].square().sum(), (query, key, value)),
            torch.autograd.grad(expected[real].square().sum(), (query, key, value), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_a_mask_one_query_sees_all_and_several_are_causal() -> None:
    query, key, value = (drawn(2, 3, 5, 4, seed=seed) for seed in range(3))
    causal = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(_attention(nn.Module(), query, key, value, None)[0], causal.transpose(1, 2))
    last = query[:, :, -1:]
    torch.testing.assert_close(_attention(nn.Module(), last, key, value, None)[0], causal.transpose(1, 2)[:, -1:])


def test_masks_are_additive_where_products_add_them() -> None:
    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    options = {"batch_size": 2, "q_length": 1, "kv_length": 4, "q_offset": 3, "attention_mask": padding}
    small = _attention_mask(**options)
    assert small is not None and small.dtype == torch.float32
    assert (small.squeeze() == 0).tolist() == padding.tolist() and small.isfinite().all()
    assert _attention_mask(**{**options, "attention_mask": padding[1:].expand(2, -1)}) is None
    large = _attention_mask(batch_size=1, q_length=40, kv_length=40, attention_mask=torch.arange(40)[None] > 3)
    assert large is not None and large.dtype == torch.bool


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()]


@pytest.mark.parametrize("products", ["torch", "onednn"])
def test_a_model_computes_the_same(architecture: str, products: str, model_folder: Folder, tmp_path: Path) -> None:
    if products == "onednn" and not onednn_works():
        pytest.skip("this torch has no oneDNN product of plain tensors")
    folder = model_folder(architecture)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    use_kernels(model, products)  # type: ignore[arg-type]
    expected = logits_of(plain)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-5)
    # A copy has kernels of its own: those of its own weights.
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-5)
    assert (logits_of(other) - expected).abs().max() > 0.01
    # Nothing of them is saved.
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert "evolora" not in (tmp_path / "saved" / "config.json").read_text()
    assert torch.equal(logits_of(again), expected)


@pytest.mark.parametrize(
    ("maker", "works", "mkl", "expected"),
    [
        ("GenuineIntel", True, True, "torch"),
        ("AuthenticAMD", True, True, "onednn"),
        ("AuthenticAMD", False, True, "torch"),
        ("AuthenticAMD", True, False, "torch"),
        ("", True, True, "torch"),
    ],
)
def test_the_processor_and_not_the_moment_decides_whose_products(
    maker: str, works: bool, mkl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evolora.kernels._processor_maker", lambda: maker)
    monkeypatch.setattr("evolora.kernels.onednn_works", lambda: works)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: mkl)
    assert fastest_products() == expected


@pytest.mark.parametrize(
    ("cpuinfo", "name", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t: 207\n", "", "GenuineIntel"),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "", "AuthenticAMD"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "", ""),
        (None, "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", "AuthenticAMD"),
        (None, "arm", ""),
    ],
)
def test_who_made_the_processor(
    cpuinfo: str | None, name: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr("evolora.kernels.Path", lambda _: path)
    monkeypatch.setattr("platform.processor", lambda: name)
    assert _processor_maker() == expected
