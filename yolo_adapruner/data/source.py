"""A YOLO detection set as it lies on disk: the images of a split and their labels. Reads only; knows no model.

Reading goes past Ultralytics' data set on purpose: that one leaves label caches beside the labels, and a set that
defects are planted from stays as it was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import DataError

_SUFFIXES = {
    ".avif",
    ".bmp",
    ".dng",
    ".heic",
    ".jp2",
    ".jpeg",
    ".jpeg2000",
    ".jpg",
    ".mpo",
    ".pfm",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
}
_SLACK = 0.01  # Ultralytics takes coordinates that leave the image by as much


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


def names(data: Mapping[str, Any]) -> dict[int, str]:
    """Return class id -> name of a resolved data file."""
    given = data["names"]
    return {int(c): str(n) for c, n in (given.items() if isinstance(given, Mapping) else enumerate(given))}


def split_files(where: str | Sequence[str]) -> list[Path]:
    """Return the image files of a split, sorted, each once: folders are searched, lists of paths are read.

    Args:
        where: what a resolved data file says of the split: a folder, a list file, or several of them.

    Raises:
        DataError: the split is not there or holds no image.
    """
    found: set[Path] = set()
    for place in [Path(where)] if isinstance(where, (str, Path)) else map(Path, where):
        if place.is_dir():
            found |= {p for p in place.rglob("*.*") if p.suffix.lower() in _SUFFIXES}
        elif place.suffix.lower() == ".txt" and place.is_file():
            lines = place.read_text(encoding="utf-8-sig").split("\n")
            found |= {place.parent / line[2:] if line[:2] == "./" else Path(line) for line in map(str.strip, lines)}
        else:
            raise DataError(f"Expected a folder or a list of images, but {place} is neither: mend the data file.")
    files = sorted(p.absolute() for p in found if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"Expected images, but {where} holds none: mend the data file.")
    return files


def is_text(path: str) -> bool:
    """Return whether a path is text, and has no bytes that are no UTF-8."""
    return path.isascii() or not any("\ud800" <= c <= "\udfff" for c in path)


def label_file(image: Path) -> Path:
    """Return where an image's labels lie: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(file: Path, classes: int, *, keypoints: bool = False) -> Labels:
    """Return an image's labels; none where there is no file. Polygons become their boxes, equal rows count once.

    Args:
        file: the label file.
        classes: number of classes; a row of another class is refused.
        keypoints: what follows a box in a line are keypoints, and passed over.

    Raises:
        DataError: the file says something Ultralytics would leave the image out for.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        words = [line.split()[: 5 if keypoints else None] for line in lines if line.strip()]
        rows = np.array([_row(line) for line in words], float).reshape(-1, 5)
    except (OSError, ValueError) as error:
        raise DataError(f"Expected lines of class x y w h in {file}, but: {error}.") from None
    rows = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
    inside = np.isfinite(rows).all() and (rows[:, 1:] <= 1 + _SLACK).all() and (rows[:, 1:] >= -_SLACK).all()
    if not inside or (rows[:, 0] % 1 != 0).any() or (rows[:, 0] < 0).any() or (rows[:, 0] >= classes).any():
        raise DataError(f"Expected classes 0 to {classes - 1} and shares of the image in {file}: mend or remove it.")
    half = rows[:, 3:] / 2
    boxes = np.column_stack([rows[:, 1:3] - half, rows[:, 1:3] + half])
    return Labels(rows[:, 0].astype(np.int64), boxes.clip(0, 1))


def _row(words: Sequence[str]) -> list[float]:
    numbers = [float(word) for word in words]
    if len(numbers) > 6 and len(numbers) % 2:
        points = np.array(numbers[1:]).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        return [numbers[0], *((low + high) / 2), *(high - low)]
    if len(numbers) != 5:
        raise ValueError(f"a line has {len(numbers)} numbers")
    return numbers


def read_split(where: str | Sequence[str], classes: int) -> tuple[list[Path], list[Labels], list[str]]:
    """Return a split's images, their labels, and why each image that cannot be trained on is left out."""
    files: list[Path] = []
    labels: list[Labels] = []
    left_out: list[str] = []
    for image in split_files(where):
        try:
            if not (is_text(str(image)) and cv2.haveImageReader(str(image))):  # OpenCV dies of a path that is no text
                raise DataError(f"Expected an image, but {image} cannot be read as one.")
            labels.append(read_labels(label_file(image), classes))
            files.append(image)
        except DataError as error:
            left_out.append(str(error))
    if not files:
        raise DataError(f"Expected images that can be trained on in {where}, but there is none: {left_out[0]}")
    return files, labels, left_out
