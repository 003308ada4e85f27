"""Which images a data file's splits hold, as Ultralytics resolves them. Builds a set that is not there yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset, img2label_paths

from yolo_adapruner.engine import classset, labelcache, runtime
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine.names import refuse_script, resolve_data
from yolo_adapruner.engine.trouble import one_line, one_line_errors
from yolo_adapruner.errors import AdaPrunerError


def load_data(data: str, task: str = "detect") -> dict[str, Any]:
    """Return a data file's content with absolute split paths, building or fetching the set if it says how.

    For `classify` it is a folder's, see `classset.load`.

    Raises:
        DataError: the file or its set is missing or says something that cannot be.
    """
    runtime.offer_font()
    with one_line_errors(data):
        file = resolve_data(data, task)
        if task != "classify":
            refuse_script(file)
        try:
            if task == "classify":
                return classset.load(file)
            return check_det_dataset(file)
        except (AdaPrunerError, ConnectionError):
            raise
        except Exception as error:  # as Ultralytics' trainer has it: whatever goes wrong here is the data file's fault
            raise RuntimeError(f"Dataset '{data}' error: {one_line(error)}") from error


def split_images(data: dict[str, Any], split: str) -> list[str]:
    """Return the absolute paths of a split's readable images, sorted, each once.

    Raises:
        DataError: the split has no readable image.
    """
    with one_line_errors(str(data.get("yaml_file", "data"))):
        cfg = get_cfg(overrides={"task": "detect", "mode": "val"})
        return images.unique_paths(labelcache.build(cfg, data[split], 1, data, mode="val"))


def content_print(data: dict[str, Any]) -> str:
    """Return what a set is recognised by wherever it lies: its images' names and sizes in bytes, and its labels.

    Args:
        data: as `load_data` gives it.

    Raises:
        DataError: a split has no readable image.
    """
    found = hashlib.sha256()
    for split in ("train", "val", "test"):
        if not data.get(split):
            continue
        classify = data.get("task") == "classify"
        paths = sorted(classset.split_images(data[split])) if classify else split_images(data, split)
        labels = [""] * len(paths) if classify else img2label_paths(paths)
        for path, name, label in zip(paths, relative(paths, data), labels, strict=True):
            text = Path(label).read_bytes() if label and Path(label).is_file() else b""
            found.update(f"{split} {name} {Path(path).stat().st_size} ".encode("utf-8", "replace"))
            found.update(hashlib.sha256(text).digest())
    return found.hexdigest()


def relative(paths: Iterable[str], data: Mapping[str, Any]) -> list[str]:
    """Return images' paths inside their set, or the name alone of one that lies elsewhere; with forward slashes.

    Ultralytics resolves links in the splits' paths and not in the set's own.
    """
    roots = [Path(data["path"]), Path(data["path"]).resolve()] if "path" in data else []
    found = []
    for path in map(Path, paths):
        inside = next((root for root in roots if path.is_relative_to(root)), path.parent)
        found.append(path.relative_to(inside).as_posix())
    return found


def box_classes(paths: Sequence[str]) -> list[list[int]]:
    """Return the classes of each image's labelled boxes, read off its label file; none where there is no file."""
    files = [Path(file) for file in img2label_paths(list(paths))]
    texts = [file.read_text(encoding="utf-8-sig") if file.is_file() else "" for file in files]
    return [[int(float(line.split()[0])) for line in text.splitlines() if line.strip()] for text in texts]
