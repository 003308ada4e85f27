"""The reference pages say what the code has, links lead somewhere, and the site builds without the network."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_adapruner.config import PruneConfig, RunConfig

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md"]
)


def script(name):
    """A script of docs/site, as a module."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = script("reference")


@pytest.mark.parametrize("page", ["settings.md", "cli.md", "api.md"])
def test_a_reference_page_is_what_the_code_says(page):
    written = reference.pages()[ROOT / "docs" / page]
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == written, "run python docs/site/reference.py"


def test_every_setting_has_a_meaning():
    for model in (PruneConfig, RunConfig):
        assert [name for name, field in model.model_fields.items() if not field.description and name != "prune"] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


# The site


@pytest.fixture(scope="module")
def site():
    if sys.version_info < (3, 11):
        pytest.skip("Zensical needs Python 3.11")
    return script("build")


@pytest.fixture(scope="module")
def built(site, tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "out"
    return out, site.build(out)


def test_the_site_builds_with_strict_links_and_nothing_from_elsewhere(built):
    out, troubles = built
    assert troubles == []
    for page in (
        "index",
        "tutorial",
        "own-data",
        "faq",
        "method",
        "settings",
        "cli",
        "api",
        "results/digits",
        "changelog",
    ):
        assert (out / f"{page}.html").is_file()


def test_formulas_are_mathml_and_pages_load_the_site_s_own_worker(built):
    out, _ = built
    method = (out / "method.html").read_text(encoding="utf-8")
    assert method.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 2
    assert "\\sum" not in method
    for page in out.rglob("*.html"):
        assert "iframe-worker" not in page.read_text(encoding="utf-8")
    assert "location.protocol" in (out / "assets" / "javascripts" / "worker.js").read_text(encoding="utf-8")


SEARCH = """<script>
const roots = () => [...document.querySelectorAll("*")].map((each) => each.shadowRoot);
const within = () => roots().find((root) => root?.querySelector("input"));
setTimeout(() => document.querySelector("[class*=search] button, button[class*=search]").click(), 500);
setTimeout(() => {
  const field = within().querySelector("input");
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, "duplicates");
  field.dispatchEvent(new Event("input", { bubbles: true }));
}, 1500);
setTimeout(() => { document.title = "found " + within().querySelectorAll("a").length; }, 4000);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_search_works_from_disk(built):
    page = built[0] / "search-from-disk.html"
    page.write_text((built[0] / "index.html").read_text(encoding="utf-8").replace("</body>", SEARCH), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run(["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    page.unlink()
    found = re.search(r"<title>found (\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    assert int(found[1]) >= 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gone](gone.md)", "page does not exist"),
        ("[gone](index.md#nowhere)", "anchor does not exist"),
        ("[gone](../nothing.py)", "nothing.py-is-missing"),
        ("![gone](gone.png)", "gone.png"),
        ('<img src="https://example.org/a.png">', "loads https://example.org/a.png"),
    ],
)
def test_a_dead_link_and_a_call_to_the_network_are_found(site, tmp_path, text, words):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Home\n\n{text}\n", encoding="utf-8")
    assert words in "\n".join(site.build(tmp_path / "out", docs))


def test_a_page_that_the_navigation_lacks_is_named(site, tmp_path):
    (tmp_path / "lost.md").write_text("# Lost\n", encoding="utf-8")
    assert site.missing_pages(tmp_path, tmp_path) == [
        "docs/lost.md is not in the navigation of docs/site/zensical.toml"
    ]


def test_pictures_are_small_and_each_is_shown():
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert picture.name in pages, f"no page shows {picture.name}"
