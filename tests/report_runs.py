"""Run folders and comparisons made up for the report's tests, without training; names in them are an attacker's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np

from tests.helpers import picture
from yolo_adapruner.core.floors import BACKGROUND, CLASS, SIZE, Constraints, Groups
from yolo_adapruner.core.reasons import DOUBTFUL, DRAWN, DUPLICATE, REASONS, SUSPECT
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data import explain, export
from yolo_adapruner.data.export import Outcome
from yolo_adapruner.study.interval import Difference
from yolo_adapruner.study.table import EPOCHS, UPDATES, Row, verdicts

ATTACK = "<script>window.attacked = 1<"
"""As a folder's name, with `script>` below it, it makes a path that ends a script and begins another."""
NAMES = {
    0: "disc",
    1: "</script><script>window.attacked = 2</script>",
    2: "\"><img src=x onerror='window.attacked = 3'>",
}
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
EPOCHS_JOINT = (4, 5, 6, 7)


@contextmanager
def knows_no_reasons() -> Iterator[None]:
    """Write runs as versions did that gave no reasons."""
    with mock.patch.object(explain, "with_reasons", lambda outcome: outcome):
        yield


def make_run(folder: Path, *, n: int = 40, share: float = 0.5, reasons: bool = True, images: bool = True) -> Outcome:
    """Write a finished run of `n` images, and beside it the set it was made on; return its selection.

    Six images have odd names and the lowest scores. Image i has one box of class i % 3 and, where i is even, a large
    one of class 0.
    """
    root = folder.parent / "set" / "images" / "train"
    odd = [
        f"{ATTACK}/script>.png",
        "' onload='alert(4).png",
        '" & <b>bold.png',
        NOT_UTF8,
        "Größe 猫.png",
        "[red]x[/red].png",
    ]
    paths = sorted(str(root / name) for name in [*odd, *(f"{i:05}.png" for i in range(n - len(odd)))])
    if images:
        _write_images(paths)
    rng = np.random.default_rng(0)
    strange = np.array([any(path.endswith(name) for name in odd) for path in paths])
    values = np.linspace(-4, 4, n)
    logits = np.empty(n)
    logits[strange], logits[~strange] = values[: len(odd)], rng.permutation(values[len(odd) :])  # all of them go
    kept = select_kept(logits, share, seed=0)
    columns: dict[str, Any] = {"weight": 1 / (1 + np.exp(-5 * logits)), "logit": logits, "signal": rng.random(n)}
    columns |= {"epochs_seen": np.full(n, 4), "seen": np.full(n, 3.5), "boxes": 1 + (np.arange(n) % 2 == 0)}
    if reasons:
        columns |= _reasons(paths, kept, rng)
    weights = np.linspace(0.5, columns["weight"], len(EPOCHS_JOINT))
    history = (np.array(EPOCHS_JOINT), np.rint(255 * weights).astype(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "seed": 0,
        "prune": {"share": share},
        "train": {"task": "detect", "model": "small.yaml", "epochs": 10, "imgsz": 64},
        "best_validation": {"metrics/mAP50-95(B)": 0.432},
        "seconds": 90.0,
        "versions": {"python": "3"},
    }
    data = {"path": root.parent.parent, "val": f"{root}", "names": NAMES}
    outcome = Outcome(paths, kept, columns, history, Constraints(_groups(n)))
    with nullcontext() if reasons else knows_no_reasons():
        export.write(folder, outcome, source=root.parent.parent / "data.yaml", data=data, manifest=manifest)
    _write_table(folder / "results.csv")
    return outcome


def make_classes(folder: Path, *, n: int = 24) -> Outcome:
    """Write a finished classification run of `n` images of the classes ant and bee, a quarter dropped; return it."""
    root, rng = folder.parent / "classes" / "train", np.random.default_rng(0)
    paths = sorted(str(root / ("ant", "bee")[i % 2] / f"{i:03}.png") for i in range(n))
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(path, picture(32, [(0, 0.5, 0.5, 0.5)], rng))
    classes = np.array([Path(path).parent.name == "bee" for path in paths]).astype(np.int64)
    logits = np.linspace(-4, 4, n)
    columns = {"weight": 1 / (1 + np.exp(-5 * logits)), "logit": logits, "signal": 5 - logits, "class": classes}
    groups = Groups.of(np.arange(n), classes, [CLASS] * 2, ["ant", "bee"])
    outcome = Outcome(paths, select_kept(logits, 0.25, seed=0), columns, constraints=Constraints(groups))
    manifest = {
        "seed": 0,
        "prune": {"share": 0.25},
        "train": {"task": "classify", "model": "small.yaml", "epochs": 10, "imgsz": 32},
        "best_validation": {"metrics/accuracy_top1": 0.75},
    }
    data = {"path": root.parent, "val": str(root), "task": "classify", "names": {0: "ant", 1: "bee"}}
    folder.mkdir(parents=True)
    export.write(folder, outcome, source=root.parent, data=data, manifest=manifest)
    return outcome


def _groups(n: int) -> Groups:
    """What the labels of `_write_images` hold at 64 px."""
    names = [*NAMES.values(), "small", "medium", "background"]
    even = np.arange(0, n, 2)
    sample = np.concatenate([np.arange(n), np.arange(n), even, even])
    group = np.concatenate([np.arange(n) % 3, np.full(n, 3), np.zeros(len(even), int), np.full(len(even), 4)])
    return Groups.of(sample, group, [CLASS] * 3 + [SIZE] * 2 + [BACKGROUND], names)


def _write_images(paths: list[str]) -> None:
    rng = np.random.default_rng(0)
    for i, path in enumerate(paths):
        label = Path(path.replace("/images/", "/labels/")).with_suffix(".txt")
        for file in (Path(path), label):
            file.parent.mkdir(parents=True, exist_ok=True)
        done, content = cv2.imencode(".png", picture(64, [(i % 3, 0.5, 0.5, 0.3)], rng))
        assert done
        Path(path).write_bytes(content.tobytes())
        label.write_text(f"{i % 3} 0.5 0.5 0.3 0.3\n" + ("0 0.5 0.5 0.9 0.9\n" if i % 2 == 0 else ""), encoding="utf-8")


def _reasons(paths: list[str], kept: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = len(paths)
    reason, kind, detail = np.full(n, "", "U16"), np.full(n, "", "U16"), np.full(n, "", "U300")
    twin, suspicion = np.full(n, -1), np.full(n, np.nan)
    for place, i in enumerate(np.flatnonzero(~kept)):
        reason[i] = REASONS[place % len(REASONS)]
        if reason[i] in (SUSPECT, DOUBTFUL):
            kind[i] = detail[i] = "shifted"
            suspicion[i] = 2.0 + place if reason[i] == SUSPECT else -0.5
        if reason[i] == DUPLICATE:
            twin[i] = np.flatnonzero(kept)[0]
            detail[i] = export.shown(paths[twin[i]])
    similar = np.where(twin >= 0, 0.97, rng.random(n) / 2)
    lot = np.select([reason == DRAWN, reason == DOUBTFUL], [0.9, 0.998], np.nan)
    words = {"suspicion": suspicion, "kind": kind, "lot": lot, "similarity": similar, "twin": twin}
    return {**words, "reason": reason, "detail": detail}


def _write_table(file: Path) -> None:
    rows = ["epoch,time,  metrics/mAP50-95(B),prune/stage,prune/kept,prune/target,prune/s,prune/lambda"]
    for epoch in range(1, 11):
        stage = 1 if epoch < 4 else 2 if epoch < 8 else 3
        kept = {1: 1.0, 2: 1 - 0.125 * (epoch - 3), 3: 0.5}[stage]
        rows.append(f"{epoch},{epoch},{0.04 * epoch:.3f},{stage},{kept},{kept},{0.1 * epoch},1")
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")


def make_comparison(folder: Path, *, share: float = 0.5, gain: float = 0.03) -> dict[str, Any]:
    """Write a comparison in which the learned choice gains `gain` ± 0.01 on full, and return its content."""

    def row(arm: str, at: float, budget: str, mean: float, full: float | None, random: float | None) -> Row:
        versus = [None if d is None else Difference(d, d - 0.01, d + 0.01, 3, 1e-5, 0.0, 0) for d in (full, random)]
        return Row(arm, at, budget, 20, 100.0, [mean - 0.01, mean, mean + 0.01], [0.5] * 3, 1.0, *versus)

    rows = [
        row("full", 0.0, EPOCHS, 0.4, None, None),
        row("one run", share, EPOCHS, 0.41, 0.01, None),
        *(row("pruned", share, b, 0.4 + gain, gain, 0.05) for b in (EPOCHS, UPDATES)),
        *(row("random", share, b, 0.35, -0.05, None) for b in (EPOCHS, UPDATES)),
    ]
    content = {
        "schema": 1,
        "config": {"model": "small.yaml", "data": "set/data.yaml"},
        "shares": [share],
        "seeds": 3,
        "margin": 0.5,
        "reported_on": "test split <b>",
        "verdicts": verdicts(rows, 0.005),
        "selection": [{"share": share, "kind": "hours", "line": "choosing took 1 h"}],
        "rows": [asdict(r) for r in rows],
        "cells": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(content), encoding="utf-8")
    return content
