"""A classification set as it lies on disk, train/CLASS/IMAGE: equal files, and a set of links to the part that is kept.

Knows no Ultralytics and no model. A set of links takes no room and changes with the files it points to; where a file
system has no symbolic links, files are linked hard, and where that cannot be, copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from yolo_adapruner.errors import DataError

_BEGINNING = 4096  # bytes that tell most files of one size apart


def class_names(folder: str | Path) -> list[str]:
    """Return the names of a split's class folders, sorted as Ultralytics numbers them."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, links followed, sorted."""
    found = [Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(found)


def contradictions(paths: Sequence[str], classes: Sequence[int]) -> list[list[str]]:
    """Return the groups of byte for byte equal files that lie under different classes, each sorted, in order.

    A large set is not read through for it: only files of one size and then of one beginning are read whole.
    """
    groups: list[list[int]] = [list(range(len(paths)))]
    for key in (os.path.getsize, partial(_digest, count=_BEGINNING), _digest):
        groups = [part for rows in groups for part in _split(rows, classes, [key(paths[i]) for i in rows])]
    return sorted(sorted(paths[i] for i in rows) for rows in groups)


def _split(rows: Sequence[int], classes: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """The rows of one key each, where they are of more than one class."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in zip(rows, keys, strict=True):
        parts[key].append(row)
    return [part for part in parts.values() if len({classes[i] for i in part}) > 1]


def _digest(path: str, count: int = -1) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(count)).digest()


def write(target: Path, paths: Sequence[str], data: Mapping[str, Any]) -> Path:
    """Write a set whose train part is the images given, as links, in the place of what is there, and return its root.

    Every class folder is there, empty or not, so that classes keep their numbers.

    Args:
        target: the root to write.
        paths: training images, absolute, below `data["train"]`.
        data: names (class number -> name), train, and val and test where the set has them, absolute.

    Raises:
        DataError: an image does not lie below the training folder, or one or a split is gone.
        OSError: it cannot be written.
    """
    train = Path(data["train"])
    below = [_below(path, train) for path in paths]
    for place in filter(None, (data["train"], data.get("val"), data.get("test"), *paths)):
        if not os.path.exists(place):  # a link to nothing could be made all the same
            raise DataError(f"Expected {place} of the run's data set, but it is gone: put the set back in its place.")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as beside:
        half = Path(beside, "set")
        for name in data["names"].values():
            (half / "train" / name).mkdir(parents=True)
        for path, name in zip(paths, below, strict=True):
            link(Path(path), half / "train" / name)
        for split in ("val", "test"):
            if data.get(split):
                link_folder(Path(data[split]), half / split)
        put(half, target)
    return target


def moved(paths: Sequence[str], old: str | Path, new: str | Path) -> list[str]:
    """Return paths below one folder as the same below another.

    Raises:
        DataError: one lies elsewhere.
    """
    return [str(Path(new) / _below(path, Path(old))) for path in paths]


def link(source: Path, target: Path) -> None:
    """Make `target` a link to a file by its absolute path; a copy where nothing else can be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(source)  # a chain of links is as strong as its weakest
    for make in (os.symlink, os.link):
        with suppress(OSError, NotImplementedError):
            make(real, target)
            return
    shutil.copyfile(real, target)


def link_folder(source: Path, target: Path) -> None:
    """Make `target` a link to a split's folder; where that cannot be, a folder of links to its files."""
    try:
        os.symlink(os.path.realpath(source), target, target_is_directory=True)
    except (OSError, NotImplementedError):
        for name in class_names(source):
            (target / name).mkdir(parents=True)
        for file in files_below(source):
            link(file, target / file.relative_to(source))


def _below(path: str, folder: Path) -> Path:
    try:
        return Path(path).relative_to(folder)
    except ValueError:
        raise DataError(
            f"Expected an image below {folder}, but got {path}: give paths as in the training set."
        ) from None


def put(half: Path, target: Path) -> None:
    """Put a finished set in its place; the one before goes once the new one is whole."""
    if target.is_symlink() or target.is_dir():
        os.rename(target, half.with_name("before"))
    os.rename(half, target)
