"""Class folders of links, and equal images under two classes: files alone, nothing is trained."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests import classes
from yolo_adapruner.data import classfolders
from yolo_adapruner.data.export import Outcome, export, write
from yolo_adapruner.errors import DataError


@pytest.fixture
def found(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=6, val=3)
    (root / "train" / "empty").mkdir()
    names = dict(enumerate(sorted((*classes.NAMES, "empty"))))
    return {"names": names, "train": str(root / "train"), "val": str(root / "val"), "test": None}


def _train(data):
    return [str(p) for p in sorted(Path(data["train"]).rglob("*.png"))]


def _copies(source, target, *, target_is_directory=False):
    raise OSError("no links here")


def test_a_set_of_links_holds_what_is_kept_under_every_class(found, tmp_path):
    kept = _train(found)[:3]
    root = classfolders.write(tmp_path / "pruned", kept, found)
    assert sorted(p.name for p in (root / "train").iterdir()) == ["cross", "disc", "empty", "square"]
    links = sorted((root / "train").rglob("*.png"))
    assert [os.path.realpath(link) for link in links] == kept
    assert all(link.is_symlink() for link in links)
    assert len(list((root / "val").rglob("*/*.png"))) == 3
    assert not (root / "test").exists()


@pytest.mark.parametrize("missing", [("symlink",), ("symlink", "link")])
def test_where_links_cannot_be_files_are_linked_hard_or_copied(found, tmp_path, monkeypatch, missing):
    for name in missing:
        monkeypatch.setattr(classfolders.os, name, _copies)
    kept = _train(found)[:2]
    root = classfolders.write(tmp_path / "pruned", kept, found)
    written = sorted((root / "train").rglob("*.png"))
    assert [file.read_bytes() for file in written] == [Path(p).read_bytes() for p in kept]
    assert not any(file.is_symlink() for file in written)
    assert (os.stat(written[0]).st_ino == os.stat(kept[0]).st_ino) == (missing == ("symlink",))
    assert len(list((root / "val").rglob("*.png"))) == 3


def test_written_again_it_holds_the_new_part_alone_and_the_set_itself_is_untouched(found, tmp_path):
    before = _train(found)
    for kept in (before[:4], before[4:]):
        root = classfolders.write(tmp_path / "pruned", kept, found)
    assert [os.path.realpath(p) for p in sorted((root / "train").rglob("*.png"))] == before[4:]
    assert _train(found) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pruned", "set"]


@pytest.mark.parametrize("gone", ["set", "val", "image"])
def test_what_is_gone_is_named_and_no_link_to_nothing_is_made(found, tmp_path, gone):
    kept = _train(found)[:3]
    root = classfolders.write(tmp_path / "pruned", kept, found)
    before = sorted(root.rglob("*"))
    where = {"set": tmp_path / "set", "val": Path(found["val"]), "image": Path(kept[2])}[gone]
    where.rename(where.with_name("away"))
    with pytest.raises(DataError, match=r"of the run's data set, but it is gone: put the set back in its place\.$"):
        classfolders.write(tmp_path / "pruned", kept, found)
    assert sorted(root.rglob("*")) == before


def test_an_image_of_another_folder_is_refused(found, tmp_path):
    with pytest.raises(DataError, match=r"^Expected an image below .*, but got /elsewhere/a.png"):
        classfolders.write(tmp_path / "pruned", ["/elsewhere/a.png"], found)
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"a/1": b"x", "b/2": b"x"}, [["a/1", "b/2"]]),  # the same picture under two classes
        ({"a/1": b"x", "a/2": b"x"}, []),  # under one it is a copy, no contradiction
        ({"a/1": b"x", "b/1": b"y"}, []),  # the same name and size
        ({"a/1": b"x", "a/2": b"x", "b/3": b"x", "c/4": b"zz"}, [["a/1", "a/2", "b/3"]]),
        ({"a/1": b"x" * 5000 + b"1", "b/2": b"x" * 5000 + b"2"}, []),  # alike only in the beginning
        ({"a/1": b"x" * 5000, "b/2": b"x" * 5000}, [["a/1", "b/2"]]),
        ({"a/1": b"", "b/2": b"", "a/3": b"q", "b/4": b"q"}, [["a/1", "b/2"], ["a/3", "b/4"]]),
    ],
)
def test_contradictions_are_equal_files_under_different_classes(tmp_path, contents, expected):
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in contents]
    labels = ["abc".index(name[0]) for name in contents]
    groups = classfolders.contradictions(paths, labels)
    assert [[os.path.relpath(p, tmp_path) for p in group] for group in groups] == expected


def test_a_run_of_a_class_folder_set_is_exported_as_folders_also_at_other_shares(found, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    paths = _train(found)
    outcome = Outcome(paths, np.arange(6) > 1, {"logit": np.arange(6.0)})
    root = Path(found["train"]).parent
    data = {**found, "path": str(root), "task": "classify", "nc": 4}
    write(run, outcome, source=root, data=data, manifest={"prune": {"share": 1 / 3}, "seed": 0})
    own, half = export(run, [0.5])
    assert (own, half) == (run / "pruned", run / "prune-0.5" / "pruned")
    assert [os.path.realpath(p) for p in sorted((half / "train").rglob("*.png"))] == paths[3:]
    assert (run / "prune-0.5" / "kept.txt").read_text(encoding="utf-8").splitlines() == paths[3:]
    assert not (run / "pruned.yaml").exists()
