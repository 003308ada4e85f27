"""The grid's order and its workers: every cell is run once, whatever dies on the way. Knows no training and no files.

Cells come in chains, one after the other in each; chains may run side by side. What a cell is, is the runner's: called
with a cell it returns its figures, at once where the cell is finished.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from yolo_adapruner.errors import RunError
from yolo_adapruner.study.arms import AFSS, DYNAMIC, FULL, INFOBATCH, PRUNED, RANDOM, RUN, WATCHING
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell

Figures = dict[str, Any]
MOST_DEATHS = 3
"""So many times in a row workers may be killed without one more cell being finished."""


class Runner(Protocol):
    """What runs a cell; for workers side by side it must be possible to pickle it."""

    def __call__(self, cell: Cell) -> Figures:
        """Return the cell's figures, running it if it is not finished."""

    def finished(self, cell: Cell) -> Figures | None:
        """Return the figures of a finished cell, None for one that is not."""

    def home(self, cell: Cell) -> Path:
        """Return the cell's folder, where a worker's output goes."""


def plan(
    shares: Sequence[float],
    seeds: Sequence[int],
    *,
    arms: Sequence[str] = (PRUNED, RANDOM),
    budgets: Sequence[str] = (EPOCHS, UPDATES),
    listed: tuple[str, float] | None = None,
    run_budget: str = EPOCHS,
) -> list[list[Cell]]:
    """Return the grid as chains of cells, seed by seed; a cell builds on the first cell of its own chain only.

    Args:
        shares: prune shares.
        seeds: of the runs.
        arms: those that train anew on what they keep.
        budgets: for as many epochs as full, for as many updates, or once each.
        listed: arm and share of a given list.
        run_budget: of the runs that choose.
    """
    chains = []
    for seed in seeds:
        lists = [arm for arm in arms if arm not in DYNAMIC]
        grid = {share: [Cell(arm, share, b, seed) for arm in lists for b in budgets] for share in shares}
        watching = [cell for cells in grid.values() for cell in cells if cell.arm in WATCHING]
        chains.append([Cell(FULL, 0.0, EPOCHS, seed), *watching])
        for share, cells in grid.items():
            chains.append([Cell(RUN, share, run_budget, seed), *(cell for cell in cells if cell.arm not in WATCHING)])
        if INFOBATCH in arms:
            chains += [[Cell(INFOBATCH, share, b, seed)] for share in shares for b in budgets]
        if AFSS in arms:  # its rates are its own, whatever the share, and so are its updates
            chains.append([Cell(AFSS, 0.0, EPOCHS, seed)])
        if listed is not None:
            chains.append([Cell(*listed, budget, seed) for budget in budgets])
    return chains


def run_all(
    chains: Sequence[Sequence[Cell]], runner: Runner, jobs: int, *, note: Callable[[Cell, Figures], None] | None = None
) -> dict[Cell, Figures]:
    """Run every cell and return the figures of all; chains side by side where `jobs` allows.

    A worker that is killed takes the pool with it: the chains that are not through are handed to a new one, which finds
    their finished cells finished.

    Args:
        chains: of cells.
        runner: runs one.
        jobs: workers, each with its part of the cores; 1 runs in this process.
        note: is told of each cell once, when its figures are in.

    Raises:
        RunError: workers were killed again and again and got no further.
    """
    done: dict[Cell, Figures] = {}

    def take(cell: Cell, figures: Figures) -> None:
        if cell not in done:
            done[cell] = figures
            if note is not None:
                note(cell, figures)

    if jobs == 1:
        for cell in (cell for chain in chains for cell in chain):
            take(cell, runner(cell))
        return done
    cells = [cell for chain in chains for cell in chain]
    deaths, finished = 0, _count(runner, cells)
    while left := [chain for chain in chains if any(cell not in done for cell in chain)]:
        try:
            _side_by_side(left, runner, jobs, take)
        except BrokenProcessPool:
            now = _count(runner, cells)
            deaths, finished = (0 if now > finished else deaths + 1), now
            if deaths >= MOST_DEATHS:
                raise RunError(
                    f"Expected workers that live, but {deaths} times in a row one was killed and no cell was finished: "
                    f"look into log.txt in {runner.home(left[0][0]).parent}, or take fewer --jobs if memory ran out."
                ) from None
    return done


def _side_by_side(
    chains: Sequence[Sequence[Cell]], runner: Runner, jobs: int, take: Callable[[Cell, Figures], None]
) -> None:
    # Spawned, because torch's thread pool does not survive a fork. Longest chains first, so that none is left alone.
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
        futures = [pool.submit(_run_chain, runner, chain) for chain in sorted(chains, key=len, reverse=True)]
        try:
            for future in as_completed(futures):
                for cell, figures in future.result():
                    take(cell, figures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_chain(runner: Runner, chain: Sequence[Cell]) -> list[tuple[Cell, Figures]]:
    """Run a chain in this worker, its output in each cell's log.txt."""
    results = []
    for cell in chain:
        with log_to(runner.home(cell)):
            results.append((cell, runner(cell)))
    return results


@contextmanager
def log_to(home: Path) -> Iterator[None]:
    """Send all this process prints to a cell's log.txt, from here on."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "log.txt").open("a", encoding="utf-8") as log:
        for stream in (1, 2):  # the descriptors, because Ultralytics' handlers hold the streams themselves
            os.dup2(log.fileno(), stream)
        yield
        sys.stdout.flush()


def _start_worker(threads: int) -> None:
    """Give a worker its part of the cores before torch is loaded, and end it with the process that started it."""
    os.environ["YOLO_ADAPRUNER_THREADS"] = str(threads)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    # A worker whose parent was killed would train its cell to the end, beside whoever goes on with the comparison in
    # the same folder: both would write it.
    wait([sentinel])
    os._exit(1)


def _count(runner: Runner, cells: Sequence[Cell]) -> int:
    return sum(runner.finished(cell) is not None for cell in cells)


def _cores() -> int:
    from yolo_adapruner.engine import runtime

    return runtime.cores()
