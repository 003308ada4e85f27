"""The closing lines of a run: what was dropped, what is known about it, where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yolo_adapruner.core.drift import largest
from yolo_adapruner.core.reasons import SUSPECT
from yolo_adapruner.data.digits import FAULTS
from yolo_adapruner.data.export import is_folder, read
from yolo_adapruner.report import NAME
from yolo_adapruner.study.planted import planted

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def run_summary(result: RunResult) -> str:
    """Return the summary of a finished run, several lines."""
    (_, images), *rest = run_lines(result)
    took = rest.pop()
    lines = ["", images]
    lines += [f"{name:<10} {words}" for name, words in rest]
    return "\n".join([*lines, f"{took[0]:<10} {took[1]}"])


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
        *selection_lines(result),
        *planted_lines(result),
        (what, str(result.weights)),
        ("", f"validation {metric} {result.map50_95:.3f}; it chose this checkpoint, so it is no result"),
        ("data set", f"{result.data}   (yolo {command} data=...)"),
        ("scores", str(result.folder / "scores.csv")),
        *([("report", f"{page}   (opens in a browser)")] if page.is_file() else []),
        ("took", f"{result.seconds / 60:.1f} min"),
    ]


def selection_lines(result: RunResult) -> list[tuple[str, str]]:
    """Return why images were dropped and what that shifts, a named line each; nothing where none was."""
    manifest, outcome = read(result.folder)
    if outcome.kept.all():
        return []
    return [*_reasons(manifest), *_drift(manifest)]


def _reasons(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = {name: n for name, n in manifest.get("reasons", {}).items() if n}
    kinds = ", ".join(f"{n} {kind}" for kind, n in manifest.get("kinds", {}).items())
    listed = [f"{n} {name}" + (f" ({kinds})" if name == SUSPECT and kinds else "") for name, n in found.items()]
    return [("reasons", ", ".join(listed))] if listed else []


def _drift(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = manifest.get("drift")
    if counts is None:
        return []
    total, kept = manifest["images"]["total"], manifest["images"]["kept"]
    without, without_kept = counts["background"]
    images = {"without": [without, without_kept], "with": [total - without, kept - without_kept]}
    said = []
    of = " of the images" if is_folder(manifest["data"]) else " of the boxes"
    for part, what in ((counts["classes"], "class "), (counts["sizes"], "")):
        if (change := largest(part)) is not None:
            name, before, after = change
            said.append(f"{what}{name} {before:.1%} -> {after:.1%}{of}")
    if without and (change := largest(images)) is not None:
        said.append(f"images without boxes {without / total:.1%} -> {without_kept / kept:.1%}")
    return [("drift", f"largest: {', '.join(said)}")] if said else []


def planted_lines(result: RunResult) -> list[tuple[str, str]]:
    """Return what the dropped images were planted as, where a set tells (the embedded one does); else nothing."""
    manifest, outcome = read(result.folder)
    found = planted(outcome, manifest["data"]["path"])
    if found is None or outcome.kept.all():
        return []
    dropped = int((~outcome.kept).sum())
    noise = sum(found.dropped.get(kind, 0) for kind in FAULTS)
    listed = ", ".join(f"{kind} {found.dropped.get(kind, 0)} of {n}" for kind, n in sorted(found.total.items()))
    lines = [
        ("planted", f"noise among the dropped: {noise} of {dropped} ({noise / dropped:.0%})"),
        ("", f"dropped by kind: {listed}"),
    ]
    pairs, one = found.pairs
    return [*lines, ("", f"of {pairs} pairs of near-duplicates {one} lost one image")] if pairs else lines
