"""What a difference means for somebody who can spare so much mAP and no more, in words. Knows numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from yolo_adapruner.study.interval import CONFIDENCE, Difference, half_width, quantile

BETTER, WITHIN, WORSE, INCONCLUSIVE = "better", "within the margin", "worse", "inconclusive"

POWER = 0.8
MOST_SEEDS = 100
"""Beyond so many seeds an arm nobody will wait."""


@dataclass(frozen=True)
class Verdict:
    """What an interval says against a margin.

    Attributes:
        outcome: "better", "within the margin", "worse" or "inconclusive".
        more_seeds: further seeds that would settle an inconclusive one with a probability of 80 %; 0 if it is settled,
            None if `MOST_SEEDS` would not do, because the test images are too few, the difference lies too near the
            margin, or one seed says nothing of the spread.
        more_images: True where test images, not seeds, are what is short.
    """

    outcome: str
    more_seeds: int | None
    more_images: bool = False


def judge(found: Difference, margin: float, *, base: float = math.inf) -> Verdict:
    """Return the verdict on an arm whose mAP differs by `found` from what it is compared with.

    - better: the whole interval lies above 0.
    - within the margin: it does not, but all of it lies above -margin: whatever is lost is less than may be lost.
    - worse: all of it lies below -margin: more is lost than may be.
    - inconclusive: -margin lies inside. A loss may be plain and still be inconclusive, if its size is not. So is
      everything where the other side has no more than the margin to lose: detectors that learned nothing are all alike.

    With a true difference of 0 the first and the third come up in less than 5 % of studies.

    Args:
        found: the difference, in [-1, 1].
        margin: what may be lost, 0 or more, in [0, 1].
        base: mAP of what it is compared with, in [0, 1].
    """
    if not found.known or base <= margin:
        return Verdict(INCONCLUSIVE, None)
    if found.low > 0:
        return Verdict(BETTER, 0)
    if found.low >= -margin:
        return Verdict(WITHIN, 0)
    if found.high < -margin:
        return Verdict(WORSE, 0)
    return Verdict(INCONCLUSIVE, further_seeds(found, margin), more_images=_images_short(found, margin))


def further_seeds(found: Difference, margin: float) -> int | None:
    """Return how many more seeds would settle an inconclusive difference with a probability of 80 %.

    Should the difference stay where it is, and its variances s² and c as well (`interval.paired`), an interval over n
    seeds leaves the margin on one side with that probability once

        (q(0.975) + q(0.8)) · sqrt(s²/n + c)  <=  |mean + margin|

    with q the quantiles of the interval itself at n seeds; the least such n, less the seeds there are. It is the usual
    formula for a paired study of given power, with the shared variance of the images added. An estimate from few seeds
    is rough: at three, s itself is known to a factor of about two.
    """
    gap = abs(found.mean + margin)
    for n in range(found.seeds + 1, MOST_SEEDS + 1):
        if _reach(found, n) <= gap:
            return n - found.seeds
    return None


def sentence(
    what: str, found: Difference, margin: float, *, against: str = "", base: float = math.inf, unit: str = "mAP"
) -> str:
    """Return a verdict in words, one line, in points (0 to 100).

    Args:
        what: the doing that is judged, in the way of "dropping 10 %".
        found: its mAP minus the other's, in [-1, 1].
        margin: what may be lost, in [0, 1].
        against: what it is compared with, as " against a random choice"; nothing for the full set.
        base: mAP of what it is compared with, in [0, 1].
        unit: what is compared, where it is not mAP.
    """
    verdict = judge(found, margin, base=base)
    points = round(100 * found.mean, 1)
    effect = "gains" if points > 0 else "costs"
    amount = f"{points:+.1f}" if points else "0.0"
    interval = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if found.known else ""
    allowed = f"{100 * margin:g}"
    words = {
        BETTER: "better",
        WITHIN: f"within your margin of {allowed}",
        WORSE: f"worse than your margin of {allowed} allows",
        INCONCLUSIVE: _open(found, margin, verdict)
        if base > margin
        else f"inconclusive, there are only {100 * base:.1f} {unit} to lose and your margin is {allowed}",
    }[verdict.outcome]
    return f"{what} {effect} {amount} {unit}{interval}{against}: {words}"


def _open(found: Difference, margin: float, verdict: Verdict) -> str:
    """What an inconclusive verdict leaves open, and what would close it."""
    if not found.known:
        return "inconclusive, one seed says nothing of the spread between trainings: take two more at least"
    loss = "a loss, but whether within" if found.high < 0 else "inconclusive against"
    head = f"{loss} your margin of {100 * margin:g}" + (" is inconclusive" if found.high < 0 else "")
    if verdict.more_seeds is not None:
        return f"{head}, about {verdict.more_seeds} more seed{'s' if verdict.more_seeds > 1 else ''} would settle it"
    if verdict.more_images:
        return f"{head}, and more seeds would not settle it: the {found.images} test images are too few"
    return f"{head}, and even {MOST_SEEDS} seeds would not settle it: it lies too near the margin"


def _reach(found: Difference, seeds: int) -> float:
    """How far from the margin a difference must lie to be settled by so many seeds with the power asked for."""
    of_seeds = found.seed_variance / seeds
    variance = of_seeds + found.image_variance
    if variance == 0:
        return 0.0
    half = half_width(found.seed_variance, seeds, found.image_variance, found.images)
    extra = quantile(POWER, of_seeds, seeds - 1, found.image_variance, max(found.images - 1, 1))
    return half + extra * math.sqrt(variance)


def _images_short(found: Difference, margin: float) -> bool:
    """Whether the images alone keep it open: endless seeds would not settle it."""
    from scipy.stats import norm

    both = float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER))
    return both * math.sqrt(found.image_variance) > abs(found.mean + margin)
