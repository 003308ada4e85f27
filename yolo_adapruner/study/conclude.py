"""What finished cells come to: rows and intervals, verdicts, hours, agreement, and the files that say so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data import export
from yolo_adapruner.study import chosen, elsewhere
from yolo_adapruner.study.arms import RUN
from yolo_adapruner.study.cells import MATCHES, CellRunner
from yolo_adapruner.study.elsewhere import NOTHING, Elsewhere
from yolo_adapruner.study.matches import Matches, draws, mean_ap, same_images
from yolo_adapruner.study.table import Cell, Row, class_table, summarise, table, verdicts, words
from yolo_adapruner.study.topk import Ranks

SCHEMA = 1
"""Version of compare.json; docs/compare-schema.md says what it holds."""
RESAMPLES = 400


class Judged(Protocol):
    """What ran cells: where each lies, and the set they were trained from."""

    @property
    def base(self) -> Path:
        """The data file, or a classifier's folder."""

    def home(self, cell: Cell) -> Path:
        """Return the cell's folder."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; `compare.json`, `compare.md` and the cells lie in `folder`."""

    folder: Path
    rows: list[Row]
    facts: dict[str, Any]
    cells: Sequence[Mapping[str, Any]] = ()

    def table(self) -> str:
        """Return the table in Markdown, in points of mAP (0 to 100)."""
        return table(self.rows, self.facts)

    def lines(self) -> list[str]:
        """Return what the table means, a line each: verdicts, hours, agreement with chance."""
        said = [*self.facts.get("verdicts", ()), *(entry["line"] for entry in self.facts.get("selection", ()))]
        return [*said, *self.facts.get("elsewhere", ())]

    def report(self) -> str:
        """Return all of it in Markdown: table, what it means, figures by size and class."""
        lines = [f"- {line}" for line in self.lines()]
        parts = [self.table(), "\n".join(lines), class_table(self.rows, words(self.facts))]
        return "\n\n".join(part for part in parts if part)


def conclude(runner: CellRunner, done: Mapping[Cell, Mapping[str, Any]], facts: Mapping[str, Any]) -> Comparison:
    """Return the comparison that finished cells make: rows with their intervals, verdicts, hours, agreement."""
    drawn, images = replicates(runner, list(done), runner.elsewhere)
    rows = summarise(done, drawn, images=images)
    found = chosen.of_runs(runner, [cell for cell in done if cell.arm == RUN])
    cells = [
        {
            **figures,
            # What stands for the cell elsewhere.
            **({} if drawn is None else {elsewhere.DRAWS: elsewhere.as_text(drawn[cell])}),
            **(found[cell].as_figures() if cell in found else {}),
        }
        for cell, figures in done.items()
    ]
    gap = max(abs(d["map50_95"] - d["ultralytics_map50_95"]) for d in done.values())
    more = {
        "largest_gap_to_ultralytics": gap,
        "verdicts": verdicts(rows, facts["margin"] / 100, words(facts).unit),
        "selection": chosen.entries(found, done),
        elsewhere.IMAGES: images,
    }
    if "auto" in facts:
        more["verdicts"] = [*more["verdicts"], facts["auto"]["line"]]
    return Comparison(runner.folder, rows, {**facts, **more}, cells)


def replicates(
    runner: Judged, cells: Sequence[Cell], taken: Elsewhere = NOTHING
) -> tuple[dict[Cell, NDArray[np.float64]] | None, int]:
    """Return each cell's mAP, or top-1, on the same draws of the test images, (B,), and the number of images.

    None and 0 where a cell has no hits saved, as those of earlier versions have not.
    """
    here = [cell for cell in cells if (runner.home(cell) / MATCHES).is_file()]
    there = {cell: values for cell in set(cells) - set(here) if (values := taken.draws(cell)) is not None}
    if len(here) + len(there) < len(cells):
        return None, 0
    load = Ranks.load if runner.base.is_dir() else Matches.load
    passes: dict[Cell, Matches | Ranks] = {cell: load(runner.home(cell) / MATCHES) for cell in here}
    counts = {len(f.paths) for f in passes.values()} | ({taken.images} if there else set())
    if len(counts) > 1 or not same_images(list(passes.values())):
        return None, 0
    n = counts.pop()
    weights = draws(n, RESAMPLES)
    own = {c: f.top(1, weights) if isinstance(f, Ranks) else mean_ap(f, weights) for c, f in passes.items()}
    return {**own, **there}, n


def save(result: Comparison) -> None:
    """Write compare.json and compare.md into the comparison's folder."""
    content = {**result.facts, "rows": [asdict(row) for row in result.rows], "cells": list(result.cells)}
    writers: dict[str, Callable[[], str]] = {
        "compare.json": lambda: json.dumps(strict(content), indent=2, default=str, allow_nan=False) + "\n",
        "compare.md": lambda: result.report() + "\n",
    }
    for name, text in writers.items():
        with export.replace_file(result.folder / name) as temporary:
            temporary.write_text(text(), encoding="utf-8")


def strict(value: Any) -> Any:
    """Return the same with null for NaN, the bounds of an interval over one seed: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
