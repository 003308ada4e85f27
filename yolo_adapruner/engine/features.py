"""What each image of a batch looks like, to the eye and to the detector: a short vector, off the training forward.

It is pooled from the picture that the first layer is given and from the finest feature map that the head is given: mean
and spread of each channel in 4 x 4 fields of the picture, left and right taken together since most recipes flip. A
detector that has learned little yet has much the same map for all photographs; that two are the same shows in their
pixels, and what augmentation does to those is for the comparison to know. Where images are mixed, the fields divide the
part of the picture that an image is seen in. A fixed random projection makes each of the two short. Costs two poolings
a step; draws from a generator of its own. Knows no mask and does not know what the vectors are compared for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from yolo_adapruner.engine.owners import Ownership
from yolo_adapruner.engine.places import PADDING

_FIELDS = 4
_SLOTS = _FIELDS * (_FIELDS // 2)
_PIXELS = 4  # one number in so many is of the pixels, at most
_SMALLEST = 4  # cells of the map that a part must cover to say anything


class FeatureTap:
    """Reads off each training forward of a model, by a hook on its first and its last layer that changes nothing.

    Args:
        first: the model's first layer, which is given the pictures.
        head: its last layer, which is given the feature maps, finest first. Neither of a copy: what is copied or saved
            of the model before this, as the averaged model is, carries no hook.
        size: length of an image's vector, D.

    Attributes:
        watching: whether to.
    """

    def __init__(self, first: Any, head: Any, size: int) -> None:
        self.size, self.watching = size, False
        self._map: Tensor | None = None
        self._picture: Tensor | None = None
        self._projections: dict[tuple[int, int], Tensor] = {}
        self._handles = [head.register_forward_pre_hook(self._note), first.register_forward_pre_hook(self._see)]

    def _note(self, head: Any, inputs: tuple[Any, ...]) -> None:
        if not (self.watching and head.training):
            return
        first = inputs[0][0] if isinstance(inputs[0], list | tuple) else inputs[0]
        self._map = first.detach()

    def _see(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        if self.watching and layer.training:
            self._picture = inputs[0].detach()

    def take(self, owners: Ownership | None) -> Tensor | None:
        """Return the batch's vectors, (K, D) float32, in the order of its owners, and forget it; None without a batch.

        NaN for an owner of whom too little is seen.
        """
        seen, picture, self._map, self._picture = self._map, self._picture, None, None
        if seen is None or picture is None:
            return None
        with torch.no_grad():
            picture = F.adaptive_avg_pool2d(picture.float(), (seen.shape[2], seen.shape[3]))
            both = torch.cat((picture, seen.float()), 1)
            pooled = _pooled(both) if owners is None else _pooled_by_owner(both, owners)
            by_channel = pooled.view(len(pooled), 2, both.shape[1], _SLOTS)
            colours, maps = (part.flatten(1) for part in by_channel.split((picture.shape[1], seen.shape[1]), 2))
            short = min(self.size // _PIXELS, colours.shape[1])
            return torch.cat((self._projected(colours, short), self._projected(maps, self.size - short)), 1)

    def _projected(self, pooled: Tensor, size: int) -> Tensor:
        """Return rows (K, W) made (K, size) by a fixed random projection, or as they are if they are of that size."""
        width = pooled.shape[1]
        if size == width:
            return pooled
        drawn = self._projections.get((width, size))
        if drawn is None:
            generator = torch.Generator().manual_seed(0)  # on the CPU: the same on every device and rank
            drawn = torch.randn(width, size, generator=generator) / width**0.5
        drawn = self._projections[width, size] = drawn.to(pooled.device)
        return pooled @ drawn

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._map = self._picture = None


def _pooled(x: Tensor) -> Tensor:
    """Mean and spread of each channel in each field of whole pictures, (B, C, h, w) -> (B, 2 * C * fields)."""
    moments = []
    for power in (x, x * x):
        fields = F.adaptive_avg_pool2d(power, _FIELDS)
        moments.append(((fields + fields.flip(3)) / 2)[..., : _FIELDS // 2].flatten(1))
    return _mean_and_spread(*moments)


def _mean_and_spread(mean: Tensor, square: Tensor) -> Tensor:
    return torch.cat((mean, (square - mean**2).clamp_min(0).sqrt()), 1)


def _pooled_by_owner(x: Tensor, owners: Ownership) -> Tensor:
    """The same by owner, (K, 2 * C * fields), over all parts it is seen in, by their size; NaN where there is none."""
    batch, channels = x.shape[:2]
    part, share, cell = _parts(owners, x.shape[2:])
    sources = owners.table.shape[1]
    count = batch * sources
    image, row, column = cell
    slot = part * _SLOTS + _field(part, row, count) * (_FIELDS // 2) + _halved(_field(part, column, count))
    values = x[image, :, row, column]
    flat = torch.cat((share[:, None], values * share[:, None], values**2 * share[:, None]), 1)
    by_slot = flat.new_zeros(count * _SLOTS, flat.shape[1]).index_add_(0, slot, flat).view(count, _SLOTS, -1)
    whole = by_slot.sum(1, keepdim=True)
    # A field that a part leaves empty, as one of odd shape does, looks like the part.
    by_slot = torch.where(by_slot[..., :1] > 0, by_slot, whole)
    moments = (by_slot[..., 1:] / by_slot[..., :1]).transpose(1, 2)
    vectors = _mean_and_spread(moments[:, :channels].flatten(1), moments[:, channels:].flatten(1))
    size = whole[:, 0, 0]
    size = torch.where(size >= _SMALLEST, size, 0)
    vectors = torch.where(size[:, None] > 0, vectors, 0) * size[:, None]
    owner = owners.table.flatten()
    total = size.new_zeros(owners.count).index_add_(0, owner, size)
    summed = vectors.new_zeros(owners.count, vectors.shape[1]).index_add_(0, owner, vectors)
    return summed / torch.where(total > 0, total, torch.nan)[:, None]


def _parts(owners: Ownership, shape: torch.Size) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Which source each cell of a map shows, padding left out: its number, the cell's share, (image, row, column)."""
    layers, height, width = owners.planes.shape[1:]
    device = owners.planes.device
    y = ((torch.arange(shape[0], device=device) + 0.5) * (height / shape[0])).long()
    x = ((torch.arange(shape[1], device=device) + 0.5) * (width / shape[1])).long()
    planes = owners.planes[:, :, y][..., x]
    shares = torch.ones(planes.shape, device=device)
    if layers > 1:
        first = owners.blend[:, :, None].expand_as(planes[:, 0]).float()
        first = first.masked_fill(planes[:, 0] == planes[:, 1], 1)  # not blended here: one source has all of it
        shares = torch.stack((first, 1 - first), 1)
    real = ((planes & PADDING) == 0) & (shares > 0)
    image, layer, row, column = real.nonzero(as_tuple=True)
    number = planes[image, layer, row, column].long() - 1
    part = image * owners.table.shape[1] + number
    return part, shares[image, layer, row, column], (image, row, column)


def _field(part: Tensor, at: Tensor, count: int) -> Tensor:
    """Which of the fields along an axis each cell lies in, of the range of its part."""
    low = at.new_full((count,), torch.iinfo(at.dtype).max).scatter_reduce_(0, part, at, "amin")[part]
    high = at.new_full((count,), -1).scatter_reduce_(0, part, at, "amax")[part]
    return (at - low) * _FIELDS // (high - low + 1)


def _halved(field: Tensor) -> Tensor:
    return torch.minimum(field, _FIELDS - 1 - field)
