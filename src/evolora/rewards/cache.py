"""Rewards that are slow, remembered on disk by what they are given."""

import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evolora.rewards.base import TRL_KEYWORDS, FailedReward, Reward, accepted_keywords
from evolora.rewards.calling import call_reward
from evolora.rewards.event_loop import EventLoop

_SCHEMA = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, reward REAL, checksum BLOB) WITHOUT ROWID"


class CachedReward:
    """A reward that asks another only for what it has not scored before, in this run or in another with the same file.

    A value's key is a checksum of the reward's name and `version`, the prompt, the completion, and those of the data's
    columns that the reward takes. So the other reward must depend on nothing else, and its `version` must change
    whenever its values could. None ("not scored") is remembered, failures are not. What a batch has brought is on disk
    before it is returned. Of equal completions in a batch one is asked. What is altered on disk is not known: a value
    whose checksum differs is asked for again, and a file that is no database is begun anew.

    `hits` and `misses` count completions.
    """

    def __init__(self, reward: Reward, path: Path, *, name: str, version: str) -> None:
        self.reward = reward
        self.__name__ = name
        self.version = version
        self.hits = 0
        self.misses = 0
        self._accepted = accepted_keywords(reward)
        self._loop = EventLoop()
        self._path = path
        self._opened: sqlite3.Connection | None = None
        if hasattr(reward, "use_log"):
            self.use_log = reward.use_log

    def __call__(
        self, prompts: Sequence[object], completions: Sequence[object], **columns: Any
    ) -> list[float | FailedReward | None]:
        extras = {name: columns.pop(name) for name in TRL_KEYWORDS if name in columns}
        keys = [
            self._key(prompt, completion, {name: values[row] for name, values in columns.items()})
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        known = self._known(set(keys))
        fresh = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        rows = sorted(fresh.values())
        self.hits, self.misses = self.hits + len(keys) - len(rows), self.misses + len(rows)
        answers: dict[bytes, float | FailedReward | None] = dict(known)
        if rows:
            given = {"prompts": prompts, "completions": completions, **columns}
            asked = {name: [values[row] for row in rows] for name, values in given.items()} | extras
            taken = {name: value for name, value in asked.items() if self._accepted is None or name in self._accepted}
            values = call_reward(self.reward, taken, len(rows), self._loop)
            if isinstance(values, FailedReward):
                raise values.exception or ValueError(values.what)
            found = {keys[row]: value for row, value in zip(rows, values, strict=True)}
            self._remember({key: value for key, value in found.items() if not isinstance(value, FailedReward)})
            answers |= found
        return [answers[key] for key in keys]

    @property
    def _connection(self) -> sqlite3.Connection:
        """Opened when it is first needed: a run that is refused before any work leaves nothing behind."""
        if self._opened is None:
            self._opened = sqlite3.connect(self._path)
            self._opened.execute(_SCHEMA)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._loop.close()
        if hasattr(self.reward, "close"):
            self.reward.close()

    def _key(self, prompt: object, completion: object, columns: dict[str, object]) -> bytes:
        used = {name: value for name, value in columns.items() if self._accepted is None or name in self._accepted}
        if self._accepted is None or "completion_ids" not in self._accepted:
            used.pop("completion_ids", None)  # they are the completion's
        text = json.dumps([self.__name__, self.version, prompt, completion, used], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).digest()

    def _known(self, keys: set[bytes]) -> dict[bytes, float | None]:
        known = {}
        try:
            for key in keys:
                row = self._connection.execute("SELECT reward, checksum FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None and row[1] == _checksum(key, row[0]):
                    known[key] = row[0]
        except sqlite3.OperationalError:  # locked, or the disk
            raise
        except sqlite3.DatabaseError:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
            self._path.unlink()
            return {}
        return known

    def _remember(self, values: dict[bytes, float | None]) -> None:
        rows = [(key, value, _checksum(key, value)) for key, value in values.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)


def _checksum(key: bytes, value: float | None) -> bytes:
    kept = None if value is None or math.isnan(value) else float(value)  # as SQLite gives it back
    return hashlib.sha256(key + repr(kept).encode()).digest()[:8]
