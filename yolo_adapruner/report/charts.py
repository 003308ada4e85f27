"""The page's charts: mAP against share, the run by epochs, weights over time. Turns numbers into panels of SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from yolo_adapruner.report.comparison import Comparison
from yolo_adapruner.report.svg import MARKS, Panel, mark, ticks

BINS = 20
_ARMS = ("pruned", "random", "one run")
"""Arms that look the same in every report; the others follow as they come."""
_COLUMNS = 60
_STAGES = {1: ("warmup", "warm-up"), 2: ("joint", "joint"), 3: ("finetune", "fine-tune")}
METRICS = ("metrics/mAP50-95(B)", "metrics/mAP50-95(M)", "metrics/mAP50-95(P)", "metrics/accuracy_top1")
"""What a run is judged by, as results.csv names it: of boxes, masks, keypoints or classes, the first that is there."""


@dataclass(frozen=True)
class Chart:
    """A panel with its title and what its marks mean, (mark or line, words)."""

    title: str
    svg: Markup
    legend: Sequence[tuple[Markup, str]] = ()


def against_share(comparison: Comparison) -> list[Chart]:
    """Return mAP against the share removed, a chart a budget; an arm at a share is a point with its interval.

    The interval is that of the paired difference to full, put at full's mean.
    """
    full = comparison.full
    rows = [row for row in comparison.rows if row["arm"] != "full" and row["map50_95"]]
    if full is None or not rows:
        return []
    others = [row["arm"] for row in comparison.rows if row["arm"] not in _ARMS]
    arms = [*_ARMS, *dict.fromkeys(others)]
    budgets = sorted({row["budget"] for row in rows}, reverse=True)  # updates first
    heights = [v for row in rows for v in _reach(row, full)] + [full, full - comparison.facts["margin"] / 100]
    span = (max(heights) - min(heights)) or 0.01
    y = max(0.0, 100 * (min(heights) - 0.08 * span)), 100 * (max(heights) + 0.08 * span)
    return [_share_chart([r for r in rows if r["budget"] == b], b, arms, full, y, comparison) for b in budgets]


def _share_chart(
    rows: Sequence[Mapping[str, Any]],
    budget: str,
    arms: Sequence[str],
    full: float,
    y: tuple[float, float],
    comparison: Comparison,
) -> Chart:
    shares = sorted({row["share"] for row in rows})
    said = [f"{r['arm']} at {100 * r['share']:.3g} %: {100 * statistics.fmean(r['map50_95']):.1f}" for r in rows]
    what = f"mAP50-95 against share removed, {budget}"
    panel = Panel(what, f"Full: {100 * full:.1f}; " + "; ".join(said), (0, len(shares)), y, height=222, top=18)
    panel.y_axis(*_y(y), "mAP50-95")
    panel.x_axis([(i + 0.5, f"{100 * share:.3g} %") for i, share in enumerate(shares)], "share removed")
    panel.level(100 * full, "full")
    panel.level(100 * full - comparison.facts["margin"], "margin")
    here = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    for row in rows:
        place = (here.index(row["arm"]) + 1) / (len(here) + 1)
        _point(panel, panel.px(shares.index(row["share"]) + 0.15 + 0.7 * place), row, arms.index(row["arm"]), full)
    legend = [(_key(mark(8, 6, arms.index(arm))), arm) for arm in here]
    lines = [(_stroke("full"), "full set"), (_stroke("margin"), "full set less the margin")]
    return Chart(f"At {budget}", panel.svg(), [*legend, *lines])


def _point(panel: Panel, x: float, row: Mapping[str, Any], kind: int, full: float) -> None:
    mean, (low, high) = statistics.fmean(row["map50_95"]), _reach(row, full)[:2]
    words = f"{row['arm']}, {100 * row['share']:.3g} %: {100 * mean:.1f}"
    if low < high:
        words += f" [{100 * low:.1f}, {100 * high:.1f}]"
        panel.add(
            '<line class="whisker m{}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            *(kind % MARKS, x, x, panel.py(max(100 * low, panel.y[0])), panel.py(100 * high)),
        )
    for value in row["map50_95"] if len(row["map50_95"]) > 1 else ():
        panel.add('<circle class="seed m{}" cx="{}" cy="{}" r="1.6"/>', kind % MARKS, x + 7, panel.py(100 * value))
    panel.mark(x, panel.py(100 * mean), kind, words)


def _reach(row: Mapping[str, Any], full: float) -> list[float]:
    """Lower and upper end of a row's interval, in [0, 1], and its values; where there is none, its mean twice."""
    versus, mean = row["versus_full"], statistics.fmean(row["map50_95"])
    if versus is None or versus.get("low") is None or versus.get("high") is None:
        return [mean, mean, *row["map50_95"]]
    base = mean - versus["mean"]
    return [base + versus["low"], base + versus["high"], *row["map50_95"]]


def by_epoch(table: Mapping[str, NDArray[np.float64]]) -> list[Chart]:
    """Return the metric, the kept share and s over the epochs, the stages behind them; what is missing is left out."""
    if "epoch" not in table:
        return []
    metric = next((name for name in METRICS if name in table), None)
    charts = []
    if metric is not None:
        name = metric.removeprefix("metrics/").partition("(")[0].replace("accuracy_top1", "accuracy")
        points = 100 * table[metric]
        charts.append(_epoch_chart(f"Validation {name}", "", table, {"c0": ("", points)}, (0.0, _top(points))))
    if "prune/kept" in table:
        lines = {"c1": ("target", 100 * table["prune/target"]), "c0": ("kept", 100 * table["prune/kept"])}
        lowest = min(float(np.nanmin(ys, initial=100)) for _, ys in lines.values())
        charts.append(_epoch_chart("Kept share", "%", table, lines, (max(0.0, lowest - 3), 100.5)))
    if "prune/s" in table:
        charts.append(
            _epoch_chart(
                "Scale s of the weights", "", table, {"c0": ("", table["prune/s"])}, (0, _top(table["prune/s"]))
            )
        )
    return charts


def _epoch_chart(
    title: str,
    label: str,
    table: Mapping[str, NDArray[np.float64]],
    lines: Mapping[str, tuple[str, NDArray[np.float64]]],
    y: tuple[float, float],
) -> Chart:
    epochs = table["epoch"]
    x = float(epochs.min()) - 0.5, float(epochs.max()) + 0.5
    last = lines["c0"][1]
    panel = Panel(title, f"Over {len(epochs)} epochs; {last[0]:.3g} in the first, {last[-1]:.3g} in the last.", x, y)
    for low, high, stage in _spans(table):
        panel.band(low - 0.5, high + 0.5, *_STAGES[stage])
    panel.y_axis(*_y(y), label)
    panel.x_axis(_epoch_ticks(epochs), "epoch")
    for kind, (_, ys) in lines.items():
        panel.line(epochs.tolist(), ys.tolist(), kind)
    legend = [(_stroke(f"line {kind}"), words) for kind, (words, _) in lines.items() if words]
    return Chart(title, panel.svg(), legend)


def weights(history: tuple[NDArray[np.int64], NDArray[np.uint8]] | None, final: NDArray[np.floating]) -> Chart | None:
    """Return how the weights spread out over the joint epochs; only the last ones where there is no history."""
    if history is None:
        known = final[np.isfinite(final)]
        return _last_weights(known) if len(known) else None
    epochs, values = history
    some = np.unique(np.linspace(0, len(epochs) - 1, min(_COLUMNS, len(epochs))).round().astype(int))
    share = np.stack([_bins(values[i]) for i in some])
    low, high = 100 * share[-1][[0, -1]]
    words = f"Of {values.shape[1]} images, {low:.0f} % end below 0.05 and {high:.0f} % above 0.95."
    panel = Panel("Weights over the joint epochs", words, (0, len(some)), (0, 1), bottom=34)
    height = panel.py(0) - panel.py(1 / BINS)
    width = panel.px(1) - panel.px(0)
    for column, i in enumerate(some):
        for row in np.flatnonzero(share[column] > 0):
            panel.add(
                '<rect class="heat" x="{}" y="{}" width="{:.2f}" height="{:.2f}" fill-opacity="{:.2f}">'
                "<title>{}</title></rect>",
                *(panel.px(column), panel.py((row + 1) / BINS), width + 0.2, height + 0.2),
                0.08 + 0.92 * math.sqrt(share[column][row]),
                f"epoch {epochs[i]}, weight {row / BINS:.2f} to {(row + 1) / BINS:.2f}: "
                f"{100 * share[column][row]:.1f} %",
            )
    panel.y_axis([0, 0.25, 0.5, 0.75, 1], 2, "weight")
    step = max(1, len(some) // 6)
    panel.x_axis([(c + 0.5, str(epochs[some[c]])) for c in range(0, len(some), step)], "epoch")
    return Chart("Weights over the joint epochs", panel.svg(), [(_key(_HEAT), "few to many images")])


_HEAT = Markup("").join(
    Markup('<rect class="heat" x="{}" y="1" width="5" height="10" fill-opacity="{}"/>').format(4 * i, o)
    for i, o in enumerate((0.15, 0.4, 0.7, 1))
)


def _last_weights(final: NDArray[np.floating]) -> Chart:
    counts = np.histogram(final, BINS, (0, 1))[0]
    panel = Panel("Weights at the end", f"{len(final)} images.", (0, 1), (0, float(counts.max())))
    for row, count in enumerate(counts):
        x, y = panel.px(row / BINS), panel.py(float(count))
        size = (panel.px((row + 1) / BINS) - x - 1, panel.py(0) - y)
        panel.add('<rect class="bar" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>', x, y, *size)
    panel.y_axis(*_y(panel.y), "images")
    panel.x_axis([(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)], "weight")
    return Chart("Weights at the end", panel.svg())


def _bins(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of the values, each 0 to 255, in equal bins of [0, 1]."""
    counts = np.bincount(values, minlength=256)
    places = np.minimum(np.arange(256) * BINS // 255, BINS - 1)
    return np.bincount(places, counts, BINS) / max(1, len(values))


def _spans(table: Mapping[str, NDArray[np.float64]]) -> list[tuple[float, float, int]]:
    """First and last epoch of each stage that was run."""
    stage, epochs = table.get("prune/stage"), table["epoch"]
    if stage is None:
        return []
    known = [k for k in _STAGES if (stage == k).any()]
    return [(float(epochs[stage == k].min()), float(epochs[stage == k].max()), k) for k in known]


def _epoch_ticks(epochs: NDArray[np.float64]) -> list[tuple[float, str]]:
    values, _ = ticks(float(epochs.min()), float(epochs.max()), 6)
    return [(v, f"{v:g}") for v in values if v == round(v)]


def _y(y: tuple[float, float]) -> tuple[list[float], int]:
    return ticks(y[0], y[1], 4)


def _top(values: NDArray[np.float64]) -> float:
    return 1.08 * float(np.nanmax(values, initial=0)) or 1.0


def _key(inner: Markup) -> Markup:
    return Markup('<svg class="key" viewBox="0 0 18 12" aria-hidden="true">{}</svg>').format(inner)


def _stroke(kind: str) -> Markup:
    return _key(Markup('<line class="{}" x1="0" x2="18" y1="6" y2="6"/>').format(kind))
