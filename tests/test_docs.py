"""The documentation: what it links to is there, and the pages for users stay short."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w./])docs/[\w./-]+\.(?:md|png|json)")
MOST_LINES, MOST_COLUMNS = 110, 125


def missing(page: Path) -> list[str]:
    """The relative links and images of a page, and the files under docs/ that it names, that are not there."""
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in LINK.findall(CODE.sub("", text)) if "://" not in link]
    lost = [link for link in links if link and not (page.parent / link).exists()]
    return lost + [name for name in NAMED.findall(text) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    assert missing(page) == []


def test_a_lost_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](gone.md#part) ![b](gone.png) [c](page.md) [d](#part) [e](https://example.org/gone.md)\n"
        "`[f](code.md)`\n```\n[g](fence.md)\n```\ndocs/gone.md, docs/results.md\n"
    )
    assert missing(page) == ["gone.md", "gone.png", "docs/gone.md"]


@pytest.mark.parametrize("name", ["results.md", "performance.md"])
def test_a_page_for_users_takes_two_screens(name: str) -> None:
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > MOST_COLUMNS] == []


def test_every_file_of_the_log_is_in_its_index() -> None:
    index = (ROOT / "docs" / "log" / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "docs" / "log").glob("*.md") if path.name != "README.md"]
    assert [name for name in files if f"]({name})" not in index] == []


def test_the_page_of_options_is_as_the_options_are() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "options_page.py"))["page"]()
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == page, "python scripts/options_page.py writes it anew"
