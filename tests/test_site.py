"""The documentation site and the package page: they are built, and no link of theirs leads nowhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "build_docs.py"


@pytest.fixture(scope="module")
def build_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path, build_docs: ModuleType) -> None:
    pytest.importorskip("zensical", reason="the extra evolora[docs] is not installed")
    pytest.importorskip("nbconvert", reason="the extra evolora[docs] is not installed")
    done = subprocess.run([sys.executable, SCRIPT, "--to", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    # Every page is reached from the first one's navigation.
    reached = {(tmp_path / "site" / link).resolve() for link in build_docs.Page(home).links if "://" not in link}
    pages = {path for path in (tmp_path / "site").rglob("*.html") if path.name != "404.html"}
    assert {str(page.relative_to(tmp_path)) for page in pages - reached} == set()


def test_what_is_broken_on_a_page_is_named(tmp_path: Path, build_docs: ModuleType) -> None:
    (tmp_path / "other.html").write_text('<h1 id="here">Other</h1>')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#here">x</a><a href="other.html#gone">x</a><a href="gone.html">x</a><img src="gone.png">'
        '<a href="https://example.org">x</a><script src="https://example.org/x.js"></script>'
        f'<a href="{build_docs.REPOSITORY}/blob/main/README.md#x">x</a>'
        f'<a href="{build_docs.REPOSITORY}/tree/main/gone">x</a>'
    )
    assert list(build_docs.broken(tmp_path)) == [
        "page.html: gone.html: there is no such file",
        "page.html: gone.png: there is no such file",
        "page.html: loads https://example.org/x.js",
        f"page.html: {build_docs.REPOSITORY}/tree/main/gone: the repository has no such file",
        "page.html: other.html#gone: there is no such anchor",
    ]


def test_links_that_leave_the_docs_are_mended(tmp_path: Path, build_docs: ModuleType) -> None:
    page, source = tmp_path / "log" / "page.md", ROOT / "docs" / "log" / "page.md"
    page.parent.mkdir()
    page.write_text("[a](../../scripts/real.toml) ![b](../screen-62.svg) ![c](../../docs/a.svg) [d](../../tests)")
    build_docs.bring_in(page, source, tmp_path / "pictures")
    assert page.read_text() == (
        f"[a]({build_docs.REPOSITORY}/blob/main/scripts/real.toml) ![b](../screen-62.svg) ![c](../../docs/a.svg) "
        f"[d]({build_docs.REPOSITORY}/tree/main/tests)"
    )
    page.write_text("[a](../tutorials/notebook.ipynb) [b](https://example.org/x.ipynb)")
    build_docs.bring_in(page, source, tmp_path / "pictures")
    assert page.read_text() == "[a](../tutorials/notebook.md) [b](https://example.org/x.ipynb)"
    page.write_text("![b](../../benchmarks/results/zen4/scaling.png)")
    build_docs.bring_in(page, source, tmp_path / "pictures")
    (copy,) = (tmp_path / "pictures").iterdir()
    assert (page.parent / re.findall(r"\((.*)\)", page.read_text())[0]).resolve() == copy.resolve()
    page.write_text("[a](../../gone.md)")
    with pytest.raises(SystemExit, match=r"docs/log/page.md: ../../gone.md: there is no such file"):
        build_docs.bring_in(page, source, tmp_path / "pictures")


def test_the_package_page_has_no_relative_link(build_docs: ModuleType) -> None:
    pytest.importorskip("hatch_fancy_pypi_readme", reason="the extra evolora[test] is not installed")
    renderer = pytest.importorskip("readme_renderer.markdown", reason="the extra evolora[test] is not installed")
    command = [sys.executable, "-m", "hatch_fancy_pypi_readme"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = build_docs.Page(renderer.render(text))
    assert len(page.loads) >= 2 and len(page.links) >= 10
    own = re.compile(r"https://(?:raw\.githubusercontent|github)\.com/evolora/evolora/(?:blob/|tree/)?main/([^#]*)")
    for link in [*page.loads, *(link for link in page.links if not link.startswith("#"))]:
        assert link.startswith("https://")
        if found := own.match(link):
            assert (ROOT / found[1]).exists(), link
    assert all(link.startswith("https://raw.githubusercontent.com/") for link in page.loads)
