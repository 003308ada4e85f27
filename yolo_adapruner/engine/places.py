"""Which source image each pixel of a training sample came from, as a plane of small numbers that moves with the pixels.

A plane is (H/s, W/s) uint8: 0 where no source lies (padding), otherwise 1 + the source's position in the sample's own
list. At a step s of 1 it holds what lies in each pixel, at others what lies at the corner of every s-th pixel: anchors
of stride 2s and more have their centres exactly there, and a plane of step 4 costs a sixteenth of a full one.

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


def whole(shape: tuple[int, int]) -> Plane:
    """Return the plane of an image (height, width) that is one source all over."""
    return np.ones(shape, np.uint8)


def tiled(rectangles: Sequence[tuple[int, int, int, int]], size: int) -> Plane:
    """Return the plane of a square canvas with a source in each rectangle (x1, y1, x2, y2), later ones on top."""
    plane: Plane = np.zeros((size, size), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(rectangles, 1):
        plane[y1:y2, x1:x2] = number
    return plane


def warped(plane: Plane, matrix: NDArray[Any], size: tuple[int, int], *, perspective: bool, step: int = 1) -> Plane:
    """Return a full plane under a 3x3 matrix that takes source to target pixels, cropped to `size` (width, height)."""
    if step > 1:  # OpenCV's coordinates are 0 in the middle of the first pixel
        matrix = np.array([[1 / step, 0, 0.5 / step], [0, 1 / step, 0.5 / step], [0, 0, 1]]) @ matrix
    warp, coefficients = (cv2.warpPerspective, matrix) if perspective else (cv2.warpAffine, matrix[:2])
    return np.asarray(
        warp(plane, coefficients, dsize=(size[0] // step, size[1] // step), flags=cv2.INTER_NEAREST), np.uint8
    )


def flipped(plane: Plane, axis: int, *, step: int = 1) -> Plane:
    """Return the plane with an axis reversed: 0 upside down, 1 left to right."""
    turned: Plane = np.flip(plane, axis)
    if step == 1:
        return turned
    # Corners 0, s, .. W - s of the pixels became W, W - s, .. s: one on, and the last has no place in the plane.
    first = turned[:1] if axis == 0 else turned[:, :1]
    return np.concatenate((first, turned[:-1] if axis == 0 else turned[:, :-1]), axis)


def behind(plane: Plane, sources: int) -> Plane:
    """Return the plane renumbered to follow `sources` others, padding left as it is."""
    return np.where(plane > 0, plane + np.uint8(sources), plane)


def pasted(plane: Plane, donor: Plane, mask: NDArray[np.uint8]) -> Plane:
    """Return the plane with the donor's numbers where a mask over all pixels is not 0."""
    step = len(mask) // len(plane)
    return np.where(mask[::step, ::step] > 0, donor, plane)


def areas(plane: Plane, sources: int) -> NDArray[np.float32]:
    """Return how much of the plane each source covers, (sources,) in its own cells, padding left out."""
    counts = cv2.calcHist([np.ascontiguousarray(plane)], [0], None, [256], [0, 256])
    return np.asarray(counts.ravel()[1 : sources + 1], np.float32)  # (256, 1) or (256,) by OpenCV's version


def filled(plane: Plane) -> Plane:
    """Return the plane with padding given to the nearest source, marked by `PADDING`.

    Nearest as the pixels lie in the sample. Where there is no source at all it is the first.
    """
    empty = plane == 0
    if not empty.any():
        return plane
    if plane.max() <= 1:  # none but the first: there is nothing to measure
        return np.where(empty, np.uint8(1 | PADDING), plane)
    _, nearest = cv2.distanceTransformWithLabels(empty.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    number = np.zeros(int(nearest.max()) + 1, np.uint8)
    number[nearest[~empty]] = plane[~empty]
    return np.where(empty, number[nearest] | np.uint8(PADDING), plane)
