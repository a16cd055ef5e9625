"""Chat messages as data has them: checked, and with their texts as text."""

import json
from collections.abc import Mapping
from typing import Any

from evolora.errors import encodes
from evolora.tasks.rows import refuse, shown

Message = dict[str, Any]
"""A chat message: its `role` (user, say), its `content`, and what else of it a template may print."""

ASSISTANT = "assistant"
IMAGES = ("image", "images")
TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"
"""Columns that TRL hands to the chat template, and so do we."""

_TEXTS = ("name", "tool_call_id", "reasoning_content", "thinking")
_KEYS = {"role", "content", "tool_calls", *_TEXTS}


def checked_messages(values: list[object], place: str) -> tuple[Message, ...]:
    """Messages as TRL has them: [{"role": "user", "content": "..."}, ...], whose content may be blocks of text. Raises
    InputError for anything else, images among it."""
    if not values:
        refuse(place, "has the prompt [], expected at least one chat message")
    return tuple(_message(value, number, place) for number, value in enumerate(values, start=1))


def _message(value: object, number: int, place: str) -> Message:
    if not isinstance(value, dict):
        refuse(place, f"has as message {number} {shown(value)}, expected an object with a role and a content")
    message = {name: each for name, each in value.items() if each is not None or name in ("role", "content")}
    if "tool_calls" in message:
        message["content"] = message.get("content") or ""
    if not {"role", "content"} <= message.keys() <= _KEYS:
        refuse(place, f"has as message {number} {shown(value)}, expected an object with a role and a content")
    message["content"] = _text(message["content"], number, place)
    for name in ("role", "content", *_TEXTS):
        text = message.get(name, "x")
        if not isinstance(text, str) or (name == "role" and not text.strip()):
            refuse(place, f"has in message {number} the {name} {shown(text)}, expected text")
    if not _objects(message.get("tool_calls", [])):
        refuse(place, f"has in message {number} the tool_calls {shown(message['tool_calls'])}, expected objects")
    check_utf8(json.dumps(message, ensure_ascii=False), f"message {number}", place)
    return message


def _text(content: object, number: int, place: str) -> object:
    """The text of a message's blocks; what is no list is left to the caller."""
    if not isinstance(content, list):
        return content
    texts = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind is not None and kind != "text":
            refuse(place, f"has in message {number} content of the type {shown(kind)}, expected text alone")
        if kind is None or not isinstance(block.get("text"), str):
            refuse(place, f"has in message {number} the content {shown(block)}, expected text, or blocks of text")
        texts.append(block["text"])
    return "".join(texts)


def checked_for_template(columns: Mapping[str, object], place: str) -> dict[str, Any]:
    """Of a conversation's columns those that its template gets, with lists and objects in the place of their JSON.
    Raises InputError where they are neither."""
    found = {name: _json(columns[name]) for name in (TOOLS, TEMPLATE_KWARGS) if columns.get(name) is not None}
    if not _objects(found.get(TOOLS, [])):
        refuse(place, f"has the tools {shown(found[TOOLS])}, expected a list of objects, or its JSON")
    if not isinstance(found.get(TEMPLATE_KWARGS, {}), dict):
        refuse(place, f"has the {TEMPLATE_KWARGS} {shown(found[TEMPLATE_KWARGS])}, expected an object, or its JSON")
    return found


def _json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def check_utf8(text: str, what: str, place: str) -> None:
    """Raise InputError for half of a surrogate pair, which JSON can escape and no tokenizer takes."""
    if not encodes(text):
        refuse(place, f"has the {what} {shown(text)}, expected text that can be encoded as UTF-8")
