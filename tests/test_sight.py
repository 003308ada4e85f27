"""Classes that the detector does not see as yet: who they are, and that their boxes say nothing of their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers import build_set, train_here
from tests.test_rehearse import Asked, mixed, random_assignment
from yolo_adapruner.core import distributed
from yolo_adapruner.data.labels import Labels
from yolo_adapruner.engine import rehearse, trainer
from yolo_adapruner.engine import sight as sight_module
from yolo_adapruner.engine.rehearse import FEATURES, OBJECTS, Rehearsal, Spoilt, features
from yolo_adapruner.engine.sight import Sight

CPU = torch.device("cpu")
PLATELETS = 2


def noted(confidence: dict[int, list[float]], classes: int = 4) -> Sight:
    """What is known after an epoch with these confidences at the boxes of each class."""
    sight = Sight(classes)
    sight.open_epoch()
    for cls, values in confidence.items():
        for value in values:  # a batch each, with a row of padding
            sight.note(torch.tensor([[cls, 0]]), torch.tensor([[-np.log(value), 50.0]]), torch.tensor([[True, False]]))
    sight.close_epoch(CPU)
    return sight


@pytest.mark.parametrize(
    ("confidence", "silent"),
    [
        ({0: [0.4] * 9, 1: [0.6], 2: [1e-4] * 2}, [2]),
        ({0: [0.4] * 9, 1: [0.6], 2: [0.04] * 2}, []),  # hard, and seen
        ({0: [1e-4] * 3, 1: [1e-4], 2: [1e-4]}, []),  # nothing has been learned yet
        ({0: [0.4] * 9, 2: [1e-4, 0.9, 0.9]}, []),  # one box of three
        ({0: [0.4], 2: [1e-4] * 30}, []),  # nearly all boxes: there is nothing else to go by
    ],
    ids=["unseen", "hard", "none", "one-box", "most"],
)
def test_a_class_is_silent_whose_boxes_show_next_to_no_confidence_beside_others(confidence, silent) -> None:
    sight = noted(confidence)
    assert np.flatnonzero(sight.silent).tolist() == silent
    unheard = sight.unheard(CPU)
    assert (unheard is None) == (not silent)
    assert unheard is None or unheard.tolist() == sight.silent.tolist()


def test_it_is_heard_once_it_is_seen_and_says_when_that_changes() -> None:
    sight = noted({0: [0.5] * 9, 2: [1e-4]})
    assert sight.silent.tolist() == [False, False, True, False]
    assert not sight.close_epoch(CPU), "an epoch that noted nothing says nothing"
    assert sight.silent[PLATELETS]
    sight.note(torch.tensor([[0, 2]]), torch.tensor([[0.7, 0.9]]), torch.ones(1, 2, dtype=torch.bool))
    assert sight.close_epoch(CPU)
    assert not sight.silent.any()


def test_an_epoch_that_is_begun_again_and_readings_that_are_none_do_not_count() -> None:
    sight = Sight(3)
    every = torch.ones(1, 2, dtype=torch.bool)
    sight.note(torch.tensor([[0, 2]]), torch.tensor([[0.5, 9.0]]), every)
    sight.open_epoch()
    sight.note(torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.5]]), every)
    sight.note(torch.tensor([[0, 2]]), torch.tensor([[0.5, torch.nan]]), every)
    sight.note(torch.tensor([[0, 2]]), torch.tensor([[0.5, torch.inf]]), every)
    assert not sight.close_epoch(CPU)
    assert not sight.silent.any()


def test_what_all_processes_have_seen_counts(monkeypatch) -> None:
    def add_up(arrays, device):
        arrays[0][:, PLATELETS] += 27.0, 3.0

    monkeypatch.setattr(distributed, "add_up", add_up)
    sight = noted({0: [0.5] * 9})
    assert np.flatnonzero(sight.silent).tolist() == [PLATELETS]


def test_it_goes_on_where_it_was() -> None:
    sight = noted({0: [0.5] * 9, 2: [1e-4]})
    other = Sight(4)
    other.load_state_dict(sight.state_dict())
    assert np.array_equal(other.silent, sight.silent)


@pytest.mark.parametrize("layers", [0, 1, 2], ids=["unmixed", "mosaic", "blend"])
def test_boxes_of_an_unseen_class_have_no_part_in_what_is_read_of_labels(layers) -> None:
    """As if they were not there; but they explain what is predicted at their places, and are counted."""
    seen = random_assignment(0, images=12)
    if layers:
        seen = mixed(seen, layers, 3)
    sight = Sight(3)
    sight.silent[PLATELETS] = True
    own = seen.gt_labels[..., 0] == PLATELETS
    assert (own & seen.gt_valid[..., 0]).any()
    answering = seen.foreground & ~own.gather(1, seen.gt_index)
    without = replace(seen, gt_valid=seen.gt_valid & ~own[..., None], foreground=answering)
    found, expected, every = features(seen, sight=sight), features(without), features(seen)
    same = [FEATURES.index(name) for name in ("missing", "extra", "extras", "count")]
    others = [at for at in range(len(FEATURES)) if at not in same]
    torch.testing.assert_close(found[:, others], expected[:, others], equal_nan=True)
    torch.testing.assert_close(found[:, same], every[:, same], rtol=0, atol=0, equal_nan=True)
    assert not torch.allclose(found.nan_to_num(), every.nan_to_num())


@pytest.mark.parametrize("limit", [1000, 0], ids=["at-once", "one-after-the-other"])
def test_an_epoch_notes_labels_as_they_are_and_gives_the_channels_of_all_classes(limit, monkeypatch) -> None:
    monkeypatch.setattr(rehearse, "_FEW_ANCHORS", limit)
    seen = random_assignment(1)
    other = replace(random_assignment(2, most=8), scores=seen.scores, boxes=seen.boxes)
    asked = []
    monkeypatch.setattr(Sight, "note", lambda self, cls, unseen, valid: asked.append((cls[valid], unseen[valid])))
    rehearsal = Rehearsal([Labels(np.zeros(1, np.int64), np.array([[0.1, 0.1, 0.5, 0.5]]))], 10, 3, 0)
    rehearsal.sight.silent[PLATELETS] = True
    spoilt = Spoilt(other.gt_labels, other.gt_boxes, other.gt_valid.float(), torch.zeros(0), torch.ones(4) > 0)
    found = rehearsal.readings(Asked(seen, other), spoilt)
    labels = torch.cat([cls for cls, _ in asked])
    assert sorted(labels.tolist()) == sorted(seen.gt_labels[seen.gt_valid].long().tolist())
    torch.testing.assert_close(found[:, -len(OBJECTS) :], features(seen)[:, : len(OBJECTS)], equal_nan=True)
    masked = features(seen, sight=rehearsal.sight)
    torch.testing.assert_close(found[:, : len(FEATURES)], masked, equal_nan=True)
    torch.testing.assert_close(
        found[:, len(FEATURES) : 2 * len(FEATURES)], features(other, sight=rehearsal.sight), equal_nan=True
    )


def test_a_run_says_which_classes_it_does_not_see_and_visits_their_images_as_hard_ones(tmp_path, monkeypatch) -> None:
    """With a bar that any class but the best is under: what is drawn by has all boxes in it, what is judged has not."""
    said, drawn, judged = [], [], []
    data = build_set(tmp_path / "set", train=16, val=4)
    monkeypatch.setattr(sight_module, "UNSEEN", 0.0)
    monkeypatch.setattr(trainer.LOGGER, "info", lambda line, *_: said.append(str(line)))
    add = trainer.Visits.add
    monkeypatch.setattr(
        trainer.Visits,
        "add",
        lambda self, ids, values, views: drawn.append(values.copy()) or add(self, ids, values, views),
    )
    observe = trainer.Pruner.observe

    def noting(self, ids, values, *args, **kwargs):
        judged.append(np.array(values))
        return observe(self, ids, values, *args, **kwargs)

    monkeypatch.setattr(trainer.Pruner, "observe", noting)
    ran = train_here(data, tmp_path / "run", method={"warmup": 1, "joint": 0.6}, epochs=6)
    assert ran._rehearsal.sight.silent.any()
    assert any("not seen as yet: they do not count when labels are judged" in line for line in said)
    differ = [not np.array_equal(a[:, :3], b[:, :3], equal_nan=True) for a, b in zip(drawn, judged, strict=False)]
    assert any(differ), "drawn by all boxes, judged by those of the classes that are seen"
