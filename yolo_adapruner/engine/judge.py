"""A judge learned from rehearsed faults: which images read like spoilt ones, and like which kind of fault.

A multinomial logistic regression tells the images as they are from the same images under faults planted in memory
(`rehearse.py`; for a classifier `classloss.rehearsed_labels`). Some of the images as they are have faults of their own;
who teaches what right labels read like is for `core.suspicion` to say. Nobody's truth is used. Knows arrays only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from yolo_adapruner.engine.rehearse import FEATURES, MOST_REHEARSED
from yolo_adapruner.errors import DataError

FOLDS, STRENGTH = 5, 1.0
MOST_ROWS = MOST_REHEARSED
"""Images that a fit learns from at most; all are judged."""
_STRIDE = 1 << 15
"""Images that did not teach are judged so many at a time."""
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
        rehearsed_kinds: (N,) fault each image is rehearsed with, "" where it never is.
        seed: deals the images out to folds.
        device: where the group's backend wants its tensors.
        columns: what is read of an image.

    Attributes:
        kinds: the faults it tells apart.
        planted: (N,) which of them each image is rehearsed with, -1 where it never is.
        worsens, often: see `Columns`.
    """

    def __init__(
        self, rehearsed_kinds: NDArray[np.str_], seed: int, device: torch.device, columns: Columns = BOXES
    ) -> None:
        self.kinds, self.worsens, self.often = columns.kinds, columns.worsens, columns.often
        self.planted = _numbers(rehearsed_kinds, columns)
        self._taught = np.flatnonzero(self.planted >= 0)
        self._columns, self._seed, self._device = columns, seed, device

    def __call__(
        self,
        readings: NDArray[np.floating],
        rehearsed: NDArray[np.floating],
        evidence: Array,
        right: NDArray[np.bool_],
    ) -> Array | None:
        """Return log odds and kinds; see `core.suspicion.Judge`."""
        said = np.full((len(readings), 2 + len(self.kinds)), np.nan)
        seen = np.isfinite(readings[:, self._columns.at(self._columns.first)[0]]) & (evidence > 0)
        if distributed.first():
            material = _Material(readings, rehearsed, self._taught, self.planted, evidence, seen, right, self._columns)
            with suppress(DataError):  # a small set, or a joint stage whose pictures showed too little
                material.judge(said, self._seed)
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
    n = len(readings)
    rests = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    everyone = np.ones(n, bool)
    teaches = everyone if right is None else right
    planted = _numbers(kinds, columns)
    said = np.empty((n, 2 + len(columns.kinds)))
    _Material(readings, rehearsed, np.arange(n), planted, rests, everyone, teaches, columns).judge(said, seed)
    return Verdict(said[:, 0], said[:, 1], said[:, 2:], columns.kinds)


@dataclass(frozen=True, eq=False)
class _Material:
    """What an epoch gives to learn from: of N images their readings, of T of them those under faults.

    Attributes:
        readings: (N, R), and `rehearsed` (T, R) of the images `taught`, (T,).
        planted: (N,) fault each is rehearsed with.
        weights: (N,) how much of each its readings rest on.
        seen: (N,) which are to be judged.
        right: (N,) which teach what right labels read like.
        columns: what the R readings are.
    """

    readings: NDArray[np.floating]
    rehearsed: NDArray[np.floating]
    taught: NDArray[np.int64]
    planted: NDArray[np.int8]
    weights: Array
    seen: NDArray[np.bool_]
    right: NDArray[np.bool_]
    columns: Columns

    def judge(self, said: Array, seed: int) -> None:
        """Put log odds of labels and of rehearsals, and kinds, of the images that were seen into (N, 2 + K), in place.

        Raises:
            DataError: too few images; nothing was put anywhere.
        """
        columns, rows = self.columns, np.flatnonzero(self.seen)
        carried = self.seen[self.taught] & np.isfinite(self.rehearsed[:, columns.at(columns.first)[0]])
        ready = np.zeros(len(self.seen), bool)
        ready[self.taught[carried]] = True
        least = min(2, len(columns.kinds))
        if min(len(rows), carried.sum()) < 2 * FOLDS or len(set(self.planted[ready].tolist())) < least:
            raise DataError(f"Expected {2 * FOLDS} images or more and {least} kinds of rehearsed fault, but got fewer.")
        usual = rows[_sample(len(rows), seed)]
        low, middle, high = _deciles(self.readings[usual], columns)
        # Of more than can be learned from, those that have something to teach.
        sample = usual if len(rows) <= MOST_ROWS else np.flatnonzero(ready | (self.seen & self.right))
        sample = sample[_sample(len(sample), seed)]
        place = np.searchsorted(self.taught, sample).clip(max=len(self.taught) - 1)
        ready, right = ready[sample], self.right[sample]

        def scaled(values: NDArray[np.floating]) -> Array:
            return _standardised(values, low, middle, high, columns)

        true, wrong = scaled(self.readings[sample]), scaled(self.rehearsed[place])
        kinds, weights = np.array(columns.kinds)[self.planted[sample]], self.weights[sample]
        own = [0, *range(2, said.shape[1])]
        said[rows, 1] = np.nan
        models = []
        for learned, unseen in KFold(FOLDS, shuffle=True, random_state=seed).split(sample):
            models.append(_model(true, wrong, kinds, weights, learned[right[learned]], learned[ready[learned]]))
            said[np.ix_(sample[unseen], own)] = _said(models[-1], true[unseen], columns.kinds)
            if len(again := unseen[ready[unseen]]):  # a small set's few rehearsed images may be all in other folds
                said[sample[again], 1] = _said(models[-1], wrong[again], columns.kinds)[:, 0]
        rest = np.setdiff1d(rows, sample, assume_unique=True) if len(rows) > len(sample) else rows[:0]
        for begin in range(0, len(rest), _STRIDE):
            part = rest[begin : begin + _STRIDE]
            values = scaled(self.readings[part])
            said[np.ix_(part, own)] = np.mean([_said(model, values, columns.kinds) for model in models], axis=0)


def _numbers(kinds: NDArray[np.str_], columns: Columns) -> NDArray[np.int8]:
    """Which of the kinds that are told apart each is, (N,), -1 for "".

    Raises:
        ValueError: there is another kind.
    """
    numbers = np.full(len(kinds), -1, np.int8)
    for number, kind in enumerate(columns.kinds):
        numbers[kinds == kind] = number
    if len(strange := np.unique(kinds[(numbers < 0) & (kinds != "")])):
        raise ValueError(f"Expected faults of {', '.join(columns.kinds)}, but got {', '.join(strange.tolist())}.")
    return numbers


def _sample(n: int, seed: int) -> NDArray[np.int64]:
    """`MOST_ROWS` of n at most, drawn by lot, in their order."""
    if n <= MOST_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, n]).choice(n, MOST_ROWS, replace=False, shuffle=False))


def _deciles(values: NDArray[np.floating], columns: Columns) -> NDArray[np.float64]:
    """First, fifth and ninth deciles of images' columns, (3, R)."""
    among = _logarithms(values, columns)
    among[:, np.isnan(among).all(0)] = 0  # nobody was read there: whatever stands in the rehearsal counts for nothing
    return np.asarray(np.nanquantile(among, (0.1, 0.5, 0.9), axis=0))


def _standardised(values: NDArray[np.floating], low: Array, middle: Array, high: Array, columns: Columns) -> Array:
    """Return columns on one scale, median 0 and unit spread among the images as they are, 0 for what was not read."""
    scaled = (_logarithms(values, columns) - middle) / ((high - low) / _DECILES + 1e-6)
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
