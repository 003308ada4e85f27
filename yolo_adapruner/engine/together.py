"""Several batches' assignments as one of all their entries and owners, so that one pass reads them.

Knows no reading and no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.owners import Owned


def together(parts: Sequence[Assignment]) -> Assignment:
    """Return assignments as one, the entries and owners of the first before those of the next.

    Args:
        parts: one or more over the same anchors and classes, all of them mixed or none.
    """
    if len(parts) == 1:
        return parts[0]
    owned = [part.owned for part in parts if part.owned is not None]
    return Assignment(
        scores=torch.cat([part.scores for part in parts]),
        boxes=torch.cat([part.boxes for part in parts]),
        gt_labels=rows_together([part.gt_labels for part in parts]),
        gt_boxes=rows_together([part.gt_boxes for part in parts]),
        gt_valid=rows_together([part.gt_valid for part in parts]),
        foreground=torch.cat([part.foreground for part in parts]),
        gt_index=torch.cat([part.gt_index for part in parts]),
        owned=_owned_together(owned) if owned else None,
        centres=parts[0].centres,
    )


def rows_together(parts: Sequence[Tensor]) -> Tensor:
    """Return padded label rows, (B, M, ...) with an M of each part's own, as one of the largest M; padding is 0."""
    most = max(part.shape[1] for part in parts)
    if all(part.shape[1] == most for part in parts):
        return torch.cat([*parts])
    # Not padded one by one: where there is a GPU, an operation costs its launch.
    entries = sum(len(part) for part in parts)
    filled = np.repeat([part.shape[1] for part in parts], [len(part) for part in parts])[:, None] > np.arange(most)
    flat = torch.cat([part.flatten(0, 1) for part in parts])
    place = torch.from_numpy(np.flatnonzero(filled)).to(flat.device, non_blocking=True)
    result = flat.new_zeros(entries * most, *flat.shape[1:]).index_copy_(0, place, flat)
    return result.unflatten(0, (entries, most))


def by_entry(values: NDArray[Any], entries: Sequence[int], device: torch.device) -> Tensor:
    """Return a value for each entry, (B,), by its batch's and the number of entries of each batch."""
    return torch.from_numpy(np.repeat(values, entries)).to(device, non_blocking=True)


def owners_before(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return how many owners stand before those of each batch."""
    return np.cumsum([0, *counts[:-1]])


def _owned_together(parts: Sequence[Owned]) -> Owned:
    counts, entries = [part.count for part in parts], [len(part.labels) for part in parts]
    layers = max(len(part.anchors) for part in parts)
    before = by_entry(owners_before(counts), entries, parts[0].labels.device)
    # A place without a second layer is wholly its owner's, as one is that has the same owner in both.
    anchors = torch.cat([part.anchors.expand(layers, -1, -1) for part in parts], 1)
    return Owned(
        count=sum(counts),
        labels=rows_together([part.labels for part in parts]) + before[:, None],  # rows of padding count for nobody
        anchors=anchors + before[:, None],
        blend=torch.cat([part.blend for part in parts]),
    )
