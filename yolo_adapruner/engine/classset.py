"""Ultralytics' classification set by image path: what is in its folders, whose sample a row is, the part that is kept.

Knows no mask and no model. How such folders are written is `data/classfolders`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import IMG_FORMATS, check_cls_dataset, verify_image
from ultralytics.utils import LOGGER, NUM_THREADS, RANK

from yolo_adapruner.data import classfolders
from yolo_adapruner.engine.dataset import identity
from yolo_adapruner.engine.transforms import KEY
from yolo_adapruner.errors import DataError


class FolderDataset(ClassificationDataset):
    """Ultralytics' dataset, bitwise, with the row of each sample in its batches where that is wanted.

    Attributes:
        listed: the files that were looked at, readable or not.
        numbered: whether batches hold the rows.
    """

    numbered = False

    def verify_images(self) -> list[tuple[str, int]]:
        """Leave out unreadable images as Ultralytics does, and remember what there was."""
        self.listed = [sample[0] for sample in self.samples]
        return super().verify_images()

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return an image and its class, and its row."""
        sample = super().__getitem__(i)
        return {**sample, KEY: i} if self.numbered else sample


class _Rows:
    """Some rows of Ultralytics' cache of decoded images, counted anew."""

    def __init__(self, cache: Any, rows: Sequence[int]) -> None:
        self.cache, self.rows = cache, rows

    def __getitem__(self, i: int) -> Any:
        return self.cache[self.rows[i]]


def files(dataset: Any) -> list[str]:
    """Return the absolute path of each row's image."""
    return [identity(sample[0]) for sample in dataset.samples]


def subset(dataset: FolderDataset, keep: set[str], *, numbered: bool = False) -> FolderDataset:
    """Return a dataset of the images in `keep` alone, sharing what is cached.

    Its batches are the stock ones, unless the rows are to be `numbered` in them as before.
    """
    part = copy(dataset)
    rows = [i for i, file in enumerate(files(dataset)) if file in keep]
    part.samples = [dataset.samples[i] for i in rows]
    part.numbered = numbered
    if part.cache_ram:
        part.img_cache = _Rows(dataset.img_cache, rows)
    return part


def load(data: str) -> dict[str, Any]:
    """Return what Ultralytics finds in a folder of class folders, split paths absolute, and refuse what cannot be.

    Returns:
        train, val and test (None where there is none), names and nc as Ultralytics has them; path and yaml_file are the
        folder, and `task` says what kind of set it is.

    Raises:
        DataError: there is no such folder, it has not the folders it takes, or a class is known to `val` alone.
    """
    check_folders(data)
    return checked(check_cls_dataset(data))


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return what Ultralytics found in a folder with what the other tasks' data files have as well.

    Raises:
        DataError: there is nothing to validate on, or a class is known to `val` alone.
    """
    root = Path(found["train"]).parent
    names = set(found["names"].values())
    if not (found["val"] or found["test"]):
        raise DataError(f"Expected images to validate on in {root / 'val'} or {root / 'test'}, but there are none.")
    for split in ("val", "test"):
        folders = classfolders.class_names(found[split]) if found[split] else []
        if foreign := [name for name in folders if name not in names]:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise DataError(
                f"Expected the classes of {found['train']} in {found[split]}, but it has {foreign[0]}{more} as well: "
                "add an empty folder of that name to train, or take it out."
            )
    return {**found, "path": str(root), "yaml_file": str(root), "task": "classify"}


def check_folders(data: str) -> None:
    """Refuse what is there but is no folder with a training part; what is not there Ultralytics may fetch.

    Raises:
        DataError: see its line.
    """
    root = Path(data)
    if not root.exists():
        return
    if not root.is_dir():
        raise DataError(
            f"Expected a folder with train/CLASS/IMAGE and val/CLASS/IMAGE for a classification model, but {root} is a "
            "file: name the folder, or take a detection model."
        )
    # Ultralytics would copy the whole set to split it, differently each time.
    if not (root / "train").is_dir():
        raise DataError(
            f"Expected class folders in {root / 'train'} and {root / 'val'}, but there is no train: split the set "
            "once (Ultralytics' split_classify_dataset does)."
        )


def look_over(dataset: FolderDataset, names: dict[int, str]) -> tuple[list[str], dict[str, Any]]:
    """Return the unreadable images of a training set, and what else is odd about it, each said once in the log.

    Returns:
        The files that were left out, sorted; and `contradictions`, the images that lie in several class folders (a list
        of equal files each), and `empty_classes`, the classes without an image.
    """
    own = files(dataset)
    skipped = sorted({identity(file) for file in dataset.listed} - set(own))
    classes = [sample[1] for sample in dataset.samples]
    empty = [names[c] for c in sorted(set(names) - set(classes))]
    # Where several processes train, the first alone says and writes what was found.
    twice = classfolders.contradictions(own, classes) if RANK in {-1, 0} else []
    if empty:
        LOGGER.warning(f"{len(empty)} of {len(names)} classes have no training image, the first: {empty[0]}")
    if twice:
        first, second = twice[0][:2]
        LOGGER.warning(
            f"{len(twice)} images lie in more than one class folder, one label at least is wrong: {first} is {second}"
        )
    return skipped, {"contradictions": twice, "empty_classes": empty}


def split_images(folder: str | Path) -> list[str]:
    """Return the absolute paths of the images below a split's class folders that can be read, sorted.

    Raises:
        DataError: there are none.
    """
    found = [
        identity(str(path))
        for name in classfolders.class_names(folder)
        for path in classfolders.files_below(Path(folder) / name)
        if path.suffix[1:].lower() in IMG_FORMATS
    ]
    with ThreadPool(NUM_THREADS) as pool:  # as a training leaves the others out
        checked = pool.imap(verify_image, [((path, 0), "") for path in sorted(found)])
        readable = [sample[0] for sample, good, _, _ in checked if good]
    if not readable:
        raise DataError(f"Expected images in the class folders of {folder}, but there are none.")
    return readable


def rows_of(batch: Any) -> NDArray[np.int64]:
    """Return the rows of a batch, (B,), from what `FolderDataset` put into it."""
    return torch.as_tensor(batch).cpu().numpy()
