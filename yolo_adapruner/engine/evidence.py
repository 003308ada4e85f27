"""Which readings of an epoch count: those of images whose forward was sound and whose optimizer step was taken.

Readings are held back until the epoch is closed, on the device they were made on, so that noting them never waits for
it. Knows no mask and no loss.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.engine.losses import Assignment

Collected = tuple[NDArray[np.integer], NDArray[np.float32], NDArray[np.floating]]
"""What an `Evidence` gives in the end: ids (R,), readings (R, C) and views (R,)."""


def sound(seen: Assignment, loss: Tensor) -> Tensor:
    """Return which owners of a batch can be judged by this forward, (K,) bool: all they led to is finite.

    Args:
        seen: the batch's assignment.
        loss: the batch's loss; where it is not finite the gradient of every image is lost with it.
    """
    # A sum over many is finite only if all are: one pass, and no mask of the size of the predictions.
    sums = [values.sum((1, 2), dtype=torch.float32) for values in (seen.scores, seen.boxes)]
    entries = torch.isfinite(sums[0] + sums[1] + loss.detach().sum())
    if seen.owned is None:
        return entries
    unsound = (~entries).float()[None, :, None].expand(seen.owned.anchors.shape)
    return unsound.new_zeros(seen.owned.count).index_add_(0, seen.owned.anchors.flatten(), unsound.flatten()) == 0


class Evidence:
    """The readings of one epoch, batch by batch in their order."""

    def __init__(self) -> None:
        self._settled: list[tuple[NDArray[np.integer], Tensor, NDArray[np.floating]]] = []
        self._waiting: list[tuple[NDArray[np.integer], Tensor, NDArray[np.floating]]] = []

    def add(self, ids: NDArray[np.integer], readings: Tensor, views: NDArray[np.floating]) -> None:
        """Note a batch: ids (R,), readings (R, C) on any device, NaN where there is none; views (R,)."""
        self._waiting.append((ids, readings, views))

    def settle(self, taken: bool) -> None:
        """End an optimizer step: the batches since the last one count if it was taken, and are forgotten if not."""
        if taken:
            self._settled += self._waiting
        self._waiting = []

    def collect(self) -> Collected | None:
        """Return all that counts, ids (R,), readings (R, C) and views (R,), or None where nothing was noted.

        Batches whose step has not come yet, as gradient accumulation leaves some at the end of an epoch, are in it.
        """
        self.settle(taken=True)
        if not self._settled:
            return None
        ids, readings, views = zip(*self._settled, strict=True)
        return np.concatenate(ids), torch.cat(readings).float().cpu().numpy(), np.concatenate(views)
