"""A review list for Label Studio: tasks with the labels as predictions to start from, and the labelling interface.

https://labelstud.io/guide/tasks and https://labelstud.io/guide/predictions. Images are named as Label Studio serves
local files; it has to be told to. Knows no other format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as Xml

from yolo_adapruner.formats.gathered import Gathered, Picture, dump, write_text, xml_safe

_SERVED = "/data/local-files/?d="
_FOUND = ("reason", "detail", "suspicion", "weight")


def write(run: Gathered) -> tuple[list[Path], str]:
    """Write the folder `labelstudio`: tasks.json and interface.xml."""
    rows, note = run.to_review()
    xml_safe(run.classes.values(), "labelstudio")
    folder = run.folder / "labelstudio"
    folder.mkdir(exist_ok=True)
    tasks = [_task(picture, run.classes) for picture in run.pictures(rows)]
    body = "[" + ",\n".join(map(dump, tasks)) + "]\n"
    return [
        write_text(folder / "tasks.json", body),
        write_text(folder / "interface.xml", _interface(run.classes)),
    ], note


def _interface(classes: Mapping[int, str]) -> str:
    """The labelling interface that tasks.json is for."""
    view = Xml.Element("View")
    Xml.SubElement(view, "Header", {"value": "$why"})
    Xml.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    for kind, name in (("RectangleLabels", "box"), ("PolygonLabels", "outline")):
        labels = Xml.SubElement(view, kind, {"name": name, "toName": "image"})
        for label in classes.values():
            Xml.SubElement(labels, "Label", {"value": label})
    Xml.indent(view)
    return Xml.tostring(view, encoding="unicode") + "\n"


def _task(picture: Picture, classes: Mapping[int, str]) -> dict[str, Any]:
    found = {name: picture.scores[name] for name in _FOUND if name in picture.scores}
    words = [str(value) for name in ("reason", "detail") if (value := found.get(name))]
    return {
        "id": picture.number + 1,
        "data": {
            "image": _SERVED + quote(picture.path.lstrip("/")),
            "path": picture.path,
            "why": ": ".join(words) or "dropped",
        },
        "meta": found,
        "predictions": [
            {
                "model_version": "labels as they are",
                "score": _score(picture.scores),
                "result": [_region(picture, i, classes) for i in range(len(picture.shapes.labels))],
            }
        ],
    }


def _score(scores: Mapping[str, Any]) -> float:
    """How far the labels are to be trusted, [0, 1]: by the odds that they are wrong, or else the image's weight.

    Label Studio sorts by it, lowest first.
    """
    if (suspicion := scores.get("suspicion")) is None:
        return float(scores.get("weight") or 0.0)
    return 0.5 * (1 - math.tanh(suspicion / 2))


def _region(picture: Picture, i: int, classes: Mapping[int, str]) -> dict[str, Any]:
    label = classes[int(picture.shapes.labels.classes[i])]
    region = {
        "id": f"{picture.number + 1}-{i}",
        "to_name": "image",
        "original_width": picture.width,
        "original_height": picture.height,
        "image_rotation": 0,
    }
    if (outline := picture.shapes.outlines[i]) is not None:
        value = {"points": (100 * outline.clip(0, 1)).tolist(), "closed": True, "polygonlabels": [label]}
        return {**region, "from_name": "outline", "type": "polygonlabels", "value": value}
    x1, y1, x2, y2 = (100 * picture.shapes.labels.boxes[i]).tolist()
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    value = {**place, "rectanglelabels": [label]}
    return {**region, "from_name": "box", "type": "rectanglelabels", "value": value}
