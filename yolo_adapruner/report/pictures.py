"""Small copies of images for a page that stands alone: data URIs, as many as a budget of bytes allows. Knows no run."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from yolo_adapruner.data.source import is_text

SIDE, QUALITY = 480, 76
"""Longest side of a copy in pixels, and its JPEG quality."""
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits, which it would clip where a detector's reader scales


@dataclass(frozen=True)
class Picture:
    """A copy of an image: its size in pixels and itself as a data URI."""

    width: int
    height: int
    uri: str


def copies(paths: Iterable[str], budget: int) -> dict[str, Picture]:
    """Return copies of the images that come first, by path, until their URIs together would exceed `budget` bytes.

    One that cannot be decoded is left out.
    """
    made: dict[str, Picture] = {}
    for path in paths:
        if path in made or (picture := copy_of(path)) is None:
            continue
        budget -= len(picture.uri)
        if budget < 0:
            break
        made[path] = picture
    return made


def copy_of(path: str) -> Picture | None:
    """Return a copy of an image file, turned as EXIF says, or None where it cannot be read."""
    # Ultralytics, where it is loaded, has Pillow install a plug-in for a file that Pillow does not know.
    if is_text(path) and not cv2.haveImageReader(path):
        return None
    try:
        with warnings.catch_warnings(), Image.open(os.fsencode(path)) as image:
            warnings.simplefilter("ignore")  # large images, odd EXIF: all there is to do is to try
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = _as_read(path) if image.mode.startswith(_DEEP) else ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((SIDE, SIDE))
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    except (OSError, ImportError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None
    return Picture(*small.size, "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))


def _as_read(path: str) -> Image.Image:
    """The pixels as the detector has them, 8 bits each."""
    pixels = cv2.imdecode(np.fromfile(os.fsencode(path), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise OSError(f"{path} cannot be decoded")
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
