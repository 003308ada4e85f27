"""One process in a folder at a time: two that write the same run would leave a mixture of both."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from yolo_adapruner.errors import RunError

LOCK = ".lock"
_BETWEEN_LOOKS = 0.1
_HELD: set[str] = set()
_GUARD = threading.Lock()


@contextmanager
def alone_in(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder against other processes while the block runs.

    The lock is this process's: the system takes it back however the process ends, and forked loader workers that
    outlive it by seconds do not keep it. Where there are no such locks, or no such folder, nothing is held.

    Args:
        folder: to hold; a file `.lock` lies in it meanwhile.
        patience: seconds to wait for another process that may be about to end, >= 0.

    Raises:
        RunError: another process, or another thread of this one, holds it.
    """
    with _first_here(folder):
        handle = _locked(folder / LOCK, patience)
        try:
            yield
        finally:
            if handle is not None:
                (folder / LOCK).unlink(missing_ok=True)  # before the lock goes: it is still nobody else's
                os.close(handle)


@contextmanager
def _first_here(folder: Path) -> Iterator[None]:
    """The same among the threads of this process, whose locks are all one."""
    place = os.path.realpath(folder)
    with _GUARD:
        if place in _HELD:
            raise RunError(
                f"Expected {folder} for one run alone, but this process trains in it already: wait until that is done, "
                "or take another name."
            )
        _HELD.add(place)
    try:
        yield
    finally:
        with _GUARD:
            _HELD.remove(place)


def _locked(path: Path, patience: float) -> int | None:
    until = time.monotonic() + patience
    while fcntl is not None:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # read-only, full, gone: what writes there next says it better
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return handle
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                os.close(handle)
                return None
            if time.monotonic() >= until:
                os.close(handle)
                raise RunError(
                    f"Expected {path.parent} for one process alone, but another one works in it: wait until it is "
                    "done, or take another --name."
                ) from None
            time.sleep(_BETWEEN_LOOKS)
        os.close(handle)  # held by another, or the file that was locked is no longer there
    return None  # type: ignore[unreachable]  # Windows
