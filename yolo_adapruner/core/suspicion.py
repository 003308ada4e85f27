"""What a judge that learns from rehearsed faults says of each sample, kept over epochs.

Every epoch the judge is taught anew: from the readings of the samples as they are, and from those under a fault that
was planted in each of them on purpose. It answers with log odds, whose mean over epochs becomes the signal. How it
learns is the judge's own business; this module knows no learner, no detector and no fault.

Some of the samples as they are have faults of their own and must not teach that a fault is right; others are only hard,
read like faults as well, and must. What tells them apart is the rehearsal: a fault on top of a wrong label reads worse
than most, and a fault where the model sees nothing anyway reads better (`wrong_ones`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

OFTEN = 1.5
"""What the mean of several epochs' log odds counts by beside the prior.

The fits are held back by their penalty, and what epochs agree on is surer than their mean. With 1 the share of wrong
labels comes out too low, with 2 too high (`docs/results/rest.md`).
"""
MOST, MARGIN = 0.3, 0.02
"""Of the samples at most so many are left out of what right labels are learned from; how far from the middle the ranks
of their rehearsals have to be, on average."""
BEYOND = 1.5
"""So many are left out for each that the ranks show: the sum of noisy ranks is largest before the last wrong sample."""
LEFT_OUT = 0.15
"""The same where rehearsals tell nothing, always."""
_ROUNDS, _RAREST = 500, 1e-4
_AT_FIRST = 0.05
"""The share to begin with, which odds that tell nothing do not move: labels are right till something speaks."""
_ASKED = 20_000
"""Samples at most that the share of wrong labels is estimated from, and who is left out."""


class Judge(Protocol):
    """Learns from one epoch and judges its samples."""

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the faults it tells apart, K."""

    @property
    def planted(self) -> NDArray[np.int64]:
        """Which of these each sample is rehearsed under, (N,)."""

    @property
    def worsens(self) -> bool:
        """Whether the fault of a rehearsal makes a wrong label worse; otherwise it may be what is right."""

    def __call__(
        self,
        readings: NDArray[np.float64],
        rehearsed: NDArray[np.float64],
        evidence: NDArray[np.float64],
        right: NDArray[np.bool_],
    ) -> NDArray[np.float64] | None:
        """Return what it says of each sample, (N, 2 + K), or None where there is too little to learn from.

        The first column are the log odds that a sample's labels are wrong, the second those of its rehearsal, the
        others the log-probability of each kind if they are wrong. NaN where a sample was not seen, and in the second
        where it was not rehearsed. What it says of a sample it has learned neither from that nor from its rehearsal.

        Args:
            readings: of the samples as they are, (N, R), NaN where there is none.
            rehearsed: of the samples under their faults, (N, R), rows of NaN where one carries none.
            evidence: how much of each sample its readings rest on, (N,) in [0, 1]; 0 where it was not seen.
            right: which samples teach what right labels read like, (N,).
        """


class Suspicion:
    """The mean over epochs of what a judge says of N samples; an epoch counts by its evidence.

    Args:
        n: number of samples.
        judge: None where there is none; then nothing is ever known.
    """

    def __init__(self, n: int, judge: Judge | None) -> None:
        self.judge = judge
        self._sum = np.zeros((n, 1 + len(judge.kinds) if judge is not None else 0))
        self._weight = np.zeros(n)
        self._rehearsed = np.zeros((n, 2))  # the sum of what was said of rehearsals, and its weight
        self._share: float | None = None  # not worked out since it last learned

    def learn(
        self, readings: NDArray[np.float64], rehearsed: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Take an epoch and return the signal of this epoch alone, (N,), or None where nothing was learned.

        The judge is asked without those that are left out by all epochs up to the last, and again if this one leaves
        out others.

        Args: see `Judge`.
        """
        if self.judge is None:
            return None
        before, right = (self._sum, self._weight, self._rehearsed), self._right()
        said = self.judge(readings, rehearsed, evidence, right)
        if said is None:
            return None
        self._add(said, evidence)
        if ((again := self._right()) != right).any():
            self._sum, self._weight, self._rehearsed = before
            said = self.judge(readings, rehearsed, evidence, again)
            if said is None:
                return None
            self._add(said, evidence)
        return softplus(said[:, 0])

    def _add(self, said: NDArray[np.float64], evidence: NDArray[np.float64]) -> None:
        own, rehearsal = np.delete(said, 1, 1), said[:, 1]
        weight = np.where(np.isfinite(own).all(1), evidence, 0)
        told = np.where(np.isfinite(rehearsal), weight, 0)
        self._sum = self._sum + np.where(weight[:, None] > 0, own, 0) * weight[:, None]
        self._weight = self._weight + weight
        self._rehearsed = self._rehearsed + np.column_stack((np.where(told > 0, rehearsal, 0) * told, told))
        self._share = None

    def _right(self) -> NDArray[np.bool_]:
        """Which samples are to teach what right labels read like, (N,)."""
        assert self.judge is not None
        planted = self.judge.planted if self.judge.worsens else None
        return ~wrong_ones(self.log_odds, _mean(*self._rehearsed.T), planted)

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, were wrong labels as frequent as right ones, (N,); NaN unknown."""
        return self._means()[:, 0] if self._sum.shape[1] else np.full(len(self._weight), np.nan)

    @property
    def share(self) -> float:
        """The share of samples with wrong labels as this set shows it, (0, 1); NaN where nothing is known."""
        if self._share is None:
            self._share = share_of_wrong(OFTEN * self.log_odds)
        return self._share

    @property
    def posterior(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, with wrong labels as frequent as `share`, (N,); NaN unknown.

        `log_odds`, and `signal` with them, take wrong and right for equally likely, as in the rehearsal; a set is
        rarely half wrong. These order the samples alike, and say how likely it is here.
        """
        return OFTEN * self.log_odds + _log_odds(self.share)

    @property
    def wrong(self) -> NDArray[np.float64]:
        """-log P(the labels are right), (N,) nats >= 0, by `posterior`; log 2 is even odds, NaN unknown."""
        return softplus(self.posterior)

    @property
    def kind(self) -> NDArray[np.str_]:
        """The likeliest kind of fault, whether or not a sample is suspect, (N,); "" where nothing is known."""
        if self.judge is None:
            return np.full(len(self._weight), "")
        names = np.array(self.judge.kinds)[self._sum[:, 1:].argmax(1)]
        return np.where(self._weight > 0, names, "")

    @property
    def signal(self) -> NDArray[np.float64] | None:
        """-log P(the labels are right), (N,) nats >= 0, NaN where nothing is known; None where it is of no sample."""
        return softplus(self.log_odds) if (self._weight > 0).any() else None

    def _means(self) -> NDArray[np.float64]:
        return _mean(self._sum, self._weight[:, None])

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, as arrays."""
        return {"sum": self._sum.copy(), "weight": self._weight.copy(), "rehearsed": self._rehearsed.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of another judge.
        """
        found = np.array(state["sum"], np.float64)
        if found.shape != self._sum.shape:
            raise ValueError(f"Expected a judge's state of shape {self._sum.shape}, but got {found.shape}.")
        self._sum, self._weight = found, np.array(state["weight"], np.float64)
        self._rehearsed = np.array(state["rehearsed"], np.float64)
        self._share = None


def mean_probability(log_odds: NDArray[np.float64]) -> float:
    """Return the mean probability that log odds stand for, [0, 1], without those that are NaN; NaN where all are."""
    known = log_odds[np.isfinite(log_odds)]
    return float(probability(known).mean()) if len(known) else math.nan


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities that log odds stand for, in [0, 1]."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))  # does not overflow where exp would


def wrong_ones(
    log_odds: NDArray[np.float64], rehearsed: NDArray[np.float64], planted: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """Return which samples are to be left out of what right labels are learned from, (N,).

    Those with the highest log odds, as many of them as have rehearsals that read worse than the middle of their kind:
    `BEYOND` times as many as there are up to where the sum of their ranks, less one half and `MARGIN`, is largest.
    Where what reads worst is hard, the sum falls from the first on, and nobody is left out.

    Args:
        log_odds: (N,) that the labels are wrong, NaN unknown.
        rehearsed: (N,) the same under the fault each was rehearsed with, NaN unknown.
        planted: (N,) which kind of fault that was; None where it tells nothing: then `LEFT_OUT` of the samples go.
    """
    known = np.flatnonzero(np.isfinite(log_odds) & np.isfinite(rehearsed))
    if not len(known):
        return np.zeros(len(log_odds), bool)
    some = _some(known)
    if planted is None:
        return log_odds > np.quantile(log_odds[some], 1 - LEFT_OUT)
    rank = np.empty(len(some))
    for kind in np.unique(planted[some]):
        own = np.flatnonzero(planted[some] == kind)
        rank[own[np.argsort(rehearsed[some][own], kind="stable")]] = (np.arange(len(own)) + 0.5) / len(own)
    worst = np.argsort(-log_odds[some], kind="stable")[: int(MOST * len(some))]
    excess = np.cumsum(rank[worst] - 0.5 - MARGIN)
    if not len(excess) or excess.max() <= 0:
        return np.zeros(len(log_odds), bool)
    last = min(int(BEYOND * (excess.argmax() + 1)), len(worst)) - 1
    return log_odds >= log_odds[some][worst[last]]


def share_of_wrong(log_odds: NDArray[np.float64]) -> float:
    """Return how frequent a class is, by log odds for it that were learned where both were equally frequent, (0, 1).

    Expectation maximisation over the samples themselves (Saerens, Latinne and Decaestecker 2002, Neural Computation
    14, equation 2.4): the share that is the mean of the probabilities it leads to.

    Args:
        log_odds: (N,), NaN unknown; NaN is returned where all are.
    """
    known = _some(log_odds[np.isfinite(log_odds)])
    share = _AT_FIRST if len(known) else math.nan
    for _ in range(_ROUNDS if len(known) else 0):
        found = mean_probability(known + _log_odds(share))
        before, share = share, min(max(found, _RAREST), 1 - _RAREST)
        if abs(share - before) < _RAREST * share:
            break
    return share


def _some(known: NDArray[Any]) -> NDArray[Any]:
    """`_ASKED` of them at most, in equal steps."""
    return known[:: max(1, -(-len(known) // _ASKED))]


def _mean(total: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sum over its weight, NaN where that is 0."""
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def softplus(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(log odds)), which is -log of the probability against, without overflow."""
    # As numpy's logaddexp, which warns of NaN.
    return np.maximum(log_odds, 0) + np.log1p(np.exp(-np.abs(log_odds)))
