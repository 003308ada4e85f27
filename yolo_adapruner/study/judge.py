"""A judge learned from rehearsed faults: which images read like spoilt ones, and like which kind of fault.

A multinomial logistic regression tells the images as they are from the same images under faults planted in memory
(`rehearse.py`). Some of the images as they are have faults of their own; those that look worst are left out of the
next fit, so that they do not teach that a fault is right. Nobody's truth is used. Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from yolo_adapruner.errors import DataError
from yolo_adapruner.study.rehearse import FEATURES

FOLDS, ROUNDS, LEFT_OUT, STRENGTH = 5, 3, 0.15, 1.0
_LOGARITHMIC = ("localisation", "classification", "presence", "missing", "worst presence", "extra", "extras")
_CLIP = 8.0
_DECILES = 2.5631031310892007  # distance of the outer deciles of a normal distribution, in standard deviations
_RIGHT = ""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the judge says of N images.

    Attributes:
        suspicion: (N,) log odds that the labels are wrong in any rehearsed way.
        kind: (N,) the likeliest kind of fault, whether or not the image is suspect.
    """

    suspicion: NDArray[np.float64]
    kind: NDArray[np.str_]


def judge(
    readings: NDArray[np.floating], rehearsed: NDArray[np.floating], kinds: NDArray[np.str_], *, seed: int = 0
) -> Verdict:
    """Return what readings say of images, learned from the same images' readings under rehearsed faults.

    Every image is judged by a model that saw neither it nor its rehearsal (5 folds).

    Args:
        readings: (N, 14), columns `rehearse.FEATURES`, means over epochs; NaN where there was nothing to read.
        rehearsed: the same under the fault `kinds` of each image; rows of NaN where it could not carry it.
        kinds: (N,) fault each image was rehearsed with.
        seed: deals the images out to folds.

    Raises:
        DataError: too few images.
    """
    ready = np.isfinite(rehearsed[:, FEATURES.index("missing")])
    if len(readings) < 2 * FOLDS or len(set(kinds[ready])) < 2:
        raise DataError(f"Expected {2 * FOLDS} images or more and two kinds of rehearsed fault, but got fewer.")
    true, wrong = _standardised(readings, readings), _standardised(rehearsed, readings)
    trusted = np.ones(len(readings), bool)
    for _ in range(ROUNDS):
        verdict = _fit(true, wrong, kinds, trusted, ready, seed)
        trusted = verdict.suspicion < np.quantile(verdict.suspicion, 1 - LEFT_OUT)
    return verdict


def _standardised(values: NDArray[np.floating], among: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return columns on one scale, median 0 and unit spread among the images as they are, 0 for what was not read."""
    values, among = _logarithms(values), _logarithms(among)
    low, middle, high = np.nanquantile(among, (0.1, 0.5, 0.9), axis=0)
    scaled = (values - middle) / ((high - low) / _DECILES + 1e-6)
    return np.where(np.isfinite(scaled), scaled, 0.0).clip(-_CLIP, _CLIP)


def _logarithms(values: NDArray[np.floating]) -> NDArray[np.float64]:
    result = np.array(values, np.float64)
    for name in _LOGARITHMIC:
        column = FEATURES.index(name)
        result[:, column] = np.log(np.maximum(result[:, column], 1e-4))
    count = FEATURES.index("count")
    result[:, count] = np.log1p(result[:, count])
    return result


def _fit(
    true: NDArray[np.float64],
    wrong: NDArray[np.float64],
    kinds: NDArray[np.str_],
    trusted: NDArray[np.bool_],
    ready: NDArray[np.bool_],
    seed: int,
) -> Verdict:
    suspicion = np.zeros(len(true))
    likeliest = np.empty(len(true), kinds.dtype)
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(true):
        right, spoilt = seen[trusted[seen]], seen[ready[seen]]
        rows = np.concatenate([true[right], wrong[spoilt]])
        classes = np.concatenate([np.full(len(right), _RIGHT, kinds.dtype), kinds[spoilt]])
        weights = np.repeat([1 / len(right), 1 / len(spoilt)], [len(right), len(spoilt)]) * len(rows) / 2
        model = LogisticRegression(C=STRENGTH, max_iter=3000).fit(rows, classes, sample_weight=weights)
        at = list(model.classes_).index(_RIGHT)
        logs = model.predict_log_proba(true[unseen])
        faults = np.delete(logs, at, 1)
        suspicion[unseen] = logsumexp(faults, axis=1) - logs[:, at]
        likeliest[unseen] = np.delete(model.classes_, at)[faults.argmax(1)]
    return Verdict(suspicion, likeliest)
