"""Options of the strategies. A strategy is its module and its model here, which says what it builds."""

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, get_args

from pydantic import BeforeValidator, Field

from evolora.engine.options import temperature_option
from evolora.models.options import is_bundled
from evolora.options import Options, option, said
from evolora.population.options import HyperparameterOptions, PopulationOptions
from evolora.rewards.options import HUMAN

if TYPE_CHECKING:
    from torch import Tensor

    from evolora.models.genome import GenomeLayout
    from evolora.strategies.base import Strategy

# Each is the name of a function in operators/, in mutation.py, crossover.py or selection.py.
MutationName = Literal["gaussian", "relative", "module", "masked", "svd"]
CrossoverName = Literal["uniform", "module", "rank", "blend", "layer", "svd", "dare", "extrapolative"]
SelectionName = Literal["truncation", "tournament", "rank"]
# What an individual may have of its own beside its weights.
GeneName = Literal["lr", "kl-weight", "temperature", "reward-weights"]
# Where individuals have, such a share of the population is refined, two at least: to compete they must learn side by
# side.
REFINED_SHARE = 1 / 4
# By how many rollouts one is refined in a generation, and each of several.
RL_STEPS, RL_STEPS_EACH = 6, 3
# Of a model whose updates take long it is fewer, where a fitness judges what each is worth: selection is to have its
# say before the time is over. What a rollout says is read once, as decoding has done half of that work; and several
# have rollouts of so many completions, half as many as one.
FEW_STEPS, COMPLETIONS_EACH = 2, 32
# Whose scale is one of weights, such as a refinement's step can be compared with.
ABSOLUTE_MUTATIONS = ("gaussian", "module", "masked")
AUTO: Literal["auto"] = "auto"


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Recommended = dict[str, dict[str, Any]]
"""Values by part and option."""


class Run(Protocol):
    """The other parts' options, as far as a strategy asks for them."""

    @property
    def model(self) -> Any: ...
    @property
    def evolution(self) -> Any: ...
    @property
    def refiner(self) -> Any: ...
    @property
    def reward(self) -> Any: ...
    @property
    def strategy(self) -> Any: ...


class StrategyOptions(Options):
    """What every strategy's options are: a `type`, what they build, and what they ask of the other parts."""

    # module:class. It takes what it names of founder, layout, config, seed and others.
    builds: ClassVar[str]

    type: str = option(common=True)

    def built(self) -> str:
        """What these options build, as module:class."""
        return self.builds

    def build(
        self,
        founder: "Tensor",
        layout: "GenomeLayout",
        *,
        seed: int,
        others: "Tensor | None" = None,
        summands: int = 0,
    ) -> "Strategy":
        """The strategy of these options. `others` [n, genome_length] are in its first population beside the founder;
        the reward is a sum of so many `summands`."""
        given = {"founder": founder, "layout": layout, "config": self, "seed": seed, "others": others}
        given["summands"] = summands
        kind = self._kind()
        strategy: Strategy = kind(
            **{name: value for name, value in given.items() if name in inspect.signature(kind).parameters}
        )
        return strategy

    def _kind(self) -> Any:
        module, _, name = self.built().partition(":")
        return getattr(importlib.import_module(module), name)

    def most_founders(self) -> int:
        """With how many individuals a run of this strategy may begin."""
        several = "others" in inspect.signature(self._kind()).parameters
        return int(getattr(self, "pop", 1)) if several else 1

    def need(self) -> None:
        """Raise InputError where what the strategy needs is not installed."""

    def recommends(self, run: Run) -> Recommended:
        """The other parts' defaults under this strategy, used where the user said nothing."""
        return {"evolution": _of_a_lineage(run, run.evolution.refine_whom)}

    def resolved(self, run: Run, reward: str, summands: int) -> Recommended:
        """What the reward, once it is known, decides of these options, by part. Raises ValueError where it does not go
        with them."""
        del run, reward, summands
        return {}

    def check(self, run: Run) -> None:
        """Raise ValueError where other parts' options do not go with this strategy."""
        evolution = run.evolution
        if evolution.elites >= evolution.pop:
            raise ValueError(f"--elites {evolution.elites}: expected fewer than --pop {evolution.pop}")
        if evolution.refine > evolution.pop:
            raise ValueError(f"--refine {evolution.refine}: expected at most --pop {evolution.pop}")


def _of_a_lineage(run: Run, whom: str) -> dict[str, Any]:
    """Where one lineage is refined, its refined one always enters; its finalists lie close together and make a soup."""
    if whom != "lineage":
        return {}
    finalists = run.evolution.finalists
    # What RL follows beside the fitness may lead away from it.
    return {
        "accept": "always" if run.evolution.fitness is None else "better",
        "soup": finalists if run.refiner.type != "none" and finalists > 1 else 0,
    }


class GAConfig(StrategyOptions, PopulationOptions, HyperparameterOptions):
    """Options of the genetic algorithm."""

    builds = "evolora.strategies.ga:GeneticAlgorithm"

    type: Literal["ga"] = option("ga", "the genetic algorithm", common=True)
    replacement: Literal["generational", "steady-state"] = option(
        "generational", "who is replaced by children: all but the elites, or, steady-state, the worst --children"
    )
    children: int = option(1, "children a generation (with --replacement steady-state)", ge=1)
    max_age: int | None = option(
        None, "generations after which nobody is carried over any more, however fit; none: never", ge=1
    )
    mutation: MutationName = option(
        "gaussian",
        "noise on the weights: of absolute scale, gaussian; relative to each tensor's magnitude; on a third of the "
        "adapted layers, module; on a tenth of the weights, masked; on the singular values and directions of B A, svd",
        common=True,
    )
    mutation_scale: Annotated[float, Field(gt=0)] | Literal["auto"] = option(
        0.02,
        "standard deviation of the mutation (its start, when it adapts); auto: the one at which --mutation-changes of "
        "the base's greedy completions change, found before the first generation; default 0.02 for the bundled model, "
        "auto for others",
        common=True,
    )
    mutation_changes: float = option(
        0.3, "share of the greedy completions that a mutation changes (with --mutation-scale auto)", gt=0, lt=1
    )
    mutation_success: bool = option(
        False,
        "adapt the mutation scale by success: it grows while over a fifth of the mutants are fitter than their parents "
        "and shrinks otherwise",
    )
    mutation_adapt: float = option(
        0.0, "log-normal self-adaptation of each individual's mutation scale (0.2 is usual); 0 keeps it fixed", ge=0
    )
    mutation_rate: float = option(1.0, "share of the children of two parents that are mutated too", ge=0, le=1)
    crossover: CrossoverName = option(
        "uniform",
        "how two parents are mixed: by weights, uniform; by adapted layers, module; by transformer blocks, layer; by "
        "rank components, rank; by singular directions, svd; as the mean of the products, blend, or of random parts of "
        "the differences from the base, dare; or beyond the better one, extrapolative",
        common=True,
    )
    crossover_rate: float = option(0.5, "share of the children that have two parents", ge=0, le=1)
    selection: SelectionName = option("tournament", "how parents are chosen")
    average: float = option(
        0.4,
        "the refined one's share in the running average of its lineage, an individual of its own; 0: there is none",
        ge=0,
        lt=1,
    )
    diversity: Literal["none", "sharing"] = option(
        "none", "sharing: parents are chosen by fitness shared with those near them"
    )
    niche_radius: float = option(
        0.5, "how near, in units of the population's mean distance (with --diversity sharing)", gt=0
    )
    genes: Annotated[list[Literal["auto", GeneName]] | None, BeforeValidator(_one_or_several)] = option(
        ["auto"],
        "what an individual has of its own beside its weights, mixed and mutated with them: lr, kl-weight, "
        "temperature, reward-weights (of a reward's summands), or none; auto: all of them with a --fitness beside the "
        "--reward, else none",
    )
    temperature: float = temperature_option()
    islands: int = option(1, "islands that the population is split into", ge=1)
    migrate_every: int = option(5, "generations between two migrations from island to island", ge=1)

    @property
    def survivors(self) -> int:
        """How many individuals are carried over unchanged."""
        return self.pop - self.children if self.replacement == "steady-state" else self.elites

    def built(self) -> str:
        return "evolora.strategies.islands:Islands" if self.islands > 1 else self.builds

    def recommends(self, run: Run) -> Recommended:
        evolution, refiner = run.evolution, run.refiner
        apart = bool(self._genes(run)) and said(evolution, "refine_whom", "best") == "best"
        refine = said(
            evolution, "refine", min(evolution.pop, max(2, int(evolution.pop * REFINED_SHARE))) if apart else 1
        )
        whom = said(evolution, "refine_whom", "lineage" if refine == 1 else "best")
        of_the_refiner: dict[str, Any] = {}
        small, beside, several = is_bundled(run.model.name), evolution.fitness is not None, apart and refine > 1
        few = beside and not small
        if refiner.type != "none":
            samples, epochs = said(refiner, "rollout_samples", 4), said(refiner, "epochs", 1 if few else refiner.epochs)
            of_the_refiner = {
                # A whole population is evaluated between two refinements.
                "rl_steps": FEW_STEPS if few else RL_STEPS_EACH if several else RL_STEPS,
                **({"rollout_prompts": max(1, COMPLETIONS_EACH // samples)} if few and several else {}),
                "epochs": epochs,
                "rollout_samples": samples,
                "equal_groups": "skip" if samples > 1 else "keep",
                "fitness_first": beside and samples > 1,
                "update_kl": 0.1 if epochs * refiner.minibatches > 1 else 0.0,
                # Evolution keeps what is better. Adaptation needs a weight to begin with.
                **({"kl_weight": 0.0} if refiner.kl_target is None else {}),
                # What people are thought to want changes with every vote: what was best before need not be.
                "replay": 0 if run.reward.name == HUMAN else 64,
            }
        return {
            "evolution": {"refine": refine, "refine_whom": whom, **_of_a_lineage(run, whom)},
            "refiner": of_the_refiner,
            # 0.02 is known to suit the one.
            "strategy": {} if small else {"mutation_scale": AUTO},
        }

    def _genes(self, run: Run) -> list[GeneName]:
        """Those that evolve, as far as they mean something in this run."""
        if run.refiner.type == "none" or not self.genes:
            return []
        if "auto" not in self.genes:
            return [gene for gene in get_args(GeneName) if gene in self.genes]
        if run.evolution.fitness is None:
            return []
        return [gene for gene in get_args(GeneName) if gene != "kl-weight" or run.refiner.kl_target is None]

    def resolved(self, run: Run, reward: str, summands: int) -> Recommended:
        genes = self._genes(run)
        if "reward-weights" in genes and not summands:
            if "auto" not in (self.genes or ()):
                raise ValueError(
                    f"--genes reward-weights with --reward {reward}: expected a sum of at least two rewards"
                )
            genes.remove("reward-weights")
        return {"strategy": {"genes": genes or None}}

    def check(self, run: Run) -> None:
        super().check(run)
        named = [gene for gene in self.genes or () if gene != "auto"]
        if named and run.refiner.type == "none":
            raise ValueError(f"--genes {named[0]} with --refiner none: expected a refiner, whose settings they are")
        if "kl-weight" in named and run.refiner.kl_target is not None:
            raise ValueError(f"--genes kl-weight with --kl-target {run.refiner.kl_target}: expected one of them")
        # A step in weights says nothing about a scale of another kind.
        if run.evolution.refined_scale == "step" and self.mutation not in ABSOLUTE_MUTATIONS:
            raise ValueError(
                f"--refined-scale step with --mutation {self.mutation}: expected one of {', '.join(ABSOLUTE_MUTATIONS)}"
            )

    def go_together(self) -> None:
        super().go_together()
        if "auto" in (self.genes or ()) and len(self.genes or ()) > 1:
            raise ValueError(
                f"--genes {' '.join(self.genes or ())}: expected auto alone, or the genes that it stands for"
            )
        if self.elites >= self.pop:
            return  # refused by the run, of every strategy alike
        if self.replacement == "steady-state" and self.children > self.pop - self.elites:
            raise ValueError(
                f"--children {self.children}: expected at most --pop {self.pop} less --elites {self.elites}"
            )
        if self.islands > 1:
            smallest, kept = self.pop // self.islands, -(-self.elites // self.islands)
            if kept >= smallest:
                raise ValueError(
                    f"--islands {self.islands}: found {smallest} individuals on the smallest, expected more than its "
                    f"elites, {kept}"
                )
            if self.replacement == "steady-state" and -(-self.children // self.islands) > smallest - kept:
                raise ValueError(
                    f"--children {self.children}: expected at most {(smallest - kept) * self.islands} with "
                    f"--islands {self.islands}"
                )


class _AroundAMean(StrategyOptions, PopulationOptions):
    """Whose population is a mean and samples around it."""

    def go_together(self) -> None:
        super().go_together()
        if self.pop < 3:
            raise ValueError(f"--pop {self.pop} with --strategy {self.type}: expected at least 3, a mean and two")


class NoiseConfig(_AroundAMean):
    """Options that the evolution strategies share."""

    scale: float = option(0.05, "standard deviation of the noise around the mean", common=True, gt=0)
    lr: float = option(3e-4, "learning rate of the mean", common=True, gt=0)


class ESConfig(NoiseConfig):
    """Options of OpenAI's evolution strategy."""

    builds = "evolora.strategies.es:EvolutionStrategy"

    type: Literal["es"] = option("es", "gradient ascent by noise around a mean", common=True)


class EggrollConfig(NoiseConfig):
    """Options of EGGROLL."""

    builds = "evolora.strategies.eggroll:Eggroll"

    type: Literal["eggroll"] = option("eggroll", "the same by noise of low rank", common=True)
    rank: int = option(1, "rank of the noise on each LoRA factor", ge=1)


class SepCMAESConfig(_AroundAMean):
    """Options of sep-CMA-ES."""

    builds = "evolora.strategies.sep_cmaes:SepCMAES"

    type: Literal["sep-cmaes"] = option("sep-cmaes", "needs the package cmaes", common=True)
    mutation_scale: float = option(0.02, "the step size at the start", common=True, gt=0)
    rate: float = option(0.2, "learning rate of the mean", gt=0, le=1)

    def need(self) -> None:
        importlib.import_module("evolora.strategies.sep_cmaes").sep_cma()


class PBTConfig(StrategyOptions, PopulationOptions, HyperparameterOptions):
    """Options of population-based training."""

    builds = "evolora.strategies.pbt:PopulationBasedTraining"

    type: Literal["pbt"] = option("pbt", "refines everybody and evolves the refiner's hyperparameters", common=True)
    share: float = option(0.25, "share of the population that copies as many of the best", gt=0, le=0.5)
    resample: float = option(0.05, "probability that a copy's hyperparameter is drawn anew, not perturbed", ge=0, le=1)
    spread: float = option(
        3.0,
        "factor around --lr, --kl-weight and --entropy-weight within which hyperparameters are drawn",
        ge=1,
    )

    def recommends(self, run: Run) -> Recommended:
        return {"evolution": {"accept": "always", "refine": run.evolution.pop}}

    def check(self, run: Run) -> None:
        pop, refine = run.evolution.pop, run.evolution.refine
        if refine != pop:
            raise ValueError(f"--refine {refine} with --strategy pbt: expected --pop, {pop}: all train")
        if run.refiner.type == "none":
            raise ValueError("--refiner none with --strategy pbt: expected a refiner, which is what pbt tunes")
        if run.refiner.kl_target is not None:
            raise ValueError(
                f"--kl-target {run.refiner.kl_target} with --strategy pbt: expected none, pbt sets the KL weight itself"
            )


class PerturbationConfig(StrategyOptions, PopulationOptions):
    """Options of random perturbation."""

    builds = "evolora.strategies.perturbation:RandomPerturbation"

    type: Literal["random"] = option("random", "perturbations of the base", common=True)
    mutation_scale: float = option(0.02, "standard deviation of the perturbation", common=True, gt=0)


class NoStrategyConfig(StrategyOptions):
    """No evolution: the refiner alone."""

    builds = "evolora.strategies.none:RefinerAlone"

    type: Literal["none"] = option("none", "the refiner alone", common=True)

    def recommends(self, run: Run) -> Recommended:
        return {"evolution": {**_of_a_lineage(run, run.evolution.refine_whom), "accept": "always"}}

    def check(self, run: Run) -> None:
        if run.refiner.type == "none":
            raise ValueError("--strategy none with --refiner none: expected at least one of them to change something")


STRATEGIES: Mapping[str, type[StrategyOptions]] = {
    str(model.model_fields["type"].default): model
    for model in (GAConfig, ESConfig, EggrollConfig, SepCMAESConfig, PBTConfig, PerturbationConfig, NoStrategyConfig)
}
"""Each strategy's options by its type, the default first."""
