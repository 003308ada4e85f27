"""Cells that were finished elsewhere, another day or on another machine, by the compare.json that holds their figures.

A grid can so be made in parts, and what a study has published need not be trained again to be taken further. Cells
stand for each other where recipe, method and the images' and labels' content are the same; where the set lies, on what
device and under which name a comparison ran makes no difference. Nor does the method to `arms.WITHOUT_METHOD`. Trains
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import RunConfig
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.arms import LISTED, WITHOUT_METHOD
from yolo_adapruner.study.table import Cell

SET, LIST, IMAGES = "set_print", "list_print", "reported_images"
"""Keys of compare.json: content of the set, of the given list, and how many test images `draws` were drawn from."""
DIGITS = 12
"""Of a given list's share, which is counted: the same number however it is worked out."""
DRAWS, KEPT, DRAWN = "draws", "kept", "drawn"
"""Keys of a cell: its mAP on seeded draws of the test images, as text; what a run kept and drew, hexadecimal bits."""
_ELSE = ("data", "project", "name", "device", "prune.share", "prune.budget")
"""What of a recipe may differ: place and device, and what each cell says itself; a run spends only after it chose."""
_METHOD, _ALL_ARMS = "prune.", ("prune.dynamic", "prune.validate_all")
"""How the method's settings begin; and of these, how those begin that reach a training without a mask too."""


@dataclass(frozen=True)
class Elsewhere:
    """Cells finished elsewhere.

    Attributes:
        cells: their figures.
        images: how many test images their draws are of, 0 where there are none.
        sources: what the report says of them, a line a file.
    """

    cells: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)
    images: int = 0
    sources: tuple[str, ...] = ()

    def draws(self, cell: Cell) -> NDArray[np.float64] | None:
        """Return a cell's mAP on each draw of the test images, None where it is not known."""
        text = self.cells.get(cell, {}).get(DRAWS)
        return None if not text else np.array(text.split(), np.float64)

    def bits(self, cell: Cell, key: str) -> NDArray[np.bool_] | None:
        """Return what a run kept or drew by lot, (N,) in the order of the images' paths, None where it is not known."""
        text = self.cells.get(cell, {}).get(key)
        if not text:
            return None
        count, _, bits = text.partition(":")
        return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=int(count)).astype(bool)


NOTHING = Elsewhere()


def as_text(draws: NDArray[np.floating]) -> str:
    """Return mAP on draws as text, to a thousandth of a point."""
    return " ".join(f"{value:.5f}" for value in draws)


def as_hex(bits: NDArray[np.bool_]) -> str:
    """Return (N,) bool as N, a colon and the bits in hexadecimal, the first image's highest."""
    return f"{len(bits)}:{np.packbits(bits).tobytes().hex()}"


def read(files: Sequence[str | Path], config: RunConfig, set_print: str, list_print: str) -> Elsewhere:
    """Return the cells of some compare.json; of one that several hold, the first file's.

    Args:
        files: paths.
        config: the recipe their cells must share.
        set_print: of the set, `splits.content_print`.
        list_print: of the given list; cells of another list are left out.

    Raises:
        ConfigError: a file is none, or of another recipe or other images; with other settings of the method alone: it
            has no cell that does not hang on them.
    """
    found: dict[Cell, Mapping[str, Any]] = {}
    sources, images = [], set()
    for file in files:
        content = _content(Path(file))
        differ = _differences(content["config"], config.model_dump(mode="json"))
        free = all(key.startswith(_METHOD) and not key.startswith(_ALL_ARMS) for key in differ)
        usable = [cell for cell in content["cells"] if not differ or (free and cell["arm"] in WITHOUT_METHOD)]
        if differ and not usable:
            raise ConfigError(
                f"Expected cells of the same recipe in {file}, but it has other {', '.join(differ)}: "
                "ask for the recipe it was made with."
            )
        if content[SET] != set_print:
            raise ConfigError(
                f"Expected cells on the same images and labels in {file}, but they are of others: name the set as it "
                "was then."
            )
        new = 0
        for figures in usable:
            cell = Cell(figures["arm"], figures["share"], figures["budget"], figures["seed"])
            if cell.arm == LISTED:  # was written as 1 less what it keeps, 0.19999999999999996 of a fifth
                cell = replace(cell, share=round(cell.share, DIGITS))
            if cell in found or (cell.arm == LISTED and content.get(LIST) != list_print):
                continue
            found[cell], new = figures, new + 1
        images.add(content.get(IMAGES, 0))
        versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        part = f" that do not hang on {', '.join(differ)}, which it has otherwise" if differ else ""
        sources.append(f"{new} cells of {Path(file).name}{part}: {content['hardware']}; {versions}")
    return Elsewhere(found, images.pop() if len(images) == 1 else 0, tuple(sources))


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        needed = {"config", "cells", "versions", "hardware", SET}
        if not isinstance(content, dict) or not needed <= content.keys():
            raise ValueError("it lacks some of " + ", ".join(sorted(needed)))
        for figures in content["cells"]:
            _ = figures["arm"], figures["share"], figures["budget"], figures["seed"], figures["map50_95"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"Expected the compare.json of a finished comparison, but {file} is none ({_reason(error)}): name one that "
            "this version has written."
        ) from None
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "unreadable"
    return f"a cell lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    before, now = (_flat(json.loads(json.dumps(c, default=str))) for c in (held, wanted))
    dynamic = before.get("prune.dynamic") or now.get("prune.dynamic")
    keys = [key for key in {**before, **now} if key not in _ELSE and (dynamic or not key.startswith("prune.dynamic_"))]
    return [key for key in keys if before.get(key) != now.get(key)]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = value if isinstance(value, Mapping) and key in ("prune", "train") else {"": value}
        flat |= {f"{key}.{name}" if name else key: item for name, item in inner.items()}
    return flat
