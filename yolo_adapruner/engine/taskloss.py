"""Stand-ins for the terms that segment, pose and obb add to the detection loss, each weighted where it is still apart.

Each of these terms is a sum or a mean over positives, pixels or keypoints, divided by numbers that no weight changes,
so each is linear in a weight per image as the detection terms are. One is cut off at 0 after it is summed: see
`_KeypointTerms`. This module does not know what the weights mean, nor where `losses.LossTap` gets them from.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.ops import crop_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yolo_adapruner.engine.losses import LossTap


def install(tap: LossTap, head: Any) -> None:
    """Put the stand-ins on a criterion (one head's, not the pair of an end-to-end model) that has such terms.

    Args:
        tap: where the weights come from.
        head: an instance of one of the classes that `COVERED` names; only this instance is changed.
    """
    for stand_in in COVERED[type(head).__name__]:
        stand_in(tap, head)


class _MaskTerm:
    """Stands in for `calculate_segmentation_loss`, and for the `single_mask_loss` it calls an image with positives."""

    def __init__(self, tap: LossTap, head: Any) -> None:
        self.tap, self.inner, self.one = tap, head.calculate_segmentation_loss, head.single_mask_loss
        self.rows: Iterator[Tensor] | None = None
        head.calculate_segmentation_loss, head.single_mask_loss = self, self.one_image

    def __call__(self, fg_mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = _of_positives(self.tap, fg_mask)
        if weights is not None:
            counts = fg_mask.sum(1).tolist()
            self.rows = iter([row for row in weights.split(counts) if len(row)])
        try:
            return self.inner(fg_mask, *args, **kwargs)
        finally:
            self.rows = None

    def one_image(self, gt_mask: Tensor, pred: Tensor, proto: Tensor, xyxy: Tensor, area: Tensor) -> Tensor:
        """Upstream's sum over an image's positives, each times its weight."""
        if self.rows is None:
            return self.one(gt_mask, pred, proto, xyxy, area)
        mask = torch.einsum("in,nhw->ihw", pred, proto)
        loss = F.binary_cross_entropy_with_logits(mask, gt_mask, reduction="none")
        each = crop_mask(loss, xyxy).mean(dim=(1, 2)) / area
        return (each * next(self.rows).to(each.dtype)).sum()


class _SemanticTerm:
    """Stands in for `bcedice_loss`, over the pixels of all images (26-seg). Pixels are the finest level's anchors.

    Its BCE is a mean over pixels, each of which weighs what its anchor weighs. Its Dice term is a ratio over the whole
    picture, which cannot be taken apart: it weighs what the picture's pixels weigh on average. For a picture that is
    one image's, both are that image's weight.
    """

    def __init__(self, tap: LossTap, head: Any) -> None:
        self.tap, self.inner = tap, head.bcedice_loss
        head.bcedice_loss = self

    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.tap.weights is None or self.tap.anchor_weights is None:
            return self.inner(pred, target)
        height, width = pred.shape[-2:]
        if tuple(target.shape[-2:]) != (height, width):
            target = F.interpolate(target, (height, width), mode="nearest")
        weights = self.tap.anchor_weights
        shape = (height, width) if weights.shape[1] > 1 else (1, 1)
        weights = weights[:, : shape[0] * shape[1]].reshape(-1, 1, *shape)
        by_picture = copy(self.inner.dice)
        by_picture.reduction = "none"
        dice = by_picture(pred, target) * weights.mean(dim=(1, 2, 3)).to(pred.dtype)
        return self.inner.weight_bce * _mean_bce(pred, target, weights) + self.inner.weight_dice * dice.mean()


class _KeypointTerms:
    """Stands in for `calculate_keypoints_loss` and the terms it is made of: location, visibility, RLE (26-pose).

    All three are means over the keypoints of all positives. Upstream cuts the RLE term off at 0 after the mean. Above 0
    it is linear in the weights, below it is 0 for every image, as it is in the stock loss. So the images' shares sum to
    the total on both sides; only where other weights move the mean across 0 is the total not their weighted sum.
    """

    def __init__(self, tap: LossTap, head: Any) -> None:
        self.tap, self.inner = tap, head.calculate_keypoints_loss
        self.keypoint_loss, self.bce = head.keypoint_loss, head.bce_pose
        self.weights: Tensor | None = None
        head.calculate_keypoints_loss, head.keypoint_loss, head.bce_pose = self, self.location, self.visibility
        if getattr(head, "rle_loss", None) is not None:
            head.target_weights = _TargetWeights(self, head.target_weights)

    def __call__(self, masks: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        self.weights = _of_positives(self.tap, masks)
        try:
            return self.inner(masks, *args, **kwargs)
        finally:
            self.weights = None

    def location(self, pred_kpts: Tensor, gt_kpts: Tensor, kpt_mask: Tensor, area: Tensor) -> Tensor:
        """Upstream's `KeypointLoss`, with the weight before the mean."""
        if self.weights is None:
            return self.keypoint_loss(pred_kpts, gt_kpts, kpt_mask, area)
        distance = (pred_kpts[..., 0] - gt_kpts[..., 0]).pow(2) + (pred_kpts[..., 1] - gt_kpts[..., 1]).pow(2)
        factor = kpt_mask.shape[1] / (torch.sum(kpt_mask != 0, dim=1) + 1e-9)
        error = distance / ((2 * self.keypoint_loss.sigmas).pow(2) * (area + 1e-9) * 2)
        each = factor.view(-1, 1) * ((1 - torch.exp(-error)) * kpt_mask)
        return (each * self.weights[:, None].to(each.dtype)).mean()

    def visibility(self, pred: Tensor, target: Tensor) -> Tensor:
        """Upstream's `bce_pose`."""
        return self.bce(pred, target) if self.weights is None else _mean_bce(pred, target, self.weights[:, None])


class _TargetWeights:
    """Stands in for `target_weights` (K,), which upstream spreads over N positives by `unsqueeze(0).repeat(N, 1)`."""

    def __init__(self, terms: _KeypointTerms, inner: Tensor) -> None:
        self.terms, self.inner = terms, inner

    def unsqueeze(self, _: int) -> _TargetWeights:
        return self

    def repeat(self, *times: int) -> Tensor:
        """Return (N, K): what each keypoint of each positive weighs."""
        spread = self.inner.unsqueeze(0).repeat(*times)
        return spread if self.terms.weights is None else spread * self.terms.weights[:, None].to(spread.dtype)


class _AngleTerm:
    """Stands in for `calculate_angle_loss`, whose terms are weighted by the target scores, (N,)."""

    def __init__(self, tap: LossTap, head: Any) -> None:
        self.tap, self.inner = tap, head.calculate_angle_loss
        head.calculate_angle_loss = self

    def __call__(
        self, pred_bboxes: Tensor, target_bboxes: Tensor, fg_mask: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        weights = _of_positives(self.tap, fg_mask)
        if weights is not None:
            weight = weight * weights.to(weight.dtype)
        return self.inner(pred_bboxes, target_bboxes, fg_mask, weight, *args, **kwargs)


COVERED: dict[str, tuple[type, ...]] = {
    "v8DetectionLoss": (),
    "v8SegmentationLoss": (_MaskTerm, _SemanticTerm),
    "SegmentLoss26": (_MaskTerm, _SemanticTerm),
    "v8PoseLoss": (_KeypointTerms,),
    "PoseLoss26": (_KeypointTerms,),
    "v8OBBLoss": (_AngleTerm,),
}
"""Ultralytics' criteria whose loss is split exactly, and the stand-ins for what they add to the detection terms."""


def _of_positives(tap: LossTap, foreground: Tensor) -> Tensor | None:
    """What each positive weighs, (N,), image by image in anchor order; None where nothing is weighted."""
    if tap.weights is None or tap.anchor_weights is None:
        return None
    return tap.anchor_weights.expand(foreground.shape)[foreground]


def _mean_bce(pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean BCE of logits with a weight on each element; `weights` broadcasts to `pred`.

    The fused operation's gradients are at weights of 1 the stock ones bit for bit; those of a mean of products are not.
    It has no derivative by the weights, so that comes from a second term, whose value is 0.
    """
    loss = F.binary_cross_entropy_with_logits(pred, target, weight=weights.detach())
    if weights.requires_grad:
        each = F.binary_cross_entropy_with_logits(pred, target, reduction="none").detach()
        loss = loss + (each * (weights - weights.detach())).mean()
    return loss
