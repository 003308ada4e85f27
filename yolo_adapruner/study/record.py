"""Train on everything, prune nothing, and write down what each forward said about each label.

    python -m yolo_adapruner.study.record --data SET/data.yaml --truth SET --model yolo11n.yaml --imgsz 160 \
        --epochs 30 --seed 0 --out rec.npz

A warm-up that never ends: stock training, watched. What it leaves is the material on which ways to judge an image are
compared offline, all on the same run (`analyse.py`). Augmentations that mix images must be off.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_adapruner.config import PruneConfig, key_values
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.data.source import split_files
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine.channels import CHANNELS, detection_channels
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.heads import TASKS
from yolo_adapruner.engine.losses import Assignment, LossTap
from yolo_adapruner.engine.owners import Accounts
from yolo_adapruner.engine.readings import EXTRA, OBJECT, TOP, objects, unexplained
from yolo_adapruner.engine.rehearse import FEATURES, Rehearsal, features
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.truth import CLEAN, Truth, load_truth

RECIPE: dict[str, Any] = {
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 0.001,
    "mosaic": 0.0,
    "scale": 0.25,
    "warmup_epochs": 1.0,
    "plots": False,
    "verbose": False,
}
"""Ultralytics settings of a recording; `key=value` words win over them."""
_MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")
_ROWS = 8192  # a label's place in its image rides on its class as a fraction, which float32 holds exactly


class Sheet:
    """One pass over the images: channels (N, 4), objects (O, 8) and unexplained predictions (N, 10, 4), NaN unseen."""

    def __init__(self, n: int, first: np.ndarray[Any, Any]) -> None:
        """Take the number of images and each one's first object, (N + 1,)."""
        self._first = first
        self.channels = np.full((n, len(CHANNELS)), np.nan, np.float32)
        self.objects = np.full((int(first[-1]), len(OBJECT)), np.nan, np.float32)
        self.unexplained = np.full((n, TOP, len(EXTRA)), np.nan, np.float32)
        self.features = np.full((n, len(FEATURES)), np.nan, np.float32)
        self.rehearsed = np.full((n, len(FEATURES)), np.nan, np.float32)

    def add(self, seen: Assignment, ids: Sequence[int], image: torch.Tensor, row: torch.Tensor) -> None:
        """Note a batch: image ids (B,), and for each label its place in the batch and its row in the image's labels."""
        where = np.asarray(ids)
        self.channels[where] = detection_channels(seen).cpu().numpy()
        self.unexplained[where] = unexplained(seen).cpu().numpy()
        self.features[where] = features(seen).cpu().numpy()
        place, label = image.long().cpu().numpy(), row.long().cpu().numpy()
        slot = np.arange(len(place)) - np.searchsorted(place, place)  # labels of a batch come image by image
        self.objects[self._first[where[place]] + label] = objects(seen).cpu().numpy()[place, slot]


class Recorder(AdaPruneTrainer):
    """Stock training that keeps a `Sheet` an epoch, and every few epochs one of the averaged model's clean forward.

    Attributes:
        clean_every: epochs between clean forwards, 0 for none; the last epoch has one too.
        rehearse: also read each image under labels spoilt in memory (`rehearse.py`).
        sheets, clean: what was seen, an epoch each; `clean_epochs` says of which.
        metric: validation mAP50-95, an epoch each.
    """

    prune_config = PruneConfig(share=0)
    clean_every = 0
    rehearse = False

    def _setup_train(self) -> None:
        super()._setup_train()
        if any(getattr(self.args, name) for name in _MIXING):
            raise ConfigError(f"Expected images that are not mixed, but one of {', '.join(_MIXING)} is on.")
        self.sheets: list[Sheet] = []
        self.clean: list[Sheet] = []
        self.clean_epochs: list[int] = []
        self.metric: list[float] = []
        self._number = {path: i for i, path in enumerate(self.paths)}
        self.first = np.concatenate([[0], np.cumsum(self.boxes)])
        own = self.train_loader.dataset.labels
        self.labels = {
            images.identity(label["im_file"]): (label["cls"].copy(), label["bboxes"].copy()) for label in own
        }
        for label in own:
            label["cls"] = label["cls"] + np.arange(len(label["cls"]), dtype=np.float32)[:, None] / _ROWS
        if self.train_loader.num_workers:
            self.train_loader.reset()  # workers have read the labels already; it also draws, so only where need be
        model = self.model
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        self._watch = LossTap(model.criterion)
        self._rehearsal: Rehearsal | None = None
        if self.rehearse:
            self._rehearsal = Rehearsal.of(self.train_loader.dataset, self._number, self.data["nc"], self.args.seed)

    def run_callbacks(self, event: str) -> None:
        """Keep the books of the epoch, then do as before."""
        if event == "on_train_epoch_start":
            self._watch.watching = True
            self._sheet = Sheet(len(self.paths), self.first)
        elif event == "on_train_batch_end" and self._watch.assignment is not None:
            self._sheet.add(self._watch.assignment, self._in_batch, *self._labels_in_batch)
            if self._rehearsal is not None:
                readings = self._rehearsal.readings(self._watch, self._spoilt).cpu().numpy()
                where, width = np.asarray(self._in_batch), len(FEATURES)
                self._sheet.features[where] = readings[:, :width]
                self._sheet.rehearsed[where] = readings[:, width : 2 * width]
            self._watch.clear()
        elif event == "on_train_epoch_end":
            self._watch.watching = False
            self.sheets.append(self._sheet)
            if self._rehearsal is not None:
                self._rehearsal.sight.close_epoch(self.device)
        super().run_callbacks(event)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take each label's row off its class before anyone reads it."""
        batch = super().preprocess_batch(batch)
        cls = batch["cls"].floor()
        self._labels_in_batch = batch["batch_idx"], ((batch["cls"] - cls) * _ROWS).round()[:, 0]
        batch["cls"] = cls
        self._in_batch = [self._number[images.identity(f)] for f in batch["im_file"]]
        if self._rehearsal is not None:
            whole = np.ones(len(self._in_batch), np.float32)
            alone = Accounts(np.asarray(self._in_batch), whole, whole, None)
            self._spoilt = self._rehearsal.spoil(batch, tuple(batch["img"].shape[2:]), alone)
        return batch

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Note the metric and, when it is time, look at every image without augmentation."""
        self.metric.append(float(self.metrics[TASKS["detect"].metric]))
        last = self.epoch + 1 == self.epochs
        if self.clean_every and (last or (self.epoch + 1) % self.clean_every == 0):
            self.clean_epochs.append(self.epoch)
            self.clean.append(self._look())
        super().save_metrics(metrics)

    @torch.no_grad()
    def _look(self) -> Sheet:
        """Return what the averaged model says in evaluation mode about the images as they are."""
        sheet = Sheet(len(self.paths), self.first)
        model = self.ema.ema.eval()
        self._watch.watching = True
        for batch in self.get_dataloader(self.data["train"], batch_size=self.batch_size, rank=-1, mode="val"):
            batch = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            self.model.criterion(model(batch["img"].float() / 255), batch)
            place = batch["batch_idx"]
            row = torch.arange(len(place), device=place.device) - torch.searchsorted(place, place)
            ids = [self._number[images.identity(f)] for f in batch["im_file"]]
            assert self._watch.assignment is not None
            sheet.add(self._watch.assignment, ids, place, row)
        self._watch.watching = False
        self._watch.clear()
        return sheet


def write(trainer: Recorder, truth: Mapping[str, Truth], out: Path, meta: Mapping[str, Any]) -> None:
    """Write a recording: an .npz of float32 arrays, epochs first, and `meta` as JSON."""
    known = [truth.get(Path(path).as_posix(), Truth(CLEAN)) for path in trainer.paths]
    labels = [trainer.labels[path] for path in trainer.paths]
    arrays: dict[str, Any] = {
        "paths": np.array(trainer.paths),
        "kind": np.array([t.kind for t in known]),
        "group": np.array([t.group for t in known]),
        "object_image": np.repeat(np.arange(len(known)), trainer.boxes),
        "object_class": np.concatenate([cls[:, 0] for cls, _ in labels]).astype(np.int64),
        "object_box": np.concatenate([box for _, box in labels]),
        "metric": np.array(trainer.metric),
        "clean_epochs": np.array(trainer.clean_epochs, np.int64),
        "meta": np.array(json.dumps(dict(meta))),
    }
    names = ("channels", "objects", "unexplained", "features")
    if trainer._rehearsal is not None:
        arrays["rehearsed_kind"] = trainer._rehearsal.kinds
        arrays["rehearsed"] = np.stack([sheet.rehearsed for sheet in trainer.sheets])
    for name in names:
        arrays[name] = np.stack([getattr(sheet, name) for sheet in trainer.sheets])
        if trainer.clean:
            arrays[f"clean_{name}"] = np.stack([getattr(sheet, name) for sheet in trainer.clean])
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _corners(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Boxes (n, 4) of centre and size as x1 y1 x2 y2."""
    half = boxes[:, 2:] / 2
    return np.asarray(np.column_stack([boxes[:, :2] - half, boxes[:, :2] + half]).clip(0, 1), float)


def record(
    data: str, truth: str | None, out: Path, *, clean_every: int = 0, rehearse: bool = False, **settings: Any
) -> Path:
    """Train and write the recording; the run folder is thrown away.

    Args:
        data: Ultralytics data file.
        truth: folder or file of the planted truth; None takes every image for clean.
        out: the .npz to write.
        clean_every: see `Recorder`.
        rehearse: see `Recorder`.
        settings: Ultralytics' settings over `RECIPE`; `model`, `imgsz`, `epochs`, `seed` are wanted.

    Raises:
        ConfigError, DataError: see their lines.
    """
    known = load_truth(truth) if truth else {}
    kind = type("Recorder", (Recorder,), {"clean_every": clean_every, "rehearse": rehearse})
    with tempfile.TemporaryDirectory(prefix="record-") as folder, one_line_errors(data):
        trainer = kind(overrides={**RECIPE, **settings, "task": "detect", "data": data, "save_dir": folder})
        if known and not set(known) & {file.as_posix() for file in split_files(trainer.data["train"])}:
            raise ConfigError(f"Expected the truth of {data}, but {truth} knows none of its images: name its own.")
        trainer.train()
        write(trainer, known, out, {**RECIPE, **settings, "data": str(data)})
    return out


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--truth", help="folder with the truth.csv of the set")
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean-every", type=int, default=0, help="epochs between looks without augmentation")
    parser.add_argument("--rehearse", action="store_true", help="also read each image under labels spoilt in memory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further Ultralytics settings")
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in ("model", "imgsz", "epochs", "seed", "clean_every", "rehearse")}
    print(record(args.data, args.truth, args.out, **given, **key_values(args.settings)))


if __name__ == "__main__":
    sys.exit(main())
