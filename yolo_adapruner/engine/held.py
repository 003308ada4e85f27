"""Batches held until several are read together, as one batch of all of their images.

A GPU waits for the host to launch each operation, however few numbers it works on: the readings of sixteen small
batches together take it hardly longer than those of one. A CPU computes as long as there is to compute, so it reads
each batch at once. Knows no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_adapruner.engine.evidence import Later
from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.rehearse import Spoilt
from yolo_adapruner.engine.together import by_entry, together

MOST = 16
"""Batches that are read together at most."""
_IMAGES = 256
_NUMBERS = 4_000_000
"""What is held at most, by anchors x (classes + labels of the fullest image): reading computes arrays of that size.

Small beside what a training step of such images leaves free again. A batch of more is large enough to be read alone.
"""

Read = Callable[[Assignment, Tensor, Spoilt | None], Tensor]


@dataclass
class _Group:
    """Batches that can be read together: of one size, all of them mixed or none, all rehearsed or none."""

    seen: list[Assignment] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    spoilt: list[Spoilt] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(len(part.scores) for part in self.seen)

    @property
    def numbers(self) -> int:
        if not self.seen:
            return 0
        labels = max(part.shape[1] for part in (*(p.gt_boxes for p in self.seen), *(p.boxes for p in self.spoilt)))
        anchors, classes = self.seen[0].scores.shape[1:]
        return self.images * anchors * (classes + labels)


class Held:
    """Batches whose readings nobody has taken yet.

    Args:
        read: returns the readings of a batch, or of several together, by its assignment, its loss (a scalar; of several
            (B, 1), that of each entry's batch) and its labels under faults; (K, C) by owner.
        most: batches to hold at most before they are read; 1 reads each at once.
    """

    def __init__(self, read: Read, most: int) -> None:
        self.most, self._read = most, read
        self._groups: dict[Any, _Group] = {}

    def add(self, seen: Assignment, loss: Tensor, spoilt: Spoilt | None) -> Later:
        """Hold a batch; return where its readings will be once it is read.

        Args:
            seen: its assignment.
            loss: its loss, a scalar.
            spoilt: its labels under faults; None where it is not rehearsed.
        """
        kind = (seen.scores.dtype, *seen.scores.shape[1:], seen.owned is None, spoilt is None)
        group = self._groups.setdefault(kind, _Group())
        if group.images + len(seen.scores) > _IMAGES and group.seen:
            self.read()
            group = self._groups.setdefault(kind, _Group())
        later = Later()
        group.seen.append(seen)
        group.losses.append(loss.detach())
        group.later.append(later)
        if spoilt is not None:
            group.spoilt.append(spoilt)
        if len(group.seen) >= self.most or sum(group.numbers for group in self._groups.values()) > _NUMBERS:
            self.read()
        return later

    def read(self) -> None:
        """Take the readings of all batches that are held."""
        groups, self._groups = self._groups, {}
        for group in groups.values():
            loss = group.losses[0]
            if len(group.losses) > 1:
                entries = [len(part.scores) for part in group.seen]
                batch = by_entry(np.arange(len(entries)), entries, loss.device)
                loss = torch.stack(group.losses)[batch, None]
            spoilt = Spoilt.together(group.spoilt) if group.spoilt else None
            values = self._read(together(group.seen), loss, spoilt)
            owners = [len(part.scores) if part.owned is None else part.owned.count for part in group.seen]
            for later, own in zip(group.later, values.split(owners), strict=True):
                later.values = own

    def clear(self) -> None:
        """Forget what is held."""
        self._groups = {}
