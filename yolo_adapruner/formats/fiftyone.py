"""A folder that FiftyOne imports as a data set of its own: each image with its labels and what the run found.

`fo.Dataset.from_dir(dataset_dir="RUN/fiftyone", dataset_type=fo.types.FiftyOneDataset)`. It is FiftyOne's older layout,
which needs no schema of its database and which it promises to go on reading. Knows no other format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yolo_adapruner.formats.gathered import Gathered, Picture, dump, write_lists, write_text


def write(run: Gathered) -> tuple[list[Path], str]:
    """Write the folder `fiftyone`: samples.json and metadata.json."""
    folder = run.folder / "fiftyone"
    folder.mkdir(exist_ok=True)
    write_lists(folder / "samples.json", {}, samples=_samples(run))
    info = {"source": run.manifest["data"]["source"], "classes": {"ground_truth": list(run.classes.values())}}
    metadata = write_text(folder / "metadata.json", dump({"media_type": "image", "info": info}) + "\n")
    return [metadata, folder / "samples.json"], ""


def _samples(run: Gathered) -> Iterator[dict[str, Any]]:
    return (_sample(picture, run.classes) for picture in run.pictures())


def _sample(picture: Picture, classes: Mapping[int, str]) -> dict[str, Any]:
    labels = picture.shapes.labels
    each = range(len(labels))
    boxes = [_box(picture, i, classes) for i in each if picture.shapes.outlines[i] is None]
    outlines = [_outline(picture, i, classes) for i in each if picture.shapes.outlines[i] is not None]
    sample: dict[str, Any] = {
        "filepath": picture.path,
        "tags": ["kept" if picture.kept else "dropped"],
        "metadata": {"_cls": "ImageMetadata", "width": picture.width, "height": picture.height},
        "ground_truth": {"_cls": "Detections", "detections": boxes},
        "kept": picture.kept,
        **picture.scores,
    }
    if outlines:
        sample["outlines"] = {"_cls": "Polylines", "polylines": outlines}
    return sample


def _box(picture: Picture, i: int, classes: Mapping[int, str]) -> dict[str, Any]:
    x1, y1, x2, y2 = picture.shapes.labels.boxes[i].tolist()
    label = classes[int(picture.shapes.labels.classes[i])]
    return {"_cls": "Detection", "label": label, "bounding_box": [x1, y1, x2 - x1, y2 - y1], "tags": []}


def _outline(picture: Picture, i: int, classes: Mapping[int, str]) -> dict[str, Any]:
    outline = picture.shapes.outlines[i]
    assert outline is not None
    label = classes[int(picture.shapes.labels.classes[i])]
    points = [outline.clip(0, 1).tolist()]
    return {"_cls": "Polyline", "label": label, "points": points, "closed": True, "filled": True, "tags": []}
