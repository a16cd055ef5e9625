"""What an engine's passes need beside the model's own layers, by torch alone. A faster engine replaces some of it."""

from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from evolora.engine.base import Trace
from evolora.engine.eager.kv_cache import RoomyCache, make_cache
from evolora.engine.eager.log_probs import token_log_probs
from evolora.engine.eager.lora_layers import LoraLayer, LoraLayers
from evolora.engine.eager.sampling import sample


class Choice(NamedTuple):
    """How the next tokens are chosen where several steps are made without a stop in between.

    `alive` [rows] says whose; `left` [rows], how many more there may be; `draws` [rows, steps] uniform numbers for
    them, or None for the likeliest; `ends` are the tokens that end a row; with `enough` rows left the others leave.
    """

    alive: Tensor
    left: Tensor
    draws: Tensor | None
    temperature: float
    ends: Tensor
    enough: int
    keep_features: bool


class Steps(NamedTuple):
    """Several steps: `tokens` that were chosen, which of them are `good`, their `log_probs` if they were sampled, all
    [rows, steps], and their `features` [rows, steps, hidden]; who is still `alive`; with a trace, the `logits` [rows,
    steps, vocabulary]."""

    tokens: Tensor
    good: Tensor
    log_probs: Tensor | None
    features: Tensor | None
    alive: Tensor
    logits: Tensor | None


class Step(Protocol):
    """One more token for each row, faster than by the model's modules."""

    def run(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The logits after one more token of each row, `tokens` [rows] at `positions` [rows], [rows, 1, vocabulary],
        and the hidden states that they come from, [rows, 1, width], which the next step writes over. `mask` [rows,
        length] is 0 at the positions that are not to be seen; the cache grows by one."""
        ...

    @property
    def multi_step(self) -> bool:
        """Whether several steps can be made without a stop in between."""
        ...

    def run_steps(self, tokens: Tensor, positions: Tensor, mask: Tensor, choice: Choice) -> Steps:
        """Several steps: `tokens` first, then others, chosen as `choice` says."""
        ...


class DecodingTrace(Trace, Protocol):
    """A trace while it is written. Each method says whether what it is told of has been written."""

    def begun(self, places: Tensor, lengths: Tensor, logits: Tensor) -> bool:
        """After the prompts: row i's are the first `lengths[i]` tokens of `places` [rows, longest], and `logits` [rows,
        1, vocabulary] come of them."""
        ...

    def stepped(self, rows: Tensor, logits: Tensor) -> bool:
        """After a token more of each of `rows`, of which come `logits` [rows, 1, vocabulary]."""
        ...


class Kernels:
    """torch's."""

    layer: type[LoraLayer] = LoraLayer
    least_finished_share: float = 1 / 8
    """Finished rows leave the batch when they are this share of it: leaving copies the cache of those who stay."""
    steps_between_looks: int = 8
    """How many steps are made on a device that is not the CPU before the host waits to see which rows have finished."""
    packs: bool = True
    """Whether texts may be packed."""
    masked_attention: tuple[str, ...] = ("sdpa", "eager")
    """Whose attention takes a mask that says who sees whom."""

    def replica(self) -> Self:
        """The same for an engine in another thread."""
        return self

    def make_cache(self, model: PreTrainedModel, capacity: int, *, longest: int | None = None) -> Cache:
        return make_cache(model, capacity, longest=longest)

    def likeliest(self, logits: Tensor) -> Tensor:
        """The index of the highest of `logits` [..., vocabulary], the first of equal ones."""
        return logits.argmax(-1)

    def sample(self, logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return sample(logits, uniform, temperature)

    def token_log_probs(self, logits: Tensor, tokens: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        return token_log_probs(logits, tokens, **how)

    def step(self, _model: PreTrainedModel, _rows: int, _cache: Cache | None, /) -> Step | None:
        """The steps of so many rows of a model with this cache; None for a pass of the model."""
        return None

    def trace(
        self, _layers: LoraLayers, _cache: RoomyCache, _rows: int, _prompt_tokens: int, _steps: int, /
    ) -> DecodingTrace | None:
        """Where the decoding of so many rows, tokens of packed prompts and steps is written for its gradient; None
        where it is not known how."""
        return None
