"""Floors, the keep list, reasons and drift in whole runs, small ones; and what labels say of classes and sizes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers import build_set, label_of, read_list, train_here, training_images
from yolo_adapruner import cli
from yolo_adapruner.config import PruneConfig, load
from yolo_adapruner.engine.labels import groups
from yolo_adapruner.engine.trainer import Stage
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study.summary import selection_lines

QUICKLY = {"warmup": 1, "joint": 0.5}


def label(file: str, boxes: list[tuple[int, float, float]], shape: tuple[int, int]) -> dict:
    """A label as Ultralytics holds it: class, width and height of each box."""
    cls, wh = np.array([b[0] for b in boxes]).reshape(-1, 1), np.array([b[1:] for b in boxes]).reshape(-1, 2)
    return {"im_file": file, "cls": cls, "bboxes": np.hstack([np.full_like(wh, 0.5), wh]), "shape": shape}


def test_classes_and_sizes_of_labels_by_hand():
    # at imgsz 640: 0.05 * 640 = 32, 0.15 * 640 = 96; the second image is half as high as wide
    square = label("/b.jpg", [(0, 0.049, 0.049), (0, 0.05, 0.05), (1, 0.15, 0.15), (1, 0.149, 0.149)], (100, 100))
    wide = label("/a.jpg", [(0, 0.05, 0.05), (0, 0.05, 0.1)], (100, 200))
    labels = [square, wide, label("/c.jpg", [], (100, 100)), square]
    data = SimpleNamespace(im_files=[x["im_file"] for x in labels], labels=labels, rect=False)
    found = groups(data, ["/a.jpg", "/b.jpg", "/c.jpg"], {0: "x", 1: "y", 2: "x"}, 640)
    assert list(found.name) == ["x (0)", "y", "x (2)", "small", "medium", "large", "background"]
    dense = np.zeros((3, 7), int)
    dense[found.sample, found.group] = found.count
    assert dense.tolist() == [[2, 0, 0, 1, 1, 0, 0], [2, 2, 0, 1, 2, 1, 0], [0, 0, 0, 0, 0, 0, 1]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of which the first three images must stay and one image alone has crosses; its weights, an epoch each."""
    root = tmp_path_factory.mktemp("floors")
    data = build_set(root / "set", empty=4)
    images = training_images(data)
    for i, image in enumerate(images[:-4]):
        label_of(image).write_text(f"{2 if i == 5 else i % 2} 0.5 0.5 0.3 0.3\n", encoding="utf-8")
    (root / "keep.txt").write_text("".join(f"{image}\n" for image in images[:3]), encoding="utf-8")
    weights = []
    watch = {"on_train_batch_start": lambda t: weights.append((t.pruner.stage, t.pruner.weights()))}
    method = {**QUICKLY, "keep": str(root / "keep.txt"), "s_start": 5.0}
    trainer = train_here(data, root / "run", share=0.5, method=method, epochs=6, callbacks=watch)
    return root, images, trainer, weights


def test_the_share_is_exact_and_nothing_rare_and_nothing_listed_goes(finished):
    root, images, _, _ = finished
    dropped = read_list(root / "run" / "dropped.txt")
    assert len(dropped) == 12
    assert not set(dropped) & {str(images[i]) for i in (0, 1, 2, 5)}
    assert len({str(image) for image in images[-4:]} & set(dropped)) <= 2  # ceil(0.8 * 0.5 * 4) of the empty stay


def test_listed_images_are_outside_the_game(finished):
    _, _, trainer, weights = finished
    joint = [w for stage, w in weights if stage is Stage.JOINT]
    assert all((w[:3] == 1).all() for w in joint)
    assert any((w[3:] < 0.5).any() for w in joint)
    assert (trainer.pruner.mask.logits[:3] == 1).all()


def test_the_manifest_and_the_closing_lines_say_what_was_lost(finished):
    root, _, _, _ = finished
    manifest = json.loads((root / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["drift"]["classes"]["cross"] == [1, 1]
    assert manifest["drift"]["boxes"][0] == 20
    assert manifest["drift"]["background"][0] == 4
    assert manifest["floor"]["held"] >= 0.8
    assert manifest["required"] == 3
    assert sum(manifest["reasons"].values()) == 12
    lines = selection_lines(SimpleNamespace(folder=root / "run"))
    assert [name for name, _ in lines] == ["reasons", "drift"]
    reasons, drift = (words for _, words in lines)
    assert sum(int(part.split()[0]) for part in reasons.split(" (")[0].split(", ")) <= 12
    assert "class cross 5.0% -> " in drift


def test_a_list_that_leaves_too_little_to_drop_ends_the_run_before_it_trains(tmp_path):
    data = build_set(tmp_path / "set")
    (tmp_path / "keep.txt").write_text("".join(f"{i}\n" for i in training_images(data)[:20]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"20 of 24 must: prune at most 0\.16 or shorten the keep list"):
        train_here(data, tmp_path / "run", share=0.25, method={"keep": str(tmp_path / "keep.txt")})
    assert not (tmp_path / "run" / "results.csv").exists()


def test_a_resumed_run_refuses_another_list(finished):
    _, _, trainer, _ = finished
    with pytest.raises(RunError, match="as it was when the run began"):
        trainer.take_up_mask({**trainer.mask_state(), "required": np.arange(24) < 4})


# Where it is said


def test_keep_is_a_flag_a_word_and_a_setting_and_means_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "keep.txt")
    assert PruneConfig(keep="keep.txt").keep == wanted
    for given in ({"keep": "keep.txt"}, {"prune.keep": "keep.txt"}, {"prune": 0.2, "keep": "keep.txt"}):
        assert load({"model": "m.yaml", "data": "d.yaml"}, given).prune.keep == wanted


def test_keep_beside_resume_is_refused(tmp_path, capsys):
    assert cli.main(["train", "--resume", str(tmp_path), "--keep", "keep.txt"]) == 2
    assert "got --keep as well" in capsys.readouterr().err
