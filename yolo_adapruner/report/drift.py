"""The manifest's counts of what a selection leaves of each class and size, as rows of a table. Knows no labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from yolo_adapruner.data.export import shown

SIZES = {"small": "below 32 px", "medium": "32 to 96 px", "large": "from 96 px"}
"""What the sizes of boxes are, as sides of the square of the same area at the size the images are trained at."""
MOST_CLASSES = 15


@dataclass(frozen=True)
class Shift:
    """A class or a size: its boxes in the whole set and in the kept one; shares of the boxes of each in [0, 1]."""

    name: str
    note: str
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
    """Classes with the most boxes first, sizes from small to large, and the shares of boxes and images removed.

    `background` counts the images without boxes, [all, kept].
    """

    classes: list[Shift]
    more_classes: int
    sizes: list[Shift]
    background: list[int]
    boxes_removed: float
    images_removed: float

    @property
    def scale(self) -> float:
        """The largest share removed that is shown: what a bar of full length stands for."""
        return max([self.boxes_removed, *(s.removed for s in (*self.classes, *self.sizes))]) or 1.0


def drift(manifest: Mapping[str, Any]) -> Drift | None:
    """Return how the kept images of a run differ from all, by its manifest's counts.

    Returns:
        None where the manifest has none, as of an older run, or nothing was dropped, or there is no box.
    """
    counts, images = manifest.get("drift"), manifest["images"]
    if counts is None or images["kept"] == images["total"] or not counts["boxes"][0]:
        return None
    classes = sorted(_shifts(counts["classes"]), key=lambda shift: -shift.total)
    return Drift(
        classes[:MOST_CLASSES],
        max(0, len(classes) - MOST_CLASSES),
        _shifts({name: counts["sizes"][name] for name in SIZES if name in counts["sizes"]}, SIZES),
        counts["background"],
        1 - counts["boxes"][1] / counts["boxes"][0],
        1 - images["kept"] / images["total"],
    )


def _shifts(counts: Mapping[str, list[int]], notes: Mapping[str, str] = MappingProxyType({})) -> list[Shift]:
    total, left = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    return [
        Shift(shown(name), notes.get(name, ""), a, k, a / total, k / max(1, left)) for name, (a, k) in counts.items()
    ]
