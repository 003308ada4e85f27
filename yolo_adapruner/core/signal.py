"""From a sample's readings to the number the objective judges it by. Knows no task, no files, no images.

Readings come in channels, each a loss-like number >= 0 in a unit of its own. `surprise` puts them on one scale, nats,
and into one number; `sample_loss` makes that dimensionless; `pressure` is AdaPruner's f.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-6
_NORMAL_UPPER_QUARTILE, _NORMAL_UPPER_DECILE = 0.6744897501960817, 1.2815515655446004
_OUTLIER = 8.0  # spreads above the median from which on a sample does not set the spread
_TRIMS = 5
_CHUNK = 1 << 18  # samples a stride: what is made on the way stays small however many there are


def surprise(readings: NDArray[np.floating], known: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return how improbable each sample's readings are among its peers, (N,) nats >= 0; NaN with no reading.

    A sample's surprise is the Euclidean norm of `channel_surprise` over its channels: a fault usually speaks on more
    than one, so that two that agree count for more than either, and one that is loud enough counts alone. A channel
    that a sample lacks, such as the boxes of an image without any, counts as read at the median: no suspicion, and
    nothing easy about it.

    Args:
        readings: (N, C), >= 0, NaN where a sample has no such reading.
        known: (N, C), which of them are readings; all that are finite if None.
    """
    scales = [_scale(_column(readings, known, c)) for c in range(readings.shape[1])]
    result = np.empty(len(readings))
    for begin in range(0, len(readings), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        own = None if known is None else known[part]
        nats = np.column_stack([-_log_tail(_column(readings[part], own, c), at) for c, at in enumerate(scales)])
        present = np.isfinite(nats)
        norm = np.sqrt((np.where(present, nats, np.log(2)) ** 2).sum(1))
        result[part] = np.where(present.any(1), norm, np.nan)
    return result


def channel_surprise(readings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return -log P(a reading as high or higher) channel by channel, (N, C) nats >= 0; NaN where there is no reading.

    A channel's logarithm is taken as normal around the set's median.
    """
    columns = np.asarray(readings, np.float64).T
    return np.column_stack([-_log_tail(column, _scale(column)) for column in columns])


def _column(readings: NDArray[np.floating], known: NDArray[np.bool_] | None, c: int) -> NDArray[np.float64]:
    column = np.asarray(readings[:, c], np.float64)
    return column if known is None else np.where(known[:, c], column, np.nan)


def _scale(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Location and spread of a channel's logarithms over the set, None where there is no reading."""
    logs = values[np.isfinite(values)]
    if not len(logs):
        return None
    np.maximum(logs, _EPS, out=logs)
    return _location_and_spread(np.log(logs, out=logs))


def _log_tail(values: NDArray[np.float64], scale: tuple[float, float] | None) -> NDArray[np.float64]:
    """Log P(a channel this high or higher) by the robust log-normal; NaN where there is no reading."""
    if scale is None:
        return np.full(len(values), np.nan)
    median, spread = scale
    logs = np.log(np.maximum(values, _EPS))
    return np.where(np.isfinite(values), _log_normal_tail((logs - median) / spread), np.nan)


def _location_and_spread(logs: NDArray[np.float64]) -> tuple[float, float]:
    """Median, and standard deviation of the upper half, of the samples that are no outliers; orders `logs` anew.

    The upper decile gives the spread: a good detector's readings have a heavier tail than a normal one, and the upper
    quartile, which does not see it, costs about a tenth of the hits on planted label faults. But the decile belongs to
    the outliers once they are a tenth of the set. So they are left out, beginning with the quartile's view of them.
    """
    median, upper = _lowest_quantiles(logs, len(logs), (0.5, 0.75))
    spread = max((upper - median) / _NORMAL_UPPER_QUARTILE, _EPS)
    inside = -1
    for _ in range(_TRIMS):
        before, inside = inside, int(np.count_nonzero(logs <= median + _OUTLIER * spread))
        if inside == before:
            break
        median, upper = _lowest_quantiles(logs, inside, (0.5, 0.9))
        spread = max((upper - median) / _NORMAL_UPPER_DECILE, _EPS)
    return median, spread


def _lowest_quantiles(values: NDArray[np.float64], count: int, wanted: Sequence[float]) -> list[float]:
    """Quantiles of the `count` lowest values, as numpy's to the bit, at O(N) and without a copy; orders them anew."""
    places = [divmod((count - 1) * q, 1) for q in wanted]
    values.partition(sorted({rank for low, _ in places for rank in (int(low), min(int(low) + 1, count - 1))}))
    return [float(np.quantile(values[int(low) : int(low) + 2][: count - int(low)], part)) for low, part in places]


def _log_normal_tail(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 - Phi(z)), accurate far out, by torch's log_ndtr."""
    import torch

    return torch.special.log_ndtr(torch.from_numpy(-np.nan_to_num(z))).numpy()


def sample_loss(signal: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """Return signal / (its `tau` quantile over the set): dimensionless, 1 at the quantile, (N,).

    Args:
        signal: (N,) >= 0, NaN where there is none.
        tau: quantile in (0, 1); the lower, the more samples lie above 1.
    """
    values: NDArray[np.float64] = np.asarray(signal, np.float64)
    seen = values[np.isfinite(values)]
    if not len(seen):
        return values
    return values / max(float(np.quantile(seen, tau, overwrite_input=True)), _EPS)


def pressure(loss: NDArray[np.floating], *, task: bool = True, selection: bool = True) -> NDArray[np.float64]:
    """Return f(l) = l - log l, AdaPruner's task and selection term by weight (arXiv 2312.05599), (N,) >= 1.

    It is least at l = 1 and grows both ways: what is far easier and what is far harder than the unit is pushed out.

    Args:
        loss: l, (N,) >= 0, NaN unknown.
        task: with the task term's l; without it what is easy is pushed out, and what is hard is drawn in.
        selection: with the selection term's -log l; without it what is hard is pushed out, and nothing for being easy.
    """
    loss = np.asarray(loss, np.float64)
    if not selection:
        return loss.copy() if task else np.where(np.isnan(loss), np.nan, 0.0)
    logs = np.maximum(loss, _EPS)
    np.log(logs, out=logs)
    return np.subtract(loss, logs, out=logs) if task else np.negative(logs, out=logs)
