"""Named arrays and texts in one `.npz` that numpy's own `load` opens, the same bytes each time.

Numbers go in as they are: compressing floats takes half a minute a gigabyte and saves a tenth. What repeats itself,
texts and small whole numbers, is packed at the lightest level. Knows no run and no column.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.texts import CHUNK, Texts

_LENGTHS = ".lengths"
_LIGHTEST = 1
_PACKED = "USbu"  # texts, truth values and unsigned numbers; by numpy's letter of the kind


def write(stream: BinaryIO, arrays: Mapping[str, NDArray[Any] | Texts]) -> None:
    """Write arrays by name. `Texts`, and arrays of objects, which hold str, become two: bytes and lengths."""
    with zipfile.ZipFile(stream, "w", compresslevel=_LIGHTEST) as archive:
        for name, values in arrays.items():
            if isinstance(values, np.ndarray) and values.dtype.kind == "O":
                values = Texts.of(values.tolist())
            parts = {name: values} if isinstance(values, np.ndarray) else _parts(name, values)
            for part, array in parts.items():
                archive.compression = zipfile.ZIP_DEFLATED if array.dtype.kind in _PACKED else zipfile.ZIP_STORED
                with archive.open(f"{part}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def texts(held: Mapping[str, NDArray[Any]], name: str) -> Texts:
    """Return the texts of a name from what numpy loaded; also where they are an array of str, as they once were.

    Raises:
        KeyError: there is nothing of this name.
        ValueError: it is no text.
    """
    found = held[name]
    if found.dtype.kind == "U":
        return Texts.of(found.tolist())
    return Texts(found, held[name + _LENGTHS])


def column(held: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """Return an array of a name; texts as an array of objects, (N,) of str."""
    if name + _LENGTHS not in held:
        return held[name]
    found = texts(held, name)
    result = np.empty(len(found), object)
    for begin in range(0, len(found), CHUNK):
        result[begin : begin + CHUNK] = found[begin : begin + CHUNK]
    return result


def _parts(name: str, values: Texts) -> dict[str, NDArray[Any]]:
    return {name: values.data, name + _LENGTHS: values.lengths}
