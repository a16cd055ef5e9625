"""Best of n: the untouched base, sampled again and again on the test prompts; of each prompt's samples the one with the
highest reward counts. It needs the reward when it is used, so it is a reference and no competitor."""

import numpy as np

from evolora.rewards import Reward, RewardScorer
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.tasks.task import columns_of
from study.budget import Budget, Meter, Point

ROWS = 512


def best_of_n(parts: Parts, reward: Reward, true_reward: Reward, seed: int, budget: Budget) -> list[Point]:
    """A point for each n: n samples a test prompt, chosen by `reward` and judged by `true_reward`."""
    text, examples = parts.text, parts.task.test
    chooser, judge = RewardScorer(reward), RewardScorer(true_reward)
    prompts, columns = [example.prompt for example in examples], columns_of(examples)
    best, judged = np.full(len(examples), -np.inf), np.zeros(len(examples))
    points: list[Point] = []
    meter = Meter(parts.base.model)
    while not points or not budget.over(len(points), meter.seconds):
        texts: list[str] = []
        ids: list[list[int]] = []
        for start in range(0, len(prompts), ROWS):
            batch = text.encode(prompts[start : start + ROWS])
            rows = range(start, start + len(batch))
            seeds = np.array([keyed_seed(seed, "best of n", len(points), row) for row in rows], dtype=np.uint64)
            written = parts.engine.generate(None, batch, text.decoding(parts.max_new_tokens, seeds=seeds))
            texts += text.decode(written)
            ids += written.rows()
            meter.generated(sum(map(len, batch)), written.tokens)
        scores, truths = (
            scorer.score(prompts=prompts, completions=texts, columns=columns, completion_ids=ids).rewards
            for scorer in (chooser, judge)
        )
        better = scores > best
        best, judged = np.where(better, scores, best), np.where(better, truths, judged)
        points.append(Point(meter.seconds, meter.tokens, meter.flops, test=float(judged.mean())))
    return points
