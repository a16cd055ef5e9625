"""Somebody who votes at the rating page by HTTP, without a browser."""

import html
import http.cookiejar
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from rater import preferred

_SHOWN = re.compile(r'<div class="text" id="(left|right)" dir="auto">(.*?)</div>', re.DOTALL)


class Voter:
    """Votes by a taste, in a thread, until the run ends."""

    def __init__(self, address: str, taste: Callable[[str], float], run: "subprocess.Popen[str]") -> None:
        parts = urllib.parse.urlsplit(address)
        self._site, self._taste, self._run, self._votes = f"{parts.scheme}://{parts.netloc}", taste, run, 0
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._browser = urllib.request.build_opener(cookies)
        self._thread = threading.Thread(target=self._vote, args=[address], daemon=True)
        self._thread.start()

    def votes(self) -> int:
        """How many it cast, once its run is over."""
        self._thread.join(timeout=30)
        return self._votes

    def _vote(self, address: str) -> None:
        try:
            self._browser.open(address, timeout=30)
            while self._run.poll() is None:
                page = self._browser.open(self._site, timeout=30).read().decode()
                question = re.search(r'data-question="([^"]+)"', page)
                if question is None:
                    time.sleep(0.05)
                    continue
                sides = {name: html.unescape(re.sub(r"<[^>]*>", "", text)) for name, text in _SHOWN.findall(page)}
                choice = preferred(sides["left"], sides["right"], self._taste)
                form = urllib.parse.urlencode({"question": question[1], "choice": choice}).encode()
                vote = urllib.request.Request(f"{self._site}/vote", form, {"Origin": self._site})
                self._browser.open(vote, timeout=30)
                self._votes += 1
        except (urllib.error.URLError, OSError):  # the page ends with the run
            pass
