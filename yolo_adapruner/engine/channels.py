"""What a detector finds wrong with an image's labels: three numbers an image, from the training forward alone.

None of them is the training loss. They do not depend on batch-mates, they are means over objects and so do not grow
with the number of boxes, and they leave out the assigner's soft target weights, which fade exactly where a label and
the image disagree. This module does not know the mask, nor how the three are put together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_adapruner.engine.losses import Assignment

CHANNELS = ("localisation", "classification", "missing")

MISSING_TOP = 10
"""How many of the most confident unexplained predictions make up the third channel."""
_CANDIDATES = 4 * MISSING_TOP
_EXPLAINED_IOU = 0.5
_EPS = 1e-7


@torch.no_grad()
def detection_channels(seen: Assignment) -> Tensor:
    """Return the three channels of each image, (B, 3) float32 >= 0, NaN where an image has nothing to say.

    - localisation: 1 - IoU of an object's assigned anchors, mean over anchors, then over objects; in [0, 1].
    - classification: -log p(labelled class) at the same anchors, the same means; nats.
    - missing: mean of the `MISSING_TOP` largest -log(1 - p) among predictions that no labelled box explains
      (IoU below 0.5 with each of them and not assigned to one); nats. The only channel of an image without boxes.
    """
    objects = _object_means(seen)
    return torch.stack((*objects, _unexplained(seen)), 1)


def _object_means(seen: Assignment) -> tuple[Tensor, Tensor]:
    batch, padded = seen.gt_boxes.shape[:2]
    nan = seen.scores.new_full((batch,), torch.nan, dtype=torch.float32)
    if padded == 0:
        return nan, nan.clone()
    image, anchor = seen.foreground.nonzero(as_tuple=True)
    row = seen.gt_index[image, anchor]
    label = seen.gt_labels[image, row, 0].long()
    misfit = 1 - _iou(seen.boxes[image, anchor], seen.gt_boxes[image, row]).float()
    surprise = -seen.scores[image, anchor, label].float().clamp_min(_EPS).log()
    slot = image * padded + row
    return _mean_of_means(misfit, slot, batch, padded), _mean_of_means(surprise, slot, batch, padded)


def _mean_of_means(values: Tensor, slot: Tensor, batch: int, padded: int) -> Tensor:
    """Mean over the anchors of each object, then over the objects that have any; NaN for an image without."""
    sums = values.new_zeros(batch * padded).index_add_(0, slot, values)
    counts = values.new_zeros(batch * padded).index_add_(0, slot, torch.ones_like(values))
    means = torch.where(counts > 0, sums / counts, torch.nan).view(batch, padded)
    return means.nanmean(1)


def _unexplained(seen: Assignment) -> Tensor:
    confidence = seen.scores.amax(-1).masked_fill(seen.foreground, 0)
    top = min(_CANDIDATES, confidence.shape[1])
    confidence, anchor = confidence.topk(top, 1)
    if seen.gt_boxes.shape[1]:
        boxes = seen.boxes.gather(1, anchor[..., None].expand(-1, -1, 4))
        overlap = _iou(boxes[:, :, None], seen.gt_boxes[:, None].to(boxes.dtype))
        explained = ((overlap >= _EXPLAINED_IOU) & seen.gt_valid[:, None, :, 0]).any(-1)
        confidence = confidence.masked_fill(explained, 0)
    worst = confidence.float().topk(min(MISSING_TOP, top), 1).values
    return -torch.log1p(-worst.clamp_max(1 - _EPS)).mean(1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, element by element with broadcasting; 0 where both are empty."""
    corner_low = torch.maximum(a[..., :2], b[..., :2])
    corner_high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (corner_high - corner_low).clamp_min(0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp_min(0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp_min(0).prod(-1)
    return shared / (area_a + area_b - shared).clamp_min(_EPS)
