"""The rating page: who may use it, what it shows, and that each vote counts once."""

import http.client
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from evolora.errors import InputError
from evolora.human import PageStatus, Pair, RatingPage, VoteStore
from evolora.human.guard import Guard
from evolora.human.page import create_app, marked

HOST = "127.0.0.1:8000"
ORIGIN = f"http://{HOST}"


class Site:
    """The app over a store, with browsers that have opened it."""

    def __init__(self, folder: Path) -> None:
        self.store = VoteStore(folder / "votes.sqlite")
        self.guard = Guard()
        self.status = PageStatus()
        self.votes = 0
        self.app = create_app(self.store, lambda: self.status, self.guard, self._count)

    def _count(self) -> None:
        self.votes += 1

    def stranger(self) -> FlaskClient:
        return self.app.test_client()

    def browser(self) -> FlaskClient:
        client = self.stranger()
        assert get(client, f"/?token={self.guard.token}").status_code == 200
        return client


def get(client: FlaskClient, path: str = "/", **headers: str) -> TestResponse:
    return client.get(path, base_url=ORIGIN, headers=headers)


def post(client: FlaskClient, path: str, data: dict[str, str] | None = None, **headers: str) -> TestResponse:
    return client.post(path, base_url=ORIGIN, data=data, headers={"Origin": ORIGIN, **headers})


def question_of(client: FlaskClient) -> str | None:
    found = re.search(r'name="question" value="([^"]+)"', get(client).text)
    return found[1] if found else None


def vote(client: FlaskClient, choice: str = "left", question: str | None = None) -> TestResponse:
    return post(client, "/vote", {"question": question or question_of(client) or "", "choice": choice})


def pairs(count: int) -> list[Pair]:
    return [Pair(f"prompt {n}", 0, f"first {n}", 1, f"second {n}") for n in range(count)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# ---- who may use it


def test_nothing_is_served_without_the_token(site: Site) -> None:
    site.store.ask(1, pairs(1))
    for path in ("/", "/?token=", f"/?token={site.guard.token[:-1]}x", "/?token=é", "/static/rate.js", "/nowhere"):
        assert get(site.stranger(), path).status_code == 403, path
    for path in ("/vote", "/undo", "/unskip", f"/vote?token={site.guard.token}"):
        assert post(site.stranger(), path).status_code == 403, path
    forged = site.stranger()
    forged.set_cookie("evolora_session_8000", "forged", domain="127.0.0.1")
    assert get(forged).status_code == 403
    # The token opens the page, but it is not the cookie.
    forged.set_cookie("evolora_session_8000", site.guard.token, domain="127.0.0.1")
    assert get(forged).status_code == 403
    assert "prompt 0" in get(site.browser()).text


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(site: Site) -> None:
    client = site.stranger()
    response = get(client, f"/?token={site.guard.token}")
    cookies = response.headers.getlist("Set-Cookie")
    assert len(cookies) == 2
    assert all("HttpOnly" in cookie and "SameSite=Strict" in cookie for cookie in cookies)
    assert site.guard.token not in "".join(cookies) + response.text
    assert response.headers["Refresh"] == "0; url=/"
    page = get(client)
    assert page.status_code == 200
    assert site.guard.token not in page.text
    assert site.guard.session not in page.text
    assert len({Guard().token for _ in range(10)}) == 10
    assert len(site.guard.token) >= 40


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:8000", "http://localhost:8000"],
)
def test_a_foreign_origin_changes_nothing(site: Site, origin: str) -> None:
    site.store.ask(1, pairs(1))
    client = site.browser()
    question = question_of(client) or ""
    data = {"question": question, "choice": "left"}
    for path in ("/vote", "/undo", "/unskip"):
        assert post(client, path, data, Origin=origin).status_code == 403
    assert client.post("/vote", base_url=ORIGIN, data=data).status_code == 403  # none at all
    assert site.store.count() == 0


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "192.168.1.2:8000"])
def test_a_foreign_host_is_refused(site: Site, host: str) -> None:
    """DNS rebinding: the browser talks to 127.0.0.1 but believes it to be the foreign page's own server."""
    site.store.ask(1, pairs(1))
    client = site.browser()
    client.set_cookie("evolora_session_8000", site.guard.session, domain=host.partition(":")[0])
    for path in ("/", f"/?token={site.guard.token}", "/static/rate.js"):
        assert client.get(path, base_url=f"http://{host}").status_code == 403
    response = client.post("/vote", base_url=f"http://{host}", headers={"Origin": f"http://{host}"})
    assert response.status_code == 403


def test_the_headers_forbid_inline_scripts_frames_and_foreign_assets(site: Site) -> None:
    site.store.ask(1, pairs(1))
    for response in (get(site.browser()), get(site.stranger()), get(site.browser(), "/static/rate.css")):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
    page = get(site.browser()).text
    assert not re.findall(r"""(?:src|href|action)=["'](?!/)""", page)
    assert not re.findall(r"<script(?! src=)|<style|\son\w+=|\sstyle=", page)


# ---- votes


def test_left_and_right_mean_what_is_shown(site: Site) -> None:
    site.store.ask(1, pairs(30))
    client = site.browser()
    sides = set()
    for n in range(30):
        page = get(client).text
        first_is_left = page.index(f"first {n}") < page.index(f"second {n}")
        sides.add(first_is_left)
        assert vote(client, "left" if first_is_left else "right").status_code == 303
    assert {decided.outcome for decided in site.store.decided(1)} == {"a"}
    assert sides == {True, False}
    assert site.votes == 30


def test_a_vote_sent_twice_counts_once_and_a_reload_keeps_the_question(site: Site) -> None:
    site.store.ask(1, pairs(2))
    client = site.browser()
    question = question_of(client)
    assert question_of(client) == question
    for _ in range(3):
        assert vote(client, "tie", question).status_code == 303
    assert site.store.count() == site.votes == 1
    assert question_of(client) != question


def test_two_raters_get_different_questions_and_the_second_answer_is_said_not_to_count(site: Site) -> None:
    site.store.ask(1, pairs(3))
    me, you = site.browser(), site.browser()
    mine, yours = question_of(me), question_of(you)
    assert mine != yours
    assert vote(me, "left", mine).location == "/"
    late = vote(you, "left", mine)
    assert late.location == "/?note=taken"
    assert "Somebody else" in get(you, late.location).text
    assert question_of(you) == yours
    assert site.store.count() == 1


def test_undo_brings_the_question_back_also_after_the_last_vote(site: Site) -> None:
    site.store.ask(1, pairs(1))
    client = site.browser()
    assert re.search(r'id="undo"[^>]*disabled', get(client).text)
    question = question_of(client)
    vote(client, "bad")
    assert question_of(client) is None
    assert "Undo" in get(client).text
    assert post(client, "/undo").status_code == 303
    assert question_of(client) == question
    assert site.store.count() == 0
    vote(client, "tie")
    assert [decided.outcome for decided in site.store.decided()] == ["tie"]
    assert post(site.browser(), "/undo").status_code == 303  # another's undo takes nothing back
    assert site.store.count() == 1


def test_skipped_questions_are_offered_again_when_nothing_else_is_left(site: Site) -> None:
    site.store.ask(1, pairs(2))
    client = site.browser()
    vote(client, "skip")
    vote(client, "skip")
    page = get(client).text
    assert "You have skipped what is left" in page
    assert "you skipped 2 questions" in page
    post(client, "/unskip")
    assert question_of(client) is not None
    assert site.store.count() == 0


def test_bad_requests_are_refused_and_change_nothing(site: Site) -> None:
    site.store.ask(1, pairs(1))
    client = site.browser()
    question = question_of(client) or ""
    assert vote(client, "middle").status_code == 400
    assert post(client, "/vote", {"question": question}).status_code == 400
    assert post(client, "/vote", {"choice": "left"}).status_code in (400, 404)
    assert vote(client, "left", "forged").status_code == 404
    assert post(client, "/vote", {"question": question, "choice": "left" * 5000}).status_code == 413
    assert get(client, "/vote").status_code == 405
    assert site.store.count() == 0


# ---- what it shows


def test_markup_in_a_completion_is_text(site: Site) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}"
    evil = f"{evil}\n{evil}  {evil}"  # between marks of white space too
    site.store.ask(1, [Pair(evil, 0, evil, 1, "</div></form>" + evil)])
    site.status = PageStatus(message=evil)
    page = get(site.browser()).text
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 12
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&amp;amp;{{ 7 * 7 }}" in page


def test_white_space_and_nothing_are_visible() -> None:
    assert "(empty)" in marked("")
    assert "(only white space)" in marked(" \n")
    assert marked(" a  b\n").count('class="space"') == 3
    assert marked("a b") == "a b"
    assert 'class="line"' in marked("a\nb")
    assert 'class="tab"' in marked("a\tb")
    assert 'data-code="U+202E"' in marked("a\u202eb")
    assert 'data-code="U+0000"' in marked("a\0b")


def test_progress_certainty_agreement_and_message_are_shown(site: Site) -> None:
    site.store.ask(4, pairs(5))
    site.status = PageStatus(generation=4, wanted=3, certainty=0.874, agreement=0.71, message="Best so far 0.5.")
    client = site.browser()
    vote(client)
    page = get(client).text
    assert re.search(r"<b>1</b> of 3 votes", page)
    assert re.search(r'<progress id="votes" max="3" value="1">', page)
    assert re.search(r"Still wanted</dt><dd>2<", page)
    assert re.search(r"Votes in all</dt><dd>1<", page)
    assert re.search(r"87% <small>fairly well known", page)
    assert re.search(r"Reward model agrees</dt><dd>71%", page)
    assert "Best so far 0.5." in page


def test_no_question_is_shown_once_the_generation_has_its_votes_or_while_the_run_computes(site: Site) -> None:
    site.store.ask(1, pairs(5))
    client = site.browser()
    site.status = PageStatus(generation=1, wanted=1)
    vote(client)
    assert question_of(client) is None
    assert "All votes are in" in get(client).text
    post(client, "/undo")
    assert question_of(client) is not None
    vote(client)
    site.status = PageStatus(generation=2, wanted=1, message="The run computes generation 2.")
    page = get(client).text
    assert 'name="question"' not in page
    assert "The run computes generation 2." in page
    site.store.ask(2, pairs(1))
    assert question_of(client) is not None


def test_an_empty_store_waits(site: Site) -> None:
    assert "Nothing to compare" in get(site.browser()).text


# ---- the server


@pytest.fixture
def page(tmp_path: Path) -> Iterator[RatingPage]:
    with RatingPage(VoteStore(tmp_path / "votes.sqlite")) as page:
        yield page


def request(
    page: RatingPage, method: str, path: str, headers: dict[str, str], body: str = ""
) -> tuple[int, str, list[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(page.url).port or 0, timeout=10)
    form = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
    connection.request(method, path, body=body or None, headers={**form, **headers})
    response = connection.getresponse()
    text, cookies = response.read().decode(), response.msg.get_all("Set-Cookie") or []
    connection.close()
    return response.status, text, [cookie.partition(";")[0] for cookie in cookies]


def test_the_server_over_its_socket(page: RatingPage) -> None:
    store = page._store
    (identifier,) = store.ask(1, pairs(1))
    address = urlsplit(page.url)
    assert address.hostname == "127.0.0.1"
    own, origin = {"Host": address.netloc}, f"http://{address.netloc}"
    assert request(page, "GET", "/", own)[0] == 403
    assert request(page, "GET", "/?token=forged", own)[0] == 403
    assert request(page, "GET", f"/?{address.query}", {"Host": f"evil.example:{address.port}"})[0] == 403
    status, _, cookies = request(page, "GET", f"/?{address.query}", own)
    assert status == 200
    known = {**own, "Cookie": "; ".join(cookies)}
    status, text, _ = request(page, "GET", "/", known)
    assert status == 200
    assert identifier in text
    body = urlencode({"question": identifier, "choice": "tie"})
    assert request(page, "POST", "/vote", {**known, "Origin": "http://evil.example"}, body)[0] == 403
    assert store.count() == 0
    assert request(page, "POST", "/vote", {**known, "Origin": origin}, body)[0] == 303
    assert store.count() == 1
    for asset in ("rate.js", "rate.css", "icon.svg"):
        status, text, _ = request(page, "GET", f"/static/{asset}", known)
        assert (status, bool(text)) == (200, True)


def test_only_this_machine_is_served_unless_asked(page: RatingPage) -> None:
    port = urlsplit(page.url).port
    with socket.socket() as other, pytest.raises(OSError):
        other.connect(("127.0.0.2", port or 0))  # the same machine by another address: not listened to


def test_the_run_waits_for_votes(page: RatingPage) -> None:
    store = page._store
    ids = store.ask(7, pairs(4))
    page.status = replace(page.status, message="Go.")
    seen: list[int] = []
    results: list[int] = []

    def run() -> None:
        results.append(page.wait_for(2, 7, lambda: False, lambda: seen.append(store.count(7))))

    thread = threading.Thread(target=run)
    thread.start()
    for identifier in ids[:2]:
        time.sleep(0.3)
        assert not results
        store.vote(identifier, "me", "a")
    thread.join(timeout=10)
    assert results == [2]
    assert seen == [0, 1, 2]
    assert page.status == PageStatus(generation=7, wanted=2, message="Go.")
    # Told to stop, or with no question left, it does not wait for what cannot come.
    assert page.wait_for(3, 7, lambda: True) == 2
    for identifier in ids[2:]:
        store.vote(identifier, "me", "a")
    assert page.wait_for(100, 7, lambda: False) == 4


def test_a_closed_page_answers_no_more_and_frees_its_port(tmp_path: Path) -> None:
    store = VoteStore(tmp_path / "votes.sqlite")
    page = RatingPage(store)
    with pytest.raises(RuntimeError, match="started"):
        _ = page.url
    page.start()
    port = urlsplit(page.url).port or 0
    with pytest.raises(InputError, match=str(port)):
        RatingPage(store, port=port).start()
    threads = threading.active_count()
    lingering = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    lingering.request("GET", "/")
    lingering.getresponse().read()
    page.close()
    page.close()
    assert threading.active_count() < threads
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    with RatingPage(store, port=port) as again:
        assert urlsplit(again.url).port == port


def test_bad_addresses_and_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoteStore(tmp_path / "votes.sqlite")
    with pytest.raises(InputError, match=r"host is 'example\.com'"):
        RatingPage(store, host="example.com")
    with pytest.raises(InputError, match="port is 70000"):
        RatingPage(store, port=70000)
    monkeypatch.setitem(sys.modules, "waitress.server", None)
    with pytest.raises(InputError, match=r"evolora\[human\]"):
        RatingPage(store).start()
