"""A finished run with its pictures: what every format is written from. Reads labels and image sizes; writes JSON.

Knows no format. Labels are read anew from the label files, because a run keeps no copy of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yolo_adapruner.data import export
from yolo_adapruner.data.boxes import unique_names
from yolo_adapruner.data.export import Outcome, replace_file
from yolo_adapruner.data.source import Shapes, label_file, names, read_shapes
from yolo_adapruner.errors import ConfigError, DataError, RunError

SUSPECT = "label suspect"
_TURNED, _ORIENTATION = {5, 6, 7, 8}, 274
_SIZED_AS_TURNED = {"JPEG", "MPO", "PNG", "AVIF"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A training image.

    Attributes:
        number: its place in the run's list, from 0, the same whatever is kept.
        path: absolute.
        name: relative to the data set's root with forward slashes where it lies there, otherwise the path.
        width, height: in pixels, as the picture is seen (turned where its EXIF says so).
        shapes: its labels, shares of the image.
        kept: whether it stays.
        scores: the other columns of scores.csv; None where a number is not known.
    """

    number: int
    path: str
    name: str
    width: int
    height: int
    shapes: Shapes
    kept: bool
    scores: Mapping[str, Any]

    @property
    def size(self) -> NDArray[np.float64]:
        """Width and height."""
        return np.array([self.width, self.height], np.float64)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Boxes in pixels, (n, 4) x1 y1 x2 y2."""
        return self.shapes.labels.boxes * np.tile(self.size, 2)

    def outline(self, i: int) -> NDArray[np.float64] | None:
        """Return the polygon of the i-th label in pixels, (points, 2), or None where it was labelled as a box."""
        outline = self.shapes.outlines[i]
        return None if outline is None else outline.clip(0, 1) * self.size


@dataclass(frozen=True, eq=False)
class Gathered:
    """A finished run.

    Attributes:
        folder: where its formats belong.
        manifest, outcome: what `data.export.read` gave.
        classes: class id → name, no two alike.
        keypoints: the data file's `kpt_shape`, or None.
    """

    folder: Path
    manifest: Mapping[str, Any]
    outcome: Outcome
    classes: Mapping[int, str]
    keypoints: tuple[int, int] | None

    @property
    def task(self) -> str:
        """Ultralytics' name of the task that the run trained for."""
        return export.task_of(self.manifest)

    def cut(self, folder: Path) -> Gathered:
        """Return the same run with the selection that lies in a folder of another share."""
        lines = (folder / "kept.txt").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        kept = np.isin(np.array(self.outcome.paths), np.array(lines))
        return replace(self, folder=folder, outcome=self.outcome.keeping(kept))

    def picture(self, row: int) -> Picture:
        """Return an image of the run, its labels and size read now.

        Raises:
            DataError: it, or the labels it had, are gone or unreadable.
        """
        path = self.outcome.paths[row]
        labels = label_file(Path(path))
        boxes = self.outcome.columns.get("boxes")
        if boxes is not None and boxes[row] and not labels.is_file():
            raise DataError(f"Expected the labels of {path}, but {labels} is gone: put it back.")
        width, height = image_size(path)
        scores = {name: _plain(column[row]) for name, column in self.outcome.columns.items()}
        shapes = read_shapes(labels, len(self.classes), self.keypoints, task=self.task)
        return Picture(row, path, self._name(path), width, height, shapes, bool(self.outcome.kept[row]), scores)

    def pictures(self, rows: Iterable[int] | None = None) -> Iterator[Picture]:
        """Yield the images of some rows, or all, one at a time."""
        return map(self.picture, range(len(self.outcome.paths)) if rows is None else rows)

    def _name(self, path: str) -> str:
        root = Path(self.manifest["data"]["path"])
        return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path

    def to_review(self) -> tuple[list[int], str]:
        """Return the rows whose labels a person should look at, the likeliest first, and what to say of them."""
        columns = self.outcome.columns
        reasons = columns.get("reason")
        dropped = ~self.outcome.kept
        rows = np.flatnonzero(dropped if reasons is None else dropped & (reasons == SUSPECT))
        order = -columns["suspicion"] if "suspicion" in columns else columns["logit"]
        ranked = rows[np.argsort(order[rows], kind="stable")]  # NaN goes last
        if reasons is None:
            return ranked.tolist(), "this run knows no reasons: these are all dropped images, not only suspect labels"
        return ranked.tolist(), "" if len(ranked) else "no image was dropped for suspect labels: the list is empty"


def gather(run: Path) -> Gathered:
    """Return a finished run.

    Raises:
        RunError: the folder is not one.
        ConfigError: it is a classifier's.
        DataError: an image or a class has a name that is no UTF-8, which no other tool's format can say.
    """
    manifest, outcome = export.read(run)
    if export.is_folder(manifest["data"]):
        raise ConfigError(
            f"Expected a run on boxes, for other tools' formats are about those, but {run} is one of a classifier: its "
            "pruned set is the folder pruned, and scores.csv has a row an image."
        )
    try:
        rest = manifest["data"]["rest"]
        classes = unique_names(names(rest))
        shape = rest.get("kpt_shape")
        keypoints = None if shape is None else (int(shape[0]), int(shape[1]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RunError(f"Expected class names in {run / export.MANIFEST}, but they cannot be read ({error}).") from None
    if sorted(classes) != list(range(len(classes))):
        raise RunError(f"Expected classes 0 to {len(classes) - 1} in {run / export.MANIFEST}, but got {list(classes)}.")
    for name in (*classes.values(), *outcome.paths):
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(f"Expected names in UTF-8, but got {name!a}: rename it, or leave --format at yolo.")
    return Gathered(run, manifest, outcome, classes, keypoints)


def image_size(path: str) -> tuple[int, int]:
    """Return an image's width and height, read off its header and turned as its EXIF says.

    Raises:
        DataError: it is gone or no image.
    """
    try:
        with Image.open(path) as image:
            if image.getexif().get(_ORIENTATION) not in _TURNED:
                return image.size
            if image.format in _SIZED_AS_TURNED:
                return image.size[1], image.size[0]
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError):
        # What Pillow has no reader for, OpenCV may. Ultralytics, once imported, asks for one more: ImportError.
        pass
    pixels = cv2.imread(path) if Path(path).is_file() else None
    if pixels is None:
        raise DataError(f"Expected the image {path}, but it is gone or cannot be read: put it back.")
    return pixels.shape[1], pixels.shape[0]


def xml_safe(names: Iterable[str], format: str) -> None:
    """Refuse names that XML cannot carry; what needs escaping is escaped elsewhere.

    Raises:
        DataError: a name holds a control character.
    """
    for name in names:
        if any(c < " " or "\x7f" <= c <= "\x9f" or c in "\ufffe\uffff" for c in name):
            raise DataError(
                f"Expected names without control characters for format {format}, but got {name!a}: rename it."
            )


def dump(value: Any) -> str:
    """Return a value as JSON on one line, names as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_lists(target: Path, head: Mapping[str, Any], **lists: Iterable[Any]) -> None:
    """Write a JSON object: some plain values, then lists that may be long, an entry a line.

    The lists are written in their order and may be generators, each beginning once the one before it has ended.
    """
    with replace_file(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("{" + ",\n".join(f"{dump(key)}: {dump(value)}" for key, value in head.items()))
        for i, (key, entries) in enumerate(lists.items()):
            file.write((",\n" if head or i else "") + f"{dump(key)}: [")
            for k, entry in enumerate(entries):
                file.write((",\n" if k else "\n") + dump(entry))
            file.write("\n]")
        file.write("}\n")


def write_text(target: Path, text: str) -> Path:
    """Write a text file whole or not at all, and return where."""
    with replace_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return target


def _plain(value: Any) -> Any:
    """A number or word as JSON has it; None where a number is not known."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
