"""Before the first generation: whether the reward tells the base's completions apart."""

import numpy as np

from evolora.evolution.small_probabilities import CONFIDENCE, most_often
from evolora.population.writing import Writer, rewarded
from evolora.refiners.options import PolicyGradientConfig
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.tasks.task import drawn_order

_PROMPTS, _SAMPLES = 16, 4


def warn_of_equal_rewards(parts: Parts) -> int:
    """Say so where all that the base samples earns the same, and what is to be expected then: of how many completions;
    0 where rewards differ. It stops at the first two that do, its draws are its own, and its tokens count for no
    budget."""
    seed, config = parts.config.run.seed, parts.config
    order = drawn_order(parts.task.train, seed, "outlook")[:_PROMPTS]
    examples = [parts.task.train[row] for row in order]
    known: list[float] = []
    for sample in range(_SAMPLES):
        draws = np.random.default_rng(keyed_seed(seed, "outlook", sample))
        written = Writer(parts.engine, parts.text).write_in_slices(
            parts.founder[None],
            examples,
            parts.max_new_tokens,
            rows=config.engine.rows_per_slice or len(examples),
            seeds=draws.integers(0, 2**63, len(examples), dtype=np.uint64),
            temperature=config.completion.temperature,
            truncation=config.completion.truncation,
        )
        rewards = rewarded(parts.scorer, written).rewards
        known += rewards[~np.isnan(rewards)].tolist()
        if len(set(known)) > 1:
            return 0
    if known:
        parts.view.say(_warning(parts, known[0], len(known), len(examples)))
    return len(known)


def _warning(parts: Parts, reward: float, count: int, prompts: int) -> str:
    share = most_often(count)
    refiner = parts.config.refiner
    expected = ""
    if isinstance(refiner, PolicyGradientConfig):
        samples = parts.config.evolution.refine * refiner.rl_steps * refiner.rollout_prompts * refiner.rollout_samples
        expected = (
            f": expect at most {share * samples:.0f} among a generation's {samples} samples, and perhaps none ever"
        )
    solved = f" If {reward:g} is the best there is, nothing is left to learn." if reward > 0 else ""
    return (
        f"Warning: all {count} completions that the base sampled on {prompts} training prompts earn {reward:g}. Under "
        f"{share:.1%} of them earn anything else, at {CONFIDENCE:.0%} confidence{expected}.{solved} What helps: a "
        "term that says which is nearer, such as 'exact + 0.2 * similarity', with --fitness for what is wanted, or "
        "worked examples in the prompt."
    )
