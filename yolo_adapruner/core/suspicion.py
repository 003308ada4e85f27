"""What a judge that learns from rehearsed faults says of each sample, kept over epochs.

Every epoch the judge is taught anew: from the readings of the samples as they are, and from those under a fault that
was planted in each of them on purpose. It answers with log odds, whose mean over epochs becomes the signal. How it
learns is the judge's own business; this module knows no learner, no detector and no fault.

Some of the samples as they are have faults of their own and must not teach that a fault is right; others are only hard,
read like faults as well, and must. What tells them apart is the rehearsal: a fault on top of a wrong label reads worse
than most, and a fault where the model sees nothing anyway reads better (`wrong_ones`). A judge that the wrong ones have
taught no longer sees that, so it is asked of another, the probe, which the most suspect never teach, wrong or hard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LEFT_OUT = 0.15
"""The part of the samples, the most suspect, that does not teach the probe; nor the judge where rehearsals tell
nothing."""
MOST, MARGIN, SURE = 0.3, 0.02, 1.5
"""Of the samples at most so many are left out of what right labels are learned from; how far from the middle the ranks
of their rehearsals have to be, on average; and how many standard deviations of as many ranks drawn by lot beyond it."""
BEYOND = 1.5
"""So many are left out for each that the ranks show: the sum of noisy ranks is largest before the last wrong sample."""
DOUBT = 0.2
"""Probability of wrong labels from which on a sample goes before all whom the lot takes, though right is likelier.

Where a place has to be filled it costs a good image otherwise, and a wrong label harms about as much as a right one
helps (docs/results/noise.md): at one in five a sample may be worth half as much again as another and is still the one
to go.
"""
_ROUNDS, _RAREST = 500, 1e-4
_AT_FIRST = 0.05
"""The share to begin with, which odds that tell nothing do not move: labels are right till something speaks."""
_ASKED = 20_000
"""Samples at most that the shares of wrong labels are estimated from, and who is left out."""
_STRIDE = 1 << 18
"""Samples that are worked on at a time: at ten million, all kinds of all of them would take gigabytes."""


class Judge(Protocol):
    """Learns from one epoch and judges its samples."""

    @property
    def kinds(self) -> Sequence[str]:
        """Names of the faults it tells apart, K."""

    @property
    def planted(self) -> NDArray[np.integer]:
        """Which of these each sample is rehearsed under, (N,); -1 where it never is.

        Those that are, T, alone teach: of many samples a part says enough.
        """

    @property
    def worsens(self) -> bool:
        """Whether the fault of a rehearsal makes a wrong label worse; otherwise it may be what is right."""

    @property
    def often(self) -> float:
        """What the mean of several epochs' log odds counts by beside the prior, >= 1.

        Fits are held back by their penalty, and what epochs agree on is surer than their mean; how much surer depends
        on what is read.
        """

    def __call__(
        self,
        readings: NDArray[np.floating],
        rehearsed: NDArray[np.floating],
        evidence: NDArray[np.float64],
        right: NDArray[np.bool_],
    ) -> NDArray[np.float64] | None:
        """Return what it says of each sample, (N, 2 + K), or None where there is too little to learn from.

        The first column are the log odds that a sample's labels are wrong, the second those of its rehearsal, the
        others the log-probability of each kind if they are wrong. NaN where a sample was not seen, and in the second
        where it was not rehearsed. What it says of a sample it has learned neither from that nor from its rehearsal.

        Args:
            readings: of the samples as they are, (N, R), NaN where there is none.
            rehearsed: of the T samples that are rehearsed under their faults, (T, R), rows of NaN where one carries
                none.
            evidence: how much of each sample its readings rest on, (N,) in [0, 1]; 0 where it was not seen.
            right: which samples teach what right labels read like, (N,).
        """


class Suspicion:
    """The mean over epochs of what a judge says of N samples; an epoch counts by its evidence.

    Args:
        n: number of samples.
        judge: None where there is none; then nothing is ever known.

    Attributes:
        taught: (T,) the samples that are rehearsed and teach the judge.
    """

    def __init__(self, n: int, judge: Judge | None) -> None:
        self.judge = judge
        planted = np.full(n, -1) if judge is None else judge.planted
        self.taught = np.flatnonzero(planted >= 0)
        self._planted = planted[self.taught]
        self._sum = np.zeros((n, 1 + len(judge.kinds) if judge is not None else 0))
        self._weight = np.zeros(n)
        # of those that teach the sum of the probe's log odds and its weight, and of its rehearsals'
        self._probe = np.zeros((len(self.taught), 4))
        self._kinds = max(1, len(np.unique(self._planted)))  # those that are rehearsed
        self._shares: NDArray[np.float64] | None = None  # not worked out since it last learned

    def learn(
        self, readings: NDArray[np.floating], rehearsed: NDArray[np.floating], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Take an epoch and return the signal of this epoch alone, (N,), or None where nothing was learned.

        The judge is asked twice. First without the `LEFT_OUT` that the same question made most suspect in the epochs
        before (in the first epoch, that asking without leaving anybody out does): that is the probe. What it has said
        so far names the wrong ones, and without them the judge is asked for its word. Where rehearsals tell nothing
        the probe has the word, and is asked again if this epoch makes others most suspect. Where only some of the
        samples teach, who teaches is asked of these alone, and the word goes over all.

        Args: see `Judge`.
        """
        if self.judge is None:
            return None
        before = self._probe
        some = len(self.taught) < len(evidence)
        asked = self._of_the_taught(evidence) if some else evidence
        if (calm := self._calm()) is None:
            first = self.judge(readings, rehearsed, asked, self._everywhere(True))
            calm = None if first is None else _calm(first[self.taught, 0])
        if calm is None or (said := self.judge(readings, rehearsed, asked, self._everywhere(calm))) is None:
            return None
        self._probe = _added(before, said[self.taught, :2], asked[self.taught])
        again = ~self._wrong_ones()
        if self.judge.worsens or some or (again != calm).any():
            del said  # of millions one answer at a time
            answer = self.judge(readings, rehearsed, evidence, self._everywhere(again))
            if answer is None:
                self._probe = before
                return None
            said = answer
            if not self.judge.worsens:
                self._probe = _added(before, said[self.taught, :2], asked[self.taught])
        self._add(said, evidence)
        return softplus(said[:, 0])

    def _add(self, said: NDArray[np.float64], evidence: NDArray[np.float64]) -> None:
        """Put what was said of samples, (N, 2 + K), on top of the epochs before, in place."""
        for begin in range(0, len(said), _STRIDE):
            part = slice(begin, begin + _STRIDE)
            own = np.delete(said[part], 1, 1)
            weight = np.where(np.isfinite(own).all(1), evidence[part], 0)
            self._sum[part] += np.where(weight[:, None] > 0, own, 0) * weight[:, None]
            self._weight[part] += weight
        self._shares = None

    def _of_the_taught(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """The evidence of those that teach, 0 of the others: of these nobody asks who teaches, (N,)."""
        result = np.zeros_like(evidence)
        result[self.taught] = evidence[self.taught]
        return result

    def _everywhere(self, taught: NDArray[np.bool_] | bool) -> NDArray[np.bool_]:
        """What is so of those that teach, (T,), and of no other, (N,)."""
        result = np.zeros(len(self._weight), bool)
        result[self.taught] = taught
        return result

    def _calm(self) -> NDArray[np.bool_] | None:
        """Who is to teach the probe by what it has said so far, (T,); None where it has said nothing."""
        return _calm(_mean(*self._probe[:, :2].T)) if self._probe[:, 1].any() else None

    @property
    def wrong_ones(self) -> NDArray[np.bool_]:
        """Which of the samples that could do not teach what right labels read like, by the epochs so far, (N,)."""
        return self._everywhere(self._wrong_ones())

    def _wrong_ones(self) -> NDArray[np.bool_]:
        if self.judge is None:
            return np.zeros(len(self.taught), bool)
        if not self.judge.worsens:
            calm = self._calm()
            return np.zeros(len(self.taught), bool) if calm is None else ~calm
        return wrong_ones(_mean(*self._probe[:, :2].T), _mean(*self._probe[:, 2:].T), self._planted)

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, were wrong labels as frequent as right ones, (N,); NaN unknown."""
        if not self._sum.shape[1]:
            return np.full(len(self._weight), np.nan)
        return _mean(self._sum[:, 0], self._weight)

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of samples with each kind of fault as this set shows it, (K,) in (0, 1); NaN unknown."""
        if self._shares is None:
            known = _some(np.flatnonzero(self._weight > 0))
            self._shares = shares_of_wrong(self._likelihoods(known))
        return self._shares

    @property
    def share(self) -> float:
        """The share of samples with wrong labels as this set shows it, (0, 1); NaN where nothing is known."""
        return float(self.shares.sum()) if len(self.shares) else math.nan

    @property
    def posterior(self) -> NDArray[np.float64]:
        """Log odds that a sample's labels are wrong, each fault as frequent as in `shares`, (N,); NaN unknown.

        `log_odds`, and `signal` with them, take wrong and right for equally likely and one fault for as frequent as
        another, as in the rehearsal; a set is rarely half wrong, and seldom in all ways alike. These say how likely it
        is here.
        """
        return self._posterior()[0]

    @property
    def wrong(self) -> NDArray[np.float64]:
        """-log P(the labels are right), (N,) nats >= 0, by `posterior`; log 2 is even odds, NaN unknown."""
        return softplus(self.posterior)

    @property
    def kind(self) -> NDArray[np.str_]:
        """The likeliest kind of fault here, whether or not a sample is suspect, (N,); "" where nothing is known."""
        if self.judge is None:
            return np.full(len(self._weight), "")
        return np.where(self._weight > 0, np.array(self.judge.kinds)[self._posterior()[1]], "")

    def _posterior(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """`posterior`, and the place of each sample's likeliest kind, (N,) both."""
        odds, kind = np.full(len(self._weight), np.nan), np.zeros(len(self._weight), np.int64)
        known = np.flatnonzero(self._weight > 0)
        if not len(known):
            return odds, kind
        prior = np.log(self.shares) - math.log1p(-self.shares.sum())
        for start in range(0, len(known), _STRIDE):
            rows = known[start : start + _STRIDE]
            each = self._likelihoods(rows) + prior
            odds[rows], kind[rows] = _log_sum(each), each.argmax(1)
        return odds, kind

    def _likelihoods(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much likelier what was said of samples is under each kind of fault than under right labels, (n, K) logs.

        The rehearsal has each of its kinds as often as any other, and all of them together as often as right labels. A
        set of one class has one kind fewer.
        """
        often = 1.0 if self.judge is None else self.judge.often
        means = self._sum[rows] / self._weight[rows, None]
        return often * (means[:, :1] + means[:, 1:]) + math.log(self._kinds)

    @property
    def signal(self) -> NDArray[np.float64] | None:
        """-log P(the labels are right), (N,) nats >= 0, NaN where nothing is known; None where it is of no sample."""
        return softplus(self.log_odds) if (self._weight > 0).any() else None

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, as arrays."""
        return {"sum": self._sum.copy(), "weight": self._weight.copy(), "probe": self._probe.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of another judge.
        """
        found = np.array(state["sum"], np.float64)
        if found.shape != self._sum.shape:
            raise ValueError(f"Expected a judge's state of shape {self._sum.shape}, but got {found.shape}.")
        probe = np.array(state["probe"], np.float64)
        if self.judge is not None and probe.shape != self._probe.shape:
            raise ValueError(f"Expected a probe's state of shape {self._probe.shape}, but got {probe.shape}.")
        self._sum, self._weight, self._probe = found, np.array(state["weight"], np.float64), probe
        self._shares = None


def mean_probability(log_odds: NDArray[np.float64]) -> float:
    """Return the mean probability that log odds stand for, [0, 1], without those that are NaN; NaN where all are."""
    known = log_odds[np.isfinite(log_odds)]
    return float(probability(known).mean()) if len(known) else math.nan


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities that log odds stand for, in [0, 1]."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))  # does not overflow where exp would


def wrong_ones(
    log_odds: NDArray[np.float64], rehearsed: NDArray[np.float64], planted: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Return which samples are to be left out of what right labels are learned from, (N,).

    Those with the highest log odds, as many of them as have rehearsals that read worse than the middle of their kind:
    `BEYOND` times as many as there are up to where the sum of their ranks, less one half and `MARGIN`, is largest.
    Where what reads worst is hard, the sum falls from the first on, and nobody is left out; nor where lots might have
    given that sum. (A rank drawn by lot has the variance 1/12.)

    Args:
        log_odds: (N,) that the labels are wrong, NaN unknown.
        rehearsed: (N,) the same under the fault each was rehearsed with, NaN unknown.
        planted: (N,) which kind of fault that was.
    """
    known = np.flatnonzero(np.isfinite(log_odds) & np.isfinite(rehearsed))
    if not len(known):
        return np.zeros(len(log_odds), bool)
    some = _some(known)
    rank = np.empty(len(some))
    for kind in np.unique(planted[some]):
        own = np.flatnonzero(planted[some] == kind)
        rank[own[np.argsort(rehearsed[some][own], kind="stable")]] = (np.arange(len(own)) + 0.5) / len(own)
    worst = np.argsort(-log_odds[some], kind="stable")[: int(MOST * len(some))]
    excess = np.cumsum(rank[worst] - 0.5 - MARGIN)
    most = excess.argmax() + 1 if len(excess) else 0
    if not most or excess[most - 1] <= SURE * math.sqrt(most / 12):
        return np.zeros(len(log_odds), bool)
    last = min(int(BEYOND * most), len(worst)) - 1
    # Of all, also of those that carry no rehearsal and may read worse as a whole, no more than of those asked.
    everyone = log_odds[np.isfinite(log_odds)]
    few = len(everyone) - int(MOST * len(everyone))
    return log_odds >= max(log_odds[some][worst[last]], np.partition(everyone, few)[few])


def shares_of_wrong(likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how frequent each of K classes is beside one that the others are measured against, (K,) in (0, 1).

    Expectation maximisation over the samples themselves (Saerens, Latinne and Decaestecker 2002, Neural Computation
    14, equation 2.4): the shares that are the means of the probabilities they lead to.

    Args:
        likelihoods: (n, K) log of how much likelier a sample is under each class than under that one; NaN is returned
            where there is no sample.
    """
    n, k = likelihoods.shape
    shares = np.full(k, _AT_FIRST / max(1, k) if n else np.nan)
    for _ in range(_ROUNDS if n and k else 0):
        each = likelihoods + np.log(shares)
        wrong = np.logaddexp(_log_sum(each), math.log1p(-shares.sum()))
        before, shares = shares, np.exp(each - wrong[:, None]).mean(0).clip(_RAREST / k)
        shares *= min(1.0, (1 - _RAREST) / shares.sum())
        if (np.abs(shares - before) < _RAREST * shares).all():
            break
    return shares


def _calm(log_odds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """All but the `LEFT_OUT` with the highest log odds, and those without any, (N,)."""
    known = _some(log_odds[np.isfinite(log_odds)])
    return ~(log_odds > np.quantile(known, 1 - LEFT_OUT)) if len(known) else np.ones(len(log_odds), bool)


def _added(probe: NDArray[np.float64], said: NDArray[np.float64], evidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probe's sums with what it has said of samples and of their rehearsals on top, (N, 4)."""
    sums = []
    for values in said[:, :2].T:
        weight = np.where(np.isfinite(values), evidence, 0)
        sums += [np.where(weight > 0, values, 0) * weight, weight]
    return probe + np.column_stack(sums)


def _some(known: NDArray[Any]) -> NDArray[Any]:
    """`_ASKED` of them at most, always the same of as many, drawn by lot: in equal steps one camera of four is seen."""
    if len(known) <= _ASKED:
        return known
    return known[np.sort(np.random.default_rng(0).choice(len(known), _ASKED, replace=False, shuffle=False))]


def _mean(total: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sum over its weight, NaN where that is 0."""
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)


def _log_sum(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of a row's exponentials, (n,) of (n, K)."""
    most = logs.max(1)
    return np.asarray(most + np.log(np.exp(logs - most[:, None]).sum(1)))


def doubtful(wrong: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which samples' labels are wrong with a probability of `DOUBT` or more, (N,); not those nobody judged.

    Args:
        wrong: -log P(the labels are right), nats, (N,); NaN unknown.
    """
    return np.nan_to_num(wrong, nan=0.0) >= -math.log1p(-DOUBT)


def softplus(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(log odds)), which is -log of the probability against, without overflow."""
    # As numpy's logaddexp, which warns of NaN.
    return np.maximum(log_odds, 0) + np.log1p(np.exp(-np.abs(log_odds)))
