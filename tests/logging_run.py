"""Trains once with loggers of Ultralytics' switched on, in a process of its own: under pytest Ultralytics logs nothing.

Real packages where they are installed; of the others stand-ins that note how Ultralytics' own callbacks call them.
Called with: data file, run folder, file for the notes.
"""

import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock


def stand_in(name: str) -> MagicMock:
    """A module of this name that takes every call and remembers it."""
    module = MagicMock(name=name, __version__="99.0", __spec__=types.SimpleNamespace(name=name))
    sys.modules[name] = module
    return module


def note_of(calls, take) -> list:
    """Each call's epoch and what it says of ours, calls without that left out."""
    noted = [take(*call.args, **call.kwargs) for call in calls]
    return [entry for entry in noted if entry is not None and any("prune/" in key for key in entry[1])]


def main(data: str, folder: str, notes: str) -> None:
    wandb, clearml, comet = stand_in("wandb"), stand_in("clearml"), stand_in("comet_ml")
    for name in ("binding", "binding.frameworks", "binding.frameworks.pytorch_bind", "binding.matplotlib_bind"):
        stand_in(f"clearml.{name}")
    dvclive = stand_in("dvclive")

    from ultralytics.utils import SETTINGS

    real = [name for name in ("tensorboard", "mlflow") if find_spec(name)]
    SETTINGS.update(dict.fromkeys(("wandb", "clearml", "comet", "dvc", *real), True))
    from tests.helpers import results, train_here

    seen = []

    def look(trainer):
        seen.append(sorted(trainer.metrics))
        trainer.metrics["mine"] = 1.0

    trainer = train_here(Path(data), Path(folder), callbacks={"on_fit_epoch_end": look})
    scalar = clearml.Task.current_task().get_logger().report_scalar
    metric = comet.get_running_experiment().log_metrics
    dvc = dvclive.Live().log_metric
    content = {
        "real": real,
        "wandb": note_of(wandb.run.log.call_args_list, lambda m, commit: (m.get("epoch"), m)),
        "comet": note_of(metric.call_args_list, lambda m, step, epoch: (epoch, m)),
        "clearml": note_of(
            scalar.call_args_list,
            lambda title, series, value, iteration: (iteration + 1, {series: value} if title == "prune" else {}),
        ),
        "dvc": note_of(dvc.call_args_list, lambda name, value, plot=True: (None, {name: value})),
        "seen": seen,
        "left": sorted(trainer.metrics),
        "results": results(Path(folder)),
    }
    Path(notes).write_text(json.dumps(content, default=float), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
