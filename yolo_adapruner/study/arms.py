"""The arms by name: what each needs of a finished run and the labels, and the set it keeps. Trains nothing.

The formulas are in `baselines.py`; here is where their numbers come from. A run leaves each image's readings as means
over its joint epochs (`engine/channels.py`). The arms of `WATCHING` are published for a training on everything that is
watched from its first epoch to its last, so they have that: the `full` cell of their seed (`engine/watch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data.export import Outcome
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study.baselines import (
    class_balanced_kept,
    copies_out_kept,
    listed_kept,
    most_error,
    most_forgotten,
    random_kept,
)

FULL, RUN, PRUNED, RANDOM, LISTED = "full", "one run", "pruned", "random", "given list"
CLASS_RANDOM, LOWEST_LOSS, HIGHEST_LOSS, MOST_ERROR = "class-random", "lowest-loss", "highest-loss", "most-error"
DUPLICATES = "duplicates-only"
INFOBATCH, AFSS = "infobatch", "afss"
DYNAMIC = (INFOBATCH, AFSS)
"""Arms that draw anew in each epoch, by `dynamic.py`; they keep no list."""
EL2N, FORGETTING, AREA_UNDER_MARGIN = "el2n", "forgetting", "area-under-margin"
WATCHING = (EL2N, FORGETTING, AREA_UNDER_MARGIN)
"""Arms that choose by what a training on everything says epoch by epoch, and need no run of ours."""
WITHOUT_METHOD = (FULL, RANDOM, CLASS_RANDOM, *WATCHING, LISTED)
"""Arms whose images and whose trainings hang on no setting of the method."""


@dataclass(frozen=True)
class Material:
    """What an arm may choose by.

    Attributes:
        outcome: the run of the same seed, over N images; of the arms of `WATCHING` the training on everything.
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

    def watched(self, column: str) -> NDArray[np.float64]:
        """Return what the watched training came to, (N,); see `core.trajectory.Trajectory.columns`."""
        if column not in self.outcome.columns:
            raise RunError(
                f"Expected a training on everything that was watched, but it left no {column}: delete the folder of "
                f"its cell, full-s{self.seed}, and run the comparison again."
            )
        return self.outcome.columns[column]

    def score(self, worth: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return the kept set by a score, (N,) bool; an image without one ranks in the middle."""
        known = np.isfinite(worth)
        if not known.any():
            raise RunError(
                "Expected a run that read its images before the choice, but none has a reading: train for more epochs."
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
    """Return the arms in their order, each once.

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
    """The error norm, but late: of the joint stage of a run, not of the early epochs that EL2N is published for."""
    columns = material.outcome.columns
    if "error" in columns:  # a classifier's own
        return material.score(columns["error"])
    norm = most_error(columns["localisation"], columns["presence"], columns["missing"])
    return material.score(np.where(np.isfinite(loss(columns)), norm, np.nan))


def groups(twin: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the group of copies of each image, (N,): that of the image it gives way to, its own where there is none.

    Args:
        twin: row of the most similar image that each gives way to, (N,), -1 for none; see `core/redundancy.py`.
    """
    found = np.where(twin < 0, np.arange(len(twin)), twin).astype(np.int64)
    for _ in range(len(twin).bit_length()):  # the way to the first of a group gets twice as short each time
        found = found[found]
    return found


def _copies_out(material: Material) -> NDArray[np.bool_]:
    columns = material.outcome.columns
    if not np.isfinite(columns["similarity"]).any():
        raise RunError(
            "Expected a run that compared its images with each other, but it did not: leave out --arms "
            f"{DUPLICATES}, or train longer and with prune.redundancy above 0."
        )
    return copies_out_kept(groups(columns["twin"]), material.share, seed=material.seed)


_CHOICES: dict[str, Callable[[Material], NDArray[np.bool_]]] = {
    PRUNED: lambda m: m.outcome.kept if m.share == m.learned else m.score(m.outcome.columns["logit"]),
    RANDOM: lambda m: random_kept(len(m.outcome.paths), m.share, seed=m.seed),
    CLASS_RANDOM: lambda m: class_balanced_kept(m.classes(m.outcome.paths), m.share, seed=m.seed),
    LOWEST_LOSS: lambda m: m.score(-loss(m.outcome.columns)),
    HIGHEST_LOSS: lambda m: m.score(loss(m.outcome.columns)),
    MOST_ERROR: _most_error,
    DUPLICATES: _copies_out,
    EL2N: lambda m: m.score(m.watched("early_error")),
    FORGETTING: lambda m: m.score(most_forgotten(m.watched("forgotten"))),
    AREA_UNDER_MARGIN: lambda m: m.score(m.watched("margin")),
    LISTED: lambda m: listed_kept(m.outcome.paths, m.listed),
}
LISTS = tuple(arm for arm in _CHOICES if arm != LISTED)
"""Arms that train anew on what they keep; `given list` comes with a list."""
CHOICES = (*LISTS, *DYNAMIC)
"""Arms by the names a user gives."""
PLAIN = (PRUNED, RANDOM)
"""The arms of a comparison that asks for no others."""
ORDER = (FULL, RUN, *CHOICES, LISTED)
"""All arms in the order of the table."""
