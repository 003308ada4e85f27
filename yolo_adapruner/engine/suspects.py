"""What a run's own detector sees in a few of its training images, for a reader to hold against their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_adapruner.data.boxes import ImageDetections
from yolo_adapruner.engine.detections import collect_listed

CONFIDENCE = 0.25
MOST = 50
"""Detections shown of an image: those above `CONFIDENCE`, the surest `MOST` of them."""


def seen(
    weights: str | Path, data: Mapping[str, Any], paths: Sequence[str], *, imgsz: int, batch: int, device: str | None
) -> dict[str, list[list[float]]]:
    """Return what a detector sees in some images: path → rows of class, confidence, x1, y1, x2, y2.

    Corners are shares of the image, in [0, 1] but for boxes that hang over the border. An image that cannot be read is
    left out.

    Args:
        weights: a detection checkpoint.
        data: the data set as a run's manifest holds it: `path` and `rest`.
        paths: absolute image paths, not empty.
        imgsz: side the images are letterboxed to, pixels.
        batch: images a forward pass.
        device: Ultralytics' `device`; None lets it choose.

    Raises:
        ConfigError, DataError: see `detections.collect`.
    """
    images = collect_listed(weights, data, paths, imgsz=imgsz, batch=batch, device=device)
    return {os.path.abspath(image.path): _rows(image) for image in images}


def _rows(image: ImageDetections) -> list[list[float]]:
    height, width = image.shape
    sure = [i for i in np.argsort(-image.scores, kind="stable") if image.scores[i] >= CONFIDENCE][:MOST]
    shares = image.boxes / (width, height, width, height)
    return [[int(image.classes[i]), float(image.scores[i]), *shares[i].tolist()] for i in sure]
