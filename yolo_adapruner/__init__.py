"""The public names of yolo_adapruner, looked up on first use.

Importing the package loads neither torch nor Ultralytics, so that `yolo-adapruner --help` answers at once.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it; imported when the name is first asked for
_HOMES = {
    "AdaPruneClassificationTrainer": "yolo_adapruner.engine.classify",
    "AdaPruneOBBTrainer": "yolo_adapruner.engine.tasks",
    "AdaPrunePoseTrainer": "yolo_adapruner.engine.tasks",
    "AdaPruneSegmentationTrainer": "yolo_adapruner.engine.tasks",
    "AdaPruneTrainer": "yolo_adapruner.engine.detect",
    "AdaPruner": "yolo_adapruner.loop",
    "IndexedDataset": "yolo_adapruner.indexed",
    "PruneConfig": "yolo_adapruner.config",
    "compare": "yolo_adapruner.study.compare",
    "prune": "yolo_adapruner.api",
}

__all__ = [
    "AdaPruneClassificationTrainer",
    "AdaPruneOBBTrainer",
    "AdaPrunePoseTrainer",
    "AdaPruneSegmentationTrainer",
    "AdaPruneTrainer",
    "AdaPruner",
    "IndexedDataset",
    "PruneConfig",
    "__version__",
    "compare",
    "prune",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home module (PEP 562).

    Raises:
        AttributeError: the package has no such public name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those not imported yet."""
    return sorted({*globals(), *_HOMES})
