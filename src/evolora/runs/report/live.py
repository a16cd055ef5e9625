"""The report of a run that goes on, so that a browser beside the terminal follows it."""

import time
from collections.abc import Callable
from pathlib import Path

from evolora.runs.report.page import REPORT, Going, write_report

# Of the run's time, what writing its report may take.
SHARE = 0.02


class LiveReport:
    """Writes `report.html` of the run in `folder` when it begins, after its generations and when it ends. A generation
    is passed over while the last writing took more than 2% of the time since then; the first, which also loads what
    every report needs, is not counted. What fails is told to `say`, once, and ends nothing."""

    def __init__(self, folder: Path, say: Callable[[str], None], *, clock: Callable[[], float] = time.perf_counter):
        self.folder = folder
        self.seconds = 0.0
        self._say = say
        self._clock = clock
        self._failed = self._over = False
        self._began: tuple[float, float] | None = None
        self._cost = self._written = 0.0

    def update(self, done: float, gens: int | None) -> None:
        """The share `done` of the run, of `gens` generations where they are known, is over."""
        now = self._clock()
        first = self._began is None
        if not first and now - self._written < self._cost / SHARE:
            return
        self._began = self._began or (done, now)
        before, start = self._began
        left = (now - start) / (done - before) * (1 - done) if done > before else None
        again = 0.0 if first else max(now - self._written, self._cost / SHARE)
        self._write(Going(done, gens, left, again, time.time()))
        self._written = self._clock()
        self._cost = 0.0 if first else self._written - now
        self.seconds += self._cost

    def end(self) -> None:
        """The run is over, or was ended: what its folder says is all there is. It may be told so again."""
        if not self._over:
            self._write(None)
        self._over = True

    def _write(self, going: Going | None) -> None:
        try:
            write_report(self.folder, going)
        except Exception as error:  # nothing of the run is lost with it
            if not self._failed:
                again = f"'evolora report {self.folder}' tries again"
                self._say(f"{self.folder / REPORT}: could not be written ({error}); {again}")
            self._failed = True
