"""The report in a real browser: it loads cleanly, filters, opens images, exports, and works from the keyboard."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests import browser, helpers
from tests.report_runs import make_classes, make_comparison, make_run
from yolo_adapruner import report
from yolo_adapruner.core.reasons import DOUBTFUL, DRAWN, DUPLICATE, EASY, OUTLIER, REASONS, SUSPECT
from yolo_adapruner.report.run import SUSPECTS, load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(bool(browser.why_not()), reason=f"needs a browser: {browser.why_not()}"),
]

CARDS = "document.querySelectorAll('.card').length"
OPEN = "document.querySelector('dialog').open"
FOCUSED = "document.activeElement.closest('li')?.dataset.row ?? document.activeElement.id"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a compared run of 200 images, half of them dropped, and one suspect that its detector has seen."""
    home = tmp_path_factory.mktemp("home")
    make_run(home / "run", n=200)
    make_comparison(home / "compare")
    found = load(home / "run")
    suspect = next(i for i in found.order() if found.reasons[i] == "label suspect")
    seen = {"images": {found.outcome.paths[suspect]: [[1, 0.91, 0.1, 0.1, 0.4, 0.4]]}}
    (home / "run" / SUSPECTS).write_text(json.dumps(seen), encoding="utf-8")
    report.write(home / "run", home / "compare")
    return home


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as page:
        yield page


@pytest.fixture
def page(home, chromium):
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open(home / "run" / "report.html")
    yield chromium
    assert chromium.problems == []


def shown(page) -> list[int]:
    return page.js("[...document.querySelectorAll('#grid li')].map(e => Number(e.dataset.row))")


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(page, home):
    assert page.js(CARDS) == 48
    assert "Dropping 50 % gains" in page.texts("h1")[0]
    assert {url for url in page.requests if not url.startswith("data:")} == {(home / "run" / "report.html").as_uri()}
    assert page.js(
        "[...document.querySelectorAll('#grid img')].slice(0, 8).every(i => i.complete && i.naturalWidth === 64)"
    )


def test_no_name_is_run_as_a_script(page):
    page.choose("#search", "attacked")
    page.wait(f"{CARDS} === 1")
    page.click(".card")
    page.wait(OPEN)
    assert "window.attacked = 1</script>.png" in page.js("document.querySelector('.card').title")
    assert page.js("typeof window.attacked") == "undefined"
    assert page.texts("#class option")[1:][0].startswith(("disc", "</script>", '">'))
    assert page.js("document.querySelectorAll('script').length") == 2


def test_it_filters_by_reason_class_weight_and_name_and_counts_what_is_left(page):
    data = page.js("JSON.parse(document.getElementById('data').textContent)")
    page.click("#reasons button:nth-child(2)")
    name = page.texts("#reasons button:nth-child(2)")[0].split(" ", 1)[0]
    of_reason = [n for n, reason in enumerate(data["reasons"]) if reason.startswith(name)]
    assert shown(page) == of_reason
    assert page.js("document.querySelector('#reasons button:nth-child(2)').getAttribute('aria-pressed')") == "true"
    page.choose("#class", "2")
    of_both = [n for n in of_reason if 2 in data["classes"][n]]
    assert shown(page) == of_both
    assert 0 < len(of_both) < len(of_reason)
    page.choose("#high", "0.001")
    light = [n for n in of_both if data["columns"]["weight"][n] <= 0.001]
    page.wait(f"{CARDS} === {len(light)}")
    assert shown(page) == light
    assert page.texts("#count") == [f"{len(light)} of 100 images"]
    page.choose("#search", "no such name")
    page.wait(f"{CARDS} === 0")
    assert page.js("document.getElementById('export').disabled")


def test_it_sorts_and_shows_more(page):
    assert shown(page) == list(range(48))
    page.click("#more")
    assert len(shown(page)) == 96
    assert page.js(FOCUSED) == "48"
    page.choose("#sort", "highest score")
    assert shown(page)[:3] == [99, 98, 97]
    page.choose("#sort", "most suspicious")
    suspicion = page.js("JSON.parse(document.getElementById('data').textContent).suspicion")
    assert suspicion[shown(page)[0]] == max(value for value in suspicion if value is not None)


def test_a_click_opens_an_image_with_its_boxes_history_and_numbers(page):
    first = shown(page)[0]
    page.click(".card")
    page.wait(OPEN)
    assert page.wait("document.querySelector('#picture img').naturalWidth") == 64
    assert page.js("document.querySelectorAll('#picture rect.truth').length") >= 1
    words = " ".join(page.texts("#details"))
    assert "between the epochs 4 and 7" in words
    assert "joint epochs seen" in words
    assert page.js("document.querySelector('#details svg').getAttribute('aria-label')").startswith("Weight over")
    page.click("#details .actions input")
    assert page.js("document.querySelectorAll('#picture rect.truth').length") == 0
    page.click("#close")
    page.wait(f"!{OPEN}")
    page.wait(f"({FOCUSED}) === '{first}'")


def test_a_suspect_shows_what_the_detector_sees_and_a_duplicate_what_it_is_like(page):
    for reason, kind in (("label suspect", "#picture rect.seen"), ("duplicate", "#picture figure:nth-child(2) img")):
        page.js(f"[...document.querySelectorAll('.card')].find(c => c.textContent.includes({reason!r})).click()")
        page.wait(f"!!document.querySelector({kind!r})")
        page.press("Escape")
        page.wait(f"!{OPEN}")
    assert [text.split(": ")[0] for text in page.texts("#picture figcaption")] == ["dropped", "kept"]
    assert page.js("document.querySelectorAll('#picture figure:nth-child(2) rect.truth').length") > 0


SAID = {
    SUSPECT: r"Label suspect: its labels are wrong with P\s(=\s0\.\d+|>\s0\.999) by the judge; most likely .+ box\.",
    DUPLICATE: r"Duplicate of \S+, which was kept: the nearest image shows the same with P\s=\s0\.97\.",
    DOUBTFUL: r"Doubtful: its labels are wrong with P\s=\s0\.38 by the judge, most likely .+ box; more images had .+\.",
    DRAWN: r"Drawn by lot: nothing speaks against it, but more images had to go than were suspect or there twice\.",
    EASY: r"Easy: its signal of 0\.\d+ nats is not above the median of 0\.\d+\.",
    OUTLIER: r"Outlier: its signal of 0\.\d+ nats is above the median of 0\.\d+, and nothing says that its labels .+\.",
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_is_said_with_the_numbers_behind_it(page, reason):
    page.js(
        f"[...document.querySelectorAll('#reasons button')].find(b => b.textContent.startsWith({reason!r})).click()"
    )
    assert page.js("document.getElementById('meaning').textContent.length") > 30
    page.click(".card")
    page.wait(OPEN)
    assert re.fullmatch(SAID[reason], page.texts("#details p")[0])


def test_it_works_from_the_keyboard_alone(page):
    page.js("document.querySelector('.card').focus()")
    page.press("ArrowRight")
    assert page.js(FOCUSED) == "1"
    page.press("ArrowDown")
    below = int(page.js(FOCUSED))
    assert below > 1
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.wait(OPEN)
    page.press("ArrowRight")
    assert page.texts("#place") == [f"{below + 2} of 100"]
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    assert page.texts("#place") == [f"{below} of 100"]
    page.press("Escape")
    page.wait(f"!{OPEN}")
    page.wait(f"({FOCUSED}) === '{below - 1}'")
    page.press("Tab")  # its tick box comes next
    page.press(" ")
    assert page.texts("#count") == ["100 images, 1 ticked"]


def exported(page, folder) -> list[str]:
    page.downloads_to(folder)
    page.click("#export")
    file = folder / "selection.txt"
    page.wait(lambda: file.is_file() and file.read_text(encoding="utf-8").endswith("\n"))
    return file.read_text(encoding="utf-8").splitlines()


def test_what_is_filtered_is_exported_where_nothing_is_ticked(page, home, tmp_path):
    page.click("#reasons button:nth-child(3)")
    total = int(page.texts("#reasons button:nth-child(3) small")[0])
    paths = exported(page, tmp_path)
    assert len(paths) == total
    assert set(paths) <= set(
        (home / "run" / "dropped.txt").read_bytes().decode("utf-8", "backslashreplace").splitlines()
    )


def test_what_is_ticked_is_exported_and_copied(page, tmp_path):
    for row in (0, 2):
        page.click(f"[data-row='{row}'] input")
    assert page.texts("#export, #copy") == ["Copy 2 paths", "Export 2 paths"]
    data = page.js("JSON.parse(document.getElementById('data').textContent)")
    wanted = [data["root"] + data["paths"][n] for n in (0, 2)]
    assert exported(page, tmp_path) == wanted
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.click("#copy")
    page.wait("document.getElementById('copy').textContent === 'Copied'")
    assert page.js("navigator.clipboard.readText()") == "\n".join(wanted)
    page.click("#tick")
    assert page.texts("#count") == ["100 images"]


def test_an_image_that_the_page_has_no_copy_of_is_shown_from_disk(tmp_path, chromium):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "report.html"
    from yolo_adapruner.report import page as pages
    from yolo_adapruner.report.rows import Limits

    file.write_text(pages.page(load(tmp_path / "run"), limits=Limits(pictures=1, picture_bytes=1)), encoding="utf-8")
    chromium.open(file)
    assert chromium.js("document.querySelectorAll('#grid img').length") == 0
    for name in ("caf", "猫", "attacked", "onload"):  # the first has bytes that are no text
        chromium.choose("#search", name)
        chromium.wait(f"{CARDS} === 1")
        chromium.click(".card")
        chromium.wait("document.querySelector('#picture img').naturalWidth === 64")
        chromium.press("Escape")
        chromium.wait(f"!{OPEN}")


def test_an_image_of_a_classification_run_is_shown_with_its_class(tmp_path, chromium):
    make_classes(tmp_path / "run")
    chromium.problems.clear()
    chromium.open(report.write(tmp_path / "run"))
    chromium.click(".card")
    chromium.wait(OPEN)
    said = chromium.texts("#details p")
    assert said[0].startswith("Outlier: its signal of 9 nats is above the median of 5,")
    assert said[-1] == "It is labelled ant."
    assert "box" not in " ".join(said)
    assert chromium.texts("#class option") == ["any", "ant (6)"]
    assert chromium.problems == []


def test_the_docs_picture_is_taken_of_an_opened_image_and_is_small(home, tmp_path):
    target = tmp_path / "report.jpg"
    script = Path(__file__).resolve().parents[1] / "docs" / "site" / "report_picture.py"
    done = helpers.python(str(script), str(home / "run"), str(target), "--open", DUPLICATE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(target) as picture:
        assert picture.size == (1280, 800)
        assert max(picture.convert("RGB").getpixel((80, 400))) < 60  # the viewer's dark ground
    assert target.stat().st_size < 150_000


def test_of_fifty_thousand_images_the_page_still_filters_and_sorts(tmp_path, chromium):
    make_run(tmp_path / "run", n=50_000, share=0.9, images=False)
    chromium.problems.clear()
    chromium.open(report.write(tmp_path / "run"))
    assert chromium.texts("#count") == ["45,000 images"]
    chromium.choose("#sort", "most suspicious")
    assert chromium.js(CARDS) == 48
    chromium.choose("#search", "04999")
    chromium.wait(f"0 < {CARDS} && {CARDS} <= 10")
    chromium.choose("#search", "")
    chromium.wait(f"{CARDS} === 48")
    chromium.click("#tick")
    assert chromium.texts("#export") == ["Export 45,000 paths"]
    assert chromium.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_sideways_and_text_stands_out_from_its_ground(home, chromium, width, dark):
    chromium.open(home / "run" / "report.html", width=width, height=800, dark=dark, phone=width < 500)
    assert chromium.js("document.documentElement.scrollWidth <= innerWidth")
    ratios = chromium.js(CONTRAST)
    assert len(ratios) > 20
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda item: item[1])[:5]


# WCAG's contrast of each text with the first ground below it that has a colour.
CONTRAST = """
(() => {
  const light = (c) => {
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = c.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = {};
  for (const e of document.querySelectorAll('main *, header *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [light(svg ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
    const name = e.tagName + '.' + (e.getAttribute('class') ?? '') + ' ' + e.textContent.trim().slice(0, 30);
    found[name] = (a + .05) / (b + .05);
  }
  return found;
})()
"""
