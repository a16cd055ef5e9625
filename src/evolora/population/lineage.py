"""The run's ledger: who descends from whom, by which operator, with what fitness, and samples of what they wrote."""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evolora.population.population import Individual, genome_sha256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS individuals (
    id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, operator TEXT NOT NULL, mutation_scale REAL NOT NULL,
    genome_sha256 TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS parents (
    child INTEGER NOT NULL REFERENCES individuals (id), position INTEGER NOT NULL,
    parent INTEGER NOT NULL REFERENCES individuals (id), PRIMARY KEY (child, position)
);
CREATE TABLE IF NOT EXISTS fitness (
    generation INTEGER NOT NULL, individual INTEGER NOT NULL REFERENCES individuals (id), stage TEXT NOT NULL,
    fitness REAL, PRIMARY KEY (generation, individual, stage)
);
CREATE TABLE IF NOT EXISTS samples (
    generation INTEGER NOT NULL, individual INTEGER NOT NULL REFERENCES individuals (id), stage TEXT NOT NULL,
    prompt TEXT NOT NULL, completion TEXT NOT NULL, reward REAL
);
"""
_TABLES = ("samples", "fitness", "individuals")


class Lineage:
    """The ledger in SQLite. A generation is written in one transaction: after a kill it is there whole or not at all.

    `stage` says where a fitness was measured: `population`, `refined`, `validation`, `final`, `soup`, `test`. A failed
    individual's fitness is NULL.

    >>> import torch
    >>> lineage = Lineage()  # in memory
    >>> lineage.born(Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02), torch.zeros(4))
    >>> lineage.born(Individual(id=1, parents=(0,), operator="ppo", born=1, mutation_scale=0.02), torch.ones(4))
    >>> lineage.query("SELECT child, parent, operator FROM parents JOIN individuals ON child = id")
    [(1, 0, 'ppo')]
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        self._known: set[int] = set()
        self._connection = sqlite3.connect(path)
        self._connection.executescript(_SCHEMA)

    def born(self, individual: Individual, genome: Tensor) -> None:
        """Enter an individual with the checksum of its genome, once."""
        if individual.id in self._known:
            return
        self._known.add(individual.id)
        self._connection.execute(
            "INSERT OR IGNORE INTO individuals VALUES (?, ?, ?, ?, ?)",
            (individual.id, individual.born, individual.operator, individual.mutation_scale, genome_sha256(genome)),
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO parents VALUES (?, ?, ?)",
            [(individual.id, position, parent) for position, parent in enumerate(individual.parents)],
        )

    def measured(
        self, generation: int, stage: str, individuals: Sequence[Individual], fitness: Iterable[float]
    ) -> None:
        """Enter the individuals' fitness."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO fitness VALUES (?, ?, ?, ?)",
            [
                (generation, individual.id, stage, float(value))
                for individual, value in zip(individuals, fitness, strict=True)
            ],
        )

    def sampled(
        self,
        generation: int,
        individual: Individual,
        stage: str,
        prompts: Sequence[str],
        completions: Sequence[str],
        rewards: Iterable[float],
    ) -> None:
        """Enter what an individual wrote."""
        self._connection.executemany(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)",
            [
                (generation, individual.id, stage, prompt, completion, float(reward))
                for prompt, completion, reward in zip(prompts, completions, rewards, strict=True)
            ],
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What the ledger answers to a SELECT."""
        return self._connection.execute(sql).fetchall()

    def commit(self) -> None:
        self._connection.commit()

    def rewind(self, generation: int) -> None:
        """Forget all that happened after `generation`: what a resumed run will do again."""
        self._known.clear()
        self._connection.execute(
            "DELETE FROM parents WHERE child IN (SELECT id FROM individuals WHERE generation > ?)", (generation,)
        )
        for table in _TABLES:
            self._connection.execute(f"DELETE FROM {table} WHERE generation > ?", (generation,))
        for table in ("samples", "fitness"):
            self._connection.execute(f"DELETE FROM {table} WHERE stage IN ('final', 'soup', 'test')")
        self.commit()

    def copy(self, path: Path) -> None:
        """Write the ledger to a new file, without the generation that is under way, which is forgotten."""
        self._connection.rollback()
        self._connection.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        self._connection.close()
