"""What a run is to be better at: the reward that RL follows, and the fitness that individuals are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evolora.fitness.base import Fitness, FitnessContext
from evolora.fitness.judging import ByCompletion
from evolora.fitness.loading import make_fitness, parse_fitness, parse_followed
from evolora.human.exchange import run_votes
from evolora.human.feedback import VotedScorer
from evolora.models.base import BaseModel
from evolora.rewards import RewardContext, Scorer, ScoringOptions, make_scorer
from evolora.rewards.base import Reward
from evolora.rewards.expression import Expression
from evolora.rewards.options import HUMAN
from evolora.rewards.scoring import function_scorer
from evolora.runs.given import Given, refuse_forgotten
from evolora.runs.options import RunOptions
from evolora.runs.recovery import REWARD_LOG
from evolora.tasks.task import Task


@dataclass(frozen=True)
class Wanted:
    """Reward and fitness with the Python functions among their terms, before the model is loaded that they may ask.
    `reward` is None where people vote or nothing is scored; `fitness` where people judge or the reward does."""

    reward: Expression | None
    functions: Mapping[str, Reward]
    fitness: tuple[Expression, Mapping[str, Reward]] | None
    people_vote: bool
    people_judge: bool
    scores: bool

    @classmethod
    def of(cls, config: RunOptions, given: Given, reward: str, *, scores: bool) -> "Wanted":
        """By the options, what was given as objects, and the task's own `reward`; nothing, unless the run `scores`.

        Raises InputError for what is no reward or fitness, and for an object that a run was given before and lacks now.
        """
        refuse_forgotten(config.model.name, reward, config.evolution.fitness, given)
        people_judge = scores and config.evolution.fitness == HUMAN
        fitness = given.fitness
        if not scores or people_judge:
            fitness = None
        elif fitness is None and config.evolution.fitness is not None:
            fitness = parse_fitness(config.evolution.fitness), {}
        expression, functions = given.reward or (None, {})
        people_vote = expression is None and reward == HUMAN
        if expression is None and not people_vote and scores:
            expression = parse_followed(reward)
        return cls(expression, functions, fitness, people_vote, people_judge, scores)

    @property
    def asks_people(self) -> bool:
        """Whether there will be a page to vote on."""
        return self.people_vote or self.people_judge

    def made(
        self, used: RunOptions, base: BaseModel, task: Task, device: str, *, finished: bool
    ) -> tuple[Scorer, Fitness | None]:
        """What scores completions, and what judges individuals, where the mean of what they earn greedily does not. An
        adapter that is `finished` is scored by all votes of its run. Raises InputError."""

        def voted() -> VotedScorer:
            scorer = VotedScorer(base.folder, device=device, seed=used.run.seed)
            if finished:
                scorer.learn_when_asked(run_votes(Path(used.run.out or "")))
            return scorer

        scoring = _scoring(used, conversational=task.conversational)
        scorer: Scorer
        if self.people_vote:
            scorer = voted()
        elif self.reward is None:
            scorer = function_scorer(_no_score, task.columns, ScoringOptions())
        else:
            scorer = make_scorer(self.reward, task.columns, scoring, RewardContext(base), self.functions)
        samples = used.evolution.fitness_samples
        if self.fitness is not None:
            context = FitnessContext(samples, task.columns, used.evolution.group_column, RewardContext(base))
            return scorer, make_fitness(self.fitness[0], scoring, context, self.fitness[1])
        if self.people_judge:
            return scorer, ByCompletion(voted(), samples=samples)
        if samples > 1 and self.scores:
            return scorer, ByCompletion(scorer, samples=samples)
        return scorer, None


def _no_score(completions: Sequence[str]) -> list[None]:
    return [None] * len(completions)


def _scoring(config: RunOptions, *, conversational: bool) -> ScoringOptions:
    folder = None if config.run.out is None else Path(config.run.out)
    return ScoringOptions(
        on_error="skip" if config.reward.on_error == "skip" else "raise",
        failed_reward=config.reward.failed,
        workers=config.reward.workers,
        timeout=config.reward.timeout,
        # A reward that varies is not to be kept.
        cache=folder / "rewards.sqlite" if folder and config.reward.cache and config.evolution.remember else None,
        log=folder / REWARD_LOG if folder else None,
        conversational=conversational,
    )
