"""Workers on a local Ray cluster, each with a vLLM that writes and an eager engine that scores and trains."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from dealt import SLICE_ROWS, Subject, different
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("vllm", reason="vLLM wants an environment of its own, which make test-vllm makes")
pytest.importorskip("ray", reason="the extra `ray` is not installed")

from evolora.distributed.checking import RowCheck
from evolora.distributed.crew import LocalCrew
from evolora.distributed.engine import DealtEngine
from evolora.distributed.jobs import Generate, Worker
from evolora.distributed.ray_crew import RayCrew, _Batch
from evolora.distributed.remote import EngineSpec
from evolora.engine.canary import Canary
from evolora.engine.choose import choose_engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.text import Text
from evolora.models.base import load_base
from evolora.models.checksums import weights_sha256
from evolora.models.lora import lora_config, lora_layout
from evolora.models.options import ModelOptions


@pytest.fixture
def subject(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Subject:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tiny_tokenizer), max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    base = load_base(str(tmp_path))
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, len(founder), generator=torch.Generator().manual_seed(0))
    return Subject(base, layout, genomes, EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer))


def test_a_worker_with_vllm_that_is_killed_is_replaced_and_the_bits_are_the_same(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined = choose_engine(subject.base.model, subject.layout, kind="vllm", length=100, slots=SLICE_ROWS).one
    right = subject.answers(DealtEngine(combined, LocalCrew([lambda: Worker(combined)]), slice_rows=SLICE_ROWS))
    combined.close()

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    send, killed, said = _Batch.send, list[int](), list[str]()

    def sent(batch: _Batch, member: Any, index: int) -> None:
        send(batch, member, index)
        if isinstance(batch._jobs[index], Generate) and not killed:
            killed.append(int(member.about["pid"]))
            os.kill(killed[0], signal.SIGKILL)

    spec = EngineSpec(
        model=ModelOptions(name=str(tmp_path), dtype="float32"), weights_sha256=weights_sha256(subject.base.model),
        layout=subject.layout, device="cpu", kind="vllm", products="auto", checkpointing="off", threads=1, learns=True,
        dropout=0.1, length=100, slots=SLICE_ROWS,
    )  # fmt: skip
    own = subject.engine
    crew = RayCrew(spec, address=None, count=2, gpus=0.0, limit=None, own=own, check=RowCheck(own), say=said.append)
    engine = DealtEngine(own, crew, slice_rows=SLICE_ROWS)
    try:
        engine.start()
        monkeypatch.setattr(_Batch, "send", sent)
        assert not different(right, subject.answers(engine)), said
        assert killed and crew.metrics()["workers.lost"] == 1, said
        canary = Canary(engine, subject.base.model, subject.genomes[0], subject.text)
        assert canary.check(subject.genomes, generation=1) < 1
    finally:
        engine.close()
