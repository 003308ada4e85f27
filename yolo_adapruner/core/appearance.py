"""What each sample looks like to the network, averaged over its views, and how likely two are the same picture.

A sample's features move from epoch to epoch, for augmentation shows another view of it each time and the network
learns. How far they move is the natural unit of likeness: two samples are the same picture if they differ no more than
one does from itself. This is the two-covariance model of speaker and face verification (Ioffe 2006, Prince and Elder
2007), fitted to the set without any label: W is how a sample's features scatter around its mean, B how the means
scatter around each other, and a pair's evidence is the log likelihood ratio of its difference under W / views and
under B + W / views. Directions in which augmentation moves a picture count little, those in which pictures differ much.

That takes pictures for normally distributed, which they are not: where a few are far off, the others lie closer
together than the model has it, and of different photographs one pair in a thousand had odds of e^20. So a pair counts
for no more than how much nearer it is than different pictures are to either of the two. A cohort of these says how near
they come, as scores are normalised in speaker verification (Auckenthaler, Carey and Lloyd-Thomas 2000,
doi:10.1006/dspr.1999.0360).

Knows samples by number; what the features are of is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_adapruner.core.layout import Layout
from yolo_adapruner.core.nearest import nearest

NEIGHBOURS = 8
"""How many of its nearest each sample is compared with."""
_RARE = 100.0
"""One sample in so many has a twin, before anything is seen of it: with the set's size, the prior odds of a pair."""
_SLACK = 0.08
"""A near copy is another picture, by about this part of what one augmented view does (variance)."""
_SOFT = 2.0
"""The model's evidence counts half: features are neither normal nor independent. What is counted, counts whole."""
_FEWEST = 3  # epochs that a comparison rests on
_COHORT, _NEAREST = 256, 16
"""Samples, drawn by lot, that each is compared with to see how near different pictures lie, and how many of these say
so: the nearest, for where cameras stand still most pictures are far off for other reasons."""
_LOWEST, _EPS = 1e-3, 1e-9
_SPREADS = 0.2, 5.0


def dimensions(n: int) -> int:
    """Return how many features a sample of a set of `n` gets: 256, and from 130 000 samples on fewer, down to 64."""
    return min(256, max(64, 2**25 // max(n, 1) // 8 * 8))


class Appearance:
    """Running mean of each sample's features, and how they scatter within a sample.

    Memory is about 6 bytes a feature and sample: 128 MB at a million samples of 64 for the mean, and twice that for the
    sums of the epoch under way.

    Args:
        n: number of samples.
        features: number of features, D.
        labels: where each sample's boxes lie; None leaves labels out of it.

    Attributes:
        mean: (N, D) float16, in standard deviations of the set, mean over epochs.
        weight: (N,) whole views behind it.
    """

    def __init__(self, n: int, features: int, labels: Layout | None = None) -> None:
        self._labels = labels
        self.mean: NDArray[np.float16] = np.zeros((n, features), np.float16)
        self.weight: NDArray[np.float64] = np.zeros(n)
        self._spread = np.zeros(n)
        self._freedom = np.zeros(n)
        self._scatter = np.zeros((features, features))
        self.open_epoch()

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self._sum: NDArray[np.float32] | None = None
        self._area = np.zeros(len(self.mean))

    def add(self, ids: NDArray[np.integer], features: NDArray[np.floating], area: NDArray[np.floating]) -> None:
        """Note views: ids (R,), features (R, D), rows that are not finite count for nothing; area (R,) whole views."""
        total, area = self._total(), np.asarray(area, np.float64)
        sound = np.isfinite(features).all(1) & (area > 0)
        np.add.at(total, ids[sound], features[sound] * area[sound, None].astype(np.float32))
        np.add.at(self._area, ids[sound], area[sound])

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The open epoch's sums; where several processes share an epoch, theirs are added up."""
        return self._total(), self._area

    def _total(self) -> NDArray[np.float32]:
        if self._sum is None:
            self._sum = np.zeros(self.mean.shape, np.float32)
        return self._sum

    def close_epoch(self) -> None:
        """Take the epoch into the mean."""
        seen = np.flatnonzero(self._area > 0)
        if len(seen) > 1:
            values = self._total()[seen] / self._area[seen, None].astype(np.float32)
            # The network has moved on since the last epoch; against each other the samples stand as they stood.
            values = (values - values.mean(0)) / np.maximum(values.std(0), _EPS)
            self._take(seen, values, np.minimum(self._area[seen], 1))
        self.open_epoch()

    def _take(self, seen: NDArray[np.intp], values: NDArray[np.float32], weight: NDArray[np.float64]) -> None:
        before, mean = self.weight[seen], self.mean[seen].astype(np.float32)
        delta = values - mean
        step = (weight / (before + weight)).astype(np.float32)[:, None]
        # West's update: an epoch of weight w has variance W / w. The first epoch of a sample says nothing of W.
        within = delta * np.sqrt(weight * before / (before + weight)).astype(np.float32)[:, None]
        self._scatter += within.T.astype(np.float64) @ within
        self._spread[seen] += (within.astype(np.float64) ** 2).mean(1)
        self._freedom[seen] += before > 0
        self.mean[seen] = mean + delta * step
        self.weight[seen] += weight

    def pairs(self, likeness: Likeness | None = None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return each sample's nearest and how likely each is the same picture: (N, K) numbers, (N, K) in [0, 1].

        -1 and 0 where there is none, and all over before three epochs were seen.

        Args:
            likeness: what `likeness` gives, if it is at hand.
        """
        n = len(self.mean)
        neighbours = np.full((n, NEIGHBOURS), -1, np.int64)
        kernel = np.zeros((n, NEIGHBOURS))
        likeness = likeness or self.likeness()
        if likeness is not None:
            found = likeness.nearest(NEIGHBOURS)
            width = found.shape[1]
            own, real = np.repeat(likeness.known, width), found.ravel() >= 0
            alike = np.zeros(len(own))
            alike[real] = likeness(own[real], found.ravel()[real])
            neighbours[likeness.known, :width] = found
            kernel[likeness.known, :width] = alike.reshape(found.shape)
        return neighbours, kernel

    def likeness(self) -> Likeness | None:
        """Return what tells how likely two samples are the same picture; None before three epochs were seen."""
        known = np.flatnonzero(self.known)
        if len(known) < 3:
            return None
        points, between, noise = self._space(known)
        unit = 1 / float(np.median(self.weight[known])) + _SLACK
        return Likeness(known, points, between, noise * unit, unit, self._labels)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which samples were seen often enough to be compared, (N,)."""
        return self._freedom >= _FEWEST - 1

    def _space(self, known: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates in which W is 1 and B diagonal: (M, d), B's diagonal (d,), each sample's own W (M,), mean 1."""
        features = self.mean.shape[1]
        within = self._scatter / max(self._freedom.sum(), 1)
        within = within + (1e-3 * np.trace(within) / features + _EPS) * np.eye(features)
        size, axes = np.linalg.eigh(within)
        white = axes / np.sqrt(size)
        mean = self.mean[known].astype(np.float32)
        mean -= mean.mean(0)
        total = white.T @ (mean.T.astype(np.float64) @ mean / len(known)) @ white
        spread, turn = np.linalg.eigh(total)
        between = spread - 1 / float(np.median(self.weight[known]))
        use = between > _LOWEST
        own = self._spread[known] / self._freedom[known]
        noise = np.clip(own / max(own.mean(), _EPS), *_SPREADS)
        return mean @ (white @ turn[:, use]).astype(np.float32), between[use], noise

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything needed to go on after an epoch, as arrays."""
        return {name: getattr(self, name).copy() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of other samples or features.
        """
        if state["mean"].shape != self.mean.shape:
            raise ValueError(f"Expected features {self.mean.shape}, but the state has {state['mean'].shape}.")
        for name in _STATE:
            setattr(self, name, np.array(state[name]))
        self.open_epoch()


_STATE = ("mean", "weight", "_spread", "_freedom", "_scatter")
_PAIRS, _CELLS = 1 << 15, 1 << 22
_HOPELESS = -5.0  # log odds: less than a hundredth of a copy


class Likeness:
    """How likely any two samples are the same picture, as far as an epoch's end knows.

    Where labels are known, that the boxes agree is evidence as well, as far as they would not by chance; and what is
    returned is the likelihood times the share of boxes on which the two agree beyond chance.

    Args:
        known: (M,) sample numbers, ascending.
        points: (M, d) where they lie.
        between: (d,) variance between pictures.
        noise: (M,) variance of each one's mean; a pair's is their geometric mean.
        unit: what that is of a usual one.
        labels: as in `Appearance`.
    """

    def __init__(
        self,
        known: NDArray[np.intp],
        points: NDArray[np.float32],
        between: NDArray[np.float64],
        noise: NDArray[np.float64],
        unit: float,
        labels: Layout | None,
    ) -> None:
        self.known = known
        self._points, self._between, self._noise, self._unit, self._labels = points, between, noise, unit, labels
        # In these coordinates the distance orders pairs as the evidence does, at the same own scatter.
        self._scaled = points * np.sqrt(between / (unit * (between + unit))).astype(np.float32)
        self._prior = float(np.log(len(known) * _RARE))
        lots = np.random.default_rng(0).permutation(len(known))
        self._cohort: NDArray[np.int64] = np.sort(lots[: _COHORT + 1])
        self._usual: NDArray[np.float64] = np.full((len(known), 3), np.nan)  # of those that were asked about

    def nearest(self, k: int) -> NDArray[np.int64]:
        """Return the up to `k` samples that are nearest each known one, (M, k), the nearest first; -1 for none."""
        rows = nearest(self._scaled, min(k, len(self.known) - 1))
        return np.where(rows >= 0, self.known[rows], -1)

    def __call__(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how likely pairs of known samples are the same picture, (P,) in [0, 1]."""
        rows = [np.searchsorted(self.known, side) for side in (first, second)]
        evidence = self._evidence(*rows)
        agreement, by_labels = np.ones(len(first)), np.zeros(len(first))
        if self._labels is not None:
            agreement = self._labels.beyond_chance(first, second)
            by_labels = self._labels.evidence(first, second)
        odds = (evidence + by_labels - self._prior) / _SOFT
        # The cohort only ever speaks against a pair: where nothing speaks for it, it need not be asked.
        asked = np.flatnonzero((odds > _HOPELESS) & (agreement > 0))
        counted = self._beyond_chance(*(side[asked] for side in rows)) + by_labels[asked] - self._prior
        odds[asked] = np.minimum(odds[asked], counted)
        return np.asarray(agreement / (1 + np.exp(-np.clip(odds, -50, 50))))

    def _beyond_chance(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return -log P(a different picture lies as near), nats, of pairs of rows, (P,): of the two it is less for.

        Near a sample the number of others grows as a power of the distance, by which what is nearer than any of them
        is reckoned. Infinite where too few of a sample's cohort are different pictures.
        """
        self._ask_cohort(np.unique(np.concatenate([first, second])))
        near = np.log(np.maximum(self._squares(first, second), _EPS))
        usual = self._usual[np.stack((first, second))]
        return np.asarray((usual[..., 0] + usual[..., 1] * (usual[..., 2] - near)).min(0))

    def _ask_cohort(self, rows: NDArray[np.intp]) -> None:
        """Note of each of these rows how near different pictures come to it.

        -log of the share of the cohort that is among its nearest, the power by which their number grows with the square
        of the distance (half of Levina and Bickel's estimate of the dimension, 2005, unbiased), and the logarithm of
        the square that bounds them.
        """
        rows = rows[np.isnan(self._usual[rows, 0])]
        each = max(1, _CELLS // len(self._cohort))
        cohort = self._scaled[self._cohort]
        # Of usual own scatter the evidence is what all coordinates say at distance 0, less a quarter of the square.
        copies = 4 * (0.5 * np.log1p(self._between / self._unit).sum() - self._prior)
        for start in range(0, len(rows), each):
            own = rows[start : start + each]
            points = self._scaled[own]
            squares = (points**2).sum(1)[:, None] + (cohort**2).sum(1) - 2 * points @ cohort.T
            away = (squares >= copies) & (own[:, None] != self._cohort)  # neither a copy nor itself
            squares = np.where(away, np.log(np.maximum(squares, _EPS)), np.inf)
            others = np.isfinite(squares).sum(1)
            self._usual[own] = np.inf, 0.0, 0.0
            told = others >= 2 * _NEAREST
            if told.any():
                near = np.partition(squares[told], _NEAREST - 1, axis=1)[:, :_NEAREST]
                edge = near.max(1)
                power = (_NEAREST - 2) / np.maximum((edge[:, None] - near).sum(1), _EPS)
                self._usual[own[told]] = np.column_stack((np.log(others[told] / _NEAREST), power, edge))

    def _squares(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the squared distances of pairs of rows, (P,)."""
        squares = np.empty(len(first))
        for start in range(0, len(first), _PAIRS):
            part = slice(start, start + _PAIRS)
            squares[part] = ((self._scaled[first[part]] - self._scaled[second[part]]) ** 2).sum(1)
        return squares

    def _evidence(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log of P(difference | same picture) / P(difference | two pictures) of pairs of rows, (P,) nats."""
        evidence = np.empty(len(first))
        b = torch.from_numpy(self._between).float()
        for start in range(0, len(first), _PAIRS):
            one, two = (side[start : start + _PAIRS] for side in (first, second))
            squares = torch.from_numpy((self._points[one] - self._points[two]) ** 2)
            s = torch.from_numpy(np.sqrt(self._noise[one] * self._noise[two])).float()[:, None]
            gain = 0.5 * torch.log1p(b / s) - squares / 4 * (1 / s - 1 / (b + s))
            evidence[start : start + _PAIRS] = gain.sum(-1).numpy()
        return evidence
