"""The controller's columns, where Ultralytics' loggers read an epoch's figures: among the trainer's metrics.

TensorBoard, W&B, MLflow, ClearML, Comet and DVC all take `trainer.metrics` when `on_fit_epoch_end` is run, and so can a
callback of the user's. Knows no logger by name, and none is patched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def to_loggers(trainer: Any, columns: Mapping[str, float]) -> Iterator[None]:
    """Let `trainer.metrics` hold `columns` as well for a while.

    Only for a while: fitness is taken from the metrics before, checkpoints and the final figures after. What a callback
    changes in the metrics stays. A column that is not finite (none was read in this stage) is a gap in the logger's
    curve: TensorBoard warns of each NaN, ClearML refuses it.
    """
    finite = {name: value for name, value in columns.items() if math.isfinite(value)}
    if not trainer.metrics or not finite:
        yield
        return
    trainer.metrics = {**trainer.metrics, **finite}
    try:
        yield
    finally:
        # Anew, because a logger may still hold the dictionary it was shown.
        trainer.metrics = {name: value for name, value in trainer.metrics.items() if name not in finite}
