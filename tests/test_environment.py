"""`env:NAME` in texts."""

from urllib.parse import quote

import pytest

from evolora.environment import references, resolved
from evolora.errors import InputError
from evolora.masking import mask


def test_a_variables_name_ends_where_names_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLORA_ONE", "first value")
    monkeypatch.setenv("EVOLORA_2", "second&")
    text = "https://h/env:EVOLORA_ONE/?key=env:EVOLORA_2&x=env:EVOLORA_ONE-y"
    assert references(text) == ["EVOLORA_ONE", "EVOLORA_2", "EVOLORA_ONE"]
    assert resolved(text) == "https://h/first value/?key=second&&x=first value-y"
    assert resolved("env:EVOLORA_2", quote) == "second%26"
    assert mask("the server said first value") == "the server said env:EVOLORA_ONE"


@pytest.mark.parametrize("text", ["my.env:function", "my_env:function", "env:", "env:3", "environment:X", "ENV:X"])
def test_what_only_resembles_it_stays(text: str) -> None:
    assert resolved(text) == text


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_without_a_value_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVOLORA_ONE", raising=False)
    if value is not None:
        monkeypatch.setenv("EVOLORA_ONE", value)
    with pytest.raises(
        InputError, match=r"^env:EVOLORA_ONE: the environment variable EVOLORA_ONE is not set, expected"
    ):
        resolved("a env:EVOLORA_ONE b")


def test_a_value_is_not_read_as_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLORA_ONE", "env:EVOLORA_2")
    assert resolved("env:EVOLORA_ONE") == "env:EVOLORA_2"
