"""The end of a run and of a comparison: what its detector sees in the suspects, and the report. Never loses a run.

A report is the last thing that is written, when all else is on disk. Whatever goes wrong with it is said in one line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolo_adapruner import report
from yolo_adapruner.core.reasons import SUSPECT
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.report.rows import Limits, pictured
from yolo_adapruner.report.run import SUSPECTS, Run, load


def report_run(folder: Path) -> Path | None:
    """Write a finished run's report into its folder, and return its path, or None where that failed."""
    with _said_in_a_line("detections for the report"):
        note_suspects(load(folder))
    written = None
    with _said_in_a_line("report"):
        written = report.write(folder)
    return written


def report_comparison(folder: Path, run: Path) -> Path | None:
    """Write a comparison's report into its folder, on one of its runs, and return its path, or None."""
    with _said_in_a_line("detections for the report"):
        note_suspects(load(run))
    written = None
    with _said_in_a_line("report"):
        written = report.write(run, folder, target=folder / report.NAME)
    return written


def note_suspects(run: Run) -> None:
    """Write what the run's detector sees in the label suspects that its report shows; nothing where there are none."""
    reasons, weights = run.reasons, run.folder / "weights" / "best.pt"
    shown = [run.outcome.paths[i] for i in pictured(run, Limits()) if reasons[i] == SUSPECT]
    if not shown or run.task != "detect" or not weights.is_file():
        return
    from yolo_adapruner.engine.suspects import seen

    trained = run.manifest["train"]
    found = seen(
        weights,
        run.manifest["data"],
        shown,
        imgsz=int(trained["imgsz"]),
        batch=max(1, int(trained.get("batch") or 1)),
        device=str(trained["device"]).split(",")[0] if trained.get("device") is not None else None,
    )
    with replace_file(run.folder / SUSPECTS) as temporary:
        temporary.write_text(json.dumps({"images": found}, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _said_in_a_line(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if os.environ.get("YOLO_ADAPRUNER_DEBUG"):
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        print(f"yolo-adapruner: no {what} was written, all else was: {words}", file=sys.stderr)
