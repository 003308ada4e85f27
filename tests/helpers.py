"""A YOLO set and a network small enough to train in seconds, and the ways the tests start a run. Asserts nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import ultralytics  # noqa: F401  its log handler takes the stdout of its first import: the session's, not one test's
import yaml

ARCHITECTURE = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
}
"""A detector of 0.3 M parameters: a step at 64 px takes an eighth of yolov3-tiny's."""

NAMES = ("disc", "square", "cross")
QUICK: dict[str, Any] = {
    "epochs": 4,
    "imgsz": 64,
    "batch": 8,
    "device": "cpu",
    "optimizer": "AdamW",
    "lr0": 0.002,
    "nbs": 8,
    "mosaic": 0.0,
    "plots": False,
    "verbose": False,
}
"""Ultralytics settings of a run in seconds."""
LENGTHS = {"warmup_max": 0.55, "joint": 0.3}
"""Of the stages of such a run at any share; auto lengths would leave few epochs no warm-up."""


def gate_runs(cases: Iterable[Any], *indices: int, ids: Iterable[str] = ()) -> list[Any]:
    """Return the cases of a table as pytest's parameters, all but those at `indices` marked long."""
    cases, names = list(cases), list(ids)
    rows = []
    for i, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        name = names[i] if names else None
        rows.append(pytest.param(*values, id=name, marks=() if i in indices else pytest.mark.long))
    return rows


def picture(size: int, shapes: list[tuple[int, float, float, float]], rng: np.random.Generator) -> np.ndarray:
    """Draw discs, squares and crosses (class, centre x, centre y, side; shares of the size) on a noisy ground."""
    canvas = rng.integers(60, 120, (size, size, 3), np.uint8)
    for cls, x, y, side in shapes:
        centre, half = (round(x * size), round(y * size)), round(side * size / 2)
        low, high = (centre[0] - half, centre[1] - half), (centre[0] + half, centre[1] + half)
        if cls == 0:
            cv2.circle(canvas, centre, half, (240, 240, 240), -1)
        elif cls == 1:
            cv2.rectangle(canvas, low, high, (20, 20, 220), -1)
        else:
            cv2.line(canvas, low, high, (220, 220, 20), 3)
            cv2.line(canvas, (low[0], high[1]), (high[0], low[1]), (220, 220, 20), 3)
    return canvas


def build_set(
    root: Path, *, train: int = 24, val: int = 8, size: int = 64, empty: int = 2, seed: int = 0, suffix: str = ".png"
) -> Path:
    """Write a set of shapes and return its data file; the last `empty` training images have no boxes."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            shapes = []
            if split == "val" or i < count - empty:
                for _ in range(rng.integers(1, 4)):
                    shapes.append((int(rng.integers(3)), *rng.uniform(0.25, 0.75, 2), float(rng.uniform(0.25, 0.4))))
            cv2.imwrite(str(images / f"{i:03}{suffix}"), picture(size, shapes, rng))
            text = "".join(f"{c} {x:.4f} {y:.4f} {s:.4f} {s:.4f}\n" for c, x, y, s in shapes)
            (labels / f"{i:03}.txt").write_text(text, encoding="utf-8")
    return write_data(root / "data.yaml", root)


def write_data(file: Path, root: Path, **changes: Any) -> Path:
    """Write a data file for a set at `root`; a change of None leaves the key out."""
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def write_architecture(file: Path) -> Path:
    """Write the small detector's architecture file."""
    file.write_text(yaml.safe_dump(ARCHITECTURE, sort_keys=False), encoding="utf-8")
    return file


def training_images(data: Path) -> list[Path]:
    """Return the training images of a set made by `build_set`, sorted."""
    return sorted((data.parent / "images" / "train").iterdir())


def label_of(image: Path) -> Path:
    """Return the label file of an image of a set made by `build_set`."""
    return image.parent.parent.parent / "labels" / image.parent.name / f"{image.stem}.txt"


def read_list(file: Path) -> list[str]:
    """Return the lines of a kept.txt or dropped.txt."""
    return file.read_text(encoding="utf-8").splitlines()


def stages(folder: Path) -> list[int]:
    """Return the stage of each epoch by results.csv."""
    return [int(row["prune/stage"]) for row in results(folder)]


def results(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    head, *rows = (folder / "results.csv").read_text(encoding="utf-8").splitlines()
    names = [name.strip() for name in head.split(",")]
    return [dict(zip(names, map(float, row.split(",")), strict=True)) for row in rows]


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a subprocess: this one's, UTF-8."""
    return {**os.environ, "PYTHONUTF8": "1", **changes}


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in another process and return what it said."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=child_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


JOIN = """
import sys
from torch import distributed as dist

rank, meet = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + meet, rank=rank, world_size={ranks})
"""
# gloo's threads may still hold a tensor when the collective that used it is over. If they let go of it while the
# interpreter shuts down, the process ends with SIGABRT (pytorch issue 190489), on a busy machine now and then. Leaving
# the group joins them; the barrier comes first because a rank that leaves closes its connections to the others.
LEAVE = """
dist.barrier()
dist.destroy_process_group()
"""


def run_ranks(script: str, ranks: int, meet: Path, *, timeout: float = 300) -> list[str]:
    """Run a script in each process of a gloo group and return what each printed.

    Args:
        script: what to do as `rank`, once `dist`'s group stands; it is left after the last line.
        ranks: number of processes.
        meet: a file that does not exist, in which they find each other.
        timeout: seconds for all of them.

    Raises:
        RuntimeError: with what a process wrote to stderr, as soon as it fails; the others are ended.
    """
    words = [sys.executable, "-c", JOIN.format(ranks=ranks) + script + LEAVE]
    environment = child_environment(PYTHONPATH=":".join(sys.path))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*words, str(i), str(meet)], env=environment, **pipes) for i in range(ranks)]
    until = time.monotonic() + timeout
    try:
        while None in (codes := [process.poll() for process in processes]) or any(codes):
            for rank, code in enumerate(codes):
                if code:
                    raise RuntimeError(f"rank {rank} ended with {code}: {processes[rank].communicate()[1]}")
            if time.monotonic() > until:
                raise RuntimeError(f"ranks did not end in {timeout} s: {codes}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
    return [process.communicate()[0] for process in processes]


def cli_words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as the command line's key=value words."""
    return [f"{key}={value}" for key, value in settings.items()]


def start_cli(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start the command line in a process of its own that answers to SIGINT whatever this one does with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "yolo_adapruner", *map(str, words)],
        cwd=cwd,
        env=child_environment(PYTHONPATH=str(Path(__file__).resolve().parent.parent)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@contextlib.contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in another folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train_here(
    data: Path, folder: Path, *, share: float = 0.25, method: Mapping[str, Any] | None = None, **settings: Any
) -> Any:
    """Train in this process by the trainer's class, on one thread, and return the trainer.

    Args:
        data: data file.
        folder: the run folder to write; the architecture is put beside it.
        share: prune share.
        method: more settings of the method.
        settings: Ultralytics' settings over `QUICK`; `trainer`, a subclass to train with; `watched`; `callbacks`, by
            event.
    """
    trainer = new_trainer(data, folder, share=share, method=method, **settings)
    trainer.train()
    return trainer


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for counts as ended."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def new_trainer(
    data: Path, folder: Path, *, share: float = 0.25, method: Mapping[str, Any] | None = None, **settings: Any
) -> Any:
    """Return the trainer that `train_here` trains with."""
    from yolo_adapruner import AdaPruneTrainer, PruneConfig

    config = PruneConfig(**{"share": share, **LENGTHS, **(method or {})})
    kind = settings.pop("trainer", AdaPruneTrainer).configured(config, watched=settings.pop("watched", False))
    callbacks = settings.pop("callbacks", {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = settings.pop("model", None) or write_architecture(folder.parent / "small.yaml")
    overrides = {**QUICK, "model": str(model), "data": str(data), "save_dir": str(folder), **settings}
    trainer = kind(overrides=overrides)
    for event, function in callbacks.items():
        trainer.add_callback(event, function)
    return trainer
