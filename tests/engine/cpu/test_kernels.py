"""The kernels: each computes what the layer that it stands in for computes, with its gradients."""

import copy
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation

from evolora.engine.base import Decoding
from evolora.engine.cpu.attention import decode as cached_attention
from evolora.engine.cpu.attention.torch_attention import _in_memory, attention, attention_mask
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gelu import gelu
from evolora.engine.cpu.gpt2 import decode as gpt2_step
from evolora.engine.cpu.install import install
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.lora import Adapter
from evolora.engine.cpu.matmul import choice
from evolora.engine.cpu.matmul.choice import Products, fastest_products
from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct
from evolora.engine.eager.generate import PromptBatch
from evolora.models.base import load_base, module_tree
from evolora.models.lora import lora_config, lora_layout

Folder = Callable[[str], Path]

PRODUCTS: list[Products] = ["torch", "compiled"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def engine_of(model: PreTrainedModel, products: Products) -> CpuEngine:
    layout, _ = lora_layout(model, lora_config(model), seed=0)
    return CpuEngine(model, layout, products=products)


def test_gelu() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    module = NewGELUActivation()
    torch.testing.assert_close(gelu(x), module(x), atol=1e-6, rtol=1e-6)
    expected = torch.autograd.grad(module(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(gelu(x).sum(), x)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("products", PRODUCTS)
def test_what_stands_between_a_product_and_gelu_is_heard(products: Products, model_folder: Folder) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model_folder("gpt2")).eval().requires_grad_(False)
    model = module_tree(plain)
    install(model, products, Levers())
    embedded = drawn(2, 5, 32).requires_grad_()

    def logits_and_gradient(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs_embeds=embedded).logits
        return logits, torch.autograd.grad(logits.square().mean(), embedded)[0]

    before, _ = logits_and_gradient(model)
    passes: list[str] = []
    for each in (model, plain):
        mlp = each.transformer.h[0].mlp
        mlp.c_fc.register_forward_hook(lambda _, __, output: output + 1)
        mlp.act.register_forward_hook(lambda *_: passes.append("gelu"))
    for found, expected in zip(logits_and_gradient(model), logits_and_gradient(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert passes == ["gelu", "gelu"]
    assert not torch.allclose(logits_and_gradient(model)[0], before, atol=1e-2)


@pytest.mark.parametrize("products", PRODUCTS)
@torch.no_grad()
def test_peft_around_the_layer_before_gelu_is_heard(products: Products, model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    engine = engine_of(base.model, products)
    tree = engine.layers.model
    lora = LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    tokens = torch.arange(12).view(2, 6)
    plain = AutoModelForCausalLM.from_pretrained(str(model_folder("gpt2")))
    before = tree(tokens).logits
    adapted = get_peft_model(tree, lora).eval()
    expected = get_peft_model(plain, lora).eval()
    expected.load_state_dict(adapted.state_dict())
    found = adapted(tokens).logits
    torch.testing.assert_close(found, expected(tokens).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)
    # So it is in the passes of an engine whose tree was wrapped.
    prompts = base.tokenizer(["Yes,", "No"])["input_ids"]
    written = engine.generate(None, prompts, Decoding(max_new_tokens=6, ends=[-1], pad=0)).ids
    batch = PromptBatch.of(prompts, pad=0, times=1, device=written.device)
    oracle = plain.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        max_new_tokens=6,
        eos_token_id=-1,
        pad_token_id=0,
        do_sample=False,
    )
    assert torch.equal(written, oracle[:, batch.ids.shape[1] :])


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


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_decoding_attends_to_the_cache_by_the_compiled_pass(
    architecture: str, products: Products, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(model_folder(architecture)))
    engine = engine_of(base.model, products)
    passes: list[tuple[int, ...]] = []
    own, whole = cached_attention.attend_arrays, gpt2_step.steps_rows

    def counted(adapter: Adapter, x: Any, states: Any, *others: Any, append: int) -> None:
        passes.append(states.shape[:2])
        own(adapter, x, states, *others, append=append)

    def counted_steps(layers: Any, *arguments: Any) -> None:
        steps, first, last = arguments[-3:]
        passes.extend([(last - first, 1)] * steps * len(layers))
        whole(layers, *arguments)

    for module in (cached_attention, gpt2_step):
        monkeypatch.setattr(module, "attend_arrays", counted)
    monkeypatch.setattr(gpt2_step, "steps_rows", counted_steps)
    prompts = base.tokenizer(["The sum of 4 and 3 is", "Yes,", "No"])["input_ids"]
    engine.generate(None, prompts, Decoding(max_new_tokens=5, ends=[-1], pad=0))
    assert passes.count((3, 1)) == 4 * base.model.config.num_hidden_layers


@pytest.mark.parametrize("key_heads", [6, 2, 1])
@pytest.mark.parametrize(("asked", "positions"), [(1, 9), (4, 9), (9, 9), (40, 40)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention(key_heads: int, asked: int, positions: int, scaling: float | None) -> None:
    rows, heads, size = 3, 6, 8
    module: Any = nn.Module()
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
        found, _ = attention(module, query, key, value, given, scaling=scaling)
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
    torch.testing.assert_close(attention(nn.Module(), query, key, value, None)[0], causal.transpose(1, 2))
    last = query[:, :, -1:]
    torch.testing.assert_close(attention(nn.Module(), last, key, value, None)[0], causal.transpose(1, 2)[:, -1:])


def test_masks_are_additive_where_products_add_them() -> None:
    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    options: dict[str, Any] = {"batch_size": 2, "q_length": 1, "kv_length": 4, "q_offset": 3, "attention_mask": padding}
    small = attention_mask(**options)
    assert small is not None and small.dtype == torch.float32
    assert (small.squeeze() == 0).tolist() == padding.tolist() and small.isfinite().all()
    assert attention_mask(**{**options, "attention_mask": padding[1:].expand(2, -1)}) is None
    large = attention_mask(batch_size=1, q_length=40, kv_length=40, attention_mask=torch.arange(40)[None] > 3)
    assert large is not None and large.dtype == torch.bool


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()]


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_model_computes_the_same(architecture: str, products: Products, model_folder: Folder, tmp_path: Path) -> None:
    folder = model_folder(architecture)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    install(model, products, Levers())
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


def frozen_products(model: nn.Module) -> int:
    return sum(isinstance(vars(module).get("forward"), FrozenProduct) for module in model.modules())


def test_trees_of_one_model_have_products_of_their_own(architecture: str, model_folder: Folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder(architecture)).eval().requires_grad_(False)
    before = logits_of(model)
    trees = [engine_of(model, products).layers.model for products in ("torch", "compiled", "torch", "compiled")]
    results, counts = [logits_of(tree) for tree in trees], [frozen_products(tree) for tree in trees]
    assert counts[0] == counts[2] == 0 and counts[1] == counts[3] > 4
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert frozen_products(model) == 0 and torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    ("maker", "features", "expected"),
    [
        ("AuthenticAMD", {"fma": True}, "compiled"),
        ("HygonGenuine", {"fma": True, "avx512f": True}, "compiled"),
        ("AuthenticAMD", {"fma": False}, "torch"),
        ("AuthenticAMD", {}, "torch"),
        ("GenuineIntel", {"fma": True, "avx512f": True}, "torch"),
        ("", {"fma": True}, "torch"),
    ],
)
def test_the_processor_and_not_the_moment_decides_whose_products(
    maker: str, features: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_processor_maker", lambda: maker)
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
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
    monkeypatch.setattr(choice, "Path", lambda _: path)
    monkeypatch.setattr(platform, "processor", lambda: name)
    assert choice._processor_maker() == expected
