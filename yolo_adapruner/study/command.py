"""How a study's command ends, with its work done or one line of what was wrong, and writes a file. Knows no study."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from yolo_adapruner.data.export import replace_file
from yolo_adapruner.errors import AdaPrunerError


class Main(Protocol):
    """A command's `main`: words of the command line, those of this process if None; the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...  # noqa: D102


def one_line(work: Callable[[Sequence[str] | None], None]) -> Main:
    """Return a `main` that does the work and returns 0, or prints a user's error as its line and returns its code."""

    @functools.wraps(work)
    def main(argv: Sequence[str] | None = None) -> int:
        try:
            work(argv)
        except AdaPrunerError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        return 0

    return main


def write(path: Path, text: str) -> None:
    """Put a text and a line's end in a file's place, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
