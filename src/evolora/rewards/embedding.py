"""A reward by meaning: how near a completion's embedding is to its target's."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel

from evolora.models.sequence_scores import check_batch_size, encoded, load_model, model_version
from evolora.rewards.base import Reward
from evolora.rewards.targets import target_text

# Embeddings that are kept: some 400 floats each.
_KEPT = 50_000


class Cosine:
    """max(0, cosine) of the embeddings of completion and target, both stripped, in [0, 1].

    An embedding is the mean of the last layer over the tokens of the text (mean pooling), as sentence-transformers has
    it (Reimers and Gurevych, 2019, arXiv 1908.10084). Texts of like length go through together, and what has been
    embedded is kept. A target may be text or a number; None is not scored. Raises TypeError for other targets.
    """

    __name__ = "cosine"

    def __init__(self, model: str, *, device: str, batch_size: int) -> None:
        self.model, self.tokenizer = load_model("reward cosine: model", AutoModel, model, device, new="pooler")
        self.batch_size = batch_size
        self.version = model_version(model)
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, completions: Sequence[str], target: Sequence[object], **_: object) -> list[float | None]:
        goals = [target_text(goal) for goal in target]
        texts = [completion.strip() for completion in completions]
        embedded = self.embed([*texts, *(goal for goal in goals if goal is not None)])
        return [
            None if goal is None else float(torch.dot(embedded[text], embedded[goal]).clamp(0, 1))
            for text, goal in zip(texts, goals, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The embedding of each distinct text: [width] float64 of length 1."""
        fresh = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        found = {text: self._known[text] for text in texts if text in self._known}
        for start in range(0, len(fresh), self.batch_size):
            part = fresh[start : start + self.batch_size]
            found |= dict(zip(part, self._pooled(part), strict=True))
        self._known |= found
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            batch = encoded(self.model, self.tokenizer, texts)
            hidden: Tensor = self.model(**batch).last_hidden_state.double()
            mask = batch["attention_mask"][..., None].to(hidden)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(mean, dim=1).cpu()


def make_cosine(*, model: str, device: str = "cpu", batch_size: int = 32) -> Reward:
    """`Cosine` by any encoder, by folder or hub name. Raises InputError for one that cannot be loaded."""
    check_batch_size("cosine", batch_size)
    return Cosine(model, device=device, batch_size=batch_size)
