"""One cell of the grid: its images, its training, its judgement, and the files that say it is finished.

A cell's folder is a plain run folder, with `matches.npz` (hits and misses on the reported images) and then `cell.json`
(the figures) put into it when all is done. A cell that has them is never run again; one that died goes on from its last
whole epoch, or is judged, or is begun again, as far as it had come. Knows nothing of other cells but the run that an
arm's list is cut from, and no statistics.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from yolo_adapruner.config import RunConfig
from yolo_adapruner.core.schedule import Plan
from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.data import export
from yolo_adapruner.errors import RunError
from yolo_adapruner.study import arms, folders
from yolo_adapruner.study.baselines import equal_updates_epochs
from yolo_adapruner.study.drawn import planner_for
from yolo_adapruner.study.elsewhere import NOTHING, Elsewhere
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, run_budget

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult

RECORD, MATCHES, AGAIN = "cell.json", "matches.npz", "watched"
_FIGURES = {"map50_95", "map50", "images", "updates", "hours"}


@dataclass(frozen=True)
class CellRunner:
    """Runs cells of one comparison; can be handed to another process.

    Attributes:
        folder: the comparison's.
        config: the recipe all cells share.
        base: the data file, or a classifier's folder, that all cells train from; its `val` chooses and its `test` is
            reported on.
        ranking: cut the pruned arm's lists from the run of this share, whatever the cell's own; None for its own.
        listed: what a given list keeps.
        runs: folder of the comparison whose runs the arms' lists are cut from; None for this one's own.
        watched: seeds whose training on everything is watched, for cells of `arms.WATCHING` that are still to be run.
        elsewhere: cells that are finished though their folders are not here.
        engine: what computes a detector's mAP, see `evaluate.coco_metrics`.
    """

    folder: Path
    config: RunConfig
    base: Path
    ranking: float | None = None
    listed: tuple[str, ...] = ()
    runs: Path | None = None
    watched: frozenset[int] = frozenset()
    elsewhere: Elsewhere = NOTHING
    engine: str = "pycocotools"

    def home(self, cell: Cell) -> Path:
        """Return the cell's folder."""
        return self.folder / "cells" / cell.name

    def choosing(self, share: float, seed: int) -> Cell:
        """Return the cell of the run that chooses at a share."""
        return Cell(arms.RUN, share, run_budget(self.config), seed)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """Return the figures of a finished cell, None for one that is not."""
        try:
            figures = json.loads((self.home(cell) / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            figures = None
        if isinstance(figures, dict) and figures.keys() >= _FIGURES:
            return figures
        taken = self.elsewhere.cells.get(cell)
        return None if taken is None else dict(taken)

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Return the cell's figures, running what is left of it to run."""
        if (figures := self.finished(cell)) is None:
            figures = self._run(cell)
        if self._watches(cell):
            self._watch_again(cell)
        return figures

    def _run(self, cell: Cell) -> dict[str, Any]:
        share, epochs, data, planner = 0.0, self.config.epochs, self.base, None
        if cell.arm == arms.RUN:
            share = cell.share
        elif cell.arm in arms.DYNAMIC:
            planner = planner_for(cell.arm, cell.share)
            if cell.budget != EPOCHS:
                total = self._total()
                epochs = self._epochs(cell, total, total - drop_count(total, cell.share))
        elif cell.arm != arms.FULL:
            data, epochs = self.list_arm(cell)
        config = self.config.model_copy(update={"seed": cell.seed, "data": str(data), "epochs": epochs})
        prepared = config.with_prune(share)
        result, seconds = train(prepared, self.home(cell), watched=self._watches(cell), planner=planner)
        if cell.arm == arms.RUN and cell.budget == UPDATES:
            epochs = len(_rows(self.home(cell) / "results.csv"))
        figures = {
            **asdict(cell),
            "images": result.kept if planner is None else self._visited(cell),
            "epochs": epochs,
            "updates": result.updates,
        }
        figures |= {**self._judge(cell, result), "hours": seconds / 3600}
        with export.replace_file(self.home(cell) / RECORD) as temporary:
            temporary.write_text(json.dumps(figures, indent=2), encoding="utf-8")
        return figures

    def _watches(self, cell: Cell) -> bool:
        return cell.arm == arms.FULL and cell.seed in self.watched

    def _watch_again(self, full: Cell) -> None:
        """Train the arm on everything once more, bit for bit, where it was finished before anyone wanted to watch."""
        home = self.home(full)
        if not (home / RECORD).is_file() or "forgotten" not in export.read(home)[1].columns:
            config = self.config.model_copy(update={"seed": full.seed, "data": str(self.base)})
            train(config.with_prune(0.0), home / AGAIN, watched=True)

    def _chosen_from(self, cell: Cell, share: float) -> export.Outcome:
        """What the list of a cell is cut from: the run of its seed at a share, or the watched training."""
        chooser = self if self.runs is None else replace(self, folder=self.runs)
        if cell.arm not in arms.WATCHING:
            chosen = self.choosing(share, cell.seed)
            if chosen in self.elsewhere.cells and not (chooser.home(chosen) / RECORD).is_file():
                self._run(chosen)  # its figures were known, its list is not
            return export.read(chooser.home(chosen))[1]
        home = chooser.home(Cell(arms.FULL, 0.0, EPOCHS, cell.seed))
        return export.read(home / AGAIN if (home / AGAIN).is_dir() else home)[1]

    def _judge(self, cell: Cell, result: RunResult) -> dict[str, Any]:
        if self.base.is_dir():
            return folders.figures(result, self.base, self.config, self.home(cell) / MATCHES)
        from yolo_adapruner.engine.detections import collect
        from yolo_adapruner.study.evaluate import coco_metrics, matched

        config, names = self.config, yaml.safe_load(self.base.read_text(encoding="utf-8"))["names"]
        found, own = collect(
            result.weights, self.base, "test", imgsz=config.imgsz, batch=int(config.batch), device=config.device
        )
        metrics = coco_metrics(found, names, sizes=True, engine=self.engine)
        with export.replace_file(self.home(cell) / MATCHES) as temporary:
            matched(found, names).save(temporary)
        return {
            "map50_95": metrics.map50_95,
            "map50": metrics.map50,
            "per_class": metrics.per_class,
            "by_size": metrics.by_size,
            "ultralytics_map50_95": own["map50_95"],
            "ultralytics_map50": own["map50"],
            "validation_map50_95": result.map50_95,
        }

    def list_arm(self, cell: Cell) -> tuple[Path, int]:
        """Write the data file of an arm that trains on a list, and return it with the epochs of the cell's budget.

        The list is cut from the run of the same seed, and of the same share unless there is one ranking for all; those
        of `arms.WATCHING` from the training on everything of the same seed. A given list needs no run.
        """
        source = cell.share if self.ranking is None else self.ranking
        if cell.arm == arms.LISTED:
            paths = list(self.listed)
            total = round(len(paths) / (1 - cell.share))
        else:
            outcome = self._chosen_from(cell, source)
            kept = arms.choose(cell.arm, arms.Material(outcome, source, cell.share, cell.seed, self._classes))
            paths = [path for path, row in zip(outcome.paths, kept, strict=True) if row]
            total = len(outcome.paths)
        stem = self.folder / f"{cell.arm.replace(' ', '-')}-{cell.share:g}-s{cell.seed}"
        if self.base.is_dir():
            return folders.list_set(stem, paths, self.base), self._epochs(cell, total, len(paths))
        content = {**yaml.safe_load(self.base.read_text(encoding="utf-8")), "train": os.path.abspath(f"{stem}.txt")}
        target = stem.with_name(stem.name + ".yaml")
        texts = {
            stem.with_name(stem.name + ".txt"): "".join(f"{path}\n" for path in paths),
            target: yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
        }
        for file, text in texts.items():
            with export.replace_file(file) as temporary:  # the cell of the other budget may be reading it
                temporary.write_text(text, encoding="utf-8")
        return target, self._epochs(cell, total, len(paths))

    def _epochs(self, cell: Cell, total: int, kept: int) -> int:
        """The epochs of a cell's budget on `kept` of `total` images."""
        if cell.budget == EPOCHS:
            return self.config.epochs
        return equal_updates_epochs(self.config.epochs, total, kept, int(self.config.batch))

    def _total(self) -> int:
        """The number of training images."""
        if self.base.is_dir():
            from yolo_adapruner.engine.classset import split_images

            return len(split_images(self.base / "train"))
        from yolo_adapruner.engine import splits

        return len(splits.split_images(splits.load_data(str(self.base)), "train"))

    def _visited(self, cell: Cell) -> int:
        """The mean number of images that an epoch of a finished cell drew."""
        visits = export.read(self.home(cell))[1].columns["visits"]
        return round(float(visits.sum()) / len(_rows(self.home(cell) / "results.csv")))

    def _classes(self, paths: Any) -> list[list[int]]:
        if self.base.is_dir():
            return folders.classes_of(paths, self.base)
        from yolo_adapruner.engine.splits import box_classes

        return box_classes(paths)


def train(
    config: RunConfig, home: Path, *, watched: bool = False, planner: Callable[[Any], Plan] | None = None
) -> tuple[RunResult, float]:
    """Train a cell in its folder, going on from whatever lies there, and return its result and the seconds it took.

    The seconds are those of all attempts, as far as their epochs count: a cell that died has not got cheaper by it.
    """
    from yolo_adapruner.engine import run, state

    home.mkdir(parents=True, exist_ok=True)
    before, began = _seconds(home / "results.csv"), time.monotonic()
    if (done := _trained(home)) is not None:
        return done, before
    if (home / state.RUN_CONFIG).is_file():
        with suppress(RunError):  # a torn checkpoint, or one that another version wrote: from the beginning, then
            return run.resume(home, watched=watched, planner=planner), before + time.monotonic() - began
        began = time.monotonic()
    result = run.train(config, save_dir=home, watched=watched, planner=planner)
    return result, time.monotonic() - began


def _trained(home: Path) -> RunResult | None:
    """The result of a training that is complete and was not judged before its process died, else None."""
    from yolo_adapruner.engine.heads import TASKS
    from yolo_adapruner.engine.run import RunResult

    try:
        manifest, outcome = export.read(home)
        best = manifest["best_validation"]
        task = "classify" if export.is_folder(manifest["data"]) else "detect"
        return RunResult(
            folder=home,
            weights=_existing(home / "weights" / "best.pt"),
            data=export.pruned_data(home, manifest["data"]),
            total=len(outcome.paths),
            kept=int(outcome.kept.sum()),
            map50_95=float(best[TASKS[task].metric]),
            seconds=float(manifest["seconds"]),
            updates=int(manifest["updates"]),
        )
    except (RunError, KeyError, TypeError, FileNotFoundError):  # no metrics in it before the final validation
        return None


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(file)
    return file


def _seconds(table: Path) -> float:
    """Seconds of the epochs in a results.csv; each process that wrote to it began to count at 0."""
    if not table.is_file():
        return 0.0
    total = last = 0.0
    for row in _rows(table):
        with suppress(KeyError, ValueError):
            now = float(row["time"])
            total += now - last if now > last else now
            last = now
    return total


def _rows(table: Path) -> list[Mapping[str, str]]:
    head, *rows = table.read_text(encoding="utf-8").splitlines() or [""]
    names = [name.strip() for name in head.split(",")]
    return [dict(zip(names, row.split(","), strict=False)) for row in rows]
