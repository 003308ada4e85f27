"""A YOLO detection set as it lies on disk: the images of a split and their labels. Reads only; knows no model.

Reading goes past Ultralytics' data set on purpose: that one leaves label caches beside the labels, and a set that
defects are planted from stays as it was found.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from yolo_adapruner.data.labels import Labels
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
class Shapes:
    """What an image's label file says, boxes and the shapes that they were made from.

    Attributes:
        labels: classes and boxes, n of them.
        outlines: n polygons, (points, 2) float64 x y as shares of the image; None for what was labelled as a box.
        keypoints: (n, k, 3) float64: x and y as shares of the image, and 0 not labelled, 1 hidden, 2 seen; None where
            the set has none.
    """

    labels: Labels
    outlines: Sequence[NDArray[np.float64] | None]
    keypoints: NDArray[np.float64] | None


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
            # As Ultralytics looks: into folders behind links, too, and into none with a dot before its name.
            below = glob.glob(str(Path(glob.escape(str(place))) / "**" / "*.*"), recursive=True)
            found |= {p for p in map(Path, below) if p.suffix.lower() in _SUFFIXES}
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


def read_labels(file: Path, classes: int) -> Labels:
    """Return an image's labels; none where there is no file. Polygons become their boxes, equal rows count once.

    Args:
        file: the label file.
        classes: number of classes; a row of another class is refused.

    Raises:
        DataError: the file says something Ultralytics would leave the image out for.
    """
    return read_shapes(file, classes).labels


def read_shapes(file: Path, classes: int, keypoints: tuple[int, int] | None = None, *, task: str = "pose") -> Shapes:
    """Return an image's labels with the polygons or keypoints they have; nothing where there is no file.

    Args:
        file: the label file.
        classes: number of classes.
        keypoints: a data file's `kpt_shape`: keypoints an object, and 2 or 3 numbers each; None where it has none.
        task: what they are read for. Only "pose" asks for keypoints; for others a row that has them counts by its box.

    Raises:
        DataError: the file says something Ultralytics would leave the image out for.
    """
    count = 0 if keypoints is None else keypoints[0] * keypoints[1]
    pose = keypoints is not None and task == "pose"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        parsed = [_row(line.split(), count, pose=pose) for line in lines if line.strip()]
        rows = np.array([row for row, _ in parsed], float).reshape(-1, 5)
    except (OSError, ValueError) as error:
        raise DataError(f"Expected lines of class x y w h in {file}, but: {error}.") from None
    once = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    rows, rest = rows[once], [parsed[i][1] for i in once]
    inside = np.isfinite(rows).all() and (rows[:, 1:] <= 1 + _SLACK).all() and (rows[:, 1:] >= -_SLACK).all()
    if not inside or (rows[:, 0] % 1 != 0).any() or (rows[:, 0] < 0).any() or (rows[:, 0] >= classes).any():
        raise DataError(f"Expected classes 0 to {classes - 1} and shares of the image in {file}: mend or remove it.")
    half = rows[:, 3:] / 2
    boxes = np.column_stack([rows[:, 1:3] - half, rows[:, 1:3] + half])
    labels = Labels(rows[:, 0].astype(np.int64), boxes.clip(0, 1))
    if keypoints is None or not pose:
        return Shapes(labels, [points.reshape(-1, 2) if len(points) else None for points in rest], None)
    return Shapes(labels, [None] * len(labels), _keypoints(np.array(rest, float).reshape(len(labels), *keypoints)))


def _row(words: Sequence[str], extra: int, *, pose: bool) -> tuple[list[float], NDArray[np.float64]]:
    """A line's class and box, and what else it says: the polygon behind the box, or `extra` numbers of keypoints."""
    numbers = [float(word) for word in words]
    if len(numbers) == 5 + extra or (len(numbers) == 5 and not pose):
        return numbers[:5], np.array(numbers[5:] if pose else [])
    if pose or len(numbers) <= 6 or not len(numbers) % 2:
        raise ValueError(f"a line has {len(numbers)} numbers")
    outline = np.array(numbers[1:])
    points = outline.reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return [numbers[0], *((low + high) / 2), *(high - low)], outline


def _keypoints(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keypoints with their visibility; where a set does not say it, a point at 0 0 is none, as Ultralytics has it."""
    if given.shape[2] == 3:
        return given
    seen = np.where((given != 0).any(2), 2.0, 0.0)
    return np.concatenate([given, seen[..., None]], axis=2)


def _is_whole(image: Path) -> bool:
    """Whether an image is not cut off, by what Ultralytics looks at; what Pillow does not know is taken for whole."""
    try:
        with Image.open(image) as opened:
            jpeg = opened.format in ("JPEG", "MPO")
            opened.verify()
        if jpeg and not _has_an_end(image):
            with Image.open(image) as opened:
                opened.load()
    except UnidentifiedImageError:
        return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def _has_an_end(jpeg: Path) -> bool:
    with jpeg.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def read_split(where: str | Sequence[str], classes: int) -> tuple[list[Path], list[Labels], list[str]]:
    """Return a split's images, their labels, and why each image that cannot be trained on is left out."""
    files: list[Path] = []
    labels: list[Labels] = []
    left_out: list[str] = []
    for image in split_files(where):
        try:
            # OpenCV dies of a path that is no text.
            if not (is_text(str(image)) and cv2.haveImageReader(str(image)) and _is_whole(image)):
                raise DataError(f"Expected an image, but {image} cannot be read as one.")
            labels.append(read_labels(label_file(image), classes))
            files.append(image)
        except DataError as error:
            left_out.append(str(error))
    if not files:
        raise DataError(f"Expected images that can be trained on in {where}, but there is none: {left_out[0]}")
    return files, labels, left_out
