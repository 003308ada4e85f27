"""Logits of an earlier run as the ones a new run starts with. Numpy only; which sample is which is the caller's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def start_logits(
    old: NDArray[np.floating],
    share: float,
    *,
    rates: tuple[float, float],
    lots: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return what an earlier run's logits add to a new run's common start.

    A sample is neutral whose pressure divides the share to go from the rest (`Pruner`). Such a one ends where the cut
    falls, and a sample that nothing is known of starts there: so the cut becomes 0. It falls elsewhere when another
    share is wanted. Steps are in units of the rate, and so are logits.

    Args:
        old: (N,) all logits of the earlier run, NaN for a sample it never saw.
        share: the share that the new run is to prune, [0, 1).
        rates: the earlier run's rate and the new one's, > 0.
        lots: (N,) what the earlier run ranked by for want of evidence, NaN for others: a lot is none, so these are
            neutral. None where it drew no lots.

    Returns:
        (N,), above 0 for what would be kept and below for what would go; NaN where there is none.
    """
    seen = np.sort(old[np.isfinite(old)]).astype(np.float64)
    if not len(seen):
        return np.full(len(old), np.nan)
    last = min(max(round(share * len(seen)) - 1, 0), len(seen) - 1)
    first = min(last + 1, len(seen) - 1)
    cut = seen[0] if round(share * len(seen)) == 0 else (seen[last] + seen[first]) / 2
    start = (np.asarray(old, np.float64) - cut) * (rates[1] / rates[0])
    drawn = np.zeros(len(start), bool) if lots is None else np.isfinite(lots)
    return np.where(drawn & np.isfinite(start), 0.0, start)
