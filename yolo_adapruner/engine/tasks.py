"""The trainers of the other tasks, as `detect` has the detectors' one, and which trainer a task takes."""

from __future__ import annotations

from typing import ClassVar

from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

from yolo_adapruner.engine.classify import AdaPruneClassificationTrainer
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.trainer import AdaPruneMixin


class AdaPruneSegmentationTrainer(AdaPruneMixin, SegmentationTrainer):
    """`AdaPruneTrainer` for instance segmentation. Judged by boxes and classes; the controller holds mask mAP."""

    task: ClassVar[str] = "segment"


class AdaPrunePoseTrainer(AdaPruneMixin, PoseTrainer):
    """`AdaPruneTrainer` for keypoints. Judged by boxes and classes; the controller holds keypoint mAP."""

    task: ClassVar[str] = "pose"


class AdaPruneOBBTrainer(AdaPruneMixin, OBBTrainer):
    """`AdaPruneTrainer` for rotated boxes. Judged by them, with Ultralytics' probabilistic IoU."""

    task: ClassVar[str] = "obb"


_TRAINERS: dict[str, type[AdaPruneMixin]] = {
    kind.task: kind
    for kind in (
        AdaPruneTrainer,
        AdaPruneSegmentationTrainer,
        AdaPrunePoseTrainer,
        AdaPruneOBBTrainer,
        AdaPruneClassificationTrainer,
    )
}


def trainer_for(task: str) -> type[AdaPruneMixin]:
    """Return the trainer of a task that `heads.task_of` gave."""
    return _TRAINERS[task]
