"""The label faults that can be planted, one function a kind: labels in, faulty labels out, pictures untouched.

Every function takes the labels of one image, the random stream and what the rest of the set looks like, and returns
the labels with the fault, or None where the image cannot carry it. Knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.boxes import covered, iou
from yolo_adapruner.data.labels import Labels

SHIFT = (0.2, 0.6)
"""How far a shifted box goes, as a share of its own width and height."""
COVER = 0.05
"""Largest share of a spurious box, or of what it overlaps, that lies in both; their IoU is never larger than this."""
_DONORS = 20
_SAME = 0.5  # IoU from which on two boxes are the same
_LEAST_SEEN = 0.1  # of a box, where an image is cut; Ultralytics' own limit
_LEFT_RIGHT = 1 / 3  # share of a shuffled image's boxes that may be right by chance


@dataclass(frozen=True)
class Peers:
    """What a fault may draw from.

    Attributes:
        labels: true labels of the set's images.
        classes: number of classes.
        part: share of an image's boxes that go (missing) or come (spurious), in (0, 1].
        frame: width and height that the labels to spoil are shares of, as shares of a whole image: less than 1 where a
            part of an image stands for it, as in a mosaic.
        tries: draws for free places of an image's spurious boxes at most.
    """

    labels: Sequence[Labels]
    classes: int
    part: float = 0.5
    frame: tuple[float, float] = (1.0, 1.0)
    tries: int = 400

    @cached_property
    def every(self) -> Labels:
        """The labels of all images as one."""
        return Labels.joined(self.labels)

    @cached_property
    def _donors(self) -> tuple[list[int], dict[int, int]]:
        """Images with labels, in order, and the place among them by the identity of an image's labels."""
        rows = [i for i, own in enumerate(self.labels) if len(own)]
        return rows, {id(self.labels[row]): place for place, row in enumerate(rows)}

    def within(self, frame: tuple[float, float]) -> Peers:
        """Return the same for labels that are shares of a part of an image."""
        if frame == self.frame:
            return self
        other = replace(self, frame=frame)
        other.__dict__.update({name: getattr(self, name) for name in ("every", "_donors")})
        return other

    def draw(self, rng: np.random.Generator) -> tuple[int, NDArray[np.float64]]:
        """Return class and size (2,) of one of the set's own boxes."""
        row = int(rng.integers(len(self.every)))
        size = self.every.boxes[row, 2:] - self.every.boxes[row, :2]
        return int(self.every.classes[row]), np.minimum(size / self.frame, 1)

    def donor(self, labels: Labels, rng: np.random.Generator) -> Labels | None:
        """Return the labels of another image that has some, or None where there is none.

        Where the frame is a part of an image, what lies in such a part of the other one, at a drawn place; perhaps
        nothing.
        """
        rows, places = self._donors
        own = places.get(id(labels))
        others = len(rows) - (own is not None)
        if not others:
            return None
        place = int(rng.integers(others))
        donor = self.labels[rows[place + (own is not None and place >= own)]]
        return donor if self.frame == (1, 1) else _window(donor, self.frame, rng)

    def count(self, boxes: int) -> int:
        """Return `part` of a number of boxes, halves up, at least one."""
        return max(1, math.floor(self.part * boxes + 0.5))


def shifted(labels: Labels, rng: np.random.Generator, peers: Peers) -> Labels | None:
    """Shift every box by 20 to 60 % of its size, each in a direction and by a share of its own.

    The shift is share * (width * cos, height * sin) of a drawn angle, so the IoU with the true box is 0.20 to 0.67. A
    coordinate that would leave the image goes the other way; one that leaves it both ways, as a box nearly as large as
    the image does, is cut at the border, and overlaps more. Boxes without extent cannot be shifted by a part of it.
    """
    if not len(labels):
        return None
    low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
    angle, share = rng.uniform(0, 2 * math.pi, len(labels)), rng.uniform(*SHIFT, len(labels))
    move = np.column_stack([np.cos(angle), np.sin(angle)]) * share[:, None] * (high - low)
    move = np.where((low + move < 0) | (high + move > 1), -move, move)
    boxes = (labels.boxes + np.tile(move, 2)).clip(0, 1)
    return None if np.array_equal(boxes, labels.boxes) else Labels(labels.classes, boxes)


def swapped(labels: Labels, rng: np.random.Generator, peers: Peers) -> Labels | None:
    """Give every box a class that is not its own, drawn evenly from the others; boxes stay."""
    if not len(labels):
        return None
    return Labels((labels.classes + rng.integers(1, peers.classes, len(labels))) % peers.classes, labels.boxes)


def missing(labels: Labels, rng: np.random.Generator, peers: Peers) -> Labels | None:
    """Take `part` of the boxes away, drawn evenly, at least one; an image with a single box is left with none."""
    if not len(labels):
        return None
    return labels.take(np.sort(rng.permutation(len(labels))[peers.count(len(labels)) :]))


def spurious(labels: Labels, rng: np.random.Generator, peers: Peers) -> Labels | None:
    """Add boxes where no labelled box is: `part` of the image's number, at least one, also to an image without any.

    Class and size are those of one of the set's own boxes, drawn evenly; the place is drawn evenly. At most `COVER` of
    the smaller of it and any other box lies in both. An image that is too full for all gets as many as fit in (smaller
    ones, therefore); one that has no room for any cannot carry the fault. What is there but was never labelled is
    not known, and such a box may lie on it.
    """
    wanted, added = peers.count(len(labels)), 0
    result = labels
    for _ in range(peers.tries):
        cls, size = peers.draw(rng)
        low = rng.uniform(0, 1, 2) * (1 - size)
        box = np.concatenate([low, low + size])[None]
        if (size > 0).all() and (covered(box, result.boxes) <= COVER).all():
            result = Labels.joined([result, Labels(np.array([cls]), box)])
            added += 1
            if added == wanted:
                break
    if not added:
        return None
    return result.take(rng.permutation(len(result)))  # the order of the lines must not tell which is which


def shuffled(labels: Labels, rng: np.random.Generator, peers: Peers) -> Labels | None:
    """Replace all labels, boxes and classes, by those of another image of the set.

    Of up to 20 other images the first is taken of whose boxes at most a third is right here by chance (same class, IoU
    0.5 or more with a true box). Where none is, as in sets whose objects all lie in the middle, as many boxes as the
    last one had are redrawn: class and size of one of the set's own, anywhere; the least right of 20 draws.
    """
    if not len(labels):
        return None
    best: tuple[float, Labels] | None = None
    for attempt in range(2 * _DONORS):
        donor = peers.donor(labels, rng)
        if donor is None:
            break
        if not len(donor):
            continue
        other = donor if attempt < _DONORS else _redrawn(len(donor), rng, peers)
        right = _share_right(other, labels)
        if best is None or right < best[0]:
            best = right, other
        if right <= _LEFT_RIGHT:
            return other
    return best[1] if best and best[0] < 1 else None


def _window(labels: Labels, frame: tuple[float, float], rng: np.random.Generator) -> Labels:
    """What of an image's labels lies in a part of it at a drawn place, as shares of that part."""
    size = np.array(frame)
    low = rng.uniform(0, 1, 2) * (1 - size)
    boxes = labels.boxes.clip(np.tile(low, 2), np.tile(low + size, 2))
    whole = (labels.boxes[:, 2:] - labels.boxes[:, :2]).prod(1)
    seen = (boxes[:, 2:] - boxes[:, :2]).prod(1) > _LEAST_SEEN * whole
    return Labels(labels.classes[seen], (boxes[seen] - np.tile(low, 2)) / np.tile(size, 2))


def _redrawn(count: int, rng: np.random.Generator, peers: Peers) -> Labels:
    drawn = [peers.draw(rng) for _ in range(count)]
    sizes = np.array([size for _, size in drawn])
    low = rng.uniform(0, 1, (count, 2)) * (1 - sizes)
    return Labels(np.array([cls for cls, _ in drawn], np.int64), np.column_stack([low, low + sizes]))


def _share_right(given: Labels, true: Labels) -> float:
    same = (iou(given.boxes, true.boxes) >= _SAME) & (given.classes[:, None] == true.classes[None, :])
    return float(same.any(1).mean())


FAULTS: dict[str, Callable[[Labels, np.random.Generator, Peers], Labels | None]] = {
    "spurious": spurious,  # the choosiest first: several kinds at once are planted in this order
    "shuffled": shuffled,
    "shifted": shifted,
    "swapped": swapped,
    "missing": missing,
}
