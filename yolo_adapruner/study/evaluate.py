"""What a detector is worth: COCO's mAP from boxes in memory, and the interval of a paired difference.

Knows nothing of Ultralytics, files or training: `engine/detections.py` hands the boxes in, pycocotools judges them.

pycocotools and Ultralytics' validator make the same matches and read the same curve differently, as a rule by less than
0.5 points (of 100) a class:
- Ultralytics sums its 101 precisions as a trapezoid, half of the first and none of the last: at recall 1 it reads 0
  (`np.interp` lands behind the drop), so a perfect detector scores 99.5. COCO takes the plain mean. COCO minus
  Ultralytics is 0.5 - AP points (AP in [0, 1]), plus the precision at recall 1 where a class gets that far.
- Where a recall of the class meets the grid of 101 exactly, COCO reads the precision before the drop, Ultralytics the
  one behind it. All recalls of a class of 100 boxes do, few of one of 97. COCO gains up to 1 point, mostly far less.
Not among the reasons (Ultralytics' figure redone from the boxes handed over is equal to 0.001 points): ties, float32
IoUs, crowds, area ranges, the cap of 300 (which the boxes have met before), the classes averaged.

Measured with yolov8n from scratch (5 min on one core, 160 px, BCCD, ultralytics 8.4.190, pycocotools 2.0.11), points:
    split (images, boxes)   Ultralytics mAP50-95, mAP50   COCO minus that    with clip=True
    val (87, 1137)                    30.63, 53.57         +0.00, -0.15       +1.79, +0.71
    test (72, 945)                    30.68, 53.60         +0.04, +0.18       +2.10, +0.26
Clipping is what moves the figure: Ultralytics clips boxes to the image for its users and for its COCO export, but not
before its validator matches. A box that hangs over the border gains IoU by it. Off by default, to stay comparable.
"""

import contextlib
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_adapruner.data.boxes import ImageDetections, unique_names
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study.matches import Matches

ULTRALYTICS_MAX_DET = 300
"""Detections an image keeps in an Ultralytics validation by default; COCO's own cap of 100 would cut them."""

PYCOCOTOOLS, FASTER = "pycocotools", "faster-coco-eval"

_SIZES = ("small", "medium", "large")
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Metrics:
    """COCO's average precision, every figure in [0, 1].

    Attributes:
        map50_95: Mean over classes and over the IoU thresholds 0.50, 0.55, ..., 0.95.
        map50: Mean over classes at IoU 0.50.
        per_class: Class name → (AP50-95, AP50, ground-truth boxes), for classes that have ground truth. Names
            are those of `unique_names`.
        n_images: Images evaluated, with or without boxes.
        n_boxes: Ground-truth boxes evaluated.
        by_size: "small", "medium", "large" → mAP50-95 of boxes below 32², up to 96² and above, in native pixels; sizes
            that no ground-truth box has are left out. Empty unless asked for.
    """

    map50_95: float
    map50: float
    per_class: dict[str, tuple[float, float, int]]
    n_images: int
    n_boxes: int
    by_size: dict[str, float] = field(default_factory=dict)


def coco_metrics(
    images: Sequence[ImageDetections],
    names: dict[int, str],
    *,
    clip: bool = False,
    sizes: bool = False,
    engine: str = PYCOCOTOOLS,
) -> Metrics:
    """Judge detections by pycocotools' COCOeval (iouType "bbox"), in memory and in silence.

    The result does not depend on the order of the images, nor on that of the boxes in them. Classes without ground
    truth do not enter the mean (COCOeval marks them -1), whatever was detected of them; detections of a class that
    `names` lacks are dropped for the same reason. An image may keep 300 detections of a class, or as many as the
    fullest image has boxes if that is more: the cap Ultralytics' validator sets itself, COCO's own is 100.

    Args:
        images: One entry an image; its `path` must be unique. Images without boxes count: what is found there is wrong.
        names: Class id → name, all classes of the data set.
        clip: Cut every box at the image's border first, as Ultralytics does for its COCO export; see the module's top.
        sizes: Fill `Metrics.by_size` too, which takes several times as long.
        engine: "pycocotools", or "faster-coco-eval", which says the same in a fraction of the time and is no
            dependency of this package (`pip install yolo-adapruner[faster]`).

    Raises:
        ConfigError: the engine is neither of the two, or is not installed.
        DataError: no ground truth at all, the same path twice, or a ground-truth class that `names` lacks.
    """
    ordered, cap = _ordered(images, names)
    ordered = [_clipped(image) for image in ordered] if clip else ordered
    precision = _precision(ordered, names, cap=cap, sizes=sizes, engine=engine)

    counts = Counter(int(c) for image in ordered for c in image.gt_classes)
    class_ap = precision[..., 0].mean(axis=1)  # (T, K); COCOeval's curve of an absent class is -1 throughout
    labels = unique_names(names)
    per_class = {
        labels[c]: (float(class_ap[:, k].mean()), float(class_ap[0, k]), counts[c])
        for k, c in enumerate(sorted(names))
        if counts[c]
    }
    by_size = {name: _mean_present(precision[..., a]) for a, name in enumerate(_SIZES[: precision.shape[-1] - 1], 1)}
    return Metrics(
        map50_95=_mean_present(precision[..., 0]),
        map50=_mean_present(precision[0, ..., 0]),
        per_class=per_class,
        n_images=len(ordered),
        n_boxes=sum(counts.values()),
        by_size={name: value for name, value in by_size.items() if not math.isnan(value)},
    )


def matched(images: Sequence[ImageDetections], names: dict[int, str]) -> Matches:
    """Return which detections of a pass are hits, matched as `coco_metrics` does: what intervals are made from.

    Raises:
        DataError: as `coco_metrics`.
    """
    ordered, cap = _ordered(images, names)
    judge = _judge(ordered, names, cap=cap, sizes=False)
    classes, n = sorted(names), len(ordered)
    boxes = np.zeros((n, len(classes)), np.int32)
    parts: list[tuple[NDArray[Any], ...]] = []
    for position, entry in enumerate(judge.evalImgs):  # class by class, in each the images in order
        if entry is None:
            continue
        k, i = divmod(position, n)
        boxes[i, k] = len(entry["gtIds"])
        found = np.asarray(entry["dtScores"], np.float64)
        place = np.full((2, len(found)), ((i,), (k,)), np.int32)
        parts.append((*place, found, np.asarray(entry["dtMatches"]).T > 0))
    empty = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros((0, len(judge.params.iouThrs)), bool))
    image, category, score, hit = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return Matches(tuple(i.path for i in ordered), tuple(classes), boxes, image, category, score, hit)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a - b over paired seeds with its two-sided 95 % t-interval, n - 1 degrees of freedom.

    Args:
        a: One value a seed.
        b: The other arm's values, same seeds in the same order.

    Returns:
        (mean, low, high); low and high are NaN for a single pair, which has no spread to speak of.

    Raises:
        ConfigError: the arms differ in length or are empty.
    """
    if len(a) != len(b) or not len(a):
        raise ConfigError(
            f"Expected one value a seed in both arms, but got {len(a)} and {len(b)}; pair the runs first."
        )
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return mean, math.nan, math.nan
    from scipy.stats import t  # here, not on top: it costs more than all else this module loads

    half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def _clipped(image: ImageDetections) -> ImageDetections:
    """The image with its boxes cut at its border; what lay outside altogether becomes a box without area."""
    height, width = image.shape
    corner = np.array([width, height, width, height], dtype=np.float64)
    return replace(image, gt_boxes=image.gt_boxes.clip(0, corner), boxes=image.boxes.clip(0, corner))


def _ordered(images: Sequence[ImageDetections], names: dict[int, str]) -> tuple[list[ImageDetections], int]:
    """The images sorted by path, checked, and the cap on the detections of a class that an image may keep."""
    ordered = sorted(images, key=lambda image: image.path)
    _check(ordered, names)
    return ordered, max(ULTRALYTICS_MAX_DET, *(len(image.gt_classes) for image in ordered))


def _check(ordered: Sequence[ImageDetections], names: dict[int, str]) -> None:
    """Raise DataError where the images cannot be evaluated; they come sorted by path."""
    for first, second in itertools.pairwise(ordered):
        if first.path == second.path:
            raise DataError(f"Expected every image once, but got {first.path} twice; drop the second.")
    present = {int(c) for image in ordered for c in image.gt_classes}
    if not present:
        raise DataError(f"Expected ground truth, but got no box in {len(ordered)} images; is this split labelled?")
    if unknown := sorted(present - set(names)):
        raise DataError(f"Expected ground-truth classes out of {sorted(names)}, but got {unknown}; complete `names`.")


def _precision(
    ordered: Sequence[ImageDetections], names: dict[int, str], *, cap: int, sizes: bool, engine: str
) -> NDArray[np.float64]:
    """COCOeval's precision (T, R, K, A): IoU thresholds, recalls, sorted classes, area ranges (all[, small, ...])."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and has no switch for it
        judge = _judge(ordered, names, cap=cap, sizes=sizes, engine=engine)
        judge.accumulate()
    # Not summarize(): it insists on three caps and on one of them being 100.
    precision: NDArray[np.float64] = judge.eval["precision"][..., 0]
    return precision


def _judge(
    ordered: Sequence[ImageDetections], names: dict[int, str], *, cap: int, sizes: bool, engine: str = PYCOCOTOOLS
) -> Any:
    """A COCOeval that has matched detections to boxes, image by image."""
    index, kind = engine_classes(engine)
    truth = [_annotations(i, image.gt_boxes, image.gt_classes, None, names) for i, image in enumerate(ordered)]
    found = [_annotations(i, image.boxes, image.classes, image.scores, names) for i, image in enumerate(ordered)]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = kind(_coco(truth, names, index()), _coco(found, names, index()), iouType="bbox")
        ranges = 1 + len(_SIZES) if sizes else 1
        judge.params.maxDets = [cap]
        judge.params.areaRng = judge.params.areaRng[:ranges]
        judge.params.areaRngLbl = judge.params.areaRngLbl[:ranges]
        judge.evaluate()
    return judge


def engine_classes(name: str) -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval of an engine.

    Raises:
        ConfigError: it is neither of the two, or is not installed.
    """
    if name == PYCOCOTOOLS:
        return COCO, COCOeval
    if name != FASTER:
        raise ConfigError(f"Expected {PYCOCOTOOLS} or {FASTER} as engine, but got {name!r}: choose one of the two.")
    try:
        import faster_coco_eval
    except ImportError:
        raise ConfigError(
            f"Expected {FASTER} to be installed, but it is not: pip install 'yolo-adapruner[faster]', or use "
            f"{PYCOCOTOOLS}."
        ) from None
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _annotations(
    image_id: int,
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    scores: NDArray[np.float64] | None,
    names: dict[int, str],
) -> list[dict[str, Any]]:
    """An image's boxes as COCO annotations, best score first; equal scores go by class and place, not by position."""
    order = np.lexsort((*boxes.T[::-1], classes, np.zeros(len(boxes)) if scores is None else -scores))
    rows: list[dict[str, Any]] = []
    for j in order:
        x1, y1, x2, y2 = boxes[j].tolist()
        w, h = x2 - x1, y2 - y1
        row = {
            "image_id": image_id,
            "category_id": int(classes[j]),
            "bbox": [x1, y1, w, h],
            "area": w * h,
            "iscrowd": 0,
        }
        rows.append(row if scores is None else row | {"score": float(scores[j])})
    return [row for row in rows if row["category_id"] in names]


def _coco(annotations: Sequence[list[dict[str, Any]]], names: dict[int, str], coco: Any) -> Any:
    """A COCO index over the images' annotations, numbered from 1: COCOeval takes a match with id 0 for no match."""
    numbered = itertools.chain.from_iterable(annotations)
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(annotations))],
        "categories": [{"id": c, "name": name} for c, name in names.items()],
        "annotations": [row | {"id": i} for i, row in enumerate(numbered, start=1)],
    }
    coco.createIndex()
    return coco


def _mean_present(precision: NDArray[np.float64]) -> float:
    """Mean of the entries that are not COCOeval's -1 for "no ground truth"; NaN where all are."""
    present = precision[precision > -1]
    return float(present.mean()) if present.size else math.nan
