"""Packs: every text is there, sees itself and nothing else, and what texts share is there once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora.engine.eager.kernels import Kernels
from evolora.engine.eager.packed_forward import PackedPass, can_pack
from evolora.engine.eager.packing import Packs, pack
from evolora.models.base import load_base

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


def check(packs: Packs, texts: list[list[int]]) -> None:
    width = packs.ids.shape[1]
    for text, places in zip(texts, packs.places.tolist(), strict=True):
        here = places[: len(text)]
        assert places[len(text) :] == [-1] * (len(places) - len(text))
        row = here[0] // width
        assert {place // width for place in here} == {row}
        columns = [place % width for place in here]
        assert packs.ids[row, columns].tolist() == text
        assert packs.positions[row, columns].tolist() == list(range(len(text)))
        for index, column in enumerate(columns):
            assert set(packs.mask[row, column].nonzero()[0].tolist()) == set(columns[: index + 1])


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_each_text_sees_itself_alone(texts: list[list[int]], width: int) -> None:
    packs = pack(texts, width)
    assert packs.ids.shape[1] <= max(width, *map(len, texts))
    check(packs, texts)
    check(packs.widened(len(packs.ids) + 1, packs.ids.shape[1] + 3), texts)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_one_pack_holds_each_beginning_once(texts: list[list[int]]) -> None:
    packs = pack(texts, 1000)
    beginnings = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert packs.ids.shape == (1, len(beginnings))


def test_individuals_with_different_texts_share_one_pass() -> None:
    base = load_base("tiny-gpt2")
    assert can_pack(base.model, Kernels(), 8)
    texts = [[5, 6, 7], [5, 9], [8], [8, 8, 8, 8]]
    packed = PackedPass(base.model, texts, groups=2, device=torch.device("cpu"))
    asked = packed.places.gather(1, torch.tensor([[len(text) - 1] for text in texts]))
    with torch.no_grad():
        logits, features = packed.run(asked, keep_features=True)
        for row, text in enumerate(texts):
            alone = base.model(input_ids=torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(logits[row, 0], alone, atol=1e-4, rtol=1e-4)
    assert features is not None and features.shape == (4, 1, base.model.config.hidden_size)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_without_free_masks_is_not_packed(attention: str) -> None:
    model = load_base("tiny-gpt2").model
    model.config._attn_implementation = attention
    assert not can_pack(model, Kernels(), 8)
