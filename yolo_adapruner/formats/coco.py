"""COCO's JSON of a run: the kept images, or all of them with what the run found. Knows no other format.

Ids do not depend on what is kept: an image's is its place in the run's list, an annotation's its place among all labels
of that list, both from 1 (COCO's own evaluation takes an annotation 0 for none); a category's is the class id and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolo_adapruner.formats.gathered import Gathered, Picture, write_lists


def write(run: Gathered) -> tuple[list[Path], str]:
    """Write `coco.json`: the kept images."""
    return _write(run, run.folder / "coco.json", everything=False)


def write_all(run: Gathered) -> tuple[list[Path], str]:
    """Write `coco-all.json`: all images, each with `kept` and the columns of scores.csv beside COCO's own keys."""
    return _write(run, run.folder / "coco-all.json", everything=True)


def _write(run: Gathered, target: Path, *, everything: bool) -> tuple[list[Path], str]:
    images: list[dict[str, Any]] = []
    data, which = run.manifest["data"], "Training" if everything else "Kept training"
    head = {
        "info": {"description": f"{which} images of {data['source']}", "root": data["path"]},
        "licenses": [],
        "categories": [{"id": c + 1, "name": name, "supercategory": ""} for c, name in run.classes.items()],
    }
    write_lists(target, head, annotations=_annotations(run, images, everything=everything), images=images)
    return [target], ""


def _annotations(run: Gathered, images: list[dict[str, Any]], *, everything: bool) -> Iterator[dict[str, Any]]:
    """Yield the labels of the images that are wanted, and note those images: each label file is read once."""
    first = 1
    for picture in run.pictures():
        if everything or picture.kept:
            found = {"kept": picture.kept, **picture.scores} if everything else {}
            own = {"file_name": picture.name, "width": picture.width, "height": picture.height}
            images.append({"id": picture.number + 1, **own, **found})
            for i in range(len(picture.shapes.labels)):
                yield {"id": first + i, "image_id": picture.number + 1, **_annotation(picture, i)}
        first += len(picture.shapes.labels)


def _annotation(picture: Picture, i: int) -> dict[str, Any]:
    x1, y1, x2, y2 = picture.boxes[i].tolist()
    outline = picture.outline(i)
    area = (x2 - x1) * (y2 - y1) if outline is None else _area(outline[:, 0], outline[:, 1])
    annotation = {
        "category_id": int(picture.shapes.labels.classes[i]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
        "iscrowd": 0,
        "segmentation": [] if outline is None else [outline.ravel().tolist()],
    }
    if picture.shapes.keypoints is not None:
        points = picture.shapes.keypoints[i] * [picture.width, picture.height, 1]
        annotation |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
    return annotation


def _area(x: Any, y: Any) -> float:
    """A polygon's area by the shoelace formula."""
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)
