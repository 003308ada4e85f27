"""A recording: stock training to the bit, each reading at its own object, and what is analysed from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import QUICK, build_set, train_here, write_architecture
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.readings import EXTRA, OBJECT, TOP, objects, unexplained
from yolo_adapruner.engine.rehearse import FEATURES
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study.defects import plant
from yolo_adapruner.study.record import Recorder, main, record
from yolo_adapruner.study.truth import LABEL_KINDS


def assignment(**changes: Any) -> Assignment:
    """Two images, four predictions, two classes; the second image has no label. One prediction is unlabelled."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60], [51, 50, 61, 60]]).repeat(2, 1, 1)
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.3], [0.2, 0.8], [0.1, 0.7]]).repeat(2, 1, 1)
    fields: dict[str, Any] = {
        "scores": scores,
        "boxes": boxes,
        "gt_labels": torch.tensor([[[0.0]], [[0.0]]]),
        "gt_boxes": torch.tensor([[[0.0, 0, 10, 10]], [[0.0, 0, 0, 0]]]),
        "gt_valid": torch.tensor([[[True]], [[False]]]),
        "foreground": torch.tensor([[True, True, False, False], [False] * 4]),
        "gt_index": torch.zeros(2, 4, dtype=torch.long),
    }
    return Assignment(**{**fields, **changes})


def test_object_readings_by_hand() -> None:
    got = dict(zip(OBJECT, objects(assignment())[0, 0].tolist(), strict=True))
    assert got["localisation"] == pytest.approx((0 + 0.2) / 2)
    assert got["classification"] == pytest.approx(-np.log(1.5 / 1.9))
    assert got["presence"] == pytest.approx(-(np.log(0.9) + np.log(0.6)) / 2)
    assert [got[k] for k in ("anchors", "best_iou", "support", "labelled", "other")] == pytest.approx(
        [2, 1, 0.9, 0.9, 0.3]
    )


def test_an_object_without_anchor_says_so() -> None:
    got = dict(
        zip(OBJECT, objects(assignment(foreground=torch.zeros(2, 4, dtype=torch.bool)))[0, 0].tolist(), strict=True)
    )
    assert np.isnan(got["localisation"])
    assert got["anchors"] == 0
    assert got["support"] == pytest.approx(0.9)


def test_unexplained_predictions_are_distinct_and_free_of_labels() -> None:
    got = unexplained(assignment())
    assert got.shape == (2, TOP, len(EXTRA))
    # The two at 50 are one thing; where nothing is labelled the two at 0 are another.
    assert got[0, :2, 0].tolist() == pytest.approx([0.8, 0])
    assert got[1, :3, 0].tolist() == pytest.approx([0.9, 0.8, 0])
    assert got[0, 0].tolist() == pytest.approx([0.8, 1, 0, 100])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    return plant(build_set(folder / "clean", train=24), folder / "set", {"missing": 0.2, "near-duplicate": 0.2}).parent


def recorded(planted: Path, out: Path, **settings: Any) -> Any:
    model = str(write_architecture(out.parent / "small.yaml"))
    record(str(planted / "data.yaml"), str(planted), out, **{**QUICK, "model": model, "epochs": 3, **settings})
    return np.load(out)


@pytest.mark.slow
def test_a_recording_holds_every_label_in_its_place(planted: Path, tmp_path: Path) -> None:
    found = recorded(planted, tmp_path / "rec.npz", clean_every=2, scale=0.0, translate=0.0)
    n, owner = len(found["paths"]), found["object_image"]
    assert found["channels"].shape == (3, n, 4)
    assert found["clean_epochs"].tolist() == [1, 2]
    assert json.loads(str(found["meta"]))["epochs"] == 3
    assert sorted(np.unique(found["kind"]).tolist()) == ["clean", "missing", "near-duplicate"]
    for name in ("", "clean_"):
        seen, channels = found[f"{name}objects"], found[f"{name}channels"]
        for i in np.unique(owner):
            for c in range(3):
                own = seen[:, owner == i, c]
                mean = np.array([np.nanmean(e) if np.isfinite(e).any() else np.nan for e in own])
                assert np.allclose(mean, channels[:, i, c], atol=1e-5, equal_nan=True)
    # Rows follow the label files.
    for i, path in enumerate(found["paths"]):
        file = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        lines = [line.split() for line in file.read_text().splitlines()]
        assert found["object_class"][owner == i].tolist() == [int(line[0]) for line in lines]


@pytest.mark.slow
def test_recording_is_stock_training_to_the_bit(planted: Path, tmp_path: Path) -> None:
    trained = [
        train_here(planted / "data.yaml", tmp_path / kind.__name__, share=0.0, epochs=2, trainer=kind)
        for kind in (AdaPruneTrainer, Recorder)
    ]
    stock, watched = (t.model.state_dict() for t in trained)
    assert all(torch.equal(stock[name], watched[name]) for name in stock)
    assert len(trained[1].sheets) == len(trained[1].metric) == 2


@pytest.mark.slow
def test_every_object_of_an_augmented_image_keeps_its_row(planted: Path, tmp_path: Path) -> None:
    """Boxes leave under strong zoom; those that stay are still read under their own class."""
    found = recorded(planted, tmp_path / "rec.npz", scale=0.9, translate=0.4, epochs=4)
    seen = np.isfinite(found["objects"][..., OBJECT.index("anchors")])
    assert 0 < seen.mean() < 1
    assert seen.any(0).mean() > 0.9


@pytest.mark.slow
def test_rehearsed_faults_speak_on_their_readings_and_change_no_training(planted: Path, tmp_path: Path) -> None:
    class Rehearsing(Recorder):
        rehearse = True

    plain, asked = (
        train_here(planted / "data.yaml", tmp_path / kind.__name__, share=0.0, epochs=14, trainer=kind)
        for kind in (Recorder, Rehearsing)
    )
    stock, watched = (t.model.state_dict() for t in (plain, asked))
    assert all(torch.equal(stock[name], watched[name]) for name in stock)
    sheet, kinds = asked.sheets[-1], asked._rehearsal.kinds
    assert set(kinds) == set(LABEL_KINDS)
    assert np.allclose(sheet.features[:, :4], sheet.channels, equal_nan=True)
    count = FEATURES.index("count")
    change = np.sign(sheet.rehearsed[:, count] - sheet.features[:, count])
    for kind, signs in (("missing", {-1}), ("spurious", {1}), ("shifted", {0}), ("swapped", {0})):
        assert set(change[(kinds == kind) & np.isfinite(change)]) == signs
    for kind, reading in (("shifted", "localisation"), ("swapped", "classification")):
        column = FEATURES.index(reading)
        wrong = sheet.rehearsed[kinds == kind, column]
        assert np.nanmedian(wrong) > np.nanmedian(sheet.features[:, column])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["key"], "key=value"),
        (["mosaic=1.0"], "not mixed"),
        (["--truth", "nowhere"], "truth of a planted set"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    model = write_architecture(tmp_path / "small.yaml")
    fixed = ["--data", str(planted / "data.yaml"), "--model", str(model), "--imgsz", "64", "--epochs", "1"]
    assert (
        main([*fixed, "--out", str(tmp_path / "rec.npz"), *words, *([] if "=" not in words[0] else ["device=cpu"])])
        == 2
    )
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("Expected")
    assert said in line
    assert not (tmp_path / "rec.npz").exists()


def test_the_truth_of_another_set_is_refused(planted: Path, tmp_path: Path) -> None:
    other = plant(build_set(tmp_path / "clean", train=8, val=2), tmp_path / "set", {"missing": 0.5})
    model = str(write_architecture(tmp_path / "small.yaml"))
    with pytest.raises(ConfigError, match="knows none of its images"):
        record(str(planted / "data.yaml"), str(other.parent), tmp_path / "rec.npz", **{**QUICK, "model": model})
    with pytest.raises(DataError, match="truth"):
        record(str(planted / "data.yaml"), str(tmp_path), tmp_path / "rec.npz", **{**QUICK, "model": model})
