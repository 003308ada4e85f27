"""The exact split of Ultralytics' loss over the images of a batch, by stand-ins on the criterion.

Upstream sums its box, cls and dfl terms over the batch and divides by one batch-wide normaliser, so the total is linear
in a weight per anchor, and in one per owner of anchors. `LossTap` puts that weight where the terms are still separate,
and leaves the rest of the criterion, its normaliser included, alone. What segment, pose and obb add is in `taskloss`.
This module does not know what the weights mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from yolo_adapruner.engine import taskloss
from yolo_adapruner.engine.owners import Owned, Ownership
from yolo_adapruner.errors import ConfigError


@dataclass(frozen=True)
class Assignment:
    """What the task-aligned assigner saw and answered for one batch; B images, A anchors, M padded boxes, C classes.

    Attributes:
        scores: class probabilities, (B, A, C) in [0, 1].
        boxes: predicted boxes, (B, A, 4) xyxy in input pixels; of an obb model (B, A, 5) xywhr, radians.
        gt_labels: labelled classes, (B, M, 1).
        gt_boxes: labelled boxes, (B, M, 4) or (B, M, 5) as `boxes`.
        gt_valid: which of the M rows are labels and not padding, (B, M, 1) bool.
        foreground: anchors that answer for a labelled box, (B, A) bool.
        gt_index: the row of `gt_boxes` each anchor answers for, (B, A); meaningless outside `foreground`.
        owned: who owns labels and anchors where the images are mixed; None where each entry is one image's alone.
        centres: of the anchors, (A, 2) x y in input pixels; None where nobody will ask again.
    """

    scores: Tensor
    boxes: Tensor
    gt_labels: Tensor
    gt_boxes: Tensor
    gt_valid: Tensor
    foreground: Tensor
    gt_index: Tensor
    owned: Owned | None = None
    centres: Tensor | None = None


class LossTap:
    """Weights each owner's share of the loss, and keeps the assigner's last answer for the judge.

    Args:
        criterion: an instance of one of the criteria in `taskloss.COVERED`, or an `E2ELoss` of two such; only this
            instance is changed.

    Attributes:
        weights: (K,) float tensor on the criterion's device, or None. With None the criterion is the stock one.
        owners: whose the labels and anchors of the batch are, K owners; None where entry i of the batch is one image's
            alone and `weights[i]` its weight, K = B.
        watching: keep the assignment of each forward in `assignment`.
        assignment: the last batch's `Assignment`, or None.

    Raises:
        ConfigError: the criterion is of a kind whose loss this split does not cover.
    """

    def __init__(self, criterion: Any) -> None:
        self.weights: Tensor | None = None
        self.owners: Ownership | None = None
        self.watching = False
        self.assignment: Assignment | None = None
        self.anchor_weights: Tensor | None = None
        # End-to-end models mix two heads by a share that drifts over the epochs. One head only is judged, the
        # one-to-many one, which every other family has as well, so that the drift cannot move a judgement.
        for i, head in enumerate(_heads(criterion)):
            head.bce = _WeightedBCE(self, head.bce)
            head.bbox_loss = _WeightedBoxLoss(self, head.bbox_loss)
            head.assigner = _WatchedAssigner(self, head.assigner, judged=i == 0)
            if i == 0:
                self._assigner = head.assigner.inner
            taskloss.install(self, head)

    @property
    def can_ask_again(self) -> bool:
        """Whether the judged head's assigner looks at classes and upright boxes alone, so that others can be asked."""
        return type(self._assigner).__name__ == "TaskAlignedAssigner"  # a subclass asks for masks, keypoints or angles

    def again(
        self, gt_labels: Tensor, gt_boxes: Tensor, gt_valid: Tensor, owners: Tensor, seen: Assignment | None = None
    ) -> Assignment:
        """Return what the assigner answers about other labels of a batch; nothing else changes.

        Args:
            gt_labels: classes, (B, M, 1) of any M.
            gt_boxes: (B, M, 4) x1 y1 x2 y2 in input pixels.
            gt_valid: 1 where a row is a label and 0 where it is padding, (B, M, 1).
            owners: owner of each row, (B, M); not looked at where each entry is one image's alone.
            seen: a batch that was watched before, or several together; None: the one in `assignment`.

        Raises:
            RuntimeError: no forward was watched, or the assigner wants to know more (`can_ask_again`).
        """
        seen = self.assignment if seen is None else seen
        if seen is None or seen.centres is None or not self.can_ask_again:
            raise RuntimeError("again() without a watched forward of a plain assigner")
        _, _, _, foreground, index = self._assigner(
            seen.scores, seen.boxes, seen.centres, gt_labels, gt_boxes, gt_valid
        )
        return replace(
            seen,
            gt_labels=gt_labels,
            gt_boxes=gt_boxes,
            gt_valid=gt_valid.bool(),
            foreground=foreground.bool(),
            gt_index=index.long(),
            owned=None if seen.owned is None else replace(seen.owned, labels=owners),
        )

    def clear(self) -> None:
        """Forget the batch: stock behaviour until weights are set again."""
        self.weights = None
        self.owners = None
        self.assignment = None
        self.anchor_weights = None

    def assigned(self, seen: Assignment, judged: bool, anchors: Tensor) -> None:
        """Take a head's assignment: what each of its anchors weighs follows from it, and one head's is kept."""
        # One weight an anchor, (B, A) or (B, 1): whoever owns its label, or its place where it has none.
        self.anchor_weights = None
        if self.weights is not None and seen.owned is not None:
            self.anchor_weights = seen.owned.anchor_weights(self.weights, seen.foreground, seen.gt_index)
        elif self.weights is not None:
            self.anchor_weights = self.weights[:, None]
        if judged and self.watching:
            self.assignment = replace(seen, centres=anchors)

    def weigh(self, values: Tensor) -> Tensor:
        """Return values of each anchor, (B, A, C), times what the anchor weighs; as they came without weights."""
        if self.weights is None or self.anchor_weights is None:
            return values
        return values * self.anchor_weights.to(values.dtype)[..., None]


def per_image_losses(total: Tensor, weights: Tensor) -> Tensor:
    """Return each owner's share of a batch loss, (K,), in the unit of `total`.

    The total is linear in the weights, so its derivative by the weights at any point is the split; at weights of 1 the
    shares sum to the total.

    Args:
        total: the scalar loss, or the (3,) tensor Ultralytics returns.
        weights: the leaf tensor, (K,), `requires_grad`, that was set on the tap for this forward.
    """
    return torch.autograd.grad(total.sum(), weights, retain_graph=True)[0]


def _heads(criterion: Any) -> list[Any]:
    """The criteria of single heads inside a criterion, the one to judge by first."""
    heads = [criterion.one2many, criterion.one2one] if hasattr(criterion, "one2many") else [criterion]
    # By exact class: a subclass may add terms of its own that these stand-ins would leave unweighted.
    if any(type(head).__name__ not in taskloss.COVERED for head in heads):
        kinds = ", ".join(sorted({type(head).__name__ for head in heads}))
        raise ConfigError(
            f"Expected a model with one of Ultralytics' YOLO losses ({', '.join(taskloss.COVERED)}), but got {kinds}: "
            "choose a model such as yolov3-tiny.yaml, yolo11n.yaml, yolo11n-seg.yaml, yolo11n-pose.yaml or "
            "yolo11n-obb.yaml."
        )
    return heads


class _WeightedBCE:
    """Stands in for the criterion's `bce`: element losses (B, A, C) times the anchor's weight."""

    def __init__(self, tap: LossTap, inner: Any) -> None:
        self.tap, self.inner = tap, inner

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.tap.weigh(self.inner(pred, target))


class _WeightedBoxLoss:
    """Stands in for `bbox_loss`, whose terms are weighted by the target scores: the anchor's weight goes onto those."""

    def __init__(self, tap: LossTap, inner: Any) -> None:
        self.tap, self.inner = tap, inner

    def __call__(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        scores = self.tap.weigh(target_scores)
        return self.inner(pred_dist, pred_bboxes, anchor_points, target_bboxes, scores, *args, **kwargs)


class _WatchedAssigner:
    """Stands in for the assigner and tells the tap what it saw and answered, detached."""

    def __init__(self, tap: LossTap, inner: Any, judged: bool) -> None:
        self.tap, self.inner, self.judged = tap, inner, judged

    def __call__(
        self,
        scores: Tensor,
        boxes: Tensor,
        anchors: Tensor,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        gt_valid: Tensor,
        **extra: Tensor,
    ) -> tuple[Tensor, ...]:
        answer = self.inner(scores, boxes, anchors, gt_labels, gt_boxes, gt_valid, **extra)
        if self.tap.watching or self.tap.weights is not None:
            _, _, _, foreground, gt_index = answer
            owners = self.tap.owners
            seen = Assignment(
                scores=scores.detach(),
                boxes=boxes.detach(),
                gt_labels=gt_labels,
                gt_boxes=gt_boxes,
                gt_valid=gt_valid.bool(),
                foreground=foreground,
                gt_index=gt_index.long(),
                owned=None if owners is None else owners.locate(anchors, gt_labels.shape[1]),
            )
            self.tap.assigned(seen, self.judged, anchors)
        return answer

    def __getattr__(self, name: str) -> Any:
        # Reached only for names the stand-in lacks. `inner` itself is asked for while a copy is being built.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)
