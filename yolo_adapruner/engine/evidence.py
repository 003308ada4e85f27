"""Which readings of an epoch count: those of images whose forward was sound and whose optimizer step was taken.

Readings are held back until the epoch is closed, on the device they were made on, so that noting them never waits for
it. Knows no mask and no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        loss: the batch's loss, or its terms; where it is not finite the gradient of every image is lost with it. Of
            several batches together (B, 1), what the loss of each entry's batch was.
    """
    # A sum over many is finite only if all are: one pass, and no mask of the size of the predictions.
    sums = [values.sum((1, 2), dtype=torch.float32) for values in (seen.scores, seen.boxes)]
    entries = torch.isfinite(sums[0] + sums[1] + loss.detach().sum(-1))
    if seen.owned is None:
        return entries
    unsound = (~entries).float()[None, :, None].expand(seen.owned.anchors.shape)
    return unsound.new_zeros(seen.owned.count).index_add_(0, seen.owned.anchors.flatten(), unsound.flatten()) == 0


@dataclass
class Later:
    """The readings of a batch, that may be taken after others have come; `values` is (R, C), None until then."""

    values: Tensor | None = None


class Evidence:
    """The readings of one epoch, batch by batch in their order."""

    def __init__(self) -> None:
        self._settled: list[tuple[list[_Noted], bool | Tensor]] = []
        self._waiting: list[_Noted] = []

    def add(
        self,
        ids: NDArray[np.integer],
        readings: Tensor | Later,
        views: NDArray[np.floating],
        *,
        where: Tensor | Later | None = None,
    ) -> None:
        """Note a batch.

        Args:
            ids: (R,).
            readings: (R, C) on any device, NaN where there is none; they need not be there before `collect`.
            views: (R,).
            where: other readings of the batch, without any of which an image has none of these either.
        """
        self._waiting.append((ids, readings, views, where))

    def settle(self, taken: bool | Tensor) -> None:
        """End an optimizer step: the batches since the last one count if it was taken, and are forgotten if not.

        A tensor () is asked in `collect`, so that nobody waits for a device.
        """
        if not isinstance(taken, bool) or taken:
            self._settled.append((self._waiting, taken))
        self._waiting = []

    def collect(self) -> Collected | None:
        """Give away all that counts, ids (R,), readings (R, C) and views (R,), or None where nothing was noted.

        Batches whose step has not come yet, as gradient accumulation leaves some at the end of an epoch, are in it.
        Afterwards nothing is held: of millions of images it would be held twice.
        """
        self.settle(taken=True)
        asked = [taken for _, taken in self._settled if isinstance(taken, Tensor)]
        told = iter(torch.stack(asked).tolist() if asked else ())  # of the device once
        counts = [next(told) if isinstance(taken, Tensor) else taken for _, taken in self._settled]
        noted = [each for (batches, _), taken in zip(self._settled, counts, strict=True) if taken for each in batches]
        self._settled = []
        if not noted:
            return None
        ids, readings, views, where = zip(*noted, strict=True)
        found = torch.cat([_values(each) for each in readings])
        if any(each is not None for each in where):
            unread = torch.cat([_values(each).isnan().all(1, keepdim=True) for each in where])
            found = found.masked_fill(unread, torch.nan)
        return np.concatenate(ids), found.float().cpu().numpy(), np.concatenate(views)


_Noted = tuple[NDArray[np.integer], Tensor | Later, NDArray[np.floating], Tensor | Later | None]


def _values(readings: Tensor | Later) -> Tensor:
    values = readings.values if isinstance(readings, Later) else readings
    assert isinstance(values, Tensor), "collected before it was read"
    return values
