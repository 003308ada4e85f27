"""Whether two samples are labelled alike: what training on both would teach twice is the picture *and* its labels.

Two photographs of one board with different defects marked on it are two samples; and a copy whose labels were spoilt is
a matter for whoever judges labels. Knows boxes as numbers and no picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REACH = 0.08
"""How far a near copy's box may lie from the original's, in each direction, as a share of the picture's side."""
BACKGROUNDS = 0.6
"""Agreement of two samples without boxes: to a detector backgrounds look alike, so labelled copies go first."""
_GROWTH = 1.5
_MOST = 32
_PAIRS = 2048
_DRAWN = 4096
_USUAL, _LEAST = 0.95, 0.5


class Layout:
    """The labelled boxes of N samples.

    Args:
        classes: a sample each, (n,) class numbers.
        boxes: a sample each, (n, 4) centre x, y, width and height as shares of the picture. Of more than 32 the largest
            count.
    """

    def __init__(self, classes: Sequence[NDArray[np.floating]], boxes: Sequence[NDArray[np.floating]]) -> None:
        most = min(_MOST, max((len(own) for own in classes), default=0))
        self._classes = np.full((len(classes), most), -1, np.int32)
        self._boxes = np.zeros((len(classes), most, 4), np.float16)
        self._count = np.zeros(len(classes), np.int64)
        self._chance: NDArray[np.float64] | None = None
        for i, (cls, box) in enumerate(zip(classes, boxes, strict=True)):
            largest = np.argsort(-box[:, 2] * box[:, 3], kind="stable")[:most]
            n = self._count[i] = len(largest)
            self._classes[i, :n], self._boxes[i, :n] = np.ravel(cls)[largest], box[largest]

    def agreement(self, first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return which share of both samples' boxes the other one has too, (E,) in [0, 1].

        It is `BACKGROUNDS` for two without any. A box has its like where one of the same class lies within `REACH` and
        is at most half as large again, in the picture as it is or mirrored.
        """
        agreement = np.ones(len(first))
        for start in range(0, len(first), _PAIRS):
            rows = slice(start, start + _PAIRS)
            agreement[rows] = self._shared(first[rows], second[rows])
        return agreement

    def evidence(self, first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return -log P(two samples that have nothing to do with each other agree as well), (E,) nats >= 0.

        Counted on pairs drawn at random, always the same ones. 0 where one of the two has no boxes: two empty labels
        agree, and say nothing.
        """
        chance = self._by_chance()
        above = _DRAWN - np.searchsorted(chance, self.agreement(first, second) - 1e-9)
        labelled = (self._count[first] > 0) & (self._count[second] > 0)
        return np.where(labelled, np.log(_DRAWN / np.maximum(above, 1)), 0.0)

    def beyond_chance(self, first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the agreement, (E,) in [0, 1], with 0 where it is no more than one pair in twenty has by chance."""
        least = min(float(np.quantile(self._by_chance(), _USUAL)), _LEAST)
        agreement = self.agreement(first, second)
        empty = self._count[first] + self._count[second] == 0
        return np.where(empty, agreement, np.maximum(agreement - least, 0) / (1 - least))

    def _by_chance(self) -> NDArray[np.float64]:
        """The agreement of pairs drawn at random, sorted."""
        if self._chance is None:
            n = len(self._count)
            one, step = np.random.default_rng(0).integers((0, 1), (n, max(n, 2)), (_DRAWN, 2)).T
            self._chance = np.sort(self.agreement(one, (one + step) % n))
        return self._chance

    def _shared(self, first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
        a, b = (self._boxes[side].astype(np.float32) for side in (first, second))
        a, b = a[:, :, None], b[:, None]
        cls = self._classes[first][:, :, None]
        same = (cls == self._classes[second][:, None]) & (cls >= 0)
        size = np.maximum(a[..., 2:], 1e-6) / np.maximum(b[..., 2:], 1e-6)
        same &= (np.maximum(size, 1 / size) <= _GROWTH).all(-1) & (np.abs(a[..., 1] - b[..., 1]) <= REACH)
        total = self._count[first] + self._count[second]
        shared = np.zeros(len(first))
        for x in (b[..., 0], 1 - b[..., 0]):
            like = same & (np.abs(a[..., 0] - x) <= REACH)
            shared = np.maximum(shared, like.any(2).sum(1) + like.any(1).sum(1))
        return np.where(total > 0, shared / np.maximum(total, 1), BACKGROUNDS)
