"""Prompts made of chat messages, by the tokenizer's chat template."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.reading import read_text
from evolora.tasks.messages import TEMPLATE_KWARGS, TOOLS, Message, checked_for_template
from evolora.tasks.task import Example, Task


@dataclass(frozen=True)
class Chat:
    """What the chat template gets beside the data's messages: a `system` prompt before them, and further variables."""

    system: str | None = None
    kwargs: Mapping[str, object] = field(default_factory=dict)

    def messages(self, example: Example, source: str) -> tuple[Message, ...]:
        """An example's messages behind the system prompt. Raises InputError for a second one."""
        messages = example.messages or ({"role": "user", "content": example.prompt},)
        if self.system is None:
            return messages
        if messages[0]["role"] in ("system", "developer"):
            raise InputError(
                f"{source}: {messages[0]!r:.200} comes first, expected no message of the system beside --system-prompt"
            )
        return ({"role": "system", "content": self.system}, *messages)


def use_template(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Give the tokenizer the chat template of a Jinja file. Raises InputError when it cannot be read."""
    try:
        tokenizer.chat_template = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"--chat-template {path}: cannot be read ({reason}), expected a Jinja file") from None


def with_prompts(task: Task, tokenizer: PreTrainedTokenizerBase, chat: Chat, *, source: str) -> Task:
    """The task with the prompts of its messages as text, which the rewards get as they were sent; a text is the user's
    message where there is a system prompt. A task of text alone as it is.

    Raises InputError, naming the `source` of the data, when the tokenizer has no chat template, or one that refuses the
    messages or does not print what is given to it.
    """
    if not task.conversational and chat.system is None:
        if chat.kwargs:
            raise InputError(
                f"{source}: holds no chat messages, expected no --chat-template-kwargs, or a --system-prompt"
            )
        return task
    splits = [
        tuple(_with_prompt(example, tokenizer, chat, source) for example in split)
        for split in (task.train, task.validation, task.test)
    ]
    train, validation, test = splits
    seen = {example.prompt for example in (*train, *validation)}  # a template may leave out what tells two apart
    held_out = task.held_out and not any(example.prompt in seen for example in test)
    return replace(task, train=train, validation=validation, test=test, held_out=held_out)


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    source: str,
    tools: object = None,
    kwargs: Mapping[str, object] | None = None,
) -> str:
    """The text that the assistant's next message follows on. Tokenised, it has its begin-of-sequence token once.

    Raises InputError as `with_prompts` does.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: chat messages need a template, and the model's tokenizer has no chat template, "
            "expected --chat-template FILE, or prompts that are text"
        )
    kwargs = kwargs or {}
    for name in kwargs:
        _check_known(name, tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, tools=tools, **kwargs
        )
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


def _with_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, chat: Chat, source: str) -> Example:
    messages = chat.messages(example, source)
    own = checked_for_template(example.columns, source)
    kwargs, tools = {**chat.kwargs, **own.get(TEMPLATE_KWARGS, {})}, own.get(TOOLS)
    prompt = chat_prompt(tokenizer, messages, source=source, tools=tools, kwargs=kwargs)
    if tools and prompt == chat_prompt(tokenizer, messages, source=source, kwargs=kwargs):
        raise InputError(
            f"{source}: has a column 'tools' that the chat template does not print, expected one that does"
        )
    return replace(example, prompt=prompt, messages=messages)


def _check_known(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a name that is no variable of the chat template: it would be passed over silently."""
    taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"documents"}
    if name in taken or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
        raise InputError(f"--chat-template-kwargs: found {name}, expected variables that the chat template reads")
