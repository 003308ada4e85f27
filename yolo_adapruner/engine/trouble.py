"""What Ultralytics, torch and the file system raise on bad input and full disks, as one line each.

Knows no run and no model.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from yolo_adapruner.errors import AdaPrunerError, ConfigError, DataError, RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PLACE_TROUBLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}
# A worker's message holds its traceback, and with it the line that says the words first.
_GONE = re.compile(r".*Image Not Found (.*)", re.S)
# torch's own writer has no errno to tell: what it says when a disk took only a part of a checkpoint.
_TORN_WRITE = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|basic_ios::clear|file write failed")
_DATA_TROUBLE = re.compile(
    r"Dataset '|No valid images found|No labels found|No images found|Error loading data|images not found|key missing|"
    r"does not exist|must be (an integer|str|list|dict)|must match|final batch=1 training",
)
_RUN_TROUBLE = (
    (
        re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR"),
        "a batch that fits into the device's memory",
        "take a smaller batch or imgsz",
    ),
    (re.compile(r"NaN persisted|NaN/Inf"), "a finite loss", "take a smaller lr0, or amp=False"),
    (re.compile(r"not found in list of available optimizers"), "an optimizer that there is", "choose one of these"),
    (re.compile(r"froze the entire model"), "a layer that is left to train", "set a smaller freeze"),
)
_LONGEST = 400
_LOGGER = logging.getLogger("ultralytics")


@contextmanager
def one_line_errors(data: str) -> Iterator[None]:
    """Turn what Ultralytics and the file system raise on bad input into one line each.

    What is not recognised passes through: it is a defect, and hiding its place would not help. Ultralytics draws its
    pictures in threads of their own; one that fails is a warning, and the run goes on without the picture.
    """
    hook, threading.excepthook = threading.excepthook, _without_picture
    try:
        yield
    except AdaPrunerError:
        raise
    except BrokenPipeError:  # who read what is printed has gone
        raise
    except ConnectionError as error:
        raise RunError(
            f"Expected to fetch a file from the network, but {one_line(error)}: put the file in place by hand."
        ) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (gone := _GONE.match(str(error))):
            raise DataError(_missing_image(gone[1].strip())) from error
        if isinstance(error, FileNotFoundError) and (known := _bad_data(error)) is not None:
            raise DataError(f"Data set {data}: {known}") from error
        if error.errno in _FULL:
            raise _full(f"{error.filename or 'a file of it'}: {error.strerror}") from None
        if error.errno not in _PLACE_TROUBLE:
            raise
        raise RunError(
            f"Expected to read the data set and write the run, but {error.filename or 'a file'}: {error.strerror}. "
            "Choose another --name or project=."
        ) from None
    except (RuntimeError, SyntaxError, ValueError, AssertionError, KeyError, TypeError) as error:
        if isinstance(error, RuntimeError) and _TORN_WRITE.search(str(error)):
            raise _full("its disk took only a part of a checkpoint") from None
        if "selected index k out of range" in str(error):  # Ultralytics' assigner takes the ten best places for a box
            raise ConfigError(
                "Expected an imgsz at which the model looks at ten places or more, but it has fewer: take a larger one."
            ) from None
        if (known := _bad_data(error)) is not None:
            raise DataError(f"Data set {data}: {known}") from error
        for pattern, expected, advice in _RUN_TROUBLE:
            if pattern.search(str(error)):
                raise RunError(f"Expected {expected}, but {one_line(error)}: {advice}.") from error
        raise
    finally:
        for thread in threading.enumerate():
            if thread.name.endswith("(plot_images)"):
                thread.join()
        threading.excepthook = hook


def _without_picture(thread: threading.ExceptHookArgs) -> None:
    if thread.exc_value is not None:  # None once the interpreter is on its way out
        kind = thread.exc_type.__name__
        _LOGGER.warning(f"A picture is missing, the run goes on: {kind}: {one_line(thread.exc_value)}")


def _missing_image(path: str) -> str:
    """What to do about an image that was there when the run began; a worker's message ends with the path, too."""
    never = (
        " One that OpenCV never could decode, as a TIFF of floats, has to be converted." if os.path.isfile(path) else ""
    )
    return (
        f"Expected the image {path}, which was there when the run began, but it is gone or cannot be read any more: "
        f"put it back and go on with --resume RUN, or start anew where no epoch was whole yet.{never}"
    )


def _full(what: str) -> RunError:
    return RunError(
        f"Expected room to write the run, but {what}. Make room and go on with --resume RUN, or start anew where no "
        "epoch was whole yet."
    )


def _bad_data(error: BaseException) -> str | None:
    """The one line behind an error of Ultralytics' about a data set, or None for any other error."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 5:
        chain.append(link)
        link = link.__cause__
    if not any(_DATA_TROUBLE.search(str(e)) for e in chain):
        return None
    root = chain[-1]
    if isinstance(root, TypeError) and "os.PathLike object, not NoneType" in str(root):
        return "train names nothing: give a folder of images or a list of them"
    if isinstance(root, KeyError) and root.args and isinstance(root.args[0], int):
        return f"its names have no class {root.args[0]}: number them 0, 1, 2 and so on"
    return one_line(root)


def one_line(error: BaseException) -> str:
    """An Ultralytics message on one line of bounded length, without its emojis, colours and pointers to web pages."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    text = str(error) if key is None else key if isinstance(key, str) and " " in key else f"there is no {key!r}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text) or type(error).__name__
    text = re.sub(r"See https?://\S+[^.\n]*|https?://\S+", "", text)
    # Control characters too: names of a data set shall not speak to the terminal.
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    text = "".join(c for c in text if unicodedata.category(c) != "So" and c != "\ufe0f")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@contextmanager
def quiet() -> Iterator[None]:
    """Let only Ultralytics' warnings through; its progress bars follow the logger's level."""
    level = _LOGGER.level
    _LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
