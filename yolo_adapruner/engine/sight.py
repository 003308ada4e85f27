"""Which classes the detector does not see as yet: their boxes say nothing about their labels, right or wrong.

A class with few boxes, or small ones, is learned last. Until then its boxes read like boxes that mark nothing, all of
them, and images with several are the first to be taken for wrong. Blood cells are like that: after 24 epochs the best
confidence at a platelet is below 0.01 %, where at red cells it is 40 and at white ones 70 % (geometric means). Knows no
mask and no judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.core import distributed

UNSEEN = math.log(20)
"""How much lower, in nats, the confidence at a class's boxes lies than at all boxes, where the class is not seen."""


class Sight:
    """What confidence a detector has where boxes of each of C classes are labelled, an epoch at a time.

    Args:
        classes: C.

    Attributes:
        silent: (C,) bool, which classes it did not see in the last epoch that was noted.
    """

    def __init__(self, classes: int) -> None:
        self.silent: NDArray[np.bool_] = np.zeros(classes, bool)
        self._noted: Tensor | None = None
        self._on_device: Tensor | None = None

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self._noted = self._on_device = None

    def unheard(self, device: torch.device) -> Tensor | None:
        """Return `silent` where the readings are made; None where all classes are seen."""
        if not self.silent.any():
            return None
        if self._on_device is None:
            self._on_device = torch.from_numpy(self.silent).to(device)
        return self._on_device

    def note(self, classes: Tensor, unseen: Tensor, valid: Tensor) -> None:
        """Note labels, all (B, M): their classes, -log of the best confidence at their places, and which are labels."""
        if self._noted is None:
            self._noted = torch.zeros(2, len(self.silent), device=unseen.device)
        valid = valid & unseen.isfinite()
        values = torch.stack((torch.where(valid, unseen, 0.0).flatten(), valid.flatten())).float()
        self._noted.index_add_(1, torch.where(valid, classes, 0).flatten(), values)

    def close_epoch(self, device: torch.device) -> bool:
        """Take the epoch, of all processes, and return whether other classes are seen now; none that noted nothing.

        Args:
            device: where the group's backend wants its tensors.
        """
        noted = np.zeros((2, len(self.silent)))
        if self._noted is not None:
            noted += self._noted.cpu().numpy()
        distributed.add_up((noted,), device)
        self.open_epoch()
        total, count = noted
        if not count.any():
            return False
        before = self.silent
        mean = total / np.maximum(count, 1)
        self.silent = (count > 0) & (mean > total.sum() / count.sum() + UNSEEN)
        return not np.array_equal(before, self.silent)

    def state_dict(self) -> dict[str, Any]:
        """Return what an interrupted run goes on from, as arrays."""
        return {"silent": self.silent.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.silent = np.array(state["silent"], bool)
        self.open_epoch()
