"""The gradient of each image's loss by a finished detector's last layer. Knows nothing of what it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import labelcache
from yolo_adapruner.errors import ConfigError

BRANCHES = ("box", "class")


@dataclass(frozen=True)
class Gradients:
    """Of N images, by the last layer: `box` and `class`, (N, P) float32 each, and the images' paths."""

    paths: list[str]
    box: NDArray[np.float32]
    classes: NDArray[np.float32]


def gradients(weights: str | Path, data: dict[str, Any], split: str, imgsz: int) -> Gradients:
    """Return each image's loss gradient by the last layer, without augmentation, in evaluation mode, on the CPU.

    The loss is Ultralytics' own of the image alone, with its own normaliser.

    Args:
        weights: checkpoint of a detector whose head has the branches `cv2` (boxes) and `cv3` (classes).
        data: what `load_data` returns.
        split: "train" or "val".
        imgsz: side the images are letterboxed to, pixels.

    Raises:
        ConfigError: the checkpoint is no such detector.
    """
    loaded = YOLO(str(weights))
    model: Any = loaded.model.float().eval()
    head = model.model[-1]
    if loaded.task != "detect" or not hasattr(head, "cv2") or not hasattr(head, "cv3"):
        raise ConfigError(f"Expected a detector with box and class branches, but {weights} is {type(head).__name__}.")
    last = {"box": [branch[-1] for branch in head.cv2], "class": [branch[-1] for branch in head.cv3]}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    leaves = {name: [p for conv in convs for p in conv.parameters()] for name, convs in last.items()}
    for parameter in (p for group in leaves.values() for p in group):
        parameter.requires_grad_(True)
    head.training = True  # its raw outputs, which the loss takes; the normalisation below it stays as it is
    model.args = get_cfg(DEFAULT_CFG)
    criterion = model.init_criterion()
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in BRANCHES}
    files = labelcache.build(get_cfg(DEFAULT_CFG, {"imgsz": imgsz, "rect": False}), data[split], 1, data, mode="val")
    paths = []
    for i in range(len(files)):
        batch = files.collate_fn([files[i]])
        loss, _ = criterion(model(batch["img"].float() / 255), batch)
        parts = torch.autograd.grad(loss.sum(), [p for group in leaves.values() for p in group], allow_unused=True)
        flat = iter(parts)
        for name, group in leaves.items():
            rows = [torch.zeros_like(p) if (g := next(flat)) is None else g for p in group]
            found[name].append(torch.cat([row.flatten() for row in rows]).numpy())
        paths.append(images.identity(batch["im_file"][0]))
    return Gradients(paths, np.stack(found["box"]), np.stack(found["class"]))
