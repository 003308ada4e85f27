"""The embedded example set: same bytes each time, faults exactly as the truth file says, never half a set."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_adapruner.data import digits
from yolo_adapruner.data.boxes import iou
from yolo_adapruner.data.digits import build, digest, load_truth
from yolo_adapruner.errors import ConfigError, DataError

REPO = Path(__file__).resolve().parents[1]
SIZE = 96
SMALL = {"train": 60, "val": 6, "test": 5, "size": SIZE, "noise": 0.2, "duplicates": 0.1, "empty": 0.05, "seed": 3}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("noisy") / "set", **SMALL)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("clean") / "set", **{**SMALL, "noise": 0})


def rows(root: Path, kind: str = "", split: str = "train") -> list[dict[str, str]]:
    with (root / "truth.csv").open(newline="") as lines:
        return [r for r in csv.DictReader(lines) if r["split"] == split and kind in ("", r["kind"])]


def labels(root: Path, image: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes (n,) and pixel boxes (n, 4), sorted, as a label file's reader sees them."""
    file = (root / image.replace("images/", "labels/", 1)).with_suffix(".txt")
    table = np.array([line.split() for line in file.read_text().splitlines()], float).reshape(-1, 5)
    table = table[np.lexsort(table.T)]
    centre, extent = table[:, 1:3] * SIZE, table[:, 3:] * SIZE
    return table[:, 0].astype(int), np.hstack([centre - extent / 2, centre + extent / 2])


def pairs(noisy: Path, clean: Path, kind: str):
    """Labels with the fault beside the true ones, for every image of the kind."""
    found = [(*labels(noisy, r["path"]), *labels(clean, r["path"])) for r in rows(noisy, kind)]
    assert len(found) == 3  # 20 % of 60 in four equal parts
    return found


def test_same_arguments_give_the_same_bytes(noisy: Path, tmp_path: Path) -> None:
    assert digest(build(tmp_path / "again", **SMALL)) == digest(noisy)


def test_digest_sees_names_and_bytes_but_no_label_cache(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    first = digest(tmp_path)
    (tmp_path / "train.cache").write_text("written by a training run")
    assert digest(tmp_path) == first
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    second = digest(tmp_path)
    (tmp_path / "b.txt").write_text("y")
    assert len({first, second, digest(tmp_path)}) == 3


def test_another_seed_gives_other_scenes(noisy: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "other", **{**SMALL, "seed": 4})
    assert not {f.read_bytes() for f in noisy.rglob("*.jpg")} & {f.read_bytes() for f in other.rglob("*.jpg")}


def test_faults_change_labels_and_nothing_else(noisy: Path, clean: Path) -> None:
    faulty = {r["path"] for r in rows(noisy) if r["kind"] in digits.FAULTS}
    files = sorted(f.relative_to(noisy).as_posix() for f in noisy.rglob("*") if f.suffix in (".jpg", ".txt"))
    differing = {name for name in files if (noisy / name).read_bytes() != (clean / name).read_bytes()}
    assert differing == {p.replace("images/", "labels/", 1).replace(".jpg", ".txt") for p in faulty}


def test_val_and_test_do_not_depend_on_what_is_asked_of_train(noisy: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "o", train=5, val=6, test=5, size=SIZE, noise=0, duplicates=0, empty=0, seed=3)
    for split in ("val", "test"):
        pictures = [[f.read_bytes() for f in sorted((r / "images" / split).iterdir())] for r in (noisy, other)]
        assert pictures[0] == pictures[1]


def test_truth_counts_what_was_asked_for(noisy: Path) -> None:
    kinds = [r["kind"] for r in rows(noisy)]
    counts = {kind: kinds.count(kind) for kind in digits.KINDS}
    faults = dict.fromkeys(digits.FAULTS, 3)
    assert counts == {"clean": 39, **faults, "duplicate": 6, "empty": 3}
    assert {r["kind"] for split in ("val", "test") for r in rows(noisy, split=split)} == {"clean"}


def test_file_numbers_do_not_tell_the_kind(noisy: Path) -> None:
    kinds = [r["kind"] for r in sorted(rows(noisy), key=lambda r: r["path"])]
    for kind in ("duplicate", "empty"):
        places = [i for i, k in enumerate(kinds) if k == kind]
        assert places != list(range(places[0], places[0] + len(places)))


def test_one_kind_alone_and_a_remainder(tmp_path: Path) -> None:
    wanted = {**SMALL, "noise": 5 / 60}
    two = build(tmp_path / "two", **{**wanted, "kinds": ("missing", "boxes")})
    assert (len(rows(two, "missing")), len(rows(two, "boxes")), len(rows(two, "classes"))) == (3, 2, 0)


def test_classes_fault_changes_every_class_and_no_box(noisy: Path, clean: Path) -> None:
    for row in rows(noisy, "classes"):
        texts = [(r / row["path"].replace("images", "labels", 1)).with_suffix(".txt") for r in (noisy, clean)]
        wrong, right = ([line.split(" ", 1) for line in t.read_text().splitlines()] for t in texts)
        assert [box for _, box in wrong] == [box for _, box in right]
        assert all(a != b for (a, _), (b, _) in zip(wrong, right, strict=True))
        assert right


def test_boxes_fault_shifts_each_box_within_the_picture(noisy: Path, clean: Path) -> None:
    for row in rows(noisy, "boxes"):
        texts = [(r / row["path"].replace("images", "labels", 1)).with_suffix(".txt") for r in (noisy, clean)]
        wrong, right = (np.array([line.split() for line in t.read_text().splitlines()], float) for t in texts)
        assert (wrong[:, [0, 3, 4]] == right[:, [0, 3, 4]]).all()
        shift = np.linalg.norm((wrong[:, 1:3] - right[:, 1:3]) / right[:, 3:], axis=1)
        assert ((shift > 0.399) & (shift < 0.801)).all()
        assert (wrong[:, 1:3] - wrong[:, 3:] / 2 > -1e-5).all()
        assert (wrong[:, 1:3] + wrong[:, 3:] / 2 < 1 + 1e-5).all()


def test_boxes_fault_in_the_corners_turns_back_instead_of_leaving() -> None:
    corners = np.array([[0, 0, 56, 56], [104, 0, 160, 56], [0, 104, 56, 160], [104, 104, 160, 160]], float)
    scene = digits.Scene(np.zeros((160, 160, 3), np.uint8), corners, np.arange(4))
    for seed in range(20):
        boxes = digits.fault_boxes(scene, np.random.default_rng(seed)).boxes
        assert boxes.min() >= 0
        assert boxes.max() <= 160
        share = np.linalg.norm((boxes - corners)[:, :2] / 56, axis=1)
        assert ((share >= 0.4) & (share <= 0.8)).all()


def test_missing_fault_takes_half_or_more_but_not_all(noisy: Path, clean: Path) -> None:
    for classes, boxes, true_classes, true_boxes in pairs(noisy, clean, "missing"):
        true = {(c, *b) for c, b in zip(true_classes, true_boxes, strict=True)}
        assert {(c, *b) for c, b in zip(classes, boxes, strict=True)} < true
        assert 1 <= len(boxes) <= len(true) / 2


def test_spurious_fault_adds_as_many_boxes_on_bare_ground(noisy: Path, clean: Path) -> None:
    for classes, boxes, true_classes, true_boxes in pairs(noisy, clean, "spurious"):
        true = {(c, *b) for c, b in zip(true_classes, true_boxes, strict=True)}
        extra = [box for c, box in zip(classes, boxes, strict=True) if (c, *box) not in true]
        assert len(extra) == max(2, len(true))
        assert len(boxes) == len(extra) + len(true)
        assert iou(np.array(extra), true_boxes).max() < 0.1
        assert boxes.min() > -1e-3
        assert boxes.max() < SIZE + 1e-3


def test_near_duplicates_look_like_their_clean_source_and_are_labelled_right(noisy: Path) -> None:
    sources = {r["group"]: r for r in rows(noisy, "clean") if r["group"]}
    copies = rows(noisy, "duplicate")
    assert len(sources) == len(copies) == 6
    for copy in copies:
        (cls, box), (src_cls, src_box) = labels(noisy, copy["path"]), labels(noisy, sources[copy["group"]]["path"])
        order, src_order = np.lexsort(box.T.round()), np.lexsort(src_box.T.round())
        assert (cls[order] == src_cls[src_order]).all()
        shift = (box[order] - src_box[src_order]).mean(0).round().astype(int)
        assert np.allclose(box[order] - shift, src_box[src_order], atol=0.02)
        assert (abs(shift) >= 1).all()
        assert (abs(shift) <= 3).all()
        picture, source = (cv2.imread(str(noisy / r["path"]), 0) for r in (copy, sources[copy["group"]]))
        back = np.roll(picture, (-shift[1], -shift[0]), (0, 1))[4:-4, 4:-4]
        assert (picture != source).any()
        assert np.corrcoef(back.ravel(), source[4:-4, 4:-4].ravel())[0, 1] > 0.9


def test_empty_scenes_have_an_empty_label_file(noisy: Path) -> None:
    for row in rows(noisy, "empty"):
        assert (noisy / row["path"].replace("images", "labels", 1)).with_suffix(".txt").read_bytes() == b""
    assert all(len(labels(noisy, r["path"])[0]) for kind in ("clean", "duplicate") for r in rows(noisy, kind))


def test_true_boxes_lie_inside_and_hardly_overlap(clean: Path) -> None:
    for row in rows(clean):
        _, boxes = labels(clean, row["path"])
        assert len(boxes) <= 5
        assert ((boxes >= -1e-3) & (boxes <= SIZE + 1e-3)).all()
        assert (iou(boxes, boxes) - np.eye(len(boxes)) < 0.03).all()


def test_boxes_are_tight_on_the_ink() -> None:
    scan, _cls = next((s, c) for s, c in zip(*digits.load_scans(), strict=True) if c == 2)
    for side in (22, 40, 56):
        ink = digits.render_digit(scan, side, np.random.default_rng(side))
        assert max(ink.shape) == side
        assert all(edge.max() > 0.3 for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
        assert ink.min() == 0
        assert ink.max() > 0.9


def test_the_label_file_says_where_the_digit_was_painted() -> None:
    ground = np.random.default_rng(7)
    scans = digits.Scans(
        [np.stack([s for s, c in zip(*digits.load_scans(), strict=True) if c == k]) for k in range(10)]
    )
    scene = digits.draw_scene(scans, 160, 1, ground)
    x1, y1, x2, y2 = scene.boxes[0].astype(int)
    blurred = cv2.GaussianBlur(scene.image, (0, 0), 1).astype(float)
    outside = np.ones((160, 160), bool)
    outside[y1:y2, x1:x2] = False
    spread = np.abs(blurred - np.median(blurred[outside], 0)).max(-1)
    assert np.quantile(spread[~outside], 0.9) > 2 * np.quantile(spread[outside], 0.9)


def test_splits_share_no_scan() -> None:
    targets = np.repeat(np.arange(10), 20)
    images = np.arange(200.0)[:, None, None] * np.ones((1, 8, 8))
    parts = digits.split_scans(images, targets, np.random.default_rng(0))
    numbers = [{float(s[0, 0]) for scans in part for s in scans} for part in parts]
    assert [len(n) for n in numbers] == [120, 40, 40]
    assert set.union(*numbers) == set(range(200))
    assert all((s[:, 0, 0] // 20 == cls).all() for part in parts for cls, s in enumerate(part))


def test_scans_come_again_only_after_all_of_their_class() -> None:
    scans = digits.Scans([np.arange(4.0)[:, None, None] * np.ones((1, 8, 8))])
    dealt = [float(scans.deal(np.random.default_rng(i))[0][0, 0]) for i in range(8)]
    assert dealt == [0, 1, 2, 3, 0, 1, 2, 3]


def test_illegible_scans_are_left_out() -> None:
    ring = np.zeros((8, 8))
    ring[1:7, 2:6] = 1
    blob = ring.copy()
    ring[2:6, 3:5] = 0
    assert digits.is_legible(ring, 0)
    assert not digits.is_legible(blob, 0)
    assert digits.is_legible(blob, 1)
    assert not digits.is_legible(ring, 1)


def test_load_truth_names_existing_files_by_absolute_posix_path(noisy: Path, tmp_path: Path) -> None:
    truth = load_truth(noisy)
    assert set(truth) == {f.resolve().as_posix() for f in noisy.rglob("*.jpg")}
    assert set(truth.values()) == set(digits.KINDS)
    assert load_truth(tmp_path) == {}


def test_load_truth_refuses_a_file_without_its_columns(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("image,what\na.jpg,clean\n")
    with pytest.raises(DataError, match="expected the columns path and kind"):
        load_truth(tmp_path)


def test_a_whole_set_is_returned_untouched(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "_draw_all", lambda recipe: pytest.fail("drew again"))
    assert build(noisy, **SMALL) == noisy


def test_a_set_made_otherwise_is_refused(noisy: Path) -> None:
    with pytest.raises(DataError, match="differs in noise, seed"):
        build(noisy, **{**SMALL, "noise": 0.1, "seed": 0})


@pytest.mark.parametrize("name", ["notes.txt", "recipe.json"])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match="something else"):
        build(tmp_path, **SMALL)
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        build(tmp_path / "set", **SMALL)


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    tiny = {"train": 4, "val": 1, "test": 1, "size": 64, "noise": 0, "duplicates": 0, "empty": 0}
    root = build(tmp_path / "deep" / "set", **tiny)
    next((root / "labels" / "train").iterdir()).unlink()
    with pytest.raises(DataError, match=r"expected 4 files in .*train but found 3; delete"):
        build(root, **tiny)


def test_a_build_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, text: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(digits, "_write_text", full_disk)
    with pytest.raises(DataError, match="disk full"):
        build(tmp_path / "set", train=4, val=1, test=1, size=64, noise=0, duplicates=0, empty=0)
    assert list(tmp_path.iterdir()) == []


def test_a_quicker_process_wins_and_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"train": 4, "val": 1, "test": 1, "size": 64, "noise": 0, "duplicates": 0, "empty": 0}
    (tmp_path / "set").mkdir()
    draw = digits._draw_all

    def other_first(recipe):
        monkeypatch.setattr(digits, "_draw_all", draw)
        build(tmp_path / "set", **tiny)
        return draw(recipe)

    monkeypatch.setattr(digits, "_draw_all", other_first)
    assert load_truth(build(tmp_path / "set", **tiny))
    assert [f.name for f in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"train": 0}, "expected train to be a whole number, 1 or more, but got 0"),
        ({"val": 2.5}, "expected val to be a whole number"),
        ({"size": 32}, "expected size to be a whole number, 64 or more"),
        ({"seed": -1}, "expected seed"),
        ({"noise": 1.5}, "expected noise to be a share from 0 to 1 but got 1.5"),
        ({"empty": "some"}, "expected empty to be a share"),
        ({"noise": float("nan")}, "expected noise to be a share"),
        ({"kinds": ("classes", "colour")}, "expected kinds to be some of classes, boxes, missing, spurious"),
        ({"kinds": ("classes", "classes")}, "each once"),
        ({"kinds": ()}, "expected kinds"),
        ({"noise": 0.5, "duplicates": 0.3}, r"at most 1 but got 1\.15"),
        ({"noise": 0.85, "kinds": ("missing",), "duplicates": 0}, "fit for the fault 'missing'"),
    ],
)
def test_wrong_arguments_say_what_was_expected(tmp_path: Path, wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(tmp_path / "set", **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_data_files_say_the_same_as_the_set(noisy: Path) -> None:
    inside, shipped = (
        yaml.safe_load((noisy / "data.yaml").read_text()),
        yaml.safe_load((REPO / "data/digits.yaml").read_text()),
    )
    assert "path" not in inside
    assert shipped["path"] == "digits"
    for key in ("train", "val", "test", "names"):
        assert inside[key] == shipped[key]
    template = yaml.safe_load((REPO / "data/template.yaml").read_text())
    assert {"path", "train", "val", "names"} <= set(template)


PLAIN_ULTRALYTICS = """
import functools, pathlib, sys
import ultralytics.data.utils as utils
from yolo_adapruner.data import digits

utils.DATASETS_DIR, utils.check_font = pathlib.Path(sys.argv[1]), lambda *_: None  # the font would be downloaded
digits.build = functools.partial(digits.build, train=20, val=3, test=3, size=64)
first = utils.check_det_dataset(sys.argv[2])
assert first["names"] == {i: str(i) for i in range(10)}, first["names"]
root = pathlib.Path(first["path"]).rename(pathlib.Path(sys.argv[1]) / "moved")
moved = utils.check_det_dataset(root / "data.yaml")
for split, count in (("train", 20), ("val", 3), ("test", 3)):
    found = len(list(pathlib.Path(moved[split]).glob("*.jpg")))
    assert pathlib.Path(moved[split]).is_relative_to(root) and found == count, moved[split]
for image in sorted(pathlib.Path(moved["train"]).glob("*.jpg")):
    label = str(image).replace("images", "labels").replace(".jpg", ".txt")
    verified = utils.verify_image_label((str(image), label, "", False, 10, 0, 0, False))
    assert verified[8] == 0 and not verified[9], verified[9]  # corrupt count, message
"""


def test_plain_ultralytics_builds_and_loads_it(tmp_path: Path) -> None:
    quiet = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0"}
    env = {**os.environ, **quiet, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", PLAIN_ULTRALYTICS, str(tmp_path), str(REPO / "data/digits.yaml")]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
