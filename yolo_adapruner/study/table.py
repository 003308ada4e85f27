"""The grid's cells and what becomes of their figures: rows, paired differences, the table. Trains and reads nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_adapruner.study.evaluate import paired_difference

FULL, RUN, PRUNED, RANDOM = "full", "one run", "pruned", "random"
EPOCHS, UPDATES = "equal epochs", "equal updates"


@dataclass(frozen=True)
class Cell:
    """One training of the grid: an arm at a share, a budget and a seed."""

    arm: str
    share: float
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name of the cell."""
        share = f"-{self.share:g}" if self.share else ""
        budget = "-updates" if self.budget == UPDATES else ""
        return f"{self.arm.replace(' ', '-')}{share}{budget}-s{self.seed}"


@dataclass(frozen=True)
class Row:
    """An arm over its seeds. mAP in [0, 1]; `versus_full`, `versus_random`: paired mean difference, 95 % interval."""

    arm: str
    share: float
    budget: str
    images: int
    updates: float
    map50_95: list[float]
    map50: list[float]
    hours: float
    versus_full: tuple[float, float, float] | None
    versus_random: tuple[float, float, float] | None


def summarise(done: Mapping[Cell, Mapping[str, Any]]) -> list[Row]:
    """Return a row an arm, share and budget; differences are paired by seed."""
    groups: dict[tuple[str, float, str], dict[int, Mapping[str, Any]]] = {}
    for cell, figures in done.items():
        groups.setdefault((cell.arm, cell.share, cell.budget), {})[cell.seed] = figures

    def versus(key: tuple[str, float, str], other: tuple[str, float, str]) -> tuple[float, float, float] | None:
        if key == other or other not in groups:
            return None
        seeds = sorted(groups[key])
        return paired_difference(
            [groups[key][s]["map50_95"] for s in seeds], [groups[other][s]["map50_95"] for s in seeds]
        )

    rows = []
    for key in sorted(groups, key=lambda k: (k[1], [FULL, RUN, PRUNED, RANDOM].index(k[0]), k[2])):
        arm, share, budget = key
        by_seed = [groups[key][s] for s in sorted(groups[key])]
        rows.append(
            Row(
                arm,
                share,
                budget,
                images=by_seed[0]["images"],
                updates=statistics.fmean(f["updates"] for f in by_seed),
                map50_95=[f["map50_95"] for f in by_seed],
                map50=[f["map50"] for f in by_seed],
                hours=sum(f["hours"] for f in by_seed),
                versus_full=versus(key, (FULL, 0.0, EPOCHS)),
                versus_random=versus(key, (RANDOM, share, budget)) if arm == PRUNED else None,
            )
        )
    return rows


def table(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return the table in Markdown, in points of mAP (0 to 100), with what it stands on below."""
    lines = [
        "| arm | pruned | budget | images | updates | mAP50-95 | mAP50 | minus full | minus random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.arm,
            f"{row.share:.0%}",
            row.budget,
            str(row.images),
            f"{row.updates:.0f}",
            _mean_and_spread(row.map50_95),
            _mean_and_spread(row.map50),
            _difference(row.versus_full),
            _difference(row.versus_random),
        )
        lines.append("| " + " | ".join(cells) + " |")
    n = facts["seeds"]
    config = facts["config"]
    side = f", {facts['jobs']} cells side by side" if facts["jobs"] > 1 else ""
    lines += [
        "",
        f"Points of mAP (0 to 100) by pycocotools on the {facts['reported_on']}; mean ± standard deviation over {n} "
        f"seed{'s' if n > 1 else ''}; differences of mAP50-95 are paired by seed, with their 95 % t-interval. "
        f"{config['model']} on {Path(config['data']).name}, {config['imgsz']} px, batch {config['batch']}, "
        f"{config['epochs']} epochs; {facts['hardware']}{side}. Largest gap to Ultralytics' own mAP50-95 in a cell: "
        f"{100 * facts['largest_gap_to_ultralytics']:.2f} points.",
    ]
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def _difference(value: tuple[float, float, float] | None) -> str:
    if value is None:
        return "–"
    mean, low, high = (100 * v for v in value)
    return f"{mean:+.1f}" if math.isnan(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
