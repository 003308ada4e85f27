"""Copies of an image: the same picture encoded anew, or nearly the same with its boxes moved along. Knows no set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.source import EMPTY, Labels
from yolo_adapruner.errors import DataError

CROP = 0.95
"""Side of a cropped near duplicate, as a share of the original's."""
MOVE, ZOOM = 0.04, (0.95, 1.06)
"""Largest shift (share of the side) and range of zoom of the next frame of a video."""
LIGHT = (0.05, 0.2)
"""How far the brightness goes up or down, as a share of its range."""
QUALITY, NEAR_QUALITY = 95, (60, 90)
_VISIBLE = 0.3  # a box of which less stays in the picture goes
_TRIES = 10

Picture = NDArray[np.uint8]


def read_picture(file: Path) -> Picture:
    """Return an image file's pixels, (h, w) where it is grey and (h, w, 3) BGR where it is not, turned as EXIF says.

    Raises:
        DataError: it cannot be decoded.
    """
    picture = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_ANYCOLOR)
    if picture is None:
        raise DataError(f"Expected an image that can be copied, but {file} cannot be decoded: take it out of the set.")
    return np.asarray(picture, np.uint8)


def encode(picture: Picture, suffix: str, quality: int) -> bytes:
    """Return the bytes of an image file of the format that `suffix` names."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, picture, flags)
    if not done:
        raise DataError(f"Expected to write a copy as {suffix}, but OpenCV cannot.")
    return data.tobytes()


def exact(file: Path) -> tuple[str, bytes]:
    """Return suffix and bytes of the same picture encoded anew: bit for bit the same pixels, or a JPEG of quality 95.

    The labels are the original's.
    """
    suffix = ".png" if file.suffix.lower() in (".png", ".bmp", ".tif", ".tiff") else ".jpg"
    return suffix, encode(read_picture(file), suffix, QUALITY)


def near(file: Path, labels: Labels, rng: np.random.Generator) -> tuple[str, bytes, Labels]:
    """Return suffix, bytes and labels of a near duplicate.

    Always made brighter or darker by 5 to 20 % of the range and encoded anew as JPEG of quality 60 to 90; on top of
    that, evenly: nothing, cropped by 5 % a side at a drawn place, or moved like the next frame of a video (shifted
    by up to 4 % each way and zoomed by -5 to +6 %, the border repeated). Boxes follow by albumentations: cut at the
    border, and gone where less than 30 % of one is left. A draw that loses all boxes of an image that had some is
    repeated.
    """
    picture = read_picture(file)
    for _ in range(_TRIES):
        changed, moved = _drawn(picture, labels, rng)
        if len(moved) or not len(labels):
            break
    else:
        changed, moved = _drawn(picture, labels, rng, geometry=0)
    return ".jpg", encode(changed, ".jpg", int(rng.integers(NEAR_QUALITY[0], NEAR_QUALITY[1] + 1))), moved


def _drawn(
    picture: Picture, labels: Labels, rng: np.random.Generator, geometry: int | None = None
) -> tuple[Picture, Labels]:
    a = _albumentations()
    light = float(rng.uniform(*LIGHT) * rng.choice([-1, 1]))
    steps = [a.RandomBrightnessContrast(brightness_limit=(light, light), contrast_limit=(0, 0), p=1.0)]
    height, width = picture.shape[:2]
    moves = [
        [],
        [a.RandomCrop(height=max(1, round(CROP * height)), width=max(1, round(CROP * width)), p=1.0)],
        [
            a.Affine(
                scale=ZOOM,
                translate_percent=(-MOVE, MOVE),
                keep_ratio=True,
                border_mode=cv2.BORDER_REPLICATE,  # reflected borders would come with reflected boxes
                p=1.0,
            )
        ],
    ]
    steps += moves[int(rng.integers(len(moves))) if geometry is None else geometry]
    solid = labels.take(np.flatnonzero((labels.boxes[:, 2:] > labels.boxes[:, :2]).all(1)))
    if len(steps) == 1:
        return a.Compose(steps, seed=int(rng.integers(2**31)))(image=picture)["image"], solid
    boxes = a.BboxParams(format="albumentations", label_fields=["classes"], min_visibility=_VISIBLE, clip=True)
    compose = a.Compose(steps, bbox_params=boxes, seed=int(rng.integers(2**31)))
    out = compose(image=picture, bboxes=solid.boxes, classes=solid.classes)
    if not len(out["bboxes"]):
        return out["image"], EMPTY
    return out["image"], Labels(np.asarray(out["classes"], np.int64), np.asarray(out["bboxes"], float))


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # read at import; without it the import calls home
    import albumentations

    return albumentations
