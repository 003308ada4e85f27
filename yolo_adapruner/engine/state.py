"""The file a run goes on from, `weights/adaprune.pt`: written whole after an epoch, checked before it is trusted.

One file holds all of one epoch: mask and controller, the training state in full precision, and what the run was started
with. So there is nothing for an interruption to set at odds: a resume trusts this file alone. Order of an epoch's
writes, and what a kill after each leaves:

1. `results.csv` gets its line (Ultralytics appends). The file still holds an epoch before, with the table as it was
   then; a resume writes that table back, and trains again what came after. Not each short epoch is saved.
2. This file is replaced: written under another name, flushed to disk, renamed. From here on the epoch is done.
3. `last.pt` and `best.pt` are replaced in the same way. A resume writes them again as this epoch had them, so whichever
   is old or missing is put right; neither can be newer than this file.
4. After the last epoch both are stripped (again beside, then renamed), the best is validated and the run's files are
   exported; all of that can be done twice. Only then this file is taken away: a run without it is finished, or has not
   closed its first epoch and starts over.

It is read by torch's weights-only loader, which runs no code, after its checksums. What the training state consists of
is `snapshot`'s business.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import yaml
from torch.serialization import save as torch_save

from yolo_adapruner.data.export import replace_file, sync_folder
from yolo_adapruner.engine import runtime
from yolo_adapruner.errors import RunError

NAME, RUN_CONFIG = "adaprune.pt", "adaprune.yaml"
PARTS = frozenset(
    ("versions", "machine", "epoch", "prune", "config", "images", "classes", "args", "architecture", "mask", "training")
)
LABELS = "labels"
"""A part that states of before 2026-11-29 lack: what tells the training images' labels from others, or None."""
_FORMAT = 5
_MUST_MATCH = ("yolo-adapruner", "ultralytics", "torch")
_MAY_CHANGE = {"data", "device", "project", "name", "prune"}  # the image list and the method are compared on their own
_SHOWN = 6


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Put the state after an epoch in the place of the one before, in one step that an interruption cannot tear.

    Args:
        folder: the run's `weights` folder.
        content: all of `PARTS` and `LABELS`; what is no tensor, array, number, word or container of these is written as
            a word.

    Raises:
        OSError: the disk is full or not writable; the state before stays.
    """
    assert content.keys() == PARTS | {LABELS}, content.keys() ^ PARTS
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / NAME) as temporary, temporary.open("wb") as file:
        stream = _Stream(file)
        try:
            # Not torch.save: Ultralytics puts one in its place that retries, behind what is written already.
            torch_save({"format": _FORMAT, **plain(content)}, cast(IO[bytes], stream))
        except RuntimeError:  # all that torch says of a failed write
            if stream.error is None:
                raise
            raise stream.error from None


def beside(checkpoint: Any) -> Path | None:
    """Return the state file beside the checkpoint that a resume names (or named itself); None where there is none."""
    file = Path(checkpoint).with_name(NAME) if isinstance(checkpoint, str | Path) else None
    return file if file is not None and file.is_file() else None


def load(file: Path) -> dict[str, Any]:
    """Return what `write` wrote, tensors on the CPU.

    Raises:
        RunError: it is torn, foreign, of another format or of other versions; the line says what differs.
    """
    with _one_line(file):
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch itself does not look
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
    content = _read(file)
    versions, now = content["versions"], runtime.versions()
    if other := differences({k: versions.get(k) for k in _MUST_MATCH}, {k: now[k] for k in _MUST_MATCH}):
        raise RunError(
            f"Expected the versions that {file} was written with, but {other}: install those or start a new run."
        )
    return content


def task_of(file: Path) -> str:
    """Return Ultralytics' name of the task that the run of a state file trains for.

    Raises:
        RunError: it is unreadable.
    """
    return str(_read(file, mmap=True)["args"]["task"])


def mask_after(folder: Path, epoch: int) -> dict[str, Any]:
    """Return the pruner's state after `epoch`, counted from 0, from the file of a run that is under way.

    Raises:
        RunError: the file is missing, unreadable or of another epoch.
    """
    file = folder / NAME
    if not file.is_file():
        raise RunError(f"Expected {file} to take the mask from, but it is missing: start a new run.")
    content = _read(file, mmap=True)  # only the mask is touched; the rest is many times larger
    if content["epoch"] != epoch:
        raise RunError(
            f"Expected {file} to hold epoch {epoch + 1}, but it holds {content['epoch'] + 1}: start a new run."
        )
    return content["mask"]


def sweep(run: Path) -> None:
    """Take away what a killed process left half written in a run folder."""
    for rest in (*run.glob(".*.tmp"), *(run / "weights").glob(".*.tmp")):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


@contextmanager
def written_whole(folder: Path, *present: str) -> Iterator[Path]:
    """Give an empty folder to write files to, and put each in its place in `folder` once all are whole and on disk.

    Args:
        folder: where the files belong.
        present: names of files to copy into the temporary folder beforehand, where they exist.
    """
    temporary = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of the same number
    temporary.mkdir(parents=True)
    try:
        for name in present:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        yield temporary
        files = [file for file in temporary.iterdir() if file.is_file()]
        for file in files:
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        for file in files:
            os.replace(file, folder / file.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def run_config(folder: Path) -> dict[str, Any] | None:
    """Return the run config that lies in a run folder as plain values, or None where there is no readable one."""
    try:
        content = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def check_settings(
    file: Path, content: Mapping[str, Any], prune: Mapping[str, Any], config: Mapping[str, Any] | None
) -> None:
    """Refuse the state of a run with other settings.

    Args:
        file: named in the line.
        content: what `load` gave.
        prune: the method's settings now.
        config: the run config now, where the run has one.

    Raises:
        RunError: names each with its old and new value.
    """
    changed = differences(content["prune"], plain(prune))
    if not changed and config is not None and content["config"] is not None:
        changed = differences(_flat(content["config"]), _flat(config))
    if changed:
        raise RunError(
            f"Expected the settings that {file} was written with, but {changed}: restore them or start a new run."
        )


def check_data(file: Path, content: Mapping[str, Any], paths: Sequence[str], classes: Mapping[int, str]) -> None:
    """Refuse the state of a run on other training images or classes.

    Args:
        file: named in the line.
        content: what `load` gave.
        paths: the training images now.
        classes: the data set's class names now.

    Raises:
        RunError: says how many images are gone and how many new, and names one of each.
    """
    before, now = set(content["images"]), set(paths)
    sides = ((sorted(before - now), "gone"), (sorted(now - before), "new"))
    if changed := " and ".join(f"{len(some)} {word} (first {some[0]})" for some, word in sides if some):
        raise RunError(
            f"Expected the {len(before)} training images that {file} was written for, but {changed}: restore the list "
            "or start a new run."
        )
    if renamed := differences(content["classes"], plain(classes)):
        raise RunError(
            f"Expected the class names that {file} was written for, but {renamed}: restore them or start a new run."
        )


def differences(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> str:
    """Return what two mappings differ in, as `key old → new, ...`; nothing where they are alike."""
    said = [f"{k} {before.get(k)} → {now.get(k)}" for k in {**before, **now} if before.get(k) != now.get(k)]
    return ", ".join(said[:_SHOWN]) + (f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")


def plain(value: Any) -> Any:
    """Return a value as the weights-only loader gives it back: arrays as tensors, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str | torch.Tensor) else str(value)


def arrays(value: Any) -> Any:
    """Return a value with the tensors in it as arrays."""
    if isinstance(value, dict):
        return {k: arrays(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


class _Stream:
    """A file to write to that remembers why a write failed; torch reports that it did, but not why."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.error = file, None

    error: OSError | None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _read(file: Path, mmap: bool = False) -> dict[str, Any]:
    with _one_line(file):
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(content, dict):
            raise TypeError(type(content).__name__)
        missing = PARTS - content.keys()
    if content.get("format") != _FORMAT:
        raise RunError(
            f"Expected a state of format {_FORMAT}, but {file} has {content.get('format')}: start a new run."
        )
    if missing:
        raise _unreadable(file, f"{', '.join(sorted(missing))} missing")
    return content


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise _unreadable(file, str(error)) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _unreadable(file, str(error)) from None


def _unreadable(file: Path, reason: str) -> RunError:
    reason = " ".join(reason.split())
    return RunError(
        f"Expected {file} to be a state that this package wrote, but it cannot be read "
        f"({reason[:80]}{'…' if len(reason) > 80 else ''}): start a new run."
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run config as one level of keys, without what a resume may find changed."""
    nested = {f"train.{k}": v for k, v in (config.get("train") or {}).items()}
    return {k: v for k, v in config.items() if k not in _MAY_CHANGE | {"train"}} | nested
