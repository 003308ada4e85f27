"""Arms trained alike and judged alike: the one call from a run config to a finished comparison.

An arm is judged by pycocotools on images that chose nothing: the test split, or where there is none a seeded half of
the validation images, whose other half does the choosing. What a comparison stands on is made by `ground.py`, the grid
is run by `grid.py`, its cells by `cells.py`, and `conclude.py` says what comes of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_adapruner.api import resolve
from yolo_adapruner.config import PruneConfig, RunConfig
from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.data import classfolders, export
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study import arms as arms_by_name
from yolo_adapruner.study import auto, elsewhere, grid
from yolo_adapruner.study.arms import FULL, LISTED, PLAIN, PRUNED, RUN
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.closing import report_comparison
from yolo_adapruner.study.cluster import Cluster, installed, run_on_cluster
from yolo_adapruner.study.conclude import SCHEMA, Comparison, conclude, replicates, save
from yolo_adapruner.study.folders import judge_folder
from yolo_adapruner.study.ground import folder_of, judge_data, listed_images, set_of
from yolo_adapruner.study.progress import Progress
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, run_budget, summarise, words
from yolo_adapruner.study.verdict import BETTER, WITHIN, judge

AUTO = "auto"
BUDGETS = {"both": (EPOCHS, UPDATES), "epochs": (EPOCHS,), "updates": (UPDATES,)}
Executor = Callable[[Sequence[Sequence[Cell]]], dict[Cell, dict[str, Any]]]


def compare(
    run: str | Path | Mapping[str, Any] | RunConfig = "yolov3-tiny",
    *,
    prune: float | str | Sequence[float] = 0.1,
    seeds: int = 3,
    jobs: int = 1,
    arms: Sequence[str] = PLAIN,
    kept: str | Path | None = None,
    budget: str = "both",
    margin: float = 0.5,
    engine: str = "pycocotools",
    ray: str | Cluster | None = None,
    cells: Sequence[str | Path] = (),
    config: PruneConfig | None = None,
    **overrides: Any,
) -> Comparison:
    """Train the arms with the same recipe, compare their mAP or top-1, and say what comes of it against a margin.

    Arms: *full* trains on everything; *one run* is the model that `train --prune` itself leaves; *pruned*, *random*
    and the others of `arms.CHOICES` train anew on as many images, those the run kept, a seeded random choice and so on,
    once for as many epochs as full and once for as many updates, or, with `budget`, one of the two.

    Args:
        run: a run config: path, name of a packaged one, mapping, or `RunConfig`. With a `name` whose folder holds the
            same comparison, or one of fewer shares, seeds or arms, that one goes on: what is finished is not run again.
        prune: shares to compare at, each in (0, 0.95]; or "auto" for the largest share that is shown to lose no more
            than the margin, by bisection over the ranking of one run at the config's own share.
        seeds: runs an arm, >= 1: seeds `seed` to `seed + seeds - 1`, the same for each arm.
        jobs: cells trained side by side, >= 1, each with its part of the cores; their output goes to `log.txt` in the
            cell's folder.
        arms: those to train anew, out of `arms.CHOICES`.
        kept: a list of training images, one absolute path a line, to train on as an arm of its own.
        budget: what the arms have as much of as full: "epochs", "updates", or "both", each in a training of its own.
            The table of hours needs those of equal epochs.
        margin: points of mAP (0 to 100) that may be lost, >= 0.
        engine: what computes mAP, "pycocotools", or "faster-coco-eval" where it is installed, which says the same
            (to 1e-6) and waits less on sets of thousands of test images.
        ray: run the cells on this Ray cluster, an address or "local" where a core a cell is enough; the project and
            the data set must lie where every machine sees them. None: in processes of this machine.
        cells: compare.json files of the same recipe on the same images; cells that they hold count as finished.
        config: settings of the method, in place of the run config's `prune:` section.
        overrides: settings that win over the run config.

    Raises:
        ConfigError: a share, `seeds`, `jobs`, `budget`, `margin`, the engine or an arm is out of range, the engine is
            not installed, the model is neither detector nor classifier, the named folder holds another comparison, or
            both `jobs` and `ray` say where cells run.
        DataError, RunError: see their lines.
    """
    resolved = resolve(run, config=config, **overrides)
    searching = prune == AUTO
    shares = checked_shares([resolved.prune.share] if searching else prune, seeds, jobs, margin)
    if budget not in BUDGETS:
        raise ConfigError(f"Expected a budget of {', '.join(BUDGETS)}, but got {budget}.")
    if searching and budget != "both":
        raise ConfigError(
            f"Expected no budget beside prune=auto, which searches at equal updates, but got {budget}: leave it out."
        )
    from yolo_adapruner.study.evaluate import engine_classes

    engine_classes(engine)  # here, before anything is made
    cluster = _cluster(ray, jobs, resolved)
    wanted = (PRUNED,) if searching else arms_by_name.check(arms)
    task, data = set_of(resolved)  # first: a missing data set leaves no folder behind
    if arms_by_name.DUPLICATES in wanted and (task == "classify" or not resolved.prune.redundancy):
        raise ConfigError(
            f"Expected images that a run compares with each other for the arm {arms_by_name.DUPLICATES}, but "
            f"{'a classifier' if task == 'classify' else 'prune.redundancy=0'} compares none: leave the arm out."
        )
    if arms_by_name.AFSS in wanted and task == "classify":
        raise ConfigError(
            f"Expected a detector for the arm {arms_by_name.AFSS}, which draws by precision and recall of boxes, but "
            f"{resolved.model} is for classify: leave the arm out."
        )
    from yolo_adapruner.engine import runtime
    from yolo_adapruner.engine.splits import content_print, relative

    hardware = _hardware(cluster, jobs, resolved)
    listed, listed_share = listed_images(kept, data) if kept is not None else ((), 0.0)
    content = content_print(data)
    list_print = export.hash_paths(sorted(relative(listed, data)))
    taken = elsewhere.read(cells, resolved, content, list_print)
    terms = _terms(searching, wanted, listed)
    with folder_of(resolved, shares, seeds, **terms, images=content) as folder:
        if task == "classify":
            base, reported_on = judge_folder(folder, data, resolved.seed)
            listed = tuple(classfolders.moved(listed, data["train"], base / "train"))
        else:
            base, reported_on = judge_data(folder, data, resolved.seed)
        runner = CellRunner(
            folder,
            resolved,
            base,
            ranking=shares[0] if searching else None,
            listed=listed,
            elsewhere=taken,
            engine=engine,
        )
        numbers = range(resolved.seed, resolved.seed + seeds)
        given = (LISTED, listed_share) if listed else None
        chains = []
        if not searching:
            chains = grid.plan(
                shares, numbers, arms=wanted, budgets=BUDGETS[budget], listed=given, run_budget=run_budget(resolved)
            )
        runner = replace(runner, watched=_to_watch(runner, chains))
        run_cells = _executor(runner, jobs, cluster, words({"task": task}).first)
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "config": resolved.model_dump(),
            "shares": shares,
            "seeds": seeds,
            "margin": margin,
            "reported_on": reported_on,
            "versions": runtime.versions(),
            "hardware": hardware,
            "jobs": jobs,
            "task": task,
            "engine": None if task == "classify" else engine,
            elsewhere.SET: content,
            elsewhere.LIST: list_print,
            "elsewhere": list(taken.sources),
        }
        if searching:
            done, facts["auto"] = _search(runner, numbers, margin / 100, run_cells)
        else:
            done = run_cells(chains)
        result = conclude(runner, done, facts)
        save(result)
        runs = sorted((cell for cell in done if cell.arm == RUN), key=lambda c: (c.share, c.seed))
        shown = next((cell for cell in runs if (runner.home(cell) / export.MANIFEST).is_file()), None)
        if shown is not None:
            report_comparison(folder, runner.home(shown))
        return result


def checked_shares(prune: float | str | Sequence[float], seeds: int, jobs: int, margin: float) -> list[float]:
    """Return the shares, each once: two chains of one name would write into the same folders."""
    given = prune if isinstance(prune, Sequence) else [prune]
    if isinstance(prune, str):
        raise ConfigError(f"Expected prune shares or {AUTO}, but got {prune!r}.")
    shares = list(dict.fromkeys(float(s) for s in given))
    wrong = [s for s in shares if not 0 < s <= 0.95]
    if wrong or not shares or seeds < 1 or jobs < 1:
        raise ConfigError(
            f"Expected prune shares in (0, 0.95], seeds >= 1 and jobs >= 1, but got prune {shares}, seeds {seeds} and "
            f"jobs {jobs}."
        )
    if not 0 <= margin <= 100:
        raise ConfigError(f"Expected a margin of 0 to 100 points of mAP, but got {margin:g}: 0.5 is a common one.")
    return shares


def _to_watch(runner: CellRunner, chains: Sequence[Sequence[Cell]]) -> frozenset[int]:
    """The seeds whose training on everything somebody still waits to choose by: what is finished needs no other."""
    waiting = (cell for chain in chains for cell in chain if cell.arm in arms_by_name.WATCHING)
    return frozenset(cell.seed for cell in waiting if runner.finished(cell) is None)


def _terms(searching: bool, arms: Sequence[str], listed: Sequence[str]) -> dict[str, Any]:
    """What tells a comparison from another beside config, shares and seeds; nothing for a plain one."""
    terms: dict[str, Any] = {}
    if searching:
        terms["prune"] = AUTO
    elif tuple(arms) != PLAIN:
        terms["arms"] = list(arms)
    if listed:
        terms["kept"] = export.hash_paths(listed)
    return terms


def _cluster(ray: str | Cluster | None, jobs: int, config: RunConfig) -> Cluster | None:
    if ray is None:
        return None
    cluster = ray if isinstance(ray, Cluster) else Cluster(ray)
    if jobs > 1:
        raise ConfigError(
            f"Expected --jobs or --ray, but got --jobs {jobs} and --ray {cluster.address}: a cluster decides by itself "
            "how many cells it runs side by side; --cell-cpus and --cell-gpus say what a cell takes."
        )
    if cluster.gpus and config.device not in (None, "", "cuda"):
        raise ConfigError(
            f"Expected the cluster to hand out its GPUs, but got device={config.device}: leave device out."
        )
    installed()  # here, before anything is made
    return cluster


def _hardware(cluster: Cluster | None, jobs: int, config: RunConfig) -> str:
    """One line on what the cells compute on; this machine need not have the GPUs of a cluster.

    Raises:
        ConfigError: the cells are to run here, and there is no such device.
    """
    from yolo_adapruner.engine import runtime

    if cluster is None:
        return runtime.hardware(runtime.chosen_device(config.device), threads=runtime.cores() // jobs)
    if cluster.gpus:
        return f"cluster, {cluster.gpus:g} GPUs and {cluster.cpus} threads a cell"
    return runtime.hardware("cpu", threads=cluster.cpus)


def _executor(runner: CellRunner, jobs: int, cluster: Cluster | None, figure: str) -> Executor:
    """What runs chains of cells and returns the figures of all: this machine's processes or a cluster."""

    def run_cells(chains: Sequence[Sequence[Cell]]) -> dict[Cell, dict[str, Any]]:
        live = None if cluster else False
        with Progress(chains, runner, runner.config.epochs, figure, live=live) as progress:
            if cluster is None:
                return grid.run_all(chains, runner, jobs, note=progress.note)
            return run_on_cluster(chains, runner, cluster, note=progress.note, look=progress.look)

    return run_cells


def _search(
    runner: CellRunner, seeds: Sequence[int], margin: float, run_cells: Executor
) -> tuple[dict[Cell, dict[str, Any]], dict[str, Any]]:
    """Run what bisection asks for, and return all cells and what came of it."""
    assert runner.ranking is not None
    ranked = [[Cell(FULL, 0.0, EPOCHS, s), runner.choosing(runner.ranking, s)] for s in seeds]
    cells = dict(run_cells(ranked))

    def within(share: float) -> bool:
        cells.update(run_cells([[Cell(PRUNED, share, UPDATES, s)] for s in seeds]))
        drawn, images = replicates(runner, list(cells), runner.elsewhere)
        row = next(r for r in summarise(cells, drawn, images=images) if (r.arm, r.share) == (PRUNED, share))
        assert row.versus_full is not None
        base = statistics.fmean(row.map50_95) - row.versus_full.mean
        return judge(row.versus_full, margin, base=base).outcome in (BETTER, WITHIN)

    total = len(export.read(runner.home(ranked[0][1]))[1].paths)
    enough = [s for s in auto.SHARES if total - drop_count(total, s) >= runner.config.batch]  # a batch at least
    found = auto.largest_within(within, enough)
    tried = [{"share": share, "within": good} for share, good in found.tried.items()]
    return cells, {"share": found.share, "tried": tried, "line": auto.line(found, margin)}
