"""Finds the run configs and data files that come with the package, by name and from any folder.

Knows where the files lie in an installed package and in a clone. Opens none of them and knows nothing of what they say.
"""

from pathlib import Path
from typing import Literal

Kind = Literal["cfg", "cfg/models", "data"]
"""`cfg` for run configs, `cfg/models` for architectures, `data` for Ultralytics data files."""

_PACKAGE = Path(__file__).resolve().parent


def folder(kind: Kind) -> Path | None:
    """Return the folder that holds the files of one kind, or None where neither a package nor a clone has one.

    The wheel carries the clone's `cfg/` and `data/` as `share/cfg` and `share/data` inside the package. A clone, and so
    an editable install, has them beside the package; the `pyproject.toml` there tells it from a site-packages folder
    where some other project left a `data/`.
    """
    packaged = _PACKAGE / "share" / kind
    if packaged.is_dir():
        return packaged
    root = _PACKAGE.parent
    beside = root / kind
    return beside if beside.is_dir() and (root / "pyproject.toml").is_file() else None


def find(kind: Kind, name: str) -> Path | None:
    """Return the file that comes with the package under a name, or None.

    Args:
        kind: what sort of file is meant.
        name: a bare name, with or without `.yaml`: `digits` and `digits.yaml` are the same. Anything with a folder in
            it is the caller's own path and never found here.

    Returns:
        An absolute path to an existing file, or None.
    """
    where = folder(kind)
    if where is None or not name or Path(name).name != name:
        return None
    path = where / (name if name.endswith(".yaml") else f"{name}.yaml")
    return path if path.is_file() else None


def available(kind: Kind) -> list[str]:
    """Return the names that `find` takes for one kind, sorted and without `.yaml`; empty where there is no folder."""
    where = folder(kind)
    return sorted(path.stem for path in where.glob("*.yaml")) if where else []
