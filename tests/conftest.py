"""Keeps the tests apart from the user's own Ultralytics settings, each on one thread, and orders them.

Ultralytics reads its environment and its settings file once, when it is imported, so this happens while pytest loads
this file, before it collects any test module. Subprocesses inherit it.
"""

import gc
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

ENVIRONMENT = {
    "YOLO_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MPLBACKEND": "Agg",
    # Small batches gain nothing from more threads, and beside other tests those wait for each other.
    "OMP_NUM_THREADS": "1",
    "YOLO_ADAPRUNER_THREADS": "1",
    "YOLO_ADAPRUNER_SAVE_SECONDS": "0",  # where a run is cut off, it loses the epoch under way alone
}
FONTS = ("Arial.ttf", "Arial.Unicode.ttf")
MARKS = ("long", "alone", "slow")  # what they mean: pyproject.toml


def _font() -> Path | None:
    """Return a font that matplotlib ships, found without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    places = spec.submodule_search_locations if spec else None
    fonts = [Path(place, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf") for place in places or ()]
    return next((font for font in fonts if font.is_file()), None)


def _isolate(home: Path) -> None:
    """Make `home` the place of Ultralytics' settings, data sets, weights and runs for this process and its children."""
    config = home / "Ultralytics"
    config.mkdir(parents=True)
    # Keys that are not named here get Ultralytics' defaults.
    settings = {
        "datasets_dir": str(home / "datasets"),
        "weights_dir": str(home / "weights"),
        "runs_dir": str(home / "runs"),
        "sync": False,
    }
    (config / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    # Where the fonts of its plots are missing, Ultralytics asks the network for them, YOLO_OFFLINE or not.
    if font := _font():
        for name in FONTS:
            shutil.copyfile(font, config / name)
    os.environ.update(ENVIRONMENT, YOLO_CONFIG_DIR=str(home))


def pytest_configure(config: pytest.Config) -> None:
    if "ultralytics" in sys.modules:
        raise pytest.UsageError("expected Ultralytics not to be imported yet; a plugin did, so find it and turn it off")
    home = Path(tempfile.mkdtemp(prefix="yolo-adapruner-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    _isolate(home)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("quick", *MARKS),
        help="the tests whose first mark among " + ", ".join(MARKS) + " this is; quick: those with none of them",
    )


def _part(item: pytest.Item) -> str:
    return next((mark for mark in MARKS if item.get_closest_marker(mark)), "quick")


def pytest_collection_finish() -> None:
    # A training calls the garbage collector over and over. What was made while torch was imported stays for good:
    # looking through it each time was an eighth of the slow tests' processor time.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # file by file: short ones fill up what the long ones leave at the end
        items.sort(key=lambda item: -slow[item.path])
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # stable: otherwise the order stays
    if part := config.getoption("--part"):
        out = [item for item in items if _part(item) != part]
        config.hook.pytest_deselected(items=out)
        left_out = set(out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a set of 12 training images, the small architecture, a run config of both."""
    from tests import helpers

    helpers.build_set(tmp_path / "set", train=12, val=4, empty=1)
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path
