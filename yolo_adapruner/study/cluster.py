"""The grid on a Ray cluster: cells go wherever there is room, and their figures come back as they are done.

What a cell is and what it leaves stays the runner's; its folder has to lie where every machine of the cluster sees it.
So a worker that is killed costs the epoch it was in: Ray starts the cell again, elsewhere if need be, and the runner
finds how far it had come. Knows no training.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from yolo_adapruner import __version__
from yolo_adapruner.errors import AdaPrunerError, ConfigError, RunError
from yolo_adapruner.study.grid import MOST_DEATHS, Figures, Runner, log_to
from yolo_adapruner.study.table import Cell

LOCAL = "local"
"""In place of an address: a cluster of this machine alone, gone when the grid is done."""
_EVERY = 2.0  # seconds between looks at cells that are under way
_KNOCK = 10.0  # seconds to wait for a cluster to answer


@dataclass(frozen=True)
class Cluster:
    """Where the grid runs, and what a cell takes of it.

    Attributes:
        address: of a Ray cluster, as `ray.init` takes it (HOST:PORT, ray://HOST:PORT, auto), or `LOCAL`.
        cpus: cores a cell, >= 1; as many threads compute it.
        gpus: GPUs a cell; below 1 that part of one, so that 0.25 puts four cells on a card.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1 or not (0 <= self.gpus <= 1 or float(self.gpus).is_integer()):
            raise ConfigError(
                f"Expected cores of 1 or more a cell, and GPUs a cell in [0, 1] or a whole number, but got "
                f"{self.cpus} and {self.gpus:g}."
            )


def installed() -> Any:
    """Return Ray.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and hide GPUs from cells that reserve none
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "Expected Ray for --ray, but it is not installed: pip install 'yolo-adapruner[ray]'."
        ) from None
    return ray


def run_on_cluster(
    chains: Sequence[Sequence[Cell]],
    runner: Runner,
    cluster: Cluster,
    *,
    note: Callable[[Cell, Figures], None] | None = None,
    look: Callable[[], None] | None = None,
) -> dict[Cell, Figures]:
    """Run every cell on the cluster and return the figures of all.

    The first cell of a chain is run before the others, which may all run at once.

    Args:
        chains: of cells.
        runner: runs one; it is pickled, and its folders must be the same files on every machine.
        cluster: where.
        note: is told of each cell once, when its figures are in.
        look: is called every few seconds, and after each cell.

    Raises:
        ConfigError: Ray is not installed.
        RunError: there is no such cluster, no machine of it has what a cell takes, a machine does not see the folder
            or has another version of this package, or workers were killed again and again.
    """
    with _connected(cluster) as ray:
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=MOST_DEATHS)(_run_cell)
        waiting: dict[Any, Cell] = {}
        for first, *others in chains:
            head = task.remote(runner, first, cluster.cpus, __version__)
            waiting[head] = first
            waiting |= {task.remote(runner, cell, cluster.cpus, __version__, head): cell for cell in others}
        try:
            done = _gather(ray, waiting, note, look)
        except BaseException:
            for reference in waiting:
                ray.cancel(reference, force=True)
            raise
    return {cell: done[cell] for chain in chains for cell in chain}


def _gather(
    ray: Any,
    waiting: dict[Any, Cell],
    note: Callable[[Cell, Figures], None] | None,
    look: Callable[[], None] | None,
) -> dict[Cell, Figures]:
    done: dict[Cell, Figures] = {}
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=_EVERY)
        for reference in ready:
            cell = waiting.pop(reference)
            done[cell] = _figures(ray, reference, cell)
            if note is not None:
                note(cell, done[cell])
        if look is not None:
            look()
    return done


def _figures(ray: Any, reference: Any, cell: Cell) -> Figures:
    """A finished cell's figures, or why there are none in one line."""
    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AdaPrunerError):
            raise error.cause from None
        raise RunError(
            f"Expected cell {cell.name} to run, but on a machine of the cluster: {type(error.cause).__name__}: "
            f"{str(error.cause).splitlines()[0]}; install the same packages on every machine."
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"Expected workers that live, but cell {cell.name} was killed {MOST_DEATHS + 1} times "
            f"({type(error).__name__}): look into its log.txt, or give it more of a machine with --cell-cpus."
        ) from None


def _run_cell(runner: Runner, cell: Cell, threads: int, version: str, _after: Any = None) -> Figures:
    """Run a cell in a worker of the cluster, its output in the cell's log.txt."""
    if version != __version__:
        raise RunError(
            f"Expected yolo-adapruner {version} on every machine of the cluster, but {socket.gethostname()} has "
            f"{__version__}: install the same there."
        )
    folder = runner.home(cell).parent.parent
    if not folder.is_dir():
        raise RunError(
            f"Expected every machine of the cluster to see {folder}, but {socket.gethostname()} does not: put the "
            "project, and the data set, where all of them see it under the same path."
        )
    os.environ["YOLO_ADAPRUNER_THREADS"] = str(threads)
    with log_to(runner.home(cell)):
        return runner(cell)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    ray = installed()
    # "local" is said too: without an address Ray joins the cluster that ran here last, dead or alive.
    where = {"address": cluster.address} | ({"include_dashboard": False} if cluster.address == LOCAL else {})
    already = ray.is_initialized()
    try:
        _knock(cluster.address)
        if not already:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise RunError(
            f"Expected a Ray cluster at {cluster.address}, but: {why}. Start one with ray start --head, or take --ray "
            f"{LOCAL}."
        ) from None
    try:
        _refuse_too_small(ray, cluster)
        yield ray
    finally:
        if not already:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError or ValueError where nobody answers; Ray would go on trying for minutes, and then end us."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _refuse_too_small(ray: Any, cluster: Cluster) -> None:
    """Ray would wait for ever for a machine that has what a cell takes."""
    have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(r.get("CPU", 0) >= cluster.cpus and r.get("GPU", 0) >= cluster.gpus for r in have):
        return
    most = ", ".join(f"{r.get('CPU', 0):g} cores and {r.get('GPU', 0):g} GPUs" for r in have)
    raise RunError(
        f"Expected a machine with {cluster.cpus} cores and {cluster.gpus:g} GPUs for a cell, but the cluster has "
        f"{most or 'none'}: lower --cell-cpus or --cell-gpus."
    )
