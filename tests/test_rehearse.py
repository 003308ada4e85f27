"""Readings under true and under spoilt labels: as they were image by image, and each owner's own where images mix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from yolo_adapruner.data.labels import Labels
from yolo_adapruner.engine import readings, rehearse
from yolo_adapruner.engine.channels import detection_channels
from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.owners import Accounts, Owned
from yolo_adapruner.engine.readings import OBJECT, TOP, objects, unexplained
from yolo_adapruner.engine.rehearse import FEATURES, READINGS, Rehearsal, Spoilt, features

SIZE = 64


def random_assignment(seed: int, images: int = 4, anchors: int = 60, classes: int = 3, most: int = 5) -> Assignment:
    """Predictions around labels and elsewhere, some images without labels, labels without anchors."""
    torch.manual_seed(seed)
    low = torch.rand(images, most, 2) * 40
    gt_boxes = torch.cat((low, low + 4 + torch.rand(images, most, 2) * 20), 2)
    count = torch.randint(0, most + 1, (images,))
    valid = torch.arange(most)[None] < count[:, None]
    index = torch.randint(0, max(most, 1), (images, anchors))
    around = gt_boxes if most else torch.tensor([[[9.0, 9, 20, 20]]]).expand(images, 1, 4)
    near = around.gather(1, index[..., None].expand(-1, -1, 4)) + torch.randn(images, anchors, 4) * 2
    low = torch.rand(images, anchors, 2) * 50
    far = torch.cat((low, low + 3 + torch.rand(images, anchors, 2) * 12), 2)
    boxes = torch.where((torch.rand(images, anchors, 1) < 0.6), near, far)
    foreground = (torch.rand(images, anchors) < 0.4) & (index < count[:, None]) & (index != 1)
    return Assignment(
        scores=torch.rand(images, anchors, classes) ** 2,
        boxes=boxes,
        gt_labels=torch.randint(0, classes, (images, most, 1)).float(),
        gt_boxes=gt_boxes * valid[..., None],
        gt_valid=valid[..., None],
        foreground=foreground,
        gt_index=index,
    )


def objects_one_by_one(seen: Assignment, b: int, rows: int) -> torch.Tensor:
    """An image's objects as they were read before batches were: (n, 8)."""
    overlap = box_iou(seen.boxes[b], seen.gt_boxes[b, :rows])
    scores, classes = seen.scores[b], seen.gt_labels[b, :rows, 0].long()
    labelled = scores[:, classes]
    others = scores[:, None, :].expand(-1, rows, -1).clone()
    others.scatter_(2, classes[None, :, None].expand(len(scores), -1, 1), 0.0)
    own = (seen.gt_index[b][:, None] == torch.arange(rows)) & seen.foreground[b][:, None]
    near = overlap >= 0.5

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.where(own, values, 0.0).sum(0) / own.sum(0)

    def largest(values: torch.Tensor) -> torch.Tensor:
        return torch.where(near, values, 0.0).amax(0)

    share = mean(labelled) / mean(scores.sum(1, keepdim=True).expand(-1, rows)).clamp_min(1e-7)
    columns = (
        mean(1 - overlap),
        -share.clamp_min(1e-7).log(),
        mean(-labelled.clamp_min(1e-7).log()),
        own.sum(0).float(),
        overlap.amax(0),
        largest(scores.amax(1, keepdim=True).expand(-1, rows)),
        largest(labelled),
        largest(others.amax(2)),
    )
    return torch.stack(columns, 1)


def unexplained_one_by_one(seen: Assignment, b: int) -> torch.Tensor:
    """An image's unexplained predictions as they were read before batches were: (10, 4)."""
    result = torch.zeros(TOP, 4)
    confidence, cls = seen.scores[b].max(1)
    confidence, anchor = confidence.topk(min(100, len(confidence)))
    boxes, cls = seen.boxes[b, anchor], cls[anchor]
    kept = nms(boxes, confidence, 0.5)
    labelled = seen.gt_boxes[b, : int(seen.gt_valid[b].sum())]
    overlap = box_iou(boxes[kept], labelled).amax(1) if len(labelled) else torch.zeros(len(kept))
    free = (overlap < 0.5) & ~seen.foreground[b, anchor[kept]]
    kept, overlap = kept[free][:TOP], overlap[free][:TOP]
    area = (boxes[kept, 2:] - boxes[kept, :2]).clamp_min(0).prod(1)
    result[: len(kept)] = torch.stack((confidence[kept], cls[kept].float(), overlap, area), 1)
    return result


def features_one_by_one(seen: Assignment) -> torch.Tensor:
    lines = []
    for b in range(len(seen.scores)):
        rows = int(seen.gt_valid[b].sum())
        each = dict(zip(OBJECT, objects_one_by_one(seen, b, rows).T, strict=True)) if rows else {}
        confidence = unexplained_one_by_one(seen, b)[:, 0]
        line = [torch.tensor(np.nan)] * 7
        if rows:
            unseen, unlabelled = (-(each[name] + 1e-4).log() for name in ("support", "labelled"))
            contest = each["other"] - each["labelled"]
            worst = [v[v.isfinite()] for v in (each["localisation"], each["presence"], unseen, contest)]
            line = [v.mean() for v in (unseen, unlabelled, contest)]
            line += [v.max() if len(v) else torch.tensor(np.nan) for v in worst]
        lines.append(torch.stack([*line, confidence[0], confidence.sum(), torch.tensor(float(rows))]))
    return torch.cat((detection_channels(seen), torch.stack(lines)), 1)


@pytest.mark.parametrize(
    "settings", [{}, {"classes": 1}, {"anchors": 150, "images": 16, "most": 9}, {"most": 0}, {"anchors": 7}], ids=str
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_reads_as_its_images_one_by_one(seed: int, settings: dict[str, Any]) -> None:
    seen = random_assignment(seed, **settings)
    torch.testing.assert_close(features(seen), features_one_by_one(seen), rtol=1e-5, atol=1e-6, equal_nan=True)
    found = unexplained(seen)
    for b in range(len(seen.scores)):
        torch.testing.assert_close(found[b], unexplained_one_by_one(seen, b), rtol=1e-5, atol=1e-6)
        if rows := int(seen.gt_valid[b].sum()):
            one = objects_one_by_one(seen, b, rows)
            torch.testing.assert_close(objects(seen)[b, :rows], one, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_labels_read_a_few_at_a_time_read_the_same_bit_for_bit(rows: int, monkeypatch) -> None:
    seen, sizes = random_assignment(0, images=16, most=9, anchors=150), []
    whole = objects(seen)
    monkeypatch.setattr(readings, "_NUMBERS", rows * 150)
    part = readings._objects
    monkeypatch.setattr(
        readings, "_objects", lambda s, by, image, row: sizes.append(len(row)) or part(s, by, image, row)
    )
    assert torch.equal(objects(seen).nan_to_num(-1), whole.nan_to_num(-1))
    assert max(sizes) <= rows
    assert sum(sizes) == int(seen.gt_valid.sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_owners_of_a_whole_entry_each_read_as_unmixed_images(seed: int) -> None:
    seen = random_assignment(seed)
    batch, anchors = seen.foreground.shape
    owner = torch.tensor([2, 0, 3, 1])
    owned = Owned(
        batch,
        owner[:, None].expand(seen.gt_valid.shape[:2]).clone(),
        owner[None, :, None].expand(1, batch, anchors).clone(),
        torch.ones(batch, 1),
    )
    alone, mixed = features(seen), features(replace(seen, owned=owned))[owner]
    missing = FEATURES.index("missing")  # ranked by the same share of the places, rounded
    rest = [i for i in range(len(FEATURES)) if i != missing]
    torch.testing.assert_close(mixed[:, rest], alone[:, rest], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_an_owner_s_parts_are_read_together_and_sums_are_by_its_area() -> None:
    """Two entries halved between two owners: each has the left of one and the right of the other."""
    seen = random_assignment(5, images=2, anchors=40)
    labels = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 1, 0, 0]])
    places = torch.zeros(1, 2, 40, dtype=torch.long)
    places[0, 0, 20:] = places[0, 1, :20] = 1
    mixed = replace(seen, owned=Owned(2, labels, places, torch.ones(2, 1)))
    found = dict(zip(FEATURES, features(mixed).T, strict=True))
    each = dict(zip(OBJECT, objects(seen).unbind(2), strict=True))
    contest = each["other"] - each["labelled"]
    valid = seen.gt_valid[..., 0]
    assert valid.sum() > 3
    for owner in range(2):
        own = valid & (labels == owner)
        assert found["contest"][owner] == pytest.approx(float(contest[own].mean()))
        assert found["worst contest"][owner] == pytest.approx(float(contest[own].max()))
        assert found["count"][owner] == own.sum()  # half of each entry: a whole picture


def test_what_no_label_explains_belongs_to_whoever_s_place_it_is_at() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [50, 50, 60, 60]])[None]
    seen = Assignment(
        scores=torch.tensor([[0.9], [0.8], [0.7], [0.4]])[None],
        boxes=boxes,
        gt_labels=torch.zeros(1, 1, 1),
        gt_boxes=torch.tensor([[[50.0, 50, 60, 60]]]),
        gt_valid=torch.ones(1, 1, 1, dtype=torch.bool),
        foreground=torch.tensor([[False, False, False, True]]),
        gt_index=torch.zeros(1, 4, dtype=torch.long),
        owned=Owned(2, torch.ones(1, 1, dtype=torch.long), torch.tensor([[[0, 0, 1, 1]]]), torch.ones(1, 1)),
    )
    found = dict(zip(FEATURES, features(seen).T.tolist(), strict=True))
    assert found["extra"] == pytest.approx([0.9, 0.7])
    assert found["extras"] == pytest.approx([1.7 / 0.5, 0.7 / 0.5])
    assert found["count"] == [0, 2]
    blend = Owned(
        2, torch.ones(1, 1, dtype=torch.long), torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 1]]]), torch.full((1, 1), 0.25)
    )
    found = dict(zip(FEATURES, features(replace(seen, owned=blend)).T.tolist(), strict=True))
    assert found["extra"] == pytest.approx([0.9, 0.9])
    assert found["extras"] == pytest.approx([2.4, 2.4])


class Asked:
    """Stands in for the tap: what the batch's forward left, and what the assigner answers about other labels."""

    def __init__(self, seen: Assignment, answer: Assignment) -> None:
        self.assignment, self._answer = seen, answer

    def again(self, *_: torch.Tensor) -> Assignment:
        return self._answer


def mixed(seen: Assignment, layers: int, seed: int) -> Assignment:
    """The batch with labels and places dealt out to five owners; the places of a seed are the same for any labels."""
    rng = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 5, (layers, *seen.foreground.shape), generator=rng)
    labels = torch.randint(0, 5, seen.gt_valid.shape[:2], generator=rng) * seen.gt_valid[..., 0]
    return replace(seen, owned=Owned(5, labels, places, torch.rand(len(places[0]), 1, generator=rng)))


@pytest.mark.parametrize("layers", [0, 1, 2], ids=["unmixed", "mosaic", "blend"])
@pytest.mark.parametrize("most", [(5, 5), (5, 8), (8, 5), (0, 3), (3, 0)], ids=str)
def test_both_sets_of_labels_read_at_once_as_one_after_the_other(
    most: tuple[int, int], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = random_assignment(1, most=most[0])
    other = replace(random_assignment(2, most=most[1]), scores=seen.scores, boxes=seen.boxes)
    if layers:
        seen, other = mixed(seen, layers, 3), mixed(other, layers, 3)
    owners = 5 if layers else len(seen.scores)
    carried = torch.arange(owners) != 1
    spoilt = Spoilt(other.gt_labels, other.gt_boxes, other.gt_valid.float(), torch.zeros(0), carried)
    rehearsal = Rehearsal([Labels(np.zeros(1, np.int64), np.array([[0.1, 0.1, 0.5, 0.5]]))], 10, 3, 0)
    found = []
    for limit in (1000, 0):
        monkeypatch.setattr(rehearse, "_FEW_ANCHORS", limit)
        found.append(rehearsal.readings(Asked(seen, other), spoilt))  # type: ignore[arg-type]
    assert found[0].shape == (owners, READINGS)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found[1][:, : len(FEATURES)], features(seen), rtol=0, atol=0, equal_nan=True)
    spoilt_ones = found[0][:, len(FEATURES) : 2 * len(FEATURES)]
    assert spoilt_ones[1].isnan().all()
    assert spoilt_ones[0].isfinite().any()


def test_a_batch_of_images_that_are_never_rehearsed_is_not_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "MOST_REHEARSED", 4)
    peer = Labels(np.zeros(1, np.int64), np.array([[0.1, 0.1, 0.5, 0.5]]))
    rehearsal = Rehearsal([peer], 10, 3, 0)
    never = np.flatnonzero(rehearsal.kinds == "")
    assert len(never) == 6
    assert len(set(rehearsal.kinds[rehearsal.kinds != ""])) == 4
    batch = {
        "batch_idx": torch.tensor([0.0, 1]),
        "cls": torch.zeros(2, 1),
        "bboxes": torch.tensor([[0.3, 0.3, 0.2, 0.2]]).expand(2, 4),
        "im_file": ["a", "b"],
    }

    def spoilt(*images: int) -> Spoilt | None:
        whole = np.ones(2, np.float32)
        return rehearsal.spoil(batch, (SIZE, SIZE), Accounts(np.array(images), whole, whole, None))

    assert spoilt(*never[:2]) is None
    rehearsed = np.flatnonzero(rehearsal.kinds == "shifted")
    some = spoilt(int(never[0]), int(rehearsed[0]))
    assert some is not None
    assert some.carried.tolist() == [False, True]
