"""Memory that really runs out: a process whose address space has no room for an update as a whole."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evolora.engine.base import Completions, Scoring
from evolora.engine.budget import Budget
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.micro_batches import MicroBatchEngine
from evolora.models.lora import lora_config, lora_layout

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=300, max_position_embeddings=512, initializer_range=0.2))
layout, founder = lora_layout(model, lora_config(model), seed=0)
genomes = founder + 0.05 * torch.randn(2, layout.genome_length)
prompts = [[1 + row] * 200 for row in range(16)]
ids, weights = torch.randint(1, 300, (32, 8)), torch.randn(32, 8)
completions = Completions(ids, torch.ones_like(ids, dtype=torch.bool))


def gradient(budget):
    engine = MicroBatchEngine(EagerEngine(model, layout), budget)
    return engine.score(genomes, prompts, completions, Scoring(gradient=True)).backward(weights)


expected = gradient(Budget(900))
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 100 * 2**20,) * 2)
budget = Budget(10**6)
torch.testing.assert_close(gradient(budget), expected, rtol=1e-3, atol=1e-4)
print(budget.news())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_an_update_goes_on_in_the_memory_that_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of memory: updates keep ")
