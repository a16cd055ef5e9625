"""How long a run's texts may be: room for what is wanted, and prompts that fit the model."""

import math
from collections.abc import Sequence

from evolora.engine.options import NO_TARGETS
from evolora.errors import InputError
from evolora.models.base import BaseModel
from evolora.rewards.expression import Expression
from evolora.rewards.registry import ANY_LENGTH
from evolora.tasks.task import Task


def room_for_targets(base: BaseModel, task: Task, reward: Expression | None, fitness: Expression | None) -> int:
    """New tokens for the longest training target and a quarter more, with its end; `NO_TARGETS` where there are none,
    and at least these where neither reward nor fitness compares with them. People compare: `reward` is None then."""
    targets = [str(example.columns["target"]) for example in task.train if "target" in example.columns]
    if not targets:
        return NO_TARGETS
    longest = max(len(ids) for ids in base.tokenizer([f" {target}" for target in targets])["input_ids"])
    room = math.ceil(1.25 * longest) + 2
    terms = [term for expression in (reward, fitness) if expression is not None for term in expression.terms]
    compared = reward is None or any(term.is_function or term.name not in ANY_LENGTH for term in terms)
    return room if compared else max(room, NO_TARGETS)


def longest_prompt(base: BaseModel, task: Task, max_new_tokens: int) -> int:
    """In tokens, over all splits. Raises InputError as `check_prompts` does."""
    splits = (task.train, task.validation, task.test)
    return max(check_prompts(base, [example.prompt for example in split], max_new_tokens) for split in splits)


def check_prompts(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> int:
    """The length of the longest prompt, in tokens.

    Raises InputError for a prompt that has no tokens, or more than the model has room for.
    """
    room = getattr(base.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    known = base.model.get_input_embeddings().weight.shape[0]
    longest = 0
    for prompt, ids in zip(prompts, base.tokenizer(list(prompts))["input_ids"], strict=True):
        if not ids:
            raise InputError(f"prompt {prompt!r}: has no tokens, expected at least one")
        if (last := max(ids)) >= known:
            raise InputError(
                f"prompt {prompt[:60]!r}: its token {base.tokenizer.convert_ids_to_tokens(last)!r} has the id {last}, "
                f"expected ids below {known}, those that --model has an embedding for"
            )
        if room is not None and len(ids) + max_new_tokens > room:
            raise InputError(
                f"prompt {prompt[:60]!r}: {len(ids)} tokens and {max_new_tokens} new ones "
                f"(--max-new-tokens), expected at most the model's {room} in all"
            )
        longest = max(longest, len(ids))
    return longest
