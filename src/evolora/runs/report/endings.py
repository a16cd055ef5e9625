"""How a run ended, in sentences that its figures alone would not say."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evolora.runs.summary import measured_by, worth

# Nats a token of drift, where what the base finds likely is 1.6 times as surprising to the winner.
_FAR = 0.5
# Of the completions that were cut off, what is worth a warning.
_MANY = 0.5


@dataclass(frozen=True)
class Ending:
    """A run's `summary`; the lowest and the highest reward of the whole run, if there was any; whether the best on
    validation is fitter there than the base; of a fitness beside the reward what the base and the latest to be
    validated earn there, and whether its interval could be had; the most new tokens; and what there is to say where
    hits were too rare to select by."""

    summary: dict[str, Any]
    earned: tuple[float, float] | None
    fitter: bool
    rewards: tuple[float, float] | None
    has_interval: bool
    max_new_tokens: int
    rarity: str | None = None

    def sentences(self) -> list[str]:
        """Those that are true."""
        return list(self._sentences())

    def _sentences(self) -> Iterator[str]:
        base, winner = self.summary["base"]["test"], self.summary["winner"]["test"]
        untouched = self.summary["winner"]["id"] == 0
        if (first := self.summary.get("first_hit")) is not None and first["tokens_to_half"] is not None:
            yield (
                f"The first hit came in generation {first['generation']}, after {first['tokens']:,} tokens; validation "
                f"reached 0.5 {first['tokens_to_half']:,} tokens later."
            )
        before, after = worth(base), worth(winner)
        if untouched and self.summary["winner"]["validation"] is not None:
            what = "the adapter that the run started from" if "init" in self.summary else "the base"
            yield f"Nothing beat {what} on the validation prompts: best/ is {what}, unchanged."
        if self.earned is not None and self.earned[0] == self.earned[1]:
            yield f"All rewards of the run were {self.earned[0]:g}: there was nothing to learn from."
        if self.rarity is not None:
            yield self.rarity
        if self.rewards is not None and self.rewards[1] > self.rewards[0] and not self.fitter:
            yield rose_alone(*self.rewards)
        if not untouched and before is not None and after is not None and after < before:
            yield (
                f"The lucky finalist lost on the test split: {measured_by(self.summary)} {after:.3f}, the base's "
                f"{before:.3f}; on the validation prompts it was ahead."
            )
        if self.rewards is not None and not self.has_interval and after is not None:
            yield f"The fitness {self.summary['fitness']} is not recomputed on other prompts, so it has no interval."
        yield from self._of_kept()
        if (
            warning := cut_warning("the winner's test completions", winner["clipped_ratio"], self.max_new_tokens)
        ) is not None:
            yield warning

    def _of_kept(self) -> Iterator[str]:
        """What the winner has lost of what the base could."""
        kept = self.summary.get("kept", {})
        before, after = kept.get("base", {}), kept.get("winner", {})
        for name in list(after):
            if name.startswith("pass@") and name != "pass@1" and after[name] < before[name]:
                yield (
                    f"{name} on the test prompts fell from {before[name]:.3f} to {after[name]:.3f}: of what the base "
                    "can do in several tries the winner can less."
                )
        if (after.get("drift") or 0.0) > _FAR:
            yield (
                f"The winner has drifted {after['drift']:.2f} nats a token from the base on neutral sentences: it may "
                "have lost what the reward does not see."
            )


def rose_alone(before: float, after: float) -> str:
    """That RL has found what the fitness does not want."""
    return (
        f"The reward rose on the validation prompts, from {before:.3f} to {after:.3f}, and the fitness did not: what "
        "RL follows is not what is wanted."
    )


def cut_warning(whose: str, share: float, max_new_tokens: int) -> str | None:
    """What is said where a large share of completions was cut off; None where it was not."""
    if not share > _MANY:  # NaN where there were none
        return None
    return (
        f"Warning: {share:.0%} of {whose} were cut off at {max_new_tokens} tokens; where they should end by "
        "themselves, a larger --max-new-tokens lets them."
    )
