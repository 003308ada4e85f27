"""Fingerprints of a run's images: which of another run's images are the same, wherever they lie and are called now.

An image is its pixels with its labels: corrected labels make another one of it. Size and time of a file stand for its
bytes where both are as they were (as git and rsync have it); otherwise the bytes are read. Knows no logits.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.export import replace_file
from yolo_adapruner.errors import RunError

PRINTS = "prints.npz"
_CHUNK, _WIDTH = 1 << 20, 16
_PART = 256  # files a task: a million tasks would take more memory than what they find
_GONE = bytes(_WIDTH)


@dataclass(frozen=True, eq=False)
class Prints:
    """Fingerprints of N images, in the order of scores.csv.

    Attributes:
        stats: (N, 2) int64, size in bytes and time of the last change in ns; -1 where a file was gone.
        contents: (N, 16) uint8, the first half of the file's SHA-256; 0 where it was gone.
        labels: (N,) uint64, `label_print` of its labels.
    """

    stats: NDArray[np.int64]
    contents: NDArray[np.uint8]
    labels: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Where each of N images was in an earlier run.

    Attributes:
        rows: (N,) int64, its row there, -1 where it is new.
        moved: (N,) bool, recognised by content, under another path.
        changed: how many were at the same path with other bytes or labels, and count as new.
        gone: how many of the earlier run's images are not among these.
    """

    rows: NDArray[np.int64]
    moved: NDArray[np.bool_]
    changed: int
    gone: int


def label_print(*arrays: Any) -> int:
    """Return 64 bits that tell the labels of an image from others, from the arrays they are held in."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        held = np.ascontiguousarray(array, np.float32)
        found.update(repr(held.shape).encode())
        found.update(held.tobytes())
    return int.from_bytes(found.digest(), "little")


def take(paths: Sequence[str], labels: NDArray[np.uint64], threads: int = 1) -> Prints:
    """Return the fingerprints of images as they are now; each file is read once, `threads` at a time."""
    contents = b"".join(_contents(paths, threads))
    stats = np.array([_stat(path) for path in paths], np.int64).reshape(-1, 2)
    return Prints(stats, np.frombuffer(contents, np.uint8).reshape(-1, _WIDTH), np.asarray(labels, np.uint64))


def write(folder: Path, prints: Prints) -> None:
    """Put fingerprints into a run folder."""
    with replace_file(folder / PRINTS) as temporary, temporary.open("wb") as stream:
        np.savez(stream, stats=prints.stats, contents=prints.contents, labels=prints.labels)


def read(folder: Path, n: int) -> Prints | None:
    """Return the fingerprints in a run folder of `n` images, None where it has none.

    Raises:
        RunError: they are torn or of another number of images.
    """
    file = folder / PRINTS
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            prints = Prints(held["stats"], held["contents"], held["labels"])
        shapes = prints.stats.shape, prints.contents.shape, prints.labels.shape
        if shapes != ((n, 2), (n, _WIDTH), (n,)):
            raise ValueError(f"shapes {shapes} for {n} images")
    except Exception as error:  # a torn archive fails in ways of zipfile's, zlib's and NumPy's own
        raise RunError(
            f"Expected {file} as this package wrote it, but it cannot be read ({error}): remove it to go by path alone."
        ) from None
    return prints


def match(
    paths: Sequence[str], labels: NDArray[np.uint64], before: Sequence[str], prints: Prints | None, threads: int = 1
) -> Matches:
    """Find images among an earlier run's: by path where the file is as it was, otherwise by content.

    Args:
        paths: the images now.
        labels: (N,) their `label_print`s.
        before: the earlier run's images.
        prints: its fingerprints; None has paths believed as they are, and nothing found by content.
        threads: files read at a time.
    """
    old = {path: row for row, path in enumerate(before)}
    rows = np.array([old.get(path, -1) for path in paths], np.int64)
    if prints is None:
        return Matches(rows, np.zeros(len(rows), bool), 0, len(before) - len(set(rows[rows >= 0].tolist())))
    to_read = [i for i, row in enumerate(rows) if row < 0 or _stat(paths[i]) != tuple(prints.stats[row])]
    contents = dict(zip(to_read, _contents([paths[i] for i in to_read], threads), strict=True))
    same = np.array([row >= 0 and labels[i] == prints.labels[row] for i, row in enumerate(rows)])
    same &= [i not in contents or contents[i] == prints.contents[rows[i]].tobytes() for i in range(len(rows))]
    other = (rows >= 0) & ~same
    rows[other] = -1
    moved = _by_content(rows, labels, contents, prints)
    changed = int((other & ~moved).sum())
    return Matches(rows, moved, changed, len(before) - len(set(rows[rows >= 0].tolist())))


def _by_content(
    rows: NDArray[np.int64], labels: NDArray[np.uint64], contents: dict[int, bytes], prints: Prints
) -> NDArray[np.bool_]:
    """Fill in rows of images that were elsewhere, and return which; of several copies each takes its own."""
    wanted = {(contents[i], int(labels[i])) for i in contents if rows[i] < 0 and contents[i] != _GONE}
    taken = set(rows[rows >= 0].tolist())
    places: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for row, label in enumerate(prints.labels.tolist()):
        if row not in taken and (key := (prints.contents[row].tobytes(), label)) in wanted:
            places[key].append(row)
    moved = np.zeros(len(rows), bool)
    for i in sorted(contents):
        if rows[i] < 0 and (found := places.get((contents[i], int(labels[i])))):
            rows[i] = found.pop(0)
            moved[i] = True
    return moved


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _contents(paths: Sequence[str], threads: int) -> Iterator[bytes]:
    parts = [paths[i : i + _PART] for i in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for part in pool.map(lambda some: [_content(path) for path in some], parts):
            yield from part


def _content(path: str) -> bytes:
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return _GONE
    return found.digest()[:_WIDTH]
