"""A run at the end of a generation: kept in memory, written as a checkpoint, taken up again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evolora.errors import InputError
from evolora.evolution.loop import Evolution
from evolora.files import (
    checkpoint_folder,
    newest_checkpoint,
    read_state,
    seal,
    verify,
    whole_folder,
    write_state,
)
from evolora.models.export import save_adapter
from evolora.population.lineage import Lineage
from evolora.runs.assembled import Parts
from evolora.runs.disk import keep_checkpoints, need_room
from evolora.runs.identity import check_run
from evolora.runs.recovery import copy_beside


@dataclass(frozen=True)
class Snapshot:
    """All that a resumed run needs after `generation`, and the `best` genome so far. A deep copy outlives the next
    generation: when a reward fails in its middle, that is what the run goes back to."""

    generation: int
    best: Tensor
    state: dict[str, Any]
    seconds: float

    @classmethod
    def of(cls, evolution: Evolution, seconds: float) -> "Snapshot":
        """Taken after a generation's end."""
        return cls(evolution.generation, evolution.best().genomes[0], evolution.state_dict(), seconds)

    def write(self, folder: Path, parts: Parts, lineage: Lineage, run: str) -> None:
        """As a checkpoint of the run in `folder`, whose id is `run`, in the place of those that need not be kept
        longer. Raises OSError where there is no room; then the others are as they were."""
        target = checkpoint_folder(folder, self.generation)
        need_room(folder, self._bytes())
        with whole_folder(target) as temporary:
            save_adapter(temporary, parts.base, parts.lora, parts.layout, self.best)
            write_state(temporary, {**self.state, "seconds": self.seconds, "run": run})
            copy_beside(folder, temporary, lineage)
            seal(temporary)
        keep_checkpoints(folder, parts.config.run.keep, run)

    def _bytes(self) -> int:
        """What its weights take."""
        tensors = [self.best, *(value for value in self.state.values() if isinstance(value, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_checkpoint(checkpoint: Path, run: str) -> None:
    """Raise CheckpointError where a checkpoint is not whole, InputError where it is of another run."""
    verify(checkpoint)
    check_run(checkpoint, checkpoint_run(checkpoint), run)


def checkpoint_run(checkpoint: Path) -> str | None:
    """The id of the run that a whole checkpoint is of; None where another version wrote it."""
    run = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")).get("run")
    return None if run is None else str(run)


def restore(folder: Path, parts: Parts, evolution: Evolution, run: str) -> float:
    """Take up the newest whole checkpoint, if there is one: the seconds that the run had taken."""
    newest, faults = newest_checkpoint(folder)
    for fault in faults:
        parts.view.say(f"passed over: {fault}")
    if newest is None:
        return 0.0
    state = read_state(newest)
    check_run(newest, state.get("run"), run)
    try:
        evolution.load_state_dict(state)
        parts.layout.check(evolution.best().genomes)
    except KeyError as error:
        raise InputError(
            f"{newest}: has no entry {error}, expected a checkpoint of this version of evolora, and of these options"
        ) from None
    except ValueError as error:
        raise InputError(f"{newest}: does not fit the run as it is now: {error}") from None
    parts.view.say(f"resumed after generation {evolution.generation} from {newest}")
    return float(state["seconds"])
