"""Real comparisons on a set of shapes: the serial grid, side by side, killed and gone on with, and the search."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from tests.grids import two_machines
from tests.helpers import NAMES, QUICK, build_set, child_environment, cli_words, start_cli, train_here, training_images
from yolo_adapruner.config import load
from yolo_adapruner.study.arms import FULL
from yolo_adapruner.study.cells import RECORD, CellRunner
from yolo_adapruner.study.table import EPOCHS, Cell

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SETTINGS = {**QUICK, "epochs": 3, "workers": 0, "prune.warmup": 0}
CELLS = 2 * (1 + 2 * 5)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a set, and a run config that starts from a detector which knows it a little: 0 proves nothing."""
    folder = tmp_path_factory.mktemp("grid")
    data = build_set(folder / "set", train=20, val=8)
    start = train_here(data, folder / "start", share=0.0, epochs=60, lr0=0.01).best
    (folder / "run.yaml").write_text(f"model: {start}\ndata: {data}\nproject: {folder / 'runs'}\n")
    return folder


def words(home: Path, name: str, *more: str) -> list[str]:
    return ["compare", "run.yaml", "--name", name, *more, *cli_words(SETTINGS)]


def finish(home: Path, name: str, *more: str) -> dict:
    """Run a comparison to its end and return its compare.json."""
    process = start_cli(*words(home, name, *more), cwd=home)
    out, error = process.communicate(timeout=1800)
    assert process.returncode == 0, (out[-2000:], error[-2000:])
    return json.loads((home / "runs" / name / "compare.json").read_text(encoding="utf-8"))


def begin(home: Path, name: str, *more: str) -> subprocess.Popen:
    """Start a comparison that nobody listens to: a full pipe would stop it."""
    return subprocess.Popen(
        [sys.executable, "-m", "yolo_adapruner", *words(home, name, *more)],
        cwd=home,
        env=child_environment(PYTHONPATH=str(Path(__file__).resolve().parent.parent)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


GRID = ("--prune", "0.2", "0.4", "--seeds", "2")
PART = ("--prune", "0.2", "--seeds", "2")
"""What of the grid is run otherwise: its figures must be those that the whole grid has at this share."""


@pytest.fixture(scope="module")
def serial(home) -> dict:
    return finish(home, "serial", *GRID)


def told(result: dict, share: float | None = None) -> list[dict]:
    """What a comparison says, at one share alone if it is given, without what a clock says."""

    def asked(entries: list[dict]) -> list[dict]:
        return [{k: v for k, v in e.items() if k != "hours"} for e in entries if share in (None, e["share"] or share)]

    cells = sorted(asked(result["cells"]), key=lambda c: (c["arm"], c["share"], c["budget"], c["seed"]))
    verdicts = [line for line in result["verdicts"] if share is None or f"dropping {100 * share:g} %" in line]
    assert len(verdicts) >= 4
    return [*asked(result["rows"]), *cells, verdicts]


def cells_done(folder: Path) -> int:
    return len(list((folder / "cells").glob("*/cell.json")))


def test_the_serial_grid_is_whole(serial, home):
    assert len(serial["cells"]) == CELLS
    assert len(serial["rows"]) == 11
    assert len(serial["verdicts"]) == 8
    table = (home / "runs" / "serial" / "compare.md").read_text(encoding="utf-8")
    assert table.count("\n| pruned |") == 8  # four rows in each of the two tables
    figures = {cell["map50_95"] for cell in serial["cells"]}
    assert min(figures) > 0.1
    assert len(figures) > CELLS / 2  # or equal tables would say little
    assert cells_done(home / "runs" / "serial") == CELLS


def test_two_jobs_agree_with_one_to_the_digit(serial, home):
    assert told(finish(home, "jobs", *PART, "--jobs", "2")) == told(serial, 0.2)


def test_two_machines_agree_with_one_though_a_worker_is_killed_in_mid_cell(serial, home, monkeypatch):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python or system")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    folder = home / "runs" / "ray"
    with two_machines() as machines:
        process = begin(home, "ray", *GRID, "--ray", machines.address)
        while process.poll() is None and not (in_mid_cell(folder, 3) and workers()):
            time.sleep(0.05)
        assert process.poll() is None
        workers()[0].kill()
        assert process.wait(timeout=1800) == 0
    assert told(json.loads((folder / "compare.json").read_text(encoding="utf-8"))) == told(serial)
    for table in folder.glob("cells/*/results.csv"):
        epochs = [int(line.split(",")[0]) for line in table.read_text(encoding="utf-8").splitlines()[1:]]
        assert epochs == list(range(1, len(epochs) + 1))


def test_a_trained_cell_is_judged_alike_by_the_faster_engine(serial, home, tmp_path, monkeypatch):
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval has no wheel for this Python or system")
    cell, asked, usual = Cell(FULL, 0.0, EPOCHS, 0), [], faster.COCOeval_faster
    monkeypatch.setattr(faster, "COCOeval_faster", lambda *a, **k: asked.append(True) or usual(*a, **k))
    runner = CellRunner(
        tmp_path,
        load(home / "run.yaml", {k: v for k, v in SETTINGS.items() if k in ("imgsz", "batch", "epochs")}),
        home / "runs" / "serial" / "data.yaml",
        engine="faster-coco-eval",
    )
    shutil.copytree(home / "runs" / "serial" / "cells" / cell.name, runner.home(cell))
    (runner.home(cell) / RECORD).unlink()  # as of a process that died between training and judgement
    found, expected = runner(cell), next(c for c in serial["cells"] if (c["arm"], c["seed"]) == (FULL, 0))
    assert asked
    assert found["updates"] == expected["updates"]
    for figure in ("map50_95", "map50", "by_size", *(("per_class", name) for name in expected["per_class"])):
        one, other = (c[figure] if isinstance(figure, str) else c["per_class"][figure[1]] for c in (found, expected))
        assert one == pytest.approx(other, abs=1e-6)


def workers() -> list[psutil.Process]:
    """The processes of a cluster that are in a cell."""
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::_run_cell")]


@pytest.mark.long
def test_a_grid_killed_three_times_ends_with_the_undisturbed_table(serial, home):
    folder = home / "runs" / "killed"
    finished: dict[str, float] = {}
    for count in (0, 7, 15):
        process = begin(home, "killed", *GRID)
        while process.poll() is None and not in_mid_cell(folder, count):
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()
        process.wait()
        record = {file.parent.name: file.stat().st_mtime for file in (folder / "cells").glob("*/cell.json")}
        assert finished.items() <= record.items()
        finished = record
    result = finish(home, "killed", *GRID)
    assert told(result) == told(serial)
    record = {file.parent.name: file.stat().st_mtime for file in (folder / "cells").glob("*/cell.json")}
    assert finished.items() <= record.items()  # what was finished was not run again


def in_mid_cell(folder: Path, count: int) -> bool:
    """Whether so many cells are finished and one more has an epoch behind it."""
    begun = {file.parent.parent for file in (folder / "cells").glob("*/weights/last.pt")}
    return cells_done(folder) >= count and any(not (cell / "cell.json").is_file() for cell in begun)


LISTS, DRAWN = "class-random,highest-loss,forgetting", "infobatch,afss"


@pytest.fixture(scope="module")
def others(home) -> tuple[str, ...]:
    """The words of a comparison of arms beside the plain ones."""
    listed = home / "kept.txt"
    images = sorted((home / "set" / "images" / "train").iterdir())
    listed.write_text("".join(f"{path}\n" for path in images[:12]), encoding="utf-8")
    return ("--prune", "0.2", "--seeds", "1", "--arms", f"{LISTS},{DRAWN}", "--kept", str(listed))


@pytest.fixture(scope="module")
def other_arms(home, others) -> dict:
    return finish(home, "arms", *others)


@pytest.mark.long  # two machines train real cells in the gate above
def test_other_arms_agree_on_a_cluster_to_the_digit(home, others, other_arms, monkeypatch):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python or system")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    with two_machines() as machines:
        assert told(finish(home, "arms-ray", *others, "--ray", machines.address)) == told(other_arms)


def test_other_arms_and_a_given_list_are_trained_alike(home, other_arms):
    result, arms, drawn = other_arms, LISTS, DRAWN
    rows = {(row["arm"], row["budget"]): row for row in result["rows"]}
    assert {arm for arm, _ in rows} == {"full", "one run", *arms.split(","), *drawn.split(","), "given list"}
    assert rows["given list", "equal epochs"]["images"] == 12
    assert rows["given list", "equal epochs"]["share"] == pytest.approx(0.4)
    assert {rows[arm, "equal epochs"]["images"] for arm in arms.split(",")} == {16}
    assert rows["infobatch", "equal epochs"]["images"] <= 20
    assert ("afss", "equal updates") not in rows  # its rates are its own
    assert any("% of the images an epoch (afss)" in line for line in result["verdicts"])
    for arm in ("highest-loss", "forgetting"):
        kept = home / "runs" / "arms" / f"{arm}-0.2-s0.txt"
        assert len(set(kept.read_text().split())) == 16


def test_an_image_s_sufficiency_is_that_of_its_own_boxes(home):
    """Against a matching of its own: each detection, the surest first, takes the box it overlaps most, once."""
    from torchvision.ops import box_iou

    from yolo_adapruner.engine.detections import collect
    from yolo_adapruner.study.drawn import measure

    weights, data = home / "start" / "weights" / "best.pt", home / "set" / "data.yaml"
    paths = [str(path) for path in training_images(data)]
    args = SimpleNamespace(data=str(data), imgsz=64, workers=0)
    names = {"names": dict(enumerate(NAMES))}
    trainer = SimpleNamespace(last=weights, args=args, batch_size=8, device="cpu", data=names, paths=[*paths, "/new"])
    expected = []
    for image in sorted(collect(weights, data, "train", imgsz=64, batch=8, conf=0.25)[0], key=lambda i: i.path):
        free, hits = np.ones(len(image.gt_boxes), bool), 0
        for k in np.argsort(-image.scores, kind="stable"):
            overlap = box_iou(*(torch.tensor(b, dtype=float).reshape(-1, 4) for b in (image.boxes[k], image.gt_boxes)))
            overlap = overlap[0].numpy() * (free & (image.gt_classes == image.classes[k]))
            if len(overlap) and overlap.max() >= 0.5:
                free[overlap.argmax()], hits = False, hits + 1
        n, m = len(image.boxes), len(image.gt_boxes)
        expected.append(min(hits / n if n else 1.0, hits / m if m else 1.0))
    found = measure(trainer)
    assert found.tolist() == pytest.approx([*expected, 0.0])
    assert len(set(expected)) > 2


def test_a_share_is_searched_for(home):
    result = finish(home, "auto", "--prune", "auto", "--seeds", "2", "--margin", "10")
    trials = {trial["share"]: trial["within"] for trial in result["auto"]["tried"]}
    assert set(trials) <= {k / 20 for k in range(1, 13)}  # more of 20 images would leave no batch of 8
    assert result["auto"]["share"] == max((share for share, within in trials.items() if within), default=None)
    assert result["auto"]["line"] in result["verdicts"]
    cut = {cell["share"]: cell["images"] for cell in result["cells"] if cell["arm"] == "pruned"}
    assert cut == {share: 20 - round(20 * share) for share in trials}
    for row in result["rows"]:
        if row["arm"] == "pruned":
            low, base = row["versus_full"]["low"], sum(row["map50_95"]) / 2 - row["versus_full"]["mean"]
            assert trials[row["share"]] == (low >= -0.1 and base > 0.1)


def test_the_run_may_have_as_many_updates_as_full(home, serial):
    words = ("--prune", "0.4", "--seeds", "2", "--arms", "pruned", "--budget", "updates", "prune.budget=updates")
    cells = finish(home, "longer", *words, "--cells", str(home / "runs" / "serial" / "compare.json"))["cells"]
    found = {(cell["arm"], cell["budget"], cell["seed"]): cell for cell in cells}
    trained = (("full", "equal epochs"), ("one run", "equal updates"), ("pruned", "equal updates"))
    assert found.keys() == {(*cell, seed) for cell in trained for seed in (0, 1)}
    before = {(c["arm"], c["share"], c["budget"], c["seed"]): c for c in serial["cells"]}
    for seed in (0, 1):
        run, shorter = found["one run", "equal updates", seed], before["one run", 0.4, "equal epochs", seed]
        assert run["kept"] == shorter["kept"]  # what is spent comes after the choice
        assert (run["images"], shorter["images"]) == (12, 12)
        assert (run["epochs"], shorter["epochs"]) == (4, 3)  # one on all 20, and three of 12 for the other 40
        assert run["updates"] > shorter["updates"]
        assert found["pruned", "equal updates", seed] == before["pruned", 0.4, "equal updates", seed]
