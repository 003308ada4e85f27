"""More of what one training forward says about each label than the four channels keep: object by object.

The material on which combinations of signals are judged offline (`record.py` stores it). Knows no files and no mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms  # type: ignore[import-untyped]

from yolo_adapruner.engine.losses import Assignment

OBJECT = ("localisation", "classification", "presence", "anchors", "best_iou", "support", "labelled", "other")
"""Columns of `objects`, in order."""
EXTRA = ("confidence", "class", "iou", "area")
"""Columns of `unexplained`, in order."""
TOP = 10
_CANDIDATES = 100
_SAME = 0.5
_EPS = 1e-7


@torch.no_grad()
def objects(seen: Assignment) -> Tensor:
    """Return readings of each labelled object, (B, M, 8) float32; padding rows are meaningless.

    - localisation, classification, presence: as the channels of these names, of this object alone; NaN without anchor.
    - anchors: anchors assigned to it.
    - best_iou: largest IoU of any prediction with the labelled box, [0, 1].
    - support, labelled, other: largest confidence in any class, in the labelled one, and in any other one, among
      predictions with IoU 0.5 or more; [0, 1], 0 where there is no such prediction.
    """
    batch, padded = seen.gt_boxes.shape[:2]
    result = seen.scores.new_zeros((batch, padded, len(OBJECT)), dtype=torch.float32)
    for b in range(batch):
        rows = int(seen.gt_valid[b].sum())
        if rows:
            result[b, :rows] = _of_image(seen, b, rows)
    return result


def _of_image(seen: Assignment, b: int, rows: int) -> Tensor:
    overlap = box_iou(seen.boxes[b].float(), seen.gt_boxes[b, :rows].float())  # (A, n)
    scores, classes = seen.scores[b].float(), seen.gt_labels[b, :rows, 0].long()
    labelled = scores[:, classes]
    others = scores[:, None, :].expand(-1, rows, -1).clone()
    others.scatter_(2, classes[None, :, None].expand(len(scores), -1, 1), 0.0)
    own = (seen.gt_index[b][:, None] == torch.arange(rows, device=scores.device)) & seen.foreground[b][:, None]
    count = own.sum(0)

    def mean(values: Tensor) -> Tensor:
        return torch.where(own, values, 0.0).sum(0) / count  # NaN without anchor

    share = mean(labelled) / mean(scores.sum(1, keepdim=True).expand(-1, rows)).clamp_min(_EPS)
    near = overlap >= _SAME

    def largest(values: Tensor) -> Tensor:
        return torch.where(near, values, 0.0).amax(0)

    return torch.stack(
        (
            mean(1 - overlap),
            -share.clamp_min(_EPS).log(),
            mean(-labelled.clamp_min(_EPS).log()),
            count.float(),
            overlap.amax(0),
            largest(scores.amax(1, keepdim=True).expand(-1, rows)),
            largest(labelled),
            largest(others.amax(2)),
        ),
        1,
    )


@torch.no_grad()
def unexplained(seen: Assignment) -> Tensor:
    """Return the most confident distinct predictions that no label explains, (B, 10, 4) float32, zero where fewer.

    The 100 most confident predictions are thinned as at inference (IoU 0.5, whatever the class); of the rest, those
    with IoU below 0.5 with each labelled box and not assigned to one count. Columns: confidence, class, largest IoU
    with a labelled box, and area in square pixels.
    """
    batch = len(seen.scores)
    result = seen.scores.new_zeros((batch, TOP, len(EXTRA)), dtype=torch.float32)
    for b in range(batch):
        confidence, cls = seen.scores[b].float().max(1)
        confidence, anchor = confidence.topk(min(_CANDIDATES, len(confidence)))
        boxes, cls = seen.boxes[b, anchor].float(), cls[anchor]
        kept = nms(boxes, confidence, _SAME)
        labelled = seen.gt_boxes[b, : int(seen.gt_valid[b].sum())].float()
        overlap = box_iou(boxes[kept], labelled).amax(1) if len(labelled) else boxes.new_zeros(len(kept))
        free = (overlap < _SAME) & ~seen.foreground[b, anchor[kept]]
        kept, overlap = kept[free][:TOP], overlap[free][:TOP]
        area = (boxes[kept, 2:] - boxes[kept, :2]).clamp_min(0).prod(1)
        result[b, : len(kept)] = torch.stack((confidence[kept], cls[kept].float(), overlap, area), 1)
    return result
