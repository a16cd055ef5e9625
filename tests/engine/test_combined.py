"""One engine writes, another scores."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Prompts, Scoring
from evolora.engine.combined import CombinedEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.options import Truncation
from evolora.errors import InputError
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout

PROMPTS = [[5, 9, 33], [2, 7]]


class Rough:
    """Writes by weights in half precision, and says its own log-probabilities."""

    words = "a rough writer"

    def __init__(self, engine: EagerEngine) -> None:
        self.engine, self.asked, self.rested = engine, 0, 0

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        self.asked += 1
        return self.engine.generate(genomes, prompts, replace(how, features=False), owners=owners)

    def rest(self) -> None:
        self.rested += 1

    def close(self) -> None:
        self.engine.close()


def test_what_one_samples_has_the_other_ones_log_probabilities(model_folder: Callable[[str], Path]) -> None:
    folder = str(model_folder("llama"))
    model = load_base(folder).model
    layout, founder = lora_layout(model, lora_config(model), seed=0)
    scorer = EagerEngine(model, layout)
    rough = Rough(EagerEngine(load_base(folder, dtype=torch.bfloat16).model, layout))
    engine = CombinedEngine(rough, scorer)
    genomes = founder + 0.1 * torch.randn(2, len(founder), generator=torch.Generator().manual_seed(0))

    greedy = engine.generate(genomes, PROMPTS, Decoding(max_new_tokens=5, ends=[0], pad=0))
    assert greedy.log_probs is None and rough.asked == 1

    how = Decoding(max_new_tokens=5, ends=[0], pad=0, temperature=0.8, seeds=np.arange(4, dtype=np.uint64))
    found = engine.generate(genomes, PROMPTS, replace(how, features=True))
    own = rough.engine.generate(genomes, PROMPTS, how)
    assert found.rows() == own.rows() and found.features is not None
    scored = scorer.score(genomes, PROMPTS, found, Scoring(temperature=0.8))
    assert found.log_probs is not None and torch.equal(found.log_probs, scored.log_probs)
    assert own.log_probs is not None and not torch.equal(found.log_probs, own.log_probs)
    assert found.writer_log_probs is not None and torch.equal(found.writer_log_probs, own.log_probs)
    apart = (found.log_probs - own.log_probs)[found.mask].abs().double()
    measured = {"writer.apart": float(apart.mean()), "writer.apart_most": float(apart.max())}
    assert engine.metrics() == measured and engine.metrics() == {} and rough.rested == 0

    gradient = engine.score(genomes, PROMPTS, found, Scoring(gradient=True)).backward(found.mask.float())
    assert engine.trains and bool(gradient.abs().sum(1).gt(0).all()) and rough.rested == 1
    with pytest.raises(
        InputError, match=r"--top-p 0.9: found an engine that does not say what it keeps .*, expected 1, the default"
    ):
        engine.generate(genomes, PROMPTS, replace(how, truncation=Truncation(top_p=0.9)))
    engine.close()
