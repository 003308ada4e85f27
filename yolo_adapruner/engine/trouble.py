"""What Ultralytics and the file system raise on bad input, as one line each. Knows no run and no model."""

from __future__ import annotations

import errno
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from yolo_adapruner.errors import AdaPrunerError, DataError, RunError

_PLACE_TROUBLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
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
)
_LONGEST = 400


@contextmanager
def one_line_errors(data: str) -> Iterator[None]:
    """Turn what Ultralytics and the file system raise on bad input into one line each.

    What is not recognised passes through: it is a defect, and hiding its place would not help.
    """
    try:
        yield
    except AdaPrunerError:
        raise
    except ConnectionError as error:
        raise RunError(
            f"Expected to fetch a file from the network, but {one_line(error)}: put the file in place by hand."
        ) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (known := _bad_data(error)) is not None:
            raise DataError(f"Data set {data}: {known}") from error
        if error.errno not in _PLACE_TROUBLE:
            raise
        raise RunError(
            f"Expected to read the data set and write the run, but {error.filename or 'a file'}: {error.strerror}. "
            "Choose another --name or project=, or make room."
        ) from None
    except (RuntimeError, SyntaxError, ValueError, AssertionError, KeyError, TypeError) as error:
        if (known := _bad_data(error)) is not None:
            raise DataError(f"Data set {data}: {known}") from error
        for pattern, expected, advice in _RUN_TROUBLE:
            if pattern.search(str(error)):
                raise RunError(f"Expected {expected}, but {one_line(error)}: {advice}.") from error
        raise


def _bad_data(error: BaseException) -> str | None:
    """The one line behind an error of Ultralytics' about a data set, or None for any other error."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 5:
        chain.append(link)
        link = link.__cause__
    if not any(_DATA_TROUBLE.search(str(e)) for e in chain):
        return None
    return one_line(chain[-1])


def one_line(error: BaseException) -> str:
    """An Ultralytics message on one line of bounded length, without its emojis, colours and pointers to web pages."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    text = re.sub(r"See https?://\S+[^.\n]*|https?://\S+", "", text)
    text = "".join(c for c in text if unicodedata.category(c) != "So" and c != "\ufe0f")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
