"""What a run tells TensorBoard, trackio, Weights & Biases and MLflow. Nothing that these do ends a run.

Each is told the generations of `metrics.jsonl` in their order, whenever it is that it begins. How far it has come
stands in `trackers.json`: a resumed run tells it the rest.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolora.files import without_nan, write_text
from evolora.masking import mask
from evolora.reading import read_text
from evolora.rewards.process_state import ProcessState
from evolora.runs.tracking.clients import CLIENTS, Client

TRACKERS = "trackers.json"
_NO_FIGURES = ("inspection", "sealed", "changed")


@dataclass
class _Tracked:
    """A tracker: the generation up to which it was told, the one that was summed up, and its own id of the run."""

    name: str
    state: ProcessState
    told: int = 0
    summed_up: int = 0
    id: str | None = None
    client: Client | None = None

    def tell(self, line: Mapping[str, Any]) -> None:
        if line["generation"] > self.told and self.client is not None:
            self.client.log(without_nan(line), line["generation"])
            self.told = line["generation"]

    def sum_up(self, figures: Mapping[str, Any], generation: int) -> None:
        if generation > self.summed_up and self.client is not None:
            self.client.sum_up(figures, generation)
            self.summed_up = generation

    def finish(self) -> None:
        if self.client is not None:
            self.client.finish()


class Trackers:
    """Those of the run of the id `run`, which lies in `folder` and is called `name`; none, unless there are `names`.
    `warn` is told what must not be missed, `say` the rest."""

    def __init__(
        self,
        names: Sequence[str] | None,
        folder: Path,
        *,
        name: str,
        run: str,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._folder, self._name, self._run, self._say, self._warn = folder, name, run, say, warn
        self._known = _read(folder / TRACKERS) if names else {}
        self._working = [
            _Tracked(each, ProcessState(f"the tracker {each}"), **self._known.get(each, {}))
            for each in dict.fromkeys(names or ())
        ]

    def start(self, options: Mapping[str, Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> None:
        """Begin, or go on, with the run's options, part by part, and the metrics of its generations so far."""
        values = {f"{part}.{name}": _plain(value) for part, own in options.items() for name, value in own.items()}

        def begin(tracked: _Tracked) -> None:
            tracked.client = CLIENTS[tracked.name](self._folder, self._name, self._run, tracked.id)
            tracked.id = tracked.client.id
            tracked.client.options(values)
            for line in lines:
                tracked.tell(line)

        self._each(begin)
        for tracked in self._working:
            if tracked.client is not None:
                self._say(f"{tracked.name}: {tracked.client.where()}")

    def generation(self, line: Mapping[str, Any]) -> None:
        """Tell what `metrics.jsonl` says of a generation."""
        self._each(lambda tracked: tracked.tell(line))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Tell what the run came to."""
        figures = dict(_figures({name: summary[name] for name in summary if name not in _NO_FIGURES}))
        self._each(lambda tracked: tracked.sum_up(figures, summary["generations"]))

    def close(self) -> None:
        """Let them end, which takes some of them a while."""
        try:
            self._each(_Tracked.finish)
        except KeyboardInterrupt:  # the run has ended, whatever they still send
            self._say("interrupted before the trackers had ended")
        self._working = []

    def _each(self, act: Callable[[_Tracked], object]) -> None:
        """Who fails is said, and left out from then on."""
        for tracked in list(self._working):
            try:
                with tracked.state.kept(), _silent():
                    act(tracked)
            except (Exception, SystemExit) as error:
                self._working.remove(tracked)
                said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
                self._warn(mask(f"--report-to {tracked.name}: {said}; the run goes on without it"))
        if self._working:
            self._known |= {each.name: {name: getattr(each, name) for name in _KINDS} for each in self._working}
            with contextlib.suppress(OSError):  # a full disk: the run itself says so
                write_text(self._folder / TRACKERS, json.dumps(self._known, indent=1) + "\n")


_KINDS = {"told": int, "summed_up": int, "id": str}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """How far the trackers have come; nothing where that cannot be read."""
    try:
        found = json.loads(read_text(path))
        return {
            name: {each: noted[each] for each, kind in _KINDS.items() if isinstance(noted.get(each), kind)}
            for name, noted in found.items()
        }
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _figures(value: Any, name: str = "summary") -> Iterator[tuple[str, float]]:
    """The numbers in a summary, each by the way to it."""
    if isinstance(value, Mapping):
        for each, inner in value.items():
            yield from _figures(inner, f"{name}.{each}")
    elif name.endswith(".ci95"):
        yield from _figures(dict(zip(("low", "high"), value, strict=True)), name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def _plain(value: Any) -> bool | int | float | str:
    """An option as every tracker takes it, without keys."""
    if value is None or isinstance(value, (bool, int, float)):
        return "none" if value is None else value
    return mask(" ".join(map(str, value)) if isinstance(value, list) else str(value))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What a tracker prints is lost, and it sees no terminal on which it might ask and wait."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
