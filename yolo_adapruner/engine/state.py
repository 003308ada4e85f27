"""The sidecar beside last.pt: mask and controller of the last two epochs, so that a run can go on where it stopped.

Two epochs, because it is written before last.pt: whichever of the two writes an interruption falls between, the epoch
that last.pt holds is in the sidecar. It is read with torch's weights-only loader, which runs no code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner
from yolo_adapruner.data.export import hash_paths, replace_file
from yolo_adapruner.errors import RunError

NAME = "adaprune.pt"
_FORMAT = 2  # 1 knew no areas


def write(folder: Path, epoch: int, pruner: Pruner, paths: Sequence[str], config: PruneConfig) -> None:
    """Write the state after `epoch`, keeping the one before it, in one step that an interruption cannot tear."""
    file = folder / NAME
    epochs = {}
    if epoch > 0 and file.exists():
        with suppress(RunError):  # whatever happened to the last one, this one is whole
            epochs = {e: s for e, s in _load(file)["epochs"].items() if e == epoch - 1}
    epochs[epoch] = _to_tensors(pruner.state_dict())
    content = {"format": _FORMAT, "images": hash_paths(paths), "prune": config.model_dump(), "epochs": epochs}
    packed = io.BytesIO()  # through memory: on a full disk torch's own writer does not say why it failed
    torch.save(content, packed)
    with replace_file(file) as temporary:
        temporary.write_bytes(packed.getvalue())


def read(folder: Path, epoch: int, paths: Sequence[str], config: PruneConfig) -> dict[str, Any]:
    """Return the pruner's state after `epoch`.

    Raises:
        RunError: the sidecar is missing, unreadable, or of other images, settings or epochs; the line says what
            differs.
    """
    file = folder / NAME
    if not file.exists():
        raise RunError(f"Expected {file} to resume the mask from, but it is missing: start a new run.")
    content = _load(file)
    if content["images"] != hash_paths(paths):
        raise RunError(
            f"Expected the training images that {file} was written for, but the list has changed (now {len(paths)} "
            "images): restore the list or start a new run."
        )
    differing = [k for k, v in config.model_dump().items() if content["prune"].get(k) != v]
    if differing:
        raise RunError(
            f"Expected the settings the run was started with, but {', '.join(differing)} differ: start a new run."
        )
    if epoch not in content["epochs"]:
        held = ", ".join(str(e + 1) for e in content["epochs"])
        raise RunError(f"Expected {file} to hold epoch {epoch + 1}, but it holds {held}: start a new run.")
    return _to_arrays(content["epochs"][epoch])


def _load(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise _unreadable(file, type(error).__name__) from None
    if not isinstance(content, dict):
        raise _unreadable(file, type(content).__name__)
    if content.get("format") != _FORMAT:
        raise RunError(
            f"Expected a sidecar of format {_FORMAT}, but {file} has {content.get('format')}: start a new run."
        )
    if not {"images", "prune", "epochs"} <= content.keys():
        raise _unreadable(file, "parts are missing")
    return content


def _unreadable(file: Path, reason: str) -> RunError:
    return RunError(
        f"Expected {file} to be a sidecar of this package, but it cannot be read ({reason}): start a new run."
    )


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_tensors(v) for k, v in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _to_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_arrays(v) for k, v in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value
