"""How the kept set differs from the whole: which classes and which sizes of boxes went. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.labels import Labels

SIZES = ((0.05, "tiny: below 5 %"), (0.1, "small: 5 to 10 %"), (0.2, "medium: 10 to 20 %"), (0.4, "large: 20 to 40 %"))
LARGEST = "huge: 40 % and more"
"""Sizes of boxes: the side of the square of the same area, as a share of that of the image."""
MOST_CLASSES = 15


@dataclass(frozen=True)
class Shift:
    """A class or a size: its boxes in the whole set and in the kept one; shares of the boxes of each in [0, 1]."""

    name: str
    total: int
    kept: int
    share_of_all: float
    share_of_kept: float

    @property
    def removed(self) -> float:
        """The share of its boxes that went, [0, 1]."""
        return 1 - self.kept / self.total


@dataclass(frozen=True)
class Drift:
    """Classes with the most boxes first, sizes from small to large, and the shares of boxes and images removed."""

    classes: list[Shift]
    more_classes: int
    sizes: list[Shift]
    boxes_removed: float
    images_removed: float

    @property
    def scale(self) -> float:
        """The largest share removed that is shown: what a bar of full length stands for."""
        return max([self.boxes_removed, *(s.removed for s in (*self.classes, *self.sizes))]) or 1.0


def drift(labels: Sequence[Labels], kept: NDArray[np.bool_], names: Mapping[int, str]) -> Drift | None:
    """Return how the kept images differ from all, or None where there is no box.

    Args:
        labels: of N images.
        kept: (N,) bool.
        names: class id → name; a class that has none goes by its id.
    """
    counts = np.array([len(image) for image in labels], np.int64)
    if not counts.sum():
        return None
    here = np.repeat(kept, counts)
    classes = np.concatenate([image.classes for image in labels])
    boxes = np.concatenate([image.boxes for image in labels])
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1))
    sizes = np.digitize(side, [bound for bound, _ in SIZES])
    titles = dict(enumerate([*(name for _, name in SIZES), LARGEST]))
    by_class = sorted(_shifts(classes, here, names), key=lambda shift: -shift.total)
    return Drift(
        by_class[:MOST_CLASSES],
        max(0, len(by_class) - MOST_CLASSES),
        _shifts(sizes, here, titles),
        float(1 - here.mean()),
        float(1 - kept.mean()),
    )


def _shifts(kinds: NDArray[np.int64], kept: NDArray[np.bool_], names: Mapping[int, str]) -> list[Shift]:
    found = []
    for kind in np.unique(kinds):
        total, left = int((kinds == kind).sum()), int((kept & (kinds == kind)).sum())
        shares = total / len(kinds), left / max(1, int(kept.sum()))
        found.append(Shift(names.get(int(kind), f"class {kind}"), total, left, *shares))
    return found
