"""What individuals wrote and earned, remembered: an unchanged individual on an unchanged prompt is not asked again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evolora.models.cost import Cost
from evolora.population.evaluation import Drafts, Evaluation, Evaluator, mean_fitness
from evolora.population.naming import Named, Names
from evolora.tasks.task import Example, key_of

# What a completion left behind: its token ids, its text, its reward (None where there is no score), and the values of
# the reward's terms by name.
_Entry = tuple[list[int], str, float | None, dict[str, float | None]]


class RememberingEvaluator(Evaluator):
    """An evaluator that asks another only for what it does not know.

    Greedy decoding writes the same for the same genome and prompt, so a completion is remembered with its reward, by
    the genome's content and the example, until `keep` forgets the genome: what is kept is bounded by the genomes that
    live and the examples that they have met. Rewards that failed are not remembered. A reward that varies is drawn
    once.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._names = Names()
        self._memory: dict[Named, dict[str, _Entry]] = {}

    @property
    def memory(self) -> dict[str, dict[str, _Entry]]:
        """What is remembered, by the genomes' checksums."""
        return {named.sha256: entries for named, entries in self._memory.items()}

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        """As the other evaluator would; `cost` and `failed` count what was done now."""
        names = self._names.of(genomes)
        keys = [key_of(example) for example in examples]
        found = {name: dict(self._memory.get(name, {})) for name in names}
        cost, failed = Cost(), 0
        for rows, columns in _missing(names, keys, found):
            part = self.evaluator.evaluate(
                genomes[rows],
                [examples[column] for column in columns],
                drafts=None if drafts is None else [[drafts[row][column] for column in columns] for row in rows],
            )
            cost, failed = cost + part.cost, failed + part.failed
            for index, row in enumerate(rows):
                for place, column in enumerate(columns):
                    entry = (
                        part.completion_ids[index][place],
                        part.completions[index][place],
                        _score(part.rewards[index, place]),
                        {name: _score(values[index, place]) for name, values in part.terms.items()},
                    )
                    found[names[row]][keys[column]] = entry
                    if not part.failed:
                        self._memory.setdefault(names[row], {})[keys[column]] = entry
        entries = [[found[name][key] for key in keys] for name in names]
        rewards = np.array([[_or_nan(entry[2]) for entry in row] for row in entries])
        terms = {
            name: np.array([[_or_nan(entry[3][name]) for entry in row] for row in entries]) for name in entries[0][0][3]
        }
        return Evaluation(
            mean_fitness(rewards),
            rewards,
            [[entry[1] for entry in row] for row in entries],
            cost,
            failed,
            [[entry[0] for entry in row] for row in entries],
            terms,
        )

    def cut(self, ids: Sequence[int]) -> bool:
        return self.evaluator.cut(ids)

    def keep(self, genomes: Tensor) -> None:
        """Forget all but these genomes."""
        names = set(self._names.of(genomes))
        self._memory = {name: entries for name, entries in self._memory.items() if name in names}
        self._names.keep(names)
        self.evaluator.keep(genomes)

    def state_dict(self) -> dict[str, Any]:
        return {**self.evaluator.state_dict(), "memory": self.memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluator.load_state_dict(state)
        self._names = Names()
        self._memory = {
            self._names.expect(name): {
                key: (list(ids), text, reward, terms) for key, (ids, text, reward, terms) in entries.items()
            }
            for name, entries in state["memory"].items()
        }


def _missing(
    names: Sequence[Named], keys: Sequence[str], found: Mapping[Named, Mapping[str, _Entry]]
) -> list[tuple[list[int], list[int]]]:
    """What is not found as rectangles, (rows, columns): genomes that lack the same examples are asked together, and a
    genome or an example that is there twice is asked once."""
    rectangles: dict[tuple[int, ...], list[int]] = {}
    for row in {name: row for row, name in reversed(list(enumerate(names)))}.values():
        known = found[names[row]]
        first = {key: column for column, key in reversed(list(enumerate(keys)))}
        columns = tuple(sorted(column for key, column in first.items() if key not in known))
        if columns:
            rectangles.setdefault(columns, []).append(row)
    return [(sorted(rows), list(columns)) for columns, rows in rectangles.items()]


def _score(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
