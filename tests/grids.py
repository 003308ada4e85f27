"""Grids whose cells train nothing, and a cluster of two machines, as far as Ray can tell.

In a module of their own, because the cluster's workers have to import them.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_adapruner.data.export import replace_file
from yolo_adapruner.errors import DataError
from yolo_adapruner.study.grid import plan
from yolo_adapruner.study.table import Cell

CHAINS = plan([0.1, 0.3], [0, 1])
CELLS = [cell for chain in CHAINS for cell in chain]


class Killed(BaseException):
    """Stands for whatever ends a process."""


@dataclass(frozen=True)
class FakeRunner:
    """Writes down that it began and ended a cell; dies in the middle of cells for which a `die-<cell>` file lies."""

    folder: Path
    kill: bool = False

    def home(self, cell: Cell) -> Path:
        return self.folder / cell.name

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        record = self.home(cell) / "cell.json"
        return json.loads(record.read_text()) if record.is_file() else None

    def __call__(self, cell: Cell) -> dict[str, Any]:
        if (done := self.finished(cell)) is not None:
            return done
        self.home(cell).mkdir(parents=True, exist_ok=True)
        with (self.folder / "begun.txt").open("a") as log:
            log.write(f"{cell.name}\n")
        self._die(cell)
        value = len(cell.name) / 100 + cell.seed / 10
        figures = {"map50_95": value, "map50": value + 0.1, "images": 9, "updates": 5, "hours": 0.1}
        with replace_file(self.home(cell) / "cell.json") as temporary:
            temporary.write_text(json.dumps(figures))
        return figures

    def _die(self, cell: Cell) -> None:
        for mark in sorted(self.folder.glob(f"die-*-{cell.name}")):
            mark.unlink()
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    def begun(self) -> list[str]:
        return (self.folder / "begun.txt").read_text().split()

    def mark(self, *cells: Cell) -> None:
        self.folder.mkdir(exist_ok=True)
        for number, cell in enumerate(cells):
            (self.folder / f"die-{number}-{cell.name}").touch()


@dataclass(frozen=True)
class Telling(FakeRunner):
    """Its figures say which machine and which devices they come from."""

    wait: float = 0.0

    def __call__(self, cell: Cell) -> dict[str, Any]:
        found = super().__call__(cell)
        time.sleep(self.wait)
        import ray

        machine = ray.get_runtime_context().get_node_id()
        return {**found, "machine": machine, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "at": time.monotonic()}


class Endless(FakeRunner):
    """Says which process it is in and does not come to an end."""

    def __call__(self, cell: Cell) -> dict[str, Any]:
        self.home(cell).mkdir(parents=True, exist_ok=True)
        with replace_file(self.home(cell) / "pid") as temporary:
            temporary.write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)


class Failing(FakeRunner):
    """Says what is wrong, or breaks."""

    def __call__(self, cell: Cell) -> dict[str, Any]:
        if cell.seed:
            raise ZeroDivisionError("two\nlines")
        raise DataError("Expected images, but there is none.")


@contextmanager
def two_machines() -> Iterator[Any]:
    """A Ray cluster of two machines with a core each, and a pretended GPU on the second."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster as Machines

    # A machine that is gone is noticed after looks a second apart, not three; one that is slow still has 10 s a look.
    look = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": look}
    machines = Machines(initialize_head=True, head_node_args=head)
    machines.add_node(num_cpus=1, num_gpus=1)
    try:
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()
