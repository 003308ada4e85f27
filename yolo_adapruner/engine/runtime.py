"""Threads, fonts and versions: the machine a run has. Knows no data set and no mask."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from yolo_adapruner import __version__
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.errors import ConfigError

THREADS = "YOLO_ADAPRUNER_THREADS"
"""Environment variable that limits the threads of a run; several runs side by side each get their part."""
CHANNELS_LAST = "YOLO_ADAPRUNER_CHANNELS_LAST"
"""Environment variable that has models laid out channels last; see `channels_last`."""
SAVE_SECONDS = "YOLO_ADAPRUNER_SAVE_SECONDS"
"""Environment variable: seconds apart at which epochs that are not the best so far are saved, at least; 60."""
_SAVE_SECONDS = 60.0


def save_seconds() -> float:
    """Return how many seconds of training an interruption may cost on top of the epoch under way.

    Writing an epoch takes as long as a tenth of training a very short one. A word that is no number counts as unset.
    """
    try:
        return float(os.environ.get(SAVE_SECONDS, _SAVE_SECONDS))
    except ValueError:
        return _SAVE_SECONDS


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


def channels_last() -> bool:
    """Whether models are to be trained with their tensors laid out channels last; the environment says so.

    Many convolutions are faster so, on CPUs and on GPUs in half precision; sums are rounded in another order. It is the
    machine's, not the recipe's: all that runs in the environment is laid out alike.
    """
    return os.environ.get(CHANNELS_LAST, "") not in ("", "0")


def chosen_device(setting: Any) -> torch.device:
    """Return the device that Ultralytics trains on under a `device` setting, the first of several.

    Args:
        setting: as Ultralytics takes it: cpu, 0, 0,1, mps; None or "" has it pick one.

    Raises:
        ConfigError: this machine has no such device.
    """
    from ultralytics.utils.torch_utils import parse_device, select_device

    asked = "" if setting is None else setting
    try:
        device = torch.device(select_device(parse_device(asked), verbose=False))
        if str(asked).lower().startswith("mps") and device.type != "mps":  # upstream takes the CPU in silence
            raise ValueError
        return device
    except (ValueError, RuntimeError):
        raise ConfigError(
            f"Expected a device of this machine, but got device={asked}: it has cpu and {torch.cuda.device_count()} "
            "CUDA devices. Name one of them, or none to let Ultralytics pick."
        ) from None


def native_bf16(device: torch.device | str) -> bool:
    """Whether Ultralytics trains in bfloat16 on this device; torch also calls an emulation of it supported."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8


def peak_memory() -> float:
    """Return the most resident memory that this process has ever held, GB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the process that started this one
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _private_folder() -> Path:
    """A folder of this user's alone in the temporary directory, where everybody may put folders of any name."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"yolo_adapruner-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="yolo_adapruner-"))


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
        if not target.exists():  # whole from its first moment: another run may be about to read it
            with replace_file(target) as temporary:
                shutil.copyfile(source, temporary)
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
    layout = ", channels last" if channels_last() else ""
    return f"{device.type} ({name}), {cores()} cores, {threads or torch.get_num_threads()} threads{layout}"
