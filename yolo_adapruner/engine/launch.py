"""Between a process that has Ultralytics launch others and those: errors come back as lines, and none outlives it.

Upstream runs torch's launcher and learns from it that something failed, not what; and the launcher, killed, leaves its
processes behind, which would go on writing into the run folder. Knows no trainer.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import CalledProcessError

from yolo_adapruner import errors
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import AdaPrunerError, RunError

REPORT = "YOLO_ADAPRUNER_REPORT"
"""Environment variable with the folder in which a launching process and its launched ones meet."""
_LIFELINE = "lifeline"
_PATIENCE = 10.0  # seconds for launched processes to end


@contextmanager
def launching() -> Iterator[None]:
    """Let an error that a launched process left a line of end this one with that line, and take all of them along.

    Raises:
        AdaPrunerError: of the kind and with the line that ended the first process to fail.
        RunError: the processes failed without one of them leaving a line.
    """
    if hasattr(signal, "siginterrupt"):  # polars' handler would have Ctrl-C wait until the launcher is done
        signal.siginterrupt(signal.SIGINT, True)
    with tempfile.TemporaryDirectory(prefix="yolo_adapruner-", ignore_cleanup_errors=True) as folder:
        os.environ[REPORT] = folder
        try:
            with _lifeline(Path(folder) / _LIFELINE):
                yield
        except CalledProcessError as error:
            raise _reported(Path(folder), error.returncode) from None
        finally:
            del os.environ[REPORT]


@contextmanager
def launched(data: str) -> Iterator[None]:
    """Leave the line of an error for the launching process, and end this one without a traceback, or with that one.

    Does nothing in a process that was not launched by one of ours.
    """
    folder = os.environ.get(REPORT)
    if folder is None:
        yield
        return
    _hold_on_to(Path(folder) / _LIFELINE)
    try:
        with one_line_errors(data):
            yield
    except AdaPrunerError as error:
        content = json.dumps({"kind": type(error).__name__, "line": str(error)})
        Path(folder, f"{os.getpid()}.json").write_text(content, encoding="utf-8")
        raise SystemExit(error.exit_code) from None


def _reported(folder: Path, code: int) -> AdaPrunerError:
    lines = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not lines:
        return RunError(
            f"Expected the launched processes to finish the run, but they ended with exit code {code}: see what they "
            "wrote above; what is on disk can be resumed with --resume RUN."
        )
    content = json.loads(lines[0].read_text(encoding="utf-8"))
    kind: type[AdaPrunerError] = getattr(errors, content["kind"])
    return kind(content["line"])


@contextmanager
def _lifeline(path: Path) -> Iterator[None]:
    """Hold a pipe open whose end tells launched processes that this one is gone, and wait until they are."""
    if not hasattr(os, "mkfifo"):  # Windows: as upstream
        yield
        return
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(held)
        until = time.monotonic() + _PATIENCE
        while _has_readers(path) and time.monotonic() < until:
            time.sleep(0.05)


def _has_readers(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _hold_on_to(path: Path) -> None:
    """End this process, wherever it stands, once the launching one is gone or has let go."""
    with suppress(OSError):
        end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(end, True)
        threading.Thread(target=_wait_for_end, args=(end,), daemon=True).start()


def _wait_for_end(end: int) -> None:
    os.read(end, 1)  # nothing is ever written: it returns when no process holds the other end
    os._exit(RunError.exit_code)
