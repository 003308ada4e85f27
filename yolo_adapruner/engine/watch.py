"""What a stock training is asked at each step for the arms that watch it to its end: right or not, margin, error.

Read from the training forward, as the methods themselves do, with nothing computed again. `core/trajectory.py` keeps
what comes of it; this module does not know which arm wants what.

For classes the readings are the published ones. For boxes they are ours. There the sample that is right or wrong and
has a margin is the labelled object, read at the anchors that the assigner gave to it; an image has the mean over its
objects. A head of sigmoids has no logit for "nothing here", so that takes the logit of `SHOWN`, the confidence from
which on Ultralytics' `predict` shows a box.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.core import distributed
from yolo_adapruner.core.history import EpochRecord
from yolo_adapruner.core.trajectory import READINGS, Trajectory
from yolo_adapruner.engine.channels import box_iou, detection_channels, mean_by
from yolo_adapruner.engine.classloss import Answer, class_channels
from yolo_adapruner.engine.evidence import Evidence
from yolo_adapruner.engine.losses import Assignment

SHOWN = 0.25
_FOUND_IOU = 0.5
_EPS = 1e-4


class Watch:
    """Carries the readings of each epoch's batches into a `Trajectory`; see `Evidence` for which of them count.

    Args:
        n: number of training images.
        epochs: of the training.

    Attributes:
        trajectory: what the epochs closed so far have said.
        evidence: the readings of the epoch that is open.
    """

    def __init__(self, n: int, epochs: int) -> None:
        self.trajectory = Trajectory(n, epochs)
        self.evidence = Evidence()
        self._n = n

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self.evidence = Evidence()

    def close_epoch(self, device: torch.device) -> None:
        """Put what the epoch has said, in all processes, into the trajectory."""
        record = EpochRecord(self._n, len(READINGS))
        if (seen := self.evidence.collect()) is not None:
            record.add(*seen)
        distributed.add_up(record.totals, device)
        self.trajectory.add(record.means())


@torch.no_grad()
def class_readings(answer: Answer) -> Tensor:
    """Return the readings of each image of a batch of a classifier, (B, 3); NaN where the answer is not finite.

    - right: 1 where the label's logit is the largest, 0 elsewhere (Toneva et al. 2019, arXiv 1812.05159).
    - margin: the label's logit minus the largest other one (Pleiss et al. 2020, arXiv 2001.10528, eq. 1).
    - error: |p - onehot(label)| (Paul et al. 2021, arXiv 2107.07075, section 2).
    """
    logits, labels = answer.logits.float(), answer.labels.long()[:, None]
    margin = logits.gather(1, labels)[:, 0] - logits.scatter(1, labels, -torch.inf).amax(1)
    values = torch.stack(((margin > 0).float(), margin, class_channels(answer)[:, 2]), 1)
    return values.masked_fill(~torch.isfinite(logits).all(1)[:, None], torch.nan)


@torch.no_grad()
def box_readings(seen: Assignment, empty: Tensor, *, error: bool) -> Tensor:
    """Return the readings of each owner of a batch of a detector, (K, 3); NaN where there is none.

    - right: the share of its objects that were found: a prediction with IoU 0.5 or more says the labelled class with a
      confidence of `SHOWN` or more, and none that answers for the object says another class louder. An object that no
      anchor answers for was not found. An image without boxes is right where nothing reaches `SHOWN`.
    - margin: the logit of the labelled class, the largest of the object's anchors, minus the largest other one there,
      "nothing here" among them; mean over objects. Of an image without boxes, "nothing here" minus the largest logit
      there. Confidences are cut off at 1e-4 from 0 and 1.
    - error: the norm of (1 - IoU, 1 - p(label), p(what nobody labelled)), as `baselines.most_error`; NaN unless asked.

    Args:
        seen: the batch's assignment.
        empty: whether each owner is an image without labelled boxes, (K,) bool.
        error: whether to read the error, which costs more than the other two.
    """
    right, margin = _objects(seen)
    if seen.owned is None:
        means = [right.nanmean(1), margin.nanmean(1)]
    else:
        owner, ones = seen.owned.labels.flatten(), torch.ones(right.numel(), device=right.device)
        means = [mean_by(owner, values.flatten(), seen.owned.count, ones) for values in (right, margin)]
    quiet = math.log(SHOWN / (1 - SHOWN)) - _logit(_loudest(seen))
    means = [torch.where(empty, other, own) for own, other in zip(means, ((quiet > 0).float(), quiet), strict=True)]
    return torch.stack((*means, _error(seen) if error else torch.full_like(quiet, torch.nan)), 1)


def _objects(seen: Assignment) -> tuple[Tensor, Tensor]:
    """Whether each labelled object was found, and its margin, (B, M) each; NaN in padding, margin without anchor."""
    batch, padded = seen.gt_boxes.shape[:2]
    image, anchor = seen.foreground.nonzero(as_tuple=True)
    row = seen.gt_index[image, anchor]
    confidence = seen.scores[image, anchor].float()
    cls = seen.gt_labels[image, row].long()
    label = confidence.gather(1, cls)[:, 0]
    near = box_iou(seen.boxes[image, anchor], seen.gt_boxes[image, row]) >= _FOUND_IOU

    def largest(values: Tensor) -> Tensor:
        """The largest of each object's anchors, -1 where it has none."""
        start = values.new_full((batch * padded,), -1.0)
        return start.scatter_reduce_(0, image * padded + row, values, "amax").view(batch, padded)

    labelled, other = largest(label), largest(confidence.scatter(1, cls, 0.0).amax(1))
    found = largest(torch.where(near, label, 0.0))
    right = ((found >= SHOWN) & (found > other)).float()
    margin = _logit(labelled) - _logit(other.clamp_min(SHOWN))
    valid = seen.gt_valid[..., 0]
    return right.masked_fill(~valid, torch.nan), margin.masked_fill(~valid | (labelled < 0), torch.nan)


def _loudest(seen: Assignment) -> Tensor:
    """The largest confidence at each owner's places, (K,)."""
    confidence = seen.scores.amax(-1).float()
    if seen.owned is None:
        return confidence.amax(1)
    owner = seen.owned.anchors.flatten()
    spread = confidence.expand(seen.owned.anchors.shape).flatten()
    return spread.new_zeros(seen.owned.count).scatter_reduce_(0, owner, spread, "amax")


def _error(seen: Assignment) -> Tensor:
    localisation, _, presence, missing = detection_channels(seen).unbind(1)
    parts = torch.stack((localisation, 1 - torch.exp(-presence), 1 - torch.exp(-missing)))
    return parts.nan_to_num(0.0).norm(dim=0).masked_fill(parts.isnan().all(0), torch.nan)


def _logit(confidence: Tensor) -> Tensor:
    return confidence.clamp(_EPS, 1 - _EPS).logit()


def without_boxes(boxes: NDArray[np.integer], numbers: NDArray[np.integer], device: torch.device) -> Tensor:
    """Return whether each owner is an image without boxes, (K,) bool, by the boxes of all images and its number."""
    return torch.from_numpy(boxes[numbers] == 0).to(device, non_blocking=True)
