"""Keys in texts: found in all the ways in which people write them, and in nothing else."""

import pytest

from evolora import masking
from evolora.errors import CheckpointError, InputError, RewardError
from evolora.masking import conceal, keys_in, mask

KEY = "S3cr3tK3y"


@pytest.fixture(autouse=True)
def nothing_concealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_concealed", {})


@pytest.mark.parametrize(
    "text",
    [
        "http('https://h/x?api_key={}&n=1')",
        "https://h/x?n=1&key={}",
        "https://h/?access_token={}",
        "command('score --key {}')",
        "command('score --api-key={} --n 1')",
        "command('score --token \\'{} and more\\'')",
        "command('OPENAI_API_KEY={} score')",
        "password = '{}'",
        "client_secret={}",
        "curl -H 'Authorization: Bearer {}' -H 'X: 1'",
        'curl -H "X-Api-Key: {}"',
        "Bearer {}",
        "https://me:{}@h/x",
        "https://{}@h/x",
        "score sk-{}0123456789",
        "score hf_{}0123456789",
        "token=env:TOKEN&key={}",
    ],
)
def test_what_looks_like_a_key_is_masked_and_no_more(text: str) -> None:
    masked = mask(text.format(KEY))
    assert KEY not in masked and "***" in masked
    assert any(KEY in key for key in keys_in(text.format(KEY)))
    assert masked.split("***")[0] == text.split("{}")[0].removesuffix("me:").removesuffix("'").removesuffix(
        "\\"
    ).replace("sk-", "").replace("hf_", "")
    assert mask(masked) == masked and keys_in(masked) == []


@pytest.mark.parametrize(
    "text",
    [
        "http(url='https://h/x?api_key=env:MY_KEY', token_env=OTHER)",
        "command('score --key env:MY_KEY')",
        "https://env:USER:env:PASSWORD@h/",
        "Authorization: Bearer env:TOKEN",
        "monkey=3, tokens=4, budget_tokens=100",
        "the key: a value; if key == 3",
        "--sort-key --key: found nothing",
        "chrf + 0.2 * brevity(limit=8)",
        "ssh://host:22/x and me@host",
    ],
)
def test_what_is_no_key_stays(text: str) -> None:
    assert mask(text) == text and keys_in(text) == []


@pytest.mark.parametrize("kind", [InputError, RewardError, CheckpointError])
def test_errors_show_no_key(kind: type[Exception]) -> None:
    assert (
        str(kind(f"--reward http('https://h?key={KEY}'): is wrong")) == "--reward http('https://h?key=***'): is wrong"
    )


def test_what_is_concealed_is_masked_however_it_is_written() -> None:
    conceal("a key+/\n'\"", "env:MY_KEY")
    for written in ("a key+/\n'\"", "a%20key%2B%2F%0A%27%22", "a+key%2B%2F%0A%27%22", repr("a key+/\n'\"")[1:-1]):
        assert mask(f"<{written}>") == "<env:MY_KEY>"


def test_longer_values_are_masked_first_and_short_ones_are_no_secrets() -> None:
    conceal("abcd", "env:A")
    conceal("abcdefgh", "env:B")
    conceal("1", "env:C")
    conceal("plain")  # only looks like a key
    assert mask("abcdefgh abcd 1 plain") == "env:B env:A 1 plain"
