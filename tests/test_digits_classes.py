"""The embedded classification set: what is planted is where truth.csv says, and it is built once."""

import csv
from collections import Counter

import cv2
import numpy as np
import pytest

from yolo_adapruner.data import digits_classes
from yolo_adapruner.data.digits import digest, load_truth
from yolo_adapruner.errors import ConfigError, DataError

SMALL = {"train": 120, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return digits_classes.build(tmp_path_factory.mktemp("digits") / "set", **SMALL)


def _rows(root):
    with (root / "truth.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_what_was_planted_is_recorded(root):
    rows = [row for row in _rows(root) if row["split"] == "train"]
    assert Counter(row["kind"] for row in rows) == {"clean": 102, "classes": 12, "duplicate": 6}
    for row in rows:
        assert (row["path"].split("/")[1] != row["digit"]) == (row["kind"] == "classes")
    assert Counter(Counter(row["group"] for row in rows if row["group"]).values()) == {2: 6}


def test_val_and_test_are_clean_and_every_class_has_its_folder(root):
    assert {row["kind"] for row in _rows(root) if row["split"] != "train"} == {"clean"}
    for split in ("train", "val", "test"):
        assert sorted(p.name for p in (root / split).iterdir()) == [str(i) for i in range(10)]


def test_truth_names_the_files_that_are_there(root):
    assert set(load_truth(root)) == {p.as_posix() for p in root.glob("*/*/*.png")}


def test_a_copy_looks_like_its_original_and_like_nothing_else(root):
    rows = [row for row in _rows(root) if row["split"] == "train"]
    small = {r["path"]: cv2.blur(cv2.imread(str(root / r["path"])), (5, 5)).astype(float) for r in rows}

    def apart(a, b):
        return np.abs(small[a] - small[a].mean() - small[b] + small[b].mean()).mean()

    for copy in (r for r in rows if r["kind"] == "duplicate"):
        near = min((r for r in rows if r is not copy), key=lambda r: apart(copy["path"], r["path"]))
        assert near["group"] == copy["group"]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(root, tmp_path):
    assert digest(digits_classes.build(tmp_path / "a", **SMALL)) == digest(root)
    assert digest(digits_classes.build(tmp_path / "b", **SMALL, seed=1)) != digest(root)


def test_it_is_built_once_and_refuses_a_folder_of_something_else(root, tmp_path):
    before = (root / "truth.csv").stat().st_mtime_ns
    assert digits_classes.build(root, **SMALL) == root
    assert (root / "truth.csv").stat().st_mtime_ns == before
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="holds something else: move it"):
        digits_classes.build(tmp_path, **SMALL)
    next(root.glob("val/*/*.png")).rename(tmp_path / "gone.png")
    with pytest.raises(DataError, match="pictures are missing: delete it"):
        digits_classes.build(root, **SMALL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"val": 5000}, "but got 5000: there are no more"), ({"noise": 0.9, "duplicates": 0.2}, "plant fewer")],
)
def test_more_than_there_is_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        digits_classes.build(tmp_path / "set", **{**SMALL, **changes})
    assert not (tmp_path / "set").exists()
