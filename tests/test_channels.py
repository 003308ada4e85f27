"""The three channels against cases worked out by hand, and what must not move them: batch-mates, padding, counts."""

import copy
import math

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.helpers import ARCHITECTURE
from yolo_adapruner.engine.channels import CHANNELS, MISSING_TOP, detection_channels, fit
from yolo_adapruner.engine.losses import Assignment, LossTap

NAN = math.nan
BOX = (10.0, 10.0, 30.0, 30.0)
FAR = (60.0, 60.0, 80.0, 80.0)
# what each anchor says: (box, class probabilities, the object it answers for or None)
QUIET = (FAR, (0.0, 0.0), None)


def assignment(*images: tuple, padded: int | None = None) -> Assignment:
    """An assignment of images ([(label, box), ...], [(predicted box, probabilities, object or None), ...])."""
    rows = max(len(objects) for objects, _ in images) if padded is None else padded
    labels = torch.zeros(len(images), rows, 1)
    boxes = torch.zeros(len(images), rows, 4)
    valid = torch.zeros(len(images), rows, 1, dtype=torch.bool)
    for i, (objects, _) in enumerate(images):
        for j, (label, box) in enumerate(objects):
            labels[i, j], boxes[i, j], valid[i, j] = label, torch.tensor(box), True
    owners = [[owner for *_, owner in anchors] for _, anchors in images]
    return Assignment(
        scores=torch.tensor([[p for _, p, _ in anchors] for _, anchors in images]),
        boxes=torch.tensor([[box for box, _, _ in anchors] for _, anchors in images]),
        gt_labels=labels,
        gt_boxes=boxes,
        gt_valid=valid,
        foreground=torch.tensor([[owner is not None for owner in row] for row in owners]),
        gt_index=torch.tensor([[owner or 0 for owner in row] for row in owners]),
    )


def read(*images: tuple, **kwargs: int) -> list[dict[str, float]]:
    """Each image's readings by channel."""
    return [dict(zip(CHANNELS, row, strict=True)) for row in detection_channels(assignment(*images, **kwargs)).tolist()]


def same(values: dict[str, float], expected: dict[str, float]) -> bool:
    return values == {key: pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True) for key, value in expected.items()}


def worst(*probabilities: float) -> float:
    """The mean -log(1 - p) over `MISSING_TOP` predictions of which all but these say nothing."""
    return sum(-math.log(1 - p) for p in probabilities) / MISSING_TOP


SILENCE = [QUIET] * MISSING_TOP


@pytest.mark.parametrize(
    ("objects", "anchors", "expected"),  # expected: localisation, classification, missing
    [
        # a perfect box of the right class, all of the probability on it
        ([(0, BOX)], [(BOX, (0.9, 0.0), 0)], (0, 0, 0)),
        # the same, however unsure the detector is that there is any object
        ([(0, BOX)], [(BOX, (0.01, 0.0), 0)], (0, 0, 0)),
        # half of a box of the same size: IoU 1/3
        ([(0, BOX)], [((20.0, 10.0, 40.0, 30.0), (0.9, 0.0), 0)], (2 / 3, 0, 0)),
        # no overlap at all
        ([(0, BOX)], [(FAR, (0.9, 0.0), 0)], (1, 0, 0)),
        # three quarters of what is said about the class is said of the labelled one
        ([(1, BOX)], [(BOX, (0.2, 0.6), 0)], (0, -math.log(0.75), 0)),
        # two anchors speak together, the surer one louder: (0.8 + 0.1) / (0.9 + 0.2)
        ([(0, BOX)], [(BOX, (0.8, 0.1), 0), (BOX, (0.1, 0.1), 0)], (0, -math.log(0.9 / 1.1), 0)),
        # mean over an object's anchors (0 and 1), then over objects (0.5 and 0)
        (
            [(0, BOX), (1, FAR)],
            [(BOX, (0.5, 0.0), 0), (FAR, (0.5, 0.0), 0), (FAR, (0.0, 0.5), 1)],
            (0.25, 0, 0),
        ),
        # an object no anchor answers for says nothing
        ([(0, BOX), (1, FAR)], [(BOX, (0.5, 0.5), 0)], (0, math.log(2), 0)),
        # boxes, but no anchor for any of them
        ([(0, BOX)], [], (NAN, NAN, 0)),
        # no boxes: the third channel only
        ([], [(BOX, (0.5, 0.2), None)], (NAN, NAN, worst(0.5))),
        # a confident prediction away from every box counts by its best class
        ([(0, BOX)], [(BOX, (0.9, 0.0), 0), (FAR, (0.3, 0.8), None)], (0, 0, worst(0.8))),
        # one that a labelled box explains does not, whatever its class: IoU 2/3
        ([(0, BOX)], [(BOX, (0.9, 0.0), 0), ((14.0, 10.0, 34.0, 30.0), (0.0, 0.8), None)], (0, 0, 0)),
        # IoU 1/3 explains nothing
        ([(0, BOX)], [(BOX, (0.9, 0.0), 0), ((20.0, 10.0, 40.0, 30.0), (0.0, 0.8), None)], (0, 0, worst(0.8))),
        # any of the boxes may explain it
        ([(0, FAR), (0, BOX)], [(FAR, (0.9, 0.0), 0), (BOX, (0.0, 0.8), None)], (0, 0, 0)),
    ],
)
def test_by_hand(objects, anchors, expected):
    (values,) = read((objects, [*anchors, *SILENCE]))
    names = ("localisation", "classification", "missing")
    assert same({name: values[name] for name in names}, dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize(
    ("objects", "anchors", "expected"),
    [
        # as sure as the detector is of the labelled class
        ([(0, BOX)], [(BOX, (0.25, 0.0), 0)], math.log(4)),
        # what it says of the other classes counts for nothing
        ([(0, BOX)], [(BOX, (0.25, 0.75), 0)], math.log(4)),
        # mean over an object's anchors, then over objects
        (
            [(0, BOX), (1, FAR)],
            [(BOX, (0.5, 0.0), 0), (BOX, (0.125, 0.0), 0), (FAR, (0.0, 0.5), 1)],
            (2 * math.log(2) + math.log(2)) / 2,
        ),
        ([(0, BOX)], [], NAN),
        ([], [(BOX, (0.5, 0.2), None)], NAN),
    ],
)
def test_presence_by_hand(objects, anchors, expected):
    (values,) = read((objects, [*anchors, *SILENCE]))
    assert values["presence"] == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_the_columns_are_the_named_channels():
    values = detection_channels(assignment(([], SILENCE)))
    assert values.shape == (1, len(CHANNELS))
    assert values.dtype == torch.float32
    assert CHANNELS[-1] == "missing"


def test_only_the_most_confident_unexplained_predictions_count():
    said = [i / 20 for i in range(1, 16)]
    (values,) = read(([], [(FAR, (p, 0.0), None) for p in said]))
    assert values["missing"] == pytest.approx(worst(*said[-MISSING_TOP:]), rel=1e-5)


def test_explained_predictions_make_room_for_the_unexplained_ones_behind_them():
    explained = [(BOX, (0.95, 0.0), None)] * MISSING_TOP
    (values,) = read(([(0, BOX)], [(BOX, (0.9, 0.0), 0), *explained, (FAR, (0.6, 0.0), None), *SILENCE]))
    assert values["missing"] == pytest.approx(worst(0.6), rel=1e-5)


def test_fewer_anchors_than_are_looked_for():
    (values,) = read(([], [(FAR, (0.5, 0.0), None), QUIET]))
    assert values["missing"] == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_certainty_gives_finite_numbers():
    (values,) = read(([(1, BOX)], [(BOX, (1.0, 0.0), 0), (FAR, (1.0, 1.0), None), *SILENCE]))
    assert np.isfinite(list(values.values())).all()
    assert values["classification"] > 10
    assert values["missing"] > 1


def test_silence_gives_finite_numbers():
    (values,) = read(([(1, BOX)], [(BOX, (0.0, 0.0), 0), *SILENCE]))
    assert np.isfinite(list(values.values())).all()


IMAGES = {
    "two objects": (
        [(0, BOX), (1, FAR)],
        [((12.0, 10.0, 30.0, 33.0), (0.7, 0.1), 0), (FAR, (0.3, 0.2), 1), ((0.0, 0.0, 9.0, 9.0), (0.4, 0.1), None)],
    ),
    "one object": (
        [(1, FAR)],
        [((61.0, 60.0, 85.0, 80.0), (0.2, 0.5), 0), (BOX, (0.1, 0.6), None), (FAR, (0.9, 0.1), None)],
    ),
    "none": ([], [(BOX, (0.2, 0.1), None), (FAR, (0.1, 0.3), None), QUIET]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_batch_mates_and_padded_rows_change_nothing(name):
    images = {key: (objects, [*anchors, *SILENCE]) for key, (objects, anchors) in IMAGES.items()}
    (alone,) = read(images[name])
    together = dict(zip(images, read(*images.values(), padded=5), strict=True))
    assert same(together[name], alone)
    backwards = dict(zip(reversed(images), read(*reversed(images.values())), strict=True))
    assert same(backwards[name], alone)


def test_a_padded_row_explains_nothing():
    seen = assignment(([], [(BOX, (0.5, 0.0), None), *SILENCE]), padded=1)
    seen.gt_boxes[0, 0] = torch.tensor(BOX)  # invalid rows are zero upstream; the flag is what counts
    assert detection_channels(seen)[0, -1].item() == pytest.approx(worst(0.5), rel=1e-5)


@pytest.mark.parametrize("times", [2, 7])
def test_more_objects_of_the_same_kind_do_not_change_the_means(times):
    objects, anchors = IMAGES["one object"]
    first, *rest = anchors
    more = (objects * times, [*((*first[:2], i) for i in range(times)), *rest, *SILENCE])
    (values,), (expected,) = read(more), read((objects, [*anchors, *SILENCE]))
    assert same(values, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_answers_are_read(dtype):
    full = assignment(*((objects, [*anchors, *SILENCE]) for objects, anchors in IMAGES.values()))
    half = copy.copy(full)
    object.__setattr__(half, "scores", full.scores.to(dtype))
    values = detection_channels(half)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, detection_channels(full), rtol=0.02, atol=0.005, equal_nan=True)


def test_a_real_detector_s_image_reads_the_same_alone_and_in_a_batch():
    torch.manual_seed(1)
    model = DetectionModel(copy.deepcopy(ARCHITECTURE), verbose=False).train()
    model.args = copy.copy(DEFAULT_CFG)
    for module in model.modules():  # in training mode batch norm itself would mix the images
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    owner = torch.tensor([0.0, 0, 2, 2, 2])
    batch = {
        "img": torch.rand(3, 3, 64, 64),
        "batch_idx": owner,
        "cls": torch.randint(3, (len(owner), 1)).float(),
        "bboxes": torch.rand(len(owner), 4) * 0.3 + 0.3,
    }

    def channels(part: dict) -> torch.Tensor:
        criterion = model.init_criterion()
        tap = LossTap(criterion)
        tap.watching = True
        criterion(model.predict(part["img"]), part)
        return detection_channels(tap.assignment)

    together = channels(batch)
    assert together[[0, 2]].isfinite().all()
    assert together[1].isfinite().tolist() == [name == "missing" for name in CHANNELS]
    for image in range(3):
        own = owner == image
        part = {"img": batch["img"][[image]], "batch_idx": torch.zeros(int(own.sum()))}
        part |= {key: batch[key][own] for key in ("cls", "bboxes")}
        torch.testing.assert_close(channels(part)[0], together[image], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            [{"localisation": 0.2, "classification": 0.0}, {"localisation": 0.4, "classification": math.log(2)}],
            (0.7, 0.75),
        ),
        ([{"localisation": 0.2, "classification": 0.0}, {}], (0.8, 1.0)),  # no boxes: says nothing about the fit
        ([{}], (0.0, 0.0)),
    ],
)
def test_fit_is_the_mean_overlap_and_the_mean_share_of_the_label(images, expected):
    rows = [{**dict.fromkeys(CHANNELS, NAN), **image, "missing": 1.0} for image in images]
    assert fit(np.array([[row[name] for name in CHANNELS] for row in rows])) == pytest.approx(expected)
