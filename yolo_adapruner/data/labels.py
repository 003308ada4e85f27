"""The labels of one image as arrays, and as the lines of a label file. Knows no files and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one image: classes (n,) int64, boxes (n, 4) float64 x1 y1 x2 y2 as shares of the image, 0 to 1."""

    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, rows: NDArray[Any]) -> Labels:
        """Return the labels of some rows, by index or mask."""
        return Labels(self.classes[rows], self.boxes[rows])

    @staticmethod
    def joined(parts: Sequence[Labels]) -> Labels:
        """Return the labels of several as one."""
        return Labels(np.concatenate([p.classes for p in parts]), np.concatenate([p.boxes for p in parts]))

    def text(self) -> str:
        """Return the lines of a label file."""
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        rows = zip(self.classes, (low + high) / 2, high - low, strict=True)
        return "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, (x, y), (w, h) in rows)


EMPTY = Labels(np.zeros(0, np.int64), np.zeros((0, 4)))
