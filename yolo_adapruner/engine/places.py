"""Which source image each pixel of a training sample came from, as a plane of small numbers that moves with the pixels.

A plane is (H, W) uint8: 0 where no source lies (padding), otherwise 1 + the source's position in the sample's own list.
Pure functions, one for each kind of move; they draw no random number. This module knows neither Ultralytics' transforms
nor what a source is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]

MAX_SOURCES = 127
"""More than any recipe mixes: two mosaics of nine with as many donors are 54."""
PADDING = 0x80
"""Set in a filled plane where the source is only the nearest one: no pixel of it lies there."""
_FILL_STEP = 4
"""Pixels to which the nearest source of padding is found: half of the finest anchor spacing in use."""


def whole(shape: tuple[int, int]) -> Plane:
    """Return the plane of an image (height, width) that is one source all over."""
    return np.ones(shape, np.uint8)


def tiled(rectangles: Sequence[tuple[int, int, int, int]], size: int) -> Plane:
    """Return the plane of a square canvas with a source in each rectangle (x1, y1, x2, y2), later ones on top."""
    plane: Plane = np.zeros((size, size), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(rectangles, 1):
        plane[y1:y2, x1:x2] = number
    return plane


def warped(plane: Plane, matrix: NDArray[Any], size: tuple[int, int], *, perspective: bool) -> Plane:
    """Return the plane under a 3x3 matrix that takes source to target pixels, cropped to `size` (width, height)."""
    warp, coefficients = (cv2.warpPerspective, matrix) if perspective else (cv2.warpAffine, matrix[:2])
    return np.asarray(warp(plane, coefficients, dsize=size, flags=cv2.INTER_NEAREST), np.uint8)


def behind(plane: Plane, sources: int) -> Plane:
    """Return the plane renumbered to follow `sources` others, padding left as it is."""
    return np.where(plane > 0, plane + np.uint8(sources), plane)


def pasted(plane: Plane, donor: Plane, mask: NDArray[np.uint8]) -> Plane:
    """Return the plane with the donor's numbers where the mask is not 0."""
    return np.where(mask > 0, donor, plane)


def areas(plane: Plane, sources: int) -> NDArray[np.float32]:
    """Return how many pixels each source covers, (sources,), padding left out."""
    counts = cv2.calcHist([np.ascontiguousarray(plane)], [0], None, [256], [0, 256])
    return np.asarray(counts.ravel()[1 : sources + 1], np.float32)  # (256, 1) or (256,) by OpenCV's version


def filled(plane: Plane) -> Plane:
    """Return the plane with padding given to the nearest source, marked by `PADDING`.

    Nearest as the pixels lie in the sample, found to four pixels. Where there is no source at all it is the first.
    """
    empty = plane == 0
    if not empty.any():
        return plane
    coarse = plane[::_FILL_STEP, ::_FILL_STEP]
    if not coarse.any():
        coarse = plane
    if not coarse.any():
        return np.full_like(plane, 1 | PADDING)
    _, nearest = cv2.distanceTransformWithLabels(
        (coarse == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(nearest.max()) + 1, np.uint8)
    number[nearest[coarse > 0]] = coarse[coarse > 0]
    near = cv2.resize(number[nearest], plane.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where(empty, near | np.uint8(PADDING), plane)
