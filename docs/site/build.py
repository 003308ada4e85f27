"""Builds docs/ as a site that works from disk, and refuses it where a link leads nowhere or a page asks the network.

    python docs/site/build.py [OUT]

Collects the pages, those of the project's root included, into a temporary folder, has Zensical build them with strict
links, and checks the HTML that came out. Knows nothing of what the pages say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from latex2mathml.converter import convert

HERE = Path(__file__).resolve().parent
DOCS, ROOT = HERE.parent, HERE.parent.parent
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "data/README.md": "digits-set.md"}
"""Pages that lie elsewhere in the project -> their place in the site."""
ASSETS = {".jpg", ".png", ".svg", ".json", ".jsonl", ".txt", ".yaml"}
STAND_IN = "https://unpkg.com/iframe-worker/shim"  # what Zensical's offline mode would load from the network

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def main(arguments: list[str]) -> int:
    """Build into the folder named, `site` by default, print what is wrong, and return 0 where nothing is."""
    out = Path(arguments[0] if arguments else "site").resolve()
    troubles = build(out)
    for line in troubles:
        print(line, file=sys.stderr)
    print(f"{len(troubles)} troubles" if troubles else f"built {out / 'index.html'}")
    return int(bool(troubles))


def build(out: Path, docs: Path = DOCS) -> list[str]:
    """Build the site of `docs` into `out`, replacing what is there, and return what is wrong with it, a line each."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        collect(docs, work / "pages")
        shutil.copyfile(HERE / "zensical.toml", work / "zensical.toml")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(work / "zensical.toml")]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            words = re.sub(r"\x1b\[[\d;]*m", "", done.stderr + done.stdout)
            return [line for line in words.partition("Traceback")[0].splitlines() if line.strip()] or [words]
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)
    _serve_from_disk(out)
    return [*missing_pages(out, docs), *network_calls(out), *dead_links(out)]


def collect(docs: Path, pages: Path) -> None:
    """Copy pages and pictures into one folder, formulas as MathML, links to what the site lacks as plain names."""
    sources = {page.relative_to(docs).as_posix(): page for page in docs.rglob("*.md") if HERE not in page.parents}
    sources |= {target: ROOT / name for name, target in FROM_ROOT.items()}
    for name, source in sources.items():
        target = pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(_formulas(_links(text, source, name, docs)), encoding="utf-8")
    for file in docs.rglob("*"):
        if file.suffix in ASSETS and HERE not in file.parents:
            (pages / file.relative_to(docs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, pages / file.relative_to(docs))
    shutil.copyfile(HERE / "site.css", pages / "site.css")


def _links(text: str, source: Path, name: str, docs: Path) -> str:
    """Turn links within the project into links within the site; what is in a block of code is none."""

    def mend(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        place = _place_in_site(Path(os.path.normpath(source.parent / path)), docs)
        if place is None:
            return words if words.startswith("`") else f"`{words}`"
        there = os.path.relpath(place, Path(name).parent).replace(os.sep, "/")
        return f"{mark}[{words}]({there}{hash_}{anchor})"

    parts = _BLOCK.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(mend, part) for part in parts)


def _place_in_site(path: Path, docs: Path) -> str | None:
    """Where a file of the project is in the site; None for one that is in the project and not in the site."""
    if path.is_relative_to(docs):
        place = path.relative_to(docs).as_posix()
        return f"{place}/README.md" if path.is_dir() else place
    if not path.exists():
        return f"{path.name}-is-missing"  # for the strict build to refuse
    return FROM_ROOT.get(path.relative_to(ROOT).as_posix()) if path.is_relative_to(ROOT) else None


def _formulas(text: str) -> str:
    return _FORMULA.sub(lambda match: f"<div>{convert(match[1].strip(), display='block')}</div>", text)


def _serve_from_disk(out: Path) -> None:
    """Put our own stand-in for workers where Zensical names one on the network."""
    shutil.copyfile(HERE / "worker.js", out / "assets" / "javascripts" / "worker.js")
    for page in out.rglob("*.html"):
        up = "../" * (len(page.relative_to(out).parts) - 1)
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(STAND_IN, f"{up}assets/javascripts/worker.js"), encoding="utf-8")


# What is checked afterwards


class _Page(HTMLParser):
    """The anchors of a page, what it links to, and what a browser would load with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes that matter."""
        values = {key: value for key, value in attrs if value}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


def _pages(out: Path) -> Iterator[tuple[Path, _Page]]:
    for file in sorted(out.rglob("*.html")):
        if file.name != "404.html":  # its links are meant for the root of a server
            yield file, _Page(file.read_text(encoding="utf-8"))


def missing_pages(out: Path, docs: Path) -> list[str]:
    """Name the pages that the navigation does not lead to."""
    nav = (HERE / "zensical.toml").read_text(encoding="utf-8")
    names = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md") if HERE not in page.parents]
    return [f"docs/{name} is not in the navigation of docs/site/zensical.toml" for name in names if name not in nav]


def network_calls(out: Path) -> list[str]:
    """Name what pages and style sheets would load from elsewhere."""
    found = [
        f"{file.relative_to(out)} loads {url}"
        for file, page in _pages(out)
        for url in page.loaded
        if urlsplit(url).netloc
    ]
    for sheet in out.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(out)} loads {url}" for url in urls]
    return found


def dead_links(out: Path) -> list[str]:
    """Name the links and pictures that lead nowhere, anchors included."""
    pages = dict(_pages(out))
    found = []
    for file, page in pages.items():
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                found.append(f"{file.relative_to(out)} links to {url}, which is not there")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
