"""A reward model from pairwise preferences: Bradley and Terry (1952), as InstructGPT fits it (Ouyang et al., 2022,
arXiv 2203.02155).

The base model with a head that gives one score. Its LoRA weights and the head learn to give the chosen completion the
higher one: the loss is -log sigmoid(score(chosen) - score(rejected)), a tie counting half for each side. So differences
of scores are log-odds of being preferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.human.preferences import Preference
from evolora.models.base import model_path
from evolora.models.lora import lora_config
from evolora.models.sequence_scores import classifier_outputs, load_model, outputs_of, written
from evolora.rng import keyed_generator, keyed_seed

# The share of the preferences that is not learned from.
HOLDOUT = 0.2
# Texts that are scored together.
_BATCH_SIZE = 64
# Of fewer held-out preferences a share would say nothing.
_FEWEST_HELD_OUT = 5


@dataclass(frozen=True)
class FittedRewardModel:
    """A reward model and how well it agrees with preferences.

    `accuracy`: on the share `held_out` / (`held_out` + `pairs`) of the preferences that it has not learned from, how
    many it puts in the right order; None where they are fewer than five. `train_accuracy`: the same of the `pairs` that
    it has learned from. Ties count in neither. `typical`: the mean score of all texts in the preferences.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accuracy: float | None
    train_accuracy: float
    typical: float
    pairs: int
    held_out: int

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> npt.NDArray[np.float64]:
        """The scores [completions], in log-odds up to one constant."""
        return _scored(self.model, self.tokenizer, prompts, completions)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, from which `AutoModelForSequenceClassification` loads the same scores."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fit_reward_model(
    base: str,
    preferences: Sequence[Preference],
    *,
    seed: int,
    lr: float = 1e-3,
    epochs: int = 8,
    batch_size: int = 16,
    r: int = 8,
    alpha: int = 16,
    holdout: float = HOLDOUT,
    device: str = "cpu",
) -> FittedRewardModel:
    """Fit a reward model on top of `base`, a causal LM by name or folder.

    Which preferences are held out is decided by each one's own texts, so it stays so when others are added. Once their
    agreement is known, the model that is returned has learned from the others only.

    Raises InputError for a base that cannot be loaded, and for no preferences.
    """
    learned = [one for one in preferences if not is_held_out(one, holdout)]
    if not any(not one.tie for one in learned):
        raise InputError("the reward model: found no preferences to learn from, expected at least one that is no tie")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "reward model"))
        model, tokenizer = _load(base, r, alpha, device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    chosen = written(tokenizer, [one.prompt for one in learned], [one.chosen for one in learned])
    rejected = written(tokenizer, [one.prompt for one in learned], [one.rejected for one in learned])
    ties = torch.tensor([one.tie for one in learned], device=device)
    for epoch in range(epochs):
        order = torch.randperm(len(learned), generator=keyed_generator(seed, "reward model", epoch))
        for rows in order.split(batch_size):
            texts = [chosen[row] for row in rows.tolist()] + [rejected[row] for row in rows.tolist()]
            scores = outputs_of(model, tokenizer, texts)[:, 0]
            gap = scores[: len(rows)] - scores[len(rows) :]
            won = F.logsigmoid(gap)
            loss = -torch.where(ties[rows], (won + F.logsigmoid(-gap)) / 2, won).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    merged: PreTrainedModel = model.merge_and_unload().eval().requires_grad_(False)

    def scores_of(completions: Sequence[str]) -> npt.NDArray[np.float64]:
        return _scored(merged, tokenizer, [one.prompt for one in preferences], completions)

    better, worse = scores_of([one.chosen for one in preferences]), scores_of([one.rejected for one in preferences])
    right = better > worse
    known = np.array([not one.tie for one in preferences])
    held_out = np.array([is_held_out(one, holdout) for one in preferences])
    enough = int((known & held_out).sum()) >= _FEWEST_HELD_OUT
    return FittedRewardModel(
        merged,
        tokenizer,
        accuracy=float(right[known & held_out].mean()) if enough else None,
        train_accuracy=float(right[known & ~held_out].mean()),
        typical=float(np.mean([better, worse])),
        pairs=len(learned),
        held_out=int((known & held_out).sum()),
    )


def _scored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
) -> npt.NDArray[np.float64]:
    outputs = classifier_outputs(model, tokenizer, written(tokenizer, prompts, completions), _BATCH_SIZE)
    return np.asarray(outputs[:, 0].numpy())


def _load(base: str, r: int, alpha: int, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = AutoModelForSequenceClassification
    model, tokenizer = load_model("the reward model's base", kind, model_path(base), device, new="score", num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    config = lora_config(model, r=r, alpha=alpha, dropout=0.0)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    model = get_peft_model(model, config).eval()  # dropout off: few pairs, few steps
    for name, parameter in model.named_parameters():
        if ".score." in name and parameter.requires_grad:
            torch.nn.init.zeros_(parameter)  # nothing is better than anything else at first
    return model, tokenizer


def is_held_out(preference: Preference, share: float = HOLDOUT) -> bool:
    """Whether a preference only measures agreement: by a hash of its texts, so about `share` of all are."""
    texts = sorted((preference.chosen, preference.rejected))
    return keyed_seed(0, "held out", preference.prompt, *texts) / 2**63 < share
