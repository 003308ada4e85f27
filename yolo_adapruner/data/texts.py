"""Many texts, such as the paths of ten million images, as one run of bytes: a fifth of what a list of them takes.

File names may hold bytes that are no UTF-8; as Python does, they stand in a text as lone surrogates, and go into the
bytes as they were. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 17
"""Texts that are taken apart at a time."""


class Texts(Sequence[str]):
    """N texts; reads as the list of them.

    Args:
        data: the texts' bytes one after the other, (bytes,) uint8.
        lengths: bytes of each, (N,) >= 0.

    Raises:
        ValueError: the lengths do not sum to the bytes there are.
    """

    __hash__ = None  # type: ignore[assignment]  # compared by content

    def __init__(self, data: NDArray[np.uint8], lengths: NDArray[np.integer]) -> None:
        self.data, self.lengths = data, lengths
        self._ends = np.cumsum(lengths, dtype=np.int64)
        known = data.dtype == np.uint8 and data.ndim == lengths.ndim == 1
        if not known or int(lengths.min(initial=0)) < 0 or (self._ends[-1] if len(lengths) else 0) != len(data):
            raise ValueError(f"Expected {len(lengths)} texts of {len(data)} bytes in all, but got other lengths.")

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Return texts from a sequence of them; `Texts` come back as they are."""
        if isinstance(texts, cls):
            return texts
        parts, lengths = [], np.empty(len(texts), np.uint32)
        for begin in range(0, len(texts), CHUNK):
            chunk = texts[begin : begin + CHUNK]
            whole = "".join(chunk)
            plain = whole.isascii()
            parts.append(whole.encode("utf-8", "surrogateescape"))
            sizes = map(len, chunk) if plain else (len(text.encode("utf-8", "surrogateescape")) for text in chunk)
            lengths[begin : begin + len(chunk)] = np.fromiter(sizes, np.uint32, len(chunk))
        return cls(np.frombuffer(b"".join(parts), np.uint8), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        """Return a text, or a list of some."""
        if not isinstance(at, slice):
            end = int(self._ends[at])
            held = self.data[end - int(self.lengths[at]) : end].tobytes()
            return held.decode("utf-8", "surrogateescape")
        rows = range(*at.indices(len(self)))
        if rows.step != 1:
            return [self[i] for i in rows]
        whole = self._bytes(rows.start, rows.stop)
        bounds = self._bounds(rows.start, rows.stop)
        if whole.isascii():
            text = whole.decode("ascii")
            return [text[begin:end] for begin, end in bounds]
        return [whole[begin:end].decode("utf-8", "surrogateescape") for begin, end in bounds]

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), CHUNK):
            yield from self[begin : begin + CHUNK]

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Texts({self[:3]}{' and more' if len(self) > 3 else ''})"

    def lines(self, rows: NDArray[np.bool_]) -> Iterator[bytes]:
        """Give the chosen texts as lines, in bytes, some at a time.

        Args:
            rows: (N,) bool, which.
        """
        for begin in range(0, len(self), CHUNK):
            end = min(begin + CHUNK, len(self))
            whole, chosen = self._bytes(begin, end), rows[begin:end].tolist()
            bounds = self._bounds(begin, end)
            parts = [whole[low:high] for (low, high), row in zip(bounds, chosen, strict=True) if row]
            yield b"\n".join([*parts, b""])

    def _bytes(self, begin: int, end: int) -> bytes:
        if end <= begin:
            return b""
        return self.data[int(self._ends[begin]) - int(self.lengths[begin]) : int(self._ends[end - 1])].tobytes()

    def _bounds(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Where each text of some lies in their bytes."""
        if end <= begin:
            return iter(())
        ends = self._ends[begin:end] - (self._ends[begin] - int(self.lengths[begin]))
        return zip((ends - self.lengths[begin:end]).tolist(), ends.tolist(), strict=True)
