"""What a study's figures come to: rows with paired differences, two tables, what they say in words, one figure.

Knows variants, figures and numbers; trains nothing and reads no run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.export import replace_file
from yolo_adapruner.study.arms import FULL, PRUNED, RANDOM, RUN
from yolo_adapruner.study.conclude import strict
from yolo_adapruner.study.interval import Difference, paired
from yolo_adapruner.study.masks import HIGH, LOW
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, difference, mean_and_spread, words
from yolo_adapruner.study.variants import SHARES, TRANSFER, Trial, Variant
from yolo_adapruner.study.verdict import sentence

SCHEMA = 1
"""Version of study.json; docs/studies.md says what it holds."""
JSON, PAGE, FIGURE = "study.json", "study.md", "study.svg"
_ANEW = f"*{PRUNED}* and *{RANDOM}* are trained anew for as many updates as *{FULL}*"
_SAID = {RUN: "the run's own network", PRUNED: "trained anew on what it kept"}


@dataclass(frozen=True)
class StudyRow:
    """An arm of a variant at a share over its seeds. Figures in [0, 1], of a classifier top-1 and top-5.

    Attributes:
        variant, arm, share, budget: which.
        images: trained on.
        updates: optimizer steps, mean over seeds.
        map50_95, map50: a value a seed.
        hours: of all its trainings together.
        versus_beside: minus the same arm of the variant it is compared with; None where there is none.
        versus_full, versus_random: minus that variant's full set, and its random choice of as many images.
    """

    variant: str
    arm: str
    share: float
    budget: str
    images: int
    updates: float
    map50_95: list[float]
    map50: list[float]
    hours: float
    versus_beside: Difference | None
    versus_full: Difference | None
    versus_random: Difference | None


@dataclass(frozen=True)
class MaskRow:
    """The masks of a variant at a share: means over seeds as `masks.mean_figures` names them, and agreement.

    Attributes:
        variant, share: which.
        runs: number of seeds.
        figures: by name.
        alike: of what the study's first variant dropped, the share this one dropped as well, mean over seeds; NaN
            for the first, or where nothing was dropped. Blind draws agree by the share itself.
    """

    variant: str
    share: float
    runs: int
    figures: Mapping[str, float]
    alike: float


@dataclass(frozen=True)
class Study:
    """A finished study; `study.json`, `study.md`, `study.svg` and the cells lie in `folder`."""

    folder: Path
    variants: Sequence[Variant]
    rows: list[StudyRow]
    masks: list[MaskRow]
    facts: dict[str, Any]

    def report(self) -> str:
        """Return all of it in Markdown: accuracy, masks, what was measured, what the differences mean."""
        lines = "\n".join(f"- {line}" for line in self.lines())
        return "\n\n".join(part for part in (self.table(), self.mask_table(), self.paragraph(), lines) if part)

    def table(self) -> str:
        """Return the accuracies in Markdown, in points (0 to 100)."""
        said, named = words(self.facts), self.facts["question"] != SHARES
        beside = any(row.versus_beside for row in self.rows)
        titles = [*(["variant"] if named else []), "arm", "pruned", "images", "updates", said.first, said.second]
        titles += [f"minus {self._other}"] if beside else []
        anew = any(row.versus_random for row in self.rows)
        body = []
        for row in self.rows:
            cells = [*([row.variant] if named else []), row.arm, f"{row.share:.0%}", str(row.images)]
            cells += [f"{row.updates:.0f}", mean_and_spread(row.map50_95), mean_and_spread(row.map50)]
            cells += [difference(row.versus_beside)] if beside else []
            cells.append(difference(row.versus_full))
            body.append(cells + ([difference(row.versus_random)] if anew else []))
        return _markdown([*titles, "minus full", *(["minus random"] if anew else [])], body)

    def mask_table(self) -> str:
        """Return what the masks came to in Markdown, means over seeds."""
        named = self.facts["question"] != SHARES
        alike = any(np.isfinite(row.alike) for row in self.masks)
        planted = any(np.isfinite(row.figures["auroc"]) for row in self.masks)
        titles = [*(["variant"] if named else []), "pruned", "warm-up", "joint", "s", "kept by the mask"]
        titles += [f"weights outside [{LOW}, {HIGH}]", "matched"]
        titles += ["planted among the dropped", "AUROC"] if planted else []
        titles += [f"dropped as {self.variants[0].name} did"] if alike else []
        body = []
        for row in self.masks:
            f = row.figures
            cells = [*([row.variant] if named else []), f"{row.share:.0%}", f"{f['warmup']:.0f}", f"{f['joint']:.0f}"]
            cells += [_or_dash(f["s"], ".2f"), _or_dash(f["kept"], ".0%"), _or_dash(f["outside"], ".0%")]
            cells.append(f"{f['matched']:.0f} of {row.runs}")
            cells += [_or_dash(f["noise"], ".0%"), _or_dash(f["auroc"], ".3f")] if planted else []
            body.append(cells + ([_or_dash(row.alike, ".0%")] if alike else []))
        return _markdown(titles, body)

    def paragraph(self) -> str:
        """Return what the tables stand on."""
        said, facts, config = words(self.facts), self.facts, self.facts["config"]
        n = facts["seeds"]
        drawn = max((row.versus_full.images for row in self.rows if row.versus_full), default=0)
        over = f"over seeds and the {drawn} test images" if drawn else "over seeds (t)"
        side = f", {facts['jobs']} cells side by side" if facts["jobs"] > 1 else ""
        kinds = [d for row in self.rows for d in (row.versus_beside, row.versus_full, row.versus_random) if d]
        anew = any(row.arm == PRUNED for row in self.rows)
        clear = sum(1 for d in kinds if d.known and not d.low <= 0 <= d.high)
        spread = (
            f"mean ± standard deviation over {n} seeds, differences paired by seed, with their 95 % interval {over}"
            if n > 1
            else "one seed"
        )
        parts = [
            f"Points of {said.unit} (0 to 100) {said.judge} on the {facts['reported_on']}, which chose nothing; "
            f"{spread}. *{RUN}* is the network that the pruning run itself leaves, after {config['epochs']} "
            "epochs in all" + (f"; {_ANEW}." if anew else "."),
            "The masks are as the joint stage left them, before the exact share was cut: *kept by the mask* are the "
            "images of weight one half and more, *matched* the runs in which their share came near the wanted one.",
            f"{clear} of {len(kinds)} intervals leave 0 out; of as many without any effect, one in twenty would."
            if n > 1
            else "One seed says nothing of the spread between trainings.",
            f"{config['model']} on {Path(config['data']).name}, {config['imgsz']} px, batch {config['batch']}; "
            f"{facts['hardware']}{side}; {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}.",
        ]
        return " ".join(parts)

    def lines(self) -> list[str]:
        """Return what the differences mean against the margin, a line each."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        unit, margin, question = words(self.facts).unit, self.facts["margin"] / 100, self.facts["question"]
        for row in self.rows:
            if row.arm not in _SAID:
                continue
            at = f"{100 * row.share:.3g} %"
            what = f"{row.variant} at {at}, {_SAID[row.arm]}," if row.variant else f"dropping {at}, {_SAID[row.arm]},"
            own = statistics.fmean(row.map50_95)
            pairs = [(row.versus_beside, f" against {self._other}")]
            if question in (SHARES, TRANSFER):
                pairs += [(row.versus_full, " against full"), (row.versus_random, " against a random choice")]
            for found, against in pairs:
                if found is not None:
                    yield sentence(what, found, margin, against=against, base=own - found.mean, unit=unit)

    @property
    def _other(self) -> str:
        """What `versus_beside` is against, in words."""
        return "its own choice" if self.facts["question"] == TRANSFER else self.variants[0].name


def summarise(
    found: Sequence[Variant],
    done: Mapping[Cell, Mapping[str, Any]],
    replicates: Mapping[Cell, NDArray[np.float64]] | None = None,
    *,
    images: int = 0,
) -> list[StudyRow]:
    """Return a row an arm of each variant and share; differences are paired by seed, and by image where at hand.

    Args:
        found: the variants, in the order of the tables.
        done: the trials' figures.
        replicates: each trial's figure on the same B draws of the test images, (B,), or None.
        images: number of test images, where there are replicates.
    """
    groups: dict[tuple[str, str, float, str], dict[int, Cell]] = {}
    for cell in done:
        assert isinstance(cell, Trial)
        groups.setdefault((cell.variant, cell.arm, cell.share, cell.budget), {})[cell.seed] = cell

    def versus(key: tuple[str, str, float, str], other: tuple[str, str, float, str]) -> Difference | None:
        if key == other or other not in groups:
            return None
        seeds = sorted(groups[key])
        drawn = None
        if replicates is not None:
            drawn = np.stack([replicates[groups[key][s]] - replicates[groups[other][s]] for s in seeds], axis=1)
        a, b = ([done[groups[which][s]]["map50_95"] for s in seeds] for which in (key, other))
        return paired(a, b, drawn, images=images)

    by_name = {variant.name: variant for variant in found}
    order = list(by_name)
    rows = []
    for key in sorted(groups, key=lambda k: (order.index(k[0]), k[2], _ORDER.index(k[1]))):
        name, arm, share, budget = key
        beside = by_name[name].beside
        anchor = beside or name
        figures = [done[groups[key][s]] for s in sorted(groups[key])]
        rows.append(
            StudyRow(
                name,
                arm,
                share,
                budget,
                images=figures[0]["images"],
                updates=statistics.fmean(f["updates"] for f in figures),
                map50_95=[f["map50_95"] for f in figures],
                map50=[f["map50"] for f in figures],
                hours=sum(f["hours"] for f in figures),
                versus_beside=versus(key, (beside, arm, share, budget)) if beside else None,
                versus_full=versus(key, (anchor, FULL, 0.0, EPOCHS)),
                versus_random=versus(key, (anchor, RANDOM, share, UPDATES)) if arm == PRUNED else None,
            )
        )
    return rows


_ORDER = (FULL, RUN, PRUNED, RANDOM)


def save(result: Study, done: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Write study.json, study.md and study.svg into the study's folder."""
    cells = [{"variant": getattr(cell, "variant", ""), **figures} for cell, figures in done.items()]
    content = {
        **result.facts,
        "variants": [asdict(variant) for variant in result.variants],
        "rows": [asdict(row) for row in result.rows],
        "masks": [asdict(row) for row in result.masks],
        "lines": result.lines(),
        "cells": cells,
    }
    writers: dict[str, Callable[[], str]] = {
        JSON: lambda: json.dumps(strict(content), indent=2, default=str, allow_nan=False) + "\n",
        PAGE: lambda: f"{result.report()}\n\n![accuracy and masks of the study]({FIGURE})\n",
    }
    for name, text in writers.items():
        with replace_file(result.folder / name) as temporary:
            temporary.write_text(text(), encoding="utf-8")
    draw(result, result.folder / FIGURE)


def draw(result: Study, out: Path) -> None:
    """Draw the accuracies, a dot a seed, beside what the masks came to: over shares, or a line a variant and share."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    many = result.facts["question"] == SHARES
    figure = Figure(figsize=(9, 3.4 if many else 1.4 + 0.42 * len(_lines_of(result))), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    (_draw_shares if many else _draw_variants)(result, left, right)
    for axes in (left, right):
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    with replace_file(out) as temporary, rc_context({"svg.hashsalt": "study"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


_MASKS = {"kept": "kept by the mask", "outside": f"weights outside [{LOW}, {HIGH}]"}


def _draw_shares(result: Study, left: Any, right: Any) -> None:
    said = words(result.facts)
    for arm in _ORDER:
        rows = [row for row in result.rows if row.arm == arm]
        if arm == FULL:
            left.axhline(100 * statistics.fmean(rows[0].map50_95), color="grey", linestyle="--", label=arm)
            continue
        means = [100 * statistics.fmean(row.map50_95) for row in rows]
        spread = [100 * statistics.stdev(row.map50_95) if len(row.map50_95) > 1 else 0.0 for row in rows]
        left.errorbar([100 * row.share for row in rows], means, spread, marker="o", capsize=2, label=arm)
    left.set(xlabel="% pruned", ylabel=f"{said.first}, points")
    for name, label in _MASKS.items():
        right.plot(
            [100 * m.share for m in result.masks], [100 * m.figures[name] for m in result.masks], "o-", label=label
        )
    right.set(xlabel="% pruned", ylabel="% of the images", ylim=(-3, 103))


def _lines_of(result: Study) -> dict[tuple[str, float], str]:
    """The lines of a figure variant by variant, by name and share, with what is written beside them."""
    shares = sorted({row.share for row in result.rows if row.arm != FULL})
    one = len(shares) == 1
    return {(v.name, s): v.name if one else f"{v.name}, {100 * s:.3g} %" for v in result.variants for s in shares}


def _draw_variants(result: Study, left: Any, right: Any) -> None:
    lines = _lines_of(result)
    places = {key: place for place, key in enumerate(lines)}
    for name, share in reversed(lines):
        places[name, 0.0] = places[name, share]  # full has no share: it stands in its variant's first line
    for number, (arm, colour) in enumerate(zip(_ORDER, ("grey", "C0", "C1", "C2"), strict=True)):
        rows = [row for row in result.rows if row.arm == arm]
        for i, row in enumerate(rows):
            y = places[row.variant, row.share] + 0.15 * (number - 1.5)
            values = [100 * value for value in row.map50_95]
            left.plot(values, [y] * len(values), ".", color=colour, alpha=0.5)
            left.plot(statistics.fmean(values), y, "|", color=colour, markersize=11, label=None if i else arm)
    left.set(xlabel=f"{words(result.facts).first}, points: a dot a seed, a bar their mean", yticks=range(len(lines)))
    left.set_yticklabels(lines.values(), fontsize=7)
    left.set_ylim(len(lines) - 0.5, -0.5)  # from above, each row as high as its bars
    for i, (name, label) in enumerate(_MASKS.items()):
        heights = [places[m.variant, m.share] + 0.3 * (i - 0.5) for m in result.masks]
        right.barh(heights, [100 * m.figures[name] for m in result.masks], 0.28, label=label)
    right.set(xlabel="% of the images", xlim=(0, 103), ylim=left.get_ylim(), yticks=[])


def _markdown(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in body)])


def _or_dash(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else "–"
