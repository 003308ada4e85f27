"""A long table as scores.csv and scores.parquet, some rows in memory at a time. Knows no column.

Polars' own writers raise errors of their own where a disk is full, which say no errno; so the bytes go through a stream
of ours, and its OSError is what the caller sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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

    def parts() -> Iterator[pl.DataFrame]:
        for begin in range(0, max(n, 1), CHUNK):
            yield rows(slice(begin, begin + CHUNK))

    with replacing(folder / "scores.csv") as temporary, temporary.open("wb") as stream:
        for i, part in enumerate(parts()):
            text = BytesIO()
            part.write_csv(text, include_header=i == 0)
            stream.write(text.getbuffer())

    def source(
        with_columns: list[str] | None, predicate: Any, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        return parts()  # a sink of the whole table asks for no choice of columns or rows

    schema = rows(slice(0, 1)).schema
    with replacing(folder / "scores.parquet") as temporary, temporary.open("wb") as stream:
        told: Any = _Told(stream)
        try:
            register_io_source(source, schema=schema).sink_parquet(told, row_group_size=CHUNK)
        except pl.exceptions.PolarsError:
            if told.error is None:
                raise
            raise told.error from None


class _Told:
    """A stream to write to that remembers why it could not. Has no file number, past which polars would write."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()
