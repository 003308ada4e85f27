"""What a comparison of classifiers does in its own way: its sets are folders of links, and top-1 is what counts.

The counterpart of what `ground` and `cells` do with data files and boxes. Knows no statistics.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo_adapruner.config import RunConfig
from yolo_adapruner.data import classfolders, export
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.topk import Ranks

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def judge_folder(folder: Path, data: Mapping[str, Any], seed: int) -> tuple[Path, str]:
    """Write the set every cell trains from, and return its root and, in words, what is reported on.

    Its `val` chooses and its `test` is reported on: the set's own, or two seeded halves of the one there is.

    Raises:
        ConfigError: there are neither both splits nor two images to halve.
    """
    from yolo_adapruner.engine.classset import split_images

    target = folder.resolve() / "data"
    with tempfile.TemporaryDirectory(prefix=".data.", suffix=".tmp", dir=folder) as beside:
        half = Path(beside, "set")
        half.mkdir()
        classfolders.link_folder(Path(data["train"]), half / "train")
        if data["val"] and data["test"]:
            for split in ("val", "test"):
                classfolders.link_folder(Path(data[split]), half / split)
            reported_on = "test split"
        else:
            source = Path(data["val"] or data["test"])
            paths = split_images(source)
            if len(paths) < 2:
                raise ConfigError(f"Expected a test split or two images or more to halve, but {source} has one.")
            chosen = np.zeros(len(paths), bool)
            chosen[np.random.default_rng([seed, len(paths)]).permutation(len(paths))[: len(paths) // 2]] = True
            for split, rows in (("val", chosen), ("test", ~chosen)):
                for name in data["names"].values():
                    (half / split / name).mkdir(parents=True)
                for path, row in zip(paths, rows, strict=True):
                    if row:
                        classfolders.link(Path(path), half / split / Path(path).relative_to(source))
            what = "validation" if data["val"] else "test"
            reported_on = f"seeded half of the {what} images ({int((~chosen).sum())} of {len(paths)})"
        classfolders.put(half, target)
    return target, reported_on


def list_set(target: Path, paths: Sequence[str], base: Path) -> Path:
    """Write the set of an arm that trains on a list of the base set's images, and return its root."""
    parts: dict[str, Any] = {split: str(base / split) for split in ("train", "val", "test")}
    return classfolders.write(target, paths, {**parts, "names": _names(base)})


def classes_of(paths: Sequence[str], base: Path) -> list[list[int]]:
    """Return the class of each training image, as a list of one: what an image of boxes has several of."""
    numbers = {name: c for c, name in _names(base).items()}
    return [[numbers[Path(path).relative_to(base / "train").parts[0]]] for path in paths]


def figures(result: RunResult, base: Path, config: RunConfig, file: Path) -> dict[str, Any]:
    """Return what a cell's classifier is worth on the reported images, and write where each label stood to `file`.

    Top-1 and top-5 stand where a detector's mAP50-95 and mAP50 do, so that what follows need not ask.
    """
    from yolo_adapruner.engine.classified import collect

    paths, labels, ranks, own = collect(
        result.weights, base, "test", imgsz=config.imgsz, batch=int(config.batch), device=config.device
    )
    found = Ranks(tuple(paths), labels, ranks)
    with export.replace_file(file) as temporary:
        found.save(temporary)
    return {
        "map50_95": float(found.top(1)[0]),
        "map50": float(found.top(5)[0]),
        "per_class": found.per_class(_names(base)),
        "by_size": {},
        "ultralytics_map50_95": own["top1"],
        "ultralytics_map50": own["top5"],
        "validation_map50_95": result.map50_95,
    }


def _names(base: Path) -> dict[int, str]:
    return dict(enumerate(classfolders.class_names(base / "train")))
