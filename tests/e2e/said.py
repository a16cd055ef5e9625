"""A view that keeps what a run says."""

from evolora.runs.tracking.view import Silence


class Said(Silence):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
