"""Human votes as fitness and, through a reward model, as rewards: what `--reward human` does in a run."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.engine.progress import NOBODY, Reporter
from evolora.errors import InputError
from evolora.fitness.base import Judged
from evolora.human.bradley_terry import Fit, comparisons, fit_strengths
from evolora.human.choice import choose_pairs
from evolora.human.options import HumanOptions
from evolora.human.preferences import Preference
from evolora.human.reward_model import FittedRewardModel, fit_reward_model, is_held_out
from evolora.human.server import RatingPage
from evolora.human.status import PageStatus
from evolora.human.votes import VOTES_FILE, Pair, VoteStore
from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation, Judge, LocalEvaluator
from evolora.population.population import Population
from evolora.rewards import Scores
from evolora.rng import keyed_seed
from evolora.tasks.task import Example

Floats = npt.NDArray[np.float64]

_THANKS = "Thank you. The run goes on with your votes; the next questions come by themselves."
# Fewer pairs teach a reward model nothing but noise.
FEWEST_PREFERENCES = 4
# Standard deviation, in log-odds, of what individuals are worth around what the reward model says.
PRIOR_SCALE = 1.0


def check_page(host: str, port: int) -> None:
    """Raise InputError where the page could not be served: before a run leaves anything."""
    RatingPage(VoteStore(), host=host, port=port).check()


class VotedScorer:
    """Rewards by a reward model of the votes so far: the probability that a completion is preferred to a typical one
    that was voted on, in (0, 1). 0.5 for everything before the first fit.

    A completion's log-odds are the model's score minus the mean score of all texts in the votes.
    """

    name = "human"
    varies = True

    def __init__(self, base: str, *, device: str, seed: int) -> None:
        self.base = base
        self.device = device
        self.seed = seed
        self.model: FittedRewardModel | None = None
        self._pending: Sequence[Preference] | None = None

    def learn_when_asked(self, preferences: Sequence[Preference]) -> None:
        """Fit the model before the next score: nobody may ask for one."""
        self._pending = preferences

    def learn(self, preferences: Sequence[Preference]) -> None:
        """Fit the model anew to all votes; too few, and it stays as it is."""
        if sum(not one.tie and not is_held_out(one) for one in preferences) < FEWEST_PREFERENCES:
            return
        seed = keyed_seed(self.seed, "reward model", len(preferences))
        self.model = fit_reward_model(self.base, preferences, seed=seed, device=self.device)

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        groups: Sequence[int] | None = None,
        messages: Sequence[Sequence[Mapping[str, object]]] | None = None,
    ) -> Scores:
        del columns, completion_ids, groups, messages
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.learn(pending)
        log_odds = np.zeros(len(completions))
        if self.model is not None and completions:
            log_odds = self.model.score(prompts, completions) - self.model.typical
        return Scores(_sigmoid(log_odds), np.zeros(len(completions), dtype=np.bool_))

    @property
    def metrics(self) -> dict[str, float]:
        """The reward model's held-out agreement."""
        return {} if self.model is None or self.model.accuracy is None else {"agreement": self.model.accuracy}

    def at(self, generation: int) -> None:
        del generation

    def close(self) -> None:
        self.model = None


class HumanFeedback(Judge):
    """Asks people to compare what a generation's individuals wrote, and measures fitness by their votes.

    Every individual writes a greedy and a sampled completion for each prompt of the generation. Pairs of different
    individuals are asked about where a vote tells most, until `votes` of the generation are in. Then the reward model
    learns from all votes of the run, and an individual's fitness is its Bradley-Terry strength from the generation's
    votes, with the reward model's opinion of its greedy completions as the prior's mean; as a probability, to be
    preferred to a typical completion.
    """

    def __init__(
        self,
        evaluator: LocalEvaluator,
        scorer: VotedScorer,
        store: VoteStore,
        page: RatingPage,
        votes: int,
        *,
        seed: int,
        temperature: float,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        reporter: Reporter = NOBODY,
    ) -> None:
        self.evaluator = evaluator
        self.scorer = scorer
        self.store = store
        self.page = page
        self.votes = votes
        self.seed = seed
        self.temperature = temperature
        self.stop = stop
        self.say = say
        self.reporter = reporter

    def judge(
        self, generation: int, population: Population, examples: Sequence[Example], evaluation: Evaluation
    ) -> Evaluation:
        """Wait for the generation's votes. Raises KeyboardInterrupt when `stop` says so meanwhile."""
        ids = [individual.id for individual in population.individuals]
        sampled, cost = self.evaluator.sample(
            population.genomes,
            examples,
            key=ids,
            seed=keyed_seed(self.seed, "votes", generation),
            temperature=self.temperature,
        )
        pairs = _pairs(ids, examples, evaluation.completions, sampled)
        self._collect(generation, ids, pairs, self._prior(ids, evaluation))
        self.scorer.learn(self.store.preferences(until=generation))
        judged = self._scored(evaluation, examples, cost)
        fit = self._fit(generation, ids, self._prior(ids, judged))
        self._show(generation, 0, fit, _THANKS)
        return replace(judged, fitness=_sigmoid(np.array([fit.strength(individual) for individual in ids])))

    def summary(self) -> dict[str, Any]:
        """How many votes there are, and on what share of held-out ones the reward model agrees."""
        model = self.scorer.model
        return {"count": self.store.count(), "agreement": None if model is None else model.accuracy}

    def close(self) -> None:
        """Close the page and the store."""
        self.page.close()
        self.store.close()

    def _collect(self, generation: int, ids: Sequence[int], pairs: Sequence[Pair], prior: Mapping[int, float]) -> None:
        """Ask, and wait for the votes. What is asked does not depend on votes of this generation, so that a resumed run
        asks the same and finds its votes; a few more questions than wanted leave room for skipping."""
        fit = fit_strengths([], ids, prior_means=prior, prior_scale=PRIOR_SCALE)
        chosen = choose_pairs(pairs, fit, self.votes + max(3, self.votes // 4))
        wanted = min(self.votes, len(chosen))
        if wanted < self.votes:
            self.say(f"generation {generation}: only {wanted} questions to ask, the rest is written the same")
        self.store.ask(generation, chosen)
        self.reporter.begin(f"votes at {self.page.url}", wanted)
        self.page.wait_for(
            wanted,
            generation,
            self.stop,
            on_vote=lambda: self._voted(generation, wanted, self._fit(generation, ids, prior)),
        )
        if self.store.count(generation) < wanted and self.stop():
            raise KeyboardInterrupt
        self.store.close_generation()

    def _voted(self, generation: int, wanted: int, fit: Fit) -> None:
        self.reporter.at(self.store.count(generation), wanted)
        self._show(generation, wanted, fit, "")

    def _prior(self, ids: Sequence[int], evaluation: Evaluation) -> dict[int, float]:
        """The prior's means: the log-odds whose probability is the mean reward."""
        values = np.stack([evaluation.worth(row) for row in range(len(evaluation.fitness))])
        share = np.clip(np.nan_to_num(values.mean(1), nan=0.5), 1e-6, 1 - 1e-6)
        return dict(zip(ids, np.log(share / (1 - share)).tolist(), strict=True))

    def _fit(self, generation: int, ids: Sequence[int], prior: Mapping[int, float]) -> Fit:
        compared = comparisons(self.store.decided(generation))
        return fit_strengths(compared, ids, prior_means=prior, prior_scale=PRIOR_SCALE)

    def _scored(self, evaluation: Evaluation, examples: Sequence[Example], cost: Cost) -> Evaluation:
        n = len(evaluation.completions)
        scores = self.scorer.score(
            [example.prompt for _ in range(n) for example in examples],
            list(itertools.chain.from_iterable(evaluation.completions)),
            {},
        )
        values = scores.rewards.reshape(n, len(examples))
        cost = evaluation.cost + cost
        if evaluation.judged:  # RL follows another reward
            return replace(evaluation, judged=[Judged(float(row.mean()), 0, row) for row in values], cost=cost)
        return replace(evaluation, rewards=values, cost=cost)

    def _show(self, generation: int, wanted: int, fit: Fit, message: str) -> None:
        model = self.scorer.model
        self.page.status = PageStatus(
            generation=generation,
            wanted=wanted,
            certainty=fit.certainty(),
            agreement=None if model is None else model.accuracy,
            message=message,
        )


def open_page(
    folder: Path,
    evaluator: LocalEvaluator,
    scorer: VotedScorer,
    options: HumanOptions,
    *,
    seed: int,
    temperature: float,
    generation: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    reporter: Reporter = NOBODY,
) -> HumanFeedback:
    """Open the page of the run in `folder`, and say where it is; the scorer is as it was after `generation`. Raises
    InputError when the address cannot be had."""
    store = VoteStore(folder / VOTES_FILE)
    page = RatingPage(store, host=options.host, port=options.port)
    try:
        page.start()
    except InputError:
        store.close()
        raise
    say(f"Rate completions at {page.url}")
    scorer.learn(store.preferences(until=generation))
    return HumanFeedback(
        evaluator,
        scorer,
        store,
        page,
        options.votes,
        seed=seed,
        temperature=temperature,
        stop=stop,
        say=say,
        reporter=reporter,
    )


def _pairs(
    ids: Sequence[int], examples: Sequence[Example], greedy: Sequence[Sequence[str]], sampled: Sequence[Sequence[str]]
) -> list[Pair]:
    """All pairs of individuals on all prompts: their greedy completions, or, where those are the same, the sampled."""
    found = []
    for place, example in enumerate(examples):
        for a, b in itertools.combinations(range(len(ids)), 2):
            for texts in (greedy, sampled):
                left, right = texts[a][place], texts[b][place]
                if left.strip() != right.strip():
                    found.append(Pair(example.prompt, ids[a], left, ids[b], right))
                    break
    return found


def _sigmoid(log_odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-log_odds)))
