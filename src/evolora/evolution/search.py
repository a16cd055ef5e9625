"""The search for the first hits: where a run starts from nothing, everybody samples until a few hits are known.

A sample costs a seventh of one that is also trained on twice, and what earns nothing teaches nothing; a hit, though, is
imitated from then on (`refiners.imitation`). So it pays to sample alone at first.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from evolora.evolution.allowance import Allowance
from evolora.models.cost import Cost
from evolora.tasks.task import Example

# Hits that are enough to begin with; when half of what is allowed is spent one is.
ENOUGH = 4
# Of what validation and test may cost at the end of a run with a budget, the search may take twice as much.
TIMES = 2.0
# Samples of one individual at a time.
_BLOCK = 64
# The draws' numbers begin here: no other sample has them.
_FIRST_DRAW = 2**40


def searched(
    individuals: int,
    examples: Sequence[Example],
    most: int,
    allowance: Allowance,
    *,
    ask: Callable[[int, Sequence[Example]], Cost],
    known: Callable[[], int],
) -> int:
    """Have individuals sample the prompts of `examples` in turn, each a block of its own draws, by `ask`, which takes
    an individual's number and says what it cost; until enough hits are `known`, `most` samples were made, or the
    allowance is spent, the latter half of it only while none is known. Returns how many there were."""
    start, spent, done = time.perf_counter(), Cost(), 0
    prompts = itertools.cycle(examples)
    for number in itertools.cycle(range(individuals)):
        size = min(_BLOCK, most - done)
        left = allowance.left(spent)
        if size <= 0 or known() >= (ENOUGH if left >= 1 else 1) or not left:
            break
        block = [
            replace(example, draw=_FIRST_DRAW + done + place)
            for place, example in enumerate(itertools.islice(prompts, size))
        ]
        cost = ask(number, block)
        spent = Cost(spent.tokens + cost.tokens, spent.flops + cost.flops, seconds=time.perf_counter() - start)
        done += size
    return done
