"""What a detector finds wrong with an image's labels: four numbers an image, from the training forward alone.

None of them is the training loss. They do not depend on batch-mates, they are means over objects and so do not grow
with the number of boxes, and they leave out the assigner's soft target weights, which fade exactly where a label and
the image disagree. This module does not know the mask, nor how the four are put together.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.utils.metrics import probiou

from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.owners import Owned

CHANNELS = ("localisation", "classification", "presence", "missing")

MISSING_TOP = 10
"""How many of the most confident unexplained predictions make up the last channel."""
_SPARE = 4
"""How many times as many are looked at, since labels explain some of them."""
_CANDIDATES = _SPARE * MISSING_TOP
_EXPLAINED_IOU = 0.5
_ROTATED = 5
_EPS = 1e-7


@torch.no_grad()
def detection_channels(seen: Assignment, silent: Tensor | None = None) -> Tensor:
    """Return the four channels of each owner, (K, 4) float32 >= 0, NaN where an owner has nothing to say.

    IoU is Ultralytics' probabilistic one where boxes are rotated, the one its own metrics of such models count with.
    Masks and keypoints are not looked at.

    - localisation: 1 - IoU of an object's assigned anchors, mean over anchors, then over objects; in [0, 1].
    - classification: -log of the labelled class's share in the class probabilities that the same anchors of an object
      say together, mean over objects; nats. Confident anchors count for more, and how sure the detector is that there
      is any object at all counts for nothing.
    - presence: -log p(labelled class) at the same anchors, mean over anchors, then over objects; nats. High where the
      detector sees no such object, whatever it takes the place for.
    - missing: mean of the `MISSING_TOP` largest -log(1 - p) among predictions that no labelled box explains
      (IoU below 0.5 with each of them and not assigned to one); nats. The only channel of an image without boxes.

    Objects of classes that are `silent`, (C,) bool, are left out of the first three.

    Where the images are not mixed, an owner is an entry of the batch, K = B. Where they are, an owner's objects are
    those of its labels, wherever in the batch they went. Its unexplained predictions are those at its places: of each
    image it has a place in, the same share of its anchors as `MISSING_TOP` is of all, at least one; and the mean over
    these images goes by how much of each is its own.
    """
    objects = _object_channels(seen)
    if silent is not None:
        objects = objects.masked_fill(silent[seen.gt_labels[..., 0].long()], torch.nan)
    unexplained = _unexplained(seen) if seen.owned is None else _unexplained_by_owner(seen, seen.owned)
    return torch.stack((*_means(objects, seen), unexplained), 1)


@torch.no_grad()
def every_object(seen: Assignment) -> Tensor:
    """Return the first three channels of each owner, (K, 3), over objects of any class."""
    return torch.stack(_means(_object_channels(seen), seen), 1)


def _means(objects: Tensor, seen: Assignment) -> list[Tensor]:
    """The mean of each owner's objects, three of (K,), by readings (3, B, M) that are NaN where there is none."""
    if seen.owned is None:
        return list(objects.nanmean(-1))
    owner = seen.owned.labels.flatten()
    return [mean_by(owner, v.flatten(), seen.owned.count, torch.ones_like(v.flatten())) for v in objects]


def fit(readings: NDArray[np.floating]) -> tuple[float, float]:
    """Return how well a detector finds labelled objects: mean IoU and mean class probability, each in [0, 1].

    Args:
        readings: channels of any number of images, (N, 4); 0 and 0 where no image has boxes.
    """
    labelled = readings[np.isfinite(readings[:, 0])]
    if not len(labelled):
        return 0.0, 0.0
    return float(1 - labelled[:, 0].mean()), float(np.exp(-labelled[:, 1]).mean())


def _object_channels(seen: Assignment) -> Tensor:
    """The first three channels of each label row, (3, B, M), NaN for one that no anchor answers for."""
    batch, padded = seen.gt_boxes.shape[:2]
    if padded == 0:
        return seen.scores.new_zeros((3, batch, 0), dtype=torch.float32)
    image, anchor = seen.foreground.nonzero(as_tuple=True)
    row = seen.gt_index[image, anchor]
    slot = image * padded + row
    probability = seen.scores[image, anchor].float()
    labelled = probability.gather(1, seen.gt_labels[image, row].long())[:, 0]

    iou = box_iou(seen.boxes[image, anchor], seen.gt_boxes[image, row]).float()
    each = torch.stack((torch.ones_like(labelled), 1 - iou, -labelled.clamp_min(_EPS).log(), labelled), 1)
    by_anchor = torch.cat((each, probability), 1)
    # All sums over the anchors of an object at once: where there is a GPU, an operation costs its launch.
    sums = by_anchor.new_zeros(batch * padded, by_anchor.shape[1]).index_add_(0, slot, by_anchor)
    anchors = sums[:, 0]
    localisation, presence = (sums[:, 1:3] / sums[:, :1]).unbind(1)
    share = sums[:, 3] / sums[:, 4:].sum(1).clamp_min(_EPS)
    classification = -share.clamp_min(_EPS).log()
    values = torch.stack((localisation, classification, presence))
    return torch.where(anchors > 0, values, torch.nan).view(3, batch, padded)


def _unexplained(seen: Assignment) -> Tensor:
    """The last channel of each image, (B,)."""
    confidence = seen.scores.amax(-1).masked_fill(seen.foreground, 0)
    top = min(_CANDIDATES, confidence.shape[1])
    confidence, anchor = confidence.topk(top, 1)
    if seen.gt_boxes.shape[1]:
        boxes = seen.boxes.gather(1, anchor[..., None].expand(-1, -1, seen.boxes.shape[-1]))
        confidence = confidence.masked_fill(_explained(boxes, seen.gt_boxes[:, None], seen.gt_valid[:, None, :, 0]), 0)
    worst = confidence.float().topk(min(MISSING_TOP, top), 1).values
    return -torch.log1p(-_below_one(worst, seen)).mean(1)


def _unexplained_by_owner(seen: Assignment, owned: Owned) -> Tensor:
    """The last channel of each owner, (K,): ranked within an owner's places in one image, then its mean over images."""
    _, batch, anchors = owned.anchors.shape
    shares = owned.shares().flatten()
    held = shares.nonzero()[:, 0]  # by layer, image, anchor
    image = torch.arange(batch, device=held.device)[:, None]
    account = (image * owned.count + owned.anchors).flatten()[held]  # one for each owner in each image
    cell = held % (batch * anchors)
    confidence = seen.scores.amax(-1).float().masked_fill(seen.foreground, 0).flatten()[cell]
    order = confidence.argsort(descending=True)
    order = order[account[order].argsort(stable=True)]

    accounts = batch * owned.count
    size = torch.bincount(account, minlength=accounts)
    wanted = torch.minimum((size * (MISSING_TOP / anchors)).round().clamp_min(1), size)
    evidence = shares.new_zeros(accounts).index_add_(0, account, shares[held])
    likely = _rank(account[order], torch.ones_like(order, dtype=torch.bool)) < _SPARE * wanted[account[order]]
    order = order[likely]
    account, cell, confidence = account[order], cell[order], confidence[order]

    image = cell // anchors
    free = ~_explained(seen.boxes.flatten(0, 1)[cell], seen.gt_boxes[image], seen.gt_valid[image, :, 0])
    chosen = free & (_rank(account, free) < wanted[account])
    values = -torch.log1p(-_below_one(confidence, seen)) * chosen
    reading = values.new_zeros(accounts).index_add_(0, account, values) / wanted
    return mean_by(torch.arange(accounts, device=held.device) % owned.count, reading, owned.count, evidence)


def _below_one(confidence: Tensor, seen: Assignment) -> Tensor:
    """Confidences, capped where the format they were computed in rounds to 1: what is lost there is not certainty."""
    return confidence.clamp_max(1 - max(_EPS, torch.finfo(seen.scores.dtype).eps / 8))


def _rank(group: Tensor, counted: Tensor) -> Tensor:
    """How many counted ones stand before each within its group, (n,); the groups are sorted, (n,)."""
    before = counted.cumsum(0) - counted.long()
    return before - before[torch.searchsorted(group, group)]


def mean_by(group: Tensor, values: Tensor, groups: int, weights: Tensor) -> Tensor:
    """Weighted mean of each group's values, (groups,), without those that are NaN; NaN where there is none."""
    weights = weights.masked_fill(values.isnan(), 0)
    total = values.new_zeros(groups).index_add_(0, group, weights * values.nan_to_num())
    return total / values.new_zeros(groups).index_add_(0, group, weights)


def _explained(boxes: Tensor, gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
    """Whether any label explains a predicted box: boxes (..., 4), labels (..., M, 4) and (..., M)."""
    overlap = box_iou(boxes[..., None, :], gt_boxes.to(boxes.dtype))
    return ((overlap >= _EXPLAINED_IOU) & gt_valid).any(-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes, (..., 4) xyxy or (..., 5) xywhr, element by element with broadcasting; 0 for empty xyxy ones."""
    if a.shape[-1] == _ROTATED:
        a, b = torch.broadcast_tensors(a, b)  # upstream's takes plain rows only
        return probiou(a.reshape(-1, _ROTATED), b.reshape(-1, _ROTATED)).clamp(0, 1).view(a.shape[:-1])
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    sides = torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)
    shared, area_a, area_b = (side.clamp_min_(0).prod(-1) for side in (sides, a_high - a_low, b_high - b_low))
    return shared / (area_a + area_b - shared).clamp_min(_EPS)
