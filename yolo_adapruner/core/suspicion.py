"""What a judge that learns from rehearsed faults says of each sample, kept over epochs.

Every epoch the judge is taught anew: from the readings of the samples as they are, and from those under a fault that
was planted in each of them on purpose. It answers with log odds, whose mean over epochs becomes the signal. How it
learns is the judge's own business; this module knows no learner, no detector and no fault.
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
_ROUNDS, _RAREST = 500, 1e-4
_ASKED = 20_000
"""Samples that the share of wrong labels is estimated from at most."""


class Judge(Protocol):
    """Learns from one epoch and judges its samples."""

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the faults it tells apart, K."""

    def __call__(
        self, readings: NDArray[np.float64], rehearsed: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return what it says of each sample, (N, 1 + K), or None where there is too little to learn from.

        The first column are the log odds that a sample's labels are wrong, the others the log-probability of each kind
        if they are; NaN where a sample was not seen.

        Args:
            readings: of the samples as they are, (N, R), NaN where there is none.
            rehearsed: of the samples under their faults, (N, R), rows of NaN where one carries none.
            evidence: how much of each sample its readings rest on, (N,) in [0, 1]; 0 where it was not seen.
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
        self._share: float | None = None  # not worked out since it last learned

    def learn(
        self, readings: NDArray[np.float64], rehearsed: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Take an epoch and return the signal of this epoch alone, (N,), or None where nothing was learned.

        Args: see `Judge`.
        """
        said = None if self.judge is None else self.judge(readings, rehearsed, evidence)
        if said is None:
            return None
        known = np.asarray(np.isfinite(said).all(1))
        weight = np.where(known, evidence, 0)
        self._sum += np.where(known[:, None], said, 0) * weight[:, None]
        self._weight += weight
        self._share = None
        return softplus(np.where(known, said[:, 0], np.nan))

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
        return OFTEN * self.log_odds + math.log(self.share / (1 - self.share))

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
        seen = self._weight > 0
        return np.where(seen[:, None], self._sum / np.where(seen, self._weight, 1)[:, None], np.nan)

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
        self._share = None


def mean_probability(log_odds: NDArray[np.float64]) -> float:
    """Return the mean probability that log odds stand for, [0, 1], without those that are NaN; NaN where all are."""
    known = log_odds[np.isfinite(log_odds)]
    # tanh does not overflow where exp would.
    return float(0.5 * (1 + np.tanh(0.5 * known)).mean()) if len(known) else math.nan


def share_of_wrong(log_odds: NDArray[np.float64]) -> float:
    """Return how frequent a class is, by log odds for it that were learned where both were equally frequent, (0, 1).

    Expectation maximisation over the samples themselves (Saerens, Latinne and Decaestecker 2002, Neural Computation
    14, equation 2.4): the share that is the mean of the probabilities it leads to.

    Args:
        log_odds: (N,), NaN unknown; NaN is returned where all are.
    """
    known = log_odds[np.isfinite(log_odds)]
    known = known[:: -(-len(known) // _ASKED)] if len(known) else known
    share = 0.5 if len(known) else math.nan
    for _ in range(_ROUNDS if len(known) else 0):
        found = mean_probability(known + math.log(share / (1 - share)))
        before, share = share, min(max(found, _RAREST), 1 - _RAREST)
        if abs(share - before) < _RAREST * share:
            break
    return share


def softplus(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(log odds)), which is -log of the probability against, without overflow."""
    # As numpy's logaddexp, which warns of NaN.
    return np.maximum(log_odds, 0) + np.log1p(np.exp(-np.abs(log_odds)))
