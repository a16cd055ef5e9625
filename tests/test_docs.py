"""The documentation: what it links to is there, and the pages for users stay short."""

import argparse
import re
import runpy
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from evolora.cli import _parser
from evolora.runs.parts import PARTS, Vocabulary

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w./])docs/[\w./-]+\.(?:md|png|json)")
BLOCK = re.compile(r"^```.*?^```|`[^`\n]+`|^    .*$", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]")
# Other programs' options, and words that stand for any of ours.
OTHERS = {"--index-url", "--only", "--base-rates", "--key", "--no", "--part.name"}
OTHERS |= {"--head", "--port", "--address", "--temp-dir", "--min-worker-port", "--autoscaling-config"}  # ray's
OTHERS |= {
    "--extra-index-url",
    "--generate",
    "--new",
    "--repeats",
    "--rows",
    "--new-tokens",
    "--dealt",
    "--tiny",
    "--elsewhere",
    "--seconds",
}  # pip's, and of benchmarks
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


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)


def test_every_option_that_a_page_names_is_there() -> None:
    pairs = product(PARTS["strategy"], PARTS["refiner"])
    words = {
        f"--{word.replace('_', '-')}"
        for one, two in pairs
        for word in Vocabulary({"strategy": one, "refiner": two}).words
    }
    known = words | set(options_of(_parser())) | {"--help-all", "--dry-run", "--resume", "--config"} | OTHERS
    lost = [
        f"{page.relative_to(ROOT)}: {option}"
        for page in PAGES
        if "log" not in page.relative_to(ROOT).parts  # whose words are of then
        for code in BLOCK.findall(page.read_text(encoding="utf-8"))
        for option in OPTION.findall(code)
        if option not in known and option.replace("--no-", "--") not in known
    ]
    assert lost == []


def test_a_version_is_the_same_wherever_it_stands() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert newest == version
