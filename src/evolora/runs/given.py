"""What a run was given as Python objects, which no file holds: a resumed run needs them again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.rewards.base import Reward
from evolora.rewards.expression import Expression
from evolora.rewards.several import weighted
from evolora.runs.callbacks import Callback, Function

Rewards = Reward | str | Sequence[Reward | str]

# In a run's folder: the rows that it was given as objects.
ROWS = "data.jsonl"

# How the options name an object, in brackets: no folder, hub name or reward is called so.
_MODEL, _FUNCTION = "<model ", "<function "


@dataclass(frozen=True, kw_only=True)
class Given:
    """Nothing, by default. `reward` and `fitness` are expressions with the Python functions among their terms;
    `callbacks` hear of each generation; `notes` are what is said of how they were given."""

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    peft_config: LoraConfig | None = None
    reward: tuple[Expression, Mapping[str, Reward]] | None = None
    fitness: tuple[Expression, Mapping[str, Reward]] | None = None
    rows: list[dict[str, Any]] | None = None
    callbacks: Sequence[Callback | Function] = field(default=())
    notes: Sequence[str] = field(default=())

    def as_one(self) -> "Given":
        """The same with its fitness as the reward, where it has no other."""
        if self.fitness is None or self.reward is not None:
            return self
        return replace(self, reward=self.fitness, fitness=None)

    def places(self) -> set[tuple[str, str]]:
        """The options that objects stand for."""
        given = {("reward", "name"): self.reward, ("evolution", "fitness"): self.fitness}
        return {place for place, value in given.items() if value is not None}

    def model_name(self) -> str:
        """What the options call the model that was given."""
        assert self.model is not None
        return f"{_MODEL}{self.model.config.name_or_path or type(self.model).__name__}>"


def given_reward(
    reward: Rewards | None, weights: Sequence[float] | None = None, *, said: str = "reward"
) -> tuple[Expression, Mapping[str, Reward]] | None:
    """Rewards among which is a Python function, or several; None for a name alone, or nothing."""
    if weights is None and (reward is None or isinstance(reward, str)):
        return None
    if reward is None:
        raise InputError(f"reward_weights={weights!r}: expected rewards beside them")
    rewards = [reward] if isinstance(reward, str) or callable(reward) else reward
    if not isinstance(rewards, Iterable):
        raise InputError(f"{said}: found {reward!r:.60}, expected a function, the name of a reward or a list of these")
    return weighted(list(rewards), weights)


def refuse_forgotten(model: str, reward: str | None, fitness: str | None, given: Given) -> None:
    """Raise InputError where a run was given an object before and is not now."""
    if given.model is None and model.startswith(_MODEL):
        raise InputError(
            f"--model: this run was given the loaded model {model.removeprefix(_MODEL).removesuffix('>')}, expected it "
            "again, by evolora.resume(run, model=..., tokenizer=...), or the name of the same one for 'evaluate' and "
            "'generate'"
        )
    for name, written, own in (("reward", reward, given.reward), ("fitness", fitness, given.fitness)):
        if own is None and written is not None and _FUNCTION in written:
            function = written[written.index(_FUNCTION) + 1 :].partition(">")[0]
            raise InputError(
                f"--{name}: this run was given the Python {function}, expected it again, by evolora.resume(run, "
                f"{name}=...), or another {name} for 'evaluate'"
            )
