"""What is asked of a model, and in which words: the Engine protocol.

An engine runs one frozen base model with many LoRA genomes. Prompts are ragged token ids: nobody outside an engine
pads, repeats or un-pads them. Each row of a batch has an owner, the index of its genome; one list of prompts for all
genomes is the shorthand, one genome's rows after another's. `genomes` None is the base model itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from evolora.engine.options import Truncation
from evolora.engine.progress import Progress
from evolora.models.cost import ModelSize
from evolora.models.genome import GenomeLayout

Prompts = Sequence[Sequence[int]]


class Trace(Protocol):
    """What an engine keeps of a generation for the gradient of what it wrote. Nobody else looks inside."""

    def release(self) -> None:
        """Let go of it: it will not be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How completions are written: at most `max_new_tokens`, up to and with one of the token ids `ends`; finished rows
    are filled with `pad`.

    Greedy without `seeds`. With them, an entry for each row [rows], tokens are sampled, from all of softmax(logits /
    temperature) or with a `truncation` from what that keeps: a row's tokens depend on its own seed, not on who shares
    the batch. `drafts`,
    token ids for each row (an empty list for none), are guesses at the completions, which may speed them up and change
    nothing. With `features` the completions have the hidden states that their tokens were chosen from, where the engine
    can give them; with `trace` it may keep what the gradient needs.
    """

    max_new_tokens: int
    ends: Sequence[int]
    pad: int
    temperature: float = 1.0
    seeds: npt.NDArray[np.uint64] | None = None
    truncation: Truncation | None = None
    drafts: Prompts | None = None
    features: bool = False
    trace: bool = False

    def of_rows(self, rows: Tensor) -> "Decoding":
        """The same for some rows of the batch."""
        return replace(
            self,
            seeds=None if self.seeds is None else self.seeds[rows.numpy()],
            drafts=None if self.drafts is None else [self.drafts[row] for row in rows.tolist()],
        )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How completions are scored: under softmax(logits / temperature); with `gradient`, so that the result can go
    backwards to the genomes, and then the entropy too if `entropy_gradient`.

    With `dropout_seeds`, an entry for each genome [n], the share `dropout` of the adapters' input is dropped, as in
    PEFT's training mode. What is dropped at a token depends on its genome's seed, on its text so far and on the layer,
    never on who shares the batch, on padding or on how the batch is cut. So what texts of a genome begin with in common
    can be computed once. With `features` the result has the hidden states that each token was chosen from.
    """

    temperature: float = 1.0
    gradient: bool = False
    entropy_gradient: bool = False
    dropout: float = 0.0
    dropout_seeds: npt.NDArray[np.uint64] | None = None
    features: bool = False

    def of_genomes(self, which: slice | Tensor) -> "Scoring":
        """The same for some of the genomes."""
        if self.dropout_seeds is None:
            return self
        own = which if isinstance(which, slice) else which.numpy()
        return replace(self, dropout_seeds=self.dropout_seeds[own])


@dataclass(frozen=True)
class Completions:
    """What the model wrote after each prompt.

    `ids` [rows, length]; `mask` [rows, length] is true up to and with the first end-of-sequence token. Sampling also
    gives `log_probs` [rows, length], of the tempered distribution that was sampled from, and with a truncation `kept`
    [rows, length, bytes], a bit for each token of the vocabulary: what it was sampled from, and is scored among. Where
    these are of another engine than the one that wrote, `writer_log_probs` are the latter's own.
    `features` [rows, length, hidden], where they were asked for and the engine gives them, are the last hidden states
    that each token was chosen from. `trace` is the engine's own.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor | None = None
    features: Tensor | None = None
    kept: Tensor | None = None
    writer_log_probs: Tensor | None = None
    trace: Any = field(default=None, compare=False)

    @property
    def tokens(self) -> int:
        """How many tokens were written, end-of-sequence tokens included."""
        return int(self.mask.sum())

    def rows(self) -> list[list[int]]:
        """The token ids that were written in each row."""
        lengths: list[int] = self.mask.sum(1).tolist()
        return [ids[:length] for ids, length in zip(self.ids.tolist(), lengths, strict=True)]

    def select(self, rows: Tensor) -> "Completions":
        """Those of some rows, without the trace."""
        return Completions(
            ids=self.ids[rows],
            mask=self.mask[rows],
            log_probs=None if self.log_probs is None else self.log_probs[rows],
            features=None if self.features is None else self.features[rows],
            kept=None if self.kept is None else self.kept[rows],
            writer_log_probs=None if self.writer_log_probs is None else self.writer_log_probs[rows],
        )

    def to(self, device: torch.device | str) -> "Completions":
        """The same on that device; the trace stays what it is."""

        def placed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Completions(
            self.ids.to(device),
            self.mask.to(device),
            placed(self.log_probs),
            placed(self.features),
            placed(self.kept),
            placed(self.writer_log_probs),
            self.trace,
        )

    def release(self) -> None:
        """Say that nobody will score these by their trace."""
        if self.trace is not None:
            self.trace.release()

    @classmethod
    def of_ids(cls, rows: Prompts, pad: int) -> "Completions":
        """Given completions, of different lengths and none of them empty."""
        lengths = torch.tensor([len(ids) for ids in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.full(mask.shape, pad)
        ids[mask] = torch.tensor([token for own in rows for token in own])
        return cls(ids, mask)

    @classmethod
    def joined(cls, parts: "Sequence[Completions]", pad: int) -> "Completions":
        """Those of several batches, one after another, as wide as the widest; without traces."""
        length = max(part.ids.shape[1] for part in parts)

        def widened(part: Completions) -> Completions:
            more = length - part.ids.shape[1]
            return Completions(
                F.pad(part.ids, (0, more), value=pad),
                F.pad(part.mask, (0, more)),
                None if part.log_probs is None else F.pad(part.log_probs, (0, more)),
                None if part.features is None else F.pad(part.features, (0, 0, 0, more)),
                None if part.kept is None else F.pad(part.kept, (0, 0, 0, more)),
                None if part.writer_log_probs is None else F.pad(part.writer_log_probs, (0, more)),
            )

        def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
            return None if tensors[0] is None else torch.cat([tensor for tensor in tensors if tensor is not None])

        wide = [widened(part) for part in parts]
        return cls(
            torch.cat([part.ids for part in wide]),
            torch.cat([part.mask for part in wide]),
            stacked([part.log_probs for part in wide]),
            stacked([part.features for part in wide]),
            stacked([part.kept for part in wide]),
            stacked([part.writer_log_probs for part in wide]),
        )


class ScoredValues(Protocol):
    """Log-probabilities of completions, and the entropies of the distributions that they come from, both [rows, length]
    and 0 beyond the completions' mask; `features` [rows, length, hidden] where they were asked for."""

    @property
    def log_probs(self) -> Tensor: ...

    @property
    def entropy(self) -> Tensor: ...

    @property
    def features(self) -> Tensor | None: ...


class Scored(ScoredValues, Protocol):
    """These, and the way back."""

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        """The gradient of the genomes [n, genome_length], from those of the log-probabilities and entropies [rows,
        length]; of what was scored with `gradient`, once. It is called where torch's own gradients are off."""
        ...

    def release(self) -> None:
        """Let go of what the gradient needs: nobody will ask for it."""
        ...


class Engine(Protocol):
    """One frozen base model, run with many genomes of one `layout`.

    `size` is what its nominal operations depend on, `hidden` the width of its features, `device` where its tensors
    are; `dtype`, float32 at least, is that of its log-probabilities. `trains` says whether what it scores has a
    gradient.
    """

    layout: GenomeLayout
    size: ModelSize
    hidden: int
    device: torch.device
    dtype: torch.dtype
    trains: bool

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """Completions of each of `prompts` by each of `genomes` [n, genome_length], one genome's after another's; with
        `owners`, of each prompt by its owner, whose index may only rise. By the base model without genomes."""
        ...

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """Log-probabilities of `completions`, whose rows are as `generate` gives them: where they say what was `kept`,
        among these tokens alone."""
        ...

    def close(self) -> None:
        """Give back what it holds. It is not asked any more."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """What an engine may have beside: something to do before its first use that would otherwise be waited for there."""

    def prepare(self, progress: Progress, *, learns: bool, dropout: float) -> None:
        """Do it, for a run that refines genomes, if it `learns`, with so much dropout."""
        ...


@runtime_checkable
class Replicates(Protocol):
    """What an engine may have beside: another of its kind on the same weights, for another thread. One that has not
    runs a batch whole."""

    def replica(self) -> Engine:
        """Another engine."""
        ...


@runtime_checkable
class Copies(Protocol):
    """What an engine may have beside: further copies of the weights."""

    def copies(self) -> tuple[int, int]:
        """Their bytes: of those that there are now, and at most."""
        ...


@runtime_checkable
class Deals(Protocol):
    """What an engine may have beside: others that it deals the rows of large batches to."""

    def dealt_to(self) -> "Sequence[Engine]":
        """Those that there are now, each to be asked by itself."""
        ...

    def dismiss(self, one: Engine) -> bool:
        """Let one of them go, which computes something wrong, and all that was kept of it. Whether it can do without:
        what is asked again, and all to come, others compute."""
        ...


@runtime_checkable
class Counts(Protocol):
    """What an engine may have beside: figures of how it computed, which a generation's metrics have."""

    def metrics(self) -> dict[str, float]:
        """Since they were last asked for."""
        ...


def differentiable_scores(
    engine: Engine,
    genomes: Tensor,
    prompts: Prompts,
    completions: Completions,
    how: Scoring,
    *,
    owners: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of `completions` by `genomes`, as tensors of torch's graph: differentiable once
    in the genomes, the entropies only with `entropy_gradient`."""
    scored = engine.score(genomes.detach(), prompts, completions, replace(how, gradient=True), owners=owners)
    found: tuple[Tensor, Tensor] = _Node.apply(genomes, scored, how.entropy_gradient)  # type: ignore[no-untyped-call]
    return found


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, genomes: Tensor, scored: Scored, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        ctx.scored, ctx.of_entropy, ctx.dtype = scored, entropy_gradient, genomes.dtype
        log_probs, entropy = scored.log_probs.detach(), scored.entropy.detach()
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_entropy: Tensor) -> tuple[Tensor, None, None]:
        gradient = ctx.scored.backward(of_log_probs, of_entropy if ctx.of_entropy else None)
        return gradient.to(ctx.dtype), None, None


def lengths_read(prompts: Prompts, completions: Completions) -> list[int]:
    """How many tokens of each row the model reads: its prompt and its completion, but for the last token, which is
    chosen and never read. `prompts` are all rows', or one list for each genome's rows."""
    times = len(completions.mask) // len(prompts)
    written: list[int] = completions.mask.sum(1).tolist()
    return [len(prompt) + length - 1 for prompt, length in zip([*prompts] * times, written, strict=True)]
