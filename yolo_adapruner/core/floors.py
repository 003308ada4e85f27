"""What a selection must not lose: how much of each group stays, and which samples stay whatever they score.

A group is anything samples have some of: boxes of a class, boxes of a size, being a background image. Knows groups by
number and name, no files, no labels and no reason for a score. Counts are sparse: memory and time grow with the entries
there are, not with samples times groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.suspicion import doubtful

CLASS, SIZE, BACKGROUND = "class", "size", "background"
TRUSTED = 0.1
"""What the boxes of the surest suspect count by at least: where a judge is surest about one in ten of those it calls
wrong is right (docs/results/judge.md), and of a class that it does not understand, all suspects, a share stays too."""
_ROUNDING = 1e-6  # of sums of numbers of 32 bits
_EASINGS = tuple(tenth / 10 for tenth in range(10, 0, -1))


@dataclass(frozen=True, eq=False)
class Groups:
    """How much of each of G groups each of N samples has, entry by entry; what has no entry has none.

    Attributes:
        sample, group, count: (E,): sample `sample[e]` has `count[e]` > 0 of group `group[e]`; each pair of sample and
            group once, sorted by sample. Integers; the count of what is not trusted wholly is a float.
        family: (G,) what kind of group each is: `CLASS` and `SIZE` count boxes, `BACKGROUND` counts images.
        name: (G,) its name within the family.
    """

    sample: NDArray[np.int64]
    group: NDArray[np.int64]
    count: NDArray[Any]
    family: Sequence[str]
    name: Sequence[str]

    @classmethod
    def of(
        cls, sample: NDArray[np.integer], group: NDArray[np.integer], family: Sequence[str], name: Sequence[str]
    ) -> Groups:
        """Return groups from single things: thing t is of group `group[t]` and belongs to sample `sample[t]`."""
        pairs = np.asarray(sample, np.int64) * max(len(name), 1) + np.asarray(group, np.int64)
        found, count = np.unique(pairs, return_counts=True)
        return cls(*np.divmod(found, max(len(name), 1)), count.astype(np.int64), tuple(family), tuple(name))

    def totals(self, among: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Return how much of each group there is, (G,), in all samples or `among` some, (N,) bool."""
        counted = self.count if among is None else self.count * among[self.sample]
        sums = np.bincount(self.group, counted, len(self.name))
        return sums.astype(np.int64) if self.count.dtype.kind == "i" else sums

    def trusted(self, right: NDArray[np.floating]) -> Groups:
        """Return the same where things count by how far their sample is trusted, (N,) in [0, 1].

        Boxes count by `TRUSTED` at least. An image without boxes that is likelier unlabelled than not is no background
        image, and counts by nothing: of a set whose only images without boxes are those, no share of them is to stay.
        """
        background = np.array([family == BACKGROUND for family in self.family])[self.group]
        part = right[self.sample]
        empty = np.where(part < 0.5, 0, part)
        return replace(self, count=self.count * np.where(background, empty, np.maximum(part, TRUSTED)))


@dataclass(frozen=True, eq=False)
class Constraints:
    """What holds for a selection of N samples.

    Attributes:
        groups: what there is; None where nothing is known about it.
        floor: [0, 1]: of each group at least `floor` times the kept share stays, rounded up. 0: no floors.
        required: (N,) bool, samples that stay whatever they score; None for none.
        right: (N,) how far the labels of each are trusted, [0, 1], see `trusting`; None: all are.
    """

    groups: Groups | None = None
    floor: float = 0.0
    required: NDArray[np.bool_] | None = None
    right: NDArray[np.floating] | None = None

    def trusting(self, wrong: NDArray[np.floating]) -> Constraints:
        """Return the same with floors for what is likely right: what of a group is doubtful counts by its probability.

        A floor that counts wrong labels like right ones holds them: of a class of which a third is mislabelled, or of
        unlabelled images in a set without true background.

        Args:
            wrong: -log P(the labels are right), nats, (N,); NaN unknown. Below a P(wrong) of `DOUBT` all counts whole.
        """
        doubted = doubtful(wrong)
        if self.groups is None or not self.floor or not doubted.any():
            return replace(self, right=None)
        return replace(self, right=np.where(doubted, np.exp(-wrong), 1).astype(np.float32))

    @cached_property
    def counted(self) -> Groups | None:
        """The groups as floors count them."""
        return self.groups if self.groups is None or self.right is None else self.groups.trusted(self.right)

    def least(self, prune: float, eased: float = 1.0) -> NDArray[Any]:
        """Return how much of each group must stay at a prune share, (G,); `eased`: a part of the floor, (0, 1]."""
        assert self.counted is not None
        wanted = eased * self.floor * (1 - prune) * self.counted.totals()
        if self.right is not None:
            return wanted * (1 - _ROUNDING)
        return np.ceil(wanted - 1e-9).astype(np.int64)  # 0.9 * 10 is no reason to keep ten

    def held(self, kept: NDArray[np.bool_], prune: float) -> float:
        """Return the floor that a selection holds: the smallest kept part of a group over the kept share, up to 1."""
        if self.counted is None:
            return 1.0
        total = self.counted.totals()
        part = self.counted.totals(kept)[total > 0] / total[total > 0]
        return float(min(part.min(initial=1.0) / (1 - prune), 1.0))


def refused(order: NDArray[np.integer], drop: int, constraints: Constraints, prune: float) -> NDArray[np.integer]:
    """Return which samples go, (drop,): the first of `order` that no floor and no list holds back.

    A floor says how much of a group stays; which samples of it, the order says. Samples are taken in order, and one
    whose going would leave a group below its floor stays and is not looked at again. So each floor holds, and nothing
    that stays could go on top. Another choice of as many samples may go lower in the order on the whole: to find the
    lowest is a knapsack problem. Where fewer than `drop` can go, all floors are eased alike, a tenth at a time, down to
    none; the required samples stay all the same.

    Args:
        order: samples, those to go first at the front; a permutation of N.
        drop: how many go.
        constraints: what holds.
        prune: share that `drop` is, [0, 1): what the floors are taken by.

    Raises:
        ValueError: fewer than `drop` samples are not required.
    """
    free = order if constraints.required is None else order[~constraints.required[order]]
    if drop > len(free):
        raise ValueError(f"Expected at most {len(free)} samples to go, as the others are required, but got {drop}.")
    if constraints.counted is None or constraints.floor == 0:
        return free[:drop]
    for eased in _EASINGS:
        going = _first_allowed(free, drop, constraints.counted, constraints.least(prune, eased))
        if len(going) == drop:
            return going
    return free[:drop]


def _first_allowed(order: NDArray[np.integer], drop: int, groups: Groups, least: NDArray[Any]) -> NDArray[np.integer]:
    """The first `drop` samples of `order`, or fewer, that leave at least `least` of each group."""
    spare = groups.totals() - least
    n = int(max(order.max(initial=-1), groups.sample.max(initial=-1))) + 1
    first = np.searchsorted(groups.sample, np.arange(n + 1))
    going = order[:drop]
    gone = np.zeros(n, bool)
    gone[going] = True
    if (groups.totals(gone) <= spare).all():  # mostly no floor is in the way
        return going
    # Plain lists: a million small slices of arrays take ten times as long.
    start, group, count, left = (a.tolist() for a in (first, groups.group, groups.count, spare))
    taken: list[int] = []
    for sample in order.tolist():
        if len(taken) == drop:
            break
        entries = range(start[sample], start[sample + 1])
        if all(count[e] <= left[group[e]] for e in entries):
            for e in entries:
                left[group[e]] -= count[e]
            taken.append(sample)
    return np.array(taken, order.dtype)
