"""The classifiers' trainer: Ultralytics' own with the mask's hooks before it, and its own answers to what they ask."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.models.yolo.classify import ClassificationTrainer

from yolo_adapruner.core import distributed
from yolo_adapruner.core.floors import CLASS, Groups
from yolo_adapruner.core.suspicion import Judge
from yolo_adapruner.data import export, prints
from yolo_adapruner.engine import classset
from yolo_adapruner.engine.classloss import CHANNELS, Answer, ClassTap, class_channels, fit, rehearsed_labels
from yolo_adapruner.engine.judge import CLASSES, FaultJudge
from yolo_adapruner.engine.owners import Accounts
from yolo_adapruner.engine.trainer import AdaPruneMixin
from yolo_adapruner.engine.watch import class_readings
from yolo_adapruner.errors import ConfigError


class AdaPruneClassificationTrainer(AdaPruneMixin, ClassificationTrainer):
    """Trains a classifier and the mask of its training images in one run.

    `data` is a folder with train/CLASS/IMAGE, and val or test like it; the run leaves `pruned/`, a folder of links of
    the same layout. Judged by `classloss.class_channels`; the controller holds top-1. Attributes: see `AdaPruneMixin`.

    Raises:
        ConfigError, DataError, RunError: as `AdaPruneTrainer`; a data set as `classset.load` refuses it.
    """

    task: ClassVar[str] = "classify"
    channels: ClassVar[tuple[str, ...]] = CHANNELS

    def get_dataset(self) -> Any:
        """Read the folder as Ultralytics does, and refuse one that cannot be trained on."""
        if self.args.single_cls:
            raise ConfigError("Expected several classes, but got single_cls=True: it leaves nothing to tell apart.")
        classset.check_folders(str(self.args.data))
        return classset.checked(super(AdaPruneMixin, self).get_dataset())

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Return the kept images once the mask is decided, and before that all, each sample with its row."""
        if mode != "train":
            return super(AdaPruneMixin, self).build_dataset(img_path, mode, batch)
        if self._kept_dataset is not None:
            return self._kept_dataset
        found = classset.FolderDataset(img_path, self.args, augment=True, prefix="train", names=self.data["names"])
        self.paths = sorted(set(classset.files(found)))
        found.numbered = self._weighs
        return found

    def _look_over(self, dataset: Any) -> None:
        self.skipped, self.remarks = classset.look_over(dataset, self.data["names"])
        classes = dict(zip(classset.files(dataset), (sample[1] for sample in dataset.samples), strict=True))
        self._classes = np.array([classes[path] for path in self.paths], np.int64)
        self._label_prints = np.array([prints.label_print(one) for one in self._classes[:, None]], np.uint64)

    def _tapped(self, model: Any) -> ClassTap:
        return ClassTap(model)

    def _groups(self) -> Groups:
        names = [str(self.data["names"][c]) for c in sorted(self.data["names"])]
        return Groups.of(np.arange(len(self.paths)), self._classes, [CLASS] * len(names), names)

    def _judge(self) -> tuple[Judge | None, int]:
        if not self.prune_config.judge or self.data["nc"] < 2:
            return None, len(self.channels)
        self._others = torch.from_numpy(rehearsed_labels(self._classes, self.data["nc"], self.args.seed))
        kinds = np.array(CLASSES.kinds * len(self.paths))
        return FaultJudge(kinds, self.args.seed, self.device, CLASSES), len(self.channels)

    def _likeness(self, model: Any) -> tuple[int, None]:
        return 0, None

    def _subset(self, dataset: Any, keep: set[str]) -> Any:
        return classset.subset(dataset, keep, numbered=self._reads_on)

    def _number_rows(self, dataset: Any) -> None:
        self._numbers = np.array([self._ids[file] for file in classset.files(dataset)])

    def _accounts(self, sources: Any, batch: dict[str, Any]) -> Accounts:
        unseen = np.zeros(0, np.float32)
        if sources is None:  # fine-tune: nobody is judged
            return Accounts(np.zeros(0, np.int64), unseen, unseen, None)
        rows = classset.rows_of(sources)
        views = ~distributed.repeated(self.train_loader.sampler, self._drawn, len(rows))
        self._drawn += len(rows)
        return Accounts(self._numbers[rows], unseen, views.astype(np.float32), None)

    def _readings(self) -> Tensor | None:
        if self._tap.answer is None:
            return None
        sound = torch.isfinite(self.loss.detach().sum())  # of a loss that is not, every image's gradient is lost
        readings = class_channels(self._tap.answer)
        if self._rehearses:
            others = self._others[self._batch_ids].to(self.device)
            spoilt = class_channels(Answer(self._tap.answer.logits, others))
            readings = torch.cat((readings, spoilt), 1)
        return readings.masked_fill(~sound, torch.nan)

    def _watched(self, *, error: bool) -> Tensor | None:
        if self._tap.answer is None:
            return None
        sound = torch.isfinite(self.loss.detach().sum())
        return class_readings(self._tap.answer).masked_fill(~sound, torch.nan)

    def _agree(self) -> float:
        return math.inf  # one classifier's epochs soon agree, on what is hard to begin with

    def _fit(self, readings: NDArray[np.floating]) -> dict[str, float]:
        return {"probability": fit(readings)}

    def _outcome(self) -> export.Outcome:
        nothing = [0] * len(self.paths)
        share = self.prune_config.share
        visits = None if self.visits is None else self.visits.count
        found = export.Outcome.of(self.pruner, self.paths, nothing, self.channels, share, self.constraints, visits)
        columns = {name: values for name, values in found.columns.items() if name != "boxes"}
        return self._with_watched(replace(found, columns={**columns, "class": self._classes}))
