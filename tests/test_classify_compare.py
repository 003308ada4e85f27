"""The comparison with classifiers: top-1 image by image, sets of links for the arms, a given list, packed sets."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import classes
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data import export
from yolo_adapruner.engine import classset
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.study import folders, unpack
from yolo_adapruner.study.compare import compare
from yolo_adapruner.study.table import EPOCHS, UPDATES
from yolo_adapruner.study.topk import Ranks

RANKS = Ranks(("a", "b", "c", "d"), np.array([0, 0, 1, 2]), np.array([0, 1, 0, 7]))


def test_top_k_is_the_share_of_images_whose_label_is_among_the_first():
    assert RANKS.top(1).tolist() == [0.5]
    assert RANKS.top(5).tolist() == [0.75]
    drawn = np.array([[4, 0, 0, 0], [0, 2, 0, 2], [1, 1, 1, 1]])
    assert RANKS.top(1, drawn).tolist() == [1.0, 0.0, 0.5]


def test_figures_by_class_leave_out_classes_without_images():
    assert RANKS.per_class({0: "x", 1: "y", 2: "z", 3: "none"}) == {
        "x": (0.5, 1.0, 2),
        "y": (1.0, 1.0, 1),
        "z": (0.0, 0.0, 1),
    }


def test_ranks_come_back_from_their_file_and_a_torn_one_is_refused(tmp_path):
    RANKS.save(tmp_path / "a.npz")
    again = Ranks.load(tmp_path / "a.npz")
    assert again.paths == RANKS.paths
    assert again.ranks.tolist() == RANKS.ranks.tolist()
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match="delete the cell's folder"):
        Ranks.load(tmp_path / "a.npz")


def _data(root, *, test):
    data = {split: str(root / split) for split in ("train", "val")}
    return {**data, "test": str(root / "test") if test else None, "names": dict(enumerate(classes.NAMES))}


def test_without_a_test_split_halves_of_val_choose_and_report(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=6, val=9)
    (tmp_path / "compare").mkdir()
    base, words = folders.judge_folder(tmp_path / "compare", _data(root, test=False), 0)
    val, test = ({os.path.realpath(p) for p in (base / s).rglob("*.png")} for s in ("val", "test"))
    assert (len(val), len(test), len(val | test)) == (4, 5, 9)
    assert words == "seeded half of the validation images (5 of 9)"
    assert sorted(p.name for p in (base / "test").iterdir()) == list(classes.NAMES)


def test_images_that_cannot_be_read_do_not_count(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=6, val=3)
    images = classset.split_images(root / "train")
    assert images == sorted(str(p) for p in (root / "train").rglob("*.png"))
    Path(images[0]).write_bytes(b"no image")
    (root / "train" / "disc" / "junk.jpg").write_bytes(b"")
    assert classset.split_images(root / "train") == images[1:]


def test_with_both_splits_they_are_the_sets_own(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=6, val=3, test=3)
    (tmp_path / "compare").mkdir()
    base, words = folders.judge_folder(tmp_path / "compare", _data(root, test=True), 0)
    assert words == "test split"
    assert os.path.realpath(base / "test") == str(root / "test")
    images = [str(p) for p in sorted((base / "train").rglob("*.png"))]
    assert [c for image in folders.classes_of(images, base) for c in image] == [0, 0, 1, 1, 2, 2]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison with a given list, of classifiers."""
    home = tmp_path_factory.mktemp("compared")
    root = classes.build_folders(home / "set", train=24, val=6, test=9)
    listed = sorted(str(p) for p in (root / "train").rglob("*.png"))[::2]
    (home / "kept.txt").write_text("\n".join(listed), encoding="utf-8")
    model = classes.write_architecture(home / "small-cls.yaml")
    result = compare(
        {"model": str(model), "data": str(root), "epochs": 3, "imgsz": 32, "batch": 8, "device": "cpu"},
        prune=0.25,
        seeds=1,
        arms=("pruned", "class-random", "highest-loss", "most-error"),
        kept=home / "kept.txt",
        **terms(home),
    )
    return home, result


def terms(home) -> dict:
    return {"project": str(home / "runs"), "name": "mine", "nbs": 8, "plots": False, "verbose": False}


@pytest.mark.slow
def test_a_comparison_judges_classifiers_by_top_1_on_the_test_split(compared):
    _, result = compared
    cells = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))["cells"]
    assert {(c["arm"], c["images"]) for c in cells} == {
        ("full", 24),
        ("one run", 18),
        ("pruned", 18),
        ("class-random", 18),
        ("highest-loss", 18),
        ("most-error", 18),
        ("given list", 12),
    }
    assert all(c["map50_95"] == pytest.approx(c["ultralytics_map50_95"]) for c in cells)
    assert all(c["map50_95"] * 9 == pytest.approx(round(c["map50_95"] * 9)) for c in cells)
    text = result.report()
    assert "| top-1 | top-5 |" in text
    assert "mAP" not in text
    assert "9 test images" in text
    assert {len(row.per_class) for row in result.rows} == {3}


@pytest.mark.slow
def test_each_arm_trained_on_links_to_its_own_images(compared):
    home, result = compared
    given = {os.path.realpath(p) for p in (result.folder / "given-list-0.5-s0" / "train").rglob("*.png")}
    assert given == set((home / "kept.txt").read_text(encoding="utf-8").split())
    run = (result.folder / "cells" / "one-run-0.25-s0" / "kept.txt").read_text(encoding="utf-8").split()
    pruned = (result.folder / "pruned-0.25-s0" / "train").rglob("*.png")
    assert {os.path.realpath(p) for p in pruned} == {os.path.realpath(p) for p in run}
    even = [len(list((result.folder / "class-random-0.25-s0" / "train" / n).iterdir())) for n in classes.NAMES]
    assert even == [6, 6, 6]


@pytest.mark.slow
def test_a_list_of_other_images_is_refused(compared, tmp_path):
    home, _ = compared
    (tmp_path / "kept.txt").write_text("/elsewhere/a.png\n", encoding="utf-8")
    config = {"model": str(home / "small-cls.yaml"), "data": str(home / "set"), "device": "cpu"}
    with pytest.raises(DataError, match=r"1 are not, the first: /elsewhere/a\.png"):
        compare(config, prune=0.25, kept=tmp_path / "kept.txt", project=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_finished_comparison_is_taken_further_without_a_cell_run_again(compared):
    home, result = compared
    arms = ("pruned", "class-random", "highest-loss", "most-error", "el2n", "forgetting", "infobatch")
    recipe = ("model", "data", "epochs", "imgsz", "batch", "device")
    config = {key: result.facts["config"][key] for key in recipe}
    more = {"prune": 0.25, "seeds": 1, "kept": home / "kept.txt"}
    cells = result.folder / "cells"
    before = {file: file.stat().st_mtime_ns for file in (*cells.glob("*/cell.json"), cells / "full-s0/weights/best.pt")}
    further = compare(config, arms=arms, **more, **terms(home))
    assert further.folder == result.folder
    assert {file: file.stat().st_mtime_ns for file in before} == before
    added = [row for row in further.rows if row.arm in ("el2n", "forgetting")]
    drawn = [row for row in further.rows if row.arm == "infobatch"]
    assert [row for row in further.rows if row not in (*added, *drawn)] == result.rows
    assert [18 <= row.images <= 24 for row in drawn] == [True, True]  # of an epoch, in the mean
    assert [(row.budget, row.images) for row in added] == 2 * [(EPOCHS, 18), (UPDATES, 18)]
    watched = export.read(cells / "full-s0" / "watched")[1]
    by_error = select_kept(watched.columns["early_error"], 0.25, seed=0)
    kept = {os.path.realpath(p) for p in (result.folder / "el2n-0.25-s0" / "train").rglob("*.png")}
    assert kept == {os.path.realpath(p) for p, row in zip(watched.paths, by_error, strict=True) if row}
    with pytest.raises(ConfigError, match=r"holds another .arms el2n, forgetting, infobatch.: choose another"):
        compare(config, arms=arms[:4], **more, **terms(home))


@pytest.mark.slow
def test_an_arm_of_copies_is_refused_where_images_are_not_compared(compared):
    home, _ = compared
    config = {"model": str(home / "small-cls.yaml"), "data": str(home / "set"), "device": "cpu"}
    with pytest.raises(ConfigError, match="for the arm duplicates-only, but a classifier compares none: leave the arm"):
        compare(config, arms=("duplicates-only",), **terms(home))


@pytest.mark.slow
def test_an_arm_of_boxes_is_refused_for_classes(compared):
    home, _ = compared
    config = {"model": str(home / "small-cls.yaml"), "data": str(home / "set"), "device": "cpu"}
    with pytest.raises(ConfigError, match=r"a detector for the arm afss, .* is for classify: leave the arm out"):
        compare(config, arms=("afss",), **terms(home))


@pytest.mark.slow
def test_the_largest_share_can_be_searched_for(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=24, val=6, test=6)
    model = classes.write_architecture(tmp_path / "small-cls.yaml")
    config = {"model": str(model), "data": str(root), "epochs": 3, "imgsz": 32, "batch": 16, "device": "cpu"}
    more = {"nbs": 8, "plots": False, "verbose": False, "project": str(tmp_path / "runs")}
    result = compare(config, prune="auto", seeds=1, margin=100, **more)
    tried = result.facts["auto"]["tried"]
    assert any(
        f"{100 * entry['share']:.0f}% {'yes' if entry['within'] else 'no'}" in result.report() for entry in tried
    )
    assert "of 100 is" in result.facts["auto"]["line"] or result.facts["auto"]["share"] is None


# ---- packed sets


def _pack(folder, *, per_class=4):
    """A packed set of flat grey pictures; number i is of class i % 3 and grey i."""
    import cv2

    folder.mkdir()
    arrays = {}
    for split, count in (("train", 3 * per_class), ("test", 3)):
        parts = [cv2.imencode(".jpg", np.full((8, 8, 3), i, np.uint8))[1].tobytes() for i in range(count)]
        (folder / f"{split}.jpgs").write_bytes(b"".join(parts))
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, parts)])
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(folder / "index.npz", **arrays)
    return folder


def test_a_packed_set_keeps_its_bytes_its_order_and_its_classes(tmp_path):
    source = _pack(tmp_path / "packed")
    images = unpack.unpack(source, tmp_path / "set", names=("ant", "bee", "cat"))
    assert [p.relative_to(tmp_path / "set").as_posix() for p in images[:4]] == [
        "train/ant/000000.jpg",
        "train/bee/000001.jpg",
        "train/cat/000002.jpg",
        "train/ant/000003.jpg",
    ]
    assert b"".join(p.read_bytes() for p in images) == (source / "train.jpgs").read_bytes()
    assert len(list((tmp_path / "set" / "test").rglob("*.jpg"))) == 3


def test_arrays_are_written_as_they_are(tmp_path):
    import cv2

    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", train_images=pictures, train_labels=np.array([0, 1, 0, 1]))
    images = unpack.unpack(tmp_path / "set.npz", tmp_path / "set")
    for i, file in enumerate(images):
        np.testing.assert_array_equal(cv2.imread(str(file))[:, :, ::-1], pictures[i])


@pytest.mark.parametrize("kind", ["npz", "npy", "txt"])
def test_a_mask_over_the_original_order_becomes_a_list_also_of_a_part(tmp_path, kind):
    source = _pack(tmp_path / "packed")
    kept = np.arange(12) % 2 == 0
    file = tmp_path / f"mask.{kind}"
    if kind == "npz":
        np.savez(file, kept=kept)
    elif kind == "npy":
        np.save(file, kept)
    else:
        file.write_text("\n".join(map(str, np.flatnonzero(kept))), encoding="utf-8")
    words = [
        str(source),
        str(tmp_path / "set"),
        "--take",
        "6",
        "--mask",
        str(file),
        "--list",
        str(tmp_path / "kept.txt"),
    ]
    assert unpack.main(words) == 0
    images = sorted((tmp_path / "set" / "train").rglob("*.jpg"))
    assert [len(list((tmp_path / "set" / "train" / c).iterdir())) for c in "012"] == [2, 2, 2]
    listed = (tmp_path / "kept.txt").read_text(encoding="utf-8").split()
    assert sorted(listed) == [str(p) for p in images if int(p.stem) % 2 == 0]


@pytest.mark.parametrize("take", [7, 15, 0])
def test_a_part_that_cannot_be_balanced_is_refused(tmp_path, take):
    labels = np.arange(12) % 3
    with pytest.raises(ConfigError, match=f"but got {take}"):
        unpack.balanced(labels, take, seed=0)


def test_what_is_no_packed_set_or_mask_is_refused_in_one_line(tmp_path, capsys):
    assert unpack.main([str(tmp_path / "nothing"), str(tmp_path / "set")]) == 2
    source = _pack(tmp_path / "packed")
    np.save(tmp_path / "short.npy", np.ones(3, bool))
    assert unpack.main([str(source), str(tmp_path / "set"), "--mask", str(tmp_path / "short.npy")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Expected a packed set in ")
    assert lines[1].startswith("Expected a mask over the images in ")
    shutil.rmtree(tmp_path / "set")
    assert not Path("kept.txt").exists()
