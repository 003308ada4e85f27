"""The arms by name: what each needs of a finished run and the labels, and the set it keeps. Trains nothing.

The formulas are in `baselines.py`; here is where their numbers come from. A run leaves each image's readings as means
over the joint epochs (`engine/channels.py`). What asks for a reading of each epoch by itself (forgetting events, the
area under the margin), for a grouping of copies, or for another set of images in each epoch (`dynamic.py`) cannot be
had from that yet, so those are not among the arms that a comparison can train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data.export import Outcome
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study.baselines import class_balanced_kept, listed_kept, most_error, random_kept

FULL, RUN, PRUNED, RANDOM, LISTED = "full", "one run", "pruned", "random", "given list"
CLASS_RANDOM, LOWEST_LOSS, HIGHEST_LOSS, MOST_ERROR = "class-random", "lowest-loss", "highest-loss", "most-error"


@dataclass(frozen=True)
class Material:
    """What an arm may choose by.

    Attributes:
        outcome: the run of the same seed, over N images.
        learned: the share that run was made for.
        share: to remove, (0, 1); another one than `learned` is cut from the run's ranking.
        seed: of everything that draws.
        classes: gives the class of each box of each path, when asked.
        listed: the paths of a given list.
    """

    outcome: Outcome
    learned: float
    share: float
    seed: int
    classes: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    listed: Sequence[str] = ()

    def score(self, worth: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return the kept set by a score, (N,) bool; an image without one ranks in the middle."""
        known = np.isfinite(worth)
        if not known.any():
            raise RunError(
                "Expected a run that read its images in the joint stage, but none has a reading: train for more epochs."
            )
        middle = float(np.median(worth[known]))
        return select_kept(np.where(known, worth, middle), self.share, seed=self.seed)


def choose(arm: str, material: Material) -> NDArray[np.bool_]:
    """Return which images an arm keeps, (N,) bool.

    Raises:
        RunError: the run holds no readings to choose by.
        DataError: a given list names other images.
    """
    return _CHOICES[arm](material)


def check(arms: Sequence[str]) -> tuple[str, ...]:
    """Return the arms in their order, each once, without those every comparison has.

    Raises:
        ConfigError: an arm is unknown.
    """
    if unknown := [arm for arm in arms if arm not in CHOICES]:
        raise ConfigError(f"Expected arms out of {', '.join(CHOICES)}, but got {', '.join(unknown)}: check the names.")
    return tuple(arm for arm in CHOICES if arm in arms)


def loss(columns: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return each image's loss as its readings tell it, (N,): box, class and background terms, unweighted.

    1 - IoU of its objects, plus -log p of their class, plus -log(1 - p) of what nobody labelled, each a mean. Not the
    training loss, which grows with the number of objects and weighs a label by how well it fits (docs/method.md). An
    image without boxes has the last term alone. A classifier's is -log p of the label: its training loss.
    """
    if "label" in columns:
        return np.asarray(columns["label"], np.float64)
    parts = np.stack([columns["localisation"], columns["presence"], columns["missing"]])
    known = np.isfinite(parts).any(0)
    return np.where(known, np.where(np.isfinite(parts), parts, 0.0).sum(0), np.nan)


def _most_error(material: Material) -> NDArray[np.bool_]:
    columns = material.outcome.columns
    if "error" in columns:  # a classifier's own
        return material.score(columns["error"])
    norm = most_error(columns["localisation"], columns["presence"], columns["missing"])
    return material.score(np.where(np.isfinite(loss(columns)), norm, np.nan))


_CHOICES: dict[str, Callable[[Material], NDArray[np.bool_]]] = {
    PRUNED: lambda m: m.outcome.kept if m.share == m.learned else m.score(m.outcome.columns["logit"]),
    RANDOM: lambda m: random_kept(len(m.outcome.paths), m.share, seed=m.seed),
    CLASS_RANDOM: lambda m: class_balanced_kept(m.classes(m.outcome.paths), m.share, seed=m.seed),
    LOWEST_LOSS: lambda m: m.score(-loss(m.outcome.columns)),
    HIGHEST_LOSS: lambda m: m.score(loss(m.outcome.columns)),
    MOST_ERROR: _most_error,
    LISTED: lambda m: listed_kept(m.outcome.paths, m.listed),
}
CHOICES = tuple(arm for arm in _CHOICES if arm != LISTED)
"""Arms by the names a user gives; `given list` comes with a list."""
ORDER = (FULL, RUN, *_CHOICES)
"""All arms in the order of the table."""
