"""A long table as scores.csv and scores.parquet, some rows in memory at a time. Knows no column.

Polars' own writers raise errors of their own where a disk is full, which say no errno; so the bytes go through a stream
of ours, and its OSError is what the caller sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
from polars.io.plugins import register_io_source

CHUNK = 1 << 17
"""Rows in memory at a time, and in a row group of the parquet file."""


def write(
    folder: Path,
    n: int,
    rows: Callable[[slice], pl.DataFrame],
    replacing: Callable[[Path], AbstractContextManager[Path]],
) -> None:
    """Write a table of `n` rows into a folder, the same bytes each time.

    Args:
        folder: where to.
        n: number of rows.
        rows: gives those of a slice.
        replacing: opens a path to write to and puts it in a file's place once it is whole.

    Raises:
        OSError: it cannot be written.
    """
    with (
        replacing(folder / "scores.csv") as csv,
        csv.open("wb") as text,
        replacing(folder / "scores.parquet") as parquet,
        parquet.open("wb") as packed,
    ):
        lines = _Told(text, folder / "scores.csv")
        groups: Any = _Told(packed, folder / "scores.parquet")
        schema = rows(slice(0, 1)).schema
        # Before polars' threads have begun: of two files on a disk that is full, it is always this one that says so.
        _csv(lines, pl.DataFrame(schema=schema), include_header=True)
        header = text.tell()

        def source(
            with_columns: list[str] | None, predicate: Any, n_rows: int | None, batch_size: int | None
        ) -> Iterator[pl.DataFrame]:
            # A sink of the whole table asks for no choice of columns or rows. Making a part takes as long as writing
            # it, so the text is written where it passes by.
            text.seek(header)  # may be asked once more
            text.truncate()
            for begin in range(0, max(n, 1), CHUNK):
                part = rows(slice(begin, begin + CHUNK))
                _csv(lines, part, include_header=False)
                yield part

        try:
            table = register_io_source(source, schema=schema)
            table.sink_parquet(groups, row_group_size=CHUNK)
        except pl.exceptions.PolarsError:
            for stream in (lines, groups):
                if stream.error is not None:
                    raise stream.error from None
            raise


def _csv(lines: _Told, part: pl.DataFrame, *, include_header: bool) -> None:
    own = BytesIO()
    part.write_csv(own, include_header=include_header)
    lines.write(own.getbuffer())
    lines.flush()


class _Told:
    """A stream to write to that remembers why it could not. Has no file number, past which polars would write."""

    def __init__(self, stream: BinaryIO, target: Path) -> None:
        self._stream, self._target = stream, target
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        with self._telling():
            return self._stream.write(data)

    def flush(self) -> None:
        with self._telling():
            self._stream.flush()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._target)  # two files are open: it must not name the other
            self.error = error
            raise
