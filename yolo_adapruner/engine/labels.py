"""What the labels of Ultralytics' dataset say about each image, as groups that a selection must not lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolo_adapruner.core.floors import BACKGROUND, CLASS, SIZE, Groups
from yolo_adapruner.engine import dataset as images

SIZES = ("small", "medium", "large")
_EDGES = (32.0**2, 96.0**2)  # COCO's, in square pixels


def groups(dataset: Any, paths: Sequence[str], names: Mapping[int, str], imgsz: int) -> Groups:
    """Return the boxes of each class and size, and the images without boxes, by image.

    A box is small below 32² and large from 96² square pixels on, as COCO has it, at the size the images are trained at:
    an object of 200 px in a photograph of 4000 is a small one to a network that sees 640.

    Args:
        dataset: Ultralytics' dataset; its labels are read already.
        paths: the training images, N; an image listed twice counts once.
        names: class names by number.
        imgsz: training size in pixels, of the longer side.
    """
    row = {path: i for i, path in enumerate(paths)}
    number = np.array([row[images.identity(f)] for f in dataset.im_files], np.int64)
    once = np.unique(number, return_index=True)[1]
    fill = images.extents(dataset)
    labels = [dataset.labels[i] for i in once]
    count = np.array([len(label["cls"]) for label in labels], np.int64)
    boxes = np.concatenate([np.asarray(label["bboxes"], np.float64).reshape(-1, 4) for label in labels])
    classes = np.concatenate([np.asarray(label["cls"]).reshape(-1) for label in labels]).astype(np.int64)
    owner = np.repeat(number[once], count)
    area = boxes[:, 2] * boxes[:, 3] * np.repeat(fill[once], count) * float(imgsz) ** 2
    size = len(names) + np.searchsorted(_EDGES, area, side="right")
    empty = number[once][count == 0]
    return Groups.of(
        np.concatenate([owner, owner, empty]),
        np.concatenate([classes, size, np.full(len(empty), len(names) + len(SIZES))]),
        [CLASS] * len(names) + [SIZE] * len(SIZES) + [BACKGROUND],
        [*_distinct(names), *SIZES, BACKGROUND],
    )


def _distinct(names: Mapping[int, str]) -> list[str]:
    """Class names by number, those that several classes bear with their number behind."""
    borne = Counter(names.values())
    return [str(names[c]) if borne[names[c]] == 1 else f"{names[c]} ({c})" for c in sorted(names)]
