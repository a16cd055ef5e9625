"""Hits: what a run is paid for that begins with nothing, and what came of the first of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Of the base's completions on validation, the share that may be paid where RL follows another reward.
_SELDOM = 0.05
# So many of them say whether it may.
_FEWEST = 4
# Kept of one prompt, and of all: they are scored by each individual.
_KEPT, _KEPT_IN_ALL = 8, 64
# What counts as having got there.
_HALF = 0.5


@dataclass(frozen=True)
class FirstHit:
    """Where the first hit was: in which `generation`, at which `stage` (`population`, `refined`, `search`,
    `samples` or `rollout`), by which individual's id, on which training prompt, and after how many generated tokens."""

    generation: int
    stage: str
    individual: int
    prompt: str
    completion: str
    tokens: int


@dataclass(frozen=True)
class KnownHit:
    """A completion of a training prompt by its token ids, and by how much it is `worth` more than nothing."""

    prompt: str
    completion_ids: tuple[int, ...]
    worth: float


@dataclass
class Hits:
    """The completions of training prompts that are worth more than `floor`, which (almost) all of the base's on
    validation are worth; with `floor` None the base is paid from the start, and nothing counts as a hit.

    >>> hits = Hits()
    >>> hits.begin(np.zeros(4), beside=False)
    True
    >>> hits.add(FirstHit(1, "rollout", 3, "4 + 3 =", " 7", 120), [5, 0], 1.0)
    >>> hits.reached(0.75, tokens=500)
    >>> hits.first.completion, hits.tokens_to_half
    (' 7', 380)
    """

    floor: float | None = None
    first: FirstHit | None = None
    # Tokens from the first hit to the end of the generation whose validation was half of what there is.
    tokens_to_half: int | None = None
    # Completions that were sampled before the first hit.
    in_vain: int = 0
    # Where hits are too rare to select by: since which generation, after so many samples in vain, and what share of
    # hits would have been enough.
    too_rare: tuple[int, int, float] | None = None
    known: dict[str, dict[tuple[int, ...], float]] = field(default_factory=dict)

    def begin(self, worth: Floats, *, beside: bool) -> bool:
        """Told what the base's completions on validation are worth: whether the run starts from nothing. With a fitness
        `beside` the reward a few of them may be paid."""
        there = worth[~np.isnan(worth)]
        # Few that are worth something alike say little.
        tells = len(there) >= _FEWEST or (len(there) and there.max() <= 0)
        if tells and (there > there.min()).mean() <= (_SELDOM if beside else 0.0):
            self.floor = float(there.min())
        return self.floor is not None

    def add(self, where: FirstHit, completion_ids: Sequence[int], worth: float) -> None:
        """Note a completion of this worth, NaN for none, if it is a hit."""
        if self.floor is None or not worth > self.floor:
            self.in_vain += self.first is None and where.stage in ("rollout", "search", "samples")
            return
        self.first = self.first or where
        of_prompt = self.known.get(where.prompt, {})
        if len(self) < _KEPT_IN_ALL and len(of_prompt) < _KEPT:
            self.known.setdefault(where.prompt, {}).setdefault(tuple(completion_ids), worth - self.floor)

    def reached(self, validation: float, *, tokens: int) -> None:
        """Told the validation at the end of a generation, when so many tokens were generated."""
        if self.first is not None and self.tokens_to_half is None and validation >= _HALF:
            self.tokens_to_half = tokens - self.first.tokens

    def __len__(self) -> int:
        return sum(map(len, self.known.values()))

    def __iter__(self) -> Iterator[KnownHit]:
        return (KnownHit(prompt, ids, worth) for prompt, own in self.known.items() for ids, worth in own.items())

    def metrics(self, generation: int) -> dict[str, Any]:
        """As docs/metrics.md defines them; none where the base is paid from the start."""
        if self.floor is None:
            return {}
        where = asdict(self.first) if self.first is not None and self.first.generation == generation else {}
        return {"hits": len(self), **{f"first_hit.{name}": value for name, value in where.items()}}

    def summary(self) -> dict[str, Any]:
        """The first hit, as docs/metrics.md defines it; nothing where there is none."""
        if self.first is None:
            return {}
        return {"first_hit": {**asdict(self.first), "tokens_to_half": self.tokens_to_half}}

    def news(self, generation: int) -> list[str]:
        """What is to be said once of this generation."""
        said, first = [], self.first
        if self.too_rare is not None and self.too_rare[0] == generation:
            said.append(f"generation {generation}: {self.rarity()}")
        if first is not None and first.generation == generation:
            said.append(
                f"generation {generation}: the first hit, after {first.tokens:,} tokens, by individual "
                f"{first.individual} ({first.stage}): {first.completion.strip()!r} to {first.prompt[-60:].strip()!r}"
            )
        return said

    def rarity(self) -> str | None:
        """That hits are too rare to select by, where they are."""
        if self.too_rare is None:
            return None
        _, samples, least = self.too_rare
        return (
            f"Hits are too rare to select by: none in {samples:,} samples, and what may be sampled to select by tells "
            f"individuals apart only where {least:.0%} of their samples are hits. What helps: a --reward that says "
            "which is nearer."
        )

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        known = {prompt: [[list(ids), worth] for ids, worth in own.items()] for prompt, own in self.known.items()}
        return {**vars(self), "first": None if self.first is None else asdict(self.first), "known": known}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Hits":
        known = {prompt: {tuple(ids): worth for ids, worth in own} for prompt, own in state["known"].items()}
        first = None if state["first"] is None else FirstHit(**state["first"])
        rare = None if state["too_rare"] is None else tuple(state["too_rare"])
        return cls(**{**state, "first": first, "known": known, "too_rare": rare})
