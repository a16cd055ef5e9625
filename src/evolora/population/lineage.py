"""The run's ledger: who descends from whom, by which operator, with what fitness, and samples of what they wrote."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import Tensor

from evolora.errors import CheckpointError
from evolora.population.population import Individual, genome_sha256_later

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
CREATE TABLE IF NOT EXISTS genes (
    individual INTEGER NOT NULL REFERENCES individuals (id), name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (individual, name)
);
CREATE TABLE IF NOT EXISTS run (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS checksums (generation INTEGER PRIMARY KEY, sha256 TEXT NOT NULL);
"""
# A generation's entries, in an order of their own.
_ENTRIES = (
    "SELECT * FROM individuals WHERE generation = ? ORDER BY id",
    "SELECT parents.* FROM parents JOIN individuals ON child = id WHERE generation = ? ORDER BY child, position",
    "SELECT * FROM fitness WHERE generation = ? ORDER BY individual, stage",
    "SELECT * FROM samples WHERE generation = ? ORDER BY individual, stage, prompt, completion, reward",
)
# Of which a run without them, as before there were any, has no entry.
_GENES = "SELECT genes.* FROM genes JOIN individuals ON individual = id WHERE generation = ? ORDER BY individual, name"
_ELSEWHERE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
_TABLES = ("samples", "fitness", "individuals")


class Lineage:
    """The ledger in SQLite, of the run whose id is `run`. A generation is written in one transaction, with its
    checksum: after a kill it is there whole or not at all. Raises CheckpointError for a file that is no such ledger.

    `stage` says where a fitness was measured: `population`, `refined`, `validation`, `final`, `soup`, `test`. A failed
    individual's fitness is NULL. `summands` name the weights that individuals may have.

    >>> import torch
    >>> lineage = Lineage()  # in memory
    >>> lineage.born(Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02), torch.zeros(4))
    >>> lineage.born(Individual(id=1, parents=(0,), operator="ppo", born=1, mutation_scale=0.02), torch.ones(4))
    >>> lineage.query("SELECT child, parent, operator FROM parents JOIN individuals ON child = id")
    [(1, 0, 'ppo')]
    """

    def __init__(self, path: Path | str = ":memory:", run: str | None = None, summands: Sequence[str] = ()) -> None:
        self._path = path
        self.summands = summands
        self._known: set[int] = set()
        self._changed: set[int] = set()
        self._born: list[tuple[Individual, Future[str]]] = []
        self._connection = sqlite3.connect(path)
        with self._readable():
            self._connection.executescript(_SCHEMA)
            if run is not None and not self.query("SELECT 1 FROM individuals LIMIT 1"):
                self._connection.execute("DELETE FROM run")
                self._connection.execute("INSERT INTO run VALUES (?)", (run,))
                self.commit()

    def born(self, individual: Individual, genome: Tensor) -> None:
        """Enter an individual with the checksum of its genome, once."""
        if individual.id in self._known:
            return
        self._known.add(individual.id)
        self._changed.add(individual.born)
        self._born.append((individual, genome_sha256_later(genome.clone())))

    def _enter_born(self) -> None:
        """Enter those whose checksums were still to be made."""
        for individual, checksum in self._born:
            self._connection.execute(
                "INSERT OR IGNORE INTO individuals VALUES (?, ?, ?, ?, ?)",
                (individual.id, individual.born, individual.operator, individual.mutation_scale, checksum.result()),
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO parents VALUES (?, ?, ?)",
                [(individual.id, position, parent) for position, parent in enumerate(individual.parents)],
            )
            genes = {} if individual.hyperparameters is None else individual.hyperparameters.named(self.summands)
            self._connection.executemany(
                "INSERT OR IGNORE INTO genes VALUES (?, ?, ?)",
                [(individual.id, name, value) for name, value in genes.items()],
            )
        self._born.clear()

    def measured(
        self, generation: int, stage: str, individuals: Sequence[Individual], fitness: Iterable[float]
    ) -> None:
        """Enter the individuals' fitness."""
        self._changed.add(generation)
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
        self._changed.add(generation)
        self._connection.executemany(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)",
            [
                (generation, individual.id, stage, prompt, completion, float(reward))
                for prompt, completion, reward in zip(prompts, completions, rewards, strict=True)
            ],
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What the ledger answers to a SELECT."""
        self._enter_born()
        return self._connection.execute(sql).fetchall()

    @property
    def run(self) -> str | None:
        """The id of the run that it is of."""
        return next((str(row[0]) for row in self.query("SELECT id FROM run")), None)

    def commit(self) -> None:
        self._enter_born()
        self._connection.executemany(
            "INSERT OR REPLACE INTO checksums VALUES (?, ?)",
            [(generation, self._sha256(generation)) for generation in sorted(self._changed)],
        )
        self._changed.clear()
        self._connection.commit()

    def check(self, generations: int) -> None:
        """Raise CheckpointError unless the file is whole and has the first `generations` as they were entered."""
        with self._readable():
            (verdict,) = self.query("PRAGMA integrity_check(1)")[0]
            if verdict != "ok":
                raise CheckpointError(f"{self._path}: altered: {' '.join(str(verdict).split())}")
            sums = dict(self.query("SELECT generation, sha256 FROM checksums"))
            for generation in range(generations + 1 if generations else 0):
                if generation not in sums:
                    raise CheckpointError(f"{self._path}: has no entries of generation {generation}")
                if sums[generation] != self._sha256(generation):
                    raise CheckpointError(f"{self._path}: the entries of generation {generation} are altered")

    def _sha256(self, generation: int) -> str:
        """The checksum of a generation's entries."""
        digest = hashlib.sha256()
        for sql in _ENTRIES:
            digest.update(repr(self._connection.execute(sql, (generation,)).fetchall()).encode())
        if genes := self._connection.execute(_GENES, (generation,)).fetchall():
            digest.update(repr(genes).encode())
        return digest.hexdigest()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise_if_elsewhere(error)
            raise CheckpointError(f"{self._path}: altered, it cannot be read ({error})") from None

    def rewind(self, generation: int) -> None:
        """Forget all that happened after `generation`: what a resumed run will do again."""
        self._known.clear()
        self._changed.clear()
        self._born.clear()
        for table, column in (("parents", "child"), ("genes", "individual")):
            self._connection.execute(
                f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM individuals WHERE generation > ?)",
                (generation,),
            )
        for table in _TABLES:
            self._connection.execute(f"DELETE FROM {table} WHERE generation > ?", (generation,))
        self._connection.execute("DELETE FROM checksums WHERE generation > ?", (generation,))
        for table in ("samples", "fitness"):
            final = "stage IN ('final', 'soup', 'test')"
            self._changed |= {row[0] for row in self.query(f"SELECT DISTINCT generation FROM {table} WHERE {final}")}
            self._connection.execute(f"DELETE FROM {table} WHERE {final}")
        self.commit()

    def copy(self, path: Path) -> None:
        """Write the ledger to a new file, without the generation that is under way, which is forgotten."""
        self._born.clear()
        self._connection.rollback()
        self._connection.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        self._connection.close()


def raise_if_elsewhere(error: sqlite3.DatabaseError | UnicodeDecodeError) -> None:
    """Raise it where it is not the file that is at fault, but who else holds it, the disk, or the memory."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _ELSEWHERE:
        raise error
