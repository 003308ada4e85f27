"""Which detections of a pass are hits, and the average precision of any weighting of its images.

Matching is done image by image, so once it is done the images can be drawn again and again without it: an image drawn
twice counts twice. This module knows no boxes any more and no model; `evaluate.matched` makes its input, and with all
weights 1 its figures are pycocotools' to the last digit or two.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import RunError

RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO reads a precision."""


_NUMBERS = 4_000_000
"""Numbers in an array of a class's detections times draws, at most (32 MB)."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The hits and misses of one pass over n images, K classes, T IoU thresholds, D detections.

    Attributes:
        paths: of the images, sorted.
        classes: class ids, ascending.
        boxes: labelled boxes an image and class, (n, K).
        image, category: where each detection was made, row and column of `boxes`, (D,).
        score: its confidence, (D,).
        hit: whether it matches a box of its class, (D, T).
    """

    paths: tuple[str, ...]
    classes: tuple[int, ...]
    boxes: NDArray[np.int32]
    image: NDArray[np.int32]
    category: NDArray[np.int32]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]

    def save(self, file: Path) -> None:
        """Write to a .npz file."""
        with file.open("wb") as stream:
            np.savez_compressed(
                stream,
                paths=np.array(self.paths),
                classes=np.array(self.classes),
                boxes=self.boxes,
                image=self.image,
                category=self.category,
                score=self.score,
                hit=np.packbits(self.hit, axis=1),
                thresholds=np.array(self.hit.shape[1]),
            )

    @classmethod
    def load(cls, file: Path) -> Matches:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing or torn.
        """
        try:
            with np.load(file, allow_pickle=False) as held:
                hit = np.unpackbits(held["hit"], axis=1, count=int(held["thresholds"])).astype(bool)
                return cls(
                    tuple(map(str, held["paths"])),
                    tuple(map(int, held["classes"])),
                    held["boxes"],
                    held["image"],
                    held["category"],
                    held["score"],
                    hit,
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise RunError(
                f"Expected the hits and misses of a finished cell in {file}, but it is missing or cannot be read: "
                "delete the cell's folder and run the comparison again."
            ) from None


def average_precision(found: Matches, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return COCO's average precision, (B, K, T) in [0, 1], NaN for a class without boxes in the weighting.

    As in pycocotools' `accumulate`: detections by score, ties in the order of the images; precision made monotone from
    the right; its mean over `RECALLS`.

    Args:
        found: a pass over n images.
        weights: how often each image counts, (B, n), >= 0.
    """
    weights = np.asarray(weights, np.float64)
    result = np.full((len(weights), len(found.classes), found.hit.shape[1]), np.nan)
    for k in range(len(found.classes)):
        total = weights @ found.boxes[:, k]
        rows = np.flatnonzero(found.category == k)
        rows = rows[np.argsort(-found.score[rows], kind="stable")]
        some = total > 0
        drawn = weights[some].take(found.image[rows], axis=1)
        seen = np.cumsum(drawn, axis=1)
        for t in range(found.hit.shape[1]):
            # Precision and recall rise at hits only, so the rest need not be looked at.
            hits = np.flatnonzero(found.hit[rows, t])
            right = np.cumsum(drawn.take(hits, axis=1), axis=1)
            precision = right / (seen.take(hits, axis=1) + np.spacing(1))
            result[some, k, t] = _area(precision, right / total[some, None])
    return result


def mean_ap(found: Matches, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return mAP over classes with boxes and over IoU thresholds, (B,), for weights (B, n); NaN without any box."""
    # In parts, for a pass over thousands of images holds a million detections.
    at_once = max(1, _NUMBERS // max(1, int(np.bincount(found.category, minlength=1).max())))
    parts = [average_precision(found, weights[i : i + at_once]).mean(2) for i in range(0, len(weights), at_once)]
    ap = np.concatenate(parts)
    there = np.isfinite(ap)
    count = there.sum(1)
    return np.where(count > 0, np.where(there, ap, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def draws(n: int, count: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return bootstrap weights: how often each of n images is in each of `count` samples of n, (count, n)."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)


class _Pass(Protocol):
    @property
    def paths(self) -> tuple[str, ...]: ...


def same_images(passes: Sequence[_Pass]) -> bool:
    """Whether all passes judged the same images, so that they can be paired image by image."""
    return len({found.paths for found in passes}) <= 1


def _area(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over `RECALLS` of the precision made monotone, (B,), for curves (B, hits)."""
    if not precision.shape[1]:
        return np.zeros(len(precision))
    monotone = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate((monotone, np.zeros((len(monotone), 1))), axis=1)  # beyond the last recall reached
    return np.take_along_axis(padded, _below(recall), axis=1).mean(1)


def _below(recall: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of each row's recalls lie below each of `RECALLS`, (B, 101), for recalls in [0, 1], (B, hits).

    What `np.searchsorted` says row by row, in a fraction of the time: each recall's place on the grid is a
    multiplication away, give or take a rounding, and counting places does the rest.
    """
    place = (recall * (len(RECALLS) - 1)).astype(np.int64)
    place += RECALLS.take(place) <= recall  # of the first grid point above it, if rounding did nothing
    place += np.append(RECALLS, np.inf).take(place) <= recall
    rows = np.arange(len(recall))[:, None] * (len(RECALLS) + 1)
    counts = np.bincount((rows + place).ravel(), minlength=len(recall) * (len(RECALLS) + 1))
    return counts.reshape(len(recall), -1)[:, :-1].cumsum(1)
