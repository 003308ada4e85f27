"""Which samples an epoch draws and what their losses weigh, and what is known of each when the next one is planned.

A plan is a pure function of the epoch's number and of `Visits`, so that a resumed run draws what the uninterrupted one
did, and each of several processes the same. Knows no loader, no model and no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.history import EpochRecord


@dataclass(frozen=True)
class Draw:
    """One epoch's images: `ids` (k,) ascending, each once, and the `weights` (k,) of their losses."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, chosen: NDArray[np.bool_]) -> Draw:
        """Draw the chosen ones, (N,) bool, at weight 1."""
        ids = np.flatnonzero(chosen)
        return cls(ids, np.ones(len(ids)))


class Visits:
    """What is known of N samples from the epochs so far: when each was drawn last, and what was read of it then.

    Args:
        n: number of samples.
        channels: number of readings that a sample gives, C.

    Attributes:
        losses: (N,) each sample's share of the training loss in the last epoch that saw it, per whole view, unweighted;
            NaN before the first, and where nobody asked for losses.
        readings: (N, C) what else was read in that epoch; NaN where nothing was.
        last: (N,) last epoch that drew the sample, from 0; -1 before the first.
        count: (N,) epochs that drew it.
    """

    def __init__(self, n: int, channels: int) -> None:
        self.losses: NDArray[np.float64] = np.full(n, np.nan)
        self.readings: NDArray[np.float64] = np.full((n, channels), np.nan)
        self.last: NDArray[np.int64] = np.full(n, -1, np.int64)
        self.count: NDArray[np.int64] = np.zeros(n, np.int64)
        self.open_epoch()

    def __len__(self) -> int:
        return len(self.losses)

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self._losses = EpochRecord(len(self), 1)
        self._readings = EpochRecord(len(self), self.readings.shape[1])

    def add(
        self, ids: NDArray[np.integer], readings: NDArray[np.floating], area: NDArray[np.floating] | None = None
    ) -> None:
        """Note readings of the open epoch; see `EpochRecord.add`."""
        self._readings.add(ids, readings, area)

    def add_losses(
        self, ids: NDArray[np.integer], losses: NDArray[np.floating], area: NDArray[np.floating] | None = None
    ) -> None:
        """Note losses per whole view, (B, 1); see `EpochRecord.add`."""
        self._losses.add(ids, losses, area)

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The sums behind all that was read in the open epoch; where processes share one, theirs are added up."""
        return self._readings.totals + self._losses.totals

    def close_epoch(self, epoch: int, draw: Draw | None) -> None:
        """End the epoch that was trained on a draw (None: on all samples)."""
        drawn = slice(None) if draw is None else draw.ids
        self.last[drawn] = epoch
        self.count[drawn] += 1
        # Seen is not drawn: a mosaic shows others too, and the readings of a step that was skipped do not count.
        for held, now in ((self.losses[:, None], self._losses), (self.readings, self._readings)):
            seen = now.area > 0
            held[seen] = now.means()[seen]
        self.open_epoch()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything an interrupted run needs to go on, as arrays."""
        return {name: getattr(self, name).copy() for name in ("losses", "readings", "last", "count")}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state_dict` gave."""
        for name, held in self.state_dict().items():
            setattr(self, name, np.array(state[name], held.dtype))


class Plan(Protocol):
    """Says before each epoch which samples it draws."""

    def __call__(self, epoch: int, seen: Visits) -> Draw | None:
        """Return the epoch's draw, of one sample at least; None for all samples at weight 1.

        Called once an epoch, and once more for one that is trained again or resumed: the answer must be the same.

        Args:
            epoch: counted from 0.
            seen: what is known from the epochs before; not to be changed.
        """
