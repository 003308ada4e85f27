"""A classifier's judge: what the same logits would say of a wrong label tells which labels are wrong."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch

from tests import classes
from yolo_adapruner.core.suspicion import Suspicion
from yolo_adapruner.engine.classloss import CHANNELS, Answer, class_channels, rehearsed_labels
from yolo_adapruner.engine.judge import CLASSES, FaultJudge, judge
from yolo_adapruner.errors import DataError

N, C, WRONG = 400, 5, 40


def answers(sure: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Logits of a classifier that sees the true class, labels of which the first `WRONG` are others, true classes."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, C, N)
    logits = rng.normal(0, 1, (N, C))
    logits[np.arange(N), true] += sure
    given = true.copy()
    given[:WRONG] = rehearsed_labels(true[:WRONG], C, seed + 1)
    return torch.from_numpy(logits), given, true


def read(logits: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    return class_channels(Answer(logits, torch.from_numpy(labels))).numpy().astype(float)


def test_a_rehearsed_label_is_any_other_class_and_the_same_all_through_a_run():
    labels = np.random.default_rng(0).integers(0, C, 20_000)
    found = rehearsed_labels(labels, C, seed=3)
    assert (found != labels).all()
    assert ((found >= 0) & (found < C)).all()
    counts = np.bincount((found - labels) % C, minlength=C)[1:]
    np.testing.assert_allclose(counts / len(labels), 1 / (C - 1), atol=0.01)
    np.testing.assert_array_equal(found, rehearsed_labels(labels, C, seed=3))
    assert (found != rehearsed_labels(labels, C, seed=4)).mean() > 0.5
    assert rehearsed_labels(np.array([0, 1, 1]), 2, seed=0).tolist() == [1, 0, 0]


@pytest.mark.parametrize("sure", [4.0, 6.0])
def test_wrong_labels_are_told_from_hard_images_and_counted(sure):
    logits, given, _ = answers(sure)
    others = rehearsed_labels(given, C, seed=0)
    kinds = np.array(CLASSES.kinds * N)
    verdict = judge(read(logits, given), read(logits, others), kinds, columns=CLASSES)
    suspect = verdict.suspicion > 0
    assert suspect[:WRONG].mean() > 0.9
    assert suspect[WRONG:].mean() < 0.06
    assert set(verdict.kind) == {"swapped"}
    told = Suspicion(N, FaultJudge(kinds, 0, torch.device("cpu"), CLASSES))
    told.learn(read(logits, given), read(logits, others), np.ones(N))
    assert told.share == pytest.approx(WRONG / N, abs=0.04)


def test_where_all_labels_are_right_hardly_any_is_said_to_be_wrong():
    logits, _, true = answers(4.0)
    told = Suspicion(N, FaultJudge(np.array(CLASSES.kinds * N), 0, torch.device("cpu"), CLASSES))
    told.learn(read(logits, true), read(logits, rehearsed_labels(true, C, seed=0)), np.ones(N))
    assert told.share < 0.03
    assert (told.wrong > np.log(2)).mean() < 0.03


def test_too_few_images_to_learn_from_leave_it_silent():
    few = np.full((9, len(CHANNELS)), 0.5)
    with pytest.raises(DataError, match="1 kinds"):
        judge(few, few, np.array(CLASSES.kinds * 9), columns=CLASSES)
    assert (
        FaultJudge(np.array(CLASSES.kinds * 9), 0, torch.device("cpu"), CLASSES)(few, few, np.ones(9), np.ones(9, bool))
        is None
    )


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A set of 100 training images, 10 of them under a wrong class, and the paths of those."""
    root = classes.build_folders(tmp_path_factory.mktemp("spoilt") / "set", train=100, val=9)
    moved = []
    for i, file in enumerate(sorted((root / "train").rglob("*.png"))[::10]):
        others = [name for name in classes.NAMES if name != file.parent.name]
        target = root / "train" / others[i % 2] / f"moved-{i}.png"
        shutil.move(file, target)
        moved.append(str(target))
    return root, moved


@pytest.mark.slow
def test_a_run_drops_the_images_under_wrong_classes_and_says_so(spoilt, tmp_path):
    root, moved = spoilt
    trainer = classes.train_here(
        root, tmp_path / "run", share=0.1, epochs=16, method={"warmup": 8, "joint": 0.4}, lr0=0.01
    )
    scores = pl.read_csv(tmp_path / "run" / "scores.csv", infer_schema_length=None)
    gone = scores.filter(~pl.col("kept"))
    hit = gone.filter(pl.col("path").is_in(moved))
    assert len(gone) == 10
    assert (hit["reason"] == "label suspect").sum() >= 7
    assert set(hit["reason"]) <= {"label suspect", "doubtful"}
    assert set(hit["detail"]) == {"swapped"}
    assert trainer.pruner.suspicion.share == pytest.approx(0.1, abs=0.05)


@pytest.mark.slow
def test_without_the_judge_the_channels_judge(spoilt, tmp_path):
    trainer = classes.train_here(spoilt[0], tmp_path / "run", share=0.1, epochs=6, method={"warmup": 2, "judge": False})
    assert np.isnan(trainer.pruner.suspicion.log_odds).all()
    assert np.isfinite(trainer.pruner.signal).all()
    assert trainer.pruner.lots is None
