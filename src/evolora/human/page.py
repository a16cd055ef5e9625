"""The page where a person compares two completions: a Flask app, which works without JavaScript too."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import cast

from flask import Flask, Response, abort, g, make_response, redirect, render_template, request
from markupsafe import Markup, escape
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from evolora.human.guard import Guard
from evolora.human.status import PageStatus, certainty_in_words
from evolora.human.votes import Choice, Question, VoteStore

# Nothing but the package's own files, no inline script or style, no frame around the page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: under that browsers send forms with Origin: null, which the guard refuses.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_RATER_COOKIE = "evolora_rater"  # who votes, kept for the next run; it opens nothing
_RATER = re.compile(r"[A-Za-z0-9_-]{16,64}")
_YEAR = 365 * 24 * 3600
_NOTES = {
    "closed": "The votes of that generation were already in use. Yours was not counted.",
    "taken": "Somebody else had just answered that question. Yours was not counted; here is another.",
}
_OPENING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>evolora</title>'
    '<link rel="icon" href="/static/icon.svg"><a href="/">Open the page</a>'
)


@dataclass(frozen=True)
class View:
    """All that the page shows to one rater."""

    question: Question | None
    generation: int | None
    decided: int
    wanted: int
    total: int
    can_undo: bool
    skipped: int
    complete: bool
    status: PageStatus
    certainty_in_words: str
    note: str

    @property
    def remaining(self) -> int:
        return max(0, self.wanted - self.decided)


def view_for(store: VoteStore, status: PageStatus, rater: str, note: str = "") -> View:
    """What this rater sees now; leases the question that is shown."""
    generation = store.generation if status.generation is None else status.generation
    decided = 0 if generation is None else store.count(generation)
    wanted = status.wanted
    if wanted is None:
        wanted = 0 if generation is None else store.asked(generation)
    current = generation is not None and generation == store.generation
    complete = decided >= wanted
    return View(
        question=store.next_question(rater) if current and not complete else None,
        generation=generation,
        decided=decided,
        wanted=wanted,
        total=store.count(),
        can_undo=current and store.can_undo(rater),
        skipped=store.skipped(rater) if current and not complete else 0,
        complete=complete,
        status=status,
        certainty_in_words="" if status.certainty is None else certainty_in_words(status.certainty),
        note=note,
    )


def create_app(store: VoteStore, status: Callable[[], PageStatus], guard: Guard, on_vote: Callable[[], None]) -> Flask:
    """The app. `status` is asked at each request; `on_vote` is called after each vote and undo that had an effect."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 4096
    app.jinja_env.filters["marked"] = marked
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

    @app.before_request
    def admit() -> AnyResponse | None:
        if not guard.host_is_own(request.headers.get("Host", "")):
            abort(403, "This page is not known under that name.")
        reads = request.method in ("GET", "HEAD")
        if not reads and not guard.origin_is_own(request.headers.get("Origin", ""), request.headers.get("Host", "")):
            abort(403, "That request does not come from this page.")
        if reads and request.path == "/" and "token" in request.args:
            if not guard.opens(request.args["token"]):
                abort(403, "That token is not this page's: use the address that the run printed.")
            return _opening(guard)
        if not guard.knows(request.cookies.get(_session_cookie(), "")):
            abort(403, "Use the address that the run printed, with its token.")
        rater = request.cookies.get(_RATER_COOKIE, "")
        g.rater = rater if _RATER.fullmatch(rater) else _give_rater()
        return None

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_HEADERS)
        if "new_rater" in g:
            _set_cookie(response, _RATER_COOKIE, g.new_rater, max_age=_YEAR)
        return response

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> AnyResponse:
        response = make_response(f"{error.code}: {error.description}\n", error.code or 500)
        response.headers["Content-Type"] = "text/plain; charset=utf-8"
        return response

    @app.get("/")
    def page() -> str:
        note = _NOTES.get(request.args.get("note", ""), "")
        return render_template("rate.html", view=view_for(store, status(), g.rater, note))

    @app.post("/vote")
    def vote() -> AnyResponse:
        try:
            question = store.question(request.form["question"])
        except KeyError:
            abort(404, "There is no such question.")
        choice = _choice(request.form["choice"], question)
        verdict = store.vote(question.id, g.rater, choice)
        if verdict == "accepted":
            on_vote()
        return redirect(f"/?note={verdict}" if verdict in _NOTES else "/", 303)

    @app.post("/undo")
    def undo() -> AnyResponse:
        if store.undo(g.rater) is not None:
            on_vote()
        return redirect("/", 303)

    @app.post("/unskip")
    def unskip() -> AnyResponse:
        store.unskip(g.rater)
        return redirect("/", 303)

    return app


def _choice(place: str, question: Question) -> Choice:
    """What a button means for a question: left and right are a and b, or b and a."""
    left, right = ("a", "b") if question.a_is_left else ("b", "a")
    choice = {"left": left, "right": right, "tie": "tie", "bad": "bad", "skip": "skip"}.get(place)
    if choice is None:
        abort(400, "The choice is none of left, right, tie, bad and skip.")
    return cast(Choice, choice)


def _opening(guard: Guard) -> AnyResponse:
    """The answer to the address with the token: the cookie, and the same page without the token in its address.

    It is no redirect: after a click on another site's page (a notebook, say) a redirect would still count as that
    site's, and the browser would not send the cookie along. A refresh is this page's own.
    """
    response = make_response(_OPENING)
    response.headers["Refresh"] = "0; url=/"
    _set_cookie(response, _session_cookie(), guard.session)
    if not _RATER.fullmatch(request.cookies.get(_RATER_COOKIE, "")):
        _give_rater()
    return response


def _give_rater() -> str:
    g.new_rater = token_urlsafe(16)
    return str(g.new_rater)


def _session_cookie() -> str:
    """Cookies know no ports: two runs' pages need different names."""
    return f"evolora_session_{request.headers.get('Host', '').rpartition(':')[2]}"


def _set_cookie(response: AnyResponse, name: str, value: str, max_age: int | None = None) -> None:
    response.set_cookie(name, value, max_age=max_age, httponly=True, samesite="Strict", path="/")


_PIECES = re.compile(
    r"(?P<edge>^[ ]+|[ ]+$|[ ]{2,}|[ ]+(?=\n)|(?<=\n)[ ]+)|(?P<line>\n)|(?P<tab>\t)"
    r"|(?P<odd>[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff])"
)


def marked(text: str) -> Markup:
    """Text as HTML in which nothing is invisible: markup is text, and white space at the edges or doubled, line ends,
    tabs and control characters carry marks. The element's text content is still the text.

    >>> marked("<b> a")
    Markup('&lt;b&gt; a')
    >>> marked("")
    Markup('<span class="nothing">(empty)</span>')
    """
    if not text:
        return Markup('<span class="nothing">(empty)</span>')
    parts: list[Markup] = []
    done = 0
    for match in _PIECES.finditer(text):
        parts.append(escape(text[done : match.start()]))
        done = match.end()
        piece = match.group()
        if match.lastgroup == "edge":
            parts += [Markup('<span class="space"> </span>')] * len(piece)
        elif match.lastgroup == "line":
            parts.append(Markup('<span class="line"></span>\n'))
        elif match.lastgroup == "tab":
            parts.append(Markup('<span class="tab">\t</span>'))
        else:
            shown = "" if piece == "\0" else f"&#{ord(piece)};"  # HTML has no way to write a NUL
            parts.append(Markup(f'<span class="odd" data-code="U+{ord(piece):04X}">{shown}</span>'))
    parts.append(escape(text[done:]))
    if not text.strip():
        parts.append(Markup('<span class="nothing">(only white space)</span>'))
    return Markup("").join(parts)
