"""What a whole training says about each sample, epoch by epoch, kept as running sums: forgetting, margin, early error.

The peers that watch a training from its first epoch to its last need of each epoch whether a sample was right and by
what margin, and of the early ones how large its error was. All they make of that are sums over epochs, so that is all
that is kept: 21 bytes a sample, whatever the number of epochs. Knows samples by number and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

READINGS = ("right", "margin", "error")
"""Columns of an epoch's readings."""
EARLY = (0.1, 0.2)
"""Where the early part of a training begins and ends: a tenth and a fifth of its epochs."""


def early_epochs(epochs: int) -> range:
    """Return the epochs of the early part of a training, counted from 0; one at least.

    >>> early_epochs(40), early_epochs(3)
    (range(4, 8), range(0, 1))
    """
    first = min(round(EARLY[0] * epochs), epochs - 1)
    return range(first, max(round(EARLY[1] * epochs), first + 1))


def forgotten(last: NDArray[np.floating], now: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how much of each sample was right when it was seen last and is wrong now, (N,) in [0, 1].

    Toneva et al. 2019 (arXiv 1812.05159), definition "forgetting event", where a sample is right or wrong: 1 for an
    event and 0 for none. Of a sample of several objects, some of which are right, it is the share that was lost on
    balance; that extension is ours.

    Args:
        last: share that was right when the sample was last seen, (N,) in [0, 1]; NaN before it was.
        now: the same in this epoch, NaN where the sample was not seen.
    """
    return np.nan_to_num(np.clip(last - now, 0, None), nan=0.0)


class Trajectory:
    """The running sums of one training of N samples.

    Args:
        n: number of samples.
        epochs: of the training.
    """

    def __init__(self, n: int, epochs: int) -> None:
        self.early = early_epochs(epochs)
        self._events = np.zeros(n, np.float32)
        self._last = np.full(n, np.nan, np.float32)
        self._ever = np.zeros(n, bool)
        self._margin, self._margins = np.zeros(n, np.float32), np.zeros(n, np.int16)
        self._error, self._errors = np.zeros(n, np.float32), np.zeros(n, np.int16)

    def add(self, readings: NDArray[np.floating]) -> None:
        """Add an epoch.

        Args:
            readings: (N, 3), columns as `READINGS`: the share of a sample that was right, [0, 1]; its margin, finite;
                its error, >= 0, needed in the `early` epochs only. NaN where there is none.
        """
        right, margin, error = readings.T.astype(np.float32)
        seen = np.isfinite(right)
        self._events += forgotten(self._last, right)
        self._last[seen] = right[seen]
        self._ever |= right > 0
        for values, total, count in ((margin, self._margin, self._margins), (error, self._error, self._errors)):
            known = np.isfinite(values)
            total += np.where(known, values, 0)
            count += known

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return what the training comes to, each (N,).

        - forgotten: forgetting events; inf of a sample that was never right, as published.
        - margin: mean over the epochs that saw the sample, NaN where none did.
        - early_error: mean over the early epochs, NaN where none of them saw the sample.
        """
        return {
            "forgotten": np.where(self._ever, self._events, np.inf).astype(np.float64),
            "margin": _mean(self._margin, self._margins),
            "early_error": _mean(self._error, self._errors),
        }

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything needed to go on, as arrays."""
        return {name: getattr(self, name).copy() for name in _ARRAYS}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state is of another number of samples, or lacks a part.
        """
        for name in _ARRAYS:
            own = getattr(self, name)
            if name not in state or state[name].shape != own.shape:
                raise ValueError(f"Expected the trajectory of {len(own)} samples, but the state has another.")
            own[...] = state[name]


_ARRAYS = ("_events", "_last", "_ever", "_margin", "_margins", "_error", "_errors")


def _mean(total: NDArray[np.float32], count: NDArray[np.int16]) -> NDArray[np.float64]:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float64)
