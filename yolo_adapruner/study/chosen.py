"""What the runs of a comparison chose: what choosing cost and saves, and how far the seeds agree on it.

What goes by lot is each seed's own: seeds cannot agree on it beyond chance, and a large share of a set without faults
goes that way. So agreement is told twice, over all that went and over what went for a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.reasons import DRAWN
from yolo_adapruner.data import export
from yolo_adapruner.study import elsewhere, ledger
from yolo_adapruner.study.arms import FULL, PRUNED, RUN
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell

HOURS, OVERLAP, JUDGED = "hours", "overlap", "judged"
"""Kinds of entries: see `docs/compare-schema.md`."""


@dataclass(frozen=True)
class Chosen:
    """What a run chose among N images, in the order of their paths.

    Attributes:
        kept: (N,) bool.
        drawn: which of the others went by lot, (N,) bool.
    """

    kept: NDArray[np.bool_]
    drawn: NDArray[np.bool_]

    @property
    def unjudged(self) -> NDArray[np.bool_]:
        """Which images did not go for a reason of their own, (N,)."""
        return self.kept | self.drawn

    def as_figures(self) -> dict[str, str]:
        """Return it as what a cell of compare.json holds."""
        return {elsewhere.KEPT: elsewhere.as_hex(self.kept), elsewhere.DRAWN: elsewhere.as_hex(self.drawn)}


def of_runs(runner: CellRunner, runs: Sequence[Cell]) -> dict[Cell, Chosen]:
    """Return what each run chose, of the runs that it is known of."""
    found = {}
    for cell in runs:
        if (runner.home(cell) / export.MANIFEST).is_file():
            outcome = export.read(runner.home(cell))[1]
            reasons = outcome.columns.get("reason", np.full(len(outcome.kept), ""))
            found[cell] = Chosen(outcome.kept, np.asarray(reasons == DRAWN))
        elif (kept := runner.elsewhere.bits(cell, elsewhere.KEPT)) is not None:
            drawn = runner.elsewhere.bits(cell, elsewhere.DRAWN)
            found[cell] = Chosen(kept, np.zeros_like(kept) if drawn is None else drawn)
    return found


def entries(found: Mapping[Cell, Chosen], done: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what choosing cost and saved, and how far the seeds agree, a few entries a share.

    Args:
        found: see `of_runs`.
        done: figures of all cells.
    """

    def hours(arm: str, share: float, *budgets: str) -> list[float]:
        return [float(f["hours"]) for c, f in done.items() if (c.arm, c.share) == (arm, share) and c.budget in budgets]

    said: list[dict[str, Any]] = []
    for share in sorted({cell.share for cell in done if cell.arm == RUN}):
        what = f"dropping {100 * share:.3g} %"
        if kept_hours := hours(PRUNED, share, EPOCHS):
            book = ledger.ledger(hours(RUN, share, EPOCHS, UPDATES), hours(FULL, 0.0, EPOCHS), kept_hours)
            line = ledger.ledger_line(f"{what}, equal epochs", book)
            said.append({"share": share, "kind": HOURS, **asdict(book), "line": line})
        runs = sorted((cell for cell in found if cell.share == share), key=lambda cell: cell.seed)
        said += [{"share": share, **entry} for entry in _agreement(what, [found[cell] for cell in runs])]
    return said


def _agreement(what: str, runs: Sequence[Chosen]) -> list[dict[str, Any]]:
    """Entries on all that went, and where some of it went by lot, on what went for a reason."""
    if len(runs) < 2 or len({len(run.kept) for run in runs}) > 1 or any(run.kept.all() for run in runs):
        return []
    drawn = float(np.mean([run.drawn.sum() / (~run.kept).sum() for run in runs]))
    said = [_entry(OVERLAP, [run.kept for run in runs], drawn, lambda found: ledger.overlap_line(what, found, drawn))]
    if not drawn:
        return said
    judged = [run.unjudged for run in runs]
    if any(rows.all() for rows in judged):
        without = sum(bool(rows.all()) for rows in judged)
        line = f"{what}: {without} of {len(runs)} seeds had nothing against any image, all that went did so by lot"
        return [*said, {"kind": JUDGED, "line": line}]
    images = float(np.mean([(~rows).sum() for rows in judged]))
    return [*said, _entry(JUDGED, judged, 0.0, lambda found: ledger.judged_line(what, images, found))]


def _entry(
    kind: str, stayed: Sequence[NDArray[np.bool_]], drawn: float, words: Callable[[ledger.Overlap], str]
) -> dict[str, Any]:
    found = ledger.overlap(np.stack(stayed))
    return {"kind": kind, **asdict(found), "learned": found.learned, "drawn": drawn, "line": words(found)}
