"""What a mask has to beat: the peers' ways to choose which images stay, each a pure function. Knows no model, no files.

An arm is named after what it *keeps*. A score says what a sample is worth keeping, higher stays; `select_kept` of
`core/selection.py` cuts all of them, so that every arm keeps the same number at the same share. Arms that choose anew
in each epoch are in `dynamic.py`; where an arm's numbers come from in a run of ours is said in `arms.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.selection import drop_count, random_kept, select_kept
from yolo_adapruner.core.trajectory import forgotten
from yolo_adapruner.errors import DataError

__all__ = [
    "area_under_margin",
    "class_balanced_kept",
    "copies_out_kept",
    "equal_updates_epochs",
    "error_norm",
    "forgetting_events",
    "listed_kept",
    "margins",
    "most_error",
    "most_forgotten",
    "random_kept",
]


def equal_updates_epochs(epochs: int, images: int, kept: int, batch: int) -> int:
    """Return the epochs after which `kept` images have given as many batches as `images` give in `epochs`.

    Whole epochs only, rounded to the nearest: the number of updates then differs by less than half an epoch's.

    >>> equal_updates_epochs(30, images=360, kept=324, batch=16)
    33
    """
    return round(epochs * -(-images // batch) / -(-kept // batch))


def class_balanced_kept(classes: Sequence[Sequence[int]], prune: float, *, seed: int) -> NDArray[np.bool_]:
    """Return a random kept set whose classes are as even as their images allow, (N,) bool.

    The class-balanced random choice of DeepCore (Guo et al. 2022, arXiv 2204.08499), where each class gives as many
    samples as any other, taken to images that hold several classes: in each turn the class that the fewest kept images
    show, and that has images left, gives one of them at random. Images without boxes are a class of their own.

    Args:
        classes: the class of each box of each image, N lists.
        prune: share to remove, [0, 1).
        seed: decides the draw, and ties between classes.
    """
    n = len(classes)
    rng = np.random.default_rng([seed, n])
    shown = [sorted(set(image)) or [-1] for image in classes]
    order = rng.permutation(n)
    waiting: dict[int, list[int]] = {c: [] for c in rng.permutation(sorted({c for image in shown for c in image}))}
    for i in order:
        for c in shown[i]:
            waiting[c].append(i)
    count, kept = dict.fromkeys(waiting, 0), np.zeros(n, bool)
    for _ in range(n - drop_count(n, prune)):
        for images in waiting.values():
            while images and kept[images[-1]]:  # came in by another of its classes
                images.pop()
        c = min((c for c in waiting if waiting[c]), key=count.__getitem__)
        i = waiting[c].pop()
        kept[i] = True
        for other in shown[i]:
            count[other] += 1
    return kept


def error_norm(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the norm of the error vector, ‖p - onehot(y)‖₂, (N,) in [0, √2].

    EL2N, whose mean over ten networks early in training ranks samples (Paul, Ganguli & Dziugaite 2021, arXiv
    2107.07075, section 2; at epoch 20 of 200 in its experiments); the highest stay. A comparison trains one network a
    seed and takes the mean over its early epochs instead (`core/trajectory.py`).

    Args:
        probabilities: p, (N, C), rows that sum to 1.
        labels: y, (N,).
    """
    error = np.array(probabilities, np.float64)
    error[np.arange(len(error)), labels] -= 1
    return np.sqrt((error**2).sum(1))


def most_error(
    localisation: NDArray[np.floating], presence: NDArray[np.floating], missing: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return a detector's error norm on each image, (N,) in [0, √3]: what EL2N is where the output is a set of boxes.

    The error vector has a component for each way to be wrong about a place: how far its box is off (1 - IoU), how
    unsure the labelled class is (1 - p), and how sure an object nobody labelled is (p). The detector's own version is
    ours, not Paul et al.'s; an image without boxes has the last component alone.

    Args:
        localisation: mean 1 - IoU of an image's objects, (N,), NaN without boxes.
        presence: mean -log p(labelled class), (N,), nats, NaN without boxes.
        missing: mean -log(1 - p) of the most confident unlabelled predictions, (N,), nats.
    """
    parts = np.stack([np.asarray(localisation, np.float64), 1 - np.exp(-presence), 1 - np.exp(-missing)])
    return np.sqrt((np.nan_to_num(parts, nan=0.0) ** 2).sum(0))


def forgetting_events(correct: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how often each sample was forgotten, (N,): right when seen and wrong when seen next; inf if never right.

    Toneva et al. 2019 (arXiv 1812.05159), definition "forgetting event"; they count a sample that was never learned as
    forgotten infinitely often. The most forgotten stay. A training keeps the running count alone: `core/trajectory.py`.

    Args:
        correct: 1 where the sample was right in the epoch, 0 where wrong, between them where a part of it was, NaN
            where it was not seen, (N, epochs).
    """
    events = np.zeros(len(correct))
    last = np.full(len(correct), np.nan)
    for epoch in np.asarray(correct, np.float64).T:
        events += forgotten(last, epoch)
        last = np.where(np.isnan(epoch), last, epoch)
    return np.where((np.asarray(correct) > 0).any(1), events, np.inf)


def most_forgotten(events: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return forgetting events as a finite score, (N,): never right comes one above the most forgotten."""
    known = np.isfinite(events)
    return np.where(known, events, events[known].max(initial=0.0) + 1)


def margins(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the labelled class's logit minus the largest other one, (N,).

    The margin of Pleiss et al. 2020 (arXiv 2001.10528), eq. 1.

    Args:
        logits: (N, C), two classes or more.
        labels: (N,).
    """
    rows = np.arange(len(logits))
    others = np.array(logits, np.float64)
    labelled = others[rows, labels]
    others[rows, labels] = -np.inf
    return labelled - others.max(1)


def area_under_margin(trajectory: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean margin over the epochs in which a sample was seen, (N,). Pleiss et al. 2020, eq. 2.

    Mislabelled samples have the lowest; the highest stay. A sample that was never seen gets the others' median. A
    training keeps the running mean alone (`core/trajectory.py`).

    Args:
        trajectory: `margins` of each epoch, (N, epochs), NaN where a sample was not seen.
    """
    seen = np.isfinite(trajectory)
    mean = np.where(seen, trajectory, 0.0).sum(1) / np.maximum(seen.sum(1), 1)
    ever = seen.any(1)
    return np.where(ever, mean, np.median(mean[ever]) if ever.any() else 0.0)


def copies_out_kept(groups: NDArray[np.integer], prune: float, *, seed: int) -> NDArray[np.bool_]:
    """Return the kept set that loses copies and, where there are too few of them, random others, (N,) bool.

    Copies are all but one of each group, that one drawn by `seed`. The smallest check on the idea that redundancy is
    what pruning finds: nothing but near-duplicates goes, or as many of them as there are.

    Args:
        groups: the group of each image, (N,); images alone in theirs have no copy.
        prune: share to remove, [0, 1).
        seed: decides which of a group stays, and what goes where copies do not decide.
    """
    n = len(groups)
    order = np.random.default_rng([seed, n]).permutation(n)
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    worth = np.zeros(n)
    worth[order[first]] = 1.0  # the one of its group that comes first in a random order
    return select_kept(worth, prune, seed=seed)


def listed_kept(paths: Sequence[str], listed: Sequence[str]) -> NDArray[np.bool_]:
    """Return which images a list names, (N,) bool.

    Args:
        paths: absolute paths of the training images.
        listed: absolute paths that stay.

    Raises:
        DataError: a listed image is none of the training images, or the list is empty.
    """
    known = set(paths)
    foreign = [path for path in listed if path not in known]
    if foreign or not listed:
        what = f"{len(foreign)} are not, the first: {foreign[0]}" if foreign else "it is empty"
        raise DataError(f"Expected a list of training images to keep, but {what}: give paths as in the training set.")
    wanted = set(listed)
    return np.array([path in wanted for path in paths], bool)
