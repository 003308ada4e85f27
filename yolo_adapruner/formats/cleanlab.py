"""What cleanlab.object_detection works from: labels and predictions of every training image, as plain arrays.

cleanlab takes lists of dictionaries and of arrays; those would have to be pickled, and a pickle runs what is in it. So
one .npz without objects is written, and `load` gives the lists. Knows no other format.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.export import replace_file
from yolo_adapruner.errors import DataError, RunError
from yolo_adapruner.formats.gathered import Gathered

_FLOOR = 0.05
"""Least confidence of a prediction: MMDetection's, whose results cleanlab's format is."""


def write(run: Gathered) -> tuple[list[Path], str]:
    """Write `cleanlab.npz`, running the best checkpoint over the images for the predictions."""
    pictures = list(run.pictures())
    counts = [len(picture.shapes.labels) for picture in pictures]
    arrays: dict[str, Any] = {
        "image_names": np.array([picture.path for picture in pictures]),
        "label_counts": np.array(counts, np.int64),
        "bboxes": np.concatenate([picture.boxes for picture in pictures]).astype(np.float32),
        "labels": np.concatenate([picture.shapes.labels.classes for picture in pictures]),
    }
    found, note = _predictions(run)
    if found is not None:
        flat = [boxes for image in found for boxes in image]
        arrays["prediction_counts"] = np.array([[len(boxes) for boxes in image] for image in found], np.int64)
        arrays["predictions"] = np.concatenate(flat).astype(np.float32)
    target = run.folder / "cleanlab.npz"
    with replace_file(target) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    return [target], note


def load(file: str | Path) -> tuple[list[dict[str, Any]], list[list[NDArray[np.float32]]] | None]:
    """Return cleanlab's `labels` and `predictions` from what `export --format cleanlab` wrote.

    Returns:
        labels: an image each, `{"bboxes": (L, 4) x1 y1 x2 y2 in pixels, "labels": (L,), "image_name": path}`, in the
            order of scores.csv; predictions: for each image and class an (M, 5) of x1 y1 x2 y2 and confidence, or None
            where the run has none.

    Raises:
        RunError: the file is missing, torn or not one of these.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names, counts = arrays["image_names"].tolist(), arrays["label_counts"]
            boxes, classes = _split(arrays["bboxes"], counts), _split(arrays["labels"], counts)
            labels = [
                {"bboxes": b, "labels": c, "image_name": name} for name, b, c in zip(names, boxes, classes, strict=True)
            ]
            if "predictions" not in arrays:
                return labels, None
            cells = arrays["prediction_counts"]
            each = _split(arrays["predictions"], cells.ravel())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"Expected a cleanlab.npz of this package in {file}, but it cannot be read ({error}).") from None
    width = cells.shape[1]
    return labels, [each[i * width : (i + 1) * width] for i in range(len(labels))]


def _split(rows: NDArray[Any], counts: NDArray[np.int64]) -> list[NDArray[Any]]:
    if counts.sum() != len(rows):
        raise ValueError(f"{len(rows)} rows for {counts.sum()}")
    return np.split(rows, np.cumsum(counts)[:-1])


def _predictions(run: Gathered) -> tuple[list[list[NDArray[np.float64]]] | None, str]:
    """What best.pt finds, by image and class; None where it is no detector's or gone, and what to say of that."""
    weights, train = run.folder / "weights" / "best.pt", run.manifest.get("train", {})
    if run.task != "detect":
        return None, f"labels only: cleanlab judges the boxes of a detector, and this run is for {run.task}"
    if not weights.is_file():
        return None, f"labels only: there is no {weights} to predict with"
    from yolo_adapruner.engine.detections import collect_listed

    batch = train.get("batch")
    images = collect_listed(
        weights,
        run.manifest["data"],
        run.outcome.paths,
        imgsz=int(train.get("imgsz", 640)),
        batch=batch if isinstance(batch, int) and batch > 0 else 16,
        device=train.get("device"),
        conf=_FLOOR,
    )
    by_path = {image.path: np.column_stack([image.boxes, image.scores, image.classes]) for image in images}
    if gone := [path for path in run.outcome.paths if path not in by_path]:
        raise DataError(
            f"Expected the {len(run.outcome.paths)} images of the run, but {len(gone)} cannot be read or have labels "
            f"that Ultralytics refuses, the first: {gone[0]}. Mend or restore it."
        )
    rows = [by_path[path] for path in run.outcome.paths]
    split = [[r[r[:, 5] == c, :5] for c in range(len(run.classes))] for r in rows]
    return split, "predictions are of the checkpoint that was trained on these images; cleanlab prefers held-out ones"
