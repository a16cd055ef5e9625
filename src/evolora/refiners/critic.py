"""The value head: what reward the policy may still expect, read off its last hidden state."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evolora.refiners.losses import clipped_value_loss


class Critic:
    """Linear value heads, one for each individual under refinement, so that individuals do not mix.

    A refinement starts from one shared head, the mean of those of the last generation: the critic is warm when a new
    elite arrives. Where heads travel with individuals, it is for those that bring none. A head reads `features` [k,
    rows, time, hidden], the policy's last hidden states at sampling, normalised to unit length; their gradient does not
    reach the policy (as in TRL and Huang et al., 2024, arXiv 2403.17031, where the value model is its own network).
    """

    def __init__(self, hidden_size: int, *, lr: float, epochs: int, clip_range: float, dtype: torch.dtype) -> None:
        self.lr = lr
        self.epochs = epochs
        self.clip_range = clip_range
        self.shared = torch.zeros(hidden_size + 1, dtype=dtype)

    def heads(self, count: int, device: torch.device) -> Tensor:
        """Fresh heads [count, hidden + 1], the bias last, as copies of the shared one."""
        return self.shared.to(device).repeat(count, 1)

    def values(self, heads: Tensor, features: Tensor) -> Tensor:
        """Expected rewards [k, rows, time]."""
        weights, bias = heads[:, :-1], heads[:, -1, None, None]
        values: Tensor = torch.einsum("krth,kh->krt", _normalised(features, heads.dtype), weights) + bias
        return values

    def fit(self, heads: Tensor, features: Tensor, returns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Heads trained on `returns` [k, rows, time] by clipped value loss, and each head's last loss [k]."""
        old_values = self.values(heads, features)
        with torch.enable_grad():
            trained = heads.clone().requires_grad_()
            optimiser = torch.optim.Adam([trained], lr=self.lr)
            for _ in range(self.epochs):
                loss = clipped_value_loss(
                    self.values(trained, features), old_values, returns, mask, clip_range=self.clip_range
                )
                optimiser.zero_grad()
                loss.sum().backward()
                optimiser.step()
        return trained.detach(), loss.detach()

    def keep(self, heads: Sequence[Tensor]) -> None:
        """Share the mean of `heads`, each [hidden + 1], with later refinements, but for those that have diverged."""
        finite = [head for head in heads if head.isfinite().all()]
        if finite:
            self.shared = torch.stack(finite).mean(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"critic": self.shared}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.shared = state["critic"].clone()


def _normalised(features: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = features.shape[-1]
    normalised: Tensor = F.layer_norm(features.to(dtype), (hidden,))
    return normalised / math.sqrt(hidden)
