"""A classifier's answer to each image of a split, as Ultralytics' own validation gives it.

What `detections` is for boxes. Knows nothing of masks and arms; `study/topk.py` says what ranks are worth.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.models.yolo.classify import ClassificationValidator

from yolo_adapruner.engine import classset, runtime
from yolo_adapruner.engine.transforms import KEY
from yolo_adapruner.engine.trouble import quiet
from yolo_adapruner.errors import ConfigError


def collect(
    weights: str | Path, data: str | Path, split: str, *, imgsz: int, batch: int, device: str | None = None
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64], dict[str, float]]:
    """Validate once as `yolo val` would and keep where each image's label stood.

    Args:
        weights: a classification checkpoint (.pt).
        data: a folder of class folders.
        split: "val" or "test".
        imgsz: side of the network input in pixels.
        batch: images a forward pass.
        device: Ultralytics' `device`; None lets it choose.

    Returns:
        Absolute paths, sorted; the labels, (n,); how many classes came before the label, (n,); and Ultralytics' own
        "top1" and "top5" of this very pass, in [0, 1].

    Raises:
        ConfigError: the weights are no classification checkpoint.
    """
    before = torch.get_num_threads()
    args: dict[str, Any] = {"imgsz": imgsz, "batch": batch, "device": device, "data": str(data), "split": split}
    args |= {"mode": "val", "task": "classify", "val": False, "plots": False, "verbose": False}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = YOLO(str(weights))
        if model.task != "classify":
            raise ConfigError(f"Expected a checkpoint for classify, but {weights} is for {model.task}: pick another.")
        recorder = _Recorder(Path(folder), args)
        try:
            recorder(model=model.model)
        finally:
            torch.set_num_threads(before)
    order = np.argsort(np.array(recorder.paths))
    labels, ranks = (np.array(column, np.int64)[order] for column in (recorder.labels, recorder.ranks))
    own = {"top1": float(recorder.metrics.top1), "top5": float(recorder.metrics.top5)}
    return [recorder.paths[i] for i in order], labels, ranks, own


class _Recorder(ClassificationValidator):
    """The stock validator, which also notes what it compares; every number it computes is its own."""

    def __init__(self, save_dir: Path, args: dict[str, Any]) -> None:
        super().__init__(save_dir=save_dir, args=args)
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.ranks: list[int] = []

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Called once the device is chosen, and choosing it has set the number of threads: set it again."""
        super().init_metrics(model)
        runtime.use_all_cores()

    def build_dataset(self, img_path: str) -> Any:
        """Return Ultralytics' own data set with the row of each image: its loader shuffles."""
        dataset = classset.FolderDataset(img_path, self.args, augment=False, prefix=self.args.split, names=self.names)
        dataset.numbered = True
        self._files = classset.files(dataset)
        return dataset

    def update_metrics(self, preds: torch.Tensor, batch: dict[str, Any]) -> None:
        """Note each image of the batch after the stock bookkeeping."""
        super().update_metrics(preds, batch)
        order = preds.argsort(1, descending=True)
        place = (order == batch["cls"][:, None].to(order.device)).float().argmax(1)
        self.paths += [self._files[i] for i in classset.rows_of(batch[KEY])]
        self.labels += batch["cls"].tolist()
        self.ranks += place.tolist()
