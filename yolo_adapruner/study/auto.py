"""The largest share that can go: bisection over a saved ranking, the trying out injected. Knows no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SHARES = tuple(round(0.05 * k, 2) for k in range(1, 19))
"""What a search tries: 5 % to 90 % in steps of 5 %, five trials at most."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        share: the largest share tried that was within the margin below the smallest that was not; None if none was.
        tried: share → whether it was within the margin, in the order of the trials.
    """

    share: float | None
    tried: dict[float, bool]


def largest_within(within: Callable[[float], bool], shares: Sequence[float] = SHARES) -> Found:
    """Return the largest share whose loss stays within a margin, by bisection.

    It takes the loss to grow with the share. What is inconclusive counts as not within: a share is given only if it was
    shown to be harmless, so with few seeds the answer is smaller than it need be, not larger.

    Args:
        within: tries a share; True where it was shown to be within the margin.
        shares: to choose from, ascending.
    """
    tried: dict[float, bool] = {}
    low, high = -1, len(shares)  # places known to be within, and known not to be
    while high - low > 1:
        middle = (low + high) // 2
        tried[shares[middle]] = within(shares[middle])
        low, high = (middle, high) if tried[shares[middle]] else (low, middle)
    return Found(shares[low] if low >= 0 else None, tried)


def line(found: Found, margin: float) -> str:
    """Return the answer in words, one line; `margin` in [0, 1]."""
    tried = ", ".join(f"{share:.0%} {'yes' if good else 'no'}" for share, good in sorted(found.tried.items()))
    if found.share is None:
        return f"no share was shown to stay within your margin of {100 * margin:g} (tried: {tried})"
    return (
        f"the largest share shown to stay within your margin of {100 * margin:g} is {found.share:.0%} (tried: {tried})"
    )
