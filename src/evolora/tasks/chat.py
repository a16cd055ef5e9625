"""Prompts made of chat messages, by the tokenizer's chat template."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.reading import read_text
from evolora.tasks.task import Example, Message, Task


def use_template(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Give the tokenizer the chat template of a Jinja file. Raises InputError when it cannot be read."""
    try:
        tokenizer.chat_template = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"--chat-template {path}: cannot be read ({reason}), expected a Jinja file") from None


def with_prompts(task: Task, tokenizer: PreTrainedTokenizerBase, *, source: str) -> Task:
    """The task with the prompts of its messages as text; a task without messages as it is.

    Raises InputError, naming the `source` of the data, when the tokenizer has no chat template, or one that refuses the
    messages.
    """
    if not task.conversational:
        return task
    splits = [
        tuple(_with_prompt(example, tokenizer, source) for example in split)
        for split in (task.train, task.validation, task.test)
    ]
    train, validation, test = splits
    seen = {example.prompt for example in (*train, *validation)}  # a template may leave out what tells two apart
    held_out = task.held_out and not any(example.prompt in seen for example in test)
    return replace(task, train=train, validation=validation, test=test, held_out=held_out)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, source: str) -> str:
    """The text that the assistant's next message follows on. Tokenised, it has its begin-of-sequence token once.

    Raises InputError as `with_prompts` does.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: holds chat messages, and the model's tokenizer has no chat template, "
            "expected --chat-template FILE, or prompts that are text"
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # it is a program
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise InputError(
            f"{source}: the chat template refuses {list(messages)!r:.200} ({reason:.200}), expected messages that it "
            "takes"
        ) from None
    prompt = str(text)
    begin = tokenizer.bos_token
    if begin and prompt.startswith(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(begin)  # the tokenizer will add it
    return prompt


def _with_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, source: str) -> Example:
    return replace(example, prompt=chat_prompt(tokenizer, example.messages or (), source=source))
