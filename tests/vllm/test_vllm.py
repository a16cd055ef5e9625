"""vLLM beside PEFT and the eager engine. Run by `make test-vllm`, in an environment of its own."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

pytest.importorskip("vllm", reason="vLLM wants an environment of its own, which make test-vllm makes")

from evolora.engine.base import Decoding, Scoring
from evolora.engine.choose import check_writer
from evolora.engine.combined import CombinedEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.options import Truncation
from evolora.engine.vllm import engine as vllm_engine
from evolora.engine.vllm import slots as vllm_slots
from evolora.engine.vllm.engine import VllmWriter
from evolora.engine.vllm.slots import ByFiles, _places, adapters
from evolora.errors import InputError
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, lora_config, lora_layout

VOCABULARY, END, PAD, NEW = 128, 0, 1, 12
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": END,
    "eos_token_id": END,
}
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
GENOMES, SLOTS = 32, 8
PROMPTS = [[5, 9, 33], [2, 7, 1, 8, 2, 8, 1, 8], [100]]


@dataclass
class Subject:
    model: PreTrainedModel
    layout: GenomeLayout
    genomes: torch.Tensor
    writer: VllmWriter

    def peft(self, genome: torch.Tensor) -> torch.nn.Module:
        return as_peft_model(self.model, LORA(self.model), state=self.layout.to_state_dict(genome))


def LORA(model: PreTrainedModel):  # noqa: N802
    return lora_config(model, r=4, alpha=12, target_modules="all-linear")


def made(kind: str) -> tuple[PreTrainedModel, GenomeLayout, torch.Tensor]:
    config, architecture = KINDS[kind]
    torch.manual_seed(0)
    model = architecture(config(**SIZES)).eval().requires_grad_(False)
    for weights in model.parameters():  # so that an answer is not one token again and again
        weights.mul_(3 if weights.ndim == 2 else 1)
    layout, founder = lora_layout(model, LORA(model), seed=0)
    noise = torch.randn(GENOMES, layout.genome_length, generator=torch.Generator().manual_seed(1))
    return model, layout, founder + 0.3 * noise


@pytest.fixture(scope="module", params=list(KINDS))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    model, layout, genomes = made(request.param)
    writer = VllmWriter(model, layout, length=400, slots=SLOTS)
    yield Subject(model, layout, genomes, writer)
    writer.close()


def greedy(new: int = NEW) -> Decoding:
    return Decoding(max_new_tokens=new, ends=[END, VOCABULARY + 5], pad=PAD)  # an end that cannot be written


def by_transformers(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=END, pad_token_id=PAD
    )
    return found[0, len(prompt) :].tolist()


def test_greedy_tokens_are_those_of_peft_for_more_genomes_than_slots(subject: Subject) -> None:
    """Thirty-two adapters on eight slots, in four waves, each with prompts of its own length."""
    found = subject.writer.generate(subject.genomes, PROMPTS, greedy()).rows()
    for index, genome in enumerate(subject.genomes):
        peft = subject.peft(genome)
        own = found[index * len(PROMPTS) : (index + 1) * len(PROMPTS)]
        assert own == [by_transformers(peft, prompt) for prompt in PROMPTS], f"genome {index}"
    assert len({tuple(row) for row in found[:: len(PROMPTS)]}) > GENOMES // 2  # the adapters do matter


def test_the_base_is_no_slot(subject: Subject) -> None:
    subject.writer.generate(subject.genomes, PROMPTS, greedy())
    found = subject.writer.generate(None, PROMPTS, greedy()).rows()
    assert found == [by_transformers(subject.model, prompt) for prompt in PROMPTS]


def test_a_changed_genome_writes_anew_after_a_prompt_that_was_kept(subject: Subject) -> None:
    """vLLM finds keys and values of a prompt again by the adapter's name, whatever its weights are now."""
    prompt = [(7 * i) % (VOCABULARY - 2) + 2 for i in range(300)]
    for genome in subject.genomes[:3]:
        found = subject.writer.generate(genome[None], [prompt], greedy()).rows()
        assert found == [by_transformers(subject.peft(genome), prompt)]


def test_owners_say_whose_each_row_is(subject: Subject) -> None:
    owners, prompts = [0, 9, 9, 20], [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0]]
    found = subject.writer.generate(subject.genomes, prompts, greedy(), owners=owners).rows()
    assert found == [
        by_transformers(subject.peft(subject.genomes[owner]), prompt)
        for owner, prompt in zip(owners, prompts, strict=True)
    ]


def test_rows_sample_by_their_own_seeds(subject: Subject) -> None:
    """The same rows again, and in another order and company; what one row draws says nothing of the others."""
    seeds = np.arange(1, 1 + 2 * len(PROMPTS), dtype=np.uint64)
    two = subject.genomes[:2]

    def sampled(seeds: np.ndarray, prompts: list[list[int]], genomes: torch.Tensor) -> list[list[int]]:
        how = Decoding(max_new_tokens=NEW, ends=[END], pad=PAD, temperature=1.3, seeds=seeds)
        return subject.writer.generate(genomes, prompts, how).rows()

    first = sampled(seeds, PROMPTS, two)
    assert sampled(seeds, PROMPTS, two) == first
    assert sampled(seeds[:3][::-1], PROMPTS[::-1], two[:1]) == first[:3][::-1]
    other = seeds.copy()
    other[0] += 1000
    again = sampled(other, PROMPTS, two)
    assert again[1:] == first[1:]
    assert again[0] != first[0]


def test_the_draws_of_others_are_left_alone(subject: Subject) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    how = Decoding(max_new_tokens=3, ends=[END], pad=PAD, seeds=np.array([3], np.uint64))
    subject.writer.generate(subject.genomes[:1], PROMPTS[:1], how)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_samples_are_of_the_tempered_policy(subject: Subject) -> None:
    """The first token's shares, over many seeds, are softmax(logits / temperature)."""
    n, temperature = 2000, 2.0
    how = Decoding(
        max_new_tokens=1, ends=[END], pad=PAD, temperature=temperature, seeds=np.arange(n, dtype=np.uint64) * 977
    )
    found = subject.writer.generate(subject.genomes[:1], [PROMPTS[1]] * n, how).ids[:, 0]
    logits = subject.peft(subject.genomes[0])(input_ids=torch.tensor([PROMPTS[1]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    shares = torch.bincount(found, minlength=VOCABULARY) / n
    assert float((shares - expected).abs().sum()) / 2 < 2 * (VOCABULARY / n) ** 0.5 / 2  # total variation


@pytest.mark.parametrize("temperature", [0.002, 0.7, 1.0, 5.0])
def test_a_writers_own_log_probs_are_of_what_it_sampled_from(subject: Subject, temperature: float) -> None:
    """Also at temperatures that vLLM by itself rounds or refuses, and where it has more prompts than it reads at
    once."""
    prompts = [[(7 * i + row) % (VOCABULARY - 2) + 2 for i in range(20 + row % 9)] for row in range(60)]
    seeds = np.arange(len(prompts), dtype=np.uint64)
    how = Decoding(max_new_tokens=5, ends=[END], pad=PAD, temperature=temperature, seeds=seeds)
    found = subject.writer.generate(subject.genomes[:1], prompts, how)
    eager = EagerEngine(subject.model, subject.layout)
    right = eager.score(subject.genomes[:1], prompts, found, Scoring(temperature=temperature)).log_probs
    assert found.log_probs is not None
    assert torch.allclose(found.log_probs, right, atol=1e-4 / min(temperature, 1.0))
    assert temperature < 0.01 or float(found.log_probs[found.mask].mean()) < -0.1
    eager.close()


def test_log_probs_are_the_eager_engines(subject: Subject) -> None:
    eager = EagerEngine(subject.model, subject.layout)
    engine = CombinedEngine(subject.writer, eager)
    two, seeds = subject.genomes[:2], np.arange(6, dtype=np.uint64)
    how = Decoding(max_new_tokens=NEW, ends=[END], pad=PAD, temperature=0.7, seeds=seeds, features=True)
    found = engine.generate(two, PROMPTS, how)
    scored = eager.score(two, PROMPTS, found, Scoring(temperature=0.7))
    assert found.log_probs is not None and found.features is not None
    assert torch.equal(found.log_probs, scored.log_probs)
    assert found.writer_log_probs is not None and torch.allclose(found.writer_log_probs, found.log_probs, atol=1e-4)
    measured = engine.metrics()
    assert 0 < measured["writer.apart"] <= measured["writer.apart_most"] < 1e-4 and engine.metrics() == {}
    assert found.features.shape == (*found.ids.shape, engine.hidden)
    assert engine.trains
    with pytest.raises(InputError, match="--top-k"):
        engine.generate(two, PROMPTS, Decoding(max_new_tokens=2, ends=[END], pad=PAD, truncation=Truncation(top_k=3)))
    eager.close()


class Sleeper:
    """vLLM as it is on a GPU: asleep it answers nothing, and wakes with what it had, but for the keys and values."""

    def __init__(self, writer: VllmWriter) -> None:
        self._llm, self._adapters, self.calls = writer._llm, writer._adapters, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def sleep(self, level: int) -> None:
        assert level == 1 and self.calls[-1:] != ["sleep"], self.calls
        self.calls.append("sleep")

    def wake_up(self) -> None:
        assert self.calls[-1:] == ["sleep"], self.calls
        self.calls.append("wake")

    def generate(self, *given: Any, **how: Any) -> Any:
        assert self.calls[-1:] != ["sleep"], "asked while it was asleep"
        return self._llm.generate(*given, **how)


def test_one_that_sleeps_rests_for_a_gradient_and_wakes_to_write(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Sleeper(subject.writer)
    monkeypatch.setattr(subject.writer, "_llm", sleeper)
    eager = EagerEngine(subject.model, subject.layout)
    engine, two = CombinedEngine(subject.writer, eager), subject.genomes[:2]
    found = engine.generate(two, PROMPTS, greedy())
    engine.score(two, PROMPTS, found, Scoring(gradient=True)).release()
    assert sleeper.calls == []  # as it was not asked to
    monkeypatch.setattr(subject.writer, "_sleeps", True)
    for _ in range(2):
        engine.score(two, PROMPTS, found, Scoring(gradient=True)).release()
    engine.score(two, PROMPTS, found, Scoring())
    assert sleeper.calls == ["sleep"]
    assert engine.generate(two, PROMPTS, greedy()).rows() == found.rows()
    engine.generate(None, PROMPTS, greedy())
    assert sleeper.calls == ["sleep", "wake"]
    eager.close()


def test_a_version_that_keeps_adapters_otherwise_is_given_files(subject: Subject) -> None:
    assert _places(torch.nn.Module(), subject.layout) is None
    other = replace(subject.layout.modules[0], name="model.layers.7.nothing")
    with pytest.raises(InputError, match=r"vLLM adapts no model\.layers\.7\.nothing"):
        subject.writer._llm.apply_model(lambda model: _places(model, GenomeLayout((other,))))


def test_files_in_memory_say_the_same_as_slots(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = subject.genomes[3 : 3 + SLOTS]
    expected = subject.writer.generate(asked, PROMPTS, greedy()).rows()
    monkeypatch.setattr(vllm_slots, "_places", lambda model, layout: None)
    slots, files = subject.writer._adapters, adapters(subject.writer._llm, subject.layout, SLOTS)
    assert isinstance(files, ByFiles) and "files in memory" in files.words
    assert files._folder.is_relative_to("/dev/shm") or not Path("/dev/shm").is_dir()
    subject.writer._adapters = files
    try:
        assert subject.writer.generate(asked, PROMPTS, greedy()).rows() == expected
        assert subject.writer.generate(asked.flip(0)[:1], PROMPTS, greedy()).rows() == expected[-len(PROMPTS) :]
    finally:
        files.close()
        subject.writer._adapters = slots
    assert not files._folder.exists()


def test_what_a_run_cannot_have_beside_it() -> None:
    for devices, options, named in (
        (["cuda:0", "cuda:1"], {}, "--device cuda:0,cuda:1 with --engine vllm"),
        (["cuda:1"], {}, "--device cuda:1 with --engine vllm: .*CUDA_VISIBLE_DEVICES"),
        (["cpu"], {"sleeps": True}, "--vllm-sleep"),
        (["cpu"], {"temperature": 1e-6}, "--temperature 1e-06"),
        (["cpu"], {"truncation": Truncation(min_p=0.1)}, "--min-p 0.1: found"),
    ):
        with pytest.raises(InputError, match=named):
            check_writer(devices, **{"truncation": None, "temperature": 1.0, **options})
    check_writer(["cuda:0"], truncation=None, temperature=1.0, sleeps=True)


def test_slots_are_as_many_as_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout, genomes = made("llama")
    room = 4 * (2 * layout.genome_length * 4) * 5 + 3  # five slots in a quarter
    monkeypatch.setattr(vllm_engine, "free_memory", lambda device: room)
    writer = VllmWriter(model, layout, length=128)
    assert writer.slots == 5
    found = writer.generate(genomes[:7], PROMPTS[:1], greedy(3)).rows()
    peft = as_peft_model(model, LORA(model), state=layout.to_state_dict(genomes[6]))
    assert found[6] == by_transformers(peft, PROMPTS[0])[:3]
    writer.close()
