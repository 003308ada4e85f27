"""What a person at a terminal sees of a finished run or comparison: tables by rich. A pipe gets the plain text instead.

File and class names are shown as they are: nothing in them is taken for markup.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from yolo_adapruner.report import NAME
from yolo_adapruner.study.summary import run_lines, run_summary

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def show_run(result: RunResult) -> None:
    """Print the summary of a finished run."""
    _show(run_summary(result), lambda: _pairs(run_lines(result)))


class Finished(Protocol):
    """A comparison or a study."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    def report(self) -> str:
        """Return all of it in Markdown."""


def show_comparison(result: Finished) -> None:
    """Print a finished comparison or study."""
    places = "\n".join(f"{name} {place}" for name, place in _places(result))
    _show(f"{result.report()}\n\n{places}", lambda: _comparison(result))


def _show(plain: str, rich: Callable[[], RenderableType]) -> None:
    """Print `plain`, or what `rich` makes where standard output is a terminal."""
    if sys.stdout.isatty():
        Console(highlight=False).print(rich())
    else:
        print(plain)


def _pairs(lines: Sequence[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, words in lines:
        grid.add_row(Text(name), Text(words, style="bold" if name == "images" else ""))
    return Padding(grid, (1, 0))


def _comparison(result: Finished) -> RenderableType:
    parts: list[RenderableType] = []
    for block in result.report().split("\n\n"):
        lines = block.splitlines()
        words = "\n".join(f"• {line[2:]}" if line.startswith("- ") else line for line in lines)
        parts += [_table(lines) if lines[0].startswith("|") else Text(words), Text()]
    return Group(*parts, _pairs(_places(result)))


def _places(result: Finished) -> list[tuple[str, str]]:
    """Where a comparison lies, and its report if there is one."""
    page = result.folder / NAME
    return [("saved in", str(result.folder)), *([("report", str(page))] if page.is_file() else [])]


def _table(lines: Sequence[str]) -> Table:
    """A table in Markdown as one of rich's."""
    head, _, *rows = (line.strip().strip("|").split("|") for line in lines)
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(head):
        table.add_column(Text(title.strip()), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.strip()) for cell in row))
    return table
