"""A finished run as its folder holds it, with all that a report shows of it. Reads only; knows no page.

Older runs, other tasks and runs of other loops lack some files and columns; only manifest and mask must be there.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.reasons import Evidence
from yolo_adapruner.data.explain import evidence
from yolo_adapruner.data.export import TRACE, Outcome, read, task_of
from yolo_adapruner.data.labels import Labels
from yolo_adapruner.data.source import label_file, read_shapes
from yolo_adapruner.errors import DataError

SUSPECTS = "suspects.json"
"""What the run's detector sees in the suspect images that a report shows, by path: rows of class, confidence, x1, y1,
x2, y2, the last four as shares of the image."""
DROPPED = "dropped"
_ANY_CLASS = 2**31


@dataclass(frozen=True)
class Run:
    """A finished run over N images.

    Attributes:
        folder: the run folder, absolute.
        manifest: its manifest.
        outcome: its selection.
        epochs: column of results.csv → (E,) numbers, NaN where a cell is none; empty where there is no such file.
        history: joint epochs (J,) and round(255 * weight) after each, (J, N) uint8; None where that was not kept.
        found: path → what the detector sees in it, see `SUSPECTS`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    outcome: Outcome
    epochs: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    history: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None
    found: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Ultralytics' name of the task."""
        return task_of(self.manifest)

    @property
    def names(self) -> dict[int, str]:
        """Class id → name; empty where the data file named none."""
        if self.task == "classify" and not self.manifest["data"]["rest"].get("names"):
            return dict(enumerate(sorted({Path(path).parent.name for path in self.outcome.paths})))
        given = self.manifest["data"]["rest"].get("names") or {}
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        return {int(c): str(name) for c, name in pairs if str(c).isdecimal()}

    @cached_property
    def _classes(self) -> Sequence[int] | NDArray[np.int64]:
        """The class of each image of a classification set; of a run that did not note it, its folder's."""
        if "class" in self.outcome.columns:
            return self.outcome.columns["class"]
        ids = {name: c for c, name in self.names.items()}
        return [ids.get(Path(path).parent.name, -1) for path in self.outcome.paths]

    @property
    def reasons(self) -> list[str]:
        """Why each image was dropped, N words; empty where it was kept."""
        kept = self.outcome.kept
        given = self.outcome.columns.get("reason", np.full(len(kept), ""))
        return ["" if k else str(word) or DROPPED for k, word in zip(kept, given, strict=True)]

    @cached_property
    def evidence(self) -> Evidence:
        """The numbers that the reasons come from."""
        return evidence(self.outcome.columns, len(self.outcome.kept))

    @property
    def median(self) -> float | None:
        """The median signal in nats, of what was seen; None where nothing was."""
        known = self.evidence.signal[np.isfinite(self.evidence.signal)]
        return float(np.median(known)) if len(known) else None

    def order(self) -> NDArray[np.int64]:
        """Return the numbers of the dropped images, lowest score first, those without one last."""
        dropped = np.flatnonzero(~self.outcome.kept)
        return dropped[np.argsort(self.outcome.columns["logit"][dropped], kind="stable")]

    def labels(self, i: int) -> Labels | None:
        """Return the labels of image i, read off the file beside it; None where that says what is no label.

        An image of a classification set has its folder's class, for all of it.
        """
        if self.task == "classify":
            return Labels(np.array([self._classes[i]]), np.array([[0.0, 0, 1, 1]]))
        keypoints = self.manifest["data"]["rest"].get("kpt_shape")
        try:
            return read_shapes(label_file(Path(self.outcome.paths[i])), _ANY_CLASS, keypoints, task=self.task).labels
        except DataError:
            return None


def load(folder: str | Path) -> Run:
    """Return a run by its folder.

    Raises:
        RunError: it holds no finished run.
    """
    home = Path(folder).absolute()
    manifest, outcome = read(home)
    n = len(outcome.paths)
    return Run(home, manifest, outcome, _table(home / "results.csv"), _history(home / TRACE, n), _found(home))


def _table(file: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [{str(k).strip(): v for k, v in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError, csv.Error):
        return {}
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in rows[0]} if rows else {}


def _number(word: str | None) -> float:
    try:
        return float(word or "nan")
    except (TypeError, ValueError):
        return float("nan")


def _history(file: Path, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            epochs, weights = arrays["epochs"], arrays["weights"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = weights.dtype == np.uint8 and weights.shape == (len(epochs), n) and len(epochs) > 0
    return (epochs.astype(np.int64), weights) if fits else None


def _found(folder: Path) -> dict[str, list[list[float]]]:
    try:
        images = json.loads((folder / SUSPECTS).read_text(encoding="utf-8"))["images"]
        return {str(path): [[float(v) for v in row[:6]] for row in rows] for path, rows in images.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
