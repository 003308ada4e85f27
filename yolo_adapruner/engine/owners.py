"""Who owns the labels and the anchors of a batch, from what the loader says of its sources.

A label belongs to the image whose label file it came from, and so does each anchor that answers for it. Any other
anchor belongs to the image whose pixel lies at its centre; of a blend to both, each by its share; without one to the
nearest. This module knows neither a transform nor a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.engine.attribution import Sources
from yolo_adapruner.engine.places import PADDING


@dataclass(frozen=True)
class Owned:
    """Who owns a batch's label rows and anchors; B images, M padded labels, A anchors, L layers.

    Attributes:
        count: number of owners, K.
        labels: owner of each label row, (B, M) in 0..K-1; 0 in padding.
        anchors: owner of what lies at each anchor's centre, (L, B, A) in 0..K-1.
        blend: the first layer's share, (B, 1) in [0, 1].
    """

    count: int
    labels: Tensor
    anchors: Tensor
    blend: Tensor

    def shares(self) -> Tensor:
        """Return how much of each anchor's place each layer's owner has, (L, B, A); they sum to 1 over the layers."""
        first = self.blend.expand(self.anchors.shape[1:])
        if len(self.anchors) == 1:
            return torch.ones_like(first)[None]
        first = first.masked_fill(self.anchors[0] == self.anchors[1], 1)
        return torch.stack((first, 1 - first))

    def anchor_weights(self, weights: Tensor, foreground: Tensor, gt_index: Tensor) -> Tensor:
        """Return what each anchor weighs, (B, A), from what each owner does, (K,).

        Args:
            weights: the owners' weights; the answer is linear in them, and 1 throughout where they are.
            foreground: anchors that answer for a label, (B, A) bool.
            gt_index: the label row each of those answers for, (B, A); anything elsewhere.
        """
        if weights.requires_grad:  # the derivative by an owner's weight sums over all of its anchors
            weights = weights.double()
        by_place = weights[self.anchors[0]]
        if len(self.anchors) > 1:
            second = weights[self.anchors[1]]
            by_place = second + self.blend.to(weights.dtype) * (by_place - second)
        if not self.labels.shape[1]:
            return by_place
        return torch.where(foreground, weights[self.labels].gather(1, gt_index), by_place)


@dataclass(frozen=True)
class Ownership:
    """The owners of a mixed batch; `locate` says what they own once the anchors are known.

    Attributes:
        count: number of owners, K.
        labels, image, slot: owner, image and row among the image's labels, of each label, (N,).
        planes, table: (B, L, H/s, W/s) uint8, and the owner of each source of a sample, (B, S).
        blend: (B, 1).
        shape: height and width of the network's input.
    """

    count: int
    labels: Tensor
    image: Tensor
    slot: Tensor
    planes: Tensor
    table: Tensor
    blend: Tensor
    shape: tuple[int, int]

    def locate(self, anchors: Tensor, padded: int) -> Owned:
        """Return who owns each label row and each anchor.

        Args:
            anchors: centres in network-input pixels, (A, 2) x and y.
            padded: label rows of each image, M.
        """
        images, _, height, width = self.planes.shape
        # Planes may be coarser than the images, and multi-scale resizes the images after they were loaded.
        x = (anchors[:, 0] * (width / self.shape[1])).long().clamp(0, width - 1)
        y = (anchors[:, 1] * (height / self.shape[0])).long().clamp(0, height - 1)
        position = (self.planes[:, :, y, x] & (PADDING - 1)).long() - 1
        owner = self.table.gather(1, position.flatten(1)).view(position.shape)
        labels = self.labels.new_zeros(images, padded)
        labels[self.image, self.slot] = self.labels
        return Owned(self.count, labels, owner.transpose(0, 1), self.blend)


@dataclass(frozen=True)
class Accounts:
    """Whose accounts a batch goes onto.

    Where no sample of the batch is mixed, each has an account of its own, K = B, in the batch's order: an image that
    is in it twice has two. Where one is, an image has one account, whatever it was mixed into.

    Attributes:
        numbers: (K,) the number each owner goes by outside.
        areas: network-input pixels each owner is seen with, a blended one by its share, (K,) float32.
        views: the same in whole views, (K,) float32. An image alone in the input is a whole view, whatever its zoom;
            one that is mixed with others counts by its area, as part of what it would cover alone. 0 where all that an
            owner is seen in does not count.
        ownership: who owns what; None where no sample is mixed.
        table, labels: owner of each source of each sample, (B, S), and of each label, (N,), on the CPU, where one is.
    """

    numbers: NDArray[np.int64]
    areas: NDArray[np.float32]
    views: NDArray[np.float32]
    ownership: Ownership | None
    table: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None


def accounts(
    sources: Sources,
    numbers: NDArray[np.int64],
    batch: Mapping[str, Any],
    *,
    extents: NDArray[np.float64] | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> Accounts:
    """Return whose accounts a batch goes onto.

    Args:
        sources: what came with the batch, on the CPU.
        numbers: the number outside of each dataset row; rows of one number are one owner.
        extents: how much of a square each dataset row's image fills alone, (0, 1]; None: all of it.
        counted: (B,) which entries of the batch count as seen; None: all.
        batch: the batch as it goes into the network: `img` (B, C, H, W), `batch_idx` (N,), `bboxes` (N, 4 or 5).
    """
    rows, areas, planes = sources.rows.numpy(), sources.areas.numpy(), sources.planes
    height, width = batch["img"].shape[2:]
    scale = height * width / (planes.shape[2] * planes.shape[3])
    counted = np.ones(len(rows), bool) if counted is None else counted
    if rows.shape[1] == 1:
        return Accounts(numbers[rows[:, 0]], areas[:, 0] * np.float32(scale), counted.astype(np.float32), None)
    known = rows >= 0
    alone = (1 if extents is None else extents[rows[known]]) * max(planes.shape[2:]) ** 2
    views = np.minimum(areas[known] / alone, 1) * np.repeat(counted, known.sum(1))
    owners, position = np.unique(numbers[rows[known]], return_inverse=True)
    area = np.bincount(position, areas[known], len(owners)) * scale
    table = np.zeros(rows.shape, np.int64)
    table[known] = position
    labels = np.searchsorted(owners, numbers[sources.labels.numpy()])
    view = np.bincount(position, views, len(owners))
    ownership = _ownership(sources, labels, table, len(owners), batch)
    return Accounts(owners, area.astype(np.float32), view.astype(np.float32), ownership, table, labels)


def _ownership(
    sources: Sources, owner: NDArray[np.int64], table: NDArray[np.int64], count: int, batch: Mapping[str, Any]
) -> Ownership:
    device = batch["img"].device
    height, width = batch["img"].shape[2:]
    image = batch["batch_idx"].to(device, non_blocking=True).long()
    labels = torch.from_numpy(owner).to(device, non_blocking=True)
    if batch["bboxes"].shape[1] == 5:  # v8OBBLoss leaves out boxes thinner than two pixels before it numbers rows
        sides = batch["bboxes"][:, 2:4]
        wide = (sides * sides.new_tensor([width, height]) >= 2).all(1).to(device)
        image, labels = image[wide], labels[wide]
    before = torch.zeros(len(table) + 1, dtype=torch.long, device=device)
    before.scatter_add_(0, image + 1, torch.ones_like(image))
    return Ownership(
        count=count,
        labels=labels,
        image=image,
        slot=torch.arange(len(image), device=device) - before.cumsum(0)[image],  # as v8DetectionLoss.preprocess
        planes=sources.planes.to(device, non_blocking=True),
        table=torch.from_numpy(table).to(device, non_blocking=True),
        blend=sources.blend.to(device, non_blocking=True)[:, None],
        shape=(height, width),
    )
