"""A process that forks runs of the command line and kills them: by the clock, or in the middle of a write.

Started as a script; takes a JSON line an order and answers with one. Forking spares each run the import of torch, which
takes longer than the run. Nothing in the package knows of it: what is wrapped is wrapped in the child alone.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        status: its exit code, or -9 if it was killed.
        said: what it wrote to stderr.
        seconds: wall time from the fork to the end.
        trace: what it did, a line each: time in seconds, epoch (from 1), stage (both 0 before the first), act.
    """

    @property
    def epoch_seconds(self) -> float:
        """Mean duration of its epochs."""
        begun = [float(line.split(" ", 1)[0]) for line in self.trace if line.endswith("event on_train_epoch_start")]
        return (begun[-1] - begun[0]) / (len(begun) - 1)

    @property
    def moment(self) -> str:
        """The last act."""
        return self.trace[-1].split(" ", 1)[1] if self.trace else "0 0 nothing"

    @property
    def lost(self) -> int:
        """Batches trained since the last state was written, which a resume trains again."""
        acts = [line.split(" ", 3)[3] for line in self.trace]
        since = len(acts) - acts[::-1].index("replaced adaprune.pt") if "replaced adaprune.pt" in acts else 0
        return acts[since:].count("event on_train_batch_end")

    status: int
    said: str
    seconds: float
    trace: list[str]


@dataclass(frozen=True)
class Kill:
    """When to kill a run.

    Attributes:
        act: the act, see `_watch`; what its name begins with.
        epoch: the epoch it is in, from 1; None for any.
        count: which of those acts.
        after: seconds after it; None for the middle of it.
    """

    act: str
    epoch: int | None = None
    count: int = 1
    after: float | None = None


class Killer:
    """The other process, seen from a test; a context manager.

    Args:
        folder: its working directory, where it also keeps what its runs said.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Killer:
        from tests.helpers import child_environment

        home = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=self.folder,
            env=child_environment(PYTHONPATH=str(home)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, *words: str | Path, kill: Kill | None = None) -> End:
        """Run the command line, and kill it if told so."""
        order = {"words": list(map(str, words)), "kill": None if kill is None else asdict(kill)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return End(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    import yolo_adapruner.cli
    import yolo_adapruner.engine.run
    import yolo_adapruner.study.summary  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(here)
            _child(order["words"], order["kill"], there)
        os.close(there)
        if os.read(here, 1):  # the act has come; nothing comes of a run that ends before
            time.sleep(order["kill"]["after"])
            os.kill(child, signal.SIGKILL)
        os.close(here)
        _, status = os.waitpid(child, 0)
        end = {
            "status": os.waitstatus_to_exitcode(status),
            "said": Path("stderr").read_text(encoding="utf-8"),
            "seconds": time.monotonic() - began,
            "trace": Path("trace").read_text(encoding="utf-8").splitlines(),
        }
        answers.write(json.dumps(end) + "\n")
        answers.flush()


def _child(words: list[str], kill: dict[str, Any] | None, parent: int) -> None:
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    trace = os.open("trace", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    _watch(trace, None if kill is None else Kill(**kill), parent)
    code = 1
    try:
        from yolo_adapruner.cli import main

        code = main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(trace: int, kill: Kill | None, parent: int) -> None:
    """Write down each act of a run, and kill it in the middle of one.

    Acts are `event NAME` (Ultralytics' callbacks), `write FILE` (cut in half), `replace FILE` (before) and `replaced
    FILE` (after), `strip FILE` (before), `remove FILE` (before).
    """
    from yolo_adapruner.engine import resumable, state

    where: dict[str, Any] = {"trainer": None}
    seen = 0

    def note(name: str, half: Callable[[], object] = lambda: None) -> None:
        nonlocal seen
        trainer = where["trainer"]
        entered = getattr(trainer, "_entered", None)
        epoch = getattr(trainer, "epoch", -1) + 1
        os.write(trace, f"{time.monotonic():.3f} {epoch} {int(entered[0]) if entered else 0} {name}\n".encode())
        if kill is None or not name.startswith(kill.act) or kill.epoch not in (None, epoch):
            return
        seen += 1
        if seen != kill.count:
            return
        if kill.after is None:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(parent, b"!")

    heard = resumable.Resumable.note

    def hear(self: Any, event: str) -> None:
        where["trainer"] = self
        note(f"event {event}")
        heard(self, event)

    resumable.Resumable.note = hear  # type: ignore[method-assign]

    replace = os.replace

    def replaced(source: Any, target: Any, **extra: Any) -> None:
        note(f"replace {Path(target).name}")
        replace(source, target, **extra)
        note(f"replaced {Path(target).name}")

    os.replace = replaced

    write_bytes = Path.write_bytes

    def written(self: Path, data: Any) -> int:
        note(f"write {self.name}", lambda: write_bytes(self, data[: len(data) // 2]))
        return write_bytes(self, data)

    Path.write_bytes = written  # type: ignore[method-assign]

    def streamed(self: Any, data: Any) -> int:
        note("write adaprune.pt", lambda: (self.file.write(bytes(data)[: len(data) // 2]), self.file.flush()))
        return self.file.write(data)

    state._Stream.write = streamed  # type: ignore[method-assign]

    import ultralytics.engine.trainer as upstream

    strip = upstream.strip_optimizer

    def stripped(file: Any, *args: Any, **kwargs: Any) -> Any:
        note(f"strip {Path(file).name}", lambda: Path(file).open("wb").close())
        return strip(file, *args, **kwargs)

    upstream.strip_optimizer = stripped

    unlink = Path.unlink

    def removed(self: Path, missing_ok: bool = False) -> None:
        if self.name == state.NAME:
            note(f"remove {self.name}")
        unlink(self, missing_ok)

    Path.unlink = removed  # type: ignore[method-assign]


def different(whole: Path, other: Path) -> list[str]:
    """Return what two finished runs differ in: kept set, logits, scores, metrics, weights, counts. Times may differ."""
    said = [
        name
        for name in ("kept.txt", "dropped.txt", "scores.csv")
        if (whole / name).read_bytes() != (other / name).read_bytes()
    ]
    with np.load(whole / "mask.npz") as a, np.load(other / "mask.npz") as b:
        said += [f"mask.npz: {k}" for k in a.files if not np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f")]
    if _timeless(whole / "results.csv") != _timeless(other / "results.csv"):
        said.append("results.csv")
    for name in ("best.pt", "last.pt"):
        a, b = (_weights(folder / "weights" / name) for folder in (whole, other))
        if a.keys() != b.keys() or any(not torch.equal(a[k], b[k]) for k in a):
            said.append(name)
    a, b = (json.loads((folder / "manifest.json").read_text(encoding="utf-8")) for folder in (whole, other))
    return said + [f"manifest: {k}" for k in ("updates", "best_validation", "images") if a[k] != b[k]]


def _timeless(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(stream)]


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    content = torch.load(checkpoint, weights_only=False)  # Ultralytics pickles the model; the test made it itself
    assert content["optimizer"] is None, f"{checkpoint} is not stripped"
    return content["model"].state_dict()


if __name__ == "__main__":
    _serve()
