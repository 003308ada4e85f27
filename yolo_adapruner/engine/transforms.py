"""Ultralytics' training transforms, each of which also tells what it did with whose pixels and labels.

Every transform that moves or mixes pixels has a subclass here that does the stock one's work and then the same to the
sample's `Trace`. It draws no random number: images, labels and random state stay bitwise the stock ones. A label
carries its source through the transforms in the class number itself, the one thing that all of them keep beside the
box; a pixel by a plane of source numbers (`places`). This module knows no dataset and no batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data import augment

from yolo_adapruner.engine import places
from yolo_adapruner.engine.places import Plane
from yolo_adapruner.errors import ConfigError

KEY = "sources"
"""Where a sample keeps its `Trace` on the way, its `Sample` at the end, and a batch what became of these."""


@dataclass
class Trace:
    """A sample on its way through the transforms: dataset rows of its sources, planes by layer (none: one source)."""

    rows: list[int]
    planes: list[Plane] = field(default_factory=list)
    blend: float = 1.0


class Sample(NamedTuple):
    """A finished sample's part of a batch's `attribution.Sources`: S sources, N labels, L layers."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    planes: NDArray[np.uint8]
    blend: float
    areas: NDArray[np.float32]


# Upstream's transforms hand one set of parameters to apply_image, apply_instances and apply_semantic in turn; the last
# is for masks that detection does not have, and the place where a plane of ours is moved by the same parameters.


class _Mosaic(augment.Mosaic):
    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        layout = params["layout"]
        edges = ("x1a", "y1a", "x2a", "y2a") if self.n == 4 else ("x1", "y1", "x2", "y2")
        plane = places.tiled([tuple(tile[e] for e in edges) for tile in layout], self.imgsz * (2 if self.n == 4 else 3))
        if self.n == 9:  # upstream cuts the middle out of its larger canvas
            x, y = self.border
            plane = plane[-x:x, -y:y]
        labels[KEY] = Trace([tile["labels_patch"][KEY].rows[0] for tile in layout], [plane])
        return labels


class _RandomPerspective(augment.RandomPerspective):
    step: int

    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        trace = labels[KEY]
        trace.planes = [
            places.warped(plane, params["M"], params["size"], perspective=bool(self.perspective), step=self.step)
            for plane in trace.planes or [places.whole(params["orig_shape"])]
        ]
        return labels


class _CopyPaste(augment.CopyPaste):
    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        trace, mask = labels[KEY], params["im_new"]
        if self.mode == "flip":  # of one source alone nothing changes hands
            trace.planes = [places.pasted(plane, places.flipped(plane, 1), mask) for plane in trace.planes]
        else:
            _paste(trace, labels["mix_labels"][0][KEY], mask)
        return labels


class _MixUp(augment.MixUp):
    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        first, second = labels[KEY], labels["mix_labels"][0][KEY]
        labels[KEY] = Trace(
            first.rows + second.rows,
            [first.planes[0], places.behind(second.planes[0], len(first.rows))],
            float(params["r"]),
        )
        return labels


class _CutMix(augment.CutMix):
    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        if not params.get("skip"):
            x1, y1, x2, y2 = params["area"].astype(np.int32)
            mask = np.zeros(labels["img"].shape[:2], np.uint8)
            mask[y1:y2, x1:x2] = 1
            _paste(labels[KEY], labels["mix_labels"][0][KEY], mask)
        return labels


def _paste(trace: Trace, donor: Trace, mask: NDArray[np.uint8]) -> None:
    given = places.behind(donor.planes[0], len(trace.rows))
    trace.planes = [places.pasted(plane, given, mask) for plane in trace.planes]
    trace.rows = trace.rows + donor.rows


class _RandomFlip(augment.RandomFlip):
    step: int

    def apply_semantic(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        labels = super().apply_semantic(labels, params)
        if params["flip"]:
            axis = 0 if params["direction"] == "vertical" else 1
            labels[KEY].planes = [places.flipped(plane, axis, step=self.step) for plane in labels[KEY].planes]
        return labels


class _Albumentations(augment.Albumentations):
    transform: Any

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        if self.transform is None or not self.contains_spatial:
            return super().__call__(labels)
        trace, inner = labels[KEY], self.transform
        # Albumentations moves a mask, of any number of channels, along with the image, by the nearest pixel.
        self.transform = with_mask = _WithMask(inner, np.stack(trace.planes, -1))
        try:
            labels = super().__call__(labels)
        finally:
            self.transform = inner
        # Upstream throws an image away that lost all of its boxes, and keeps the one before.
        if with_mask.image is labels["img"]:
            moved = with_mask.mask.reshape(*with_mask.mask.shape[:2], -1)
            trace.planes = [np.ascontiguousarray(moved[..., i]) for i in range(moved.shape[2])]
        return labels


class _WithMask:
    """Stands in for an albumentations pipeline and passes a mask through it beside what it is given."""

    def __init__(self, inner: Any, mask: NDArray[np.uint8]) -> None:
        self.inner, self.mask, self.image = inner, mask, None

    def __call__(self, **data: Any) -> Any:
        answer = self.inner(**data, mask=self.mask)
        self.image, self.mask = answer["image"], answer["mask"]
        return answer

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class _Format(augment.Format):
    classes: int

    def apply_instances(self, labels: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        trace = labels.pop(KEY)
        rows = np.asarray(trace.rows)
        row, params["cls"] = np.divmod(params["cls"], self.classes)
        # By position now: upstream puts these numbers through float32 where there are masks.
        position = np.argmax(row.reshape(-1, 1) == rows, 1)
        params["cls"] = (params["cls"] + self.classes * position.reshape(-1, 1)).astype(np.float32)
        labels = super().apply_instances(labels, params)
        position, cls = np.divmod(labels["cls"].numpy(), self.classes)
        labels["cls"] = torch.from_numpy(cls)
        if "sem_masks" in labels:
            labels["sem_masks"] = labels["sem_masks"].remainder(self.classes)
        labels[KEY] = _finished(trace, rows[position.astype(np.int64).ravel()])
        return labels


def _finished(trace: Trace, labels: NDArray[np.int64]) -> Sample:
    shares = (trace.blend, 1 - trace.blend)
    assert len(trace.rows) <= places.MAX_SOURCES
    seen = [share * places.areas(plane, len(trace.rows)) for share, plane in zip(shares, trace.planes, strict=False)]
    planes = np.stack([places.filled(plane) for plane in trace.planes])
    areas: NDArray[np.float32] = np.sum(seen, 0, dtype=np.float32)
    return Sample(np.asarray(trace.rows), labels, planes, trace.blend, areas)


_TRACED: dict[type, type] = {
    augment.Mosaic: _Mosaic,
    augment.RandomPerspective: _RandomPerspective,
    augment.CopyPaste: _CopyPaste,
    augment.MixUp: _MixUp,
    augment.CutMix: _CutMix,
    augment.RandomFlip: _RandomFlip,
    augment.Albumentations: _Albumentations,
    augment.Format: _Format,
}
_COLOUR_ONLY = (augment.RandomHSV,)


def traced(transform: Any, classes: int, step: int) -> Any:
    """Turn a tree of freshly built stock transforms into ours, in place, and return it.

    Args:
        transform: a stock transform, or a composition of them.
        classes: number of classes; a label of class c and dataset row r comes as c + classes * r.
        step: pixels between the places told, 1 where albumentations move pixels, which need a mask of the image's size.

    Raises:
        ConfigError: what a transform does with the sources is not known.
    """
    if isinstance(transform, augment.Compose):
        transform.transforms = [traced(part, classes, step) for part in transform.transforms]
        return transform
    if isinstance(transform, (*_TRACED.values(), *_COLOUR_ONLY)):  # some stand in the tree twice
        return transform
    if type(transform) not in _TRACED:
        raise ConfigError(
            f"Expected the transforms of Ultralytics' training recipe, but got {type(transform).__name__}: whose "
            "pixels it puts where is not known."
        )
    transform.__class__ = _TRACED[type(transform)]
    transform.classes, transform.step = classes, step
    if getattr(transform, "pre_transform", None) is not None:
        transform.pre_transform = traced(transform.pre_transform, classes, step)
    return transform
