"""A reward for text that a language model finds likely."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.models.sequence_scores import check_batch_size, load_model, model_version
from evolora.rewards.base import Reward
from evolora.rewards.context import RewardContext


class Fluency:
    """1 / perplexity of the completion after its prompt: exp of the mean log-probability of its tokens, in (0, 1].

    The run's own base model reads the very tokens that were written; another model reads the text, prompt and
    completion each tokenised for itself. The end of the text counts as a token where it was written. An empty
    completion is worth 0: nothing is there that could be fluent. Rows are padded on the right, so positions need no
    care.
    """

    __name__ = "perplexity"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, own: bool, batch_size: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.own = own
        self.batch_size = batch_size

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **_: object,
    ) -> list[float | None]:
        rows = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            before = self.tokenizer(prompt)["input_ids"]
            if self.own and completion_ids is not None:
                after = list(completion_ids[row])
            else:
                after = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
            rows.append((before, after if completion.strip() else []))
        values = [0.0] * len(rows)
        scored = [row for row, (before, after) in enumerate(rows) if before and after]
        scored.sort(key=lambda row: len(rows[row][0]) + len(rows[row][1]))
        for start in range(0, len(scored), self.batch_size):
            part = scored[start : start + self.batch_size]
            for row, value in zip(part, self._means([rows[row] for row in part]), strict=True):
                values[row] = value
        return list(values)

    def _means(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """exp(mean log-probability) of the second part of each row after the first."""
        room = getattr(self.model.config, "max_position_embeddings", None)
        cut = [_fitting(before, after, room) for before, after in rows]
        longest = max(len(before) + len(after) for before, after in cut)
        device = self.model.device
        ids = torch.zeros(len(cut), longest, dtype=torch.long)
        inside = torch.zeros(len(cut), longest, dtype=torch.bool)
        wanted = torch.zeros(len(cut), longest, dtype=torch.bool)
        for row, (before, after) in enumerate(cut):
            ids[row, : len(before) + len(after)] = torch.tensor([*before, *after])
            inside[row, : len(before) + len(after)] = True
            wanted[row, len(before) : len(before) + len(after)] = True
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=inside.long().to(device)).logits
        log_probs = logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None].to(device))[..., 0].cpu()
        counted = wanted[:, 1:]
        means = torch.where(counted, log_probs, 0.0).sum(1) / counted.sum(1)
        return [float(value) for value in means.exp()]


def make_perplexity(
    *, context: RewardContext, model: str | None = None, device: str = "cpu", batch_size: int = 32
) -> Reward:
    """`Fluency` under the run's base model without adapters, or under another causal language model, by folder or hub
    name, on its own device. Raises InputError for one that cannot be loaded."""
    check_batch_size("perplexity", batch_size)
    if model is None:
        if context.base is None:
            raise InputError("reward perplexity: found no base model here, expected model=, a folder or a hub name.")
        return Fluency(context.base.model, context.base.tokenizer, own=True, batch_size=batch_size)
    loaded, tokenizer = load_model("reward perplexity: model", AutoModelForCausalLM, model, device)
    reward = Fluency(loaded, tokenizer, own=False, batch_size=batch_size)
    reward.version = model_version(model)  # type: ignore[attr-defined]
    return reward


def _fitting(before: list[int], after: list[int], room: int | None) -> tuple[list[int], list[int]]:
    """What the model has room for: of the prompt its end, and one token of it at least; of the completion its start."""
    if room is None or len(before) + len(after) <= room:
        return before, after
    after = after[: room - 1]
    return before[-(room - len(after)) :], after
