"""An engine of two: one writes completions, and another scores and trains on them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Engine, Prompts, Scored, Scoring
from evolora.engine.options import Truncation
from evolora.errors import InputError

LEAST_TEMPERATURE = 1e-5


class Writes(Protocol):
    """What writes completions; their log-probabilities, if it says them, are its own."""

    words: str
    """What the log says of it."""

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`."""
        ...

    def rest(self) -> None:
        """It is not asked for a while: what memory it can do without, others may have."""
        ...

    def close(self) -> None:
        """See `Engine.close`."""
        ...


def check_sampling(truncation: Truncation | None, temperature: float = 1.0) -> None:
    """Raise InputError for a truncation: what a writer keeps of each distribution is not known, and nothing could be
    scored. And for a temperature that it takes for none."""
    if temperature < LEAST_TEMPERATURE:
        raise InputError(
            f"--temperature {temperature:g}: found an engine that takes it for greedy, expected at least "
            f"{LEAST_TEMPERATURE:g}, or --engine auto"
        )
    if truncation is not None:
        given = [each for each in fields(truncation) if getattr(truncation, each.name) != each.default]
        one = given[0]
        name, value = f"--{one.name.replace('_', '-')}", getattr(truncation, one.name)
        raise InputError(
            f"{name} {value:g}: found an engine that does not say what it keeps of a distribution, expected "
            f"{one.default:g}, the default, or --engine auto"
        )


class CombinedEngine:
    """What `writer` writes, scored by `scorer`.

    Two programs round differently, and a gradient must not take that for a change of the policy. So the
    log-probabilities of what was sampled are the scorer's own, by one pass more. The bias that is left is that of a
    sample that is drawn from the writer's rounding of the policy. How large it is the metrics say.
    """

    def __init__(self, writer: Writes, scorer: Engine) -> None:
        self.writer, self.scorer = writer, scorer
        self.layout, self.size, self.hidden = scorer.layout, scorer.size, scorer.hidden
        self.device, self.dtype, self.trains = scorer.device, scorer.dtype, scorer.trains
        self.name = f"{writer.words}, {type(scorer).__name__}"
        self._apart: list[Tensor] = []

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`.

        Raises InputError for a truncation: what the writer kept of each distribution is not known.
        """
        check_sampling(how.truncation)
        found = self.writer.generate(genomes, prompts, how, owners=owners)
        if how.seeds is None and not how.features:
            return found
        scoring = Scoring(temperature=how.temperature, features=how.features)
        scored = self.scorer.score(genomes, prompts, found, scoring, owners=owners)
        scored.release()
        own = found.log_probs
        if own is not None:
            self._apart.append((scored.log_probs - own)[found.mask].abs().double().cpu())
        return replace(
            found,
            log_probs=None if how.seeds is None else scored.log_probs,
            features=scored.features,
            writer_log_probs=own,
        )

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """See `Engine.score`. The writer rests while there are gradients."""
        if how.gradient:
            self.writer.rest()
        return self.scorer.score(genomes, prompts, completions, how, owners=owners)

    def metrics(self) -> dict[str, float]:
        """By how much the two differ in log-probabilities of what was sampled: in the mean, and at most."""
        apart, self._apart = self._apart, []
        if not apart:
            return {}
        found = torch.cat(apart)
        return {"writer.apart": float(found.mean()), "writer.apart_most": float(found.max())}

    def close(self) -> None:
        """Close both."""
        self.writer.close()
        self.scorer.close()
