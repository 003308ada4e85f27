"""What is known of the images of a planted set: the kinds there are, and the truth file. Plants nothing itself."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import DataError

LABEL_KINDS = ("shifted", "swapped", "missing", "spurious", "shuffled")
COPY_KINDS = ("duplicate", "near-duplicate")
KINDS = (*LABEL_KINDS, *COPY_KINDS)
CLEAN = "clean"
TRUTH = "truth.csv"
COLUMNS = ("path", "kind", "original", "group", "changed")


@dataclass(frozen=True)
class Truth:
    """What is known of one training image.

    Attributes:
        kind: "clean" or one of `KINDS`; in the embedded set's truth also "empty".
        original: the source set's image whose pixels these are; "" where the truth file does not say.
        group: the same for an image and its copies; "" where there is none.
        changed: labels moved, renamed, taken away or added.
    """

    kind: str
    original: str = ""
    group: str = ""
    changed: int = 0


def load_truth(root: str | Path) -> dict[str, Truth]:
    """Return what is known of each training image: absolute path with forward slashes -> `Truth`.

    Reads the truth file of the embedded set as well, its kinds under the names of `KINDS`.

    Raises:
        DataError: there is no truth file, or it is none.
    """
    root = Path(os.path.abspath(root))
    file = root / TRUTH if root.is_dir() else root
    older = {"classes": "swapped", "boxes": "shifted", "duplicate": "near-duplicate"}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        embedded = bool(rows) and "split" in rows[0]
        rows = [row for row in rows if row.get("split", "train") == "train"]
        return {
            (file.parent / row["path"]).as_posix(): Truth(
                older.get(row["kind"], row["kind"]) if embedded else row["kind"],
                row.get("original", ""),
                row["group"],
                int(row.get("changed", 0)),
            )
            for row in rows
        }
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"Expected the truth of a planted set, but {file} cannot be read as one: {error}.") from None


def members(groups: NDArray[np.str_]) -> list[NDArray[np.int64]]:
    """Return the rows of each group of copies, one that has lost all but one member left out; "" is no group."""
    rows = [np.flatnonzero(groups == name) for name in np.unique(groups) if name]
    return [own for own in rows if len(own) > 1]
