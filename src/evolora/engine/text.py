"""The tokenizer's side of an engine: texts to token ids and back, where a completion ends, what fills finished rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine.base import Completions, Decoding
from evolora.errors import InputError


@dataclass(frozen=True)
class Text:
    """A tokenizer, the token ids that end a completion, and the id that fills finished rows. A completion is cut before
    the first of the texts `stop`, whose tokens have been written all the same; `hidden` tokens are not in its text, or
    no special ones at all where that is None.

    >>> from evolora.models.base import load_base
    >>> base = load_base("tiny-gpt2")
    >>> text = Text.of(base.model, base.tokenizer)
    >>> [len(ids) for ids in text.encode(["The sum of 4 and 3 is", "4 + 3 ="])]
    [9, 5]
    """

    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    pad: int
    stop: tuple[str, ...] = ()
    hidden: frozenset[int] | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token: str | None = None,
        stop: Sequence[str] = (),
        special_tokens: bool = False,
    ) -> "Text":
        """With the end tokens of the model's generation config, else the tokenizer's, and `eos_token`. With
        `special_tokens` only those that have a part in every text, such as its end, are hidden.

        Raises InputError for an `eos_token` that is none.
        """
        found = model.generation_config.eos_token_id if model.generation_config is not None else None
        if found is None:
            found = tokenizer.eos_token_id
        ends = tuple(found) if isinstance(found, list) else (int(found),)
        if eos_token is not None:
            ends = (*ends, _known(eos_token, tokenizer))
        pad = ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        parts = tokenizer.convert_tokens_to_ids([*_named(tokenizer)]) if special_tokens else []
        hidden = frozenset([*ends, *parts]) if special_tokens else None
        return cls(tokenizer, (*ends, *_stopping(stop, tokenizer)), pad, tuple(stop), hidden)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt; those that are alike are tokenised once."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        ids: list[list[int]] = self.tokenizer(list(places))["input_ids"] if places else []
        return [ids[places[prompt]] for prompt in prompts]

    def decode(self, completions: Completions) -> list[str]:
        """The completions as text, without what is hidden, and up to where they were stopped."""
        return [text[: self._stopped(text)] for text in self._texts(completions.rows())]

    def stopped(self, completions: Completions) -> Completions:
        """The completions up to the token with which one of the texts that stop them is whole; they have no trace."""
        if not self.stop:
            return completions
        rows = completions.rows()
        lengths = torch.tensor(
            [
                len(ids) if self._stopped(text) is None else self._tokens_until_stopped(ids)
                for ids, text in zip(rows, self._texts(rows), strict=True)
            ]
        )
        width, device = int(lengths.max()), completions.mask.device
        mask = (torch.arange(width) < lengths[:, None]).to(device)
        log_probs, features, kept = completions.log_probs, completions.features, completions.kept
        return Completions(
            completions.ids[:, :width].masked_fill(~mask, self.pad),
            mask,
            None if log_probs is None else log_probs[:, :width].masked_fill(~mask, 0),
            None if features is None else features[:, :width].masked_fill(~mask[..., None], 0),
            None if kept is None else kept[:, :width].masked_fill(~mask[..., None], 0),
        )

    def cut(self, ids: Sequence[int], longest: int) -> bool:
        """Whether a completion ended at the limit of `longest` tokens, and not by itself."""
        if len(ids) < longest or ids[-1] in self.ends:
            return False
        return not self.stop or self._stopped(self._texts([list(ids)])[0]) is None

    def decoding(self, max_new_tokens: int, *, trace: bool = False, **options: Any) -> Decoding:
        """How completions are written that end as this tokenizer's do. What is cut afterwards has no trace."""
        trace = trace and not self.stop
        return Decoding(max_new_tokens=max_new_tokens, ends=self.ends, pad=self.pad, trace=trace, **options)

    def _stopped(self, text: str) -> int | None:
        """Where the first text that stops a completion begins."""
        return min((place for stop in self.stop if (place := text.find(stop)) >= 0), default=None)

    def _tokens_until_stopped(self, ids: list[int]) -> int:
        """After how many tokens a text that stops is whole."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if self._stopped(self._texts([ids[:middle]])[0]) is None:
                low = middle + 1
            else:
                high = middle
        return low

    def _texts(self, rows: Sequence[list[int]]) -> list[str]:
        if self.hidden is None:
            return [str(text) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]
        shown = [[token for token in ids if token not in self.hidden] for ids in rows]
        return [str(text) for text in self.tokenizer.batch_decode(shown, skip_special_tokens=False)]


def _named(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that have a part: begin, end, padding and so on."""
    return [str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)]


def _known(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if token not in tokenizer.get_vocab():
        raise InputError(f"--eos-token: the model's tokenizer has no {token!r}, expected one of its tokens, or --stop")
    return int(tokenizer.get_vocab()[token])


def _stopping(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that have the whole of such a text in them: where one is written, nothing more need be."""
    if not stop:
        return []
    ids = range(len(tokenizer))
    texts = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False)
    return [token for token, text in zip(ids, texts, strict=True) if any(each in text for each in stop)]
