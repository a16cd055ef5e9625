"""The ten reward terms, the same on every task, and the arms as options of `evolora.evolve`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evolora.refiners.options import PolicyGradientConfig
from evolora.runs.options import make_options
from testbed.tasks import TASKS, BedTask

Options = dict[str, Any]
Role = Literal["hybrid", "single", "ablation", "rate", "reference"]

# All of them in [0, 1]. On each task some help, some mislead and some say nothing; which ones, nobody has looked.
TERMS = (
    "exact",
    "similarity",
    "contains",
    "chrf",
    "brevity",
    "length(target=12)",
    r'regex(pattern="(?s)^\{.*\}$")',
    "sentiment",
    "diversity",
    "testbed.judging:good_reply",
)
ALL_TERMS = " + ".join(TERMS)

BUDGET_SECONDS = 180.0
# The search over single terms: (how many terms go on, seconds that each of them has had in all by then, to the nearest
# generation). What is left of the budget is the best one's. The seed draws the first five, as a step of each of the ten
# would leave the best one nothing; of equals it draws one, too.
RUNGS = ((5, 8.0), (2, 20.0))

_DEFAULTS = make_options().refiner
assert isinstance(_DEFAULTS, PolicyGradientConfig)
# A factor of 30 from the lowest to the highest, the default in their middle.
RATES = tuple(float(f"{_DEFAULTS.lr * factor:.3g}") for factor in (30**-0.5, 30**0.5))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm. `reward` is what RL follows: the task's fitness, all terms at equal weights, or one term after another
    (`search`). Every arm's winner is chosen by the fitness on validation, but that of the hybrid which is to do without
    it: where that is the only use of the fitness it is in the arm's favour. `kind` says who runs it."""

    name: str
    title: str
    role: Role
    options: Options = field(default_factory=dict)
    reward: Literal["fitness", "terms"] = "terms"
    chooses_by_fitness: bool = True
    kind: Literal["evolve", "search", "supervised"] = "evolve"

    def options_on(self, task: BedTask) -> Options:
        """All options of a run on a task, but its seed and budget."""
        if self.kind == "supervised":
            return dict(self.options)
        reward = task.followed if self.reward == "fitness" else ALL_TERMS
        fitness = {"fitness": task.fitness} if self.chooses_by_fitness and reward != task.fitness else {}
        return {**task.run_options, "reward": reward, **fitness, **self.options}

    def runs_on(self, task: BedTask) -> bool:
        """RL cannot follow a fitness that pays no completion."""
        return self.role != "single" or self.reward != "fitness" or task.by_completion


def _alone(refiner: str) -> Options:
    """One update on a rollout, as the hybrid has: on a task that carries no claim it took GRPO, too, two thirds of the
    time to come as far."""
    return {"strategy": "none", "refiner": refiner, "epochs": 1}


# What the hybrid has by default because it has a fitness, for the one that does without: selection is the difference.
_AS_WITH_A_FITNESS: Options = {
    "genes": ["lr", "kl-weight", "temperature", "reward-weights"],
    "refine": 2,
    "rl_steps": 2,
    "rollout_prompts": 8,
    "epochs": 1,
}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="hybrid", title="hybrid (the defaults)", role="hybrid"),
        Arm(
            name="grpo-fitness",
            title="GRPO alone, on the fitness",
            role="single",
            reward="fitness",
            options=_alone("grpo"),
        ),
        Arm(name="grpo-terms", title="GRPO alone, on all terms", role="single", options=_alone("grpo")),
        Arm(
            name="grpo-searched",
            title="GRPO alone, on the best single term of a search",
            role="single",
            options={**_alone("grpo"), "rl_steps": 1, "rollout_prompts": 4},
            kind="search",
        ),
        Arm(name="ppo-terms", title="PPO alone, on all terms", role="single", options=_alone("ppo")),
        Arm(name="hybrid-no-genes", title="hybrid without genes", role="ablation", options={"genes": "none"}),
        Arm(
            name="hybrid-no-fitness",
            title="hybrid without selection by fitness",
            role="ablation",
            chooses_by_fitness=False,
            options=_AS_WITH_A_FITNESS,
        ),
        Arm(
            name="hybrid-no-operators",
            title="hybrid without mutation and crossover",
            role="ablation",
            options={"crossover_rate": 0.0, "mutation_scale": 1e-9},
        ),
        Arm(
            name="supervised",
            title="supervised tuning on the targets",
            role="reference",
            kind="supervised",
            options={"lr": 1e-3, "batch": 16},
        ),
    )
}
SINGLE = tuple(name for name, arm in ARMS.items() if arm.role == "single")
ABLATIONS = tuple(name for name, arm in ARMS.items() if arm.role == "ablation")


def options_sha256(arm: Arm, task: BedTask, setting: Mapping[str, Any]) -> str:
    """A short checksum of all that a run of an arm on a task is told, so that a run made with other options is not
    taken for one of today's."""
    said = [arm.kind, {**arm.options_on(task), **setting}, BUDGET_SECONDS]
    return hashlib.sha256(json.dumps([*said, RUNGS if arm.kind == "search" else None]).encode()).hexdigest()[:12]


def singles_on(task: str) -> list[str]:
    """The single arms that a task has."""
    return [name for name in SINGLE if ARMS[name].runs_on(TASKS[task])]
