"""The adapters that a run starts from: where they lie, the options that follow from them, and their genomes."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evolora.environment import references
from evolora.errors import InputError
from evolora.files import check_regular, is_sealed, seal, verify, whole_folder
from evolora.models.base import BUNDLED_MODEL, BaseModel, model_path
from evolora.models.cards import CARD
from evolora.models.export import load_adapter
from evolora.models.foreign import reason_of
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_layout
from evolora.runs.hub import ADAPTER, hub_adapter
from evolora.runs.keeping.names import find_run
from evolora.runs.options import RunOptions

# In a run's folder: the adapters that it started from, by number.
INIT = "init"


@dataclass(frozen=True)
class Initial:
    """The adapters that a run starts from: what the options call them, their folders, and how the first is laid out."""

    names: Sequence[str]
    folders: Sequence[Path]
    lora: LoraConfig

    @classmethod
    def of(cls, config: RunOptions) -> "Initial | None":
        """Those that the options name, or, of a run that has begun, those that it keeps; None where there are none.

        Raises InputError for what is no adapter, CheckpointError for a kept one that is altered.
        """
        names = config.used().lora.init
        if not names:
            return None
        if config.run.out and (Path(config.run.out) / "config.toml").is_file():
            folders = [kept_adapter(Path(config.run.out), number) for number in range(len(names))]
        else:
            folders = [_located(name) for name in names]
        return cls(names, folders, load_adapter(folders[0])[0])

    def followed(self, config: RunOptions) -> RunOptions:
        """The options with what follows from the adapter. Raises InputError where the user said something else, and for
        more adapters than a run can begin with."""
        if len(self.names) > (most := config.strategy.most_founders()):
            raise InputError(
                f"--init: found {len(self.names)} adapters, expected at most {most} with --strategy "
                f"{config.strategy.type} and --pop {config.evolution.pop}"
            )
        theirs: dict[str, Any] = {
            "r": self.lora.r,
            "alpha": self.lora.lora_alpha,
            "target_modules": _plain(self.lora.target_modules),
            "exclude_modules": _plain(self.lora.exclude_modules),
            "rslora": self.lora.use_rslora,
        }
        begun = self.folders[0].parent.name == INIT
        for name in config.lora.model_fields_set.intersection(theirs) if not begun else ():
            said = getattr(config.lora, name)
            if _plain(said) != theirs[name]:
                word = config.vocabulary.word("lora", name).replace("_", "-")
                raise InputError(
                    f"--{word} {_shown(said)}: the adapter of --init {self.names[0]} has {_shown(theirs[name])}, "
                    "expected none beside it"
                )
        if theirs["alpha"] != int(theirs["alpha"]):  # which the option cannot say
            del theirs["alpha"]
        model: dict[str, Any] = {}
        scale: dict[str, Any] = {}
        if "name" not in config.model.model_fields_set:
            model = dict(named_base(self.folders[0], self.lora))
            if model["name"] == model_path(BUNDLED_MODEL):
                model["name"] = BUNDLED_MODEL
            elif Path(str(model["name"])).is_dir():
                model["name"] = str(Path(str(model["name"])).absolute())
            if "mutation_scale" not in config.strategy.model_fields_set:
                scale = config.strategy.recommends(config.replaced({"model": model})).get("strategy", {})
        return config.replaced({"lora": theirs, "model": model, "strategy": scale})

    def genomes(self, base: BaseModel, config: RunOptions) -> tuple[LoraConfig, GenomeLayout, Tensor]:
        """The adapters as genomes [adapters, genome_length] of one layout. Raises InputError for those that do not fit
        the model, or each other."""
        model = config.used().model.name
        rows: list[Tensor] = []
        layout: GenomeLayout | None = None
        for name, folder in zip(self.names, self.folders, strict=True):
            _, own, genome = load_founder(base, folder, model)
            layout = layout or own
            if own != layout:
                raise InputError(
                    f"--init {name}: its layers, ranks or scalings are not those of {self.names[0]}, expected adapters "
                    "of one layout"
                )
            if not bool(genome.isfinite().all()):
                raise InputError(f"--init {name}: has weights that are not finite, expected numbers")
            rows.append(genome)
        assert layout is not None
        lora = self.lora
        lora.task_type = lora.task_type or "CAUSAL_LM"
        lora.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.model.modules())
        lora.lora_dropout = config.lora.dropout  # which belongs to the tuning
        return lora, layout, torch.stack(rows)

    def keep(self, run: Path) -> None:
        """Copy them into the folder of their run, which needs them again when it is resumed."""
        for number, folder in enumerate(self.folders):
            with whole_folder(run / INIT / str(number)) as temporary:
                for name in ADAPTER:
                    shutil.copyfile(folder / name, temporary / name)
                seal(temporary)


def kept_adapter(run: Path, number: int) -> Path:
    """The copy that a run keeps of an adapter that it started from. Raises CheckpointError when it is altered or
    gone."""
    folder = run / INIT / str(number)
    verify(folder)
    return folder


def load_founder(base: BaseModel, adapter: Path, model: str) -> tuple[LoraConfig, GenomeLayout, Tensor]:
    """An adapter as a genome of the base `model`. Raises InputError for one that does not fit it."""
    lora, state = load_adapter(adapter)
    try:
        layout, _ = lora_layout(base.model, lora, seed=0)
        return lora, layout, layout.from_state_dict(state)
    except InputError as error:
        raise InputError(f"{adapter}: {error}") from None
    except Exception as error:  # PEFT takes its configuration as it is
        raise InputError(f"{adapter}: does not fit --model {model}: {reason_of(error)}") from None


def named_base(folder: Path, lora: LoraConfig) -> list[tuple[str, str | None]]:
    """The base model that an adapter names, and of a hub name the revision. A variable in its place is refused: whoever
    wrote it would choose what is read here, and where it is sent."""
    if not lora.base_model_name_or_path:
        raise InputError(f"{folder}: names no base model, expected --model (for export: --base) beside it")
    name = str(lora.base_model_name_or_path)
    if references(name):
        raise InputError(f"{folder}: its base model is {name}, expected --model (for export: --base) beside it")
    return [("name", name), ("revision", None if Path(name).is_dir() else lora.revision or None)]


def _located(name: str) -> Path:
    """The folder of an adapter, or of a run's winner, or of what the hub has by that name."""
    folder = find_run(name)
    if folder.is_dir():
        if not (folder / ADAPTER[0]).is_file() and (folder / "best").is_dir():
            folder = folder / "best"
        check_regular(folder)
        if is_sealed(folder):
            verify(folder, besides=[CARD])
        return folder
    return hub_adapter(name, f"--init {name}")


def _plain(modules: Any) -> Any:
    return sorted(modules) if isinstance(modules, set | list) else modules


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)
