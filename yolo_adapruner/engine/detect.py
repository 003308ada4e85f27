"""The detectors' trainer: Ultralytics' own with the mask's hooks before it. Nothing else is in it."""

from __future__ import annotations

from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_adapruner.engine.trainer import AdaPruneMixin


class AdaPruneTrainer(AdaPruneMixin, DetectionTrainer):
    """Trains a detector and the mask of its training images in one run.

    Hand it to Ultralytics as `YOLO("yolov3-tiny.yaml").train(trainer=AdaPruneTrainer, data=...)`, or
    `trainer=AdaPruneTrainer.configured(PruneConfig(share=0.3))`. A share of 0 is stock training. Attributes: see
    `AdaPruneMixin`.

    Raises:
        ConfigError: a model that is no plain detector, distillation, int8, `val=False`, `time=`, fewer images a batch
            than devices, or a share that leaves fewer images than a batch.
        DataError: no training image has a box.
        RunError: a resume whose images or settings differ from the interrupted run's.
    """
