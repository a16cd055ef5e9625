"""An engine written against the protocol alone works: evolution on PEFT itself, one genome and one prompt after
another, comes to the genomes that this project's own engines come to."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import evolora
from evolora import GAConfig, PPOConfig
from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scoring
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.sampling import sample
from evolora.engine.options import ENGINES
from evolora.engine.text import Text
from evolora.evolution.loop import Evolution
from evolora.evolution.options import LoopConfig
from evolora.models.base import BaseModel, load_base
from evolora.models.cost import ModelSize
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout, set_state
from evolora.population.evaluation import LocalEvaluator
from evolora.population.lineage import Lineage
from evolora.refiners import PPORefiner
from evolora.rewards import RewardScorer, similarity
from evolora.rng import keyed_uniforms
from evolora.strategies import GeneticAlgorithm
from evolora.tasks.task import load_task

Genomes, Owners = Tensor | None, Sequence[int] | None

GENERATIONS, LENGTH = 2, 6

# --- the engine: of the package it knows the protocol, the layout and how a token is drawn ----------------------------


class PeftEngine:
    """PEFT's model, which wears one genome after another and reads one row at a time, without a cache."""

    trains = True

    def __init__(self, base: BaseModel, layout: GenomeLayout, *, gives_features: bool = True) -> None:
        self.layout, self.gives_features, self.worn = layout, gives_features, torch.empty(0)
        self.size = ModelSize.of(base.model, adapter=layout.genome_length)
        self.hidden, self.device, self.dtype = base.model.config.hidden_size, base.model.device, base.model.dtype
        self.model = get_peft_model(copy.deepcopy(base.model), lora_config(base.model, dropout=0.0)).eval()

    def run(self, genomes: Genomes, owner: int, ids: Sequence[int], first: int) -> tuple[Tensor, Tensor]:
        """The logits and hidden states from place `first` on; the base's are those of a genome of zeros."""
        genome = torch.zeros(self.layout.genome_length, dtype=self.dtype) if genomes is None else genomes[owner]
        if not torch.equal(genome, self.worn):
            set_state(self.model, self.layout.to_state_dict(genome))
            self.worn = genome.clone()
        found = self.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return found.logits[0, first:], found.hidden_states[-1][0, first:]

    @torch.no_grad()
    def generate(self, genomes: Genomes, prompts: Prompts, how: Decoding, owners: Owners = None) -> Completions:
        rows, log_probs, features = [], [], []
        for row, (owner, prompt) in enumerate(owned(genomes, prompts, owners)):
            ids: list[int] = []
            while len(ids) < how.max_new_tokens and (not ids or ids[-1] not in how.ends):
                logits, hidden = self.run(genomes, owner, [*prompt, *ids], -1)
                token = logits.argmax(-1)
                if how.seeds is not None:
                    uniform = torch.from_numpy(keyed_uniforms(how.seeds[row : row + 1], len(ids) + 1))[:, -1]
                    token, log_prob = sample(logits, uniform, how.temperature)
                    log_probs.append(log_prob)
                features.append(hidden)
                ids.append(int(token))
            rows.append(ids)
        found = Completions.of_ids(rows, how.pad)
        sampled = spread(found.mask, log_probs) if log_probs else None
        given = spread(found.mask, features) if how.features and self.gives_features else None
        return Completions(found.ids, found.mask, sampled, given)

    @torch.no_grad()
    def score(
        self, genomes: Genomes, prompts: Prompts, completions: Completions, how: Scoring, owners: Owners = None
    ) -> "PeftScored":
        rows = [(*row, ids) for row, ids in zip(owned(genomes, prompts, owners), completions.rows(), strict=True)]
        found = zip(*(self.score_row(genomes, row, how) for row in rows), strict=True)
        return PeftScored(self, genomes, rows, how, *(spread(completions.mask, each) for each in found))

    def score_row(self, genomes: Genomes, row: Any, how: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        owner, prompt, ids = row
        logits, hidden = self.run(genomes, owner, [*prompt, *ids[:-1]], len(prompt) - 1)
        every = torch.distributions.Categorical(logits=logits / how.temperature)
        return every.log_prob(torch.tensor(ids)), every.entropy(), hidden

    def close(self) -> None: ...


@dataclass
class PeftScored:
    """What was scored; its gradient is that of another pass over each row."""

    engine: PeftEngine
    genomes: Genomes
    rows: list[Any]
    how: Scoring
    log_probs: Tensor
    entropy: Tensor
    features: Tensor

    @torch.enable_grad()
    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        gradient, model = torch.zeros_like(self.genomes), self.engine.model
        of_entropy = torch.zeros_like(of_log_probs) if of_entropy is None else of_entropy
        for row, to_log_probs, to_entropy in zip(self.rows, of_log_probs, of_entropy, strict=True):
            model.zero_grad()
            log_probs, entropy, _ = self.engine.score_row(self.genomes, row, self.how)
            (to_log_probs[: len(log_probs)] @ log_probs + to_entropy[: len(entropy)] @ entropy).backward()
            for module, a, b in self.engine.layout.factors(gradient[row[0] : row[0] + 1]):
                a[0] += model.get_parameter(module.a_key.replace("lora_A", "lora_A.default")).grad
                b[0] += model.get_parameter(module.b_key.replace("lora_B", "lora_B.default")).grad
        return gradient

    def release(self) -> None: ...


def owned(genomes: Genomes, prompts: Prompts, owners: Owners) -> list[tuple[int, Sequence[int]]]:
    if owners is not None:
        return list(zip(owners, prompts, strict=True))
    return [(owner, prompt) for owner in range(1 if genomes is None else len(genomes)) for prompt in prompts]


def spread(mask: Tensor, values: Sequence[Tensor]) -> Tensor:
    """The values of all tokens, one after another, at their places in [rows, length]."""
    flat = torch.cat(list(values))
    return flat.new_zeros(*mask.shape, *flat.shape[1:]).index_put((mask,), flat)


# --- the comparison ---------------------------------------------------------------------------------------------------


class Deaf(PeftEngine):
    """Runs the base, whatever it is given."""

    def run(self, genomes: Genomes, owner: int, ids: Sequence[int], first: int) -> tuple[Tensor, Tensor]:
        return super().run(None, owner, ids, first)


class Recorded:
    """An engine, and all that it wrote."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.written, self.featured = engine, [], set[bool]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, *arguments: Any, **options: Any) -> Completions:
        found = self.engine.generate(*arguments, **options)
        self.written.append(found.rows())
        if found.log_probs is not None:
            self.featured.add(found.features is not None)
        return found


@dataclass(frozen=True)
class Run:
    """The tokens of every evaluation and rollout, the last genomes, the metrics; and whether rollouts had features."""

    written: list[list[list[int]]]
    genomes: Tensor
    metrics: list[dict[str, Any]]
    featured: set[bool]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2", dtype=torch.float64)


@pytest.fixture(scope="module")
def layout(base: BaseModel) -> GenomeLayout:
    return lora_layout(base.model, lora_config(base.model), seed=0)[0]


def evolve(base: BaseModel, engine: Engine) -> Run:
    """Two generations in float64."""
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    recorded, text, scorer = Recorded(engine), Text.of(base.model, base.tokenizer), RewardScorer(similarity)
    options = PPOConfig(max_new_tokens=LENGTH, rollout_samples=2, epochs=1, minibatches=2, entropy_weight=0.01)
    evolution = Evolution(
        strategy=GeneticAlgorithm(founder.double(), layout, GAConfig(pop=4), seed=0),
        refiner=PPORefiner(recorded, text, scorer, options, seed=0),
        evaluator=LocalEvaluator(recorded, text, scorer, max_new_tokens=LENGTH),
        task=load_task(task="translate"),
        lineage=Lineage(),
        config=LoopConfig(
            eval_prompts=4, rollout_prompts=4, validation_prompts=4, refine=2, rl_steps=2, accept="always"
        ),
    )
    metrics = [evolution.step() for _ in range(GENERATIONS)]
    genomes = torch.cat([evolution.strategy.ask().genomes, evolution.hall_of_fame.members.genomes])
    return Run(recorded.written, genomes, metrics, recorded.featured)


def assert_same(one: Run, other: Run) -> None:
    assert one.written == other.written
    torch.testing.assert_close(one.genomes, other.genomes, rtol=0, atol=1e-9)
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            near = theirs[name] if isinstance(value, str) else pytest.approx(theirs[name], rel=1e-6, abs=1e-9)
            assert name.startswith("time.") or value == near, name


@pytest.fixture(scope="module")
def by_peft(base: BaseModel, layout: GenomeLayout) -> Run:
    return evolve(base, PeftEngine(base, layout))


@pytest.mark.parametrize("kind", [EagerEngine, CpuEngine])
def test_the_third_engine_comes_to_the_same(
    base: BaseModel, layout: GenomeLayout, by_peft: Run, kind: type[EagerEngine]
) -> None:
    assert by_peft.genomes.dtype == torch.float64
    assert_same(evolve(base, kind(base.model, layout)), by_peft)


class OfAModel(PeftEngine):
    """Made of a model and its layout, as the engines are that are taken by name."""

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout) -> None:
        super().__init__(BaseModel(model, PreTrainedTokenizerBase(), ""), layout)


def test_a_run_takes_it_by_name_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Although it has nothing to prepare, and no replica for a second thread."""
    monkeypatch.setitem(sys.modules, "own_engine", SimpleNamespace(OfAModel=OfAModel))
    options = {"task": "arithmetic", "gens": 1, "pop": 4, "eval_prompts": 8, "rollout_prompts": 4, "rl_steps": 1}
    options |= {"validation_prompts": 8, "max_validation_prompts": 8, "max_test_prompts": 8, "lora_dropout": 0}
    options |= {"max_new_tokens": 2, "engine": "eager", "seed": 3, "view": None}
    ours = evolora.evolve(**options, threads=1, out=tmp_path / "ours")
    monkeypatch.setitem(ENGINES, "eager", "own_engine:OfAModel")
    for threads in (1, 2):
        theirs = evolora.evolve(**options, threads=threads, out=tmp_path / f"theirs{threads}")
        found, expected = (each.summary["winner"]["test"]["reward"] for each in (theirs, ours))
        assert found == pytest.approx(expected, abs=1e-6)
        assert theirs.summary["tokens"] == ours.summary["tokens"]


def test_features_may_come_with_the_scores_alone(base: BaseModel, layout: GenomeLayout, by_peft: Run) -> None:
    without = evolve(base, PeftEngine(base, layout, gives_features=False))
    assert (without.featured, by_peft.featured) == ({False}, {True})
    assert_same(without, by_peft)


def test_the_comparison_can_fail(base: BaseModel, layout: GenomeLayout, by_peft: Run) -> None:
    deaf = evolve(base, Deaf(base, layout))
    assert deaf.written != by_peft.written
    assert len(deaf.genomes) != len(by_peft.genomes) or not torch.allclose(
        deaf.genomes, by_peft.genomes, rtol=0, atol=1e-6
    )
    with pytest.raises(AssertionError):
        assert_same(deaf, by_peft)


def test_rows_may_have_owners(base: BaseModel, layout: GenomeLayout, by_peft: Run) -> None:
    engines: list[Engine] = [PeftEngine(base, layout), EagerEngine(base.model, layout)]
    text = Text.of(base.model, base.tokenizer)
    prompts, owners = text.encode(["4 + 3 =", "The sum of 4 and 3 is", "4 + 3 ="]), [0, 2, 2]
    found = [engine.generate(by_peft.genomes[:3], prompts, text.decoding(LENGTH), owners=owners) for engine in engines]
    assert found[0].rows() == found[1].rows()
    gradients = []
    for engine in engines:
        scored = engine.score(by_peft.genomes[:3], prompts, found[0], Scoring(gradient=True), owners=owners)
        gradients.append(scored.backward(found[0].mask.double()))
    assert not gradients[0][1].any() and gradients[0][2].any()
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
