"""The arms that draw anew in each epoch, as plans for a trainer: the samplers of `dynamic.py`, told what they ask for.

InfoBatch asks for losses, which the training forward gives; AFSS for precision and recall, which take a pass over all
images of their own. Knows no cell and no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.schedule import Draw, Plan, Visits
from yolo_adapruner.study import arms
from yolo_adapruner.study.dynamic import AFSS, infobatch, prune_rate, sufficiency

CONFIDENCE = 0.25
"""Detections below it do not count for AFSS's precision and recall: Ultralytics' default for `predict`; ours."""


def planner_for(arm: str, share: float) -> Callable[[Any], Plan]:
    """Return what makes an arm's plan of a trainer.

    Args:
        arm: one of `arms.DYNAMIC`.
        share: of the visits to save, (0, 1); AFSS does not look at it.
    """
    return AFSSPlan if arm == arms.AFSS else lambda trainer: InfoBatchPlan(trainer.epochs, share, trainer.args.seed)


class InfoBatchPlan:
    """InfoBatch, its rate set before each epoch so that the expected visits are those of a share.

    Published is a constant rate of 0.5, which saves what the losses make of it. At a given share the arm could not be
    compared with others that way.

    Args:
        epochs: of the training.
        share: of the visits to save, (0, 1).
        seed: of the draws.
    """

    def __init__(self, epochs: int, share: float, seed: int) -> None:
        self.epochs, self.share, self.seed = epochs, share, seed

    def __call__(self, epoch: int, seen: Visits) -> Draw:
        """Return the epoch's draw."""
        rate = prune_rate(seen.losses, self.epochs, self.share)
        return infobatch(seen.losses, epoch, self.epochs, prune=rate, seed=self.seed)


class AFSSPlan:
    """AFSS with its published settings; it measures by the checkpoint of the epoch before.

    Args:
        trainer: the trainer of boxes that it draws for, on a single device.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sufficiency: NDArray[np.float64] = np.zeros(len(trainer.paths))

    def __call__(self, epoch: int, seen: Visits) -> Draw:
        """Return the epoch's draw, after a pass over all images where one is due."""
        state = AFSS(self.sufficiency, seen.last)
        if state.due(epoch):
            self.sufficiency = measure(self.trainer)
            state = state.measured(self.sufficiency)
        draw = state.draw(epoch, seed=self.trainer.args.seed)
        # A few images that are all easy: 2 % of them may be none.
        return draw if len(draw.ids) else Draw.of(np.arange(len(seen)) == np.argmin(self.sufficiency))

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Return the last measurement."""
        return {"sufficiency": self.sufficiency.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take over what `state_dict` gave."""
        self.sufficiency = np.array(state["sufficiency"], np.float64)


def measure(trainer: Any) -> NDArray[np.float64]:
    """Return min(precision, recall) of each training image under the last checkpoint, (N,).

    Hits are matched as pycocotools does, at IoU 0.5. An image that the pass does not have is as one never measured.
    """
    from yolo_adapruner.engine.dataset import identity
    from yolo_adapruner.engine.detections import collect
    from yolo_adapruner.study.evaluate import matched

    args = trainer.args
    images, _ = collect(
        trainer.last,
        args.data,
        "train",
        imgsz=args.imgsz,
        batch=trainer.batch_size,
        device=str(trainer.device),
        conf=CONFIDENCE,
        workers=args.workers,
    )
    found = matched(images, dict(trainer.data["names"]))
    n = len(found.paths)
    hits, detections = (np.bincount(found.image, weight, n) for weight in (found.hit[:, 0], None))
    measured = sufficiency(hits, detections, found.boxes.sum(1))
    by_path = dict(zip(map(identity, found.paths), measured, strict=True))
    return np.array([by_path.get(path, 0.0) for path in trainer.paths])
