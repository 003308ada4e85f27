"""A run from its config: train or resume, and what a finished run is. Knows no mask and no message of Ultralytics."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_cfg, get_save_dir
from ultralytics.nn.tasks import load_checkpoint

from yolo_adapruner import config as run_config
from yolo_adapruner.config import RunConfig
from yolo_adapruner.data import export
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.engine.heads import TASKS, task_of
from yolo_adapruner.engine.names import resolve_data, ultralytics_args
from yolo_adapruner.engine.tasks import trainer_for
from yolo_adapruner.engine.trainer import AdaPruneMixin
from yolo_adapruner.engine.trouble import one_line, one_line_errors
from yolo_adapruner.errors import AdaPrunerError, RunError

RUN_CONFIG = "adaprune.yaml"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        weights: its best.pt, which plain `YOLO(...)` loads.
        data: the pruned data set's data file.
        total, kept: number of training images before and after.
        map50_95: validation mAP50-95 of best.pt as Ultralytics measures it, [0, 1]: of boxes, or of masks or keypoints
            where the task is about those. It chose best.pt: not a result.
        seconds: wall time of the training.
        updates: optimizer steps taken.
    """

    folder: Path
    weights: Path
    data: Path
    total: int
    kept: int
    map50_95: float
    seconds: float
    updates: int


def train(config: RunConfig, *, save_dir: Path | None = None) -> RunResult:
    """Run warm-up, joint pruning and fine-tune, and write the run folder.

    Args:
        config: the run.
        save_dir: write exactly there instead of into a new folder of `config.project`.

    Raises:
        ConfigError, DataError, RunError: see their lines.
    """
    overrides = ultralytics_args(config)
    if save_dir is not None:
        overrides["save_dir"] = str(save_dir)
    with _run_folder(overrides) as folder, one_line_errors(config.data):
        notes = {RUN_CONFIG: _run_config_text(config, overrides)}
        kind = trainer_for(overrides["task"]).configured(config.prune, notes)
        return _finish(kind(overrides={**overrides, "save_dir": str(folder)}))


def resume(run: str | Path) -> RunResult:
    """Go on with an interrupted run from its last whole epoch.

    Raises:
        RunError: the folder holds no interrupted run of this package, or the run is finished.
    """
    folder = Path(run).resolve()
    last, saved = folder / "weights" / "last.pt", folder / RUN_CONFIG
    for file in (saved, last):
        if not file.is_file():
            raise RunError(
                f"Expected an interrupted run in {folder}, but it has no {file.relative_to(folder)}: start a new run."
            )
    config = run_config.load(saved)
    epochs = _whole_epochs(folder, last)
    task = task_of(str(last))
    overrides = {
        "task": task,
        "mode": "train",
        "model": str(last),
        "resume": str(last),
        "save_dir": str(folder),
        "data": resolve_data(config.data),
    }
    if config.device is not None:
        overrides["device"] = config.device
    with one_line_errors(config.data):
        trainer = trainer_for(task).configured(config.prune)(overrides=overrides)
        _forget_epochs_after(epochs, trainer.csv)
        return _finish(trainer)


def _whole_epochs(folder: Path, last: Path) -> int:
    """How many epochs an interrupted run's checkpoint has behind it."""
    try:
        _, checkpoint = load_checkpoint(last)
    except Exception as error:  # torch, pickle and Ultralytics each have their own for a torn file
        raise RunError(
            f"Expected {last} to be a checkpoint to go on from, but it cannot be read ({one_line(error)}): start a new "
            "run."
        ) from None
    epochs = int(checkpoint.get("epoch", -1)) + 1  # 0 once Ultralytics has stripped it of what training needs
    if not 0 < epochs < checkpoint["train_args"]["epochs"]:
        raise RunError(f"Expected an interrupted run, but {folder} is finished: nothing to resume.")
    return epochs


def _forget_epochs_after(epochs: int, table: Path) -> None:
    """Drop the lines of results.csv that were written after the last checkpoint; those epochs are trained again."""
    if table.is_file():
        head, *rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
        with replace_file(table) as temporary:
            kept = [row for row in rows if row.endswith("\n") and int(row.partition(",")[0]) <= epochs]
            temporary.write_text("".join([head, *kept]), encoding="utf-8")


@contextmanager
def _run_folder(args: Mapping[str, Any]) -> Iterator[Path]:
    """Make the run's folder, and take it away where bad input ends the run before there is anything to keep.

    Ultralytics makes it before it looks at the data set.
    """
    folder = Path(get_save_dir(get_cfg(overrides=dict(args))))
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError:  # a name too long
        missing = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        _take_away(missing)
        raise RunError(
            f"Expected a folder to write the run to, but {folder} cannot be one: {error.strerror}. Choose another "
            "--name or project=."
        ) from None
    try:
        yield folder
    except AdaPrunerError:
        if not (folder / "weights" / "last.pt").exists():
            _take_away(missing)
        raise


def _take_away(made: Sequence[Path]) -> None:
    """Remove the folder that comes first, and those above it that are empty then."""
    if made:
        shutil.rmtree(made[0], ignore_errors=True)
    for parent in made[1:]:
        with suppress(OSError):  # not made after all, or another run is in it by now
            parent.rmdir()


def _finish(trainer: AdaPruneMixin) -> RunResult:
    """Train and read the result from the run folder: what launched processes did is nowhere else."""
    began = time.monotonic()
    trainer.train()
    folder = Path(trainer.save_dir)
    manifest, outcome = export.read(folder)
    return RunResult(
        folder=folder,
        weights=Path(trainer.best),
        data=folder / "pruned.yaml",
        total=len(outcome.paths),
        kept=int(outcome.kept.sum()),
        map50_95=(manifest["best_validation"] or {}).get(TASKS[trainer.task].metric, float("nan")),
        seconds=time.monotonic() - began,
        updates=manifest["updates"],
    )


def _run_config_text(config: RunConfig, args: Mapping[str, Any]) -> str:
    """Return the config as YAML, the user's own files by absolute path, so that it means the same in any folder."""
    content = config.model_dump()
    content |= {key: args[key] for key in ("model", "data") if Path(content[key]).exists()} | {
        "project": args["project"]
    }
    content = json.loads(json.dumps(content, default=str))  # a Python caller may have set what YAML has no word for
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
