"""The closing lines of a run: what was dropped, what is known about it, where everything lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_adapruner.data.digits import FAULTS
from yolo_adapruner.data.export import is_folder, read
from yolo_adapruner.report import NAME
from yolo_adapruner.study.planted import planted

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult

_PLANTED = "planted"


def run_summary(result: RunResult) -> str:
    """Return the summary of a finished run, several lines."""
    (_, images), *rest = run_lines(result)
    took = rest.pop()
    lines = ["", images]
    for name, words in rest:
        lines.append(f"{name:<10} {words}" if name != _PLANTED else words)
    return "\n".join([*lines, " ".join(took)])


def run_lines(result: RunResult) -> list[tuple[str, str]]:
    """Return what the summary says, each line with its name; one that goes on with the line above has none."""
    dropped = result.total - result.kept
    classes = is_folder(read(result.folder)[0]["data"])
    what, metric, command = ("classifier", "top-1", "classify train") if classes else ("detector", "mAP50-95", "train")
    page = result.folder / NAME
    return [
        (
            "images",
            f"kept {result.kept} of {result.total} training images, dropped {dropped} ({dropped / result.total:.1%})",
        ),
        *((_PLANTED, line) for line in planted_lines(result)),
        (what, str(result.weights)),
        ("", f"validation {metric} {result.map50_95:.3f}; it chose this checkpoint, so it is no result"),
        ("data set", f"{result.data}   (yolo {command} data=...)"),
        ("scores", str(result.folder / "scores.csv")),
        *([("report", f"{page}   (opens in a browser)")] if page.is_file() else []),
        ("took", f"{result.seconds / 60:.1f} min"),
    ]


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
