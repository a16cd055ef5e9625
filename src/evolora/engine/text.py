"""The tokenizer's side of an engine: texts to token ids and back, where a completion ends, what fills finished rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine.base import Completions, Decoding


@dataclass(frozen=True)
class Text:
    """A tokenizer, the token ids that end a completion, and the id that fills finished rows.

    >>> from evolora.models.base import load_base
    >>> base = load_base("tiny-gpt2")
    >>> text = Text.of(base.model, base.tokenizer)
    >>> [len(ids) for ids in text.encode(["The sum of 4 and 3 is", "4 + 3 ="])]
    [9, 5]
    """

    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    pad: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Text":
        """With the end tokens of the model's generation config, else the tokenizer's."""
        found = model.generation_config.eos_token_id if model.generation_config is not None else None
        if found is None:
            found = tokenizer.eos_token_id
        ends = tuple(found) if isinstance(found, list) else (int(found),)
        return cls(tokenizer, ends, ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id))

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt; those that are alike are tokenised once."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        ids: list[list[int]] = self.tokenizer(list(places))["input_ids"] if places else []
        return [ids[places[prompt]] for prompt in prompts]

    def decode(self, completions: Completions) -> list[str]:
        """The completions as text, without special tokens."""
        return [str(text) for text in self.tokenizer.batch_decode(completions.rows(), skip_special_tokens=True)]

    def ended(self, completions: Completions) -> Tensor:
        """Which completions, [rows], were not cut at the longest length."""
        ends = torch.tensor(self.ends, device=completions.ids.device)
        return (torch.isin(completions.ids, ends) & completions.mask).any(-1)

    def decoding(self, max_new_tokens: int, **options: Any) -> Decoding:
        """How completions are written that end as this tokenizer's do."""
        return Decoding(max_new_tokens=max_new_tokens, ends=self.ends, pad=self.pad, **options)
