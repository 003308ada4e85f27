"""A watched training: readings by hand, nothing about the training changed, each reading at its own image."""

import math

import numpy as np
import pytest
import torch

from tests import classes, helpers
from tests.test_channels import BOX, FAR, QUIET, assignment
from yolo_adapruner import AdaPruneClassificationTrainer
from yolo_adapruner.config import load
from yolo_adapruner.data import export
from yolo_adapruner.engine import run
from yolo_adapruner.engine.classloss import Answer
from yolo_adapruner.engine.owners import Owned
from yolo_adapruner.engine.watch import box_readings, class_readings
from yolo_adapruner.errors import RunError
from yolo_adapruner.study.baselines import area_under_margin, error_norm, forgetting_events, margins, most_error

NAN = math.nan
HALF = (20.0, 10.0, 40.0, 30.0)  # IoU 1/3 with BOX


def logit(p: float) -> float:
    return math.log(p / (1 - p))


NOTHING = logit(0.25)
BOXES = [
    # name, labels, predictions; share right, margin
    ("found", [(0, BOX)], [(BOX, (0.9, 0.1), 0)], 1.0, logit(0.9) - NOTHING),
    ("another class is louder", [(0, BOX)], [(BOX, (0.4, 0.8), 0)], 0.0, logit(0.4) - logit(0.8)),
    ("too quiet to be shown", [(0, BOX)], [(BOX, (0.2, 0.1), 0)], 0.0, logit(0.2) - NOTHING),
    ("right class, wrong place", [(0, BOX)], [(HALF, (0.9, 0.1), 0)], 0.0, logit(0.9) - NOTHING),
    ("one anchor is enough", [(0, BOX)], [(BOX, (0.5, 0.1), 0), (HALF, (0.1, 0.1), 0)], 1.0, logit(0.5) - NOTHING),
    ("no anchor answers", [(0, BOX)], [QUIET], 0.0, NAN),
    ("one of two", [(0, BOX), (1, FAR)], [(BOX, (0.9, 0.0), 0), (FAR, (0.9, 0.5), 1)], 0.5, None),
]


@pytest.mark.parametrize(("labels", "anchors", "right", "margin"), [c[1:] for c in BOXES], ids=[c[0] for c in BOXES])
def test_an_image_s_objects_by_hand(labels, anchors, right, margin):
    found = box_readings(assignment((labels, anchors)), torch.tensor([False]), error=False)[0]
    if margin is None:  # the mean over objects
        margin = (logit(0.9) - NOTHING + logit(0.5) - logit(0.9)) / 2
    assert found[:2].tolist() == pytest.approx([right, margin], rel=1e-4, nan_ok=True)
    assert found[2].isnan()


@pytest.mark.parametrize(("p", "right"), [(0.1, 1.0), (0.6, 0.0)])
def test_an_image_without_boxes_is_right_where_nothing_is_found(p, right):
    found = box_readings(assignment(([], [(BOX, (0.05, p), None), QUIET])), torch.tensor([True]), error=False)[0]
    assert found[:2].tolist() == pytest.approx([right, NOTHING - logit(p)], rel=1e-4)


def test_an_image_whose_objects_were_all_cut_away_says_nothing():
    found = box_readings(assignment(([], [QUIET])), torch.tensor([False]), error=False)
    assert found.isnan().all()


def test_a_mixed_image_s_readings_go_to_the_owners_of_its_labels_and_places():
    labels, anchors = [(0, BOX), (1, FAR)], [(BOX, (0.9, 0.0), 0), (FAR, (0.9, 0.5), 1), (FAR, (0.7, 0.0), None)]
    plain = assignment((labels, anchors))
    owned = Owned(3, torch.tensor([[0, 2]]), torch.tensor([[[0, 2, 1]]]), torch.ones(1, 1))
    seen = type(plain)(**{**vars(plain), "owned": owned})
    found = box_readings(seen, torch.tensor([False, True, False]), error=False)
    expected = [[1.0, logit(0.9) - NOTHING], [0.0, NOTHING - logit(0.7)], [0.0, logit(0.5) - logit(0.9)]]
    assert found[:, :2].tolist() == [pytest.approx(row, rel=1e-4) for row in expected]


def test_the_error_is_the_norm_of_the_arm_s_formula():
    seen = assignment(([(0, BOX)], [(BOX, (0.6, 0.1), 0), (FAR, (0.9, 0.1), None)]), ([], [QUIET, QUIET]))
    found = box_readings(seen, torch.tensor([False, True]), error=True)[:, 2]
    worst = -math.log(1 - 0.9) / 2  # of two anchors, the other is the object's
    by_hand = most_error(np.array([0.0, NAN]), np.array([-math.log(0.6), NAN]), np.array([worst, 0.0]))
    assert found.tolist() == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_a_classifier_s_readings_are_the_published_ones():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    found = class_readings(Answer(torch.tensor(logits), torch.tensor(labels))).numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found[:, 0].tolist() == (logits.argmax(1) == labels).tolist()
    assert found[:, 1] == pytest.approx(margins(logits, labels), abs=1e-5)
    assert found[:, 2] == pytest.approx(error_norm(p, labels), abs=1e-5)


def test_an_answer_that_is_not_finite_says_nothing():
    logits = torch.tensor([[1.0, torch.inf], [1.0, 0.0]])
    assert class_readings(Answer(logits, torch.tensor([0, 0]))).isnan().all(1).tolist() == [True, False]


# In a training


def weights(trainer) -> dict[str, torch.Tensor]:
    return torch.load(trainer.last, weights_only=False)["model"].float().state_dict()


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return helpers.build_set(tmp_path_factory.mktemp("watched") / "set", train=20, val=4)


@pytest.mark.slow
def test_watching_changes_no_bit_of_a_training_of_boxes(data, tmp_path):
    settings = {"share": 0, "mosaic": 1.0, "close_mosaic": 1, "epochs": 2}
    plain = helpers.train_here(data, tmp_path / "plain", **settings)
    watched = helpers.train_here(data, tmp_path / "watched", watched=True, **settings)
    assert same(plain, watched)
    _, outcome = export.read(tmp_path / "watched")
    assert outcome.kept.all()
    for name in ("margin", "early_error"):
        assert np.isfinite(outcome.columns[name]).sum() >= 18  # a small box may have no anchor in one epoch
        assert len(set(outcome.columns[name])) > 10
    assert "margin" not in export.read(tmp_path / "plain")[1].columns


@pytest.mark.slow
def test_a_classifier_s_forgetting_is_that_of_its_own_answers(tmp_path):
    """Noted beside it at each step, image by image, by the rows that the loader drew."""
    root = classes.build_folders(tmp_path / "set", train=24, val=6)
    noted: list[np.ndarray] = []

    def begin(trainer):
        noted.append(np.full((24, 2), np.nan))

    def note(trainer):
        answer = held[-1]
        right = answer.logits.argmax(1) == answer.labels
        noted[-1][trainer._batch_ids, 0] = right
        noted[-1][trainer._batch_ids, 1] = margins(answer.logits.numpy(), answer.labels.numpy())

    held: list = []

    class Told(AdaPruneClassificationTrainer):
        def _watched(self, *, error):
            held.append(self._tap.answer)
            return super()._watched(error=error)

    told = {"on_train_epoch_start": begin, "on_train_batch_end": note}
    watched = classes.train_here(
        root, tmp_path / "run", share=0, watched=True, epochs=6, trainer=Told, callbacks=told, lr0=0.01
    )
    assert same(classes.train_here(root, tmp_path / "plain", share=0, epochs=6, lr0=0.01), watched)
    right, margin = np.stack(noted, 1)[..., 0], np.stack(noted, 1)[..., 1]
    columns = export.read(tmp_path / "run")[1].columns
    assert columns["forgotten"].tolist() == forgetting_events(right).tolist()
    assert columns["margin"] == pytest.approx(area_under_margin(margin), abs=1e-4)
    assert columns["forgotten"][np.isfinite(columns["forgotten"])].sum() > 0


@pytest.mark.slow
def test_an_interrupted_watch_ends_as_one_that_was_not(tmp_path):
    root = classes.build_folders(tmp_path / "set", train=24, val=6)
    model = classes.write_architecture(tmp_path / "small-cls.yaml")
    settings = {"imgsz": 32, "epochs": 5, "batch": 8, "device": "cpu", "lr0": 0.01, "optimizer": "AdamW"}
    settings |= {"nbs": 8, "plots": False, "verbose": False}
    config = load({"model": str(model), "data": str(root)}, settings).with_prune(0.0)
    whole = run.train(config, save_dir=tmp_path / "whole", watched=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaPruneClassificationTrainer, "save_model", interrupting(AdaPruneClassificationTrainer))
        for name, watched in (("cut", True), ("blind", False)):
            with pytest.raises(KeyboardInterrupt):
                run.train(config, save_dir=tmp_path / name, watched=watched)
    again = run.resume(tmp_path / "cut", watched=True)
    columns, expected = (export.read(result.folder)[1].columns for result in (again, whole))
    for name in ("forgotten", "margin", "early_error"):
        np.testing.assert_array_equal(columns[name], expected[name])
    with pytest.raises(RunError, match=r"watched from its first epoch on, but .*blind was not: start a new run"):
        run.resume(tmp_path / "blind", watched=True)


def interrupting(kind):
    """The trainer's way to save, and the third epoch does not come to it."""
    original = kind.save_model

    def save(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    return save
