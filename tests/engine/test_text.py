"""Where completions end, and what of them is text."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from evolora.engine.base import Completions, Decoding
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.models.base import BaseModel, load_base


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2")


def written(text: Text, *rows: str) -> Completions:
    """As an engine gives them, each row ended, with log-probabilities of 1."""
    ids = [[*text.tokenizer(row)["input_ids"], text.ends[0]] for row in rows]
    found = Completions.of_ids(ids, text.pad)
    return Completions(found.ids, found.mask, found.mask.float(), found.mask[..., None].float(), trace=object())


def test_a_completion_is_cut_before_the_text_that_stops_it(base: BaseModel) -> None:
    text = Text.of(base.model, base.tokenizer, stop=["house", "I do"])
    whole = written(text, " the house is red", " I think so", " what I do not know")
    cut = text.stopped(whole)
    assert text.decode(cut) == text.decode(whole) == [" the ", " I think so", " what "]
    for before, after, stop in zip(whole.rows(), cut.rows(), ("house", None, "I do"), strict=True):
        assert after == before[: len(after)]
        kept = base.tokenizer.decode(after)
        # The tokens that the text is whole with have been written, and no more.
        assert after == before if stop is None else stop in kept and stop not in base.tokenizer.decode(after[:-1])
    assert cut.trace is None and cut.ids.shape[1] == max(map(len, cut.rows()))
    assert torch.equal(cut.log_probs, cut.mask.float()) and torch.equal(cut.features[..., 0], cut.mask.float())  # type: ignore[arg-type,index]
    assert (cut.ids[~cut.mask] == text.pad).all()
    plain = Text.of(base.model, base.tokenizer)
    assert plain.stopped(whole) is whole and plain.decoding(4, trace=True).trace


def test_a_token_that_holds_such_a_text_ends_the_writing(base: BaseModel) -> None:
    text, plain = Text.of(base.model, base.tokenizer, stop=["a"]), Text.of(base.model, base.tokenizer)
    more = set(text.ends) - set(plain.ends)
    assert more == {token for token in range(len(base.tokenizer)) if "a" in base.tokenizer.decode([token])}
    how: Decoding = text.decoding(4, trace=True)
    assert set(how.ends) == set(text.ends) and not how.trace, "nothing is kept of what is cut afterwards"


def test_special_tokens_are_shown_but_for_those_with_a_part(base: BaseModel) -> None:
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(base.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>"]})
    rows = ["<answer> red", "red <answer>"]
    for special, texts in ((True, ["<answer> red", "red <answer>"]), (False, [" red", "red "])):
        text = Text.of(base.model, tokenizer, special_tokens=special)
        assert text.decode(written(text, *rows)) == texts
    text = Text.of(base.model, tokenizer, special_tokens=True, stop=["<answer>"])
    assert text.decode(text.stopped(written(text, *rows))) == ["", "red "]
    assert tokenizer.convert_tokens_to_ids("<answer>") in text.ends


def test_another_token_may_end_a_completion(base: BaseModel) -> None:
    text = Text.of(base.model, base.tokenizer, eos_token="e", special_tokens=True)
    token = base.tokenizer.convert_tokens_to_ids("e")
    assert text.ends == (*Text.of(base.model, base.tokenizer).ends, token) and token in (text.hidden or ())
    with pytest.raises(InputError, match=r"--eos-token: the model's tokenizer has no '<no>', expected"):
        Text.of(base.model, base.tokenizer, eos_token="<no>")
