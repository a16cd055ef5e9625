"""vLLM as what writes completions: its engine in this process, with the genomes in its LoRA slots."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Decoding, Prompts
from evolora.engine.calibration import free_memory
from evolora.engine.vllm.loading import (
    VERSION,
    CompletionOutput,
    LoRARequest,
    SamplingParams,
    load,
    undisturbed_draws,
)
from evolora.engine.vllm.slots import adapters
from evolora.errors import InputError
from evolora.models.genome import GenomeLayout

# Slots where nobody says how many, and the share of the free memory that they, and keys and values, take at most.
_MOST_SLOTS, _SHARE = 256, 4
# Tokens of a text where nobody says how many; and of the self-check's longest.
_LENGTH, _LEAST_LENGTH = 2048, 128


class VllmWriter:
    """Writes completions by vLLM, and has no log-probabilities of them that a gradient could start from: those of what
    it samples are of its own rounding. With `sleeps` it gives the memory of its weights, slots, keys and values to
    others while it rests, on CUDA alone.

    More genomes than `slots` go in waves. The base is never in one batch with genomes: on a CPU vLLM 0.32 would give
    its rows the genome of the last slot. What a row samples depends on its own seed, and on its logits, which round by
    the batch: the same call has the same tokens, in this process or another, on one machine.

    Raises InputError where vLLM cannot load the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: GenomeLayout,
        *,
        length: int | None = None,
        slots: int | None = None,
        sleeps: bool = False,
    ) -> None:
        self.device = model.device
        rank = max(module.rank for module in layout.modules)
        memory = free_memory(model.device) // _SHARE
        a_slot = 2 * layout.genome_length * model.dtype.itemsize
        self.slots = slots or max(1, min(_MOST_SLOTS, memory // a_slot))
        config = model.config.get_text_config(decoder=True)
        room = getattr(config, "max_position_embeddings", None)
        self._vocabulary = config.vocab_size
        self._length = min(max(length or _LENGTH, _LEAST_LENGTH), room or _LENGTH)
        targets = sorted({module.name.rpartition(".")[2] for module in layout.modules})
        self._sleeps, self._asleep = sleeps, False
        self._llm = load(
            model, slots=self.slots, rank=rank, targets=targets, length=self._length, memory=memory, sleeps=sleeps
        )
        self._adapters = adapters(self._llm, layout, self.slots)
        self.words = f"vLLM {VERSION} writes, {self._adapters.words} ({self.slots} at a time)"

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`. Without features and a trace; drafts are passed over."""
        if (longest := max(map(len, prompts), default=0) + how.max_new_tokens) > self._length:
            raise InputError(f"--engine vllm: found a text of {longest} tokens, expected at most {self._length}")
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        params = self._sampling(how, len(prompts) * (1 if genomes is None or owners is not None else len(genomes)))
        if genomes is None:
            return self._completions(self._run(prompts, params, None), how.pad)
        if owners is None:
            owners = [genome for genome in range(len(genomes)) for _ in prompts]
            prompts = [*prompts] * len(genomes)
        rows: list[CompletionOutput] = []
        for first in range(0, len(genomes), self.slots):
            own = [row for row, owner in enumerate(owners) if first <= owner < first + self.slots]
            if own:
                asked = self._adapters.put(genomes[first : first + self.slots])
                whose = [asked[owners[row] - first] for row in own]
                rows += self._run([prompts[row] for row in own], [params[row] for row in own], whose)
        return self._completions(rows, how.pad)

    def _run(
        self, prompts: Prompts, params: Sequence[SamplingParams], whose: list[LoRARequest] | None
    ) -> list[CompletionOutput]:
        # Keys and values are found again by an adapter's name, whatever its weights are now; and what is found changes
        # how later sums are cut, so that nothing is kept of the base either.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM does not let go of its prefix cache")
        texts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with undisturbed_draws():
            found = self._llm.generate(texts, list(params), use_tqdm=False, lora_request=whose)
        return [one.outputs[0] for one in found]

    def _sampling(self, how: Decoding, rows: int) -> list[SamplingParams]:
        options: dict[str, Any] = {
            "max_tokens": how.max_new_tokens,
            "stop_token_ids": [end for end in how.ends if 0 <= end < self._vocabulary],
            "ignore_eos": True,  # the ends are all said
            "detokenize": False,
            "skip_clone": True,  # each row has its own; a deep copy would round the temperature
        }
        if how.seeds is None:
            return [SamplingParams(temperature=0.0, **options) for _ in range(rows)]
        if how.truncation is not None:
            kept = how.truncation
            options |= {"top_k": kept.top_k, "top_p": kept.top_p, "min_p": kept.min_p}
        found = [SamplingParams(seed=int(seed) & (2**63 - 1), logprobs=0, **options) for seed in how.seeds]
        for params in found:
            params.temperature = how.temperature  # it would make 0.01 of a smaller one, and refuse more than 2
        return found

    def _completions(self, rows: list[CompletionOutput], pad: int) -> Completions:
        found = Completions.of_ids([row.token_ids for row in rows], pad)
        if rows[0].logprobs is None:
            return found.to(self.device)
        own = [each[token].logprob for row in rows for token, each in zip(row.token_ids, row.logprobs, strict=True)]
        log_probs = torch.zeros(found.mask.shape)
        log_probs[found.mask] = torch.tensor(own)
        return replace(found, log_probs=log_probs).to(self.device)

    def rest(self) -> None:
        """See `Writes.rest`. Its slots are written anew before they are asked again."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """Let go of vLLM, its weights and its slots."""
        self._adapters.close()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
