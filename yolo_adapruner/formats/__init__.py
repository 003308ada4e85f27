"""A finished run in the formats of other tools, by name. Trains nothing and knows no mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_adapruner.data.export import export
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.formats import cleanlab, coco, cvat, fiftyone, labelstudio
from yolo_adapruner.formats.gathered import Gathered, gather

YOLO = "yolo"
_WRITERS: dict[str, Callable[[Gathered], tuple[list[Path], str]]] = {
    "coco": coco.write,
    "coco-all": coco.write_all,
    "cvat": cvat.write,
    "labelstudio": labelstudio.write,
    "fiftyone": fiftyone.write,
    "cleanlab": cleanlab.write,
}
FORMATS = (YOLO, *_WRITERS)
_CUT = {"coco", "coco-all"}


@dataclass(frozen=True)
class Written:
    """Files of one format, the one to open first, and what there is to say about them, or nothing."""

    files: Sequence[Path]
    note: str = ""


def export_formats(run: str | Path, formats: Sequence[str] = (YOLO,), shares: Sequence[float] = ()) -> list[Written]:
    """Write a finished run's selection in other formats, into the run folder.

    Args:
        run: a run folder.
        formats: names among `FORMATS`; each once is enough.
        shares: other prune shares, cut from the same scores as `data.export.export` does; COCO files are written for
            each of them too, the others are about the run's own selection.

    Raises:
        ConfigError: an unknown format, or a share out of range.
        RunError: the folder is not a finished run, or it cannot be written to.
        DataError: images or labels are gone, unreadable, or named as a format cannot say it.
    """
    wanted = list(dict.fromkeys(formats))
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ConfigError(f"Expected formats among {', '.join(FORMATS)}, but got {', '.join(unknown)}: choose one.")
    others = [name for name in wanted if name != YOLO]
    own = gather(Path(run)) if others else None  # what is wrong with it is said before anything is written
    files = export(run, shares) if shares or YOLO in wanted else []
    written = [Written([file]) for file in files]
    if own is None:
        return written
    try:
        for name in others:
            cuts = [own.cut(file.parent) for file in files[1:]] if name in _CUT else []
            written += [Written(*_WRITERS[name](gathered)) for gathered in (own, *cuts)]
    except OSError as error:
        raise RunError(
            f"Expected to write into {run}, but {error.filename}: {error.strerror}. Make room or export a copy."
        ) from None
    return written
