"""The grid's cells and what becomes of their figures: rows, paired differences, tables, verdicts. Trains nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import RunConfig
from yolo_adapruner.study.arms import AFSS, DYNAMIC, FULL, ORDER, PRUNED, RANDOM
from yolo_adapruner.study.interval import Difference, paired
from yolo_adapruner.study.verdict import sentence

EPOCHS, UPDATES = "equal epochs", "equal updates"
MOST_CLASSES = 10
"""Classes of which the second table shows a column each, those with the most boxes."""


def run_budget(config: RunConfig) -> str:
    """Return what the runs that choose have as much of as full."""
    return UPDATES if config.prune.budget == "updates" else EPOCHS


@dataclass(frozen=True)
class Words:
    """What the figures of a task are called: the first is `map50_95` in all files, the second `map50`."""

    unit: str
    first: str
    second: str
    judge: str
    by_class: str


_BOXES = Words(
    "mAP",
    "mAP50-95",
    "mAP50",
    "by pycocotools",
    "AP50-95 by size (COCO's: below 32², up to 96² and above, native pixels) and by class (boxes)",
)
_CLASSES = Words("top-1", "top-1", "top-5", "counted", "Top-1 by class (images)")


def words(facts: Mapping[str, Any]) -> Words:
    """Return what the figures of a comparison are called."""
    return _CLASSES if facts.get("task") == "classify" else _BOXES


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
    """An arm at a share and a budget over its seeds. AP in [0, 1].

    Attributes:
        arm, share, budget: which.
        images: trained on; of an arm that draws anew in each epoch the mean of an epoch, over seeds.
        updates: optimizer steps, mean over seeds.
        map50_95, map50: a value a seed.
        hours: of all its trainings together.
        versus_full, versus_random: mAP50-95 minus that of full, or of random at the same share and budget; None where
            there is nothing to compare with.
        per_class: class → (AP50-95, AP50, boxes), mean over seeds.
        by_size: "small", "medium", "large" → mAP50-95, mean over seeds; sizes that no box has are left out.
    """

    arm: str
    share: float
    budget: str
    images: int
    updates: float
    map50_95: list[float]
    map50: list[float]
    hours: float
    versus_full: Difference | None
    versus_random: Difference | None
    per_class: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    by_size: dict[str, float] = field(default_factory=dict)


def summarise(
    done: Mapping[Cell, Mapping[str, Any]],
    replicates: Mapping[Cell, NDArray[np.float64]] | None = None,
    *,
    images: int = 0,
) -> list[Row]:
    """Return a row an arm, share and budget; differences are paired by seed, and by image where those are at hand.

    Args:
        done: the cells' figures.
        replicates: each cell's mAP on the same B draws of the test images, (B,), or None.
        images: number of test images, where there are replicates.
    """
    groups: dict[tuple[str, float, str], dict[int, Mapping[str, Any]]] = {}
    for cell, figures in done.items():
        groups.setdefault((cell.arm, cell.share, cell.budget), {})[cell.seed] = figures

    def versus(key: tuple[str, float, str], other: tuple[str, float, str]) -> Difference | None:
        if key == other or other not in groups:
            return None
        seeds = sorted(groups[key])
        drawn = None
        if replicates is not None:
            drawn = np.stack([replicates[Cell(*key, s)] - replicates[Cell(*other, s)] for s in seeds], axis=1)
        a, b = ([groups[which][s]["map50_95"] for s in seeds] for which in (key, other))
        return paired(a, b, drawn, images=images)

    rows = []
    for key in sorted(groups, key=lambda k: (k[1], ORDER.index(k[0]), k[2])):
        arm, share, budget = key
        by_seed = [groups[key][s] for s in sorted(groups[key])]
        rows.append(
            Row(
                arm,
                share,
                budget,
                images=round(statistics.fmean(f["images"] for f in by_seed)),
                updates=statistics.fmean(f["updates"] for f in by_seed),
                map50_95=[f["map50_95"] for f in by_seed],
                map50=[f["map50"] for f in by_seed],
                hours=sum(f["hours"] for f in by_seed),
                versus_full=versus(key, (FULL, 0.0, EPOCHS)),
                versus_random=versus(key, (RANDOM, share, budget)) if arm not in _NOT_LISTS else None,
                per_class=_mean_classes([f.get("per_class", {}) for f in by_seed]),
                by_size=_mean_sizes([f.get("by_size", {}) for f in by_seed]),
            )
        )
    return rows


_NOT_LISTS = ORDER[:2]


def table(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return the table in Markdown, in points of mAP (0 to 100), with what it stands on below."""
    said = words(facts)
    lines = [
        f"| arm | pruned | budget | images | updates | {said.first} | {said.second} | minus full | minus random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    everything = next((row.images for row in rows if row.arm == FULL), 1)
    for row in rows:
        saved = 1 - row.images / everything if row.arm == AFSS else row.share  # it asks for no share
        cells = (
            row.arm,
            f"{saved:.0%}",
            row.budget,
            str(row.images),
            f"{row.updates:.0f}",
            mean_and_spread(row.map50_95),
            mean_and_spread(row.map50),
            difference(row.versus_full),
            difference(row.versus_random),
        )
        lines.append("| " + " | ".join(cells) + " |")
    n = facts["seeds"]
    config = facts["config"]
    side = f", {facts['jobs']} cells side by side" if facts["jobs"] > 1 else ""
    drawn = max((row.versus_full.images for row in rows if row.versus_full), default=0)
    over = f"over seeds and the {drawn} test images" if drawn else "over seeds (t)"
    lines += [
        "",
        f"Points of {said.unit} (0 to 100) {said.judge} on the {facts['reported_on']}; mean ± standard deviation over "
        f"{n} seed{'s' if n > 1 else ''}; differences of {said.first} are paired by seed, with their 95 % interval "
        f"{over}. {config['model']} on {Path(config['data']).name}, {config['imgsz']} px, batch {config['batch']}, "
        f"{config['epochs']} epochs; {facts['hardware']}{side}. Largest gap to Ultralytics' own {said.first} in a "
        f"cell: {100 * facts['largest_gap_to_ultralytics']:.2f} points.",
    ]
    return "\n".join(lines)


def class_table(rows: Sequence[Row], said: Words = _BOXES) -> str:
    """Return AP50-95 by size and class in Markdown, in points, mean over seeds; nothing where no cell tells."""
    known = [row for row in rows if row.per_class or row.by_size]
    if not known:
        return ""
    sizes = [size for size in ("small", "medium", "large") if any(size in row.by_size for row in known)]
    boxes = {name: count for row in known for name, (_, _, count) in row.per_class.items()}
    classes = sorted(boxes, key=lambda name: -boxes[name])[:MOST_CLASSES]
    titles = ["arm", "pruned", "budget", *sizes, *(f"{name} ({boxes[name]})" for name in classes)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in known:
        values = [row.by_size.get(size) for size in sizes]
        values += [row.per_class[name][0] if name in row.per_class else None for name in classes]
        figures = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {row.arm} | {row.share:.0%} | {row.budget} | {' | '.join(figures)} |")
    left = f"; {MOST_CLASSES} of {len(boxes)} classes" if len(boxes) > MOST_CLASSES else ""
    lines += [
        "",
        f"{said.by_class}{left}, mean over seeds.",
    ]
    return "\n".join(lines)


def verdicts(rows: Sequence[Row], margin: float, unit: str = "mAP") -> list[str]:
    """Return what each arm's difference means against a margin, a line each; at equal updates where an arm has them.

    Args:
        rows: of `summarise`.
        margin: what may be lost, in [0, 1].
        unit: what is compared.
    """
    lines = []
    at_updates = {(row.arm, row.share) for row in rows if row.budget == UPDATES}
    everything = next((row.images for row in rows if row.arm == FULL), 1)
    for row in rows:
        if row.arm == FULL or (row.budget == EPOCHS and (row.arm, row.share) in at_updates):
            continue
        what = f"dropping {100 * row.share:.3g} %" + ("" if row.arm == PRUNED else f" ({row.arm})")
        if row.arm in DYNAMIC:
            what = f"visiting {100 * row.images / everything:.3g} % of the images an epoch ({row.arm})"
        own = statistics.fmean(row.map50_95)
        for found, against in ((row.versus_full, ""), (row.versus_random, " against a random choice")):
            if found is not None:
                lines.append(sentence(what, found, margin, against=against, base=own - found.mean, unit=unit))
    return lines


def _mean_classes(by_seed: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, float, int]]:
    names = by_seed[0]
    mean = {name: [statistics.fmean(f[name][i] for f in by_seed) for i in (0, 1)] for name in names}
    return {name: (mean[name][0], mean[name][1], int(names[name][2])) for name in names}


def _mean_sizes(by_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {size: statistics.fmean(f[size] for f in by_seed) for size in by_seed[0]}


def mean_and_spread(values: Sequence[float]) -> str:
    """Return a mean and standard deviation over seeds in points."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def difference(value: Difference | None) -> str:
    """Return a difference with its interval in points, a dash for none."""
    if value is None:
        return "–"
    mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if value.known else f"{mean:+.1f}"
