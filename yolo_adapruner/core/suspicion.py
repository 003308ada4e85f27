"""What a judge that learns from rehearsed faults says of each sample, kept over epochs.

Every epoch the judge is taught anew: from the readings of the samples as they are, and from those under a fault that
was planted in each of them on purpose. It answers with log odds, whose mean over epochs becomes the signal. How it
learns is the judge's own business; this module knows no learner, no detector and no fault.

What the mean is worth is learned as well, from what the judge says of the rehearsals. Samples that are merely hard read
like faults too, and are told from wrong ones by number: wherever on the scale most planted faults lie, a share of wrong
labels would have to show by as many samples as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_RAREST = 1e-4
_TAILS = np.linspace(0.3, 0.9, 7)
"""Parts of one side that are held against the other; smaller ones hold too few samples, and their likes are rarer."""
_ASKED = 20_000
"""Samples that the share of wrong labels is estimated from at most."""
_FEW = 5
"""Rehearsals of a kind below which nothing is said of how frequent it is."""
_AS_REHEARSED = 0.25
"""Part of the wrong labels whose kinds are mixed as they are rehearsed, whatever is found: who is few is not none."""
_FITS, _SETTLED = 30, 5e-4
_STEPS, _TINY, _PENALTY = 100, 1e-6, 3e-4


class Judge(Protocol):
    """Learns from one epoch and judges its samples."""

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the faults it tells apart, K."""

    @property
    def planted(self) -> NDArray[np.int64]:
        """Which of these each sample is rehearsed under, (N,)."""

    def __call__(
        self, readings: NDArray[np.float64], rehearsed: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return what it says of each sample, (N, 2, 1 + K), or None where there is too little to learn from.

        Of the sample as it is, and under the fault it was rehearsed with; by what was learned from neither. The first
        number are the log odds that the labels are wrong, the others the log-probability of each kind if they are. NaN
        where a sample was not seen, and where it was not rehearsed.

        Args:
            readings: of the samples as they are, (N, R), NaN where there is none.
            rehearsed: of the samples under their faults, (N, R), rows of NaN where one carries none.
            evidence: how much of each sample its readings rest on, (N,) in [0, 1]; 0 where it was not seen.
        """


@dataclass(frozen=True, eq=False)
class Worth:
    """What a judge's mean word is worth: which log odds it stands for that a sample's labels are wrong.

    Attributes:
        slope: of the log odds in those of the judge, >= 0.
        offset: nats; NaN where nothing is known.
        lift: (K,) how much more frequent a kind of fault is among the wrong labels than it is rehearsed, >= 0.
    """

    slope: float
    offset: float
    lift: NDArray[np.float64]

    def log_odds(self, said: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log odds that the labels are wrong, (N,), by the judge's mean word, (N, 1 + K); NaN unknown."""
        return self.slope * said[:, 0] + self.offset + _lifted(said, self.lift)

    @classmethod
    def of(cls, given: NDArray[np.float64], rehearsed: NDArray[np.float64], planted: NDArray[np.int64]) -> Worth:
        """Learn it from what was said of samples as they are, some of them with wrong labels, and of planted faults.

        First how frequent each kind is at most, by the samples that read like it (`share_of_wrong`); then how frequent
        wrong labels are, were their kinds mixed so, a quarter of them as they are rehearsed. Then a logistic curve
        between the two sides (Platt 1999, Probabilistic outputs for support vector machines), in which each sample as
        it is counts by the probability that its labels are right, which the curve gives at that frequency; Elkan and
        Noto (2008, Learning classifiers from only positive and unlabeled data) weigh unlabelled examples so.

        Args:
            given: (N, 1 + K) mean word on the samples, NaN unknown.
            rehearsed: (N, 1 + K) on their rehearsals, NaN unknown.
            planted: (N,) kind of each rehearsal.
        """
        given, (rehearsed, planted) = _some(given), _some(rehearsed, planted)
        kinds = given.shape[1] - 1
        counts = np.bincount(planted, minlength=kinds)
        if not len(given) or not len(rehearsed):
            return cls(1.0, math.nan, np.ones(kinds))
        often = counts / len(planted)
        most = np.zeros(kinds)
        for kind in np.flatnonzero(counts >= _FEW):
            own = rehearsed[planted == kind]
            most[kind] = share_of_wrong(given[:, 0] + given[:, 1 + kind], own[:, 0] + own[:, 1 + kind])
        mix = (1 - _AS_REHEARSED) * most / most.sum() + _AS_REHEARSED * often if most.any() else often
        lift = np.divide(mix, often, out=np.zeros(kinds), where=counts > 0)
        on_top = _lifted(given, lift)
        share = max(
            share_of_wrong(given[:, 0] + on_top, rehearsed[:, 0] + _lifted(rehearsed, lift), lift[planted]),
            share_of_wrong(given[:, 0], rehearsed[:, 0]),
        )
        prior = math.log(share / (1 - share))
        right = np.ones(len(given))
        for _ in range(_FITS):
            slope, offset = _curve(given[:, 0], right, rehearsed[:, 0])
            before, right = right, probability(-(slope * given[:, 0] + offset + on_top + prior))
            if np.abs(right - before).mean() < _SETTLED:
                break
        return cls(slope, offset + prior, lift)


class Suspicion:
    """The mean over epochs of what a judge says of N samples; an epoch counts by its evidence.

    Args:
        n: number of samples.
        judge: None where there is none; then nothing is ever known.
    """

    def __init__(self, n: int, judge: Judge | None) -> None:
        self.judge = judge
        columns = 1 + len(judge.kinds) if judge is not None else 0
        self._sum = np.zeros((n, 2, columns))  # as they are, and rehearsed
        self._weight = np.zeros((n, 2))
        self._worth: Worth | None = None  # not worked out since it last learned

    def learn(
        self, readings: NDArray[np.float64], rehearsed: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Take an epoch and return the signal of this epoch alone, (N,), or None where nothing was learned.

        Args: see `Judge`.
        """
        said = None if self.judge is None else self.judge(readings, rehearsed, evidence)
        if said is None:
            return None
        known = np.asarray(np.isfinite(said).all(2))
        weight = np.where(known, evidence[:, None], 0)
        self._sum += np.where(known[..., None], said, 0) * weight[..., None]
        self._weight += weight
        self._worth = None
        return softplus(np.where(known[:, 0], said[:, 0, 0], np.nan))

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, were wrong labels as frequent as right ones, (N,); NaN unknown."""
        return self._means(0)[:, 0] if self.judge is not None else np.full(len(self._weight), np.nan)

    @property
    def worth(self) -> Worth | None:
        """What the judge's mean word is worth; None where there is no judge."""
        if self._worth is None and self.judge is not None:
            self._worth = Worth.of(self._means(0), self._means(1), self.judge.planted)
        return self._worth

    @property
    def share(self) -> float:
        """The share of samples with wrong labels as this set shows it, [0, 1]; NaN where nothing is known."""
        return mean_probability(self.posterior)

    @property
    def posterior(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, (N,); NaN unknown.

        `log_odds`, and `signal` with them, are as the judge gave them, whose fits are held back by their penalty, have
        the set's own wrong labels among what they take for right, and take wrong and right for equally likely, as in
        the rehearsal; a set is rarely half wrong. These order the samples alike, and say how likely it is here.
        """
        worth = self.worth
        return np.full(len(self._weight), np.nan) if worth is None else worth.log_odds(self._means(0))

    @property
    def wrong(self) -> NDArray[np.float64]:
        """-log P(the labels are right), (N,) nats >= 0, by `posterior`; log 2 is even odds, NaN unknown."""
        return softplus(self.posterior)

    @property
    def kind(self) -> NDArray[np.str_]:
        """The likeliest kind of fault, whether or not a sample is suspect, (N,); "" where nothing is known."""
        worth = self.worth
        if self.judge is None or worth is None:
            return np.full(len(self._weight), "")
        likely = self._means(0)[:, 1:] + np.log(np.maximum(worth.lift, _RAREST))
        return np.where(self._weight[:, 0] > 0, np.array(self.judge.kinds)[likely.argmax(1)], "")

    @property
    def signal(self) -> NDArray[np.float64] | None:
        """-log P(the labels are right), (N,) nats >= 0, NaN where nothing is known; None where it is of no sample."""
        return softplus(self.log_odds) if (self._weight[:, 0] > 0).any() else None

    def _means(self, side: int) -> NDArray[np.float64]:
        """What was said of the samples as they are (0) or rehearsed (1), mean over epochs, (N, 1 + K)."""
        total, weight = self._sum[:, side], self._weight[:, side, None]
        return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, as arrays."""
        return {"sum": self._sum.copy(), "weight": self._weight.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of another judge.
        """
        found = np.array(state["sum"], np.float64)
        if found.shape != self._sum.shape:
            raise ValueError(f"Expected a judge's state of shape {self._sum.shape}, but got {found.shape}.")
        self._sum, self._weight = found, np.array(state["weight"], np.float64)
        self._worth = None


def mean_probability(log_odds: NDArray[np.float64]) -> float:
    """Return the mean probability that log odds stand for, [0, 1], without those that are NaN; NaN where all are."""
    known = log_odds[np.isfinite(log_odds)]
    return float(probability(known).mean()) if len(known) else math.nan


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities that log odds stand for, in [0, 1]."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))  # does not overflow where exp would


def share_of_wrong(
    given: NDArray[np.float64], rehearsed: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> float:
    """Return the share of wrong labels that log odds of samples as they are and of planted faults allow, (0, 1/2].

    Of the samples as they are no less lie above a value than the wrong ones among them, and of these as many, by
    share, as of the planted ones. So no more can be wrong than the share of samples above a value over that of planted
    faults above it, at whatever value (Blanchard, Lee and Scott 2010, Semi-supervised novelty detection, section 4).
    Taken is the least of these over values that part of the planted faults lie above.

    That is a bound, which hard samples raise where the two are hard to tell apart. Turned about it bounds how many of
    the faults could be right labels by their looks; by so much the share is lowered, to nothing where both sides look
    alike: labels are right till something speaks.

    Args:
        given: (N,) of samples as they are.
        rehearsed: (M,) of samples under planted faults.
        weights: (M,) >= 0, how much each of these counts; 1 each if None.
    """
    ones = np.ones(len(given))
    weights = np.ones(len(rehearsed)) if weights is None else weights
    wrong = _least(given, ones, rehearsed, weights)
    right = _least(-rehearsed, weights, -given, ones)
    return min(max(wrong * (1 - right), _RAREST), 0.5)


def _least(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    among: NDArray[np.float64],
    among_weights: NDArray[np.float64],
) -> float:
    """The least, over the upper `_TAILS` of `among`, of the share of `values` there over that of `among`, [0, 1]."""
    order = np.argsort(among, kind="stable")
    below = np.cumsum(among_weights[order])
    cuts = among[order[np.searchsorted(below, (1 - _TAILS) * below[-1])]]
    shares = [
        np.where(side[:, None] >= cuts, weight[:, None], 0).sum(0) / weight.sum()
        for side, weight in ((values, weights), (among, among_weights))
    ]
    return float(min(1.0, (shares[0] / shares[1]).min()))


def _lifted(said: NDArray[np.float64], lift: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is to be added to log odds because kinds are as frequent as `lift` says, (N,) nats."""
    logs = said[:, 1:]
    most = logs.max(1, keepdims=True)
    share = np.exp(logs - most)
    return np.log(np.maximum((share @ lift) / share.sum(1), _RAREST))


def _curve(
    given: NDArray[np.float64], right: NDArray[np.float64], rehearsed: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope >= 0 and offset of the log odds by which a rehearsal is told from a right label, both equally frequent.

    By Newton's method, a step halved until the loss falls; a small penalty gives the slope an end where nothing
    confuses the two.
    """
    b = np.concatenate((given, rehearsed))
    target = np.repeat((0.0, 1.0), (len(given), len(rehearsed)))
    weight = np.concatenate((right / right.sum(), np.full(len(rehearsed), 1 / len(rehearsed)))) / 2
    middle, spread = float(np.median(b)), max(float(b.std()), 1e-9)
    x = np.column_stack(((b - middle) / spread, np.ones(len(b))))
    penalty = np.array((_PENALTY, 0.0))

    def loss(line: NDArray[np.float64]) -> float:
        odds = x @ line
        return float(weight @ (softplus(odds) - target * odds) + 0.5 * penalty @ line**2)

    line = np.zeros(2)
    value = loss(line)
    for _ in range(_STEPS):
        p = probability(x @ line)
        slope = (weight * (p - target)) @ x + penalty * line
        bend = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-12)
        step = np.linalg.solve(bend, slope)
        while loss(line - step) > value and np.abs(step).max() > _TINY:
            step = step / 2
        if np.abs(step).max() <= _TINY:
            break
        line = line - step
        value = loss(line)
    if line[0] <= 0:
        return 0.0, 0.0
    return float(line[0] / spread), float(line[1] - line[0] * middle / spread)


def _some(said: NDArray[np.float64], *beside: NDArray[Any]) -> Any:
    """`_ASKED` at most of the rows that are known, in equal steps, and what stands beside them."""
    known = np.flatnonzero(np.isfinite(said).all(1))
    rows = known[:: -(-len(known) // _ASKED)] if len(known) else known
    return (said[rows], *(values[rows] for values in beside)) if beside else said[rows]


def softplus(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(log odds)), which is -log of the probability against, without overflow."""
    # As numpy's logaddexp, which warns of NaN.
    return np.maximum(log_odds, 0) + np.log1p(np.exp(-np.abs(log_odds)))
