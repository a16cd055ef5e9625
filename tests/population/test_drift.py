"""The drift: exact, 0 of the base, and what transformers and PEFT say of the exported adapter."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.fitness.base import Judged
from evolora.models.base import BaseModel, load_base, model_path
from evolora.models.export import save_adapter
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.drift import SENTENCES, Drift
from evolora.population.evaluation import LocalEvaluator
from evolora.population.judging import JudgingEvaluator
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example

torch.set_num_threads(1)
FEW = 12


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2")


@pytest.fixture(scope="module")
def made(base: BaseModel) -> tuple[Drift, GenomeLayout, Tensor]:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    drift = Drift.made(engine, base.model, layout, text, torch.zeros_like(founder), FEW)
    assert drift is not None
    return drift, layout, founder


def noise(scale: float, founder: Tensor) -> Tensor:
    return founder + scale * torch.randn(len(founder), generator=torch.Generator().manual_seed(3))


def test_there_are_200_different_sentences() -> None:
    assert len(SENTENCES) == len(set(SENTENCES)) == 200
    assert all(5 <= len(sentence.split()) <= 16 and sentence.isascii() for sentence in SENTENCES)


def test_the_base_has_none_and_mutants_the_more_the_larger_their_scale(
    made: tuple[Drift, GenomeLayout, Tensor],
) -> None:
    drift, _, founder = made
    genomes = torch.stack([founder, *(noise(scale, founder) for scale in (0.01, 0.03, 0.09))])
    values, cost = drift.of(genomes)
    assert values[0] == 0.0
    assert 0 < values[1] < values[2] < values[3]
    assert cost.flops == 4 * drift.cost.flops > 0
    assert drift.of(genomes[[2, 0]])[0] == [values[2], 0.0]
    assert drift.of(genomes)[1].flops == 0
    drift.keep(genomes[:1])
    assert drift.of(genomes[1:2]) == ([values[1]], drift.cost)


def test_it_is_what_peft_says_of_the_exported_adapter(
    made: tuple[Drift, GenomeLayout, Tensor], base: BaseModel, tmp_path: Path
) -> None:
    drift, layout, founder = made
    genome = noise(0.05, founder)
    save_adapter(tmp_path, base, lora_config(base.model), layout, genome)
    plain = AutoModelForCausalLM.from_pretrained(model_path("tiny-gpt2")).double().eval()
    adapted = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path("tiny-gpt2")), tmp_path)
        .double()
        .eval()
    )
    found = []
    with torch.no_grad():
        for sentence in SENTENCES[:FEW]:
            ids = base.tokenizer(sentence, return_tensors="pt")["input_ids"]
            p, q = (torch.log_softmax(model(ids).logits[0, :-1], -1) for model in (plain, adapted))
            found += (p.exp() * (p - q)).sum(-1).tolist()
    (value,), _ = drift.of(genome[None])
    assert value == pytest.approx(sum(found) / len(found), rel=1e-3)
    assert value > 0.01


class Equal:
    """Everybody is as fit, so that the drift decides."""

    name, varies, scorer = "equal", False, RewardScorer(lambda completions: [1.0] * len(completions))

    def judged(self, examples, texts, ids) -> list[Judged]:  # type: ignore[no-untyped-def]
        return [Judged(1.0, 0) for _ in texts]


def test_among_equals_the_less_drifted_is_fitter(made: tuple[Drift, GenomeLayout, Tensor], base: BaseModel) -> None:
    drift, layout, founder = made
    text = Text.of(base.model, base.tokenizer)
    engine = choose_engine(base.model, layout).engine
    evaluator = JudgingEvaluator(
        LocalEvaluator(engine, text, Equal.scorer, max_new_tokens=2), Equal(), samples=1, drift=drift, weight=-0.5
    )
    genomes = torch.stack([noise(0.06, founder), noise(0.02, founder), founder])
    fitness = evaluator.evaluate(genomes, [Example("The sun", {})]).fitness
    assert fitness[0] < fitness[1] < fitness[2] == 1.0
    assert fitness[0] == pytest.approx(1 - 0.5 * drift.of(genomes[:1])[0][0])
    state = evaluator.state_dict()
    again = JudgingEvaluator(evaluator.evaluator, Equal(), samples=1, drift=drift, weight=-0.5)
    again.load_state_dict(state)
    assert again.state_dict()["drift"] == state["drift"] and len(state["drift"]) >= 3
