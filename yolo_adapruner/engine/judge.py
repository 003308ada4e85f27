"""A judge learned from rehearsed faults: which images read like spoilt ones, and like which kind of fault.

A multinomial logistic regression tells the images as they are from the same images under faults planted in memory
(`rehearse.py`; for a classifier `classloss.rehearsed_labels`). Some of the images as they are have faults of their own;
who teaches what right labels read like is for `core.suspicion` to say. Nobody's truth is used. Knows arrays only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

# At the top: loaded in the middle of a training, it would draw from the training's random numbers.
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from yolo_adapruner.core import distributed
from yolo_adapruner.engine.classloss import CHANNELS
from yolo_adapruner.engine.faults import FAULTS
from yolo_adapruner.engine.rehearse import FEATURES
from yolo_adapruner.errors import DataError

FOLDS, STRENGTH = 5, 1.0
MOST_ROWS = 20_000
"""Images that a fit learns from at most; all are judged."""
_CLIP = 4.0
"""Spreads from the median beyond which a reading counts no more.

A wrong label that the detector has trained on reads milder than one rehearsed, so how far a reading lies beyond what is
usual tells little, and odds that grow with it are surer of hard images than they have reason to be.
"""
_DECILES = 2.5631031310892007  # distance of the outer deciles of a normal distribution, in standard deviations
_RIGHT = ""
_NEVER = -30.0  # log-probability of a kind that a fold has not learned

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """What the readings of an image are.

    Attributes:
        names: of the columns, in order.
        logarithmic: those whose logarithms are learned from.
        counts: those of which log(1 + n) is.
        first: the column without which an image was not read.
        kinds: faults that are told apart.
        worsens: whether a fault on top of a wrong label reads worse than one on top of a right one. A class drawn anew
            may be the true one.
        often: what the mean of several epochs' log odds counts by beside the prior. With 1 the share of wrong labels
            comes out too low, with 2 too high for a classifier (`docs/results/rest.md`); for a detector 1.5 was too low
            (`docs/results/judge.md`).
    """

    names: tuple[str, ...]
    logarithmic: tuple[str, ...]
    counts: tuple[str, ...]
    first: str
    kinds: tuple[str, ...]
    worsens: bool
    often: float

    def at(self, *names: str) -> list[int]:
        """Return where columns stand."""
        return [self.names.index(name) for name in names]


BOXES = Columns(
    FEATURES,
    ("localisation", "classification", "presence", "missing", "worst presence", "extra", "extras"),
    ("count",),
    "missing",
    tuple(FAULTS),
    worsens=True,
    often=2.0,
)
CLASSES = Columns(CHANNELS, CHANNELS, (), "label", ("swapped",), worsens=False, often=1.5)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the judge says of N images.

    Attributes:
        suspicion: (N,) log odds that the labels are wrong in any rehearsed way.
        rehearsal: (N,) the same of the labels that the image was rehearsed with, NaN where it carried no fault.
        likelihoods: (N, K) log-probability of each of `kinds` if they are.
        kinds: the faults that were told apart.
    """

    suspicion: Array
    rehearsal: Array
    likelihoods: Array
    kinds: tuple[str, ...] = BOXES.kinds

    @property
    def kind(self) -> NDArray[np.str_]:
        """The likeliest kind of fault, whether or not the image is suspect, (N,)."""
        return np.array(self.kinds)[self.likelihoods.argmax(1)]


class FaultJudge:
    """The judge that `core.suspicion` asks once an epoch; in a run of several processes the first one's word counts.

    Args:
        rehearsed_kinds: fault each of the N images is rehearsed with.
        seed: deals the images out to folds.
        device: where the group's backend wants its tensors.
        columns: what is read of an image.

    Attributes:
        kinds: the faults it tells apart.
        planted: (N,) which of them each image is rehearsed with.
        worsens, often: see `Columns`.
    """

    def __init__(
        self, rehearsed_kinds: NDArray[np.str_], seed: int, device: torch.device, columns: Columns = BOXES
    ) -> None:
        self.kinds, self.worsens, self.often = columns.kinds, columns.worsens, columns.often
        self.planted = np.array([columns.kinds.index(kind) for kind in rehearsed_kinds.tolist()], np.int64)
        self._columns = columns
        self._rehearsed_kinds, self._seed, self._device = rehearsed_kinds, seed, device

    def __call__(self, readings: Array, rehearsed: Array, evidence: Array, right: NDArray[np.bool_]) -> Array | None:
        """Return log odds and kinds; see `core.suspicion.Judge`."""
        said = np.full((len(readings), 2 + len(self.kinds)), np.nan)
        seen = np.isfinite(readings[:, self._columns.at(self._columns.first)[0]]) & (evidence > 0)
        if distributed.first():
            kinds, weights = self._rehearsed_kinds[seen], evidence[seen]
            try:
                verdict = judge(
                    readings[seen],
                    rehearsed[seen],
                    kinds,
                    weights=weights,
                    right=right[seen],
                    seed=self._seed,
                    columns=self._columns,
                )
                said[seen] = np.column_stack((verdict.suspicion, verdict.rehearsal, verdict.likelihoods))
            except DataError:  # a small set, or a joint stage whose pictures showed too little
                pass
        distributed.from_first(said, self._device)
        return said if np.isfinite(said).any() else None


def judge(
    readings: NDArray[np.floating],
    rehearsed: NDArray[np.floating],
    kinds: NDArray[np.str_],
    *,
    weights: NDArray[np.floating] | None = None,
    right: NDArray[np.bool_] | None = None,
    seed: int = 0,
    columns: Columns = BOXES,
) -> Verdict:
    """Return what readings say of images, learned from the same images' readings under rehearsed faults.

    Every image is judged by a model that saw neither it nor its rehearsal: of 5 folds, or of a seeded sample of
    `MOST_ROWS` that it is not in, by the mean of its 5 models.

    Args:
        readings: (N, R), means over epochs; NaN where there was nothing to read.
        rehearsed: the same under the fault `kinds` of each image; rows of NaN where it could not carry it.
        kinds: (N,) fault each image was rehearsed with.
        weights: (N,) > 0, how much of each image its readings rest on; 1 each if None.
        right: (N,) which images teach what right labels read like; all if None.
        seed: deals the images out to folds.
        columns: what the R readings are.

    Raises:
        DataError: too few images.
    """
    ready = np.isfinite(rehearsed[:, columns.at(columns.first)[0]])
    least = min(2, len(columns.kinds))
    if min(len(readings), ready.sum()) < 2 * FOLDS or len(set(kinds[ready])) < least:
        raise DataError(f"Expected {2 * FOLDS} images or more and {least} kinds of rehearsed fault, but got fewer.")
    rests = np.ones(len(readings)) if weights is None else np.asarray(weights, np.float64)
    teaches = np.ones(len(readings), bool) if right is None else right
    sample = np.sort(np.random.default_rng([seed, len(readings)]).permutation(len(readings))[:MOST_ROWS])
    true, wrong = (_standardised(values, readings, columns) for values in (readings, rehearsed))
    said = np.empty((len(true), 1 + len(columns.kinds)))
    rehearsal = np.full(len(true), np.nan)
    models = []
    for learned, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(sample):
        seen = sample[learned]
        models.append(_model(true, wrong, kinds, rests, seen[teaches[seen]], seen[ready[seen]]))
        own = sample[unseen]
        said[own] = _said(models[-1], true[own], columns.kinds)
        if not len(own := own[ready[own]]):
            continue  # a small set whose few rehearsed images are all in other folds
        rehearsal[own] = _said(models[-1], wrong[own], columns.kinds)[:, 0]
    if len(rest := np.setdiff1d(np.arange(len(true)), sample)):
        said[rest] = np.mean([_said(model, true[rest], columns.kinds) for model in models], axis=0)
    return Verdict(said[:, 0], rehearsal, said[:, 1:], columns.kinds)


def _standardised(values: NDArray[np.floating], among: NDArray[np.floating], columns: Columns) -> Array:
    """Return columns on one scale, median 0 and unit spread among the images as they are, 0 for what was not read."""
    values, among = _logarithms(values, columns), _logarithms(among, columns)
    among[:, np.isnan(among).all(0)] = 0  # nobody was read there: whatever stands in the rehearsal counts for nothing
    low, middle, high = np.nanquantile(among, (0.1, 0.5, 0.9), axis=0)
    scaled = (values - middle) / ((high - low) / _DECILES + 1e-6)
    return np.where(np.isfinite(scaled), scaled, 0.0).clip(-_CLIP, _CLIP)


def _logarithms(values: NDArray[np.floating], columns: Columns) -> Array:
    result = np.array(values, np.float64)
    logs, counts = columns.at(*columns.logarithmic), columns.at(*columns.counts)
    result[:, logs] = np.log(np.maximum(result[:, logs], 1e-4))
    result[:, counts] = np.log1p(result[:, counts])
    return result


def _model(
    true: Array,
    wrong: Array,
    kinds: NDArray[np.str_],
    weights: Array,
    right: NDArray[np.int64],
    spoilt: NDArray[np.int64],
) -> object:
    """The regression that tells the rows `right` as they are from the rows `spoilt` as they were rehearsed."""
    classes = np.concatenate([np.full(len(right), _RIGHT, kinds.dtype), kinds[spoilt]])
    sides = [weights[side] / weights[side].sum() for side in (right, spoilt)]
    with _unlogged():
        # Second derivatives of this few columns are cheap: 3 to 7 times as fast as by gradients alone.
        model = LogisticRegression(C=STRENGTH, solver="newton-cholesky")
        return model.fit(
            np.concatenate([true[right], wrong[spoilt]]),
            classes,
            sample_weight=np.concatenate(sides) * len(classes) / 2,
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep MLflow out: once Ultralytics' callback has called its autolog, it logs each fit of scikit-learn's.

    Up to 10 fits an epoch would end up as models in the user's own run, and take longer than the training.
    """
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield


def _said(model: object, rows: Array, told_apart: tuple[str, ...]) -> Array:
    """Log odds that the labels are wrong, and log-probability of each kind if they are, (n, 1 + K)."""
    logs = dict(zip(model.classes_, model.predict_log_proba(rows).T, strict=True))  # type: ignore[attr-defined]
    right = logs.pop(_RIGHT)
    wrong = logsumexp(list(logs.values()), axis=0)
    kinds = [logs[kind] - wrong if kind in logs else np.full(len(rows), _NEVER) for kind in told_apart]
    return np.column_stack((wrong - right, *kinds))
