"""The closing lines of a run: what was dropped, what is known about it, where everything lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_adapruner.data.digits import FAULTS
from yolo_adapruner.data.export import is_folder, read
from yolo_adapruner.study.planted import planted

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def run_summary(result: RunResult) -> str:
    """Return the summary of a finished run, several lines."""
    dropped = result.total - result.kept
    classes = is_folder(read(result.folder)[0]["data"])
    what, metric, command = ("classifier", "top-1", "classify train") if classes else ("detector", "mAP50-95", "train")
    lines = [
        "",
        f"kept {result.kept} of {result.total} training images, dropped {dropped} ({dropped / result.total:.1%})",
        *planted_lines(result),
        f"{what:10} {result.weights}",
        f"           validation {metric} {result.map50_95:.3f}; it chose this checkpoint, so it is no result",
        f"data set   {result.data}   (yolo {command} data=...)",
        f"scores     {result.folder / 'scores.csv'}",
        f"took {result.seconds / 60:.1f} min",
    ]
    return "\n".join(lines)


def planted_lines(result: RunResult) -> list[str]:
    """Return what the dropped images were planted as, where a set tells (the embedded one does); else nothing."""
    manifest, outcome = read(result.folder)
    found = planted(outcome, manifest["data"]["path"])
    if found is None or outcome.kept.all():
        return []
    dropped = int((~outcome.kept).sum())
    noise = sum(found.dropped.get(kind, 0) for kind in FAULTS)
    listed = ", ".join(f"{kind} {found.dropped.get(kind, 0)} of {n}" for kind, n in sorted(found.total.items()))
    return [
        f"planted noise among the dropped: {noise} of {dropped} ({noise / dropped:.0%})",
        f"dropped by kind: {listed}",
    ]
