"""What an image's readings would be if its labels were wrong: faults planted in memory, beside the training forward.

The labels of a batch are spoilt by a known fault, the assigner is asked again on the same predictions, and the readings
are taken as from true labels; nothing is trained on the spoilt ones. Each image keeps one kind and one draw for the
whole run, so that its readings can be averaged over epochs as the true ones are. Knows no files and no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.data.source import EMPTY, Labels
from yolo_adapruner.engine.channels import CHANNELS, detection_channels
from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.study.faults import FAULTS, Peers
from yolo_adapruner.study.readings import OBJECT, objects, unexplained

FEATURES = (
    *CHANNELS,
    "unseen",
    "unlabelled",
    "contest",
    "worst localisation",
    "worst presence",
    "worst unseen",
    "worst contest",
    "extra",
    "extras",
    "count",
)
"""Columns of `features`: the channels; means and worst over objects; the unexplained predictions; number of labels."""
_EPS = 1e-4


@torch.no_grad()
def features(seen: Assignment) -> Tensor:
    """Return an image's readings, (B, 14) float32, NaN where there is no label or no anchor.

    - unseen, unlabelled: -log of the best confidence at a label's place in any class, in its own; mean over labels.
    - contest: how far another class wins over the labelled one there, in [-1, 1]; mean.
    - extra, extras: confidence of the surest prediction that no label explains, and the sum over the ten surest.
    """
    each = dict(zip(OBJECT, objects(seen).unbind(2), strict=True))
    valid = seen.gt_valid[..., 0]
    count = valid.sum(1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(valid, values, torch.nan).nanmean(1)

    def worst(values: Tensor) -> Tensor:
        known = valid & values.isfinite()
        if not values.shape[1]:
            return values.new_full((len(values),), torch.nan)
        return torch.where(known.any(1), torch.where(known, values, -torch.inf).amax(1), torch.nan)

    unseen, unlabelled = (-(each[name] + _EPS).log() for name in ("support", "labelled"))
    contest = each["other"] - each["labelled"]
    confidence = unexplained(seen)[..., 0]
    columns = [mean(unseen), mean(unlabelled), mean(contest)]
    columns += [worst(v) for v in (each["localisation"], each["presence"], unseen, contest)]
    columns += [confidence[:, 0], confidence.sum(1), count.float()]
    return torch.cat((detection_channels(seen), torch.stack(columns, 1)), 1)


class Rehearsal:
    """Stands in for the assigner and can ask it again about spoilt labels.

    Args:
        inner: the assigner, or what stands in for it.
        labels: true labels of the set's images, N.
        classes: number of classes.
        seed: decides each image's kind and draw.

    Attributes:
        kinds: (N,) the fault each image is rehearsed with.
    """

    def __init__(self, inner: Any, labels: Sequence[Labels], classes: int, seed: int) -> None:
        self.inner, self.seed = inner, seed
        self.peers = Peers(labels, classes)
        names = [name for name in FAULTS if name != "swapped" or classes > 1]
        order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
        self.kinds: NDArray[np.str_] = np.array([names[i % len(names)] for i in order])
        self._asked: tuple[Tensor, ...] | None = None

    def __call__(self, *asked: Tensor, **extra: Tensor) -> tuple[Tensor, ...]:
        """Note what the assigner is asked, and let it answer."""
        self._asked = asked
        return self.inner(*asked, **extra)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    @torch.no_grad()
    def spoilt(self, ids: Sequence[int], size: tuple[int, int]) -> Tensor | None:
        """Return the last batch's features under spoilt labels, (B, 14), NaN where an image cannot carry its fault.

        Args:
            ids: the batch's images, B numbers in 0..N-1.
            size: width and height of the input in pixels.
        """
        if self._asked is None:
            return None
        scores, boxes, anchors, gt_labels, gt_boxes, gt_valid = self._asked
        scale = np.tile(size, 2)
        true = [
            Labels(labels[own, 0].long().cpu().numpy(), (corners[own].double().cpu().numpy() / scale).clip(0, 1))
            for labels, corners, own in zip(gt_labels, gt_boxes, gt_valid[..., 0].bool(), strict=True)
        ]
        wrong = [self._spoil(image, labels) for image, labels in zip(ids, true, strict=True)]
        spoilt = _padded([labels or EMPTY for labels in wrong], scale, like=gt_boxes)
        assigner = getattr(self.inner, "inner", self.inner)  # past the watcher: it must not see this
        _, _, _, foreground, index = assigner(scores, boxes, anchors, *spoilt)
        new_labels, new_boxes, valid = spoilt
        result = features(
            Assignment(scores, boxes, new_labels, new_boxes, valid.bool(), foreground.bool(), index.long())
        )
        result[[labels is None for labels in wrong]] = torch.nan
        return result

    def _spoil(self, image: int, labels: Labels) -> Labels | None:
        return FAULTS[str(self.kinds[image])](labels, np.random.default_rng([self.seed, image]), self.peers)


def _padded(labels: Sequence[Labels], scale: NDArray[Any], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return classes (B, M, 1), boxes (B, M, 4) in pixels and validity (B, M, 1) as the assigner takes them."""
    most = max(len(own) for own in labels)
    classes, boxes, valid = (like.new_zeros(len(labels), most, columns) for columns in (1, 4, 1))
    for b, own in enumerate(labels):
        classes[b, : len(own), 0] = torch.from_numpy(own.classes)
        boxes[b, : len(own)] = torch.from_numpy(own.boxes * scale)
        valid[b, : len(own)] = 1
    return classes, boxes, valid
