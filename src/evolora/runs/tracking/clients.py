"""The trackers that a run can report to: accelerate's, each told how a run begins, goes on and is called there."""

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evolora.errors import InputError
from evolora.masking import mask

# The project, or experiment; each tracker's own variable names another.
_PROJECT = "evolora"

Figures = Mapping[str, Any]


def need_trackers(names: Sequence[str] | None) -> None:
    """Raise InputError for the first that is not installed."""
    for name in names or ():
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, such as wandb itself makes
            raise InputError(
                f"--report-to {name}: found no package {name}, expected it installed: pip install 'evolora[{name}]'"
            )


class Client(ABC):
    """One of accelerate's trackers, started for the run of the id `run`, which lies in `folder` and is called `name`;
    `known` is the `id` that this one had when the run went on before."""

    takes_options_anew = False

    def __init__(self, folder: Path, name: str, run: str, known: str | None) -> None:
        from accelerate import PartialState

        PartialState()  # which accelerate's logging needs
        self.folder, self.name, self.run, self.known = folder, name, run, known
        self.id = known or name
        self.tracker = self.make()
        self.start()

    @abstractmethod
    def make(self) -> Any:
        """The tracker, not started."""

    @abstractmethod
    def where(self) -> str:
        """Where its user finds the run."""

    def start(self) -> None:
        self.tracker.start()

    def options(self, values: Figures) -> None:
        if self.known is None or self.takes_options_anew:
            self.tracker.store_init_configuration(dict(values))

    def log(self, figures: Figures, step: int) -> None:
        self.tracker.log({name: value for name, value in figures.items() if value is not None}, step=step)

    def sum_up(self, figures: Figures, step: int) -> None:
        self.log(figures, step)

    def finish(self) -> None:
        self.tracker.finish()


class TensorBoard(Client):
    def make(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker("tensorboard", self.folder)

    def where(self) -> str:
        return f"shown by 'tensorboard --logdir {self.folder.parent}'"


class Trackio(Client):
    takes_options_anew = True

    def make(self) -> Any:
        from accelerate.tracking import TrackioTracker

        # There a run is found again by its name alone, and others may have the same.
        self.id = self.known or f"{self.name}-{self.run[:6]}"
        return TrackioTracker(os.environ.get("TRACKIO_PROJECT", _PROJECT), name=self.id, resume="allow")

    def where(self) -> str:
        return f"run {self.id}, shown by 'trackio show --project {self.tracker.run_name}'"

    def finish(self) -> None:
        import trackio

        trackio.finish()  # the run's own would let it end once more with the process


class Wandb(Client):
    takes_options_anew = True

    def make(self) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        self.id = self.known or self.run
        return WandBTracker(
            os.environ.get("WANDB_PROJECT", _PROJECT),
            name=self.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(self.folder)),
            settings=wandb.Settings(console="off", silent=True),
        )

    def start(self) -> None:
        arguments, sys.argv = sys.argv, [mask(argument) for argument in sys.argv]  # which it keeps
        try:
            super().start()
        finally:
            sys.argv = arguments

    def where(self) -> str:
        run = self.tracker.tracker
        return f"offline, sent by 'wandb sync {Path(run.dir).parent}'" if run.offline else str(run.url)

    def sum_up(self, figures: Figures, step: int) -> None:  # noqa: ARG002
        self.tracker.tracker.summary.update(dict(figures))  # it takes nothing more for a step that it has


class MLflow(Client):
    def make(self) -> Any:
        from accelerate.tracking import MLflowTracker

        return MLflowTracker(_PROJECT, run_id=self.known, run_name=self.name, tags={"evolora.run": self.run})

    def start(self) -> None:
        super().start()
        self.id = str(self.tracker.tracker.info.run_id)

    def where(self) -> str:
        return f"run {self.id} of the experiment {self.tracker.experiment_name}"

    def log(self, figures: Figures, step: int) -> None:
        """It takes numbers alone, and few signs in their names."""
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        super().log({re.sub(r"[^/\w.\- ]", "_", name): value for name, value in numbers.items()}, step)


CLIENTS: Mapping[str, type[Client]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": MLflow,
}
