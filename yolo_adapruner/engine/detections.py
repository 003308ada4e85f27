"""A detector's boxes and the ground truth, as Ultralytics' own validation sees them, in native pixels.

One stock validation pass, watched. Knows nothing of masks, arms or COCO; `study/evaluate.py` says what boxes are worth.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_adapruner.data.boxes import ImageDetections, unique_names
from yolo_adapruner.engine import labelcache, runtime
from yolo_adapruner.engine.trouble import quiet
from yolo_adapruner.errors import ConfigError, DataError

_WRITES = {"plots", "visualize", "save_json", "save_txt", "project", "name", "save_dir"}
_OURS = frozenset({"task", "mode", "model", "val", "single_cls", "classes", "verbose"} | _WRITES)
"""Ultralytics keys `collect` decides itself: what would write files, or change what is ground truth."""


def collect_listed(
    weights: str | Path, data: Mapping[str, Any], paths: Sequence[str], **settings: Any
) -> list[ImageDetections]:
    """Do as `collect` for some images of a run's data set; one that cannot be read is left out.

    Args:
        weights: A detection checkpoint (.pt).
        data: The data set as a run's manifest holds it, with all it says, such as channels: `path` and `rest`.
        paths: Absolute image paths, not empty.
        **settings: What else `collect` takes.

    Raises:
        ConfigError, DataError: see `collect`.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed, file = Path(folder, "images.txt"), Path(folder, "data.yaml")
        listed.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        content = {**data["rest"], "path": data["path"], "train": str(listed), "val": str(listed)}
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return collect(weights, file, "val", **settings)[0]


def collect(
    weights: str | Path,
    data: str | Path,
    split: str,
    *,
    imgsz: int,
    batch: int,
    device: str | None = None,
    threads: int | None = None,
    **val_args: Any,
) -> tuple[list[ImageDetections], dict[str, float]]:
    """Validate once as `yolo val` would and keep every box: ground truth and detections an image, native pixels.

    Confidence floor, NMS, cap of detections, rectangular batches: Ultralytics' defaults (0.001, 0.7, 300, on).
    Nothing is rounded and nothing is clipped to the image: these are the boxes the validator itself judges, with the
    letterbox undone in float64. Nothing is written. An image that a
    list names twice is kept once. The number of torch threads is put back afterwards.

    Args:
        weights: A detection checkpoint (.pt).
        data: A data.yaml; its images must be there, nothing is downloaded.
        split: "train", "val" or "test".
        imgsz: Side the images are letterboxed to, pixels.
        batch: Images a forward pass.
        device: Ultralytics' `device`; None lets it choose.
        threads: torch threads on the CPU; None takes all this process may use (Ultralytics alone would leave one out).
        **val_args: More of Ultralytics' validation arguments, such as `iou`, `max_det`, `rect`, `workers`, `half`.

    Returns:
        The images in the order validated, and Ultralytics' own figures from this very pass, in [0, 1]: "map50_95",
        "map50", "precision", "recall", and "ap50_95/<class>" for every class with ground truth.

    Raises:
        ConfigError: the weights are no detection checkpoint, or an argument is unknown or not the caller's to set.
        DataError: the data set or its split is missing, or has classes that the model has not.
    """
    _check_arguments(weights, val_args)
    _check_data(data, split)
    args = {
        "rect": True,
        **val_args,
        "imgsz": imgsz,
        "batch": batch,
        "device": device,
        "data": str(data),
        "split": split,
    }
    args |= {"mode": "val", "task": "detect", "val": False, "plots": False, "verbose": False}
    before = torch.get_num_threads()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = YOLO(str(weights))
        if (
            model.task != "detect" or model.task_map["detect"]["validator"] is not DetectionValidator
        ):  # RT-DETR's is not
            kind = f"{type(model).__name__} for {model.task!r}"
            raise ConfigError(f"Expected a YOLO checkpoint for 'detect', but {weights} is {kind}; pick another.")
        recorder = _Recorder(Path(folder), args, threads or runtime.cores())
        try:
            recorder(model=model.model)
        finally:
            torch.set_num_threads(before)
    return list(recorder.records.values()), _figures(recorder)


class _Recorder(DetectionValidator):
    """The stock validator, which also notes what it compares; every number it computes is its own."""

    def __init__(self, save_dir: Path, args: dict[str, Any], threads: int) -> None:
        """Keep results in `save_dir`, run on `threads` torch threads; `args` are Ultralytics' validation arguments."""
        super().__init__(save_dir=save_dir, args=args)
        self.threads = threads
        self.records: dict[str, ImageDetections] = {}

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Called once the device is chosen, and choosing it has set the number of threads: set it again."""
        super().init_metrics(model)
        torch.set_num_threads(self.threads)
        if self.nc < self.data["nc"]:  # the loader has dropped those labels by now, and the figures would look too good
            raise DataError(
                f"Expected a model of {self.data['nc']} classes, but got {self.nc}; train it on this data set."
            )

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Return Ultralytics' own data set, its labels read anew."""
        split = self.args.split or "val"
        return labelcache.build(self.args, img_path, batch, self.data, mode=mode, stride=self.stride, split=split)

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Note each image of the batch after the stock bookkeeping."""
        super().update_metrics(preds, batch)
        for si, pred in enumerate(preds):
            truth = self._prepare_batch(si, batch)
            self.records[truth["im_file"]] = ImageDetections(
                path=truth["im_file"],
                shape=(int(truth["ori_shape"][0]), int(truth["ori_shape"][1])),
                gt_boxes=_native(truth["bboxes"], truth),
                gt_classes=truth["cls"].cpu().numpy().astype(np.int64),
                boxes=_native(pred["bboxes"], truth),
                scores=pred["conf"].cpu().numpy().astype(np.float64),
                classes=pred["cls"].cpu().numpy().astype(np.int64),
            )


def _native(boxes: torch.Tensor, image: dict[str, Any]) -> NDArray[np.float64]:
    """Boxes (n, 4) xyxy of the letterboxed input in pixels of the image file, float64.

    Ultralytics' own `scale_boxes` also clips to the image, which its validator does not do before it matches.
    """
    (gain_y, gain_x), (pad_x, pad_y) = image["ratio_pad"]
    exact = boxes.cpu().numpy().astype(np.float64)
    return (exact - (pad_x, pad_y, pad_x, pad_y)) / (gain_x, gain_y, gain_x, gain_y)


def _figures(validator: DetectionValidator) -> dict[str, float]:
    """Ultralytics' own figures of a finished pass, under our names."""
    box = validator.metrics.box
    means = {"map50_95": box.map, "map50": box.map50, "precision": box.mp, "recall": box.mr}
    names = unique_names(validator.data["names"])
    classes = {f"ap50_95/{names[int(c)]}": ap for c, ap in zip(box.ap_class_index, box.ap, strict=True)}
    return {name: float(value) for name, value in (means | classes).items()}


def _check_arguments(weights: str | Path, val_args: dict[str, Any]) -> None:
    """Raise ConfigError for weights that are not there and for arguments `collect` cannot take."""
    if not (Path(weights).is_file() and Path(weights).suffix == ".pt"):
        raise ConfigError(f"Expected the path of a .pt checkpoint, but got {str(weights)!r}; train one first.")
    if ours := sorted(_OURS & set(val_args)):
        raise ConfigError(
            f"Expected none of {sorted(_OURS)}, but got {ours}; collect() sets these itself, leave them out."
        )
    if unknown := sorted(set(val_args) - set(DEFAULT_CFG_DICT)):
        raise ConfigError(f"Expected Ultralytics' validation arguments, but got {unknown}; check the spelling.")


def _check_data(data: str | Path, split: str) -> None:
    """Raise DataError unless Ultralytics finds the data set and this split of it, without downloading any."""
    try:
        check_det_dataset(str(data), autodownload=False, split=split)
    except (FileNotFoundError, SyntaxError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"Expected a data.yaml with images for split {split!r}, but got {data}: {reason}") from error
