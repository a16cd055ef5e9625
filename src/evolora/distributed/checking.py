"""Whether an answer is right: the driver's own engine does one of its rows again."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evolora.distributed.jobs import AnyJob, Backward, Generate, Score, Values
from evolora.engine.base import Completions, Engine, Scoring

_TOLERANCE = 2e-3
"""What log-probabilities may differ by in float32, in batches of another shape and on another kind of processor."""


@dataclass(frozen=True)
class RowCheck:
    """Compares with `engine`; log-probabilities may differ by the `tolerance`."""

    engine: Engine
    tolerance: float = _TOLERANCE

    @torch.no_grad()
    def differs(self, job: AnyJob, answer: Any) -> str | None:
        """What is wrong with an answer, in words; None where nothing is. A gradient is not looked at: what it is made
        of was, when it was scored."""
        if isinstance(job, Backward):
            return None
        row = job.key % (len(job.prompts) * (1 if job.genomes is None or job.owners is not None else len(job.genomes)))
        if isinstance(job, Generate):
            completions: Completions = answer[0]
            if completions.log_probs is None:
                return self._greedy(job, row, completions)
            how = Scoring(temperature=job.how.temperature)
            return self._apart(job, row, completions, how, completions.log_probs)
        values: Values = answer
        how = replace(job.how, gradient=False, features=False)
        return self._apart(job, row, job.completions, how, values.log_probs)

    def _apart(
        self, job: Generate | Score, row: int, completions: Completions, how: Scoring, said: Tensor
    ) -> str | None:
        genome, owner, prompt = _of_row(job, row)
        of_row = how if genome is None else how.of_genomes(slice(owner, owner + 1))
        one = replace(completions.select(torch.tensor([row])), features=None)
        right = self.engine.score(genome, [prompt], one.to(self.engine.device), of_row).log_probs.cpu()
        apart = float((right - said[row : row + 1]).abs().max())
        return None if apart <= self.tolerance else f"log-probabilities differ by {apart:.2g} from the driver's own"

    def _greedy(self, job: Generate, row: int, completions: Completions) -> str | None:
        """Other tokens are right only where two are about as likely."""
        genome, _, prompt = _of_row(job, row)
        how = replace(job.how.of_rows(torch.tensor([row])), trace=False, features=False, drafts=None)
        right, said = self.engine.generate(genome, [prompt], how).rows()[0], completions.rows()[row]
        if right == said:
            return None
        # One of them may be longer: both differ at some token, where the shorter one has its end.
        both = [right, said]
        place = next((place for place, (a, b) in enumerate(zip(*both, strict=False)) if a != b), None)
        if place is None:
            return f"a completion of {len(said)} tokens, the driver's own has {len(right)}"
        ids = [[*own[: place + 1]] for own in both]
        found = self.engine.score(genome, [prompt] * 2, Completions.of_ids(ids, job.how.pad), Scoring()).log_probs
        apart = float(found[0, place] - found[1, place])
        return None if apart <= self.tolerance else f"a token is less likely by {apart:.2g} than the driver's own"


def _of_row(job: Generate | Score, row: int) -> tuple[Tensor | None, int, list[int]]:
    """The genome of a row [1, genome_length], its place, and the prompt."""
    prompt, owner = row, 0
    if job.owners is not None:
        owner = job.owners[row]
    elif job.genomes is not None:
        owner, prompt = divmod(row, len(job.prompts))
    return (None if job.genomes is None else job.genomes[owner : owner + 1]), owner, list(job.prompts[prompt])
