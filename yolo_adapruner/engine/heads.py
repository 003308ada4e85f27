"""Which task a model is for, told by its last layer, and what is refused by name. Trains nothing, builds no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint, yaml_model_load
from ultralytics.utils import SETTINGS

from yolo_adapruner.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """A task of Ultralytics' that the mask can be trained with.

    Attributes:
        trainer: name of our trainer for it.
        heads: last layers whose loss `losses.LossTap` or `classloss.ClassTap` splits.
        metric: the validation figure, [0, 1], that the controller holds: mAP50-95 of what the task is about, or top-1.
        example: an architecture for it.
    """

    trainer: str
    heads: tuple[str, ...]
    metric: str
    example: str


TASKS = {
    "detect": Task("AdaPruneTrainer", ("Detect", "v10Detect"), "metrics/mAP50-95(B)", "yolo11n.yaml"),
    "segment": Task("AdaPruneSegmentationTrainer", ("Segment", "Segment26"), "metrics/mAP50-95(M)", "yolo11n-seg.yaml"),
    "pose": Task("AdaPrunePoseTrainer", ("Pose", "Pose26"), "metrics/mAP50-95(P)", "yolo11n-pose.yaml"),
    "obb": Task("AdaPruneOBBTrainer", ("OBB", "OBB26"), "metrics/mAP50-95(B)", "yolo11n-obb.yaml"),
    "classify": Task("AdaPruneClassificationTrainer", ("Classify",), "metrics/accuracy_top1", "yolo11n-cls.yaml"),
}
_REFUSED = {
    "RTDETRDecoder": "RT-DETR",
    "WorldDetect": "YOLO-World",
    "YOLOEDetect": "YOLOE",
    "YOLOESegment": "YOLOE",
    "YOLOESegment26": "YOLOE",
    "SemanticSegment": "a semantic segmentation model",
    "Depth": "a depth model",
}
_IN_NAMES = {
    "rtdetr-": "RTDETRDecoder",
    "-world": "WorldDetect",
    "yoloe-": "YOLOESegment",
    "-cls": "Classify",
    "-sem": "SemanticSegment",
    "-depth": "Depth",
    "-seg": "Segment",
    "-pose": "Pose",
    "-obb": "OBB",
}
"""What the name of a checkpoint that is not here yet says about its last layer, `-seg` after what may stand before it.

Upstream names its own so, and tells the task of a file that it cannot open by it as well.
"""


def task_of(model: str, otherwise: str = "detect") -> str:
    """Return the task a model is for: detect, segment, pose, obb or classify.

    Args:
        model: an architecture or checkpoint as `names` resolves it.
        otherwise: the answer for one that cannot be read or is not here yet; building it says what is wrong.

    Raises:
        ConfigError: the mask cannot be trained with such a model; the line names its kind.
    """
    head = _head_of(model)
    return otherwise if head is None else task_of_head(head, model)


def task_of_head(head: str, model: object) -> str:
    """Return the task by the name of the last layer's class; `model` is only what the error names.

    Raises:
        ConfigError: no task of ours has such a head.
    """
    for name, task in TASKS.items():
        if head in task.heads:
            return name
    examples = ", ".join(task.example for task in TASKS.values())
    raise ConfigError(
        f"Expected a YOLO model for {_listed()}, but {model} is {_REFUSED.get(head, 'of another kind')} (its last "
        f"layer is {head}): choose a model such as {examples}."
    )


def refuse_other_task(task: str, given: str, model: object) -> None:
    """Refuse a model or a `task=` that does not belong to a trainer.

    Args:
        task: the trainer's task.
        given: the model's.
        model: what the error names.

    Raises:
        ConfigError: they differ, or no trainer of ours is for the task given.
    """
    if not isinstance(given, str) or given not in TASKS:
        raise ConfigError(f"Expected a model for {_listed()}, but {model} is for {given}: choose another model.")
    if given != task:
        raise ConfigError(
            f"Expected a model for {task}, but {model} is for {given}: train it with {TASKS[given].trainer}, or choose "
            f"a model such as {TASKS[task].example}."
        )


def refuse_combinations(args: Any) -> None:
    """Refuse by name what Ultralytics can do and the mask cannot be combined with.

    Raises:
        ConfigError: distillation, quantization-aware training, or several data sets at once.
    """
    if getattr(args, "distill_model", None):
        raise ConfigError(
            f"Expected training without a teacher, but got distill_model={args.distill_model}: distillation's "
            "own loss is not split over images, so prune first and distill on pruned.yaml."
        )
    if getattr(args, "quantize", None) == 8:
        raise ConfigError(
            "Expected training in floating point, but got quantize=8 (int8, quantization-aware training): prune "
            "first and quantize on pruned.yaml."
        )
    if isinstance(args.data, list | tuple):
        raise ConfigError(
            f"Expected one data file, but got data={list(args.data)}: prune one data set a run, or name several "
            "folders under train: in one data file."
        )


def _listed() -> str:
    *others, last = TASKS
    return f"{', '.join(others)} or {last}"


def _head_of(model: str) -> str | None:
    """The class name of a model's last layer, or None where it cannot be told."""
    path = Path(model)
    try:
        if path.suffix in {".yaml", ".yml"}:
            return str(yaml_model_load(model)["head"][-1][2])
        files = (path, Path(SETTINGS["weights_dir"]) / path)
        if (file := next((f for f in files if f.is_file()), None)) is not None:
            return type(load_checkpoint(file)[0].model[-1]).__name__
    except Exception:  # whatever it is, building the model meets it again, and says so
        return None
    return next((head for part, head in _IN_NAMES.items() if part in path.stem), None)
