"""Packs read by compiled layers: what the model's own layers compute, where they stand in for them, and where not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine.cpu import install
from evolora.engine.cpu.attention.prefill import attend_within
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gpt2 import forward as gpt2_pass
from evolora.engine.cpu.gpt2 import prefill as gpt2_read
from evolora.engine.cpu.gpt2.prefill import read_packs
from evolora.engine.cpu.levers import Levers
from evolora.engine.eager.kv_cache import RoomyLayer
from evolora.models.base import BaseModel, load_base
from evolora.models.lora import lora_config, lora_layout

Folder = Callable[[str], Path]
FAR = torch.finfo(torch.float32).min


@pytest.fixture
def base(model_folder: Folder) -> BaseModel:
    return load_base(str(model_folder("uneven gpt2")))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each pass that asked, whether compiled layers made it."""
    found: list[bool] = []

    def noted(*arguments: Any) -> Tensor | None:
        hidden = read_packs(*arguments)
        found.append(hidden is not None)
        return hidden

    monkeypatch.setattr(gpt2_pass, "read_packs", noted)
    yield found


def population(base: BaseModel, n: int, targets: list[str], **options: Any) -> tuple[CpuEngine, Tensor]:
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=targets), seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return CpuEngine(base.model, layout, **{"products": "compiled", **options}), genomes


def trees(packs: int, width: int, seed: int = 0) -> Tensor:
    """Masks [packs, 1, width, width] as of texts that begin alike, with padding at either end."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(packs, width, width, generator=generator) < 0.6
    seen = seen.tril() | torch.eye(width, dtype=torch.bool)
    seen[0, : width // 3] = False
    seen[0, :, : width // 3] = False
    seen[-1, width - width // 4 :] = False
    return torch.zeros(packs, 1, width, width).masked_fill(~seen[:, None], FAR)


def states_of(engine: CpuEngine, mask: Tensor, genomes: Tensor | None, *, dropout: float = 0.0) -> list[Tensor]:
    """The logits of a pass over packs, and the keys and values of its cache, but for what sees nothing."""
    packs, _, width, _ = mask.shape
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (packs, width), generator=generator)
    positions = torch.randint(0, 40, (packs, width), generator=generator)
    model = engine.layers.model
    cache = engine.kernels.make_cache(model, width + 3)
    with torch.no_grad(), engine.layers.adapted(genomes):
        if dropout:
            engine.layers.drop(dropout, ids)
        logits: Tensor = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
    real = (mask[:, 0] == 0).any(-1)
    found = [logits[real]]
    for layer in cache.layers:
        assert isinstance(layer, RoomyLayer) and layer.length == width and layer.keys.shape[1] == width + 3
        found += [layer.keys[:, :width][real], layer.values[:, :width][real]]
    return found


@pytest.mark.parametrize("targets", [["c_attn", "c_proj"], ["c_attn", "c_fc", "c_proj"], ["c_fc"]])
@pytest.mark.parametrize("individuals", [0, 1, 4])
@pytest.mark.parametrize("width", [1, 7, 16, 33])
def test_it_computes_what_the_layers_do(
    base: BaseModel, read: list[bool], targets: list[str], individuals: int, width: int
) -> None:
    engine, genomes = population(base, max(1, individuals), targets)
    mask = trees(8, width)
    given = genomes if individuals else None
    found = states_of(engine, mask, given)
    assert read == [True]
    by_torch, _ = population(base, 1, targets, products="torch")
    expected = states_of(by_torch, mask, given)
    assert read == [True, False]
    switched_off, _ = population(base, 1, targets, levers=Levers(prefill=False))
    by_product = states_of(switched_off, mask, given)
    assert read == [True, False], "nobody asked"
    for one, other, third in zip(found, expected, by_product, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(one, third, atol=2e-5, rtol=1e-4)


def test_threads_share_the_packs(base: BaseModel, read: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = population(base, 3, ["c_attn", "c_proj"])
    mask = trees(15, 11)
    alone = states_of(engine, mask, genomes)
    for threads in (2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for one, other in zip(states_of(engine, mask, genomes), alone, strict=True):
            assert torch.equal(one, other)
    assert read == [True] * 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    states_of(engine, mask, genomes)
    assert read[-1] is False, "15 packs cannot be shared evenly by four"


def test_a_thread_touches_its_own_packs_alone(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = population(base, 2, ["c_attn", "c_proj"])
    mask = trees(6, 9)
    expected = states_of(engine, mask, genomes)
    checked: list[int] = []

    def in_parts(function: Any, arguments: Any, packs: int, threads: int) -> None:
        results = [arguments[i] for i in (6, 7, 12, 13)]  # keys, values, hidden states, normalised
        for results_only in results[:2]:
            results_only.fill(3)
        for first, last in ((2, 3), (0, 2), (3, packs)):
            before = [array.copy() for array in results]
            function(*arguments, first, last)
            for array, was in zip(results, before, strict=True):
                others = [pack for pack in range(packs) if not first <= pack < last]
                np.testing.assert_array_equal(array[others], was[others])
                assert (array[first:last] != was[first:last]).any()
            checked.append(last - first)
        assert (results[0][:, 9:] == 3).all(), "the cache's room stays as it was"

    monkeypatch.setattr(gpt2_read, "run_rows", in_parts)
    for one, other in zip(states_of(engine, mask, genomes), expected, strict=True):
        assert torch.equal(one, other)
    assert len(checked) == 3 * base.model.config.n_layer


def test_what_is_left_to_the_layers(base: BaseModel, read: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, genomes = population(base, 2, ["c_attn", "c_proj"])
    mask = trees(4, 9)
    states_of(engine, mask, genomes, dropout=0.5)
    assert read == [False], "dropout"
    hook = engine.layers.model.transformer.h[1].mlp.act.register_forward_hook(lambda *_: None)
    states_of(engine, mask, None)
    hook.remove()
    assert read == [False] * 2, "somebody looks on"
    states_of(engine, mask, None)
    assert read.pop() is True
    monkeypatch.setattr(install, "is_small", lambda _: False)
    large, _ = population(base, 2, ["c_attn", "c_proj"])
    states_of(large, mask, None)
    assert read == [False] * 3, "panels that are not always there"


@pytest.mark.parametrize(("heads", "size"), [(1, 1), (2, 16), (3, 20), (2, 50)])
@pytest.mark.parametrize("width", [1, 8, 23, 40])
def test_attention_within_a_pack(heads: int, size: int, width: int) -> None:
    states = torch.randn(width, 3, heads, size, generator=torch.Generator().manual_seed(width))
    mask = trees(2, width)[width % 2, 0]
    query, key, value = states.double().permute(1, 2, 0, 3)
    seen = mask > -1e30
    weights = (query @ key.mT * 0.3).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
    expected = (weights @ value).transpose(0, 1).reshape(width, heads * size)
    found = torch.full((width, heads * size), torch.nan)
    attend_within(states.numpy(), mask.numpy(), np.float32(0.3), found.numpy())
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    bias = torch.randn(width, width, generator=torch.Generator().manual_seed(2))
    scores = (query @ key.mT * 0.3 + bias.double()).masked_fill(~seen, -torch.inf)
    attend_within(states.numpy(), (mask + bias).numpy(), np.float32(0.3), found.numpy())
    expected = (scores.softmax(-1).nan_to_num(0) @ value).transpose(0, 1).reshape(width, heads * size)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
