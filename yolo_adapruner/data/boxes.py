"""One image's ground truth and detections: what the engine hands over and the study judges.

Knows nothing of where boxes come from, nor of what makes them good.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolo_adapruner.errors import DataError

_EPS = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class ImageDetections:
    """One image: what is in it and what a detector found, in native pixels, origin top left.

    Boxes may hang over the border.

    Attributes:
        path: The image's path, which is its identity; a stem or a position is not.
        shape: (height, width) of the image file in pixels.
        gt_boxes: (G, 4) float64, ground truth as x1, y1, x2, y2.
        gt_classes: (G,) int64, class ids.
        boxes: (D, 4) float64, detections as x1, y1, x2, y2.
        scores: (D,) float64, confidences in [0, 1].
        classes: (D,) int64, class ids.

    Raises:
        DataError: columns that belong together differ in length, or a number in them is not finite.
    """

    path: str
    shape: tuple[int, int]
    gt_boxes: NDArray[np.float64]
    gt_classes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Bring every column to its dtype and shape, so that plain and empty lists are welcome too."""
        for name in ("gt_boxes", "boxes"):
            object.__setattr__(self, name, _boxes(getattr(self, name), self.path, name))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64).reshape(-1))
        for name in ("gt_classes", "classes"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64).reshape(-1))
        found = {"boxes": len(self.boxes), "scores": len(self.scores), "classes": len(self.classes)}
        truth = {"gt_boxes": len(self.gt_boxes), "gt_classes": len(self.gt_classes)}
        for lengths in (found, truth):
            if len(set(lengths.values())) > 1:
                raise DataError(f"{self.path}: expected columns of one length, but got {lengths}; pair them up first.")
        if not np.isfinite(self.scores).all():
            raise DataError(f"{self.path}: expected finite scores, but got NaN or infinity; did the training diverge?")


def unique_names(names: dict[int, str]) -> dict[int, str]:
    """Class id → a name no other class has: two classes of a data.yaml may share one, then both become "name (id)"."""
    uses = Counter(names.values())
    return {c: name if uses[name] == 1 else f"{name} ({c})" for c, name in names.items()}


def _boxes(values: ArrayLike, path: str, name: str) -> NDArray[np.float64]:
    """Values as a finite (n, 4) float64 array; an empty list is (0, 4)."""
    boxes = np.asarray(values, dtype=np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(
            f"{path}: expected {name} of shape (n, 4), all finite, but got shape {boxes.shape}; check them."
        )
    return boxes


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of every box in a (n, 4) with every box in b (m, 4), (n, m) in [0, 1]; 0 for empty boxes."""
    shared = _shared_area(a, b)
    return np.asarray(shared / np.maximum(_areas(a)[:, None] + _areas(b)[None, :] - shared, _EPS))


def covered(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return which share of the smaller of two boxes lies in both, (n, m) in [0, 1]."""
    return np.asarray(_shared_area(a, b) / np.maximum(np.minimum(_areas(a)[:, None], _areas(b)[None, :]), _EPS))


def _shared_area(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray((high - low).clip(0).prod(-1))


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(-1))
