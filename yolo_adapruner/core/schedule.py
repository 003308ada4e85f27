"""Which samples an epoch draws and what their losses weigh, and what is known of each when the next one is planned.

A plan is a pure function of the epoch's number and of `Visits`, so that a resumed run draws what the uninterrupted one
did, and each of several processes the same. Knows no loader, no model and no mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.history import EpochRecord

AGREES = 0.5
"""Rank correlation of two epochs' hardness from which on it says something of the samples, and not of the epoch."""
_FEWEST = 3
VALIDATED = 0.1
"""Share of the epochs, at the end, each of which is validated whatever it draws: best.pt is likely one of them."""
_NEARLY = 0.9
_GRID = 1000


@dataclass(frozen=True)
class Draw:
    """One epoch's images: `ids` (k,) ascending, each once, and the `weights` (k,) of their losses."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, chosen: NDArray[np.bool_]) -> Draw:
        """Draw the chosen ones, (N,) bool, at weight 1."""
        ids = np.flatnonzero(chosen)
        return cls(ids, np.ones(len(ids)))


class Visits:
    """What is known of N samples from the epochs so far: when each was drawn last, and what was read of it then.

    Args:
        n: number of samples.
        channels: number of readings that a sample gives, C.

    Attributes:
        losses: (N,) each sample's share of the training loss in the last epoch that saw it, per whole view, unweighted;
            NaN before the first, and where nobody asked for losses.
        readings: (N, C) what else was read in that epoch; NaN where nothing was.
        last: (N,) last epoch that drew the sample, from 0; -1 before the first.
        count: (N,) epochs that drew it.
        agreement: rank correlation of the last epoch's `hardness` with what it was before; NaN before the second.
        settled: first epoch that began with an agreement of `AGREES` behind it; -1 for none yet.
    """

    def __init__(self, n: int, channels: int) -> None:
        self.losses: NDArray[np.float64] = np.full(n, np.nan)
        self.readings: NDArray[np.float64] = np.full((n, channels), np.nan)
        self.last: NDArray[np.int64] = np.full(n, -1, np.int64)
        self.count: NDArray[np.int64] = np.zeros(n, np.int64)
        self.agreement, self.settled = math.nan, -1
        self.open_epoch()

    def __len__(self) -> int:
        return len(self.losses)

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self._losses = EpochRecord(len(self), 1)
        self._readings = EpochRecord(len(self), self.readings.shape[1])

    def add(
        self, ids: NDArray[np.integer], readings: NDArray[np.floating], area: NDArray[np.floating] | None = None
    ) -> None:
        """Note readings of the open epoch; see `EpochRecord.add`."""
        self._readings.add(ids, readings, area)

    def add_losses(
        self, ids: NDArray[np.integer], losses: NDArray[np.floating], area: NDArray[np.floating] | None = None
    ) -> None:
        """Note losses per whole view, (B, 1); see `EpochRecord.add`."""
        self._losses.add(ids, losses, area)

    @property
    def hardness(self) -> NDArray[np.float64]:
        """How badly the model did on each sample when it was last seen, (N,) in [0, 1); NaN before.

        The mean of 1 - exp(-r) over its readings r. Of -log p that is 1 - p, the error; 1 - IoU it leaves almost as it
        is. So of a detector it is what AFSS (arXiv 2603.17684) asks precision and recall for, off the training forward.
        """
        known = np.isfinite(self.readings)
        errors = np.where(known, -np.expm1(-np.where(known, self.readings, 0)), 0).sum(1)
        return np.where(known.any(1), errors / np.maximum(known.sum(1), 1), np.nan)

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The sums behind all that was read in the open epoch; where processes share one, theirs are added up."""
        return self._readings.totals + self._losses.totals

    def close_epoch(self, epoch: int, draw: Draw | None) -> None:
        """End the epoch that was trained on a draw (None: on all samples)."""
        drawn = slice(None) if draw is None else draw.ids
        self.last[drawn] = epoch
        self.count[drawn] += 1
        before = self.hardness
        # Seen is not drawn: a mosaic shows others too, and the readings of a step that was skipped do not count.
        for held, now in ((self.losses[:, None], self._losses), (self.readings, self._readings)):
            seen = now.area > 0
            held[seen] = now.means()[seen]
        again = self._readings.area > 0
        self.agreement = rank_agreement(before[again], self.hardness[again])
        if self.settled < 0 and self.agreement >= AGREES:
            self.settled = epoch + 1
        self.open_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, as arrays and plain values."""
        arrays = {name: getattr(self, name).copy() for name in ("losses", "readings", "last", "count")}
        return {**arrays, "agreement": self.agreement, "settled": self.settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, held in self.state_dict().items():
            setattr(self, name, np.array(state[name], held.dtype) if isinstance(held, np.ndarray) else state[name])


def rank_agreement(before: NDArray[np.floating], now: NDArray[np.floating]) -> float:
    """Return Spearman's rank correlation of two readings of the same samples, in [-1, 1], without those that are NaN.

    NaN where fewer than three have both. Equal numbers are ranked in the order they stand in.
    """
    both = np.isfinite(before) & np.isfinite(now)
    if both.sum() < _FEWEST:
        return math.nan
    one, other = (np.argsort(np.argsort(values[both], kind="stable")) for values in (before, now))
    return float(np.corrcoef(one, other)[0, 1])


def validates(trained: int, n: int, epoch: int, epochs: int) -> bool:
    """Return whether an epoch is validated: per image trained on as often as where each epoch draws all, and at last.

    The first one is, whatever it drew: until then there are no metrics that could stand.

    Args:
        trained: images drawn since the last validation, this epoch's among them.
        n: images of the whole set.
        epoch: counted from 0.
        epochs: of the run; the last `VALIDATED` of them are validated each.
    """
    return not epoch or trained >= _NEARLY * n or epoch >= epochs - max(round(VALIDATED * epochs), 1)


@dataclass(frozen=True)
class Stretch:
    """A training that goes on, on fewer samples, until it has trained on as many as planned.

    Its learning rate goes by what it has trained on: an epoch on fewer samples takes that as far as the part of an
    epoch on all that it is.

    Attributes:
        begin: first epoch on fewer samples, counted from 0.
        epochs: all there are now, > `begin`.
        progress: part of what was planned that was trained on before, [0, 1].
    """

    begin: int
    epochs: int
    progress: float

    @classmethod
    def of(cls, planned: int, n: int, trained: int, begin: int, kept: int) -> Stretch:
        """Return the stretch of a training that was planned to draw all samples in each epoch.

        Args:
            planned: epochs, > `begin`.
            n: samples.
            trained: samples drawn so far, in all epochs together.
            begin: the epoch that comes next.
            kept: samples that each epoch draws from now on, >= 1.

        >>> Stretch.of(planned=40, n=400, trained=8000, begin=20, kept=320)
        Stretch(begin=20, epochs=45, progress=0.5)
        """
        left = max(round((planned * n - trained) / kept), 1)
        return cls(begin, begin + left, min(trained / (planned * n), 1.0))

    def at(self, epoch: float) -> float:
        """Return which epoch of `epochs` as long ones it is, by what has been trained on when `epoch` begins."""
        part = (epoch - self.begin) / (self.epochs - self.begin)
        return self.epochs * (self.progress + (1 - self.progress) * part)


class Plan(Protocol):
    """Says before each epoch which samples it draws."""

    def __call__(self, epoch: int, seen: Visits) -> Draw | None:
        """Return the epoch's draw, of one sample at least; None for all samples at weight 1.

        Called once an epoch, and once more for one that is trained again or resumed: the answer must be the same.

        Args:
            epoch: counted from 0.
            seen: what is known from the epochs before; not to be changed.
        """


@dataclass(frozen=True)
class Dynamic:
    """Easy samples are drawn less often than hard ones, and none is dropped.

    A sample whose hardness has the rank rho in [0, 1] among all is to be drawn in the share of the epochs

        p = min(1, 1/rest + rho^gamma),    gamma such that the mean of p is `share`,

    so the easiest in one of `rest` and the hardest in each; those that are suspected of wrong labels count as the
    easiest, since they stay hard for ever. How long one rests is drawn anew after each visit: floor(1/p + u) epochs
    with u uniform in [0, 1), of mean 1/p and never more than `rest`. At first, after an epoch that drew all, each has
    part of its rest behind it already: it comes again after 1 + floor(u/p) epochs, what is left of a rest at a random
    moment, so that as many are due in that epoch as in any other.

    A visit's loss weighs (1/p)^rescale. At rescale 1 that is as Horvitz and Thompson (1952) weigh a sample drawn with
    probability p, and as InfoBatch (arXiv 2303.04947) does with one probability for all that are easy: over epochs its
    expectation is the loss of all. At 0 each visit weighs 1, as with AFSS (arXiv 2603.17684), and the hard count for
    more. A suspect weighs 1 at any, so that what is likely wrong counts by its visits.

    The first epochs draw all, until hardness has settled (`Visits.settled`) and whoever judges labels is ready: that
    two epochs agree on who is hard may say how many objects there are and not what was learned, and wrong labels are
    the hardest as long as nobody knows them. The last epochs draw all too, as InfoBatch anneals, whose finding it is
    that the end of a training wants all samples alike.

    Attributes:
        epochs: of the run.
        share: of the samples that an epoch draws, (1/rest, 1].
        rest: each sample is drawn once in so many epochs at least, >= 2.
        anneal: share of the epochs, at the end, that draw all, [0, 1].
        latest: share of the epochs, at the beginning, after which epochs are shortened whatever is settled, [0, 1].
        seed: decides the rests.
        rescale: how far a visit's weight makes up for the visits left out, [0, 1].
    """

    epochs: int
    share: float = 0.45
    rest: int = 4
    anneal: float = 0.15
    latest: float = 0.15
    seed: int = 0
    rescale: float = 0.0

    def begins(self, settled: int) -> int:
        """Return the first epoch that is shortened, given `Visits.settled`."""
        latest = max(round(self.latest * self.epochs), 1)
        return latest if settled < 0 else min(settled, latest)

    def __call__(
        self,
        epoch: int,
        seen: Visits,
        suspicion: NDArray[np.floating] | None = None,
        active: NDArray[np.bool_] | None = None,
        ready: int = 0,
    ) -> Draw | None:
        """Return the epoch's draw, None for all; see `Plan`.

        Args:
            epoch: counted from 0.
            seen: what is known from the epochs before.
            suspicion: (N,) log odds that a sample's labels are wrong, NaN unknown; above 0 it is a suspect.
            active: (N,) samples that are drawn at all; None: all.
            ready: the first epoch that may be shortened.
        """
        start = max(self.begins(seen.settled), ready)
        if epoch < start or epoch >= self.epochs - round(self.anneal * self.epochs):
            return None
        game = np.ones(len(seen), bool) if active is None else active
        suspect = np.zeros(len(seen), bool) if suspicion is None else np.nan_to_num(suspicion, nan=-1.0) > 0
        p = np.ones(len(seen))
        p[game] = self.shares(seen.hardness[game], suspect[game])
        rests = np.where(seen.last < start, self._left(p, start), self._rests(p, seen.last))
        due = game & (epoch - seen.last >= rests)
        if not due.any():
            return None
        return Draw(np.flatnonzero(due), np.where(suspect, 1.0, p**-self.rescale)[due])

    def shares(self, hardness: NDArray[np.floating], suspect: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return in which share of the epochs each sample is to be drawn, (N,) in [1/rest, 1]."""
        worth = np.where(suspect, -1.0, np.nan_to_num(hardness, nan=2.0))  # what nobody has seen yet comes first
        rho = (np.argsort(np.argsort(worth, kind="stable")) + 0.5) / len(worth)
        few = min(len(worth), _GRID)  # ranks are evenly spread, so that some stand for all
        grid = (np.arange(few) + 0.5) / few
        low, high = 0.0, 64.0
        for _ in range(50):
            gamma = (low + high) / 2
            mean = np.minimum(1 / self.rest + grid**gamma, 1.0).mean()
            low, high = (gamma, high) if mean > self.share else (low, gamma)
        return np.minimum(1 / self.rest + rho**gamma, 1.0)

    def _rests(self, p: NDArray[np.float64], last: NDArray[np.int64]) -> NDArray[np.float64]:
        """Epochs from each sample's last visit to its next, (N,)."""
        u = np.zeros(len(p))
        for epoch in np.unique(last):
            mine = last == epoch
            u[mine] = np.random.default_rng([self.seed, int(epoch), 1]).random(len(p))[mine]
        return np.floor(1 / p + u)

    def _left(self, p: NDArray[np.float64], start: int) -> NDArray[np.float64]:
        """Epochs from the last one that drew all to each sample's next visit, (N,)."""
        return 1 + np.floor(np.random.default_rng([self.seed, start, 0]).random(len(p)) / p)
