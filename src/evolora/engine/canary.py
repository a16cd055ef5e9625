"""Does an engine truly apply the adapters, while a run goes on?

The commonest fault of such engines is silent: an adapter that is stale, absent, another's, or applied twice. So in each
generation an engine completes and scores a short prompt with sentinels, genomes of large noise, one in each place that
an individual's genome has: they differ from each other and from the base while individuals are still alike. And of one
individual in turn a row that the run has had written is scored again. All are compared with the model's own plain pass
(`oracle`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Deals, Decoding, Engine, Scoring
from evolora.engine.oracle import Answer, Oracle, log_probs_of, tolerance_of, uneven_prompts
from evolora.engine.text import Text
from evolora.engine.threads import Threads
from evolora.errors import EngineError
from evolora.models.genome import GenomeLayout
from evolora.rng import keyed_generator, keyed_seed

# Sentinels that differ, and places that have one: beyond so many they come again.
_SENTINELS, _MOST_PLACES = 8, 64
# Tokens of the sentinels' text, and of a row's completion that are scored again.
_PROMPT, _NEW_TOKENS, _MOST_TOKENS = 4, 3, 16
_NO_END = (-1,)
# Rounding may choose other tokens, for which there are other answers.
_MOST_ANSWERS = 256
# The noise's size in the sentinels, doubled until the mean token tells them apart by so much, and so many tolerances.
_LEAST_NOISE, _MOST_NOISE, _SHOWS, _TIMES_TOLERANCE = 0.02, 2.0, 0.1, 10.0


@dataclass(frozen=True)
class Row:
    """Token ids that an individual, whose genome is the `owner`-th, has written, `greedy` or sampled; `name` is what
    messages call it."""

    owner: int
    name: str
    prompt: Sequence[int]
    ids: Sequence[int]
    greedy: bool = True


@dataclass(frozen=True)
class _Said:
    """An engine's log-probabilities of the `ids` that a genome wrote after a prompt, and the oracle's answer; `whose`
    words they are."""

    whose: str
    genome: Tensor
    prompt: Sequence[int]
    ids: Sequence[int]
    log_probs: Tensor
    answer: Answer

    @property
    def difference(self) -> float:
        """0 where the oracle's own are no numbers: of such a genome nothing can be said."""
        right = self.answer.log_probs
        return float((self.log_probs - right).abs().max()) if bool(right.isfinite().all()) else 0.0

    @property
    def tolerances(self) -> float:
        return math.inf if math.isnan(self.difference) else self.difference / self.answer.tolerance


_Asked = tuple[list[list[int]], list[Tensor]]


class Canary:
    """Checks an `engine` against the `model` that it runs. The sentinels are noise around the genome `founder`
    [genome_length]; `name` is the engine's in messages. What is drawn is keyed by the `seed`. Where an engine finds
    again what it computed of `prefix` tokens that texts have in common, the sentinels' text is longer.

    >>> from evolora.engine.eager.engine import EagerEngine
    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> engine, text = EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer)
    >>> Canary(engine, base.model, founder, text).check(founder.repeat(4, 1)) < 1
    True
    """

    def __init__(
        self,
        engine: Engine,
        model: PreTrainedModel,
        founder: Tensor,
        text: Text,
        *,
        seed: int = 0,
        name: str = "engine",
        prefix: int = 0,
    ) -> None:
        self.engine, self.founder, self.text, self.seed, self.name = engine, founder, text, seed, name
        self._model = model
        self._oracle = Oracle(model, engine.layout)
        self._noise = torch.randn(founder.shape, generator=keyed_generator(seed, "canary"))
        self._seeds = np.array([keyed_seed(seed, "canary", "row", kind) for kind in range(_SENTINELS)], np.uint64)
        length, words = max(_PROMPT, prefix + 1 if prefix else 0), uneven_prompts(text, model, _NEW_TOKENS)[1]
        self._prompt = (words * -(-length // len(words)))[:length]
        self._answers: dict[tuple[int, tuple[int, ...]], Answer] = {}
        self._size = self._size_that_shows()

    def _size_that_shows(self) -> float:
        """How large noise is that tells a sentinel both from the base and from itself applied twice; the one that does
        so best where rounding leaves none."""
        base = self._oracle.logits(None, self._prompt)
        needed = max(_SHOWS, _TIMES_TOLERANCE * tolerance_of([base], self._model))
        best, size = (-1.0, _LEAST_NOISE), _LEAST_NOISE
        while size <= _MOST_NOISE:
            genome = self.founder + size * self._noise
            own = log_probs_of(self._oracle.logits(genome, self._prompt))
            others = base, self._oracle.logits(applied_twice(self.engine.layout, genome), self._prompt)
            best = max(best, (min(_divergence(own, log_probs_of(other)) for other in others), size))
            if best[0] >= needed:
                break
            size *= 2
        return best[1]

    def check(self, genomes: Tensor, row: Row | None = None, *, generation: int = 0) -> float:
        """Check all that the engine deals to, and itself, in as many places as there are `genomes` [n, genome_length],
        and by a `row` of theirs. By how many tolerances the engine itself differs at most, at most 1.

        Raises EngineError where one differs by more. It is `mended` where the engine could dismiss those that do.
        """
        kinds = self._kinds(min(len(genomes), _MOST_PLACES), generation)
        self._check_others(kinds, genomes)
        said = self._judged(kinds, self._asked(self.engine, kinds))
        if row is not None:
            said += self._of_row(genomes, row)
        return self._worst(self.name, said, genomes)

    def _check_others(self, kinds: Sequence[int], genomes: Tensor) -> None:
        others = self.engine.dealt_to() if isinstance(self.engine, Deals) else []
        faults: list[tuple[Engine, EngineError]] = []
        for number, (one, asked) in enumerate(zip(others, self._side_by_side(others, kinds), strict=True), 1):
            try:
                self._worst(f"{self.name} {number} of {len(others)}", self._judged(kinds, asked), genomes)
            except EngineError as error:
                faults.append((one, error))
        if isinstance(self.engine, Deals) and faults:
            dismissed = [self.engine.dismiss(one) for one, _ in faults]
            fault = faults[0][1]
            fault.mended = all(dismissed)
            raise fault

    def _worst(self, engine: str, said: Sequence[_Said], genomes: Tensor) -> float:
        """The largest difference in tolerances. Raises EngineError for one that rounding does not explain."""
        tolerances = []
        for one in sorted(said, key=lambda one: -one.tolerances):
            found, tolerance = one.tolerances, one.answer.tolerance
            if found > 1:
                tolerance = self._oracle.wider(one.genome, one.prompt, one.ids, one.answer)
                found = one.difference / tolerance
            if not found <= 1:
                raise EngineError(
                    f"canary: the {engine} does not say of {one.whose} what the model says with that adapter in its "
                    f"weights (log-probabilities differ by {one.difference:.2g}, {tolerance:.2g} is rounding)"
                    f"{self._looks_like(one, genomes)}"
                )
            tolerances.append(found)
        return max(tolerances)

    def _looks_like(self, said: _Said, genomes: Tensor) -> str:
        """Whose answer it is instead, in words; nothing where that is not seen."""
        others = [
            ("the base", torch.zeros_like(said.genome)),
            ("that adapter applied twice", applied_twice(self.engine.layout, said.genome)),
            *(("another sentinel", self._sentinel(kind)) for kind in range(_SENTINELS)),
            *((f"the individual in place {place}", genome) for place, genome in enumerate(genomes)),
        ]
        for words, genome in others:
            answer = self._oracle.answer(genome, said.prompt, said.ids)
            if float((said.log_probs - answer.log_probs).abs().max()) <= answer.tolerance:
                return f": it is what {words} says"
        return ""

    def _kinds(self, places: int, generation: int) -> list[int]:
        """Which sentinel has which place: always another than the generation before, so that what stays there is seen,
        and where some have to share one, others do after a while."""
        different = max(2, min(places, _SENTINELS))
        while_shared = generation // different if places > different else 0
        order = torch.randperm(places, generator=keyed_generator(self.seed, "canary", while_shared))
        kinds: list[int] = ((order + generation) % different).tolist()
        return kinds

    def _sentinel(self, kind: int) -> Tensor:
        return self.founder + self._size * self._noise.roll(kind * (len(self._noise) // _SENTINELS))

    def _asked(self, engine: Engine, kinds: Sequence[int]) -> _Asked:
        """What an engine writes with these sentinels, and the log-probabilities that it has while it does, when it
        scores that, and those of what writes in it."""
        genomes = torch.stack([self._sentinel(kind) for kind in kinds])
        how = Decoding(max_new_tokens=_NEW_TOKENS, ends=_NO_END, pad=self.text.pad, seeds=self._seeds[list(kinds)])
        written = engine.generate(genomes, [self._prompt], how)
        owners = list(range(len(kinds)))
        scored = engine.score(genomes, [self._prompt] * len(kinds), written, Scoring(), owners=owners).log_probs
        assert written.log_probs is not None  # as of all that is sampled
        found = written.log_probs, scored, written.writer_log_probs
        return written.rows(), [log_probs.double().cpu() for log_probs in found if log_probs is not None]

    def _side_by_side(self, engines: Sequence[Engine], kinds: Sequence[int]) -> list[_Asked]:
        if not engines:
            return []
        threads = Threads(len(engines))
        try:
            return threads.side_by_side(lambda index: self._asked(engines[index], kinds), len(engines))
        finally:
            threads.close()

    def _judged(self, kinds: Sequence[int], asked: _Asked) -> list[_Said]:
        rows, both = asked
        return [
            _Said(
                f"the sentinel in place {place}",
                self._sentinel(kind),
                self._prompt,
                ids,
                log_probs,
                self._answer(kind, tuple(ids)),
            )
            for found in both
            for place, (kind, ids, log_probs) in enumerate(zip(kinds, rows, found, strict=True))
        ]

    def _answer(self, kind: int, ids: tuple[int, ...]) -> Answer:
        """The oracle's of a sentinel, which is the same in each generation."""
        if (kind, ids) not in self._answers:
            if len(self._answers) == _MOST_ANSWERS:
                self._answers.clear()
            self._answers[kind, ids] = self._oracle.answer(self._sentinel(kind), self._prompt, ids)
        return self._answers[kind, ids]

    def _of_row(self, genomes: Tensor, row: Row) -> list[_Said]:
        """What the engine says of a row now; of a greedy one also what it must have said for its tokens to be the
        likeliest."""
        ids, device, genome = list(row.ids[:_MOST_TOKENS]), self.engine.device, genomes[row.owner]
        given = Completions.of_ids([ids], self.text.pad)
        given = replace(given, ids=given.ids.to(device), mask=given.mask.to(device))
        scored = self.engine.score(genomes, [row.prompt], given, Scoring(), owners=[row.owner]).log_probs[0]
        answer = self._oracle.answer(genome, row.prompt, ids)
        said = {row.name: scored.double().cpu()}
        if row.greedy:
            said[f"the tokens that {row.name} has written"] = answer.likeliest
        return [_Said(whose, genome, row.prompt, ids, found, answer) for whose, found in said.items()]


def applied_twice(layout: GenomeLayout, genome: Tensor) -> Tensor:
    """A genome that does what another does where its scaling is applied twice."""
    found = genome[None].clone()
    for module, _, b in layout.factors(found):
        b.mul_(module.scaling)
    return found[0]


def _divergence(own: Tensor, other: Tensor) -> float:
    """Kullback and Leibler's, mean over places: what a token that is drawn from the one is worth in telling."""
    return float((own.exp() * (own - other)).sum(-1).mean())
