"""A run from its config: train or resume, and what a finished run is. Knows no mask and no message of Ultralytics."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_cfg, get_save_dir

from yolo_adapruner import config as run_config
from yolo_adapruner.config import RunConfig
from yolo_adapruner.core.schedule import Plan
from yolo_adapruner.data import export
from yolo_adapruner.data.alone import alone_in
from yolo_adapruner.data.export import MANIFEST
from yolo_adapruner.engine import state, warmstart
from yolo_adapruner.engine.heads import TASKS
from yolo_adapruner.engine.names import resolve_data, ultralytics_args
from yolo_adapruner.engine.state import RUN_CONFIG
from yolo_adapruner.engine.tasks import trainer_for
from yolo_adapruner.engine.trainer import AdaPruneMixin
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import AdaPrunerError, RunError

_TO_END = 10.0
"""Seconds that a resumed run waits for the process that still holds its folder: one told to end needs some."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        weights: its best.pt, which plain `YOLO(...)` loads.
        data: the pruned data set's data file; of a classifier its folder.
        total, kept: number of training images before and after.
        map50_95: validation mAP50-95 of best.pt as Ultralytics measures it, [0, 1]: of boxes, or of masks or keypoints
            where the task is about those, or a classifier's top-1. It chose best.pt: not a result.
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


def train(
    config: RunConfig,
    *,
    save_dir: Path | None = None,
    planner: Callable[[Any], Plan] | None = None,
    watched: bool = False,
) -> RunResult:
    """Run warm-up, joint pruning and fine-tune, and write the run folder.

    Args:
        config: the run.
        save_dir: write exactly there instead of into a new folder of `config.project`.
        planner: what each epoch draws, `AdaPruneMixin.planner`; None: everything.
        watched: add to the scores what each epoch said of each image; see `core.trajectory`.

    Raises:
        ConfigError, DataError, RunError: see their lines.
    """
    overrides = ultralytics_args(config)
    start = warmstart.absolute(config.start)
    if start is not None and config.prune.share:
        warmstart.load(start, overrides["task"], config.prune)  # what is wrong with it is said before anything is made
    if save_dir is not None:
        overrides["save_dir"] = str(save_dir)
    with _run_folder(overrides) as folder, one_line_errors(config.data):
        notes = {RUN_CONFIG: _run_config_text(config, overrides)}
        kind = trainer_for(overrides["task"]).configured(config.prune, notes, start, planner, watched=watched)
        return _finish(kind(overrides={**overrides, "save_dir": str(folder)}))


def resume(run: str | Path, *, planner: Callable[[Any], Plan] | None = None, watched: bool = False) -> RunResult:
    """Go on with an interrupted run after its last whole epoch; before the first, start it over.

    Args:
        run: its folder.
        planner: the one that it was started with, which the folder does not hold.
        watched: as it was started.

    Raises:
        RunError: the folder holds no interrupted run of this package, the run is finished, or another process works
            on it.
    """
    folder = Path(run).resolve()
    if not (folder / RUN_CONFIG).is_file():
        raise RunError(f"Expected an interrupted run in {folder}, but it has no {RUN_CONFIG}: start a new run.")
    config = run_config.load(folder / RUN_CONFIG)
    saved = folder / "weights" / state.NAME
    if not saved.is_file():
        with alone_in(folder, patience=_TO_END):
            _refuse_to_start_over(folder, saved)
            state.sweep(folder)
        return train(config, save_dir=folder, planner=planner, watched=watched)
    task = state.task_of(saved)
    overrides = {"resume": str(saved), "save_dir": str(folder), "data": resolve_data(config.data, task)}
    if config.device is not None:
        overrides["device"] = config.device
    with alone_in(folder, patience=_TO_END), one_line_errors(config.data):
        trainer = trainer_for(task).configured(config.prune, planner=planner, watched=watched)(overrides=overrides)
        state.sweep(folder)
        return _finish(trainer)


def _refuse_to_start_over(folder: Path, saved: Path) -> None:
    """Refuse a run that has something to lose."""
    if _is_finished(folder):
        raise RunError(f"Expected an interrupted run, but {folder} is finished: nothing to resume.")
    if (saved.parent / "last.pt").exists():
        raise RunError(f"Expected {saved} to go on from, but it is missing: start a new run.")


def _is_finished(folder: Path) -> bool:
    """Whether a run has been through its last evaluation; its manifest is written once before, without results."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("best_validation") is not None


@contextmanager
def _run_folder(args: Mapping[str, Any]) -> Iterator[Path]:
    """Make the run's folder, and take it away where bad input ends the run before there is anything to keep.

    Ultralytics makes it before it looks at the data set.
    """
    folder = Path(get_save_dir(get_cfg(overrides=dict(args))))
    if "'" in str(folder):
        raise RunError(
            "Expected a run folder without an apostrophe, which Ultralytics leaves out of a checkpoint's path, but got "
            f"{folder}: choose another --name or project=."
        )
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
    with alone_in(folder):
        try:
            yield folder
        except AdaPrunerError:
            # A finished run has no state any more, and what fails after it is no reason to lose it.
            if not any((folder / "weights").glob("*.pt")) and not (folder / MANIFEST).exists():
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
        data=export.pruned_data(folder, manifest["data"]),
        total=len(outcome.paths),
        kept=int(outcome.kept.sum()),
        map50_95=(manifest["best_validation"] or {}).get(TASKS[trainer.task].metric, float("nan")),
        seconds=trainer.seconds_before + time.monotonic() - began,
        updates=manifest["updates"],
    )


def _run_config_text(config: RunConfig, args: Mapping[str, Any]) -> str:
    """Return the config as YAML, the user's own files by absolute path, so that it means the same in any folder."""
    content = config.model_dump()
    content |= {key: args[key] for key in ("model", "data") if Path(content[key]).exists()} | {
        "project": args["project"],
        "start": None if config.start is None else str(warmstart.absolute(config.start)),
    }
    if isinstance(own := content["train"].get("pretrained"), str) and Path(own).exists():
        content["train"] = {**content["train"], "pretrained": args["pretrained"]}
    content = json.loads(json.dumps(content, default=str))  # a Python caller may have set what YAML has no word for
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
