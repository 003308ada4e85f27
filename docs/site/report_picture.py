"""Takes the picture of a run's report that the docs show, in headless Chromium.

    yolo-adapruner train cfg/yolov3-tiny.yaml --prune 0.1
    python docs/site/report_picture.py runs/adaprune/train docs/pictures/report.jpg

By default the picture is of the gallery; `--open REASON` opens the first image that was dropped for it, `--section`
names another part of the page. Light, 1280 pixels wide; a target that ends in .jpg becomes a JPEG.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests import browser
from yolo_adapruner.core.reasons import REASONS
from yolo_adapruner.errors import AdaPrunerError
from yolo_adapruner.report import write

WIDTH, HEIGHT = 1280, 800
MOST_COLOURS, QUALITY = 256, 82
_OPEN = "[...document.querySelectorAll('.card')].find(c => c.textContent.includes({})).click()"
_SCROLL = "document.getElementById({}).scrollIntoView({{behavior: 'instant'}})"
_SETTLED = "new Promise(done => setTimeout(() => done(true), 500))"  # lazy images have no event to wait for


def main(arguments: list[str]) -> int:
    """Write the report to a place of its own, open it, and save what is seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="finished run")
    parser.add_argument("target", type=Path, metavar="OUT", help=".png or .jpg to write")
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="a comparison of it, whose verdict comes first")
    parser.add_argument("--section", default="gallery", help="part of the page: verdict, accuracy, gallery, drift, …")
    parser.add_argument("--open", choices=REASONS, help="open the first image that was dropped for this reason")
    parser.add_argument("--height", type=int, default=HEIGHT)
    args = parser.parse_args(arguments)
    if why := browser.why_not():
        print(why, file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / args.run.absolute().name  # the page is titled after it
            home.mkdir()
            page = write(args.run, args.compare, target=home / "report.html")
            save(photograph(page, args.section, args.open, args.height), args.target)
    except AdaPrunerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def photograph(page: Path, section: str, reason: str | None, height: int) -> Image.Image:
    """Return what a window shows of a page, scrolled to a section, with an image opened where a reason is given."""
    with browser.chromium() as window:
        window.open(page, width=WIDTH, height=height)
        window.js(_SCROLL.format(json.dumps(section)))
        if reason is not None:
            window.js(_OPEN.format(json.dumps(reason)))
        window.js(_SETTLED)
        shot = page.with_name("shot.png")
        window.picture(shot)
        return Image.open(shot).convert("RGB")


def save(picture: Image.Image, target: Path) -> None:
    """Save a picture small: a PNG with a palette, or a JPEG."""
    if target.suffix == ".png":
        picture.quantize(MOST_COLOURS).save(target, optimize=True)
    else:
        picture.save(target, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
