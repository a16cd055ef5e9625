"""Rewards that are slow, remembered on disk by what they are given."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from evolora.rewards.base import FailedReward, Reward, accepted_keywords, as_list

_SCHEMA = "CREATE TABLE IF NOT EXISTS rewards (key BLOB PRIMARY KEY, reward REAL) WITHOUT ROWID"


class CachedReward:
    """A reward that asks another only for what it has not scored before, in this run or in another with the same file.

    A value's key is a checksum of the reward's name and `version`, the prompt, the completion, and those of the data's
    columns that the reward takes. So the other reward must depend on nothing else, and its `version` must change
    whenever its values could. None ("not scored") is remembered, failures are not. What a batch has brought is on disk
    before it is returned. Of equal completions in a batch one is asked.

    `accepted` are the keywords that the reward takes, where its signature does not say so: with workers between, say.

    `hits` and `misses` count completions.
    """

    def __init__(
        self, reward: Reward, path: Path, *, name: str, version: str, accepted: frozenset[str] | None = None
    ) -> None:
        self.reward = reward
        self.__name__ = name
        self.version = version
        self.hits = 0
        self.misses = 0
        self._accepted = accepted_keywords(reward) if accepted is None else accepted
        self._lock = threading.Lock()
        self._path = path
        self._opened: sqlite3.Connection | None = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[object]
    ) -> list[float | FailedReward | None]:
        keys = [
            self._key(prompt, completion, {name: values[row] for name, values in columns.items()})
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        with self._lock:
            known = self._known(set(keys))
        fresh = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(fresh.values())
        self.hits, self.misses = self.hits + len(keys) - len(rows), self.misses + len(rows)
        answers: dict[bytes, object] = dict(known)
        if rows:
            given = {"prompts": prompts, "completions": completions, **columns}
            asked = {
                name: [values[row] for row in rows]
                for name, values in given.items()
                if self._accepted is None or name in self._accepted
            }
            returned = as_list(self.reward(**asked))
            if returned is None or len(returned) != len(rows):
                count = "no list" if returned is None else f"{len(returned)} values"
                raise ValueError(f"returned {count} for {len(rows)} completions, expected one for each")
            found = {keys[row]: value for row, value in zip(rows, returned, strict=True)}
            self._remember({key: value for key, value in found.items() if _is_score(value)})
            answers |= found
        return [answers[key] for key in keys]  # type: ignore[misc]  # whatever it is, the scorer checks it

    @property
    def _connection(self) -> sqlite3.Connection:
        """Opened when it is first needed: a run that is refused before any work leaves nothing behind."""
        if self._opened is None:
            self._opened = sqlite3.connect(self._path, check_same_thread=False)
            self._opened.execute(_SCHEMA)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if hasattr(self.reward, "close"):
            self.reward.close()

    def _key(self, prompt: str, completion: str, columns: dict[str, object]) -> bytes:
        used = {name: value for name, value in columns.items() if self._accepted is None or name in self._accepted}
        if self._accepted is None or "completion_ids" not in self._accepted:
            used.pop("completion_ids", None)  # they are the completion's
        text = json.dumps([self.__name__, self.version, prompt, completion, used], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).digest()

    def _known(self, keys: set[bytes]) -> dict[bytes, float | None]:
        known = {}
        for key in keys:
            row = self._connection.execute("SELECT reward FROM rewards WHERE key = ?", (key,)).fetchone()
            if row is not None:
                known[key] = row[0]
        return known

    def _remember(self, values: dict[bytes, object]) -> None:
        with self._lock, self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO rewards VALUES (?, ?)",
                [(key, None if value is None else float(value)) for key, value in values.items()],  # type: ignore[arg-type]
            )


def _is_score(value: object) -> bool:
    """Whether a value is one to remember; NaN, infinity and what is no number are the scorer's to refuse."""
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) < float("inf"))
