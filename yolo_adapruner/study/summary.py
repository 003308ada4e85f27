"""The closing lines of a run: what was dropped, what is known about it, where everything lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_adapruner.data.digits import FAULTS, load_truth
from yolo_adapruner.data.export import read

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def run_summary(result: RunResult) -> str:
    """Return the summary of a finished run, several lines."""
    dropped = result.total - result.kept
    lines = [
        "",
        f"kept {result.kept} of {result.total} training images, dropped {dropped} ({dropped / result.total:.1%})",
        *planted_lines(result),
        f"detector   {result.weights}",
        f"           validation mAP50-95 {result.map50_95:.3f}; it chose this checkpoint, so it is no result",
        f"data set   {result.data}   (yolo train data=...)",
        f"scores     {result.folder / 'scores.csv'}",
        f"took {result.seconds / 60:.1f} min",
    ]
    return "\n".join(lines)


def planted_lines(result: RunResult) -> list[str]:
    """Return what the dropped images were planted as, where a set tells (the embedded one does); else nothing."""
    manifest, outcome = read(result.folder)
    truth = load_truth(manifest["data"]["path"])
    if not truth or outcome.kept.all():
        return []
    kinds = [truth.get(path.replace("\\", "/"), "clean") for path in outcome.paths]
    counts = {
        kind: (sum(k == kind and not kept for k, kept in zip(kinds, outcome.kept, strict=True)), kinds.count(kind))
        for kind in sorted(set(kinds))
    }
    dropped = int((~outcome.kept).sum())
    noise = sum(counts.get(kind, (0, 0))[0] for kind in FAULTS)
    listed = ", ".join(f"{kind} {out} of {all_}" for kind, (out, all_) in counts.items())
    return [f"planted noise among the dropped: {noise} of {dropped} ({noise / dropped:.0%}); dropped by kind: {listed}"]
