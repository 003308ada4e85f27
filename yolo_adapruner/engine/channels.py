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

CHANNELS = ("localisation", "classification", "presence", "missing")

MISSING_TOP = 10
"""How many of the most confident unexplained predictions make up the last channel."""
_CANDIDATES = 4 * MISSING_TOP
_EXPLAINED_IOU = 0.5
_ROTATED = 5
_EPS = 1e-7


@torch.no_grad()
def detection_channels(seen: Assignment) -> Tensor:
    """Return the four channels of each image, (B, 4) float32 >= 0, NaN where an image has nothing to say.

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
    """
    objects = _object_means(seen)
    return torch.stack((*objects, _unexplained(seen)), 1)


def fit(readings: NDArray[np.floating]) -> tuple[float, float]:
    """Return how well a detector finds labelled objects: mean IoU and mean class probability, each in [0, 1].

    Args:
        readings: channels of any number of images, (N, 4); 0 and 0 where no image has boxes.
    """
    labelled = readings[np.isfinite(readings[:, 0])]
    if not len(labelled):
        return 0.0, 0.0
    return float(1 - labelled[:, 0].mean()), float(np.exp(-labelled[:, 1]).mean())


def _object_means(seen: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    batch, padded = seen.gt_boxes.shape[:2]
    if padded == 0:
        nan = seen.scores.new_full((batch,), torch.nan, dtype=torch.float32)
        return nan, nan.clone(), nan.clone()
    image, anchor = seen.foreground.nonzero(as_tuple=True)
    row = seen.gt_index[image, anchor]
    slot = image * padded + row
    probability = seen.scores[image, anchor].float()
    labelled = probability.gather(1, seen.gt_labels[image, row].long())[:, 0]

    def by_object(values: Tensor) -> Tensor:
        return values.new_zeros(batch * padded, *values.shape[1:]).index_add_(0, slot, values)

    anchors = by_object(torch.ones_like(labelled))
    localisation = by_object(1 - _iou(seen.boxes[image, anchor], seen.gt_boxes[image, row]).float()) / anchors
    presence = by_object(-labelled.clamp_min(_EPS).log()) / anchors
    share = by_object(labelled) / by_object(probability).sum(1).clamp_min(_EPS)
    classification = -share.clamp_min(_EPS).log()

    def over_objects(values: Tensor) -> Tensor:
        # An object without an assigned anchor says nothing; an image without such objects gives NaN.
        return torch.where(anchors > 0, values, torch.nan).view(batch, padded).nanmean(1)

    return over_objects(localisation), over_objects(classification), over_objects(presence)


def _unexplained(seen: Assignment) -> Tensor:
    confidence = seen.scores.amax(-1).masked_fill(seen.foreground, 0)
    top = min(_CANDIDATES, confidence.shape[1])
    confidence, anchor = confidence.topk(top, 1)
    if seen.gt_boxes.shape[1]:
        boxes = seen.boxes.gather(1, anchor[..., None].expand(-1, -1, seen.boxes.shape[-1]))
        overlap = _iou(boxes[:, :, None], seen.gt_boxes[:, None].to(boxes.dtype))
        explained = ((overlap >= _EXPLAINED_IOU) & seen.gt_valid[:, None, :, 0]).any(-1)
        confidence = confidence.masked_fill(explained, 0)
    worst = confidence.float().topk(min(MISSING_TOP, top), 1).values
    return -torch.log1p(-worst.clamp_max(1 - _EPS)).mean(1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes, (..., 4) xyxy or (..., 5) xywhr, element by element with broadcasting; 0 for empty xyxy ones."""
    if a.shape[-1] == _ROTATED:
        a, b = torch.broadcast_tensors(a, b)  # upstream's takes plain rows only
        return probiou(a.reshape(-1, _ROTATED), b.reshape(-1, _ROTATED)).clamp(0, 1).view(a.shape[:-1])
    corner_low = torch.maximum(a[..., :2], b[..., :2])
    corner_high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (corner_high - corner_low).clamp_min(0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp_min(0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp_min(0).prod(-1)
    return shared / (area_a + area_b - shared).clamp_min(_EPS)
