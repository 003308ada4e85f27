"""From scores to the exact kept set: the right count, deterministic ties. Knows no files and no reason for a score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.floors import Constraints, refused


def drop_count(n: int, prune: float) -> int:
    """Return how many of `n` samples a share `prune` in [0, 1) removes: round(prune * n), halves to the even number."""
    return round(prune * n)


def select_kept(
    scores: NDArray[np.floating], prune: float, *, seed: int = 0, constraints: Constraints | None = None
) -> NDArray[np.bool_]:
    """Return which samples stay, (N,) bool: all but the `drop_count` lowest scores that may go.

    Equal scores are ordered by a permutation that depends on `seed` and N alone. So a tie is decided the same way each
    time, and not in favour of the first files of a list, which are often the frames of one video.

    Args:
        scores: what each sample is worth keeping, (N,), higher is better; must be finite.
        prune: share to remove, in [0, 1).
        seed: decides ties only.
        constraints: what must not be lost; floors give way before the count does, see `floors.refused`.

    Raises:
        ValueError: a score is not finite, `prune` lies outside [0, 1), or too many samples are required.
    """
    return cut(ranked(scores, seed=seed), prune, constraints)


def ranked(scores: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.int64]:
    """Return the samples from the lowest score up, (N,), equal scores as `select_kept` orders them.

    Raises:
        ValueError: a score is not finite.
    """
    scores = np.asarray(scores)
    if not np.isfinite(scores).all():
        raise ValueError(f"Expected finite scores, but {int((~np.isfinite(scores)).sum())} of {scores.size} are not.")
    by_place = np.empty(len(scores), np.int64)  # whose place among equals is the first, the second and so on
    by_place[np.random.default_rng(seed).permutation(len(scores))] = np.arange(len(scores))
    # What lexsort would say in twice the time: it sorts by the places as well.
    return by_place[np.argsort(scores[by_place], kind="stable")]


def in_order(
    scores: NDArray[np.floating],
    prune: float,
    lots: NDArray[np.floating] | None,
    twin: NDArray[np.integer] | None = None,
    *,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the samples in the order in which they go, (N,): by score, the lowest first, and by lot beyond `prune`.

    A mask says whom its own share takes. Of the others it says who is the more doubtful, and those are the hard ones
    too: they are not the next to go, where a floor holds one back or another share is cut. Suspects, which have no lot,
    go before that, as their scores say, and so do copies; samples without a score go after all.

    Args:
        scores: (N,) what each is worth keeping, NaN unknown.
        prune: the share that the scores were learned for, [0, 1).
        lots: (N,) in [0, 1], the highest first, NaN for a sample without; None, and NaN for all: by score throughout.
        twin: (N,) the sample that each is a copy of, -1 none; None: there are no copies.
        seed: decides ties only.
    """
    order = ranked(unknown_last(scores), seed=seed)
    if lots is None or np.isnan(lots).all():
        return order
    keys = np.where(np.isnan(lots), np.inf, lots)
    if twin is not None:
        keys[twin >= 0] = np.inf
    keys[~np.isfinite(scores)] = -np.inf
    inside, outside = np.split(order, [drop_count(len(order), prune)])
    return np.concatenate([inside, outside[np.argsort(-keys[outside], kind="stable")]])


def cut(order: NDArray[np.int64], prune: float, constraints: Constraints | None = None) -> NDArray[np.bool_]:
    """Return which of the samples in an order stay, (N,) bool; see `select_kept`.

    Raises:
        ValueError: `prune` lies outside [0, 1), or too many samples are required.
    """
    if not 0 <= prune < 1:
        raise ValueError(f"Expected a prune share in [0, 1), but got {prune}.")
    kept = np.ones(len(order), bool)
    kept[refused(order, drop_count(len(order), prune), constraints or Constraints(), prune)] = False
    return kept


def unknown_last(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the scores, (N,), with NaN, which is no score, above all others: what nobody saw is the last to go."""
    values = np.asarray(scores, np.float64)
    known = np.isfinite(values)
    return np.where(known, values, values[known].max(initial=0.0) + 1)


def random_kept(n: int, prune: float, *, seed: int) -> NDArray[np.bool_]:
    """Return a random kept set of the same size as `select_kept` gives, (n,) bool: the baseline sceptics believe in."""
    return select_kept(np.random.default_rng([seed, n]).random(n), prune, seed=seed)
