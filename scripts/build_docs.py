"""The documentation site: `python scripts/build_docs.py` builds it from docs/, without network, into build/site.

Any broken link fails the build: between pages, to an anchor, to a picture, to a file of the repository. So does a page
that would load something from elsewhere."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/evolora/evolora"
PICTURES = (".png", ".svg", ".jpg")
LINK = re.compile(r"(?<=\]\()(\.\./[^)\s#]*)")
NOTEBOOK = re.compile(r"(?<=\]\()([^)\s:#]*)\.ipynb(?=[)#])")
# `rel` of the <link>s that a browser loads.
LOADED = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the documentation site and check its links.")
    parser.add_argument("--to", type=Path, default=ROOT / "build", help="folder; the site is FOLDER/site")
    folder: Path = parser.parse_args(arguments).to
    for name in ("docs", "site"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    for page in sorted((folder / "docs").rglob("*.md")):
        bring_in(page, DOCS / page.relative_to(folder / "docs"), folder / "docs" / "pictures")
    notebooks = list(map(str, (folder / "docs").rglob("*.ipynb")))
    if notebooks:
        tool("nbconvert", "--to", "markdown", "--log-level", "WARN", *notebooks, cwd=folder)
    tool("zensical", "build", "--strict", "--clean", cwd=folder)
    faults = list(broken(folder / "site"))
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{folder / 'site' / 'index.html'}: {len(faults)} broken links")
    return 1 if faults else 0


def tool(*words: str, cwd: Path) -> None:
    """Run a module of this Python, and end where it fails."""
    code = subprocess.run([sys.executable, "-m", *words], cwd=cwd, check=False).returncode
    if code:
        sys.exit(code)


def bring_in(page: Path, source: Path, pictures: Path) -> None:
    """Mend links of a page's copy: to notebooks, which are pages here, and those that leave docs/: a picture comes
    along, another file has an address."""

    def mended(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if target.is_relative_to(DOCS):
            return found[1]
        if not target.exists():
            sys.exit(f"{source.relative_to(ROOT)}: {found[1]}: there is no such file")
        inside = target.relative_to(ROOT).as_posix()
        if target.suffix not in PICTURES:
            return f"{REPOSITORY}/{'tree' if target.is_dir() else 'blob'}/main/{inside}"
        pictures.mkdir(exist_ok=True)
        copy = shutil.copy(target, pictures / inside.replace("/", "-"))
        return Path(os.path.relpath(copy, page.parent)).as_posix()

    text = NOTEBOOK.sub(r"\1.md", page.read_text(encoding="utf-8"))
    page.write_text(LINK.sub(mended, text), encoding="utf-8")


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src", "data", "poster"):
            if name in given:
                linked = tag == "a" or (tag == "link" and not LOADED & set(given.get("rel", "").split()))
                (self.links if linked else self.loads).append(given[name])


def broken(site: Path) -> Iterator[str]:
    """Every link of the built pages that leads nowhere, and whatever they would load from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin where the site is served
            continue
        for link in sorted({*page.links, *page.loads}):
            address, name = urlsplit(link), path.relative_to(site)
            if address.scheme in ("mailto", "data", "javascript"):
                continue
            if address.netloc:
                inside = re.fullmatch(rf"{REPOSITORY}/(?:blob|tree)/main/([^#?]*).*", link)
                if link in page.loads:
                    yield f"{name}: loads {link}"
                elif inside and not (ROOT / unquote(inside[1])).exists():
                    yield f"{name}: {link}: the repository has no such file"
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not target.is_file():
                yield f"{name}: {link}: there is no such file"
            elif address.fragment and target in pages and unquote(address.fragment) not in pages[target].anchors:
                yield f"{name}: {link}: there is no such anchor"


if __name__ == "__main__":
    sys.exit(main())
