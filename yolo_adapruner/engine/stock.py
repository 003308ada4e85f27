"""`python -m yolo_adapruner.engine.stock ARGUMENTS.json`: plain Ultralytics training, on as many threads as ours.

What `yolo train` does with the same arguments, but that on a CPU it leaves a core unused; the other side of a
comparison of wall times. Nothing of this package takes part in the training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_adapruner.engine import runtime


def main(file: str) -> None:
    """Train by a file of Ultralytics' arguments."""
    runtime.offer_font()
    trainer = DetectionTrainer(overrides=json.loads(Path(file).read_text(encoding="utf-8")))
    runtime.use_all_cores()  # now that the device is chosen, which sets the threads
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
