"""The memory of an update: linear in its tokens, without the vocabulary, and as estimated. Counted tensor by tensor."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config

from evolora.engine.base import Completions, Scoring
from evolora.engine.calibration import bytes_a_token_kept, bytes_of_an_update
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.head import FrozenHead
from evolora.engine.eager.packed_forward import PackedPass
from evolora.models.genome import GenomeLayout
from evolora.models.lora import _adapted_modules, as_peft_model, lora_config, lora_layout

HOW = Scoring(gradient=True, dropout=0.1)
# Of one chunk: its logits, its probabilities and their gradients.
CHUNKS = 4 * 4 * 2**24


def update(engine: EagerEngine, genomes: Tensor, rows: int, length: int = 32) -> tuple[int, LiveBytes]:
    """Bytes between the way there and the way back of `rows` completions, texts of `length`, by each genome; and all
    that lived."""
    completions = Completions.of_ids([[1 + row] * (length - 1) for row in range(rows * len(genomes))], 0)
    with LiveBytes() as living:
        how = replace(HOW, dropout_seeds=np.arange(len(genomes), dtype=np.uint64) if HOW.dropout else None)
        scored = engine.score(genomes, [[7, 8]] * rows, completions, how)
        kept = living.now
        scored.backward(torch.ones(len(completions.ids), length - 1))
    return kept, living


def small(vocabulary: int, layers: int = 24) -> PreTrainedModel:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, vocab_size=vocabulary))


@pytest.mark.parametrize("how", ["off", "selective", "on"])
def test_an_update_is_linear_in_tokens_and_as_estimated(how: Any) -> None:
    model = small(100)
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    engine = EagerEngine(model, layout)
    engine.checkpointing = how
    peaks = [update(engine, founder[None], rows)[1].peak for rows in (8, 16, 32)]
    a_row = (peaks[2] - peaks[1]) / 16
    assert (peaks[1] - peaks[0]) / 8 == pytest.approx(a_row, rel=0.1)
    assert a_row / 32 == pytest.approx(bytes_a_token_kept(model, 32, how), rel=0.25)


@pytest.mark.parametrize(("model", "kind"), [("tiny", EagerEngine), ("tiny", CpuEngine), ("wide", CpuEngine)])
@pytest.mark.parametrize("how", ["off", "selective", "on"])
def test_the_peak_of_an_update_is_as_estimated(model: str, kind: Callable[..., EagerEngine], how: Any) -> None:
    """Of the bundled model's size, and where a chunk of the vocabulary is more than all layers."""
    net = small(1_000, layers=12) if model == "tiny" else small(152_000, layers=2)
    layout, founder = lora_layout(net, lora_config(net), seed=0)
    engine = kind(net, layout)
    engine.checkpointing = how
    assert engine._head is not None
    _, living = update(engine, founder[None], 16)
    assert living.peak == pytest.approx(bytes_of_an_update(net, 33, 16 * 32, how, compiled=kind is CpuEngine), rel=0.25)


@pytest.mark.parametrize("kind", [EagerEngine, CpuEngine])
def test_an_update_has_no_vocabulary(kind: Callable[..., EagerEngine]) -> None:
    """Of 1,000 and of 262,000 tokens as much is kept, and on both ways nothing but one chunk lives beside it."""
    kept, tokens = {}, 32 * 31
    for vocabulary in (1_000, 32_000, 262_000):
        model = small(vocabulary, layers=2)
        layout, founder = lora_layout(model, lora_config(model), seed=0)
        engine = kind(model, layout)
        assert engine._head is not None
        kept[vocabulary], living = update(engine, founder[None], 32)
        in_one_chunk = tokens <= engine._head.tokens
        kept[vocabulary] -= in_one_chunk * 4 * tokens * vocabulary  # a batch that is one chunk is its own graph
        assert living.peak < kept[vocabulary] + 10 * 4 * tokens * 64 * 3 + CHUNKS
        assert all(len(shape) < 2 or shape[-1] != vocabulary or shape[0] <= engine._head.tokens for shape in living.all)
    assert max(kept.values()) == pytest.approx(min(kept.values()), rel=0.05)


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (LlamaConfig(num_hidden_layers=4), "off"),
        (LlamaConfig(num_hidden_layers=4), "selective"),
        (
            Qwen2Config(
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=4,
                num_attention_heads=28,
                num_key_value_heads=4,
                vocab_size=152064,
            ),
            "on",
        ),
    ],
    ids=["llama off", "llama selective", "qwen2 on"],
)
def test_an_update_of_7b_shapes_is_as_estimated(config: Any, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values: four layers of a 7B model, 64 texts of 300 tokens by 8 genomes."""
    widths: list[int] = []
    whole = PackedPass.hidden

    def watched(self: PackedPass, asked: Tensor) -> Tensor:
        widths.append(self.tokens)
        return whole(self, asked)

    monkeypatch.setattr(PackedPass, "hidden", watched)
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    layout = GenomeLayout(tuple(_adapted_modules(as_peft_model(twin, lora_config(twin)))))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
        genomes = torch.empty(8, layout.genome_length)
    engine = EagerEngine(model, layout)
    engine.checkpointing = how
    # It compares values, which there are none of.
    head = FrozenHead(engine.layers.model.get_output_embeddings(), lambda logits: logits, config.vocab_size)
    vars(engine)["_head"] = head
    monkeypatch.setattr(f"{__name__}.HOW", Scoring(gradient=True))
    _, living = update(engine, genomes, 8, length=300)
    (tokens,) = widths
    a_chunk = 3 * 4 * 2**24
    assert living.peak == pytest.approx(tokens * bytes_a_token_kept(model, 300, how) + a_chunk, rel=0.25)
