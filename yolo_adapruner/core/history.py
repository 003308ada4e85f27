"""What was seen of each sample: this epoch's channels, and the running mean and spread of what was made of them.

Knows samples by a number 0..N-1 that its caller ties to an identity, and evidence by a number in whole views: what it
takes to see a whole sample once. Memory is O(N), whatever the number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-12
_CHUNK = 1 << 16  # samples a stride
_MANY = 1 << 20
"""Samples from which on an epoch's few readings of each are summed in 32 bits."""


class EpochRecord:
    """Sums one epoch's channel readings by sample; a sample seen twice gets the mean, one not seen gets NaN.

    Args:
        n: number of samples.
        channels: number of channels, C.

    Attributes:
        area: (N,) >= 0, whole views each sample gave a reading with in this epoch.
    """

    def __init__(self, n: int, channels: int) -> None:
        kind = np.float32 if n >= _MANY else np.float64
        self.area = np.zeros(n)
        self._sum = np.zeros((n, channels), kind)
        self._weight = np.zeros((n, channels), kind)

    def add(
        self, ids: NDArray[np.integer], values: NDArray[np.floating], area: NDArray[np.floating] | None = None
    ) -> None:
        """Add a batch's readings; a reading counts by the area it was made on.

        Args:
            ids: (B,); a sample may stand there several times.
            values: (B, C), NaN where a sample has no such reading.
            area: (B,) in whole views, finite and >= 0; a reading on no area is none. None: a whole view each.

        Raises:
            ValueError: an area is negative or no number, or there is not one for each of `ids`.
        """
        weight = np.ones(len(ids)) if area is None else np.asarray(area, np.float64)
        if weight.shape != (len(ids),) or not (np.isfinite(weight) & (weight >= 0)).all():
            raise ValueError(f"Expected an area of 0 or more for each of {len(ids)} readings, but got {weight}.")
        for begin in range(0, len(ids), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            own, by = ids[part], weight[part]
            seen = np.isfinite(values[part]) & (by > 0)[:, None]
            np.add.at(self._sum, own, np.where(seen, values[part], 0.0) * by[:, None])
            np.add.at(self._weight, own, seen * by[:, None])
            np.add.at(self.area, own, seen.any(1) * by)

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The sums behind the means, sample by sample; where several processes share an epoch, theirs are added up."""
        return self._sum, self._weight, self.area

    def means(self, columns: int | None = None) -> NDArray[np.floating]:
        """Return the epoch's mean reading of each sample by area, (N, C), NaN where there was none.

        Args:
            columns: of so many of the first columns alone; None: of all.
        """
        total, weight = self._sum[:, :columns], self._weight[:, :columns]
        result = np.full_like(total, np.nan)
        return np.divide(total, weight, out=result, where=weight > 0)

    def close(self) -> NDArray[np.floating]:
        """Return `means()` in the place of the sums, which are lost: no memory beside, and no other reading after."""
        means = self._sum
        for begin in range(0, len(means), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            seen = self._weight[part] > 0
            np.divide(means[part], self._weight[part], out=means[part], where=seen)
            np.copyto(means[part], np.nan, where=~seen)
        return means


class RunningMoments:
    """Mean and standard deviation over epochs, by sample and column, in one pass, epochs weighted (West 1979).

    Args:
        n: number of samples.
        columns: number of columns.

    Attributes:
        count, mean: (N, columns); epochs with a reading and the weighted mean over them (0 where there is none).
    """

    def __init__(self, n: int, columns: int) -> None:
        self.count = np.zeros((n, columns), np.int32)
        self.mean = np.zeros((n, columns))
        self._m2 = np.zeros((n, columns))
        self._weight = np.zeros((n, columns))
        self._weight2 = np.zeros((n, columns))

    def add(self, values: NDArray[np.floating], weight: NDArray[np.floating] | None = None) -> None:
        """Add an epoch.

        Args:
            values: (N, columns), NaN where there is none.
            weight: (N,) >= 0, how much the epoch counts for each sample; at 0 not at all. None: 1 each.
        """
        self.add_columns([values], weight)

    def add_columns(self, values: Sequence[NDArray[np.floating]], weight: NDArray[np.floating] | None = None) -> None:
        """Add an epoch as `add`, its columns in several arrays, (N,) or (N, some)."""
        for begin in range(0, len(self.count), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            rows = np.column_stack([own[part] for own in values])
            w = np.ones((len(rows), 1)) if weight is None else np.asarray(weight[part], np.float64)[:, None]
            seen = np.isfinite(rows) & (w > 0)
            w = np.where(seen, w, 0.0)
            self.count[part] += seen
            total = self._weight[part]
            total += w
            self._weight2[part] += w**2
            mean = self.mean[part]
            delta = np.where(seen, rows - mean, 0.0)
            mean += delta * w / np.where(total > 0, total, 1)
            self._m2[part] += w * delta * np.where(seen, rows - mean, 0.0)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean over epochs, (N, columns), NaN where there is no reading."""
        return np.where(self.count > 0, self.mean, np.nan)

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation over epochs, (N, columns), unbiased; 0 with one reading, NaN with none.

        With equal weights the divisor is n - 1; with others it is W - W2 / W, W and W2 being the sums of the weights
        and of their squares.
        """
        total = np.where(self.count > 0, self._weight, 1)
        freedom = total - self._weight2 / total
        told_apart = freedom > _EPS * total  # beside one weighty epoch, feathers are none
        squares = np.maximum(self._m2, 0)  # rounding leaves equal readings of odd weights a hair below 0
        spread = np.sqrt(np.where(told_apart, squares, 0) / np.where(told_apart, freedom, 1))
        return np.where(self.count > 0, spread, np.nan)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything needed to go on, as arrays."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state lacks a part, as one written before epochs were weighted does.
        """
        if missing := self._arrays().keys() - state.keys():
            raise ValueError(f"Expected moments with {', '.join(sorted(missing))}, but the state has none.")
        self.count, self.mean, self._m2, self._weight, self._weight2 = (np.array(state[k]) for k in self._arrays())

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "count": self.count,
            "mean": self.mean,
            "m2": self._m2,
            "weight": self._weight,
            "weight2": self._weight2,
        }
