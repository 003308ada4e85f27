"""What the mask's own work costs at ten million images: an iteration, an epoch's end, the files of a finished run.

Numbers are drawn; no detector and no picture is involved. Seconds are of this process, where nothing else is said, so
that other programs on the machine hardly change them: its CPU time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.mask import Mask
from yolo_adapruner.core.pruner import Pruner, Settings
from yolo_adapruner.data import export
from yolo_adapruner.data.labels import Labels
from yolo_adapruner.data.texts import Texts
from yolo_adapruner.engine import runtime
from yolo_adapruner.engine.attribution import Sources
from yolo_adapruner.engine.evidence import Evidence
from yolo_adapruner.engine.judge import FaultJudge
from yolo_adapruner.engine.owners import accounts
from yolo_adapruner.engine.rehearse import FEATURES, Rehearsal
from yolo_adapruner.errors import RunError

CHANNELS = ("localisation", "classification", "presence", "missing")
_SHARE, _SEED, _BATCH = 0.3, 0, 64
_WARM = 10  # iterations that do not count
_DRAWN = 1 << 16  # images whose readings are drawn at a time
_KINDS = np.array(["", "shifted", "swapped", "missing"])
_EVEN = 200  # of so many images one has a twin


def iterations(sizes: Sequence[int], *, batch: int = _BATCH, repeats: int = 400) -> dict[int, float]:
    """Return the median wall seconds of the mask's work in one iteration, by number of images, none of them mixed.

    Whose accounts the batch goes onto, their weights out, and what was read of them noted, as the trainer does it. What
    the detector is asked beside is the batch's work, whatever the number, and belongs to the step. The sizes take
    turns, iteration by iteration, so that what slows the machine down slows all alike.
    """
    work = [_Iteration(n, batch) for n in dict.fromkeys(sizes)]
    taken = [[each() for each in work] for _ in range(repeats + _WARM)]
    return dict(zip((each.n for each in work), np.median(taken[_WARM:], axis=0).tolist(), strict=True))


class _Iteration:
    """Does the mask's work of one iteration over `n` images, for a batch drawn anew, and returns its seconds."""

    def __init__(self, n: int, batch: int) -> None:
        self.n, self._batch, self._rng = n, batch, np.random.default_rng(_SEED)
        self._numbers, self._weights = self._rng.permutation(n), torch.from_numpy(Mask(n).weights(1.0))
        self._noted, self._readings = Evidence(), torch.rand(batch, len(CHANNELS))
        self._plane = torch.ones(batch, 1, 4, 4, dtype=torch.uint8)
        self._picture = {"img": torch.zeros(batch, 3, 8, 8)}

    def __call__(self) -> float:
        rows = torch.from_numpy(self._rng.integers(0, self.n, (self._batch, 1)))
        whole = torch.ones(self._batch)
        sources = Sources(rows, torch.zeros(0), self._plane, whole, whole[:, None])
        began = time.perf_counter()
        on = accounts(sources, self._numbers, self._picture)
        self._weights[on.numbers]
        self._noted.add(on.numbers, self._readings, on.views)
        self._noted.settle(True)
        return time.perf_counter() - began


def update(n: int) -> tuple[float, float]:
    """Return CPU seconds, and bytes a sample beside what is there already, of the mask's step at an epoch's end."""
    tracemalloc.start()  # from the beginning: what is freed on the way counts as well
    rng = np.random.default_rng(_SEED)
    mask, pressure, evidence = Mask(n), rng.gamma(2.0, 1.0, n), rng.random(n)
    return _measured(
        lambda: mask.update(pressure, neutral=2.0, lam=1.0, target=0.8, evidence=evidence, memory=0.3), n, repeats=3
    )


def close_epoch(n: int, epochs: int = 2, *, judged: bool = False) -> tuple[float, float]:
    """Return CPU seconds and bytes a sample, as `update`, of all that a run does at an epoch's end, copies apart.

    Args:
        n: number of images.
        epochs: how many are closed.
        judged: with the judge of rehearsed faults, in which images read a third better than under their fault.
    """
    tracemalloc.start()
    rng = np.random.default_rng(_SEED)
    settings = Settings(**PruneConfig(share=_SHARE, warmup=0, joint=1.0, judge=judged, redundancy=0).model_dump())
    if judged:
        rehearsal = Rehearsal([Labels(np.zeros(1, np.int64), np.array([[0.2, 0.2, 0.6, 0.6]]))], n, 2, _SEED)
        judge = FaultJudge(rehearsal.kinds, _SEED, torch.device("cpu"))
        del rehearsal
        pruner = Pruner(n, len(CHANNELS), 100, settings, judge=judge, readings=len(FEATURES))
    else:
        pruner = Pruner(n, len(CHANNELS), 100, settings)
    pruner.trace = pruner.trace[:epochs]  # of the others nothing is asked

    def open_epoch() -> None:
        pruner.open_epoch()
        for at, part in enumerate(pruner.totals):
            if part.ndim == 1 or at % 3:  # evidence
                part[:] = 1
                continue
            for begin in range(0, len(part), _DRAWN):
                rows = part[begin : begin + _DRAWN]
                rows[:] = rng.lognormal(-1 if at == 0 else -0.7, 0.5, rows.shape)

    return _measured(lambda: pruner.close_epoch(0.5), n, repeats=epochs, prepare=open_epoch)


def _measured(
    work: Callable[[], Any], n: int, *, repeats: int, prepare: Callable[[], Any] = lambda: None
) -> tuple[float, float]:
    """Median CPU seconds of some runs, then the most bytes a sample that the last one held beside what was there."""
    taken = []
    for _ in range(repeats):
        prepare()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return float(np.median(taken)), most / n


def outcome(n: int) -> export.Outcome:
    """Return a finished selection over `n` images with all columns of a run that has a judge, the numbers drawn."""
    rng = np.random.default_rng(_SEED)
    logits = rng.normal(1, 3, n)
    columns: dict[str, NDArray[Any]] = {"weight": 1 / (1 + np.exp(-5 * logits)), "logit": logits}
    names = ("signal", "signal_mean", "signal_spread", *CHANNELS)
    columns |= {name: rng.random(n) for name in names}
    columns |= {"suspicion": rng.normal(-3, 1.5, n), "kind": _KINDS[rng.integers(0, len(_KINDS), n)]}
    columns["lot"] = np.where(columns["suspicion"] > 0, np.nan, rng.random(n))
    columns |= {"epochs_seen": np.full(n, 9), "seen": 9 * rng.random(n), "boxes": rng.integers(0, 9, n)}
    twin = np.where(np.arange(n) % _EVEN == 1, np.arange(n) - 1, -1)
    columns |= {"similarity": rng.random(n), "twin": twin}
    kept = np.ones(n, bool)
    kept[np.argpartition(logits, int(_SHARE * n))[: int(_SHARE * n)]] = False
    return export.Outcome(_paths(n), kept, columns)


def _paths(n: int) -> Texts:
    """The paths of `n` images, 52 bytes each, made without a list of them."""
    head, tail, digits = b"/data/sets/traffic/images/train/camera-", b".jpg", 9
    whole = np.empty((n, len(head) + digits + len(tail)), np.uint8)
    whole[:, : len(head)] = np.frombuffer(head, np.uint8)
    whole[:, len(head) + digits :] = np.frombuffer(tail, np.uint8)
    number = np.arange(n)
    for place in range(digits):
        whole[:, len(head) + digits - 1 - place] = ord("0") + number % 10
        number //= 10
    return Texts(whole.reshape(-1), np.full(n, whole.shape[1], np.uint32))


def files(n: int) -> dict[str, dict[str, float]]:
    """Return what it takes to write a run's files and to write them again by `export`, each in a process of its own.

    Returns:
        By `write` and `export`: cpu_seconds, wall_seconds and peak_gb, the process's largest resident memory, the
        drawn numbers included; `disk`: gb.

    Raises:
        RunError: a process failed.
    """
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for step in ("write", "export"):
            words = [sys.executable, "-m", "yolo_adapruner.study.scale", step, str(n), folder]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RunError(f"Expected to {step} the files of {n} images, but: {done.stderr.strip()[-300:]}")
            found[step] = json.loads(done.stdout)
        found["disk"] = {"gb": sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e9}
    return found


def _write(n: int, folder: Path) -> Callable[[], Any]:
    whole = outcome(n)
    data = {"path": "/data/sets/traffic", "val": "/data/sets/traffic/images/val", "names": {0: "car"}}
    manifest = {"seed": _SEED, "prune": {"share": _SHARE}}
    return lambda: export.write(folder, whole, source=folder / "data.yaml", data=data, manifest=manifest)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m yolo_adapruner.study.scale", description="One step of `files`.")
    parser.add_argument("step", choices=("write", "export"))
    parser.add_argument("n", type=int)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    work = _write(args.n, args.folder) if args.step == "write" else lambda: export.export(args.folder)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found = {"cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2), "peak_gb": round(runtime.peak_memory(), 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
