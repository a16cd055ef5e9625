"""`evolora reward-model train`: a reward model from a file of preferences, as a folder."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from evolora.errors import InputError
from evolora.files import whole_folder, write_text
from evolora.human.exchange import run_votes
from evolora.human.preferences import read_preferences
from evolora.human.reward_model import FittedRewardModel, fit_reward_model
from evolora.markdown import code_span
from evolora.models.export import shown_model


@dataclass(frozen=True)
class TrainedRewardModel:
    """What came of it, where it is, and how long it took."""

    fitted: FittedRewardModel
    folder: Path
    seconds: float

    def lines(self) -> list[str]:
        """For a terminal."""
        fitted = self.fitted
        held_out = "held-out agreement: not measured, fewer than 5 preferences were held out"
        if fitted.accuracy is not None:
            low, high = wilson_interval(fitted.accuracy, fitted.held_out)
            held_out = (
                f"held-out agreement {fitted.accuracy:.3f} (95% {low:.3f} to {high:.3f}), {fitted.held_out} preferences"
            )
        return [
            f"learned from {fitted.pairs} preferences in {self.seconds:.1f} s",
            f"agreement with them {fitted.train_accuracy:.3f}",
            held_out,
            f"reward model: {self.folder}",
        ]


def train_reward_model(
    file: Path,
    out: Path,
    *,
    model: str,
    lr: float,
    epochs: int,
    batch_size: int,
    r: int,
    alpha: int,
    holdout: float,
    seed: int,
    device: str,
    threads: int,
) -> TrainedRewardModel:
    """Fit a reward model to the preferences in `file`, or to the votes of the run in that folder, ties among them, and
    write it to the new folder `out`, all of it or nothing.

    Raises InputError, before any work, for options out of range, a bad file, and a folder that holds something.
    """
    counts = {"epochs": epochs, "batch-size": batch_size, "r": r, "alpha": alpha, "threads": threads}
    for option, value in counts.items():
        if value < 1:
            raise InputError(f"--{option} {value}: expected at least 1")
    if not lr > 0:
        raise InputError(f"--lr {lr}: expected a positive number")
    if not 0 <= holdout < 1:
        raise InputError(f"--holdout {holdout}: expected a share of at least 0 and less than 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists already, expected a new or empty folder")
    preferences = run_votes(file) if file.is_dir() else read_preferences(file)
    torch.set_num_threads(threads)
    start = time.perf_counter()
    fitted = fit_reward_model(
        model, preferences, seed=seed, lr=lr, epochs=epochs, batch_size=batch_size, r=r, alpha=alpha, holdout=holdout,
        device=device,
    )  # fmt: skip
    trained = TrainedRewardModel(fitted, out, time.perf_counter() - start)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as temporary:
        fitted.save(temporary)
        write_text(temporary / "README.md", _card(model, file, trained))
    return trained


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of `count` by Wilson's score (1927), 95% unless told otherwise.

    >>> tuple(round(end, 3) for end in wilson_interval(0.9, 50))
    (0.786, 0.957)
    """
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _card(model: str, file: Path, trained: TrainedRewardModel) -> str:
    facts = "\n".join(f"- {line}" for line in trained.lines()[:-1])
    return f"""# A reward model

A Bradley-Terry reward model on top of {code_span(shown_model(model))}, trained by evolora from the preferences in
{code_span(file.name)}. It reads a prompt, its completion and the end-of-sequence token, and gives one score; the
difference of two scores is the log-odds that the first completion is preferred.

{facts}

```
evolora train --reward 'reward-model(model=FOLDER)' ...
```

```python
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
```
"""
