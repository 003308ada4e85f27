"""Threads, fonts and versions: the machine a run has. Knows no data set and no mask."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from yolo_adapruner import __version__

THREADS = "YOLO_ADAPRUNER_THREADS"
"""Environment variable that limits the threads of a run; several runs side by side each get their part."""


def cores() -> int:
    """Number of CPU cores this process may use."""
    if os.environ.get(THREADS, "").isdigit():
        return max(1, int(os.environ[THREADS]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(threads: int | None = None) -> int:
    """Let torch compute on all cores and return their number.

    Ultralytics' device selection leaves a CPU run with one core fewer (one of two), so this is called after it, by
    every arm of a comparison alike.
    """
    count = threads or cores()
    torch.set_num_threads(count)
    return count


def native_bf16(device: torch.device | str) -> bool:
    """Whether Ultralytics trains in bfloat16 on this device; torch also calls an emulation of it supported."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8


@contextmanager
def one_at_a_time(place: str | Path) -> Iterator[None]:
    """Let one process of this user at a time do what concerns `place`; others wait.

    Ultralytics keeps one label cache a folder and deletes and rewrites it whenever the image list differs; two runs on
    one data set would otherwise read each other's half-written file.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock, as upstream
        yield
        return
    key = hashlib.sha256(os.path.abspath(place).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with (_private_folder() / f"{key}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _private_folder() -> Path:
    """A folder of this user's in the temporary directory."""
    folder = Path(tempfile.gettempdir()) / f"yolo_adapruner-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(exist_ok=True)
    return folder


def offer_font() -> None:
    """Let Ultralytics find a font on this machine, so that it does not go looking for one on the network.

    It asks matplotlib's list for a file named Arial.ttf before it downloads one; matplotlib's own DejaVu Sans is
    offered under that name, in this process only.
    """
    from matplotlib import font_manager

    if any("Arial.ttf" in f.fname for f in font_manager.fontManager.ttflist):
        return
    source = font_manager.findfont("DejaVu Sans")
    folder = _private_folder()
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        target = folder / name
        if not target.exists():
            shutil.copyfile(source, target)
        font_manager.fontManager.addfont(target)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("ultralytics", "torch", "torchvision", "numpy", "opencv-python", "pycocotools")
    return {
        "python": platform.python_version(),
        "yolo-adapruner": __version__,
        **{name: version(name) for name in packages},
    }


def hardware(device: torch.device | str, threads: int | None = None) -> str:
    """One line on what computed: device, cores, threads of one run."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name}), {cores()} cores, {threads or torch.get_num_threads()} threads"
