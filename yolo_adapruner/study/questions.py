"""The paper's questions as one call each: variants of a recipe trained alike, judged alike, and what comes of them.

What is varied is `variants.py`'s business, what the figures come to `answers.py`'s. A study is a grid of cells as a
comparison is, judged on images that chose nothing: it can be killed and gone on with, cell by cell.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolo_adapruner.api import resolve
from yolo_adapruner.config import PruneConfig, RunConfig
from yolo_adapruner.data import export
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study import grid
from yolo_adapruner.study.answers import SCHEMA, MaskRow, Study, save, summarise
from yolo_adapruner.study.arms import RUN
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.compare import checked_shares
from yolo_adapruner.study.conclude import replicates
from yolo_adapruner.study.folders import judge_folder
from yolo_adapruner.study.ground import folder_of, judge_data, set_of
from yolo_adapruner.study.masks import MaskFigures, mean_figures
from yolo_adapruner.study.progress import Progress
from yolo_adapruner.study.table import Cell, run_budget, words
from yolo_adapruner.study.variants import MANY_SHARES, SHARES, Trial, Variant, plan, variants


@dataclass(frozen=True)
class StudyRunner:
    """Runs the trials of a study, each in its variant's folder; can be handed to another process.

    Attributes:
        base: the data file, or a classifier's folder, that all trials train from.
        runners: variant → what runs its cells.
    """

    base: Path
    runners: Mapping[str, CellRunner]

    def home(self, cell: Cell) -> Path:
        """Return the trial's folder."""
        return self._of(cell).home(_trial(cell).cell)

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """Return the figures of a finished trial, None for one that is not."""
        return self._of(cell).finished(_trial(cell).cell)

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Return the trial's figures, running what is left of it to run."""
        return self._of(cell)(_trial(cell).cell)

    def _of(self, cell: Cell) -> CellRunner:
        return self.runners[_trial(cell).variant]


def study(
    question: str,
    run: str | Path | Mapping[str, Any] | RunConfig = "resnet18-digits",
    *,
    prune: float | Sequence[float] | None = None,
    seeds: int = 3,
    jobs: int = 1,
    vary: Mapping[str, Sequence[Any]] | None = None,
    to: Sequence[str] = (),
    only: Sequence[str] = (),
    retrain: bool = True,
    margin: float = 0.5,
    config: PruneConfig | None = None,
    **overrides: Any,
) -> Study:
    """Answer one of the paper's questions for a recipe, with detectors or classifiers.

    Each variant prunes in a run of its own, and a network is trained anew on what it kept, for as many updates as one
    on all images. All are judged on images that chose nothing, the same seeds in each.

    Args:
        question: "warmup" (with and without), "terms" (each of the objective's left out), "scale" (s and its schedule
            over a grid), "shares" (10 to 80 % pruned) or "transfer" (another model on what the config's model chose).
        run: a run config: path, name of a packaged one, mapping, or `RunConfig`. With a `name` whose folder holds the
            same study unfinished, that one goes on.
        prune: share or shares to prune, each in (0, 0.95]; None for the config's own, of "shares" for 0.1 to 0.8.
        seeds: runs a variant, >= 1: seeds `seed` to `seed + seeds - 1`, the same for each.
        jobs: cells trained side by side, >= 1.
        vary: for "scale", settings of the method and their values; every combination is a variant.
        to: for "transfer", models to train on what the config's model chose.
        only: names of the variants to run beside the first; none for all.
        retrain: train anew on what was kept, and on a random choice; False halves the cost and leaves the networks
            that the runs themselves leave.
        margin: points (0 to 100) that may be lost, >= 0.
        config: settings of the method, in place of the run config's `prune:` section.
        overrides: settings that win over the run config.

    Raises:
        ConfigError: an argument is out of range, or the named folder holds something else.
        DataError, RunError: see their lines.
    """
    resolved = resolve(run, config=config, **overrides)
    if prune is None:
        prune = MANY_SHARES if question == SHARES else resolved.prune.share
    shares = checked_shares(prune, seeds, jobs, margin)
    found = variants(question, resolved, vary=vary, to=to, only=only, retrain=retrain)
    configs = {variant.name: variant.config(resolved) for variant in found}
    task, data = set_of(resolved)  # first: a missing data set leaves no folder behind
    _refuse_other_task(task, [configs[v.name] for v in found if v.model is not None])
    from yolo_adapruner.engine import runtime

    hardware = runtime.hardware(runtime.chosen_device(resolved.device), threads=runtime.cores() // jobs)
    more = {"question": question, "variants": [asdict(variant) for variant in found]}
    with folder_of(resolved, shares, seeds, stem=f"study-{question}", **more) as folder:
        judged = judge_folder if task == "classify" else judge_data
        base, reported_on = judged(folder, data, resolved.seed)
        homes = {variant.name: folder / variant.slug for variant in found}
        for home in homes.values():
            home.mkdir(exist_ok=True)
        runner = StudyRunner(
            base,
            {
                v.name: CellRunner(
                    homes[v.name], configs[v.name], base, runs=None if v.chosen_by is None else homes[v.chosen_by]
                )
                for v in found
            },
        )
        chains = plan(found, shares, range(resolved.seed, resolved.seed + seeds), run_budget(resolved))
        with Progress(chains, runner, resolved.epochs, words({"task": task}).first, live=False) as progress:
            done = grid.run_all(chains, runner, jobs, note=progress.note)
        drawn, images = replicates(runner, list(done))
        facts = {
            "schema": SCHEMA,
            "question": question,
            "config": resolved.model_dump(),
            "shares": shares,
            "seeds": seeds,
            "margin": margin,
            "reported_on": reported_on,
            "versions": runtime.versions(),
            "hardware": hardware,
            "jobs": jobs,
            "task": task,
        }
        rows = summarise(found, done, drawn, images=images)
        result = Study(folder, found, rows, _masks(found, runner, done, Path(data["path"])), facts)
        save(result, done)
        return result


def _trial(cell: Cell) -> Trial:
    assert isinstance(cell, Trial)
    return cell


def _refuse_other_task(task: str, others: Sequence[RunConfig]) -> None:
    from yolo_adapruner.engine import names

    for config in others:
        if (other := names.task_of(config)) != task:
            raise ConfigError(
                f"Expected another model for {task}, as the run config's is, but {config.model} is for {other}."
            )


def _masks(found: Sequence[Variant], runner: StudyRunner, done: Mapping[Cell, Any], truth: Path) -> list[MaskRow]:
    """What the runs' masks came to, a row a variant and share."""
    rows = []
    runs = [_trial(cell) for cell in done if cell.arm == RUN]
    for variant in found:
        for share in sorted({cell.share for cell in runs if cell.variant == variant.name}):
            own = sorted((c for c in runs if (c.variant, c.share) == (variant.name, share)), key=lambda c: c.seed)
            figures = [MaskFigures.of(runner.home(cell), truth) for cell in own]
            alike = float("nan")
            if variant is not found[0]:
                alike = statistics.fmean(_alike(runner, cell, found[0].name) for cell in own)
            rows.append(MaskRow(variant.name, share, len(own), mean_figures(figures), alike))
    return rows


def _alike(runner: StudyRunner, cell: Trial, first: str) -> float:
    """Of what the first variant's run of the same share and seed dropped, the share this one dropped as well."""
    other = Trial(cell.arm, cell.share, cell.budget, cell.seed, first)
    own, theirs = (~export.read(runner.home(one))[1].kept for one in (cell, other))
    return float((own & theirs).sum() / theirs.sum()) if theirs.any() else float("nan")
