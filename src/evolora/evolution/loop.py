"""The loop: propose, evaluate, refine the best by RL, evaluate the refined, accept, tell."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evolora.engine.canary import Canary, Row
from evolora.engine.progress import NOBODY, Reporter, Sample
from evolora.evolution.acceptance import (
    added_by_operators,
    clearly_more,
    entering,
    gene_means,
    mutation_scales,
    refined_metrics,
    standing,
    survival,
)
from evolora.evolution.allowance import UNLIMITED, Allowance
from evolora.evolution.comparison import clearly_better
from evolora.evolution.diversity import diversity
from evolora.evolution.hall_of_fame import HallOfFame
from evolora.evolution.hits import FirstHit, Hits
from evolora.evolution.options import LoopConfig
from evolora.evolution.racing import Race, race
from evolora.evolution.rare_hits import RareHits
from evolora.evolution.small_probabilities import HitChances
from evolora.evolution.soup import SOUP
from evolora.models.cost import Costs
from evolora.population.evaluation import Drafts, Evaluation, Evaluator, Judge, term_means
from evolora.population.lineage import Lineage
from evolora.population.population import AVERAGE, Individual, Population, newest
from evolora.refiners import Refiner
from evolora.rng import keyed_generator, keyed_seed
from evolora.strategies import Strategy
from evolora.strategies.operators import elites
from evolora.tasks.task import Example, Task

Floats = npt.NDArray[np.float64]

# Completions of a generation's best that the lineage keeps for people to read.
SAMPLES = 8
# What is under way when somebody is measured.
_PHASES = {
    "population": "evaluating",
    "refined": "evaluating the refined",
    "validation": "validating",
    "final": "choosing the winner",
    SOUP: "choosing the winner, or an average",
}
# The error level at which the best is clearly better, over all its rivals.
CLEAR = 0.05


@dataclass
class Evolution:
    """One run of the hybrid: strategy and refiner on one task. `step` makes one generation.

    >>> from evolora import GAConfig, PPOConfig
    >>> from evolora.population.evaluation import LocalEvaluator
    >>> from evolora.refiners import PPORefiner
    >>> from evolora.strategies import GeneticAlgorithm
    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> from evolora.rewards import RewardScorer
    >>> from evolora.tasks.task import load_task
    >>> from evolora.engine.choose import choose_engine
    >>> from evolora.engine.text import Text
    >>> from evolora.rewards import exact
    >>> base, task = load_base("tiny-gpt2"), load_task(task="arithmetic")
    >>> layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    >>> scorer = RewardScorer(exact)
    >>> evolution = Evolution(
    ...     strategy=GeneticAlgorithm(founder, layout, GAConfig(pop=4), seed=0),
    ...     refiner=PPORefiner(engine, text, scorer, PPOConfig(max_new_tokens=4), seed=0),
    ...     evaluator=LocalEvaluator(engine, text, scorer, max_new_tokens=4),
    ...     task=task,
    ...     lineage=Lineage(),
    ...     config=LoopConfig(eval_prompts=8, rollout_prompts=8, validation_prompts=8),
    ... )
    >>> 0 <= evolution.step()["fitness.best"] <= 1
    True
    """

    strategy: Strategy
    refiner: Refiner | None
    evaluator: Evaluator
    task: Task
    lineage: Lineage
    config: LoopConfig
    judge: Judge | None = None
    # Whether the engine still applies the adapters.
    canary: Canary | None = None
    reporter: Reporter = NOBODY
    # What the reward is a sum of, by name, where individuals may weigh it.
    summands: Sequence[str] = ()
    # For the finalists on the validation split.
    allowance: Allowance = UNLIMITED
    generation: int = 0
    costs: Costs = field(default_factory=Costs)
    # Of all generations, over all resumptions.
    seconds: float = 0.0
    failed_completions: int = 0
    hall_of_fame: HallOfFame = field(init=False)
    # This generation's, if individuals race.
    race: Race | None = None
    # Of the best on validation, the mean of each term of a combined reward.
    terms: dict[str, float] = field(default_factory=dict)
    # Told before the first generation where all that the base wrote on validation earned the same.
    base_is_flat: Callable[[], int] | None = None
    # Of a fitness beside the reward: what the base and the latest to be validated earn there.
    rewards: tuple[float, float] | None = None
    # Who met the whole validation split in the end, and what they are worth there.
    finals: list[tuple[Population, Evaluation]] = field(default_factory=list)
    # The lowest and the highest reward of all.
    earned: tuple[float, float] | None = None
    # By what equals are told apart while hardly anything is paid, if by anything.
    chances: HitChances | None = None
    hits: Hits = field(default_factory=Hits)

    rare: RareHits = field(init=False)

    def __post_init__(self) -> None:
        self.hall_of_fame = HallOfFame(self.config.finalists)
        self.rare = RareHits(self.hits, self.chances, self.config)

    @property
    def phases(self) -> int:
        """How many the next generation has, as the reporter is told them."""
        of_refinement = 0 if self.refiner is None else 2 * self.config.rl_steps + 1
        return 2 + of_refinement + self.hall_of_fame.empty + (self.judge is not None) + (self.canary is not None)

    def step(self, progress: float = 0.0) -> dict[str, Any]:
        """One generation, when `progress`, from 0 to 1, of the run is done. Returns its metrics, as docs/metrics.md
        defines them."""
        start, tokens_before = time.perf_counter(), self.costs.generated_tokens
        self.generation += 1
        if self.hall_of_fame.empty:
            self._validate(self.strategy.ask().select([0]))
            if self.base_is_flat is not None and self.judge is None and self.earned and len(set(self.earned)) == 1:
                sampled = self.base_is_flat()
                if self.rewards is None:  # no fitness beside
                    self.hits.in_vain += sampled
        population = self.strategy.ask()
        prompts = self._draw("evaluation", self.task.train, self.config.eval_prompts)
        population, evaluation = self.measure(population, prompts, "population")
        evaluation, found = self._look_for_hits(population, evaluation)
        metrics: dict[str, Any] = {
            **found,
            "generation": self.generation,
            "failed": int(np.isnan(evaluation.fitness).sum()),
            "clipped_ratio": self._clipped(evaluation),
            "evolution.added": added_by_operators(population, evaluation.fitness, self.generation),
            **diversity(population, evaluation),
        }
        if evaluation.judged:
            metrics["population.reward"] = _mean(evaluation.mean_rewards)
        if metrics["failed"] < len(population):
            metrics |= self._learn(population, evaluation, prompts, progress)
        else:
            metrics |= self._wait()
        owner = (self.generation - 1) % len(population)  # each in turn
        asked = evaluation.examples or prompts
        metrics |= self._checked(population, owner, evaluation.completion_ids[owner], asked)
        self.hits.reached(metrics["validation"], tokens=self.costs.generated_tokens)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        scales = [individual.mutation_scale for individual in population.individuals]
        return metrics | {
            **gene_means(population, self.summands),
            **self._race_metrics(),
            **{f"strategy.{name}": value for name, value in self.strategy.metrics().items()},
            "failed_completions": self.failed_completions,
            "validation.best": self.hall_of_fame.highest,
            "validation.base": self.hall_of_fame.fitness[0],
            **{f"reward.{name}": value for name, value in self.terms.items()},
            **self.hits.metrics(self.generation),
            "mutation_scale": float(np.mean(scales)),
            **self.spent(),
            "time.generation": seconds,
            "time.tokens_per_second": (self.costs.generated_tokens - tokens_before) / seconds,
        }

    def _look_for_hits(self, population: Population, evaluation: Evaluation) -> tuple[Evaluation, dict[str, Any]]:
        """In a run that starts from nothing: with what tells equals apart; and metrics."""

        def draw(purpose: str, count: int) -> list[Example]:
            return self._draw(purpose, self.task.train, count)

        how: dict[str, Any] = {"sample": self._sampled, "draw": draw}
        with self.costs.timed("evaluation"):
            found = self.rare.search(population, self.allowance, self.reporter, **how) if self.generation == 1 else {}
            evaluation, cost, apart = self.rare.told_apart(
                population,
                evaluation,
                self.reporter,
                generation=self.generation,
                refines=self.refiner is not None,
                **how,
            )
        self.costs.add("evaluation", cost)
        return evaluation, found | apart

    def _sampled(self, population: Population, examples: Sequence[Example], stage: str) -> Evaluation:
        """What individuals have sampled for training prompts, with all that is to be known of it."""
        part = self.evaluator.evaluate(population.genomes, examples)
        self.costs.add("evaluation", part.cost)
        self.failed_completions += part.failed
        self._note_earned(part.rewards)
        self._seen(population, examples, part, stage)
        return part

    def _seen(self, population: Population, examples: Sequence[Example], evaluation: Evaluation, stage: str) -> None:
        """Let it be known what was written for training prompts."""
        for row, individual in enumerate(population.individuals):
            for column, worth in enumerate(evaluation.paid(row).tolist()):
                completion, tokens = evaluation.completions[row][column], self.costs.generated_tokens
                where = FirstHit(self.generation, stage, individual.id, examples[column].prompt, completion, tokens)
                self.hits.add(where, evaluation.completion_ids[row][column], worth)
        if self.refiner is not None:
            self.refiner.observe(examples, evaluation)

    def _learn(
        self, population: Population, evaluation: Evaluation, prompts: Sequence[Example], progress: float
    ) -> dict[str, Any]:
        """The rest of a generation that was measured: refine, validate, tell the strategy. Returns its metrics."""
        metrics: dict[str, Any] = {}
        if self.refiner is not None:
            population, evaluation, metrics = self._refine(population, evaluation, prompts, progress)
        fitness, order = evaluation.fitness, standing(evaluation)
        best = int(elites(torch.from_numpy(order), 1)[0])
        average = newest(population, AVERAGE)
        # An average smooths out what one generation's prompts have favoured, but lags.
        candidate = best if average is None or self.clearly_loses(average, best, evaluation, "validation") else average
        validation = self._validate(population.select([candidate]))
        self.strategy.tell(population, order)
        proposal = self._keep()
        if self.refiner is not None:
            metrics |= survival(self.refiner.name, population, proposal, self.generation)
        if self.rewards:
            metrics |= {"validation.base_reward": self.rewards[0], "validation.reward": self.rewards[1]}
        return metrics | {
            "fitness.best": float(fitness[best]),
            "fitness.mean": float(np.nanmean(fitness)),
            "fitness.worst": float(np.nanmin(fitness)),
            "validation": validation,
            "best.id": population.individuals[best].id,
            "best.operator": population.individuals[best].operator,
        }

    def check_winner(self, winner: Population, evaluation: Evaluation, prompts: Sequence[Example]) -> None:
        """Whether what was computed after the last generation can be told: the final choice, in as many places as it
        had, and what the winner has written. Raises EngineError where it cannot."""
        finalists = self.hall_of_fame.members.join(winner)
        self._checked(finalists, len(finalists) - 1, evaluation.completion_ids[0], evaluation.examples or prompts, 1)

    def _checked(
        self,
        population: Population,
        owner: int,
        written: Sequence[Sequence[int]],
        asked: Sequence[Example],
        later: int = 0,
    ) -> dict[str, Any]:
        """Whether what was computed in this generation, or `later`, can be kept: what the `owner` has written to the
        shortest prompt. Raises EngineError where it cannot."""
        if self.canary is None:
            return {}
        start = time.perf_counter()
        self.reporter.begin("checking the engine")
        # None where a race left it out.
        columns = [column for column in range(len(asked)) if written[column]]
        row = None
        if columns:
            column = min(columns, key=lambda column: len(asked[column].prompt))
            (prompt,) = self.canary.text.encode([asked[column].prompt])
            name, greedy = f"individual {population.individuals[owner].id}", asked[column].draw is None
            row = Row(owner, name, prompt, written[column], greedy=greedy)
        tolerances = self.canary.check(population.genomes, row, generation=self.generation + later)
        return {"canary": tolerances, "time.canary": time.perf_counter() - start}

    def _wait(self) -> dict[str, Any]:
        """The rest of a generation of which nothing was scored: nobody is selected, so the same population meets the
        next one's prompts."""
        self._keep()
        unknown = dict.fromkeys(("fitness.best", "fitness.mean", "fitness.worst", "validation"), math.nan)
        return {**unknown, "best.id": None, "best.operator": None}

    def _keep(self) -> Population:
        """Let evaluator and refiner forget all but who lives: the population that is proposed next, which is returned,
        and the hall of fame."""
        proposal = self.strategy.ask()
        living = proposal.join(self.hall_of_fame.members)
        self.evaluator.keep(living.genomes)
        if self.refiner is not None:
            self.refiner.keep(living.individuals)
        return proposal

    def spent(self) -> dict[str, float]:
        """What the generations so far have cost, as docs/metrics.md defines it."""
        return {**self.costs.metrics(), "time.loop": self.seconds}

    def _refine(
        self, population: Population, evaluation: Evaluation, prompts: Sequence[Example], progress: float
    ) -> tuple[Population, Evaluation, dict[str, Any]]:
        """Refine the best by RL and let in those that earn it: the population, its fitness and rewards, and metrics."""
        assert self.refiner is not None
        rows = self._to_be_refined(population, evaluation)
        parents = population.select(rows)
        # Acceptance is judged on `prompts`, so training keeps off them as far as there are others.
        seen = {example.prompt for example in prompts}
        others = [example for example in self.task.train if example.prompt not in seen] or self.task.train
        count = self.config.rollout_prompts * self.config.rl_steps
        training = self._draw("rollout", others, count)
        # Few prompts come up several times: each is sampled anew.
        training = list(itertools.islice(itertools.cycle(training), count))
        children = [self.strategy.new_id() for _ in rows]
        refinement = self.refiner.refine(
            parents.genomes,
            training,
            key=[(self.generation, parent.id) for parent in parents.individuals],
            children=children,
            hyperparameters=[parent.hyperparameters for parent in parents.individuals],
            steps=self.config.rl_steps,
            progress=progress,
        )
        for each in refinement.sampled:
            who, tokens = children[each.row], self.costs.generated_tokens + each.tokens
            where = FirstHit(self.generation, "rollout", who, each.prompt, each.completion, tokens)
            self.hits.add(where, each.completion_ids, each.worth)
        self.costs += refinement.costs
        self.failed_completions += refinement.failed
        self._note_earned(np.array(refinement.earned))
        scales = mutation_scales(parents, refinement, rule=self.config.refined_scale)
        refined = Population(
            refinement.genomes,
            tuple(
                replace(
                    parent,
                    id=child,
                    parents=(parent.id,),
                    operator=self.refiner.name,
                    born=self.generation,
                    mutation_scale=scale,
                )
                for parent, child, scale in zip(parents.individuals, children, scales, strict=True)
            ),
        )
        # The refined are still much like their parents, whose completions are their drafts.
        drafts = [evaluation.completion_ids[row] for row in rows]
        refined, refined_evaluation = self.measure(refined, prompts, "refined", drafts)
        if self.rare.known:
            with self.costs.timed("evaluation"):
                refined_evaluation, cost = self.rare.with_chances(refined, refined_evaluation)
            self.costs.add("evaluation", cost)
        seed = keyed_seed(self.config.seed, "acceptance", self.generation)
        accepted = entering(self.config.accept, evaluation, rows, refined_evaluation, seed=seed)
        gains = refined_evaluation.fitness - evaluation.fitness[rows]
        genomes, individuals = population.genomes.clone(), list(population.individuals)
        entered = {row: index for index, row in enumerate(rows) if accepted[index]}
        for row, index in entered.items():
            genomes[row], individuals[row] = refined.genomes[index], refined.individuals[index]
        together = evaluation.replaced(entered, refined_evaluation)
        metrics = refined_metrics(self.refiner.name, refinement, gains, accepted)
        metrics[f"{self.refiner.name}.added"] = float(np.nanmax(together.fitness) - np.nanmax(evaluation.fitness))
        return Population(genomes, tuple(individuals)), together, metrics

    def _to_be_refined(self, population: Population, evaluation: Evaluation) -> list[int]:
        """The rows that are refined: the best, or the one that was refined last, unless it clearly loses."""
        best: list[int] = elites(torch.from_numpy(standing(evaluation)), self.config.refine).tolist()
        head = newest(population, self.refiner.name) if self.refiner is not None else None
        if self.config.refine_whom == "best" or head is None:
            return best
        if self.rare.known and evaluation.fitness[head] == evaluation.fitness[best[0]]:
            assert evaluation.hit_chances is not None
            return best if clearly_more(*evaluation.hit_chances[[best[0], head]]) > 0 else [head]
        return best if self.clearly_loses(head, best[0], evaluation, "lineage") else [head]

    def clearly_loses(self, row: int, best: int, evaluation: Evaluation, purpose: str) -> bool:
        """Whether the best is better than another row, which may have failed, by more than chance, at a level that
        counts how many rivals the best was chosen from (Bonferroni)."""
        if math.isnan(evaluation.fitness[row]):
            return True
        seed = keyed_seed(self.config.seed, purpose, self.generation)
        level = CLEAR / max(len(evaluation.fitness) - 1, 1)
        return clearly_better(evaluation.of(best), evaluation.of(row), level=level, seed=seed)

    def measure(
        self, population: Population, examples: Sequence[Example], stage: str, drafts: Drafts | None = None
    ) -> tuple[Population, Evaluation]:
        """Evaluate and record: the population with its history, and what was measured."""
        base = stage == "validation" and self.hall_of_fame.empty
        self.reporter.begin("base on validation" if base else _PHASES.get(stage, stage))
        with self.costs.timed("evaluation"):
            if stage == "population" and self.config.racing is not None:
                self.race = race(
                    self.evaluator,
                    population.genomes,
                    examples,
                    keep=max(self.config.elites, self.config.refine),
                    block=self.config.racing_block,
                    level=self.config.racing,
                    seed=keyed_seed(self.config.seed, "racing", self.generation),
                )
                evaluation = self.race.evaluation
            else:
                evaluation = self.evaluator.evaluate(population.genomes, examples, drafts=drafts)
            if self.judge is not None and stage == "population":
                evaluation = self.judge.judge(self.generation, population, examples, evaluation)
        return self._recorded(population, examples, evaluation, stage), evaluation

    def measure_finalists(self, population: Population) -> tuple[Population, Evaluation, list[Example]]:
        """The same, on the validation prompts that the allowance is enough for, which are returned too."""
        self.reporter.begin(_PHASES["final"])
        with self.costs.timed("evaluation"):
            examples, (written,) = self.allowance.evaluated(
                lambda some: [self.evaluator.written(population.genomes, some)],
                self.task.validation,
                seed=self.config.seed,
                split="validation",
            )
            evaluation = self.evaluator.judged(written, examples)
        return self._recorded(population, examples, evaluation, "final"), evaluation, examples

    def _recorded(
        self, population: Population, examples: Sequence[Example], evaluation: Evaluation, stage: str
    ) -> Population:
        self.costs.add("evaluation", evaluation.cost)
        self.failed_completions += evaluation.failed
        self._note_earned(evaluation.rewards)
        fitness, examples = evaluation.fitness, evaluation.examples or examples
        if stage in ("population", "refined"):
            population = Population(
                population.genomes,
                tuple(
                    replace(individual, history=(*individual.history, (self.generation, float(value))))
                    for individual, value in zip(population.individuals, fitness, strict=True)
                ),
            )
        for genome, individual in zip(population.genomes, population.individuals, strict=True):
            self.lineage.born(individual, genome)
        self.lineage.measured(self.generation, stage, population.individuals, fitness)
        if stage in ("population", "refined"):
            self._seen(population, examples, evaluation, stage)
        if stage in ("final", SOUP):
            self.finals.append((population, evaluation))
        if stage == "validation":
            self.lineage.sampled(
                self.generation,
                population.individuals[0],
                stage,
                [example.prompt for example in examples[:SAMPLES]],
                evaluation.completions[0][:SAMPLES],
                evaluation.worth(0)[:SAMPLES],
            )
            self.reporter.wrote(
                population.individuals[0].operator,
                float(fitness[0]),
                [
                    sample(*each)
                    for each in zip(
                        examples[:SAMPLES], evaluation.completions[0], evaluation.worth(0).tolist(), strict=False
                    )
                ],
            )
        return population

    def _note_earned(self, rewards: Floats) -> None:
        known = [*rewards[~np.isnan(rewards)].ravel(), *(self.earned or ())]
        self.earned = (float(min(known)), float(max(known))) if known else None

    def _clipped(self, evaluation: Evaluation) -> float:
        """The share of completions that the limit cut; those that a race left out are none."""
        written = [ids for own in evaluation.completion_ids for ids in own if ids]
        return sum(map(self.evaluator.cut, written)) / len(written) if written else math.nan

    def _race_metrics(self) -> dict[str, Any]:
        if self.race is None:
            return {}
        return {"racing.dropped": self.race.dropped, "racing.saved_completions": self.race.saved}

    def _validate(self, candidates: Population) -> float:
        """Fitness of the first candidate on the fixed validation prompts; each enters the hall of fame if it is among
        the best there."""
        examples = self.task.validation[: self.config.validation_prompts]
        if self.judge is not None and not self.hall_of_fame.empty:
            # What it has learned since has changed the measure.
            with self.costs.timed("evaluation"):
                again = self.evaluator.evaluate(self.hall_of_fame.members.genomes, examples)
            self.costs.add("evaluation", again.cost)
            self.hall_of_fame.fitness = again.fitness.tolist()
        candidates, evaluation = self.measure(candidates, examples, "validation")
        if (
            self.hall_of_fame.empty
            and self.judge is None
            and evaluation.pays
            and self.hits.begin(evaluation.paid(0), beside=bool(evaluation.judged))
            and self.refiner is not None
        ):
            self.refiner.starts_from_nothing()
        values = evaluation.fitness.tolist()
        self.terms = term_means(evaluation, 0)
        if evaluation.judged:
            reward = float(evaluation.mean_rewards[0])
            self.rewards = (self.rewards or (reward, reward))[0], reward
        self.hall_of_fame.enter(candidates, values)
        return float(values[0])

    def _draw(self, purpose: str, examples: Sequence[Example], count: int) -> list[Example]:
        """This generation's prompts for a purpose, without repetition; all of them when there are no more."""
        order = torch.randperm(
            len(examples), generator=keyed_generator(self.config.seed, f"{purpose} prompts", self.generation)
        )
        return [examples[index] for index in order[:count].tolist()]

    def only_the_reward_rose(self, fitness: float) -> bool:
        """Whether the latest to be validated, of this fitness there, earns more than the base and is no fitter."""
        base = self.hall_of_fame.fitness[0]
        return self.rewards is not None and self.rewards[1] > self.rewards[0] and fitness <= base

    def base(self) -> Individual:
        """Individual 0, the untouched base model."""
        return self.hall_of_fame.members.individuals[0]

    def best(self) -> Population:
        """The best on validation so far, as a population of one."""
        return self.hall_of_fame.best()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and JSON values by name."""
        state: dict[str, Any] = {
            "generation": self.generation,
            "failed_completions": self.failed_completions,
            "rewards": self.rewards,
            "earned": self.earned,
            "hits": self.hits.state_dict(),
        }
        state |= {f"spent.{name}": value for name, value in self.spent().items()}
        state |= {f"hall.{name}": value for name, value in self.hall_of_fame.state_dict().items()}
        state |= {f"strategy.{name}": value for name, value in self.strategy.state_dict().items()}
        state |= {f"evaluator.{name}": value for name, value in self.evaluator.state_dict().items()}
        if self.refiner is not None:
            state |= {f"refiner.{name}": value for name, value in self.refiner.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.generation = state["generation"]
        spent = _under("spent.", state)
        self.costs, self.seconds = Costs.from_metrics(spent), spent["time.loop"]
        self.failed_completions = state["failed_completions"]
        self.rewards, self.earned = _pair(state.get("rewards")), _pair(state.get("earned"))
        self.hits = self.rare.hits = Hits.from_state_dict(state["hits"])
        self.hall_of_fame.load_state_dict(_under("hall.", state))
        self.strategy.load_state_dict(_under("strategy.", state))
        self.evaluator.load_state_dict(_under("evaluator.", state))
        if self.refiner is not None:
            self.refiner.load_state_dict(_under("refiner.", state))


def sample(example: Example, completion: str, reward: float) -> Sample:
    """What was written, for people to read: of chat messages the last is what it answers."""
    target = example.columns.get("target")
    prompt = example.prompt if example.messages is None else example.messages[-1]["content"]
    return Sample(prompt, None if target is None else str(target), completion, reward)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def _mean(values: Floats) -> float:
    """Of those that there are."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
