"""How far a difference between two arms can be trusted: its interval over trainings and over test images.

Two things move a measured difference of mAP. Another seed gives other networks; another test set gives other images.
More seeds shrink the first and leave the second. A t-interval over seeds (`evaluate.paired_difference`) sees the first
alone and speaks of these very test images; a bootstrap over images sees the second alone and speaks of these very
networks; a percentile bootstrap over both sees too little of the first where seeds are few. How often each holds the
truth is measured in docs/results/calibration.md. This module knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b of mAP over S seeds, in [-1, 1], with what its interval is made of.

    Attributes:
        mean: mean over seeds.
        low, high: two-sided 95 % interval; NaN for one seed, whose spread nobody knows.
        seeds: S.
        seed_variance: variance of the difference from seed to seed, on these images; NaN for one seed.
        image_variance: what another test set of the same size would add, however many seeds; 0 where the images were
            not at hand, then the interval speaks of these test images only.
        images: number of test images; 0 where they were not at hand.
    """

    mean: float
    low: float
    high: float
    seeds: int
    seed_variance: float
    image_variance: float
    images: int

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


def paired(
    a: Sequence[float], b: Sequence[float], replicates: NDArray[np.floating] | None = None, *, images: int = 0
) -> Difference:
    """Return the difference a - b with its 95 % interval over seeds and images.

    With d_s the difference at seed s and d_s(w) that of a bootstrap sample w of the images, the same for all seeds:

        mean      = mean over s of d_s
        variance  = s² / S + c
        s²        = variance of d_s over seeds; seed by image effects are in it
        c         = covariance over w of d_s(w) and d_r(w), mean over the pairs s ≠ r, at least 0: the effect of the
                    images that all seeds share, which more seeds do not average out
        interval  = mean ± q · sqrt(variance)
        q         = mean of two textbook quantiles for such a sum: Satterthwaite's, t with
                    variance² / ((s²/S)² / (S - 1) + c² / (n - 1)) degrees of freedom, which is too small for few seeds,
                    and Cochran and Cox's, (t(S - 1) · s²/S + t(n - 1) · c) / variance, which is too large

    With no replicates c is 0, and this is the t-interval over seeds.

    Args:
        a: one value a seed.
        b: the other arm's values, same seeds in the same order.
        replicates: d_s(w) for B bootstrap samples of the images, (B, S), or None where the images are not at hand.
        images: number of images n, where there are replicates.

    Raises:
        ConfigError: the arms differ in length or are empty.
    """
    if len(a) != len(b) or not len(a):
        raise ConfigError(
            f"Expected one value a seed in both arms, but got {len(a)} and {len(b)}; pair the runs first."
        )
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    seeds, mean = len(differences), float(differences.mean())
    shared = 0.0 if replicates is None else shared_variance(replicates)
    if seeds == 1:
        return Difference(mean, math.nan, math.nan, 1, math.nan, shared, images)
    spread = float(differences.var(ddof=1))
    half = half_width(spread, seeds, shared, images)
    return Difference(mean, mean - half, mean + half, seeds, spread, shared, images)


def shared_variance(replicates: NDArray[np.floating]) -> float:
    """Return c of `paired` for replicates (B, S): mean covariance between seeds; the variance itself for one seed."""
    values = np.asarray(replicates, np.float64)
    values = values[np.isfinite(values).all(1)]
    seeds = values.shape[1]
    if len(values) < 2:
        return 0.0
    if seeds == 1:
        return float(values.var(ddof=1))
    of_sum, own = float(values.sum(1).var(ddof=1)), float(values.var(axis=0, ddof=1).sum())
    return max(0.0, (of_sum - own) / (seeds * (seeds - 1)))


def half_width(
    seed_variance: float, seeds: int, image_variance: float, images: int, *, confidence: float = CONFIDENCE
) -> float:
    """Return half the width of the interval of `paired`, for two seeds or more."""
    of_seeds = seed_variance / seeds
    variance = of_seeds + image_variance
    if variance == 0:
        return 0.0
    level = (1 + confidence) / 2
    return quantile(level, of_seeds, seeds - 1, image_variance, max(images - 1, 1)) * math.sqrt(variance)


def quantile(level: float, first: float, first_df: int, second: float, second_df: int) -> float:
    """Return q of `paired` for a variance that is the sum of two estimated ones, not both 0."""
    from scipy.stats import t  # here, not on top: it costs more than all else this module loads

    variance = first + second
    df = variance**2 / (first**2 / first_df + second**2 / second_df)
    satterthwaite = float(t.ppf(level, df))
    cochran = (float(t.ppf(level, first_df)) * first + float(t.ppf(level, second_df)) * second) / variance
    return (satterthwaite + cochran) / 2
