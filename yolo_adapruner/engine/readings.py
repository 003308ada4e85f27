"""More of what one training forward says about each label than the four channels keep: object by object.

The material that `rehearse.features` puts together for each image. Knows no files and no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms  # type: ignore[import-untyped]

from yolo_adapruner.engine.losses import Assignment

OBJECT = ("localisation", "classification", "presence", "anchors", "best_iou", "support", "labelled", "other")
"""Columns of `objects`, in order."""
EXTRA = ("confidence", "class", "iou", "area")
"""Columns of `unexplained`, in order."""
TOP = 10
_CANDIDATES = 100
_SAME = 0.5
_THINNED = 40
"""Images whose candidates are thinned at once: the memory for that grows with the square of their number."""
_NUMBERS = 1 << 22
"""Labels x anchors that are read at once: some 36 bytes each, beside a step that may have left little memory free."""
_FAR = 1e4
_EPS = 1e-7


@dataclass(frozen=True)
class Predicted:
    """What a batch's predictions say by themselves, whatever the labels are; B images, A anchors, C candidates.

    Attributes:
        first, second: the two largest class confidences of each anchor, (B, A); the second 0 where there is one class.
        cls: the class of the largest, (B, A).
        total: sum of the confidences over classes, (B, A).
        anchor: anchors of the most confident predictions, surest first, (B, C).
        distinct: which of these are left when they are thinned as at inference (IoU 0.5, whatever the class), (B, C).
    """

    first: Tensor
    second: Tensor
    cls: Tensor
    total: Tensor
    anchor: Tensor
    distinct: Tensor

    def twice(self) -> Predicted:
        """Return the same of the batch followed by itself, 2 B images."""
        return Predicted(*(part.repeat(2, *(1,) * (part.ndim - 1)) for part in vars(self).values()))


@torch.no_grad()
def predicted(seen: Assignment) -> Predicted:
    """Return what the predictions of a batch say by themselves: the same under any labels, so read once."""
    scores = seen.scores.float()
    batch, anchors, classes = scores.shape
    most = scores.topk(min(2, classes), 2)
    first, cls = most.values[..., 0], most.indices[..., 0]
    second = most.values[..., 1] if classes > 1 else torch.zeros_like(first)
    confidence, anchor = first.topk(min(_CANDIDATES, anchors), 1)
    image = torch.arange(batch, device=scores.device)[:, None].expand_as(anchor)
    # torchvision moves each image's boxes beyond the largest of all: one that is not finite would reach the others.
    boxes = seen.boxes[image, anchor].float().nan_to_num(0.0).clamp(-_FAR, _FAR)
    distinct = torch.zeros_like(confidence, dtype=torch.bool)
    for begin in range(0, batch, _THINNED):
        part = slice(begin, begin + _THINNED)
        own = (boxes[part].flatten(0, 1), confidence[part].flatten(), image[part].flatten())
        distinct[part].view(-1)[batched_nms(*own, _SAME)] = True
    return Predicted(first, second, cls, scores.sum(2), anchor, distinct)


@torch.no_grad()
def objects(seen: Assignment, by: Predicted | None = None) -> Tensor:
    """Return readings of each labelled object, (B, M, 8) float32; padding rows are 0.

    - localisation, classification, presence: as the channels of these names, of this object alone; NaN without anchor.
    - anchors: anchors assigned to it.
    - best_iou: largest IoU of any prediction with the labelled box, [0, 1].
    - support, labelled, other: largest confidence in any class, in the labelled one, and in any other one, among
      predictions with IoU 0.5 or more; [0, 1], 0 where there is no such prediction.
    """
    by = predicted(seen) if by is None else by
    result = seen.scores.new_zeros((*seen.gt_boxes.shape[:2], len(OBJECT)), dtype=torch.float32)
    image, row = seen.gt_valid[..., 0].nonzero(as_tuple=True)
    some = max(1, _NUMBERS // max(seen.scores.shape[1], 1))
    for begin in range(0, len(image), some):
        part = image[begin : begin + some], row[begin : begin + some]
        result[part] = _objects(seen, by, *part)
    return result


def _objects(seen: Assignment, by: Predicted, image: Tensor, row: Tensor) -> Tensor:
    """`objects` of some labels, (n, 8): those of `image`, (n,), in `row`, (n,)."""
    overlap = _overlap(seen.boxes.float()[image], seen.gt_boxes[image, row].float()[:, None])  # (n, A)
    cls = seen.gt_labels[image, row, 0].long()[:, None]
    labelled = seen.scores.transpose(1, 2)[image, cls[:, 0]].float()
    own = seen.foreground[image] & (seen.gt_index[image] == row[:, None])
    count = own.sum(1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(own, values, 0.0).sum(1) / count  # NaN without anchor

    share = mean(labelled) / mean(by.total[image]).clamp_min(_EPS)
    near = overlap >= _SAME

    def largest(values: Tensor) -> Tensor:
        return torch.where(near, values, 0.0).amax(1)

    first = by.first[image]
    columns = (
        mean(1 - overlap),
        -share.clamp_min(_EPS).log(),
        mean(-labelled.clamp_min(_EPS).log()),
        count.float(),
        overlap.amax(1),
        largest(first),
        largest(labelled),
        largest(torch.where(by.cls[image] == cls, by.second[image], first)),
    )
    return torch.stack(columns, 1)


@torch.no_grad()
def unlabelled(seen: Assignment, by: Predicted) -> tuple[Tensor, Tensor]:
    """Return which candidates no label explains, (B, C) bool, and their largest IoU with a labelled box, (B, C).

    Distinct ones with IoU below 0.5 with each labelled box and not assigned to one.
    """
    image = torch.arange(len(by.anchor), device=by.anchor.device)[:, None]
    if seen.gt_boxes.shape[1]:
        boxes = seen.boxes[image, by.anchor].float()[:, :, None]
        overlap = _overlap(boxes, seen.gt_boxes.float()[:, None])
        overlap = overlap.masked_fill(~seen.gt_valid[:, None, :, 0], 0).amax(2)
    else:
        overlap = torch.zeros_like(by.first[:, : by.anchor.shape[1]])
    return by.distinct & (overlap < _SAME) & ~seen.foreground[image, by.anchor], overlap


@torch.no_grad()
def unexplained(seen: Assignment) -> Tensor:
    """Return the most confident distinct predictions that no label explains, (B, 10, 4) float32, zero where fewer.

    Of the 100 most confident predictions; see `unlabelled`. Columns: confidence, class, largest IoU with a labelled
    box, and area in square pixels.
    """
    by = predicted(seen)
    free, overlap = unlabelled(seen, by)
    rank = free.cumsum(1) - 1
    image, candidate = (free & (rank < TOP)).nonzero(as_tuple=True)
    anchor = by.anchor[image, candidate]
    boxes = seen.boxes[image, anchor].float()
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)
    values = (by.first[image, anchor], by.cls[image, anchor].float(), overlap[image, candidate], area)
    result = seen.scores.new_zeros((len(free), TOP, len(EXTRA)), dtype=torch.float32)
    result[image, rank[image, candidate]] = torch.stack(values, 1)
    return result


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) x1 y1 x2 y2, element by element with broadcasting; 0 for empty ones."""
    ax, ay, az, aw = a.unbind(-1)
    bx, by, bz, bw = b.unbind(-1)
    width = (torch.minimum(az, bz) - torch.maximum(ax, bx)).clamp_min_(0)
    shared = (torch.minimum(aw, bw) - torch.maximum(ay, by)).clamp_min_(0).mul_(width)
    areas = (az - ax) * (aw - ay) + (bz - bx) * (bw - by)
    return shared / (areas - shared).clamp_min_(_EPS)
