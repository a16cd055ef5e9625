"""The report of a real run, by the command and in a real browser."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import made_up
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from evolora.runs.report.page import Going, write_report

# Markup, and a word without an end.
HOSTILE = "</script><script>window.reached = 1</script><img src=x onerror='window.reached = 2'>" + "x" * 200


def test_a_finished_run_has_a_report_which_the_command_writes_again(copied: Path, evolora: Any) -> None:
    (copied / "report.html").unlink()
    code, out, _ = evolora("report", copied)
    assert code == 0 and out.strip() == str(copied / "report.html")
    page = (copied / "report.html").read_text(encoding="utf-8")
    for said in ("After 6 generations", "Translate &#39;", "evaluation", "ppo", "torch = "):
        assert said in page, said
    assert "http://" not in page and "https://" not in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, evolora: Any) -> None:
    code, _, error = evolora("report", tmp_path)
    assert code == 2 and error.count("\n") == 1 and "expected the folder of a run" in error


def test_a_report_that_cannot_be_written_ends_no_run(copied: Path, evolora: Any) -> None:
    for name in ("summary.json", "report.html"):
        (copied / name).unlink()
    (copied / "report.html").mkdir()
    code, out, _ = evolora("resume", copied)
    assert code == 0 and (copied / "summary.json").is_file()
    assert out.count("report.html: could not be written") == 1


def test_a_run_that_is_ended_leaves_a_report_that_says_so(toy: Any, tmp_path: Path, evolora: Any) -> None:
    (tmp_path / "fails.py").write_text(
        "import pathlib\n"
        "def reward(completions, **kwargs):\n"
        f"    page = pathlib.Path({str(tmp_path / 'run' / 'report.html')!r})\n"
        "    if 'Running: 1 of 6 generations' in page.read_text():\n"
        "        raise ValueError('enough')\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    code, _, error = evolora("train", *toy.options(tmp_path / "run", reward=f"{tmp_path / 'fails.py'}:reward"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert code == 1 and "enough" in error
    assert "The run is not finished: 1 generation so far; validation" in page and "data-written" not in page


# Each text's colour and the first opaque background under it.
CONTRASTS = """
const parse = colour => colour.match(/[\\d.]+/g).map(Number);
const background = node => parse(getComputedStyle(node).backgroundColor);
return [...document.querySelectorAll('h1, h2, p, dt, dd, small, td, th, li, summary, label, button, pre, .plot > span')]
  .filter(element => element.checkVisibility())
  .map(element => {
    let under = element;
    while (under.parentElement && background(under)[3] === 0) under = under.parentElement;
    return [element.tagName, parse(getComputedStyle(element).color), background(under)];
  });
"""


def contrast(ink: list[float], paper: list[float]) -> float:
    """WCAG 2's, of two sRGB colours."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(ink), luminance(paper)))
    return (light + 0.05) / (dark + 0.05)


# What a reader sees: the boxes of all texts, but for what lies outside of a table that scrolls.
BOXES = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const [node, parent] = [walker.currentNode, walker.currentNode.parentElement];
  if (!node.data.trim() || !parent.checkVisibility() || parent.closest('script, style, noscript, select')) continue;
  const scroll = parent.closest('.scroll');
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const {left, top, right, bottom} of range.getClientRects()) {
    const view = scroll && scroll.getBoundingClientRect();
    const seen = !view || (bottom <= view.bottom && top >= view.top && left >= view.left && right <= view.right + 1);
    if (right - left < 2 || !seen) continue;
    found.push([node.data.trim().slice(0, 30), left, top + scrollY, right, bottom + scrollY]);
  }
}
return found;
"""


def faults(boxes: list[Any], width: int) -> list[str]:
    """Texts that reach beyond the page, and pairs of texts that lie on each other."""
    assert boxes
    found = [f"{text} is cut" for text, left, _, right, _ in boxes if left < 0 or right > width]
    boxes.sort(key=lambda box: box[2])
    for index, (text, left, _, right, bottom) in enumerate(boxes):
        for other, other_left, other_top, other_right, _ in boxes[index + 1 :]:
            if other_top > bottom - 4:  # lines of a paragraph are that close
                break
            if min(right, other_right) - max(left, other_left) > 1:
                found.append(f"{text} lies on {other}")
    return found


@contextmanager
def looking(chromium: Any, width: int, theme: str) -> Iterator[None]:
    """At pages of this width, in this theme; nothing may be complained of meanwhile."""
    chromium.get_log("browser")
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
        assert chromium.get_log("browser") == []
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_overlaps_and_cuts_are_found() -> None:
    assert faults([["a", 0, 0, 9, 20], ["b", 8, 10, 20, 30]], 20) == []
    assert faults([["a", 0, 0, 9, 20], ["b", 5, 10, 21, 30]], 20) == ["b is cut", "a lies on b"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_cut_and_nothing_fails_in_a_browser(
    finished: Path, tmp_path: Path, chromium: Any, width: int, theme: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with closing(sqlite3.connect(run / "lineage.sqlite")) as lineage, lineage:
        lineage.execute("UPDATE samples SET prompt = prompt || ?1, completion = completion || ?1", (HOSTILE,))
    page = write_report(run)
    with looking(chromium, width, theme):
        chromium.get(page.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        # Not inside the tables that scroll, either, on a wide screen.
        wider = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert width < 500 or chromium.execute_script(wider) == 0
        boxes = chromium.execute_script(BOXES)
        assert len(boxes) > 100 and faults(boxes, width) == []
        dark = chromium.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(19, 19, 26)"
        assert dark == (theme == "dark")
        after = "return [...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[4].textContent)"
        ascending = chromium.execute_script(after)
        chromium.execute_script("document.querySelectorAll('.sortable button')[4].click()")
        assert [float(each) for each in ascending] == sorted(map(float, ascending))
        assert [float(each) for each in chromium.execute_script(after)] == sorted(map(float, ascending), reverse=True)
        who = "return document.getElementById('film-who').textContent"
        assert chromium.execute_script(who).startswith("generation 6, ")
        first = "const t = document.getElementById('film-time'); t.value = 0; t.dispatchEvent(new Event('input'));"
        assert chromium.execute_script(first + who) == "base model"
        chromium.execute_script("document.getElementById('film-play').click()")
        WebDriverWait(chromium, 20).until(lambda driver: driver.execute_script(who).startswith("generation 6, "))
        text = "return document.getElementById('film-text').textContent + '\\n' + window.reached"
        assert chromium.execute_script(text).endswith(f"{HOSTILE}\nundefined")


@pytest.mark.parametrize("width", [375, 1440])
def test_charts_answer_the_pointer_and_the_keys(finished: Path, tmp_path: Path, chromium: Any, width: int) -> None:
    page = write_report(Path(shutil.copytree(finished, tmp_path / "run")))
    best = [json.loads(line)["fitness.best"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    with looking(chromium, width, "light"):
        chromium.get(page.as_uri())
        plots = chromium.find_elements(By.CSS_SELECTOR, "[data-chart]")
        for plot in plots:
            ActionChains(chromium).move_to_element_with_offset(plot, plot.size["width"] // 2 - 1, 0).perform()
            (tip,) = chromium.find_elements(By.CLASS_NAME, "tip")
            assert tip.text.startswith("generation 6\n")
            assert tip.rect["x"] >= 0 and tip.rect["x"] + tip.rect["width"] <= width
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        chromium.execute_script("arguments[0].focus()", plots[0])
        ActionChains(chromium).send_keys(Keys.ESCAPE, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
        (tip,) = chromium.find_elements(By.CLASS_NAME, "tip")
        assert tip.text.startswith("generation 2\n") and f"best\n{best[1]:.4g}" in tip.text


def test_200_generations_of_64_open_at_once(tmp_path: Path, chromium: Any) -> None:
    page = write_report(made_up(tmp_path / "run", 200, 64, text="a longer completion " * 50, prompts=1000))
    assert page.stat().st_size < 1_000_000
    with looking(chromium, 1440, "light"):
        chromium.get(page.as_uri())
        assert 1_000 < chromium.execute_script("return document.querySelectorAll('*').length") < 12_000
        assert faults(chromium.execute_script(BOXES), 1440) == []


def test_the_browser_follows_a_run_and_keeps_its_place(tmp_path: Path, chromium: Any) -> None:
    run = made_up(tmp_path / "run", 20, 8, text=HOSTILE)

    def going(done: float) -> Going:
        return Going(done, 40, left=9.0, again=1.0, written=time.time())

    page = write_report(run, going(0.25))
    place = "return [scrollY, document.querySelector('details').open, document.getElementById('film-time').value]"
    with looking(chromium, 1440, "light"):
        chromium.get(page.as_uri())
        chromium.execute_script("window.old = 1; document.querySelector('details').open = true;")
        chromium.execute_script("document.getElementById('film-time').value = 3; scrollTo(0, 1234);")
        write_report(run, going(0.5))
        WebDriverWait(chromium, 20).until(lambda driver: "50% done" in driver.page_source)
        assert chromium.execute_script("return window.old") is None
        assert chromium.execute_script(place) == [1234, True, "3"]
        # What a kill leaves is said to be silent, some time later.
        write_report(run, replace(going(0.5), written=time.time() - 3600))
        WebDriverWait(chromium, 20).until(
            lambda driver: driver.find_element(By.ID, "silent").text.startswith(
                "Nothing has been written for 60 minutes"
            )
        )
        chromium.get(write_report(run).as_uri())
        chromium.execute_script("window.old = 1")
        time.sleep(3)
        assert chromium.execute_script("return window.old") == 1


@pytest.mark.parametrize("width", [375, 1440])
def test_runs_compared_by_the_command_are_on_one_page(
    finished: Path, tmp_path: Path, evolora: Any, chromium: Any, width: int
) -> None:
    other = made_up(tmp_path / ("a-long-name-" * 6), 3, 4)
    code, out, _ = evolora("compare", finished, other, "--to", tmp_path / "page.html")
    assert code == 0 and out.splitlines()[-1] == f"page: {tmp_path / 'page.html'}" and "caution: the runs" in out
    with looking(chromium, width, "dark"):
        chromium.get((tmp_path / "page.html").as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        boxes = chromium.execute_script(BOXES)
        assert len(boxes) > 50 and faults(boxes, width) == []
        assert len(chromium.find_elements(By.CSS_SELECTOR, "[data-chart] .line")) == 6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_contrast(finished: Path, tmp_path: Path, chromium: Any, theme: str) -> None:
    page = write_report(Path(shutil.copytree(finished, tmp_path / "run")))
    with looking(chromium, 1440, theme):
        chromium.get(page.as_uri())
        found = chromium.execute_script(CONTRASTS)
        assert len(found) > 100
        for name, ink, paper in found:
            assert contrast(ink, paper) >= 4.5, name
