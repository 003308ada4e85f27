"""How far a logit should remember: recordings played back into the pruner, with wrong verdicts put in on the way.

    python -m yolo_adapruner.study.forgetting REC.npz [REC.npz ...]

A recording (`record.py`) has every epoch's readings of a set with planted faults. The pruner sees its last epochs as a
joint stage; in a second pass a tenth of the clean images is set far down some epochs before the end. Trains nothing, so
it cannot say what weights do to readings: `dynamics.py` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.truth import CLEAN, LABEL_KINDS

MEMORIES = (1.0, 0.7, 0.5, 0.3, 0.1)
BEFORE_END = (5, 4, 3, 2)
"""Epochs between the wrong verdict and the end of the stage."""
JOINT, DEPTH, _WARM = 9, 10.0, 0.55


def play(
    readings: NDArray[np.floating], share: float, memory: float, wronged: Sequence[int] = (), before_end: int = 0
) -> NDArray[np.bool_]:
    """Return what is kept, (N,) bool, after a joint stage of these readings.

    Args:
        readings: (E, N, C).
        share: prune share.
        memory: see `PruneConfig`.
        wronged: samples whose logit is set to -`DEPTH`.
        before_end: when: that many epochs before the last is closed.
    """
    epochs, n, channels = readings.shape
    config = PruneConfig(share=share, warmup=0, joint=epochs / (epochs + 1), memory=memory)
    pruner = Pruner(n, channels, epochs + 1, Settings(**config.model_dump()))
    for epoch, values in enumerate(readings):
        pruner.open_epoch()
        pruner.observe(np.arange(n), values)
        pruner.close_epoch(0.5 + epoch / 1000)  # a metric that rises: the controller takes the last mask
        if len(wronged) and epoch + 1 == epochs - before_end:
            pruner.mask.logits[np.asarray(wronged)] = -DEPTH
    assert pruner.kept is not None
    return pruner.kept


def figures(recording: Mapping[str, NDArray[Any]], memory: float, seed: int = 0) -> tuple[float, list[float]]:
    """Return the share of the dropped that was planted, and of the wronged that came back, by `BEFORE_END`, [0, 1].

    As many are dropped as have planted faults; who would have gone without a wrong verdict does not count as wronged.
    """
    channels = np.asarray(recording["channels"], np.float64)
    readings = channels[int(_WARM * len(channels)) :][:JOINT]
    wrong, clean = np.isin(recording["kind"], LABEL_KINDS), np.flatnonzero(recording["kind"] == CLEAN)
    share = float(wrong.mean())
    kept = play(readings, share, memory)
    wronged = np.random.default_rng(seed).choice(clean, max(len(clean) // 10, 1), replace=False)
    stays = wronged[kept[wronged]]
    back = [float(play(readings, share, memory, stays, before)[stays].mean()) for before in BEFORE_END]
    return float((wrong & ~kept).sum() / (~kept).sum()), back


def table(found: Mapping[float, Sequence[tuple[float, list[float]]]]) -> str:
    """Return the means over recordings in Markdown, a row a memory."""
    n = len(next(iter(found.values())))
    lines = [
        f"| memory | planted among the dropped | {' | '.join(f'back, {b} epochs to go' for b in BEFORE_END)} |",
        "|" + "---|" * (2 + len(BEFORE_END)),
    ]
    for memory, runs in found.items():
        back = np.mean([run[1] for run in runs], axis=0)
        cells = " | ".join(f"{share:.0%}" for share in back)
        lines.append(f"| {memory:g} | {np.mean([run[0] for run in runs]):.1%} | {cells} |")
    return "\n".join([*lines, "", f"Means over {n} recordings, joint stages of {JOINT} epochs."])


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Play the recordings back and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path, metavar="REC")
    found: dict[float, list[tuple[float, list[float]]]] = {memory: [] for memory in MEMORIES}
    for file in parser.parse_args(argv).recordings:
        with np.load(file) as arrays:
            recording = {name: arrays[name] for name in ("channels", "kind")}
        for memory in MEMORIES:
            found[memory].append(figures(recording, memory))
    print(table(found))


if __name__ == "__main__":
    sys.exit(main())
