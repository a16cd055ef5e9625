"""The report of a real run, by the command and in a real browser."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from evolora.runs.report.page import write_report

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
        f"    if 'Running: 1 of 6 generations' in pathlib.Path({str(tmp_path / 'run' / 'report.html')!r}).read_text():\n"
        "        raise ValueError('enough')\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    code, _, error = evolora("train", *toy.options(tmp_path / "run", reward=f"{tmp_path / 'fails.py'}:reward"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert code == 1 and "enough" in error
    assert "The run is not finished: 1 generation so far; validation" in page and "data-written" not in page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_cut_and_nothing_fails_in_a_browser(
    finished: Path, tmp_path: Path, chromium: Any, width: int, theme: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with closing(sqlite3.connect(run / "lineage.sqlite")) as lineage, lineage:
        lineage.execute("UPDATE samples SET prompt = prompt || ?1, completion = completion || ?1", (HOSTILE,))
    page = write_report(run)
    chromium.get_log("browser")
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        chromium.get(page.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
        # Not inside the tables that scroll, either, on a wide screen.
        wider = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert width < 500 or chromium.execute_script(wider) == 0
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
        text = "return document.getElementById('film-text').textContent + '\\n' + window.reached"
        assert chromium.execute_script(text).endswith(f"{HOSTILE}\nundefined")
        assert chromium.get_log("browser") == []
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
