"""Threads, fonts and versions: the machine a run has. Knows no data set and no mask."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from yolo_adapruner import __version__


def cores() -> int:
    """Number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(threads: int | None = None) -> int:
    """Let torch compute on all cores and return their number.

    Ultralytics' device selection leaves a CPU run with one core fewer (one of two), so this is called after it, by
    every arm of a comparison alike.
    """
    count = threads or cores()
    torch.set_num_threads(count)
    return count


def offer_font() -> None:
    """Let Ultralytics find a font on this machine, so that it does not go looking for one on the network.

    It asks matplotlib's list for a file named Arial.ttf before it downloads one; matplotlib's own DejaVu Sans is
    offered under that name, in this process only.
    """
    from matplotlib import font_manager

    if any("Arial.ttf" in f.fname for f in font_manager.fontManager.ttflist):
        return
    source = font_manager.findfont("DejaVu Sans")
    folder = Path(tempfile.gettempdir()) / f"yolo_adapruner-fonts-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(exist_ok=True)
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


def hardware(device: torch.device | str) -> str:
    """One line on what computed: device, cores, threads."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name}), {cores()} cores, {torch.get_num_threads()} threads"
