"""What validation and test may cost at the end of a run that has a budget: as many prompts are met as fit."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from evolora.models.cost import Cost
from evolora.population.evaluation import Evaluation, joined
from evolora.tasks.task import Example, drawn_order

# Of the budget, for the validation of the finalists, and for the test.
SHARE = 0.2
# Prompts that are met whatever they cost: fewer say little, and take about as long.
FIRST = 64

Evaluate = Callable[[Sequence[Example]], Sequence[Evaluation]]


@dataclass(frozen=True)
class Allowance:
    """At most so many seconds, tokens and operations; None is any number."""

    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None

    def times(self, factor: float) -> "Allowance":
        """So many times as much."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return Allowance(**{name: None if limit is None else factor * limit for name, limit in limits.items()})

    def evaluated(
        self, evaluate: Evaluate, examples: Sequence[Example], *, seed: int, split: str
    ) -> tuple[list[Example], list[Evaluation]]:
        """Of `examples`, the first ones that the seed draws, and twice as many again and again as long as there is room
        for what they will cost by then; in their order. Without a limit all of them, at once."""
        if self == UNLIMITED:
            return list(examples), list(evaluate(examples))
        order, start, spent = drawn_order(examples, seed, split), time.perf_counter(), Cost()
        parts: list[Sequence[Evaluation]] = []
        done, size = 0, min(FIRST, len(examples))
        while size:
            parts.append(evaluate([examples[row] for row in order[done : done + size]]))
            spent = sum((part.cost for part in parts[-1]), Cost(spent.tokens, spent.flops))
            spent += Cost(seconds=time.perf_counter() - start)
            done += size
            size = min(done, len(examples) - done, int(done * self.left(spent)))
            if size < done // 4 and done + size < len(examples):
                break
        met = order[:done]
        return [examples[row] for row in sorted(met)], [joined(own, met) for own in zip(*parts, strict=True)]

    def left(self, spent: Cost) -> float:
        """How many times what was spent may be spent yet."""
        limits = ((self.seconds, spent.seconds), (self.tokens, spent.tokens), (self.flops, spent.flops))
        times = (limit / max(used, 1e-9) - 1 for limit, used in limits if limit is not None)
        return max(0.0, min(times, default=math.inf))


UNLIMITED = Allowance()
