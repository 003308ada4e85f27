"""Ultralytics' training set, whose samples say which source image each of their labels and pixels came from.

How they are carried through the transforms is in `transforms`. This module does not know what is done with the answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.data.dataset import YOLODataset

from yolo_adapruner.engine.labelcache import FreshLabels
from yolo_adapruner.engine.transforms import KEY, Sample, Trace, traced
from yolo_adapruner.errors import ConfigError


class Sources(NamedTuple):
    """Where the labels and pixels of a batch came from; B samples, N labels, at most S sources and L layers a sample.

    Attributes:
        rows: dataset row of each source, (B, S) int64, -1 where a sample has fewer.
        labels: dataset row each label came from, (N,) int64, in the order of the batch's labels.
        planes: (B, L, H/s, W/s) uint8, 1 + position among the sample's sources, with `places.PADDING` set where the
            source is only the nearest one. Two layers where an image of the batch is a blend, otherwise one.
        blend: the first layer's share of each sample, (B,) float32 in [0, 1].
        areas: cells of the plane each source is seen in, a blended one by its share, (B, S) float32.
    """

    rows: Tensor
    labels: Tensor
    planes: Tensor
    blend: Tensor
    areas: Tensor


class AttributedDataset(FreshLabels):
    """Ultralytics' dataset, bitwise, with `Sources` in its batches beside what is there anyway.

    Attributes:
        tracing: whether they are; rebuild the transforms after a change.
        step: pixels between the places that are told; 1 wherever spatial albumentations move the pixels.
    """

    tracing = True
    step = 1

    @classmethod
    def adopt(cls, dataset: Any, step: int = 1) -> AttributedDataset:
        """Turn a stock dataset that was just built into one of this class, in place.

        Building it a second time would scan and cache the images again; and its transforms hold on to this object.

        Args:
            dataset: an Ultralytics dataset for training.
            step: pixels between the places to tell, a divisor of the image sizes. Exact for anchors of stride 2 x step
                and more, as long as nobody resizes the images afterwards.

        Raises:
            ConfigError: the dataset is of another kind, or a transform's effect on the sources is not known.
        """
        if type(dataset) not in (YOLODataset, FreshLabels):
            raise ConfigError(
                f"Expected a plain image data set, but got a {type(dataset).__name__}: its images cannot be told apart "
                "once they are mixed."
            )
        dataset.__class__ = cls
        dataset.step = step
        dataset.transforms = dataset._traced(dataset.transforms)
        return dataset

    def build_transforms(self, hyp: Any) -> Any:
        """Build Ultralytics' transforms, and have them carry the sources along."""
        transforms = super().build_transforms(hyp)
        return self._traced(transforms) if self.tracing else transforms

    def _traced(self, transforms: Any) -> Any:
        spatial = any(getattr(transform, "contains_spatial", False) for transform in transforms.transforms)
        return traced(transforms, len(self.data["names"]), 1 if spatial else self.step)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return an image and its labels as Ultralytics does, with the row written into each class number."""
        labels = super().get_image_and_label(index)
        if self.tracing:
            labels[KEY] = Trace([index])
            # In float64, which holds rows x classes exactly.
            labels["cls"] = labels["cls"].astype(np.float64) + float(index) * len(self.data["names"])
        return labels

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate as Ultralytics does, and the sources into one `Sources`."""
        samples = [sample.pop(KEY) for sample in batch if KEY in sample]
        together = YOLODataset.collate_fn(batch)
        if samples:
            together[KEY] = _together(samples)
        return together


def _together(samples: list[Sample]) -> Sources:
    widest = max(len(sample.rows) for sample in samples)
    layers = max(len(sample.planes) for sample in samples)

    def pad(values: NDArray[Any], fill: float) -> NDArray[Any]:
        missing = widest - len(values)
        return np.pad(values, (0, missing), constant_values=fill) if missing else values

    planes = [np.broadcast_to(s.planes, (layers, *s.planes.shape[1:])) if layers > 1 else s.planes for s in samples]
    return Sources(
        rows=torch.from_numpy(np.stack([pad(s.rows, -1) for s in samples])),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples])),
        planes=torch.from_numpy(np.stack(planes)),
        blend=torch.tensor([s.blend for s in samples], dtype=torch.float32),
        areas=torch.from_numpy(np.stack([pad(s.areas, 0) for s in samples])),
    )
