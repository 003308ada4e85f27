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


def sound(seen: Assignment, loss: Tensor) -> Tensor:
    """Return which images of a batch can be judged by this forward, (B,) bool: all they led to is finite.

    Args:
        seen: the batch's assignment.
        loss: the batch's loss; where it is not finite the gradient of every image is lost with it.
    """
    # A sum over many is finite only if all are: one pass, and no mask of the size of the predictions.
    sums = [values.sum((1, 2), dtype=torch.float32) for values in (seen.scores, seen.boxes)]
    return torch.isfinite(sums[0]) & torch.isfinite(sums[1]) & torch.isfinite(loss.detach().sum())


class Evidence:
    """The readings of one epoch, batch by batch in their order."""

    def __init__(self) -> None:
        self._settled: list[tuple[NDArray[np.integer], Tensor, NDArray[np.bool_]]] = []
        self._waiting: list[tuple[NDArray[np.integer], Tensor, NDArray[np.bool_]]] = []

    def add(self, ids: NDArray[np.integer], readings: Tensor, counts: NDArray[np.bool_]) -> None:
        """Note a batch: ids (R,), readings (R, C) on any device, NaN where there is none; `counts` (R,), which do."""
        self._waiting.append((ids, readings, counts))

    def settle(self, taken: bool) -> None:
        """End an optimizer step: the batches since the last one count if it was taken, and are forgotten if not."""
        if taken:
            self._settled += self._waiting
        self._waiting = []

    def collect(self) -> tuple[NDArray[np.integer], NDArray[np.float32]] | None:
        """Return all that counts, ids (R,) and readings (R, C), or None where nothing was noted.

        Batches whose step has not come yet, as gradient accumulation leaves some at the end of an epoch, are in it.
        """
        self.settle(taken=True)
        if not self._settled:
            return None
        ids, readings, counts = zip(*self._settled, strict=True)
        rows = np.concatenate(counts)
        return np.concatenate(ids)[rows], torch.cat(readings).float().cpu().numpy()[rows]
