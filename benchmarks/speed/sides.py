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

from evolora.engine.base import Decoding, Engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch
from evolora.engine.split import SplitEngine
from speed.subjects import PAD, Subject


@dataclass(frozen=True)
class Work:
    """What every side has to write: the completions of `prompts` for each genome, greedily."""

    subject: Subject
    genomes: Tensor
    prompts: list[list[int]]
    new_tokens: int
    ends: tuple[int, ...]

    @property
    def individuals(self) -> int:
        return len(self.genomes)

    @property
    def rows(self) -> PromptBatch:
        return padded(self.prompts, self.individuals)

    @property
    def floor_prompts(self) -> list[list[int]]:
        """As many rows of the same lengths, and no two alike: a base without adapters would otherwise read the eight
        prompts once for all individuals, which no population can."""
        return [prompt for index in range(self.individuals) for prompt in self.subject.prompts(seed=1 + index)]

    @property
    def prompt_lengths(self) -> list[int]:
        """Real tokens of each row's prompt."""
        return [len(prompt) for prompt in self.prompts] * self.individuals


def padded(prompts: list[list[int]], times: int = 1) -> PromptBatch:
    """Prompts padded on the left, as transformers takes them, so many times over."""
    return PromptBatch.of(prompts, pad=PAD, times=times, device=torch.device("cpu"))


def layers_of(engine: Engine) -> EagerEngine:
    """The engine whose layers these are: of one in parts, the first."""
    first = engine.engines[0] if isinstance(engine, SplitEngine) else engine
    assert isinstance(first, EagerEngine)
    return first


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

    def __init__(self, work: Work, engine: Engine | None = None) -> None:
        self.work = work
        self.engine = engine or work.subject.engine()
        self.rows = work.rows
        self.floor_prompts = work.floor_prompts

    def __call__(self) -> Tensor:
        return self._generate(self.work.genomes, self.work.prompts)

    def on(self, work: Work) -> "Evolora":
        """Other work with the same model."""
        return Evolora(work, self.engine)

    def floor(self) -> Tensor:
        """As many rows of the same lengths by the same `generate` with the adapters off."""
        return self._generate(None, self.floor_prompts)

    def _generate(self, genomes: Tensor | None, prompts: list[list[int]]) -> Tensor:
        how = Decoding(max_new_tokens=self.work.new_tokens, ends=self.work.ends, pad=PAD)
        return self.engine.generate(genomes, prompts, how).ids

    def stock(self) -> Tensor:
        """transformers' `generate` on the same layers: finished rows stay in the batch to the end."""
        layers = layers_of(self.engine).layers
        with layers.adapted(self.work.genomes):
            return stock_generate(layers.model, self.rows.ids, self.rows.mask, self.work)


class StockGenerate(Evolora):
    """transformers' `generate` on its own layers, with nothing of evolora but the adapters' part."""

    def __init__(self, work: Work) -> None:
        super().__init__(work, EagerEngine(work.subject.stock(), work.subject.layout))

    def __call__(self) -> Tensor:
        return self.stock()


class StockFloor:
    """transformers' `generate` of the floor's rows on a base that nothing was ever put on."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.model = work.subject.stock()
        self.rows = padded(work.floor_prompts)

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
        prompts = self.work.prompts
        batches = [padded(own) for own in ([prompts] if self.batched else [[prompt] for prompt in prompts])]
        return [(batch.ids, batch.mask) for batch in batches]

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
        self.names = [name for name in names for _ in work.prompts]

    def __call__(self) -> Tensor:
        return stock_generate(self.model, self.rows.ids, self.rows.mask, self.work, adapter_names=self.names)
