"""A review list for CVAT: annotations in "CVAT for images 1.1", the labels of a task to import them into, the images.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Knows no other format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from yolo_adapruner.formats.gathered import Gathered, Picture, dump, write_text, xml_safe

_ATTRIBUTES = ("reason", "detail", "suspicion", "weight")


def write(run: Gathered) -> tuple[list[Path], str]:
    """Write the folder `cvat`: annotations.xml, labels.json and images.txt."""
    rows, note = run.to_review()
    pictures = list(run.pictures(rows))
    xml_safe([*run.classes.values(), *(picture.name for picture in pictures)], "cvat")
    folder = run.folder / "cvat"
    folder.mkdir(exist_ok=True)
    tag = _tag_name(run.classes)
    root = Xml.Element("annotations")
    Xml.SubElement(root, "version").text = "1.1"
    root.append(_meta(run.classes, tag, len(pictures)))
    root.extend(_image(i, picture, run.classes, tag) for i, picture in enumerate(pictures))
    Xml.indent(root)
    text = '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"
    annotations = write_text(folder / "annotations.xml", text)
    labels = write_text(folder / "labels.json", dump(_labels(run.classes, tag)) + "\n")
    images = write_text(folder / "images.txt", "".join(f"{picture.path}\n" for picture in pictures))
    return [annotations, labels, images], note


def _tag_name(classes: Mapping[int, str]) -> str:
    """What marks an image: a label beside the classes, named as none of them."""
    name = "suspect"
    while name in classes.values():
        name += "_"
    return name


def _labels(classes: Mapping[int, str], tag: str) -> list[dict[str, Any]]:
    """The labels of a task, as CVAT's "Raw" tab takes them."""
    text = {"mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    own = {"name": tag, "type": "tag", "attributes": [{"name": name, **text} for name in _ATTRIBUTES]}
    return [*({"name": name, "attributes": []} for name in classes.values()), own]


def _meta(classes: Mapping[int, str], tag: str, size: int) -> Xml.Element:
    meta = Xml.Element("meta")
    task = Xml.SubElement(meta, "task")
    for key, value in (("name", "yolo-adapruner: suspect labels"), ("size", str(size)), ("mode", "annotation")):
        Xml.SubElement(task, key).text = value
    labels = Xml.SubElement(task, "labels")
    for label in _labels(classes, tag):
        element = Xml.SubElement(labels, "label")
        Xml.SubElement(element, "name").text = label["name"]
        attributes = Xml.SubElement(element, "attributes")
        for attribute in label["attributes"]:
            own = Xml.SubElement(attributes, "attribute")
            for key in ("name", "mutable", "input_type", "default_value"):
                Xml.SubElement(own, key).text = str(attribute[key])
            Xml.SubElement(own, "values").text = ""
    return meta


def _image(number: int, picture: Picture, classes: Mapping[int, str], tag: str) -> Xml.Element:
    size = {"width": str(picture.width), "height": str(picture.height)}
    image = Xml.Element("image", {"id": str(number), "name": picture.name, **size})
    for i, cls in enumerate(picture.shapes.labels.classes.tolist()):
        image.append(_shape(picture, i, classes[cls]))
    mark = Xml.SubElement(image, "tag", {"label": tag, "source": "auto"})
    for name in _ATTRIBUTES:
        Xml.SubElement(mark, "attribute", {"name": name}).text = _word(picture.scores.get(name))
    return image


def _shape(picture: Picture, i: int, label: str) -> Xml.Element:
    shared = {"label": label, "source": "file", "occluded": "0", "z_order": "0"}
    if (outline := picture.outline(i)) is not None:
        return Xml.Element("polygon", {**shared, "points": ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)})
    corners = zip(("xtl", "ytl", "xbr", "ybr"), picture.boxes[i], strict=True)
    return Xml.Element("box", {**shared, **{key: f"{value:.2f}" for key, value in corners}})


def _word(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
