"""The report: what it says of runs that are made up, how large it gets, and that text stays text."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import HOSTILE, OPTIONS, made_up

from evolora.errors import InputError
from evolora.files import read_checked, write_checked
from evolora.runs.report.charts import Line, chart
from evolora.runs.report.data import read_run
from evolora.runs.report.page import write_report
from evolora.runs.report.texts import film, rows, shared


class Elements(HTMLParser):
    """The page's tags, and the text that is seen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.cdata_elem is None:  # in no script and no style
            self.text.append(data)


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_a_run_of_200_generations_of_64_stays_small(tmp_path: Path) -> None:
    page = page_of(made_up(tmp_path / "run", 200, 64, text="a longer completion " * 50, prompts=1000))
    assert len(page.encode()) < 1_000_000 and len(Elements(page).tags) < 12_000
    assert "The worst 400 of 1000" in page and "characters…]" in page


def test_markup_in_prompts_and_completions_stays_text(tmp_path: Path) -> None:
    plain = Elements(page_of(made_up(tmp_path / "plain", 3, 4, text="a plain text of some words, as long")))
    hostile = Elements(page_of(made_up(tmp_path / "hostile", 3, 4, text=HOSTILE)))
    assert hostile.tags == plain.tags
    assert any("<script>alert(1)</script>" in text for text in hostile.text)


def test_a_run_without_any_score_draws_nothing_and_says_so(tmp_path: Path) -> None:
    page = page_of(made_up(tmp_path / "run", 3, 4, fitness=math.nan))
    text = " ".join(Elements(page).text)
    assert "nothing was scored on the test split" in text and "not scored" in page and "nan" not in text.lower()
    assert "Not measured: no generation has a score" in text and "Not measured: no generation has both a KL" in text


def test_the_gain_has_its_interval_and_evolution_and_rl_their_own(tmp_path: Path) -> None:
    text = " ".join(" ".join(Elements(page_of(made_up(tmp_path / "run", 3, 4))).text).split())
    assert "the winner is better than the base model" in text and "+0.500" in text
    assert "3 0.500 0.503 0.502 0.501 0.500 0.333 +0.050 +0.100" in text


def test_the_kl_is_said_to_be_from_what_the_run_started_from(tmp_path: Path) -> None:
    for name, options, reference in (
        ("base", OPTIONS, "the base model"),
        ("init", f'{OPTIONS}\n[lora]\ninit = [\n    "sft",\n]\n', "the adapter that it started from"),
    ):
        page = page_of(made_up(tmp_path / name, 3, 4, options=options))
        assert set(re.findall("KL to ([a-z ]+)", page)) == {reference}


def test_where_nobody_beats_the_base_no_gain_is_claimed(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 3, 4)
    summary = read_checked(run / "summary.json") or {}
    write_checked(run / "summary.json", {**summary, "winner": {**summary["winner"], "id": 0}})
    page = page_of(run)
    assert "nobody beat the base model, which is the winner.</p>" in page and "All 1 of the family" in page


def test_an_unfinished_run_with_damaged_files_has_a_report(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 3, 4)
    (run / "summary.json").unlink()
    (run / "lineage.sqlite").write_bytes(b"no database at all")
    text = " ".join(Elements(page_of(run)).text)
    assert "The run is not finished: 3 generations so far" in text and "lineage.sqlite: missing or damaged" in text


def test_the_data_are_read_as_they_are(tmp_path: Path) -> None:
    run = read_run(made_up(tmp_path / "run", 2, 4))
    assert run.base is not None and run.base.id == 0 and run.refiner == "ppo" and len(run.members) == 9
    assert run.options == {"model": 'name = "a-model"', "refiner": 'type = "ppo"'}
    with pytest.raises(InputError, match="expected the folder of a run"):
        read_run(tmp_path)


def test_what_all_prompts_share_does_not_hide_what_they_ask(tmp_path: Path) -> None:
    chat = ("<|user|> You are a helpful assistant.\n", "\nAnswer with one word. <|assistant|>\n")
    assert shared([f"{chat[0]}{each}{chat[1]}" for each in ("What is 2?", "Is it so?")]) == chat
    assert shared(["Translate 'chat' to English:", "Translate 'chien' to English:"]) == ("", "")
    assert shared(["the same prompt for everybody"] * 3) == ("", "")
    run = read_run(made_up(tmp_path / "run", 2, 4, text=f"is one number {chat[1]}"))
    table = rows(run)
    assert [row["prompt"] for row in table["rows"]] == [f"{number}" for number in range(8)]
    assert table["end"].endswith(chat[1]) and film(run)[0]["prompt"].endswith(chat[1]) and film(run)[0]["label"] == "0"


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 3, 4)
    summary = read_checked(run / "summary.json") or {}
    write_checked(run / "summary.json", {**summary, "generations": 2})
    assert "The run is not finished: 3 generations so far" in page_of(run)


def test_a_chart_has_gaps_where_nothing_was_measured() -> None:
    drawn = str(chart([1, 2, 3, 4], [Line("a", [0.0, None, 1.0, 1.0], "blue", dashed=True)], x_name="x"))
    assert 'd="M0.0 1000.0M666.7 0.0L1000.0 0.0"' in drawn
    assert chart([1, 2], [Line("a", [None, None], "blue")], x_name="x") is None
    assert json.dumps(str(chart([1], [Line("a", [0.3], "blue")], x_name="x"))).count("NaN") == 0
