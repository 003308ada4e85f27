"""Full, pruned and random, trained alike and judged alike: the arms, the cells, the table.

An arm is judged by pycocotools on images that chose nothing: the test split, or where there is none a seeded half of
the validation images, whose other half does the choosing. Each cell of the grid is a plain run folder plus
`cell.json`; a cell that has one is finished and never run again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from yolo_adapruner.api import resolve
from yolo_adapruner.config import PruneConfig, RunConfig
from yolo_adapruner.data import export
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study.baselines import equal_updates_epochs, random_kept
from yolo_adapruner.study.evaluate import coco_metrics
from yolo_adapruner.study.table import EPOCHS, FULL, PRUNED, RANDOM, RUN, UPDATES, Cell, Row, summarise, table


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; `compare.json`, `compare.md` and the cells lie in `folder`."""

    folder: Path
    rows: list[Row]
    facts: dict[str, Any]

    def table(self) -> str:
        """Return the table in Markdown, in points of mAP (0 to 100)."""
        return table(self.rows, self.facts)


def compare(
    run: str | Path | Mapping[str, Any] | RunConfig = "yolov3-tiny",
    *,
    prune: float | Sequence[float] = 0.1,
    seeds: int = 3,
    jobs: int = 1,
    config: PruneConfig | None = None,
    **overrides: Any,
) -> Comparison:
    """Train the arms full, one run, pruned and random with the same recipe, and compare their mAP.

    Arms: *full* trains on everything; *one run* is the detector that `train --prune` itself leaves; *pruned* and
    *random* train anew on as many images, those the run kept or a seeded random choice, once for as many epochs as
    full and once for as many updates.

    Args:
        run: a run config: path, name of a packaged one, mapping, or `RunConfig`. With a `name` whose folder holds the
            same comparison unfinished, that one goes on.
        prune: shares to compare at, each in (0, 0.95].
        seeds: runs an arm, >= 1: seeds `seed` to `seed + seeds - 1`, the same for each arm.
        jobs: cells trained side by side, >= 1, each with its part of the cores; their output goes to `log.txt` in the
            cell's folder.
        config: settings of the method, in place of the run config's `prune:` section.
        overrides: settings that win over the run config.

    Raises:
        ConfigError: a share or `seeds` is out of range, the model is no detector, or the named folder holds another
            comparison.
        DataError, RunError: see their lines.
    """
    resolved = resolve(run, config=config, **overrides)
    # Each once: two chains of one name would write into the same folders.
    shares = list(dict.fromkeys(float(s) for s in (prune if isinstance(prune, Sequence) else [prune])))
    wrong = [s for s in shares if not 0 < s <= 0.95]
    if wrong or not shares or seeds < 1 or jobs < 1:
        raise ConfigError(
            f"Expected prune shares in (0, 0.95], seeds >= 1 and jobs >= 1, but got prune {shares}, seeds {seeds} and "
            f"jobs {jobs}."
        )
    if resolved.batch < 1:
        raise ConfigError(
            f"Expected one batch size for all arms, but batch {resolved.batch:g} would find one for each: set a number."
        )
    from yolo_adapruner.engine import names, runtime
    from yolo_adapruner.engine.splits import load_data

    if (task := names.task_of(resolved)) != "detect":
        raise ConfigError(
            f"Expected a detection model to compare with, but {resolved.model} is for {task}: train --prune works for "
            "it, the comparison judges boxes alone."
        )
    data = load_data(resolved.data)  # first: a missing data set leaves no folder behind
    folder = _folder(resolved, shares, seeds)
    base, reported_on = _judge_data(folder, data, resolved.seed)
    chains = plan(shares, range(resolved.seed, resolved.seed + seeds))
    done = _run_all(folder, chains, resolved, base, jobs)
    facts = {
        "config": resolved.model_dump(),
        "shares": shares,
        "seeds": seeds,
        "reported_on": reported_on,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(resolved.device or "cpu", threads=runtime.cores() // jobs),
        "jobs": jobs,
        "largest_gap_to_ultralytics": max(abs(d["map50_95"] - d["ultralytics_map50_95"]) for d in done.values()),
    }
    result = Comparison(folder, summarise(done), facts)
    _save(result, done)
    return result


def plan(shares: Sequence[float], seeds: Sequence[int]) -> list[list[Cell]]:
    """Return the grid as chains of cells, seed by seed; a cell builds on earlier cells of its own chain only."""
    chains = []
    for seed in seeds:
        chains.append([Cell(FULL, 0.0, EPOCHS, seed)])
        for share in shares:
            lists = [Cell(arm, share, budget, seed) for arm in (PRUNED, RANDOM) for budget in (EPOCHS, UPDATES)]
            chains.append([Cell(RUN, share, EPOCHS, seed), *lists])
    return chains


def _run_all(
    folder: Path, chains: Sequence[Sequence[Cell]], config: RunConfig, base: Path, jobs: int
) -> dict[Cell, dict[str, Any]]:
    """Run every cell and return its figures; chains side by side where `jobs` allows."""
    total = sum(len(chain) for chain in chains)
    done: dict[Cell, dict[str, Any]] = {}

    def note(cell: Cell, figures: dict[str, Any]) -> None:
        done[cell] = figures
        print(f"[{len(done)}/{total}] {cell.name}: mAP50-95 {100 * figures['map50_95']:.1f}", flush=True)

    if jobs == 1:
        for chain in chains:
            for cell in chain:
                note(cell, _run_cell(folder, cell, config, base))
        return done
    # Spawned, because torch's thread pool does not survive a fork. Longest chains first, so that none is left alone.
    context = multiprocessing.get_context("spawn")
    from yolo_adapruner.engine import runtime

    threads = max(1, runtime.cores() // jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
        ordered = sorted(chains, key=len, reverse=True)
        futures = [pool.submit(_run_chain, folder, chain, config, base) for chain in ordered]
        try:
            for future in as_completed(futures):
                for cell, figures in future.result():
                    note(cell, figures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _start_worker(threads: int) -> None:
    """Give a worker its part of the cores before torch is loaded."""
    os.environ["YOLO_ADAPRUNER_THREADS"] = str(threads)


def _run_chain(folder: Path, chain: Sequence[Cell], config: RunConfig, base: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """Run a chain in this worker, its output in each cell's log.txt."""
    results = []
    for cell in chain:
        home = folder / "cells" / cell.name
        home.mkdir(parents=True, exist_ok=True)
        with (home / "log.txt").open("a", encoding="utf-8") as log:
            for stream in (1, 2):  # the descriptors, because Ultralytics' handlers hold the streams themselves
                os.dup2(log.fileno(), stream)
            results.append((cell, _run_cell(folder, cell, config, base)))
            sys.stdout.flush()
    return results


def _folder(config: RunConfig, shares: Sequence[float], seeds: int) -> Path:
    """A new numbered folder, or the named one if it holds this very comparison."""
    terms = {"config": config.model_dump(), "shares": list(shares), "seeds": seeds}
    wanted = json.loads(json.dumps(terms, default=str))  # as it comes back; a YAML date has no JSON of its own
    project = Path(config.project).absolute()
    if config.name is not None and (project / config.name / "plan.json").is_file():
        folder = project / config.name
        try:
            held = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            held = None
        if held != wanted:
            raise ConfigError(
                f"Expected {folder} to hold this comparison, but it holds another: choose another --name."
            )
        return folder
    stem = config.name or "compare"
    number = 1
    while (project / (stem if number == 1 else f"{stem}{number}")).exists():
        number += 1
    folder = project / (stem if number == 1 else f"{stem}{number}")
    try:
        folder.mkdir(parents=True)
        with export.replace_file(folder / "plan.json") as temporary:
            temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"Expected a writable place for {folder}, but: {error.strerror}; choose another --name."
        ) from None
    return folder


def _judge_data(folder: Path, data: dict[str, Any], seed: int) -> tuple[Path, str]:
    """Write the data file every cell trains from; its `val` chooses and its `test` is reported on."""
    rest = {k: v for k, v in data.items() if k not in {"download", "yaml_file", "val", "test"} and v is not None}
    rest["path"] = str(data["path"])
    target = folder / "data.yaml"
    if data.get("test"):
        content = {**rest, "val": data["val"], "test": data["test"]}
        reported_on = "test split"
    else:
        from yolo_adapruner.engine.splits import split_images

        paths = split_images(data, "val")
        if len(paths) < 2:
            raise ConfigError(
                f"Expected a test split or at least two validation images, but {data['yaml_file']} has neither."
            )
        chosen = np.zeros(len(paths), bool)
        chosen[np.random.default_rng([seed, len(paths)]).permutation(len(paths))[: len(paths) // 2]] = True
        for name, half in (("choose", chosen), ("report", ~chosen)):
            lines = "".join(f"{p}\n" for p, row in zip(paths, half, strict=True) if row)
            (folder / f"{name}.txt").write_text(lines, encoding="utf-8")
        content = {**rest, "val": str(folder / "choose.txt"), "test": str(folder / "report.txt")}
        reported_on = f"seeded half of the validation images ({int((~chosen).sum())} of {len(paths)})"
    target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target, reported_on


def _run_cell(folder: Path, cell: Cell, config: RunConfig, base: Path) -> dict[str, Any]:
    home = folder / "cells" / cell.name
    record = home / "cell.json"
    if record.is_file():
        figures: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return figures
    from yolo_adapruner.engine.detections import collect
    from yolo_adapruner.engine.run import train

    began = time.monotonic()
    share, epochs, data = 0.0, config.epochs, base
    if cell.arm == RUN:
        share = cell.share
    elif cell.arm in (PRUNED, RANDOM):
        data, epochs = _list_arm(folder, cell, config, base)
    cell_config = config.model_copy(update={"seed": cell.seed, "data": str(data), "epochs": epochs}).with_prune(share)
    home.mkdir(parents=True, exist_ok=True)
    result = train(cell_config, save_dir=home)
    trained = time.monotonic()
    names = yaml.safe_load(base.read_text(encoding="utf-8"))["names"]
    found, own = collect(
        result.weights, base, "test", imgsz=config.imgsz, batch=int(config.batch), device=config.device
    )
    metrics = coco_metrics(found, names)
    figures = {
        **asdict(cell),
        "images": result.kept,
        "epochs": epochs,
        "updates": result.updates,
        "map50_95": metrics.map50_95,
        "map50": metrics.map50,
        "per_class": metrics.per_class,
        "ultralytics_map50_95": own["map50_95"],
        "ultralytics_map50": own["map50"],
        "validation_map50_95": result.map50_95,
        "hours": (trained - began) / 3600,
    }
    with export.replace_file(record) as temporary:
        temporary.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return figures


def _list_arm(folder: Path, cell: Cell, config: RunConfig, base: Path) -> tuple[Path, int]:
    """The data file and the epochs of an arm that trains on a list, cut from the run of the same seed and share."""
    _, outcome = export.read(folder / "cells" / Cell(RUN, cell.share, EPOCHS, cell.seed).name)
    total = len(outcome.paths)
    kept = outcome.kept if cell.arm == PRUNED else random_kept(total, cell.share, seed=cell.seed)
    stem = folder / f"{cell.arm}-{cell.share:g}-s{cell.seed}"
    lines = "".join(f"{p}\n" for p, row in zip(outcome.paths, kept, strict=True) if row)
    stem.with_name(stem.name + ".txt").write_text(lines, encoding="utf-8")
    content = {**yaml.safe_load(base.read_text(encoding="utf-8")), "train": os.path.abspath(f"{stem}.txt")}
    target = stem.with_name(stem.name + ".yaml")
    target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if cell.budget == EPOCHS:
        return target, config.epochs
    return target, equal_updates_epochs(config.epochs, total, int(kept.sum()), int(config.batch))


def _save(result: Comparison, done: Mapping[Cell, Mapping[str, Any]]) -> None:
    content = {**result.facts, "rows": [asdict(r) for r in result.rows], "cells": list(done.values())}
    writers: dict[str, Callable[[], str]] = {
        "compare.json": lambda: json.dumps(_strict(content), indent=2, default=str, allow_nan=False) + "\n",
        "compare.md": lambda: result.table() + "\n",
    }
    for name, text in writers.items():
        with export.replace_file(result.folder / name) as temporary:
            temporary.write_text(text(), encoding="utf-8")


def _strict(value: Any) -> Any:
    """The same with null for NaN, the bounds of an interval over one seed: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
