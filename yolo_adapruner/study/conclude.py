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
from yolo_adapruner.study import ledger
from yolo_adapruner.study.arms import FULL, PRUNED, RUN
from yolo_adapruner.study.cells import MATCHES, CellRunner
from yolo_adapruner.study.matches import Matches, draws, mean_ap, same_images
from yolo_adapruner.study.table import EPOCHS, Cell, Row, class_table, summarise, table, verdicts, words
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

    def table(self) -> str:
        """Return the table in Markdown, in points of mAP (0 to 100)."""
        return table(self.rows, self.facts)

    def lines(self) -> list[str]:
        """Return what the table means, a line each: verdicts, hours, agreement with chance."""
        return [*self.facts.get("verdicts", ()), *(entry["line"] for entry in self.facts.get("selection", ()))]

    def report(self) -> str:
        """Return all of it in Markdown: table, what it means, figures by size and class."""
        lines = [f"- {line}" for line in self.lines()]
        parts = [self.table(), "\n".join(lines), class_table(self.rows, words(self.facts))]
        return "\n\n".join(part for part in parts if part)


def conclude(runner: CellRunner, done: Mapping[Cell, Mapping[str, Any]], facts: Mapping[str, Any]) -> Comparison:
    """Return the comparison that finished cells make: rows with their intervals, verdicts, hours, agreement."""
    drawn, images = replicates(runner, list(done))
    rows = summarise(done, drawn, images=images)
    gap = max(abs(d["map50_95"] - d["ultralytics_map50_95"]) for d in done.values())
    more = {
        "largest_gap_to_ultralytics": gap,
        "verdicts": verdicts(rows, facts["margin"] / 100, words(facts).unit),
        "selection": _selection(runner, done),
    }
    if "auto" in facts:
        more["verdicts"] = [*more["verdicts"], facts["auto"]["line"]]
    return Comparison(runner.folder, rows, {**facts, **more})


def replicates(runner: Judged, cells: Sequence[Cell]) -> tuple[dict[Cell, NDArray[np.float64]] | None, int]:
    """Return each cell's mAP, or top-1, on the same draws of the test images, (B,), and the number of images.

    None and 0 where a cell has no hits saved, as those of earlier versions have not.
    """
    if not all((runner.home(cell) / MATCHES).is_file() for cell in cells):
        return None, 0
    load = Ranks.load if runner.base.is_dir() else Matches.load
    passes: dict[Cell, Matches | Ranks] = {cell: load(runner.home(cell) / MATCHES) for cell in cells}
    if not same_images(list(passes.values())):
        return None, 0
    n = len(passes[cells[0]].paths)
    weights = draws(n, RESAMPLES)
    return {c: f.top(1, weights) if isinstance(f, Ranks) else mean_ap(f, weights) for c, f in passes.items()}, n


def save(result: Comparison, done: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Write compare.json and compare.md into the comparison's folder."""
    content = {**result.facts, "rows": [asdict(row) for row in result.rows], "cells": list(done.values())}
    writers: dict[str, Callable[[], str]] = {
        "compare.json": lambda: json.dumps(strict(content), indent=2, default=str, allow_nan=False) + "\n",
        "compare.md": lambda: result.report() + "\n",
    }
    for name, text in writers.items():
        with export.replace_file(result.folder / name) as temporary:
            temporary.write_text(text(), encoding="utf-8")


def _selection(runner: CellRunner, done: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What choosing cost and saved, and how far the seeds agree, an entry a share; only of runs that are at hand."""

    def hours(arm: str, share: float, budget: str) -> list[float]:
        return [float(f["hours"]) for c, f in done.items() if (c.arm, c.share, c.budget) == (arm, share, budget)]

    entries: list[dict[str, Any]] = []
    for share in sorted({cell.share for cell in done if cell.arm == RUN}):
        what = f"dropping {100 * share:.3g} %"
        if kept_hours := hours(PRUNED, share, EPOCHS):
            book = ledger.ledger(hours(RUN, share, EPOCHS), hours(FULL, 0.0, EPOCHS), kept_hours)
            line = ledger.ledger_line(f"{what}, equal epochs", book)
            entries.append({"share": share, "kind": "hours", **asdict(book), "line": line})
        runs = sorted((c for c in done if c.arm == RUN and c.share == share), key=lambda cell: cell.seed)
        outcomes = [export.read(runner.home(cell))[1] for cell in runs]
        if (
            len(outcomes) > 1
            and len({tuple(o.paths) for o in outcomes}) == 1
            and not any(o.kept.all() for o in outcomes)
        ):
            agreed = ledger.overlap(np.stack([o.kept for o in outcomes]))
            line = ledger.overlap_line(what, agreed)
            entries.append(
                {"share": share, "kind": "overlap", **asdict(agreed), "learned": agreed.learned, "line": line}
            )
    return entries


def strict(value: Any) -> Any:
    """Return the same with null for NaN, the bounds of an interval over one seed: strict JSON has no NaN."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
