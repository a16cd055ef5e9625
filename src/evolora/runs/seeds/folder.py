"""The folder of a run under several seeds: `seeds.json`, and for each seed an ordinary run's folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError, InputError
from evolora.files import read_checked, write_checked
from evolora.fitness.loading import parse_fitness
from evolora.masking import keys_in
from evolora.options import own_fields
from evolora.rewards.loading import parse_reward
from evolora.rewards.options import HUMAN
from evolora.runs.config_file import config_toml
from evolora.runs.identity import SEEDS
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.parts import Vocabulary
from evolora.runs.speech import Speech

# Of each folder or each command alone.
_NOT_KEPT = {("run", "out"), ("run", "seeds"), ("model", "trust_remote_code")}


@dataclass(frozen=True)
class Seeds:
    """A run under several seeds: its random id, the seeds, what was said of its options, part by part, and the
    checksums of the files with what it was given from Python."""

    run: str
    seeds: tuple[int, ...]
    said: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str]

    @classmethod
    def of(cls, run: str, config: RunOptions, files: Mapping[str, str]) -> "Seeds":
        """Of options whose paths are absolute."""
        first = config.run.each_seed[0]
        reward = config.reward.name
        parsed = {} if reward in (None, HUMAN) or "<function " in str(reward) else {"name": str(parse_reward(reward))}
        fitness = config.evolution.fitness
        judged = {} if fitness is None or "<function " in fitness else {"fitness": str(parse_fitness(fitness))}
        split = first if config.task.split_seed is None else config.task.split_seed
        config = config.replaced(
            {"run": {"seed": first}, "task": {"split_seed": split}, "reward": parsed, "evolution": judged}
        )
        models = {part: (getattr(config, part), model) for part, model in config.vocabulary.models.items()}
        said = {
            part: {
                name: getattr(options, name)
                for name in own_fields(model, part)
                if name in options.model_fields_set | {"type"} and (part, name) not in _NOT_KEPT
            }
            for part, (options, model) in models.items()
        }
        return cls(run, config.run.each_seed, said, files)

    def write(self, folder: Path) -> None:
        content = {"run": self.run, "seeds": list(self.seeds), "options": self.said, "files": dict(self.files)}
        private = bool(keys_in(config_toml(make_options(self.words(folder)))))
        write_checked(folder / SEEDS, content, private=private)

    def words(self, folder: Path) -> Source:
        """The options in words, without the trust in a model's code, which is for who uses it to say."""
        said = [(f"{part}.{name}", value) for part, values in self.said.items() for name, value in values.items()]
        kept = [(word, value) for word, value in said if tuple(word.split(".")) not in _NOT_KEPT]
        return Source([*kept, ("run.seeds", self.seeds)], Speech("toml", str(folder / SEEDS)))

    def options(self, folder: Path, seed: int, words: Source) -> RunOptions:
        """Those of the run under one of the seeds, with those that `words` say now."""
        config = make_options(self.words(folder), words)
        own = {"seed": seed, "seeds": None, "seed_workers": None, "name": None, "out": str(seed_folder(folder, seed))}
        return replace(config.replaced({"run": own}), notes=())  # which are said once

    def begun(self, folder: Path) -> list[int]:
        """The seeds whose runs can be resumed."""
        return [seed for seed in self.seeds if (seed_folder(folder, seed) / "config.toml").is_file()]


def is_seeds(folder: Path) -> bool:
    """Whether a folder is that of a run under several seeds."""
    return (folder / SEEDS).is_file()


def seed_folder(folder: Path, seed: int) -> Path:
    """The folder of the run under one seed."""
    return folder / f"seed-{seed}"


def read_seeds(folder: Path) -> Seeds:
    """What `seeds.json` says. Raises InputError when it is altered."""
    try:
        found = read_checked(folder / SEEDS)
        if found is None:
            raise CheckpointError(f"{folder / SEEDS}: missing")
        return Seeds(found["run"], tuple(found["seeds"]), found["options"], found["files"])
    except (CheckpointError, KeyError, TypeError) as fault:
        raise InputError(f"{fault}, expected what evolora wrote; each seed's folder is a run of its own") from None


def for_each_run(words: Source) -> Source:
    """What a resumed run of one seed is told, of what all of them are."""
    known = Vocabulary({})
    kept = [one for one in words.words if known.words.get(one[0].replace("-", "_")) != ("run", "seed_workers")]
    return replace(words, words=kept)
