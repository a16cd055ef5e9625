"""The store of questions and votes: one SQLite file that loses no vote and counts none twice."""

import contextlib
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from evolora.human.preferences import Preference

Choice = Literal["a", "b", "tie", "bad", "skip"]
"""What a rater can say of a pair: one is better, a tie, both bad, or nothing."""
Outcome = Literal["a", "b", "tie", "bad"]
"""A choice that decides a question."""
Verdict = Literal["accepted", "already", "taken", "closed"]
"""What became of a vote: it counts; this rater had voted before and that vote stays; another rater was first; the
generation's votes are in use."""

VOTES_FILE = "votes.sqlite"
"""A run's votes, in its folder."""

LEASE_SECONDS = 180.0

# The unique indices are what holds "never counted twice", whatever the code above them does.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, generation INTEGER, prompt TEXT NOT NULL,
    text_a TEXT NOT NULL, text_b TEXT NOT NULL, individual_a INTEGER, individual_b INTEGER,
    a_is_left INTEGER NOT NULL, leased_to TEXT, leased_until REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS questions_by_generation ON questions (generation);
CREATE TABLE IF NOT EXISTS votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, question TEXT NOT NULL REFERENCES questions (id), rater TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'bad', 'skip')), time REAL NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS one_decision ON votes (question) WHERE undone = 0 AND choice <> 'skip';
CREATE UNIQUE INDEX IF NOT EXISTS one_vote_a_rater ON votes (question, rater) WHERE undone = 0;
CREATE TABLE IF NOT EXISTS current (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER);
INSERT OR IGNORE INTO current VALUES (1, NULL);
"""
_DECIDED = "EXISTS (SELECT 1 FROM votes v WHERE v.question = q.id AND v.undone = 0 AND v.choice <> 'skip')"
_IMPORT = "import"  # the rater of votes that came from a file


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, and the individuals that wrote them: what a question is made of."""

    prompt: str
    individual_a: int
    text_a: str
    individual_b: int
    text_b: str


@dataclass(frozen=True)
class Question:
    """A question as it is shown: blind, and with the place of `a` drawn once and kept."""

    id: str
    generation: int
    prompt: str
    left: str
    right: str
    a_is_left: bool


@dataclass(frozen=True)
class Vote:
    """A decided question. `generation` and the individuals are None where the vote came from a file."""

    generation: int | None
    prompt: str
    text_a: str
    text_b: str
    individual_a: int | None
    individual_b: int | None
    outcome: Outcome


class VoteStore:
    """The questions and votes of a run in SQLite (WAL, synchronous=FULL): a vote is on the disk before `vote` returns.

    One object may be used by several threads at once, and several processes may open the same file.

    The current generation is the one that `ask` was last called with; only its open questions are handed out, and only
    its votes can be undone. A question handed to a rater is leased to that rater for `lease` seconds, renewed each time
    that it is handed out, so that two raters at once get different ones.

    >>> store = VoteStore()  # in memory
    >>> ids = store.ask(1, [Pair("The cat", 0, "sat", 1, "cat cat")])
    >>> question = store.next_question("me")
    >>> sorted([question.left, question.right])
    ['cat cat', 'sat']
    >>> store.vote(question.id, "me", "a"), store.vote(question.id, "me", "a"), store.vote(question.id, "you", "b")
    ('accepted', 'already', 'taken')
    >>> store.preferences()
    [Preference(prompt='The cat', chosen='sat', rejected='cat cat', tie=False)]
    """

    def __init__(
        self, path: Path | str = ":memory:", *, lease: float = LEASE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._lease = lease
        self._clock = clock
        self._lock = threading.RLock()
        # Transactions are begun and ended by _transaction, not by the sqlite3 module.
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")

    # ---- the run's side

    def ask(self, generation: int, pairs: Iterable[Pair]) -> list[str]:
        """Ask these pairs in this order, make `generation` the current one, and return the questions' ids.

        A pair that this generation was asked before, in either order, keeps its question and its vote: a resumed run,
        which asks again, goes on with the votes that it has. Open questions of other generations are withdrawn.
        """
        with self._transaction():
            self._connection.execute("UPDATE current SET generation = ?", (generation,))
            return [self._ask(generation, pair) for pair in pairs]

    def _ask(self, generation: int, pair: Pair) -> str:
        sides = [(pair.text_a, pair.individual_a), (pair.text_b, pair.individual_b)]
        for (text_a, individual_a), (text_b, individual_b) in (sides, sides[::-1]):
            row = self._connection.execute(
                "SELECT id FROM questions WHERE generation = ? AND prompt = ? AND text_a = ? AND text_b = ? "
                "AND individual_a = ? AND individual_b = ?",
                (generation, pair.prompt, text_a, text_b, individual_a, individual_b),
            ).fetchone()
            if row is not None:
                return str(row[0])
        return self._insert_question(
            generation, pair.prompt, pair.text_a, pair.text_b, pair.individual_a, pair.individual_b
        )

    def _insert_question(
        self,
        generation: int | None,
        prompt: str,
        text_a: str,
        text_b: str,
        individual_a: int | None = None,
        individual_b: int | None = None,
    ) -> str:
        identifier = secrets.token_urlsafe(16)
        self._connection.execute(
            "INSERT INTO questions (id, generation, prompt, text_a, text_b, individual_a, individual_b, a_is_left) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (identifier, generation, prompt, text_a, text_b, individual_a, individual_b, secrets.randbelow(2)),
        )
        return identifier

    def close_generation(self) -> None:
        """The votes of the current generation are in use: from now on none is added or taken back, until `ask`."""
        with self._transaction():
            self._connection.execute("UPDATE current SET generation = NULL")

    @property
    def generation(self) -> int | None:
        """The current generation; None before the first question and when it is closed."""
        value = self._one("SELECT generation FROM current")
        return None if value is None else int(value)

    def asked(self, generation: int) -> int:
        """How many questions this generation was asked."""
        return int(self._one("SELECT count(*) FROM questions WHERE generation = ?", generation) or 0)

    def count(self, generation: int | None = None) -> int:
        """How many votes of a generation count, or of all, those from files among them."""
        if generation is None:
            return int(self._one("SELECT count(*) FROM votes WHERE undone = 0 AND choice <> 'skip'") or 0)
        return int(self._one(f"SELECT count(*) FROM questions q WHERE generation = ? AND {_DECIDED}", generation) or 0)

    def decided(self, generation: int | None = None) -> list[Vote]:
        """The votes of a generation that count, or of all, those from files among them, in the order given."""
        where = "" if generation is None else "AND q.generation = ?"
        rows = self._all(
            "SELECT q.generation, q.prompt, q.text_a, q.text_b, q.individual_a, q.individual_b, v.choice "
            "FROM votes v JOIN questions q ON q.id = v.question WHERE v.undone = 0 AND v.choice <> 'skip' "
            f"{where} ORDER BY v.number",
            *(() if generation is None else (generation,)),
        )
        return [Vote(*row) for row in rows]

    def preferences(self, until: int | None = None) -> list[Preference]:
        """All votes that count, or those up to generation `until`, the imported ones always among them: what was chosen
        and what was rejected; "both bad" is a tie."""
        return [
            Preference(vote.prompt, vote.text_b, vote.text_a)
            if vote.outcome == "b"
            else Preference(vote.prompt, vote.text_a, vote.text_b, tie=vote.outcome != "a")
            for vote in self.decided()
            if until is None or vote.generation is None or vote.generation <= until
        ]

    def add_preferences(self, preferences: Iterable[Preference]) -> int:
        """Add the preferences of one file, and return how many were new.

        Afterwards the store has each at least as often as the file does. So the same file counts once however often it
        is added, and so do this store's own votes when they come back from a file.
        """
        with self._transaction():
            known = Counter(map(_key, self.preferences()))
            added = 0
            for one in preferences:
                if known[_key(one)] > 0:  # this one is accounted for
                    known[_key(one)] -= 1
                    continue
                identifier = self._insert_question(None, one.prompt, one.chosen, one.rejected)
                self._insert_vote(identifier, _IMPORT, "tie" if one.tie else "a")
                added += 1
            return added

    # ---- the raters' side

    def next_question(self, rater: str) -> Question | None:
        """An open question of the current generation for this rater, leased to that rater, or None if there is none.

        First the one that the rater holds already, so that a reload shows it again; then the first that nobody holds
        and that this rater has not skipped.
        """
        now = self._clock()
        with self._transaction():
            row = self._connection.execute(
                "SELECT q.id, q.generation, q.prompt, q.text_a, q.text_b, q.a_is_left, q.leased_to, q.leased_until "
                f"FROM questions q JOIN current c ON c.generation = q.generation WHERE NOT {_DECIDED} "
                "AND NOT EXISTS (SELECT 1 FROM votes v WHERE v.question = q.id AND v.rater = ? AND v.undone = 0) "
                "AND (q.leased_to IS NULL OR q.leased_to = ? OR q.leased_until <= ?) "
                "ORDER BY q.leased_to IS NOT NULL AND q.leased_to = ? DESC, q.number LIMIT 1",
                (rater, rater, now, rater),
            ).fetchone()
            if row is None:
                return None
            identifier, generation, prompt, text_a, text_b, a_is_left, holder, until = row
            # A page asks every few seconds: renewing a fresh lease each time would be a write to the disk for nothing.
            if holder != rater or until - now < self._lease / 2:
                self._hold(identifier, rater, now)
        left, right = (text_a, text_b) if a_is_left else (text_b, text_a)
        return Question(identifier, generation, prompt, left, right, bool(a_is_left))

    def question(self, identifier: str) -> Question:
        """A question that was asked, open or not. Raises KeyError if there is none with this id."""
        rows = self._all(
            "SELECT id, generation, prompt, text_a, text_b, a_is_left FROM questions "
            "WHERE id = ? AND generation IS NOT NULL",
            identifier,
        )
        if not rows:
            raise KeyError(identifier)
        _, generation, prompt, text_a, text_b, a_is_left = rows[0]
        left, right = (text_a, text_b) if a_is_left else (text_b, text_a)
        return Question(identifier, generation, prompt, left, right, bool(a_is_left))

    def vote(self, identifier: str, rater: str, choice: Choice) -> Verdict:
        """Enter a rater's vote; it is on the disk when this returns.

        "already": the rater has voted on this question, and the first vote stays. "taken": another rater was first.
        "closed": the question's generation is not the current one any more.
        "skip" puts the question away for this rater only. Raises KeyError if there is no such question, and ValueError
        for another choice.
        """
        if choice not in get_args(Choice):
            raise ValueError(f"choice is {choice!r}, expected one of {', '.join(get_args(Choice))}")
        with self._transaction():
            question = self.question(identifier)
            before = self._all(
                "SELECT rater, choice FROM votes WHERE question = ? AND undone = 0 ORDER BY rater = ? DESC",
                identifier,
                rater,
            )
            own = next((given for who, given in before if who == rater), None)
            if own is not None and (own != "skip" or choice == "skip"):
                return "already"
            if any(given != "skip" for _, given in before):
                return "taken"
            if question.generation != self.generation:
                return "closed"
            if own == "skip":  # a page that still shows it: the rater has thought again
                self._connection.execute(
                    "UPDATE votes SET undone = 1 WHERE question = ? AND rater = ? AND undone = 0", (identifier, rater)
                )
            self._insert_vote(identifier, rater, choice)
            self._connection.execute("UPDATE questions SET leased_to = NULL WHERE id = ?", (identifier,))
            return "accepted"

    def _insert_vote(self, identifier: str, rater: str, choice: Choice) -> None:
        self._connection.execute(
            "INSERT INTO votes (question, rater, choice, time) VALUES (?, ?, ?, ?)",
            (identifier, rater, choice, self._clock()),
        )

    def undo(self, rater: str) -> str | None:
        """Take back the rater's last vote (or skip) of the current generation, and ask its question again; returns that
        question's id, or None if there is nothing to take back."""
        with self._transaction():
            last = self._last_vote(rater)
            if last is None:
                return None
            number, identifier = last
            self._connection.execute("UPDATE votes SET undone = 1 WHERE number = ?", (number,))
            # What the rater was shown meanwhile goes back to all.
            self._connection.execute("UPDATE questions SET leased_to = NULL WHERE leased_to = ?", (rater,))
            self._hold(identifier, rater, self._clock())
            return identifier

    def can_undo(self, rater: str) -> bool:
        """Whether `undo` would take something back."""
        with self._lock:
            return self._last_vote(rater) is not None

    def _last_vote(self, rater: str) -> tuple[int, str] | None:
        rows = self._all(
            "SELECT v.number, v.question FROM votes v JOIN questions q ON q.id = v.question "
            "JOIN current c ON c.generation = q.generation WHERE v.rater = ? AND v.undone = 0 "
            "ORDER BY v.number DESC LIMIT 1",
            rater,
        )
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    def skipped(self, rater: str) -> int:
        """How many questions of the current generation the rater has skipped that are still open."""
        return len(self._skips(rater))

    def unskip(self, rater: str) -> int:
        """Ask the rater again what he has skipped in the current generation; returns how many questions that are."""
        with self._transaction():
            skips = self._skips(rater)
            self._connection.executemany("UPDATE votes SET undone = 1 WHERE number = ?", [(skip,) for skip in skips])
            return len(skips)

    def _skips(self, rater: str) -> list[int]:
        rows = self._all(
            "SELECT s.number FROM votes s JOIN questions q ON q.id = s.question "
            "JOIN current c ON c.generation = q.generation "
            f"WHERE s.rater = ? AND s.undone = 0 AND s.choice = 'skip' AND NOT {_DECIDED}",
            rater,
        )
        return [int(number) for (number,) in rows]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ---- SQL

    def _hold(self, identifier: str, rater: str, now: float) -> None:
        self._connection.execute(
            "UPDATE questions SET leased_to = ?, leased_until = ? WHERE id = ?", (rater, now + self._lease, identifier)
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def _one(self, sql: str, *values: object) -> int | None:
        with self._lock:
            row = self._connection.execute(sql, values).fetchone()
        return None if row is None else row[0]


def _key(preference: Preference) -> Preference:
    """Equal for those that say the same: a tie has no order."""
    if not preference.tie:
        return preference
    chosen, rejected = sorted((preference.chosen, preference.rejected))
    return replace(preference, chosen=chosen, rejected=rejected)
