"""What was seen of each sample: this epoch's channels, and the running mean and spread of what was made of them.

Knows samples by a number 0..N-1 that its caller ties to an identity. Memory is O(N), whatever the number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class EpochRecord:
    """Sums one epoch's channel readings by sample; a sample seen twice gets the mean, one not seen gets NaN.

    Args:
        n: number of samples.
        channels: number of channels, C.
    """

    def __init__(self, n: int, channels: int) -> None:
        self._sum = np.zeros((n, channels))
        self._count = np.zeros((n, channels), np.int32)

    def add(self, ids: NDArray[np.integer], values: NDArray[np.floating]) -> None:
        """Add a batch's readings: ids (B,), values (B, C) with NaN where a sample has no such reading."""
        seen = np.isfinite(values)
        np.add.at(self._sum, ids, np.where(seen, values, 0.0))
        np.add.at(self._count, ids, seen)

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The sums behind the means, sample by sample; where several processes share an epoch, theirs are added up."""
        return self._sum, self._count

    def means(self) -> NDArray[np.float64]:
        """Return the epoch's mean reading of each sample, (N, C), NaN where there was none."""
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)


class RunningMoments:
    """Mean and standard deviation over epochs, by sample and column, in one pass (Welford 1962).

    Args:
        n: number of samples.
        columns: number of columns.

    Attributes:
        count, mean: (N, columns); epochs with a reading and the mean over them (0 where there is none).
    """

    def __init__(self, n: int, columns: int) -> None:
        self.count = np.zeros((n, columns), np.int32)
        self.mean = np.zeros((n, columns))
        self._m2 = np.zeros((n, columns))

    def add(self, values: NDArray[np.floating]) -> None:
        """Add an epoch's values, (N, columns), NaN where there is none."""
        seen = np.isfinite(values)
        self.count += seen
        delta = np.where(seen, values - self.mean, 0.0)
        self.mean += delta / np.maximum(self.count, 1)
        self._m2 += delta * np.where(seen, values - self.mean, 0.0)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean over epochs, (N, columns), NaN where there is no reading."""
        return np.where(self.count > 0, self.mean, np.nan)

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation over epochs, (N, columns), with n - 1; 0 with one reading, NaN with none."""
        spread = np.sqrt(self._m2 / np.maximum(self.count - 1, 1))
        return np.where(self.count > 0, spread, np.nan)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything needed to go on, as arrays."""
        return {"count": self.count.copy(), "mean": self.mean.copy(), "m2": self._m2.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state_dict` gave."""
        self.count, self.mean, self._m2 = (np.array(state[k]) for k in ("count", "mean", "m2"))
