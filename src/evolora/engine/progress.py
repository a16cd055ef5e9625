"""How an engine tells what it is at, while nothing else could be shown."""

from typing import Protocol


class Progress(Protocol):
    """Whoever shows it."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """`what` is under way, and `done` of `total` are done; the last call has as many of both."""
        ...
