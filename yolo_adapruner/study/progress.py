"""How far a grid is: a line a finished cell, and one table of all of them where a terminal shows it.

What a cell has done is read from its folder, so it does not matter which process or machine runs it. Knows no training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yolo_adapruner.study.grid import Figures, Runner
from yolo_adapruner.study.table import Cell

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_ROWS = 30


class Progress:
    """Tells of the cells of a grid; a context, for the table stays on the screen as long.

    Args:
        chains: the grid.
        runner: runs its cells.
        epochs: that a cell trains for, unless it is one of equal updates.
        figure: what the cells' `map50_95` is called.
        live: show the table; None where standard output is a terminal.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[Cell]],
        runner: Runner,
        epochs: int,
        figure: str = "mAP50-95",
        *,
        live: bool | None = None,
    ) -> None:
        self.cells = [cell for chain in chains for cell in chain]
        self.runner, self.epochs, self.figure = runner, epochs, figure
        self.done: dict[Cell, Figures] = {}
        self._live: Any = None
        if sys.stdout.isatty() if live is None else live:
            from rich.live import Live

            self._live = Live(self.table(), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, cell: Cell, figures: Mapping[str, Any]) -> None:
        """Take a finished cell's figures and say so in a line."""
        self.done[cell] = dict(figures)
        line = f"[{len(self.done)}/{len(self.cells)}] {cell.name}: {self.figure} {100 * figures['map50_95']:.1f}"
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def look(self) -> None:
        """Bring the table up to date."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def state(self, cell: Cell) -> str:
        """Return what a cell is at: waiting, epoch k, or its mAP."""
        if cell in self.done:
            return f"{self.figure} {100 * self.done[cell]['map50_95']:.1f}"
        home = self.runner.home(cell)
        if not home.is_dir():
            return "waiting"
        return f"after epoch {_epochs(home / 'results.csv')} of about {self.epochs}"

    def table(self) -> Any:
        """Return the table of all cells, as rich prints it; those under way first."""
        from rich.table import Table

        table = Table("cell", "state", title=f"{len(self.done)} of {len(self.cells)} cells done", title_justify="left")
        states = {cell: self.state(cell) for cell in self.cells if cell not in self.done}
        running = [cell for cell, state in states.items() if state != "waiting"]
        order = running + [cell for cell in states if cell not in running] + list(reversed(self.done))
        for cell in order[:MOST_ROWS]:
            table.add_row(cell.name, self.state(cell))
        if len(order) > MOST_ROWS:
            table.add_row("…", f"and {len(order) - MOST_ROWS} more")
        return table


def _epochs(results: Path) -> int:
    try:
        return max(0, len(results.read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0
