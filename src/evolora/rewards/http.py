"""An endpoint as a reward."""

import datetime
import email.message
import email.utils
import http.client
import json
import math
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import IO

from evolora.environment import resolved
from evolora.errors import InputError
from evolora.masking import conceal, concealed
from evolora.rewards.base import FailedReward, Reward, Value, data_columns

MAX_WAIT = 60.0
MAX_ANSWER = 64 * 2**20
# The server may be fine again in a moment. Other 5xx are retried too.
_PASSING = (408, 425, 429)
# What the server says of this request's content, so that another content may be answered.
_ABOUT_CONTENT = (400, 413, 422, 500)


def make_http(
    *,
    url: str,
    timeout: float = 60.0,
    retries: int = 3,
    backoff: float = 0.5,
    batch_size: int = 32,
    token_env: str | None = None,
) -> Reward:
    """Scores of an HTTP endpoint. It is sent `POST` requests with at most `batch_size` completions,
    `{"prompts": [...], "completions": [...]}` and the data's columns as further lists, and answers with
    `{"scores": [...]}` or the list alone: one number each, or null for "not scored". With `token_env`, requests carry
    the token in that environment variable (`Authorization: Bearer`). `env:NAME` in the address stands for that
    variable, percent-encoded behind the `?`.

    A request that finds no server or is answered with status 408, 425, 429 or 5xx is sent again, up to `retries` times,
    after `backoff` seconds and then twice as long each time, or as long as the server's Retry-After says, never more
    than 60 s. All of that together, connecting, waiting and slow answers, takes at most `timeout` seconds. Redirects
    are not followed. When the server answers but refuses the request for its content (400, 413, 422, 500, or no such
    list of scores), its completions are sent one at a time, so that only those at fault fail; when it cannot be
    reached, all fail, and the rest of the batch is not tried.

    The range is the endpoint's own. Raises InputError for options out of range and an unset variable.
    """
    before, mark, query = url.partition("?")
    address = resolved(before) + mark + resolved(query, lambda value: urllib.parse.quote(value, safe=""))
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError as error:
        raise InputError(f"reward http: url is {url!r} ({error}), expected an address.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"reward http: url is {url!r}, expected one that begins with http:// or https:// and a host.")
    if parts.username is not None or parts.password is not None:
        raise InputError("reward http: url holds a user or password, expected none (see token_env).")
    if not (address.isascii() and address.isprintable()) or " " in address:
        raise InputError(f"reward http: url is {url!r}, expected one without blanks, in ASCII.")
    for name, number in (("timeout", timeout), ("backoff", backoff)):
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"reward http: {name} is {number}, expected a positive number of seconds.")
    if retries < 0:
        raise InputError(f"reward http: retries is {retries}, expected 0 or more.")
    if batch_size < 1:
        raise InputError(f"reward http: batch_size is {batch_size}, expected at least 1.")
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "evolora"}
    if token_env is not None:
        token = os.environ.get(token_env, "").strip()
        if not token:
            raise InputError(f"reward http: the environment variable {token_env} is unset, expected the token in it.")
        if not (token.isascii() and token.isprintable()):
            raise InputError(f"reward http: {token_env} holds what no header may, expected a token in plain ASCII.")
        conceal(token, f"env:{token_env}")
        headers["Authorization"] = f"Bearer {token}"
    return HTTPReward(address, headers, timeout=timeout, retries=retries, backoff=backoff, batch_size=batch_size)


class HTTPReward:
    """See `make_http`."""

    __name__ = "http"

    def __init__(
        self, url: str, headers: dict[str, str], *, timeout: float, retries: int, backoff: float, batch_size: int
    ) -> None:
        self._url = url
        self._headers = headers
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._batch_size = batch_size
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, prompts: Sequence[object], completions: Sequence[object], **columns: object) -> list[Value]:
        batch = data_columns(columns) | {"prompts": prompts, "completions": completions}
        values: list[Value] = []
        for start in range(0, len(completions), self._batch_size):
            rows = range(start, min(start + self._batch_size, len(completions)))
            try:
                values += self._score(batch, rows)
            except _UnreachableError as error:
                values += [FailedReward(str(error))] * len(rows)
                left = len(completions) - rows.stop
                values += [FailedReward(f"was not called: before, it {error}")] * left
                break
        return values

    def _score(self, batch: dict[str, Sequence[object]], rows: range, asked: int = 0) -> list[Value]:
        body = json.dumps({name: [values[row] for row in rows] for name, values in batch.items()}, allow_nan=False)
        try:
            return _scores(self._answer(body.encode(), split=len(rows) < asked), len(rows))
        except _RefusedError as error:
            if len(rows) == 1:
                return [FailedReward(str(error))]
            return [value for row in rows for value in self._score(batch, range(row, row + 1), len(rows))]

    def _answer(self, body: bytes, *, split: bool) -> bytes:
        """The server's answer, after as many retries as it takes; _RefusedError or _UnreachableError without one. A
        part of a request that was refused for its content is not retried for that."""
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._retries + 1):
            wait = self._backoff * 2**attempt
            again = "" if attempt == 0 else f" ({attempt + 1} attempts)"
            try:
                return self._post(body, deadline)
            except _StatusError as error:
                found = f"was answered with status {error.code}{error.reason}{again}"
                about_content = error.code in _ABOUT_CONTENT
                passing = error.code in _PASSING or (error.code >= 500 and not (split and about_content))
                failure = _RefusedError(found) if about_content else _UnreachableError(found)
                wait = _retry_after(error.headers, wait)
            except (OSError, http.client.HTTPException) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                if isinstance(cause, TimeoutError):
                    failure = _UnreachableError(f"had no answer within {self._timeout:g} s{again}")
                else:
                    failure = _UnreachableError(f"could not be reached: {cause or type(error).__name__}{again}")
                passing = True
            wait = min(wait, MAX_WAIT)
            if not passing or attempt == self._retries or time.monotonic() + wait >= deadline:
                raise failure
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _post(self, body: bytes, deadline: float) -> bytes:
        """The answer to one request, asked for on a thread of its own: a name that is not resolved, or headers that
        dribble, know no time limit. The thread ends with its socket."""
        answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._read(body, deadline))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True, name="evolora-http").start()
        try:
            found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, Exception):
            raise found
        return found

    def _read(self, body: bytes, deadline: float) -> bytes:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=max(0.001, deadline - time.monotonic())) as response:
                found = bytearray()
                # The time-out above is for each read: a server that dribbles is cut off here.
                while part := response.read1(65536):
                    found += part
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    if len(found) > MAX_ANSWER:
                        raise _RefusedError("was answered with more than 64 MiB")
                expected = response.headers.get("Content-Length", "")
                if expected.isdecimal() and len(found) < int(expected):  # read1 does not say so
                    raise http.client.IncompleteRead(bytes(found), int(expected) - len(found))
                return bytes(found)
        except urllib.error.HTTPError as error:
            with error:
                raise _StatusError(error.code, _reason(error), error.headers) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would send the prompts, and the token, to somewhere else."""

    def redirect_request(
        self,
        req: urllib.request.Request,  # noqa: ARG002
        fp: IO[bytes],  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: http.client.HTTPMessage,  # noqa: ARG002
        newurl: str,  # noqa: ARG002
    ) -> None:
        return None


class _StatusError(Exception):
    """The server answered with a status that says that something failed."""

    def __init__(self, code: int, reason: str, headers: email.message.Message) -> None:
        super().__init__(code)
        self.code, self.reason, self.headers = code, reason, headers


class _RefusedError(Exception):
    """The server is there, but does not score this content."""


class _UnreachableError(Exception):
    """No content would be scored now."""


def _scores(answer: bytes, count: int) -> list[Value]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        text = concealed(answer[:10_000].decode("utf-8", "replace"))
        raise _RefusedError(f"was answered with {text[:200]!r}, expected JSON") from None
    scores = found.get("scores") if isinstance(found, dict) else found
    if not isinstance(scores, list):
        raise _RefusedError(f'was answered with {concealed(str(found))[:200]}, expected {{"scores": [...]}} or a list')
    if len(scores) != count:
        raise _RefusedError(f"was answered with {len(scores)} scores for {count} completions, expected one for each")
    return [
        score
        if score is None or isinstance(score, int | float)
        else FailedReward(f"was answered with the score {concealed(str(score))[:200]!r}, expected a number or null")
        for score in scores
    ]


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says of the error: the beginning of its answer."""
    try:
        text = concealed(" ".join(error.read(1000).decode("utf-8", "replace").split()))
    except (OSError, http.client.HTTPException):
        text = ""
    if 300 <= error.code < 400:
        return f", a redirect to {error.headers.get('Location')}"
    return f": {text[:200]}" if text else ""


def _retry_after(headers: email.message.Message, otherwise: float) -> float:
    """Seconds to wait by the header Retry-After, a number or a date."""
    value = str(headers.get("Retry-After", "")).strip()
    if value.isdecimal():
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return otherwise
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
