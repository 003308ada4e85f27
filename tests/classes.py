"""A classification set and network small enough to train in seconds, in class folders. Asserts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from tests import helpers

NAMES = ("cross", "disc", "square")  # as their folders are sorted
ARCHITECTURE = {
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "Classify", ["nc"]]],
}


def build_folders(root: Path, *, train: int = 30, val: int = 9, test: int = 0, size: int = 32, seed: int = 0) -> Path:
    """Write a set of shapes, one a picture, the classes in turn, and return its root."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for i in range(count):
            name = NAMES[i % 3]
            shape = (helpers.NAMES.index(name), *rng.uniform(0.4, 0.6, 2), float(rng.uniform(0.4, 0.6)))
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{i:03}.png"), helpers.picture(size, [shape], rng))
    return root


def write_architecture(file: Path) -> Path:
    """Write the small classifier's architecture file."""
    file.write_text(yaml.safe_dump(ARCHITECTURE, sort_keys=False), encoding="utf-8")
    return file


def train_here(data: Path, folder: Path, **settings: Any) -> Any:
    """Train the small classifier in this process, as `helpers.train_here` does a detector, and return the trainer."""
    from yolo_adapruner import AdaPruneClassificationTrainer

    folder.parent.mkdir(parents=True, exist_ok=True)
    model = settings.pop("model", None) or write_architecture(folder.parent / "small-cls.yaml")
    quick = {"imgsz": 32, "trainer": AdaPruneClassificationTrainer, "model": model}
    return helpers.train_here(data, folder, **{**quick, **settings})
