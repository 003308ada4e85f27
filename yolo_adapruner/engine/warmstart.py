"""A run that begins with what an earlier one learned: its logits, by image; new images begin neutral.

What carries over are the logits and how much of each image they rest on, because a logit is a sum of evidence that goes
on growing. Readings do not: they are another model's, and a mean over both would be of neither. Moves no mask itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.warm import start_logits
from yolo_adapruner.data import export, prints
from yolo_adapruner.data.export import Outcome
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import runtime, state
from yolo_adapruner.errors import RunError

_JUDGED_BY = ("tau", "clip", "terms", "judge", "redundancy", "rest")
"""Settings behind a logit's meaning; others change when and how far the mask moves, which can be allowed for."""


@dataclass(frozen=True)
class Counts:
    """What a warm start found; `moved` are part of `carried`, `changed` part of `new`."""

    run: str
    carried: int
    moved: int
    new: int
    changed: int
    gone: int

    def line(self) -> str:
        """Return it in words."""
        return (
            f"start from {self.run}: {self.carried} images carried over ({self.moved} by content), {self.new} new "
            f"({self.changed} changed), {self.gone} gone"
        )


def load(run: Path, task: str, config: PruneConfig) -> tuple[dict[str, Any], Outcome]:
    """Return manifest and outcome of the run to start from.

    Raises:
        RunError: it is no finished run that scored images, is for another task, or judged by other settings.
    """
    manifest, outcome = export.read(run)
    trained = manifest.get("train")
    theirs = trained.get("task", "detect") if isinstance(trained, Mapping) else "detect"
    if theirs != task:
        raise RunError(f"Expected a run for {task} to start from, but {run} is for {theirs}: start without it.")
    if not np.isfinite(outcome.columns["logit"]).any():
        raise RunError(f"Expected a run that scored its images to start from, but {run} did not: start without it.")
    before, now = manifest["prune"], config.model_dump()
    pairs = {key: before.get(key, now[key]) for key in _JUDGED_BY}
    if other := state.differences(pairs, {key: now[key] for key in _JUDGED_BY}):
        raise RunError(
            f"Expected the settings that {run} judged its images by, but {other}: set them so or start without it."
        )
    return manifest, outcome


def label_prints(dataset: Any, paths: Sequence[str]) -> NDArray[np.uint64]:
    """Return the label print of each path, (N,), from the labels that Ultralytics has read."""
    found = {}
    for file, label in zip(dataset.im_files, dataset.labels, strict=True):
        held = [label["cls"], label["bboxes"], *(label.get("segments") or ())]
        if label.get("keypoints") is not None:
            held.append(label["keypoints"])
        found[images.identity(file)] = prints.label_print(*held)
    return np.array([found[path] for path in paths], np.uint64)


def carry(
    run: Path,
    task: str,
    config: PruneConfig,
    paths: Sequence[str],
    labels: NDArray[np.uint64],
    names: Mapping[int, str],
) -> tuple[NDArray[np.float64], NDArray[np.float64], Counts]:
    """Return what to add to each image's start logit, (N,), NaN for a new one, the views that rests on, and the counts.

    Args:
        run: the run to start from.
        task: what is trained for now.
        config: the method's settings now.
        paths: the training images now.
        labels: their label prints, (N,).
        names: the class names now.

    Raises:
        RunError: the run cannot be started from.
    """
    manifest, outcome = load(run, task, config)
    _refuse_other_classes(run, manifest, names)
    held = prints.read(run, len(outcome.paths))
    found = prints.match(paths, labels, outcome.paths, held, runtime.cores())
    rates = (float(manifest["prune"].get("rate", config.rate)), config.rate)
    columns = outcome.columns
    old = start_logits(columns["logit"], config.share, rates=rates, lots=columns.get("lot"))
    views = np.asarray(outcome.columns.get("seen", np.ones(len(old))), np.float64)
    logits = np.where(found.rows >= 0, old[found.rows], np.nan)
    known = np.isfinite(logits)
    seen = np.where(known, views[found.rows], 0.0)
    carried, moved = int(known.sum()), int((known & found.moved).sum())
    return logits, seen, Counts(str(run), carried, moved, len(paths) - carried, found.changed, found.gone)


def write_prints(folder: Path, paths: Sequence[str], labels: NDArray[np.uint64]) -> None:
    """Leave in a run folder what a later run recognises these images by."""
    prints.write(folder, prints.take(paths, labels, runtime.cores()))


def as_words(counts: Counts | None) -> dict[str, Any] | None:
    """Return the counts as the manifest and the state file hold them."""
    return None if counts is None else asdict(counts)


def absolute(run: str | None) -> Path | None:
    """Return the run to start from by absolute path."""
    return None if run is None else Path(os.path.abspath(run))


def _refuse_other_classes(run: Path, manifest: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Refuse a run whose class ids mean something else; new ones may have come."""
    held = manifest["data"]["rest"].get("names") or {}
    before = {int(c): str(name) for c, name in (held.items() if isinstance(held, Mapping) else enumerate(held))}
    if other := state.differences(before, {c: str(names.get(c)) for c in before}):
        raise RunError(f"Expected the class names of {run}, but {other}: restore them or start without it.")
