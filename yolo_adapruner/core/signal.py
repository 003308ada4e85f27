"""From a sample's readings to the number the objective judges it by. Knows no task, no files, no images.

Readings come in channels, each a loss-like number >= 0 in a unit of its own. `surprise` puts them on one scale, nats,
and into one number; `sample_loss` makes that dimensionless; `pressure` is AdaPruner's f.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-6
_NORMAL_UPPER_DECILE = 1.2815515655446004


def surprise(readings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how improbable each sample's worst channel is among its peers, (N,) nats >= 0; NaN with no reading.

    A channel's logarithm is taken as normal, with the median of the set and the spread between its median and its upper
    decile. (The upper quartile calls the heavy tail of a good detector's readings improbable: on planted label faults
    it costs about a tenth of the hits.) A sample's surprise is -log of the probability that the largest of its k
    channels lies this high by chance, 1 - (1 - p)^k (Sidak 1967), so that a sample with fewer channels, such as an
    image without boxes, is judged by the same measure.

    Args:
        readings: (N, C), >= 0, NaN where a sample has no such reading.
    """
    readings = np.asarray(readings, np.float64)
    log_tails = np.column_stack([_log_tail(column) for column in readings.T])
    present = np.isfinite(log_tails)
    channels = present.sum(1)
    lowest = np.where(present, log_tails, 0.0).min(1)
    p = np.exp(lowest)
    # -log(1 - (1 - p)^k); for small p the bracket is k * p, which is kept in logarithms where p underflows.
    joint = np.where(
        lowest > -20,
        np.log(-np.expm1(channels * np.log1p(-np.minimum(p, 1 - _EPS)))),
        lowest + np.log(np.maximum(channels, 1)),
    )
    return np.where(channels > 0, np.maximum(-joint, 0.0), np.nan)


def _log_tail(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log P(a channel this high or higher) by the robust log-normal; NaN where there is no reading."""
    seen = np.isfinite(values)
    if not seen.any():
        return np.full(len(values), np.nan)
    logs = np.log(np.maximum(values, _EPS))
    median, upper = np.quantile(logs[seen], (0.5, 0.9))
    spread = max((upper - median) / _NORMAL_UPPER_DECILE, _EPS)
    return np.where(seen, _log_normal_tail((logs - median) / spread), np.nan)


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
    seen = np.isfinite(values)
    if not seen.any():
        return values
    return values / max(float(np.quantile(values[seen], tau)), _EPS)


def pressure(loss: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return f(l) = l - log l, AdaPruner's task and selection term by weight (arXiv 2312.05599), (N,) >= 1.

    It is least at l = 1 and grows both ways: what is far easier and what is far harder than the unit is pushed out.
    """
    loss = np.asarray(loss, np.float64)
    return loss - np.log(np.maximum(loss, _EPS))
