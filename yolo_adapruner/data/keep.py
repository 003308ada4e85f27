"""The user's list of images that must stay, from a file to rows of the training set. Knows no Ultralytics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.errors import ConfigError, DataError


def read_keep(file: str | Path, paths: Sequence[str], root: str | Path = ".") -> NDArray[np.bool_]:
    """Return which training images a list names, (N,) bool.

    Args:
        file: a path a line, as in Ultralytics' lists: absolute, or from the working directory, or with ./ in front from
            the list's own folder. What is not found there is looked for in the list's folder and in `root`. Blank lines
            are passed over.
        paths: absolute paths of the training images, (N,).
        root: the data set's folder.

    Raises:
        ConfigError: the list cannot be read.
        DataError: it names what is no training image.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ConfigError(
            f"Expected a list of images that must stay, but {file} cannot be read: {error.strerror}."
        ) from None
    listed = [line.strip() for line in lines if line.strip()]
    row = {path: i for i, path in enumerate(paths)}
    places = ("", os.path.dirname(os.path.abspath(file)), str(root))
    rows = [next((row[path] for path in _spellings(name, places) if path in row), -1) for name in listed]
    if foreign := [name for name, i in zip(listed, rows, strict=True) if i < 0]:
        raise DataError(
            f"Expected {file} to list training images, but {len(foreign)} of {len(listed)} lines name none, the first: "
            f"{foreign[0]}. Give paths as in the training set."
        )
    required = np.zeros(len(paths), bool)
    required[rows] = True
    return required


def refuse_too_many(required: NDArray[np.bool_] | None, prune: float) -> None:
    """Refuse a share that cannot be had without what must stay.

    Raises:
        ConfigError: says the largest share there can be.
    """
    if required is None:
        return
    n, must = len(required), int(required.sum())
    if drop_count(n, prune) > n - must:
        largest = int(100 * (n - must) / n) / 100
        raise ConfigError(
            f"Expected prune {prune:g} to leave the images that must stay, but {must} of {n} must: prune at most "
            f"{largest:g} or shorten the keep list."
        )


def _spellings(name: str, places: Sequence[str]) -> Iterator[str]:
    if name.startswith("./"):
        places = (*places[1:], places[0])
    for place in places:
        yield os.path.abspath(os.path.join(place, name))
