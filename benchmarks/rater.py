"""A scripted rater in a real browser, for the rating page's picture and its end-to-end test."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,860"
)
# The two texts and the question's id, when the page is ready for a vote.
_SHOWN = (
    "const work = document.querySelector('#work');"
    "if (!work || work.getAttribute('aria-busy') !== 'false' || work.dataset.state !== 'question') return;"
    "return ['left', 'right'].map(id => document.getElementById(id).textContent).concat(work.dataset.question);"
)


def headless_chromium(profile: Path) -> webdriver.Chrome | None:
    """Debian's Chromium without a window, with its profile in an empty folder; None where it is not installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*_OPTIONS.split(), f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def preferred(left: str, right: str, taste: Callable[[str], float]) -> str:
    """left, right or tie, as somebody with this taste votes."""
    a, b = taste(left), taste(right)
    return "tie" if a == b else "left" if a > b else "right"


def rate(
    driver: webdriver.Chrome,
    address: str,
    run: "subprocess.Popen[str]",
    taste: Callable[[str], float],
    before_vote: Callable[[int], None] = lambda _: None,
) -> int:
    """Open the page and click until the run ends; returns the number of clicks. `before_vote` is told each number."""
    votes = 0
    with contextlib.suppress(WebDriverException):  # the page ends with the run
        driver.get(address)
        while run.poll() is None:
            shown = driver.execute_script(_SHOWN)
            if shown is None:
                time.sleep(0.05)
                continue
            left, right, question = shown
            votes += 1
            before_vote(votes)
            driver.find_element("id", f"choose-{preferred(left, right, taste)}").click()
            while run.poll() is None and driver.execute_script(
                f"return document.querySelector('#work')?.dataset.question === '{question}'"
            ):
                time.sleep(0.02)
    return votes
