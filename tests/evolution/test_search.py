"""The search for the first hits: whom it asks, and when it ends."""

from collections.abc import Sequence

import pytest

from evolora.evolution.allowance import UNLIMITED, Allowance
from evolora.evolution.search import ENOUGH, searched
from evolora.models.cost import Cost
from evolora.tasks.task import Example

EXAMPLES = [Example(f"prompt {number}", {}) for number in range(10)]


def search(
    most: int, allowance: Allowance = UNLIMITED, hits: Sequence[int] = (), individuals: int = 3
) -> tuple[int, list[tuple[int, Sequence[Example]]]]:
    """How many were sampled, and who was asked what; `hits` are the numbers of the samples that are some."""
    asked: list[tuple[int, Sequence[Example]]] = []

    def ask(row: int, block: Sequence[Example]) -> Cost:
        asked.append((row, block))
        return Cost(tokens=10 * len(block))

    def known() -> int:
        done = sum(len(block) for _, block in asked)
        return sum(number < done for number in hits)

    return searched(individuals, EXAMPLES, most, allowance, ask=ask, known=known), asked


def test_everybody_is_asked_in_turn_and_no_draw_comes_twice() -> None:
    count, asked = search(300)
    assert count == 300 and [row for row, _ in asked] == [0, 1, 2, 0, 1]
    samples = [(example.prompt, example.draw) for _, block in asked for example in block]
    assert len(set(samples)) == len({draw for _, draw in samples}) == 300
    assert {prompt: [each for each, _ in samples].count(prompt) for prompt, _ in samples} == {
        example.prompt: 30 for example in EXAMPLES
    }


def test_it_ends_when_enough_is_known() -> None:
    assert search(10_000, hits=[5, 70, 71])[0] == 10_000
    assert search(10_000, hits=[5, 70, 71, 130])[0] == 192
    assert search(10_000, hits=range(ENOUGH))[0] == 64


@pytest.mark.parametrize(("allowance", "count"), [(Allowance(tokens=1), 64), (Allowance(tokens=1500), 192)])
def test_it_takes_no_more_than_a_block_over_what_is_allowed(allowance: Allowance, count: int) -> None:
    assert search(10_000, allowance)[0] == count


def test_none_is_none() -> None:
    assert search(0) == (0, [])


def test_when_half_is_spent_one_hit_is_enough() -> None:
    allowance = Allowance(tokens=6 * 640)
    assert search(10_000, allowance, hits=[5])[0] == 4 * 64
    assert search(10_000, allowance, hits=[5, 6, 7, 8])[0] == 64
    assert search(10_000, allowance, hits=[300])[0] == 5 * 64
    assert search(10_000, allowance)[0] == 6 * 64
