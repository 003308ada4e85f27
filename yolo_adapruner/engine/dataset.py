"""Ultralytics' dataset by image path: who is in it, and the part that is kept. Knows no mask."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ultralytics.data.utils import img2label_paths

from yolo_adapruner.core.layout import Layout
from yolo_adapruner.engine.trouble import quiet
from yolo_adapruner.errors import DataError


def identity(im_file: str) -> str:
    """Return the path an image goes by: absolute, links kept, since label paths are derived from the spelled path."""
    return os.path.abspath(im_file)


def refuse_moving_labels(dataset: Any) -> None:
    """Refuse a set whose images have other labels by their absolute paths, in which a pruned list names them.

    Ultralytics puts `/labels/` for the last `/images/` of a path as it is spelled: of `images/a.jpg`, with no slash
    before, the labels lie beside the image; of `/set/images/a.jpg` they lie in `/set/labels`.

    Raises:
        DataError: names the first image, and where its labels are looked for.
    """
    for file in dataset.im_files:
        if (path := identity(file)) == file:
            continue
        spelled, absolute = (os.path.abspath(labels) for labels in img2label_paths([file, path]))
        if spelled != absolute and any(map(os.path.exists, (spelled, absolute))):
            raise DataError(
                f"Expected the labels of {path} in {absolute}, but the list of training images says {file}, by which "
                f"they lie in {spelled}: move the labels there, and write ./{file} or the absolute path into the list."
            )


def unique_paths(dataset: Any) -> list[str]:
    """Return each image of the dataset once, in the order of its sorted list (also under rect, which reorders)."""
    return sorted({identity(f) for f in dataset.im_files})


def skipped_paths(dataset: Any) -> list[str]:
    """Return the listed images that Ultralytics left out as unreadable or wrongly labelled."""
    drawn = random.getstate()  # listing the files again measures the disk on a random few of them
    with quiet():  # Ultralytics has said all it has to say of them
        listed = dataset.get_img_files(dataset.img_path)
    random.setstate(drawn)
    return sorted({identity(f) for f in listed} - {identity(f) for f in dataset.im_files})


def box_counts(dataset: Any, paths: Sequence[str]) -> list[int]:
    """Return the number of labelled boxes of each path."""
    counts = {identity(f): len(label["cls"]) for f, label in zip(dataset.im_files, dataset.labels, strict=True)}
    return [counts[p] for p in paths]


def layout(dataset: Any, paths: Sequence[str]) -> Layout:
    """Return where the labelled boxes of each path lie; of rotated ones, the upright boxes round them."""
    labels = {identity(f): label for f, label in zip(dataset.im_files, dataset.labels, strict=True)}
    own = [labels[p] for p in paths]
    return Layout([label["cls"] for label in own], [label["bboxes"] for label in own])


def extents(dataset: Any) -> NDArray[np.float64]:
    """Return how much of a square each row's image fills when it is alone in it, (rows,) in (0, 1]."""
    if dataset.rect:  # upstream threw the images' own shapes away; those of their batches are what they fill
        shapes = np.asarray(dataset.batch_shapes[dataset.batch], np.float64)
    else:
        shapes = np.array([label["shape"] for label in dataset.labels], np.float64)
    return np.asarray(shapes.min(1) / shapes.max(1))


def regroup(dataset: Any, rows: NDArray[np.integer]) -> bool:
    """Give the images that an epoch draws shapes by the batches that they then come in, and say whether any changed.

    Only under rect, where a batch has the shape of its images; rows are in the order they are drawn.
    """
    if not getattr(dataset, "rect", False):
        return False
    first, before = _first_shapes(dataset), dataset.batch_shapes[dataset.batch]
    batch, shapes = _grouped(first[rows], dataset.batch_size)
    rest = np.setdiff1d(np.arange(len(first)), rows)
    dataset.batch = np.empty(len(first), int)
    dataset.batch[rows], dataset.batch[rest] = batch, len(shapes) + np.arange(len(rest))
    dataset.batch_shapes = np.concatenate((shapes, first[rest]))
    return not np.array_equal(dataset.batch_shapes[dataset.batch], before)


def _first_shapes(dataset: Any) -> NDArray[np.integer]:
    """The shapes of the rows of a rect dataset as it was built, (rows, 2)."""
    if not hasattr(dataset, "first_shapes"):
        dataset.first_shapes = dataset.batch_shapes[dataset.batch]
    shapes: NDArray[np.integer] = dataset.first_shapes
    return shapes


def _grouped(shapes: NDArray[np.integer], batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Number of the batch of each image, and the batches' shapes, of images drawn in this order.

    Upstream sorted the images by shape and threw the shapes away. A batch's shape is the largest of its images' former
    ones, into which each is known to fit.
    """
    batch = np.arange(len(shapes)) // batch_size
    return batch, np.array([shapes[batch == i].max(0) for i in range(batch[-1] + 1)])


def subset(dataset: Any, keep: set[str], args: SimpleNamespace, *, traced: bool = False) -> Any:
    """Return a dataset of the images in `keep` alone, sharing labels and pixels cached in memory with `dataset`.

    Its batches are the stock ones, unless they are to be `traced` as before: nobody asks then whose pixels they are.

    Made in memory: building it anew from a list would read all labels again. Mosaic partners come from the part only.
    """
    part = copy(dataset)
    rows = [i for i, f in enumerate(dataset.im_files) if identity(f) in keep]
    part.im_files = [dataset.im_files[i] for i in rows]
    part.labels = [dataset.labels[i] for i in rows]
    part.npy_files = [dataset.npy_files[i] for i in rows]
    part.ni = len(rows)
    if part.rect:
        part.batch, part.batch_shapes = _grouped(_first_shapes(dataset)[rows], part.batch_size)
        part.first_shapes = part.batch_shapes[part.batch]
    for name in ("ims", "im_hw0", "im_hw"):
        # Without a cache these hold the mosaic buffer's images; an image there without its place in the buffer would
        # leave the buffer empty, and mosaic without partners.
        column = getattr(dataset, name)
        setattr(part, name, [column[i] if dataset.cache == "ram" else None for i in rows])
    part.buffer = []
    part.max_buffer_length = min(part.ni, part.batch_size * 8, 1000)
    part.tracing = traced
    with quiet():  # the same that were announced for the whole set
        part.transforms = part.build_transforms(hyp=copy(args))
    return part
