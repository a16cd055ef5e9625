"""Whether a worker's answer is right: the driver's own engine looks at one of its rows."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from evolora.distributed.jobs import AnyJob, Backward, Generate, Values, Written, of_row, rows_of, score_row
from evolora.engine.base import Completions, Engine, Scoring
from evolora.models.quantization import rounding

# What log-probabilities may differ by in float32, in batches of another shape and on another kind of processor; and in
# half precision, so many roundings of a large logit.
_TOLERANCE, _ROUNDINGS, _LARGE = 2e-3, 4.0, 32.0


def tolerance_between_machines(model: PreTrainedModel) -> float:
    """By how much the model's log-probabilities may differ from machine to machine."""
    share = rounding(model)
    return _ROUNDINGS * share * _LARGE if share > torch.finfo(torch.float32).eps else _TOLERANCE


@dataclass(frozen=True)
class RowCheck:
    """Compares with `engine`; log-probabilities may differ by the `tolerance`."""

    engine: Engine
    tolerance: float = _TOLERANCE

    def asked(self, job: AnyJob) -> AnyJob:
        """The job whose answer can be looked at: what is written greedily comes without log-probabilities."""
        if isinstance(job, Generate) and job.how.seeds is None:
            return replace(job, scored=_row(job))
        return job

    @torch.no_grad()
    def differs(self, job: AnyJob, answer: Any) -> str | None:
        """What is wrong with an answer, in words; None where nothing is. A gradient is not looked at: what it is made
        of was, when it was scored."""
        if isinstance(job, Backward):
            return None
        row = _row(job)
        if isinstance(job, Generate):
            written: Written = answer
            completions, how = written.completions, Scoring(temperature=job.how.temperature)
            said = [written.scored if completions.log_probs is None else completions.log_probs[row]]
            if completions.writer_log_probs is not None:
                said.append(completions.writer_log_probs[row])
            if job.how.seeds is None:
                how = Scoring()
                if (fault := self._greedy(job, row, completions)) is not None:
                    return fault
        else:
            values: Values = answer
            completions, how = job.completions, replace(job.how, gradient=False, features=False)
            said = [values.log_probs[row]]
        right = score_row(self.engine, job, row, completions, how)
        apart = max(float((right - own).abs().max()) for own in said if own is not None)
        return None if apart <= self.tolerance else f"log-probabilities differ by {apart:.2g} from the driver's own"

    def _greedy(self, job: Generate, row: int, completions: Completions) -> str | None:
        """Other tokens are right only where two are about as likely."""
        genome, _, prompt = of_row(job, row)
        how = replace(job.how.of_rows(torch.tensor([row])), trace=False, features=False, drafts=None)
        right, said = self.engine.generate(genome, [prompt], how).rows()[0], completions.rows()[row]
        if right == said:
            return None
        both = [right, said]
        place = next((place for place, (a, b) in enumerate(zip(*both, strict=False)) if a != b), None)
        if place is None:
            return f"a completion of {len(said)} tokens, the driver's own has {len(right)}"
        ids = [own[: place + 1] for own in both]
        found = self.engine.score(genome, [prompt] * 2, Completions.of_ids(ids, job.how.pad), Scoring()).log_probs
        apart = float(found[0, place] - found[1, place])
        return None if apart <= self.tolerance else f"a token is less likely by {apart:.2g} than the driver's own"


def _row(job: Any) -> int:
    """Which one is looked at: another one of each job."""
    return int(job.key % rows_of(job))
