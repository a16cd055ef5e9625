"""evolora's pass of GPT-2 against transformers' own, and where it must stand back."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from evolora.engine.cpu.install import install
from evolora.engine.cpu.kv_cache import KernelCache, KernelLayer
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul.choice import Products
from evolora.engine.eager.kv_cache import make_cache

PRODUCTS: list[Products] = ["torch", "compiled"]


def pair(products: Products = "torch", **options: Any) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """The same GPT-2 with transformers' layers and with evolora's."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=40, initializer_range=0.2, **options)
    plain = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in plain.parameters():
        if parameter.ndim == 1:  # biases and normalisations, which are all the same
            parameter += 0.2 * torch.randn(parameter.shape)
    ours = copy.deepcopy(plain)
    install(ours, products, Levers())
    return plain, ours


@pytest.fixture
def left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every pass that GPT2Model.forward makes."""
    calls: list[str] = []
    own = GPT2Model.forward

    def counted(self: GPT2Model, *arguments: Any, **options: Any) -> Any:
        calls.append("pass")
        return own(self, *arguments, **options)

    monkeypatch.setattr(GPT2Model, "forward", counted)
    return calls


def text(rows: int = 5, length: int = 9) -> dict[str, torch.Tensor]:
    """Token ids, left-padded by 0 to 4 positions, with mask and positions."""
    ids = torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(length) >= torch.arange(rows)[:, None] % 5).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "inverse layer": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "relu, narrow": {"activation_function": "relu", "n_inner": 17},
}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pass_and_its_gradient(variant: str, products: Products, left_to_transformers: list[str]) -> None:
    plain, ours = pair(products, **VARIANTS[variant])
    batch = text()
    seen = batch["attention_mask"].bool()
    found, expected = (model(**batch, use_cache=False).logits for model in (ours, plain))
    assert len(left_to_transformers) == 1, "the plain model's"
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-5, rtol=1e-4)
    gradients = []
    for model in (ours, plain):
        weight = model.transformer.h[0].attn.c_attn.weight.requires_grad_()
        model(**batch, use_cache=False).logits[seen].square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4 * float(gradients[1].abs().max()), rtol=1e-3)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("kind", ["roomy", "kernel", "dynamic", "static"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_token_after_token(variant: str, kind: str, products: Products, left_to_transformers: list[str]) -> None:
    plain, ours = pair(products, **VARIANTS[variant])
    batch = text(length=12)

    def decode(model: GPT2LMHeadModel) -> torch.Tensor:
        cache = {
            "roomy": lambda: make_cache(model, 12),
            "kernel": lambda: make_cache(model, 12, kind=KernelCache, layer=KernelLayer),
            "dynamic": lambda: DynamicCache(config=model.config),
            "static": lambda: StaticCache(config=model.config, max_cache_len=16),
        }[kind]()
        logits = []
        for start, stop in ((0, 8), (8, 9), (9, 10), (10, 12)):
            part = {name: value[:, start:stop] for name, value in batch.items()}
            part["attention_mask"] = batch["attention_mask"][:, :stop]
            with torch.no_grad():
                logits.append(model(**part, past_key_values=cache, use_cache=True).logits)
        return torch.cat(logits, 1)[batch["attention_mask"].bool()]

    found = decode(ours)
    assert not left_to_transformers
    torch.testing.assert_close(found, decode(plain), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_mask_that_says_who_sees_whom(products: Products) -> None:
    plain, ours = pair(products)
    batch = text(3, 9)
    blocked = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.4
    blocked[..., torch.arange(9), torch.arange(9)] = False
    batch["attention_mask"] = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)
    torch.testing.assert_close(ours(**batch).logits, plain(**batch).logits, atol=1e-5, rtol=1e-4)


CASES: dict[str, dict[str, Any]] = {
    "no positions": {"position_ids": None},
    "no mask": {"attention_mask": None},
    "embeddings": {"input_ids": None, "inputs_embeds": torch.ones(5, 9, 24)},
    "token types": {"token_type_ids": torch.ones(5, 9, dtype=torch.long)},
    "hidden states": {"output_hidden_states": True},
    "a cache of its own": {"use_cache": True},
}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("case", CASES)
def test_what_it_does_not_know_is_left_to_transformers(
    case: str, products: Products, left_to_transformers: list[str]
) -> None:
    plain, ours = pair(products)
    arguments = {"use_cache": False, **text(), **CASES[case]}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    found, expected = ours(**arguments), plain(**arguments)
    assert len(left_to_transformers) == 2
    seen = text()["attention_mask"].bool()  # what is computed on padding means nothing
    torch.testing.assert_close(found.logits[seen], expected.logits[seen], atol=1e-5, rtol=1e-4)
    assert (found.hidden_states is None) == (expected.hidden_states is None)
    assert (found.past_key_values is None) == (expected.past_key_values is None)


def test_training_has_the_models_own_dropout(left_to_transformers: list[str]) -> None:
    _, ours = pair("compiled", attn_pdrop=0.3)
    ours.train()
    assert not torch.equal(ours(**text(), use_cache=False).logits, ours(**text(), use_cache=False).logits)
    assert len(left_to_transformers) == 2
