"""Endpoints as rewards, against a server on this machine that fails on command."""

import datetime
import email.utils
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evolora.errors import InputError, RewardError
from evolora.rewards import FailedReward, RewardScorer
from evolora.rewards import http as module
from evolora.rewards.http import make_http

Answer = tuple[int, Any, dict[str, str]]


class Server:
    """Answers with the lengths of the completions, after what `plan` says: (status, body, headers) for each request,
    or for all (`always`, given the request)."""

    def __init__(self) -> None:
        self.plan: list[Answer] = []
        self.always: Callable[[dict[str, Any]], Answer] | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.release = threading.Event()
        self.heard_out = False  # somebody waited for all that a dribbling answer has
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(request)
                outer.headers.append(self.headers)
                status, body, headers = outer.answer(request)
                if status == 0:
                    outer.release.wait(20)
                    return
                found = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(found)))
                self.end_headers()
                for part in [found] if status not in (299, 599) else [b"[" + b" " * 10] * 100:
                    try:
                        self.wfile.write(part)
                    except OSError:
                        return
                    if status in (299, 599) and outer.release.wait(0.05):
                        return
                outer.heard_out = True

            def do_GET(self) -> None:
                outer.requests.append({"GET": self.path})
                self.send_error(500)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request: dict[str, Any]) -> Answer:
        if self.plan:
            return self.plan.pop(0)
        if self.always is not None:
            return self.always(request)
        return 200, {"scores": [len(text) for text in request["completions"]]}, {}

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it waited between attempts: written down instead."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


def said(values: Any) -> list[str]:
    assert all(isinstance(value, FailedReward) for value in values)
    return [value.what for value in values]


def test_it_is_sent_the_columns_in_batches(server: Server) -> None:
    scorer = RewardScorer(make_http(url=server.url, batch_size=2))
    scores = scorer.score(["p0", "p1", "p2"], ["a", "bb", "éé\n"], {"target": ["x", None, 3]}, [[1]] * 3)
    assert scores.rewards.tolist() == [1.0, 2.0, 3.0]
    assert server.requests == [
        {"prompts": ["p0", "p1"], "completions": ["a", "bb"], "target": ["x", None]},
        {"prompts": ["p2"], "completions": ["éé\n"], "target": [3]},
    ]
    assert "Authorization" not in server.headers[0]


def test_a_list_and_null_are_answers_too(server: Server) -> None:
    server.plan = [(200, [0.5, None, True], {})]
    found = RewardScorer(make_http(url=server.url)).score(["p"] * 3, ["c"] * 3, {}).rewards.tolist()
    assert found[0] == 0.5 and found[1] != found[1] and found[2] == 1.0


def test_the_token_is_read_from_the_environment_and_never_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_TOKEN", "s3cret\n")
    reward = make_http(url=server.url, token_env="SCORE_TOKEN")
    server.plan = [(200, [1], {}), (403, "no", {})]
    assert reward(prompts=["p"], completions=["c"]) == [1]
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    with pytest.raises(RewardError) as error:
        RewardScorer(reward).score(["p"], ["c"], {})
    assert "403" in str(error.value) and "s3cret" not in str(error.value) + repr(vars(error.value))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried_with_growing_waits(server: Server, waits: list[float], status: int) -> None:
    server.plan = [(status, "later", {})] * 3
    assert make_http(url=server.url, backoff=0.25)(prompts=["p"], completions=["abc"]) == [3]
    assert waits == [0.25, 0.5, 1.0] and len(server.requests) == 4


@pytest.mark.parametrize("status", [401, 403, 404, 405, 301, 307])
def test_others_are_not(server: Server, waits: list[float], status: int) -> None:
    server.plan = [(status, "go away", {"Location": "/elsewhere"})]
    values = make_http(url=server.url, batch_size=2)(prompts=["p"] * 5, completions=["c"] * 5)
    assert said(values)[0].startswith(f"was answered with status {status}")
    assert said(values)[4].startswith("was not called: before, it was answered with status")
    assert len(server.requests) == 1 and waits == []


def test_retries_are_bounded(server: Server, waits: list[float]) -> None:
    server.always = lambda _: (503, "overloaded", {})
    values = make_http(url=server.url, retries=2, batch_size=2)(prompts=["p"] * 6, completions=["c"] * 6)
    assert len(server.requests) == 3 and waits == [0.5, 1.0]
    assert said(values)[0] == 'was answered with status 503: "overloaded" (3 attempts)'
    scorer = RewardScorer(make_http(url=server.url, retries=0), on_error="skip", failed_reward=-1.0)
    assert scorer.score(["p"] * 3, ["c"] * 3, {}).rewards.tolist() == [-1.0] * 3
    with pytest.raises(RewardError, match=r"reward http was answered with status 503.*\n.*prompt: 'p'"):
        RewardScorer(make_http(url=server.url, retries=0)).score(["p"], ["c"], {})


def test_retry_after_is_honoured_within_a_bound(server: Server, waits: list[float]) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    values = ["7", "100000", email.utils.format_datetime(soon, usegmt=True), "nonsense", "-3"]
    server.plan = [(429, "slow down", {"Retry-After": value}) for value in values]
    assert make_http(url=server.url, retries=5, timeout=100.0)(prompts=["p"], completions=["abc"]) == [3]
    assert waits[:2] == [7.0, 60.0] and 10 < waits[2] <= 20 and waits[3:] == [4.0, 8.0]


def test_a_server_that_does_not_answer_is_a_timeout(server: Server, waits: list[float]) -> None:
    server.plan = [(0, None, {})]
    values = make_http(url=server.url, timeout=0.2, retries=1)(prompts=["p"], completions=["c"])
    assert said(values) == ["had no answer within 0.2 s"] and len(server.requests) == 1 and waits == []


@pytest.mark.parametrize("status", [299, 599])
def test_a_server_that_dribbles_is_one_too(server: Server, status: int) -> None:
    server.plan = [(status, b"", {"Content-Length": "1000000"})]
    values = make_http(url=server.url, timeout=0.3, retries=0)(prompts=["p"], completions=["c"])
    assert said(values) == ["had no answer within 0.3 s"] and not server.heard_out


def test_so_is_one_that_dribbles_headers(waits: list[float]) -> None:
    ended = threading.Event()

    def dribble(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not ended.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=dribble, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        values = make_http(url=url, timeout=0.3, retries=3)(prompts=["p"], completions=["c"])
        ended.set()
        thread.join()
    assert said(values) == ["had no answer within 0.3 s"] and waits == []


def test_retries_have_no_more_time_than_that(server: Server, waits: list[float]) -> None:
    server.always = lambda _: (503, "overloaded", {"Retry-After": "30"})
    values = make_http(url=server.url, timeout=20.0, retries=5)(prompts=["p"], completions=["c"])
    assert said(values) == ['was answered with status 503: "overloaded"'] and waits == []


def test_no_server_at_all(server: Server, waits: list[float]) -> None:
    server.close()
    values = make_http(url=server.url, retries=1)(prompts=["p"], completions=["c"])
    assert "could not be reached" in said(values)[0] and "(2 attempts)" in said(values)[0] and waits == [0.5]


def test_an_answer_that_is_cut_off_is_retried(server: Server, waits: list[float]) -> None:
    server.plan = [(200, b'{"scores": [', {"Content-Length": "100"})]
    assert make_http(url=server.url)(prompts=["p"], completions=["four"]) == [4] and waits == [0.5]


@pytest.mark.parametrize("status", [400, 413, 422, 500, 200])
def test_when_the_content_is_refused_only_the_completion_at_fault_fails(
    server: Server, waits: list[float], status: int
) -> None:
    def picky(request: dict[str, Any]) -> Answer:
        texts = request["completions"]
        return (status, "cannot", {}) if "bad" in texts else (200, [len(text) for text in texts], {})

    server.always = picky
    values = make_http(url=server.url)(prompts=["p"] * 3, completions=["a", "bad", "ccc"])
    assert (values[0], values[2]) == (1, 3) and isinstance(values[1], FailedReward)
    assert len(waits) == (3 if status == 500 else 0)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (b"<html>", "'<html>', expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        ([1, 2], "2 scores for 1 completions"),
        ({"score": [1]}, '{"scores": [...]} or a list'),
        (3, "or a list"),
        (["good"], "the score 'good', expected a number"),
        ([[1]], "expected a number"),
    ],
)
def test_nonsense_is_named(server: Server, answer: Any, named: str) -> None:
    server.plan = [(200, answer, {})]
    with pytest.raises(RewardError) as error:
        RewardScorer(make_http(url=server.url)).score(["p"], ["c"], {})
    assert named in str(error.value)


def test_infinity_in_an_answer_is_no_reward(server: Server) -> None:
    server.plan = [(200, b"[Infinity, NaN, 1]", {})]
    scores = RewardScorer(make_http(url=server.url), on_error="skip").score(["p"] * 3, ["c"] * 3, {})
    assert scores.failed.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "localhost:8000"}, ("'localhost:8000'", "http://")),
        ({"url": "file:///etc/passwd"}, ("file:", "http://")),
        ({"url": "http://user:secret@host/"}, ("user or password",)),
        ({"url": "http://h/", "timeout": 0.0}, ("timeout is 0.0",)),
        ({"url": "http://h/", "backoff": -1.0}, ("backoff is -1.0",)),
        ({"url": "http://h/", "retries": -1}, ("retries is -1",)),
        ({"url": "http://h/", "batch_size": 0}, ("batch_size is 0",)),
        ({"url": "http://h/", "token_env": "UNSET_TOKEN_OF_A_TEST"}, ("UNSET_TOKEN_OF_A_TEST", "unset")),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        make_http(**options)
    message = str(error.value)
    assert message.startswith("reward http: ") and message.endswith(".") and "expected" in message
    assert all(name in message for name in named) and "secret" not in message, message
