"""The sides of the generation tables. Each is made once, with a model of its own, and then called for each repeat.

A side returns token ids [individuals * prompts, new tokens], rows grouped by individual. `comparable` brings them to
one form, in which they are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from evolora import PopulationModel
from evolora.engine.eager.generate import PromptBatch
from evolora.engine.split import population_generate
from speed.subjects import PAD, Subject


@dataclass(frozen=True)
class Work:
    """What every side has to write: the completions of `prompts` for each genome, greedily."""

    subject: Subject
    genomes: Tensor
    prompts: PromptBatch
    new_tokens: int
    ends: tuple[int, ...]

    @property
    def individuals(self) -> int:
        return len(self.genomes)

    @property
    def rows(self) -> PromptBatch:
        return self.prompts.repeat(self.individuals)

    @property
    def floor_rows(self) -> PromptBatch:
        """As many rows of the same lengths, and no two alike: a base without adapters would otherwise read the eight
        prompts once for all individuals, which no population can."""
        each = [self.subject.prompts(seed=1 + index) for index in range(self.individuals)]
        return PromptBatch(torch.cat([batch.ids for batch in each]), torch.cat([batch.mask for batch in each]))

    @property
    def prompt_lengths(self) -> list[int]:
        """Real tokens of each row's prompt."""
        return [int(length) for length in self.rows.mask.sum(1)]


def comparable(ids: Tensor, work: Work) -> tuple[Tensor, Tensor]:
    """The ids padded to the full length, and the mask of those up to and with each row's first end."""
    ids = F.pad(ids, (0, work.new_tokens - ids.shape[1]), value=PAD)
    is_end = torch.isin(ids, torch.tensor(work.ends))
    return ids, (is_end.cumsum(1) - is_end.int()) == 0


def equal_share(found: Tensor, expected: Tensor, work: Work) -> dict[str, float]:
    """The share of tokens, and of whole rows, that are equal; a row that ends elsewhere counts what it has too much."""
    found, found_mask = comparable(found, work)
    expected, expected_mask = comparable(expected, work)
    either = found_mask | expected_mask
    equal = (found == expected) & found_mask & expected_mask
    return {
        "equal_tokens": float(equal.sum() / either.sum()),
        "equal_rows": float((equal == either).all(1).float().mean()),
    }


def written_lengths(ids: Tensor, work: Work) -> list[int]:
    """How many tokens each row has, its end included."""
    return [int(length) for length in comparable(ids, work)[1].sum(1)]


def stock_generate(
    model: PreTrainedModel | PeftModel,
    ids: Tensor,
    mask: Tensor,
    work: Work,
    *,
    adapter_names: list[str] | None = None,
) -> Tensor:
    """transformers' own greedy `generate`."""
    extra = {} if adapter_names is None else {"adapter_names": adapter_names}
    with torch.no_grad():
        written: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=work.new_tokens,
            eos_token_id=list(work.ends),
            pad_token_id=PAD,
            use_cache=True,
            **extra,
        )
    return written[:, ids.shape[1] :]


class Evolora:
    """The whole population in one `generate`."""

    def __init__(self, work: Work, population_model: PopulationModel | None = None) -> None:
        self.work = work
        self.population_model = population_model or PopulationModel(
            work.subject.own(), work.subject.layout, threads=work.subject.threads
        )
        self.rows = work.rows
        self.floor_rows = work.floor_rows

    def __call__(self) -> Tensor:
        return self._generate(self.work.genomes, self.rows)

    def on(self, work: Work) -> "Evolora":
        """Other work with the same model."""
        return Evolora(work, self.population_model)

    def floor(self) -> Tensor:
        """As many rows of the same lengths by the same `generate` with the adapters off."""
        return self._generate(None, self.floor_rows)

    def _generate(self, genomes: Tensor | None, rows: PromptBatch) -> Tensor:
        return population_generate(
            self.population_model,
            genomes,
            rows,
            max_new_tokens=self.work.new_tokens,
            eos_token_ids=list(self.work.ends),
            pad_token_id=PAD,
        ).ids

    def stock(self) -> Tensor:
        """transformers' `generate` on the same layers: finished rows stay in the batch to the end."""
        with self.population_model.adapted(self.work.genomes):
            return stock_generate(self.population_model.model, self.rows.ids, self.rows.mask, self.work)


class StockGenerate(Evolora):
    """transformers' `generate` on its own layers, with nothing of evolora but the adapters' part."""

    def __init__(self, work: Work) -> None:
        super().__init__(work, PopulationModel(work.subject.stock(), work.subject.layout))

    def __call__(self) -> Tensor:
        return self.stock()


class StockFloor:
    """transformers' `generate` of the floor's rows on a base that nothing was ever put on."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.model = work.subject.stock()
        self.rows = work.floor_rows

    def __call__(self) -> Tensor:
        return stock_generate(self.model, self.rows.ids, self.rows.mask, self.work)


class OneState:
    """PEFT with one adapter whose weights are set for each individual in turn.

    With `batched`, an individual's prompts are generated together, padded on the left; without, one at a time, which
    is the loop that the project began with.
    """

    def __init__(self, work: Work, *, batched: bool) -> None:
        self.work = work
        self.batched = batched
        self.model: PeftModel = get_peft_model(work.subject.stock(), work.subject.lora).eval()
        self.states = [work.subject.layout.to_state_dict(genome) for genome in work.genomes]

    def __call__(self) -> Tensor:
        written: list[Tensor] = []
        for state in self.states:
            set_peft_model_state_dict(self.model, state)
            for ids, mask in self._batches():
                written += self._padded(stock_generate(self.model, ids, mask, self.work))
        return torch.stack(written)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        ids, mask = self.work.prompts.ids, self.work.prompts.mask
        if self.batched:
            return [(ids, mask)]
        kept = [row_mask.bool() for row_mask in mask]
        return [(row[keep][None], row_mask[keep][None]) for row, row_mask, keep in zip(ids, mask, kept, strict=True)]

    def _padded(self, ids: Tensor) -> Sequence[Tensor]:
        return list(F.pad(ids, (0, self.work.new_tokens - ids.shape[1]), value=PAD))


class MixedBatch:
    """PEFT's mixed batch: every adapter loaded, and the name of its own for each row."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rows = work.rows
        names = [f"individual{index}" for index in range(work.individuals)]
        self.model: PeftModel = get_peft_model(work.subject.stock(), work.subject.lora, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, work.subject.lora)
        for name, genome in zip(names, work.genomes, strict=True):
            set_peft_model_state_dict(self.model, work.subject.layout.to_state_dict(genome), adapter_name=name)
        self.model.eval()
        self.names = [name for name in names for _ in range(len(work.prompts.ids))]

    def __call__(self) -> Tensor:
        return stock_generate(self.model, self.rows.ids, self.rows.mask, self.work, adapter_names=self.names)
