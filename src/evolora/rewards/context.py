"""What a reward may know of the run that it is made for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # worker processes make rewards too, and need not load what a model needs
    from evolora.models.base import BaseModel


@dataclass(frozen=True)
class RewardContext:
    """The run's base model, where there is one. A factory that has a parameter `context` is given it.

    The base model computes as if there were no adapters: engines have module trees of their own.
    """

    base: "BaseModel | None" = None
