"""Runs that never were, for tests of what is said of runs."""

import math
from pathlib import Path

import torch

from evolora.files import write_checked
from evolora.models.cost import PURPOSES
from evolora.population.lineage import Lineage
from evolora.population.population import Individual
from evolora.runs.identity import new_identity
from evolora.runs.tracking.metrics_log import MetricsLog

OPTIONS = '[model]\nname = "a-model"\n\n[refiner]\ntype = "ppo"\n'
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\0\u202e"


def made_up(folder: Path, gens: int, pop: int, *, text: str = "word ", fitness: float = 0.5, prompts: int = 8,
            options: str = OPTIONS) -> Path:  # fmt: skip
    """The files of a run that never was: every generation mutates, crosses and refines. `text` is in all its prompts
    and completions, `options` are the lines of its config.toml."""
    folder.mkdir()
    (folder / "config.toml").write_text(f"{options}# sha256 0\n")
    new_identity({"version": {"torch": "2.9"}}).write(folder)
    lineage, genome = Lineage(folder / "lineage.sqlite", run="0"), torch.zeros(1)
    log = MetricsLog(folder / "metrics.jsonl", "0")
    operators = ("gaussian", "uniform+gaussian", "ppo", "average")
    base = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02)
    lineage.born(base, genome)
    lineage.measured(1, "validation", [base], [fitness / 2])
    before, lines = [base, base], []
    for generation in range(1, gens + 1):
        members = [
            Individual(
                id=(generation - 1) * pop + row + 1,
                parents=tuple({before[row % len(before)].id, before[(row + 1) % len(before)].id}),
                operator=operators[row % 4],
                born=generation,
                mutation_scale=0.02,
            )
            for row in range(pop)
        ]
        for member in members:
            lineage.born(member, genome)
        lineage.measured(
            generation, "population", [before[0], *members], [fitness + row / 999 for row in range(pop + 1)]
        )
        questions = [f"{number} {text}" for number in range(8)]
        lineage.sampled(generation, members[0], "validation", questions, [text] * 8, [fitness] * 8)
        lines.append({"generation": generation, "fitness.best": fitness, "validation": fitness, "ppo.gain": 0.1,
                      "ppo.added": 0.1, "evolution.added": 0.05,
                      "ppo.kl": generation / 9, "ppo.reward": fitness, "best.operator": "ppo", "best.id": members[0].id,
                      "validation.best": fitness, "diversity.completions": 1 / generation, "diversity.distance": 0.01,
                      **{f"tokens.{name}": generation * 1000 for name in PURPOSES},
                      **{f"flops.{name}": generation * 1e9 for name in PURPOSES},
                      **{f"time.{name}": generation / 2 for name in (*PURPOSES, "loop")}})  # fmt: skip
        before = members
    questions = [f"{number} {text}" for number in range(prompts)]
    for individual in (base, before[0]):
        lineage.sampled(
            gens, individual, "test", questions, [text] * prompts, [fitness * bool(individual.id)] * prompts
        )
    lineage.commit()
    lineage.close()
    for line in lines:
        log.append(line)
    known = None if math.isnan(fitness) else fitness
    tested = {"reward": known, "ci95": [known, known]}
    winner = {"validation": None, "id": before[0].id, "operator": "gaussian", "test": tested}
    summary = {"seed": 0, "base": {"test": tested}, "winner": winner, "held_out": True, "seconds": 1.5, "reward": text,
               "generations": gens}  # fmt: skip
    write_checked(folder / "summary.json", summary)
    return folder
