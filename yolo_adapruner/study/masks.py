"""What the mask of a finished run came to: how hard its weights are, how many it kept by itself, what it dropped.

Reads run folders; trains nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.pruner import Stage
from yolo_adapruner.report import run as runs
from yolo_adapruner.study.planted import planted

LOW, HIGH = 0.1, 0.9
"""Weights outside these have decided, in the paper's count (arXiv 2312.05599)."""


@dataclass(frozen=True)
class MaskFigures:
    """A run's mask at the end of the joint stage, before the exact share is cut.

    Attributes:
        warmup, joint: epochs of these stages.
        s: scale in force in the last joint epoch.
        kept: share of the images whose weight is one half or more, [0, 1].
        outside: share of them whose weight lies outside [`LOW`, `HIGH`], [0, 1].
        matched: whether the kept share ever came within `match` of the wanted one.
        noise: share of the dropped that were planted wrong, [0, 1]; NaN where nothing is known of that.
        auroc: of the logit for a planted fault; NaN likewise.
    """

    warmup: int
    joint: int
    s: float
    kept: float
    outside: float
    matched: bool
    noise: float
    auroc: float

    @classmethod
    def of(cls, folder: Path, truth: str | Path) -> MaskFigures:
        """Return the figures of a run.

        Args:
            folder: the run folder.
            truth: root of the data set, where a truth.csv may say what was planted.

        Raises:
            RunError: it holds no finished run.
        """
        run = runs.load(folder)
        stage = run.epochs.get("prune/stage", np.zeros(0))
        joint = stage == Stage.JOINT
        weights = np.full(1, np.nan) if run.history is None else run.history[1][-1] / 255
        wanted, match = 1 - run.manifest["prune"]["share"], run.manifest["prune"]["match"]
        kept = [float((row >= 128).mean()) for row in run.history[1]] if run.history is not None else []
        # A cell's set is links to the data set's images, and it is those that the truth knows.
        outcome = replace(run.outcome, paths=[os.path.realpath(path) for path in run.outcome.paths])
        found = planted(outcome, truth)
        return cls(
            warmup=int((stage == Stage.WARMUP).sum()),
            joint=int(joint.sum()),
            s=float(run.epochs["prune/s"][joint][-1]) if joint.any() else float("nan"),
            kept=kept[-1] if kept else float("nan"),
            outside=outside(weights),
            matched=any(abs(share - wanted) <= match for share in kept),
            noise=float("nan") if found is None else found.noise_share,
            auroc=float("nan") if found is None else found.auroc,
        )


def outside(weights: NDArray[np.floating]) -> float:
    """Return the share of weights, (N,) in [0, 1], that lie outside [`LOW`, `HIGH`]; NaN where one is unknown."""
    if np.isnan(weights).any():
        return float("nan")
    return float(((weights < LOW) | (weights > HIGH)).mean())


def mean_figures(found: Sequence[MaskFigures]) -> dict[str, Any]:
    """Return the mean of each figure over runs, by name; `matched` is how many did."""
    rows = [asdict(one) for one in found]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "matched"}
    return {**means, "matched": sum(row["matched"] for row in rows)}
