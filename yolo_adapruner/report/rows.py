"""The gallery's rows: each dropped image with its numbers, boxes and history, as plain values for the page's script."""

from __future__ import annotations

import base64
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.reasons import DOUBTFUL, DUPLICATE, SUSPECT
from yolo_adapruner.data.explain import judged
from yolo_adapruner.data.export import shown
from yolo_adapruner.data.labels import Labels
from yolo_adapruner.data.source import is_text
from yolo_adapruner.report.pictures import copies
from yolo_adapruner.report.run import Run

_SCALE = 9999
"""Coordinates of boxes are whole numbers from 0 to this."""
_ELSEWHERE = {"twin", "reason", "detail", "suspicion", "kind", "class"}
"""Columns that the rows hold in a form of their own: the detail of a suspect is a kind, that of a duplicate a path."""


@dataclass(frozen=True)
class Limits:
    """What a page may hold.

    Attributes:
        rows: dropped images listed, those with the lowest scores.
        pictures: of them with a picture.
        picture_bytes: what the pictures may come to.
        boxes: boxes of all rows together.
        epochs: points of a row's history.
    """

    rows: int = 50_000
    pictures: int = 300
    picture_bytes: int = 9_000_000
    boxes: int = 120_000
    epochs: int = 40

    def halved(self) -> Limits:
        """Return half of it."""
        return Limits(*(max(1, n // 2) for n in (self.rows, self.pictures, self.picture_bytes, self.boxes)))


def pictured(run: Run, limits: Limits) -> list[int]:
    """Return the images a page has pictures of, the most telling first: each reason's lowest scores in turn."""
    reasons = run.reasons
    by_reason: dict[str, list[int]] = {}
    for i in run.order()[: limits.rows]:
        by_reason.setdefault(reasons[i], []).append(int(i))
    turns = itertools.zip_longest(*by_reason.values())
    mixed = [i for turn in turns for i in turn if i is not None]
    return mixed[: limits.pictures]


def island(run: Run, labels: Mapping[int, Labels | None], limits: Limits) -> dict[str, Any]:
    """Return what the page's script works on.

    Args:
        run: the run.
        labels: image number → its labels, None where they cannot be read; of the dropped images at least.
        limits: what the page may hold.
    """
    rows = run.order()[: limits.rows]
    paths = [run.outcome.paths[i] for i in rows]
    root = _root(paths)
    reasons = run.reasons
    pairs = _details(run, rows, DUPLICATE)
    content: dict[str, Any] = {
        "root": shown(root),
        "paths": [shown(path[len(root) :]) for path in paths],
        "links": {n: "file://" + quote(os.fsencode(path)) for n, path in enumerate(paths) if not is_text(path)},
        "reasons": [reasons[i] for i in rows],
        "kinds": _details(run, rows, SUSPECT, DOUBTFUL),
        "suspicion": [] if run.evidence.suspicion is None else _values(run.evidence.suspicion[rows]),
        "whole": run.task == "classify",
        "judged": judged(run.outcome.columns),
        "median": run.median,
        "names": {c: shown(name) for c, name in run.names.items()},
        "classes": [_classes(i, labels) for i in rows],
        "boxes": list(_boxes([labels.get(int(i)) for i in rows], limits.boxes if run.task != "classify" else 0)),
        "unreadable": [n for n, i in enumerate(rows) if labels.get(int(i), labels) is None],
        "found": {n: _scaled(run.found[path]) for n, path in enumerate(paths) if path in run.found},
        "columns": {name: _values(v[rows]) for name, v in run.outcome.columns.items() if name not in _ELSEWHERE},
        "twins": {n: shown(path) for n, path in pairs.items()},
        **_history(run, rows, limits.epochs),
    }
    return {**content, **_pictures(run, rows, pairs, limits)}


def _pictures(run: Run, rows: NDArray[np.int64], pairs: Mapping[int, str], limits: Limits) -> dict[str, Any]:
    place = {int(i): n for n, i in enumerate(rows)}
    first = [place[i] for i in pictured(run, limits)]
    paths = {n: run.outcome.paths[rows[n]] for n in first}
    wanted = (path for n in first for path in (paths[n], pairs.get(n)) if path is not None)
    made = copies(wanted, limits.picture_bytes)
    as_list = {path: [p.width, p.height, p.uri] for path, p in made.items()}
    number = {path: i for i, path in enumerate(run.outcome.paths)}
    twins = {n: path for n, path in pairs.items() if n in paths and path in as_list and path in number}
    return {
        "pictures": {n: as_list[path] for n, path in paths.items() if path in as_list},
        "twinPictures": {n: as_list[path] for n, path in twins.items()},
        "twinBoxes": {n: _flat(run.labels(number[path])) for n, path in twins.items() if run.task != "classify"},
    }


def _details(run: Run, rows: NDArray[np.int64], *wanted: str) -> dict[int, str]:
    """Row → what is known beside its reason, of the rows with one of these: a fault, or the path of a kept twin."""
    reasons, details = run.reasons, run.outcome.columns.get("detail")
    if details is None:
        return {}
    return {row: str(details[i]) for row, i in enumerate(rows) if reasons[i] in wanted and details[i]}


def _classes(i: int, labels: Mapping[int, Labels | None]) -> list[int]:
    found = labels.get(int(i))
    return [] if found is None else np.unique(found.classes).tolist()


def _boxes(labels: Sequence[Labels | None], budget: int) -> Iterator[list[int] | None]:
    """Five numbers a box in one list: class, x1, y1, x2, y2; None from where the budget is spent."""
    for image in labels:
        budget -= 0 if image is None else len(image)
        yield _flat(image) if budget >= 0 or image is None else None


def _flat(image: Labels | None) -> list[int]:
    if image is None:
        return []
    corners = np.rint(_SCALE * image.boxes).astype(np.int64)
    return np.column_stack([image.classes, corners]).ravel().tolist()


def _scaled(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[int(c), round(p, 3), *(round(_SCALE * min(max(v, 0), 1)) for v in box)] for c, p, *box in rows]


def _values(values: NDArray[Any]) -> list[Any]:
    """Numbers with three digits, null for none; words as they are."""
    if values.dtype.kind in "US":
        return [shown(str(word)) for word in values]
    if values.dtype.kind in "iub":
        return values.tolist()
    return [_short(v) if math.isfinite(v) else None for v in values.tolist()]


def _short(value: float) -> float | int:
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _history(run: Run, rows: NDArray[np.int64], most: int) -> dict[str, Any]:
    if run.history is None:
        return {"epochs": [], "history": []}
    epochs, weights = run.history
    some = np.unique(np.linspace(0, len(epochs) - 1, min(most, len(epochs))).round().astype(int))
    part = np.ascontiguousarray(weights[some][:, rows].T)
    return {
        "epochs": epochs[some].tolist(),
        "history": [base64.b64encode(line.tobytes()).decode("ascii") for line in part],
    }


def _root(paths: Sequence[str]) -> str:
    """The folder that all paths lie below, with the slash at its end."""
    return os.path.commonpath([os.path.dirname(path) for path in paths]).rstrip("/") + "/" if paths else ""
