"""The peers that choose anew in each epoch: who is trained on, and with what weight. Knows no loader and no model.

A sampler is a pure function of what is known before an epoch and the epoch's number, so a resumed run draws what the
uninterrupted one did. What a loader has to do with it: train on `ids` in any order, multiply each image's loss by its
weight, and hand back what the sampler's state asks for (the losses seen, or precision and recall).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.schedule import Draw


def infobatch(
    losses: NDArray[np.floating],
    epoch: int,
    epochs: int,
    *,
    prune: float = 0.5,
    anneal: float = 0.125,
    seed: int = 0,
) -> Draw:
    """Draw an epoch as InfoBatch does: of the images below the mean loss each is left out with probability `prune`.

    Those of them that stay weigh 1 / (1 - prune), so that the expected gradient is that of all images; in the last
    epochs nothing is left out. Qin et al. 2024 (arXiv 2303.04947), section 3, where `prune` is r = 0.5 and
    1 - `anneal` is δ = 0.875. Their code draws an exact count of the images instead of each by itself, and begins the
    annealing an epoch later.

    Args:
        losses: each image's loss when it was last trained on, (N,), NaN before the first time; such an image stays.
        epoch: which epoch, from 0.
        epochs: how many there are.
        prune: probability in [0, 1).
        anneal: share of the epochs, at the end, with all images, [0, 1].
        seed: decides the draw, together with the epoch.
    """
    n = len(losses)
    seen = np.isfinite(losses)
    weights = np.ones(n)
    out = np.zeros(n, bool)
    if seen.any() and epoch < (1 - anneal) * epochs:
        low = seen & (losses < np.mean(losses[seen]))
        out = low & (np.random.default_rng([seed, epoch, n]).random(n) < prune)
        weights[low] = 1 / (1 - prune)
    ids = np.flatnonzero(~out)
    return Draw(ids, weights[ids])


MOST_PRUNED = 0.9
"""No image below the mean is left out with a larger probability than this, so that no loss weighs more than ten."""


def prune_rate(losses: NDArray[np.floating], epochs: int, share: float, *, anneal: float = 0.125) -> float:
    """Return InfoBatch's probability by which the expected visits of a training are 1 - `share` of all, [0, 0.9].

    A training of E epochs saves visits in those between the first, which has no losses yet, and the annealing; of these
    each saves the probability times the share of the images below the mean. Where `MOST_PRUNED` is not enough, less
    than `share` is saved. That it follows the share is ours.

    Args:
        losses: as for `infobatch`.
        epochs: how many there are.
        share: to save, [0, 1).
        anneal: as for `infobatch`.
    """
    seen = losses[np.isfinite(losses)]
    saving = math.ceil((1 - anneal) * epochs) - 1
    if not len(seen) or saving < 1:
        return 0.0
    low = float((seen < seen.mean()).sum()) / len(losses)
    return min(share * epochs / saving / low, MOST_PRUNED) if low else 0.0


def remember(losses: NDArray[np.floating], draw: Draw, seen: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the losses after an epoch: those trained on get what was seen, (k,) unweighted, the others keep theirs."""
    after = np.array(losses, np.float64)
    after[draw.ids] = seen
    return after


@dataclass(frozen=True)
class AFSS:
    """What AFSS knows of N images, and its settings, by default those published.

    Xie et al. 2026 (arXiv 2603.17684). An image's sufficiency is the smaller of the precision and the recall that the
    present detector has on it. Hard images are trained on in each epoch; of the moderate ones a share, those first
    whose turn is due; of the easy ones few, half of them at most by how long they were out of use. Written from
    descriptions of the rule; no code of theirs is public.

    Attributes:
        sufficiency: (N,) in [0, 1]; 0 before it was first measured, so that all count as hard.
        last_used: the last epoch each image was trained on in, (N,); -1 before the first.
        easy, hard: above `easy` an image is easy, below `hard` it is hard, else moderate.
        easy_share, moderate_share: how many of either are used in an epoch.
        easy_rest: easy images out of use for more epochs than this come first.
        moderate_rest: a moderate image is used in one of so many epochs at least.
        refresh: sufficiency is measured anew before each epoch that is a multiple of it.
    """

    sufficiency: NDArray[np.float64]
    last_used: NDArray[np.int64]
    easy: float = 0.85
    hard: float = 0.55
    easy_share: float = 0.02
    moderate_share: float = 0.4
    easy_rest: int = 10
    moderate_rest: int = 3
    refresh: int = 5

    @classmethod
    def start(cls, n: int) -> AFSS:
        """Return the state of `n` images before the first epoch."""
        return cls(np.zeros(n), np.full(n, -1, np.int64))

    def due(self, epoch: int) -> bool:
        """Whether sufficiency is to be measured before this epoch; before the first there is nothing to measure."""
        return epoch > 0 and epoch % self.refresh == 0

    def measured(self, sufficiency: NDArray[np.floating]) -> AFSS:
        """Return the state with sufficiency measured anew, (N,)."""
        return replace(self, sufficiency=np.asarray(sufficiency, np.float64))

    def after(self, draw: Draw, epoch: int) -> AFSS:
        """Return the state once the epoch has trained on a draw."""
        used = self.last_used.copy()
        used[draw.ids] = epoch
        return replace(self, last_used=used)

    def draw(self, epoch: int, *, seed: int = 0) -> Draw:
        """Return the epoch's images, all of weight 1."""
        rng = np.random.default_rng([seed, epoch, len(self.sufficiency)])
        easy, hard = self.sufficiency > self.easy, self.sufficiency < self.hard
        ids = np.concatenate(
            (
                np.flatnonzero(hard),
                self._moderate(np.flatnonzero(~easy & ~hard), epoch, rng),
                self._easy(np.flatnonzero(easy), epoch, rng),
            )
        )
        return Draw(np.sort(ids), np.ones(len(ids)))

    def _moderate(self, ids: NDArray[np.int64], epoch: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """All whose turn is due, and random others up to the share."""
        due = epoch - self.last_used[ids] >= self.moderate_rest
        wanted = round(self.moderate_share * len(ids)) - int(due.sum())
        return np.concatenate((ids[due], _some(ids[~due], wanted, rng)))

    def _easy(self, ids: NDArray[np.int64], epoch: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Those longest out of use, half of the share at most, and random others up to the share."""
        wanted = round(self.easy_share * len(ids))
        rest = epoch - self.last_used[ids]
        shuffled = rng.permutation(len(ids))
        longest = shuffled[np.argsort(-rest[shuffled], kind="stable")][: wanted // 2]
        review = longest[rest[longest] > self.easy_rest]
        others = np.setdiff1d(ids, ids[review])
        return np.concatenate((ids[review], _some(others, wanted - len(review), rng)))


def sufficiency(
    hits: NDArray[np.integer], detections: NDArray[np.integer], boxes: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return min(precision, recall) of each image, (N,) in [0, 1], AFSS's measure of what is learned.

    Nothing detected where nothing is labelled is perfect; anything detected there is worth 0.

    Args:
        hits: detections that match a labelled box, (N,).
        detections: all detections above the detector's confidence threshold, (N,).
        boxes: labelled boxes, (N,).
    """
    precision = np.where(detections > 0, hits / np.maximum(detections, 1), 1.0)
    recall = np.where(boxes > 0, hits / np.maximum(boxes, 1), 1.0)
    return np.minimum(precision, recall)


def _some(ids: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `count` of the ids, none for a negative count."""
    return rng.permutation(ids)[: max(count, 0)]
