"""Tries albumentations transforms on a picture before a run begins, where it costs a moment and one line.

Ultralytics passes over what it cannot compose with a note in the log, and what changes a picture's size ends a run in
the loader. This module does not know where the transforms come from, nor the data set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from yolo_adapruner.augmentations import library
from yolo_adapruner.engine.trouble import one_line
from yolo_adapruner.errors import ConfigError

_TRIES = 4


def try_out(transforms: Sequence[Mapping[str, Any]], size: int, channels: int, *, rect: bool = False) -> None:
    """Apply each transform to a picture, and refuse what does not give one back that a batch can hold.

    Global random states stay as they are.

    Args:
        transforms: as albumentations' `to_dict` gives them.
        size: side of the network input in pixels.
        channels: colour channels of the pictures.
        rect: whether pictures may be other than square.

    Raises:
        ConfigError: every transform that fails, or changes a picture's size or number format.
    """
    if transforms and channels not in (1, 3):
        raise ConfigError(
            f"Expected pictures of 1 or 3 channels for augmentations, but these have {channels}: set augmentations to "
            "[]."
        )
    shapes = [(size, size, channels), *([(size, max(size // 2, 32), channels)] if rect else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        units = [unit for spec in transforms for unit in _units(library().from_dict(dict(spec)))]
        faults = [next(filter(None, (_misfit(unit, shape) for shape in shapes)), None) for unit in units]
    if found := list(dict.fromkeys(filter(None, faults))):
        raise ConfigError(f"Expected augmentations that fit a batch, but {'; '.join(found)}: change augmentations.")


def _units(transform: Any) -> Iterator[Any]:
    """The parts of a transform that have to give a picture of the size they got: those that may be left out.

    A sequence whose members all run whenever it does may change the size on its way.
    """
    a = library()
    sequence = isinstance(transform, a.Compose | a.Sequential) and all(part.p == 1 for part in transform.transforms)
    if isinstance(transform, a.BaseCompose) and not (sequence or isinstance(transform, a.SelectiveChannelTransform)):
        for part in transform.transforms:
            yield from _units(part)
    else:
        yield transform


def _misfit(unit: Any, shape: tuple[int, int, int]) -> str | None:
    """What is wrong with what a transform makes of a picture of `shape` (height, width, channels), or None."""
    a, name = library(), type(unit).__name__
    unit.p = 1
    # As Ultralytics composes what moves pixels.
    boxes = a.BboxParams(format="yolo", label_fields=["class_labels"])
    points = a.KeypointParams(format="xy", remove_invisible=False)
    pipeline = a.Compose([unit], bbox_params=boxes, keypoint_params=points, seed=0)
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for i in range(_TRIES):
        objects = i % 2  # pictures without any have to pass as well
        given = {
            "bboxes": np.full((objects, 4), 0.5),
            "class_labels": np.zeros(objects),
            "keypoints": np.full((objects, 2), 16.0),
        }
        try:
            result = pipeline(image=picture.copy(), **given)["image"]
        except Exception as error:  # each fails in its own way
            return f"{name} fails on {_words(shape)} pixels ({one_line(error)})"
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
            return f"{name} gives {getattr(result, 'dtype', type(result).__name__)} for uint8"
        if result.shape != shape:
            return f"{name} gives {_words(result.shape)} pixels for {_words(shape)}"
    return None


def _words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
