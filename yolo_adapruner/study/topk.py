"""What a classifier is worth: top-1 and top-5 over images, and over any weighting of them.

What `matches` is for boxes. Knows no model; `engine/classified.py` hands the ranks in.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import RunError


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the label of each of n images stood in a classifier's answer.

    Attributes:
        paths: of the images, sorted.
        labels: their classes, (n,).
        ranks: how many classes were held more probable than the label, (n,) >= 0.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    ranks: NDArray[np.int64]

    def top(self, k: int, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """Return top-k, (B,) in [0, 1], for weights (B, n) >= 0: how often each image counts; None: once each, (1,)."""
        hit = (self.ranks < k).astype(np.float64)
        drawn = np.ones((1, len(hit))) if weights is None else np.asarray(weights, np.float64)
        return np.asarray(drawn @ hit / drawn.sum(1))

    def per_class(self, names: dict[int, str]) -> dict[str, tuple[float, float, int]]:
        """Return class name -> (top-1, top-5, images) over the class's images, for classes that have any."""
        rows = {name: self.labels == c for c, name in names.items()}
        return {
            name: (float((self.ranks[row] < 1).mean()), float((self.ranks[row] < 5).mean()), int(row.sum()))
            for name, row in rows.items()
            if row.any()
        }

    def save(self, file: Path) -> None:
        """Write to a .npz file."""
        with file.open("wb") as stream:
            np.savez_compressed(stream, paths=np.array(self.paths), labels=self.labels, ranks=self.ranks)

    @classmethod
    def load(cls, file: Path) -> Ranks:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing or torn.
        """
        try:
            with np.load(file, allow_pickle=False) as held:
                return cls(tuple(map(str, held["paths"])), held["labels"], held["ranks"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise RunError(
                f"Expected the ranks of a finished cell in {file}, but it is missing or cannot be read: delete the "
                "cell's folder and run the comparison again."
            ) from None
