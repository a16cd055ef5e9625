"""What a run calls while it goes on, from Python: functions, or objects that hear of its start and its end, too."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evolora.errors import InputError
from evolora.files import whole_folder
from evolora.models.export import save_adapter, save_tokenizer
from evolora.rewards.process_state import ProcessState

if TYPE_CHECKING:
    from evolora.evolution.loop import Evolution
    from evolora.runs.assembled import Parts

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run that is under way: its folder, its name, and after how many generations it ends, where a budget does not
    say so."""

    folder: Path
    name: str
    generations: int | None
    _parts: "Parts"
    _evolution: "Evolution"

    @property
    def generation(self) -> int:
        """How many have ended."""
        return self._evolution.generation

    def save_best(self, to: str | Path) -> Path:
        """Write the best individual so far as a PEFT adapter with its tokenizer, in the place of another one there.
        Raises InputError for a folder that holds anything else."""
        folder = Path(to).absolute()
        if folder.exists() and not (folder / "adapter_config.json").is_file():
            raise InputError(f"save_best: found {folder}, which is no adapter, expected a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as temporary:
            genome = self._evolution.best().genomes[0]
            save_adapter(temporary, self._parts.base, self._parts.lora, self._parts.layout, genome)
            save_tokenizer(temporary, self._parts.base)
        return folder


class Callback:
    """To be derived from: each method does nothing, and those that are of interest are overridden."""

    def on_start(self, run: Run) -> None:
        """The run begins, or goes on, after `run.generation` generations."""

    def on_generation(self, run: Run, metrics: Metrics) -> bool | None:
        """A generation has ended, with these metrics, which docs/metrics.md defines. True ends the run after it, as if
        it had been the last one: the winner is chosen, tested and exported. `resume` can go on from there."""

    def on_end(self, run: Run, summary: Metrics) -> None:
        """The run is finished, and all its files are written."""


Function = Callable[[dict[str, Any]], object]


def checked_callbacks(callbacks: Sequence[Callback | Function]) -> tuple[Callback | Function, ...]:
    """Raise InputError where they are neither functions nor objects of a class that is derived from `Callback`."""
    found = tuple(callbacks) if isinstance(callbacks, Iterable) else None
    for wrong in (callbacks,) if found is None else found:
        if found is None or isinstance(wrong, type) or not (isinstance(wrong, Callback) or callable(wrong)):
            raise InputError(f"callbacks: found {wrong!r:.60}, expected a list of functions or Callback objects")
    return found or ()


class Callbacks:
    """Those of a run. What one of them raises ends the run; what it changes of the process is put back."""

    def __init__(self, callbacks: Sequence[Callback | Function], run: Run) -> None:
        self._callbacks, self._run = callbacks, run
        self._state = ProcessState("a callback")

    def start(self) -> None:
        self._each(lambda one: one.on_start(self._run) if isinstance(one, Callback) else None)

    def generation(self, metrics: Metrics) -> bool:
        """Whether one of them ends the run."""
        return self._each(
            lambda one: one.on_generation(self._run, dict(metrics)) if isinstance(one, Callback) else one(dict(metrics))
        )

    def end(self, summary: Metrics) -> None:
        self._each(lambda one: one.on_end(self._run, dict(summary)) if isinstance(one, Callback) else None)

    def _each(self, call: Callable[[Callback | Function], object]) -> bool:
        """Whether one of them has answered True; what else a function returns means nothing."""
        answers = []
        for one in self._callbacks:
            with self._state.kept():
                answers.append(call(one))
        return any(isinstance(answer, (bool, np.bool_)) and bool(answer) for answer in answers)
