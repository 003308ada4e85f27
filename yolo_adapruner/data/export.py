"""What a run leaves behind, from numbers to files: scores, kept and dropped lists, pruned.yaml, manifest.

Everything but the manifest and `mask.npz` is written from those two alone, so it can be written again, byte for byte,
and at other shares. Knows no Ultralytics and no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from yolo_adapruner.core.floors import Constraints
from yolo_adapruner.core.selection import cut, in_order
from yolo_adapruner.data import classfolders, explain, npz, tables
from yolo_adapruner.data.keep import refuse_too_many
from yolo_adapruner.data.texts import CHUNK, Texts
from yolo_adapruner.errors import ConfigError, RunError

if TYPE_CHECKING:
    from yolo_adapruner.core.pruner import Pruner

MANIFEST, MASK, TRACE = "manifest.json", "mask.npz", "trace.npz"
_DATA_KEYS_LEFT_OUT = {"download", "yaml_file", "path", "train"}
_LEFT_BEHIND = (
    *(MASK, TRACE, "prints.npz", "suspects.json", "report.html"),
    *("scores.csv", "scores.parquet", "kept.txt", "dropped.txt", "pruned.yaml"),
)
_SPLITS = ("val", "test", "minival")
_IMAGES = f"{os.sep}images{os.sep}"  # for the last of these in a path Ultralytics puts labels


@dataclass(frozen=True)
class Outcome:
    """The numbers of a finished selection over N images.

    Attributes:
        paths: absolute image paths, sorted.
        kept: (N,) bool.
        columns: the remaining columns of scores.csv, name -> (N,) array, in their order. `Outcome.of` gives them:

            - weight: sigmoid(s_end * logit), [0, 1]; logit: the score, what images are ranked by. Both NaN for an image
              that the joint stage never saw: it has no score, and goes after all that have one.
            - signal: nats >= 0, what the image is judged by, from its mean readings over the joint stage; signal_mean,
              signal_spread: mean and standard deviation of one epoch's; then the mean of each reading. NaN where an
              image gives none.
            - suspicion: log odds that the labels are wrong, where as many are as `wrong_labels` of the manifest says;
              above 0 likelier than not, NaN unknown; kind: the likeliest kind of fault, suspect or not, "" unknown.
            - lot: of an image that nothing speaks against, [0, 1], what it is ranked by, the highest go first; NaN for
              suspects, and for all where none were drawn.
            - epochs_seen: joint epochs that saw the image.
            - seen: what it was judged on in them, in whole views of it; a part, mixed with other images, counts by its
              area. A score from less than one view rests on little.
            - boxes: labelled boxes.
            - similarity: how likely the nearest other image is the same picture, [0, 1]; NaN where images were not
              compared. twin: row of the most similar image that it gives way to, -1 for none.
            - visits: epochs of the whole run that drew it; not there in a run of stock training.

            A watched training of everything has those of `core.trajectory` as well: forgotten, margin, early_error;
            one whose epochs draw what a plan says has visits, the epochs that drew the image.

            `write` adds `reason` and `detail`, see `explain.with_reasons`.
        constraints: what the selection must not lose.
        history: joint epochs (E,) and round(255 * weight) after each, (E, N) uint8; None where there was no mask.
    """

    paths: Sequence[str]
    kept: NDArray[np.bool_]
    columns: Mapping[str, NDArray[Any]]
    history: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None
    constraints: Constraints = field(default_factory=Constraints)

    @classmethod
    def of(
        cls,
        pruner: Pruner | None,
        paths: Sequence[str],
        boxes: Sequence[int],
        channels: Sequence[str],
        share: float,
        constraints: Constraints | None = None,
        visits: NDArray[np.integer] | None = None,
    ) -> Outcome:
        """Return what a pruner found, or everything kept where there was none (share 0).

        `visits` (N,) are the epochs that drew each image, None where all drew all.
        """
        n = len(paths)
        if pruner is None:
            nan = np.full(n, np.nan)
            names = ("logit", "signal", "signal_mean", "signal_spread", *channels)
            columns = {"weight": np.ones(n), **dict.fromkeys(names, nan), "suspicion": nan, "kind": np.full(n, "")}
            columns["lot"] = nan
            kept, epochs, seen = np.ones(n, bool), np.zeros(n, np.int64), np.zeros(n)
            likeness = {"similarity": nan, "twin": np.full(n, -1)}
        else:
            if pruner.kept is None:
                raise RunError("Expected a run whose mask is decided, but it stopped before the joint stage ended.")
            mean, spread = pruner.moments.means, pruner.moments.spread
            columns = {
                "weight": pruner.mask.weights(pruner.settings.s_end).astype(np.float64),
                "logit": pruner.mask.logits,
                "signal": pruner.signal,
                "signal_mean": mean[:, -1],
                "signal_spread": spread[:, -1],
                **{name: mean[:, i] for i, name in enumerate(channels)},
                "suspicion": pruner.suspicion.posterior,
                "kind": pruner.suspicion.kind,
                "lot": np.full(n, np.nan) if pruner.lots is None else pruner.lots,
            }
            kept, epochs, seen = pruner.kept, pruner.moments.count[:, -1].astype(np.int64), pruner.seen
            likeness = {"similarity": pruner.redundancy.similarity, "twin": pruner.redundancy.twin}
        tail = {"epochs_seen": epochs, "seen": seen, "boxes": np.asarray(boxes, np.int64)}
        columns = {**columns, **tail, **likeness}
        if visits is not None:
            columns["visits"] = np.asarray(visits, np.int64)
        history = pruner.history if pruner is not None else None
        limits = explain.trusting(constraints or Constraints(), columns)
        return cls(paths, kept, columns, history, limits)

    def keeping(self, kept: NDArray[np.bool_]) -> Outcome:
        """Return the same with another selection, (N,), and the reasons that go with it, where there are reasons."""
        part = replace(self, kept=kept)
        return explain.with_reasons(part) if "reason" in self.columns else part

    def with_columns(self, columns: Mapping[str, NDArray[Any]]) -> Outcome:
        """Return the same with further columns behind its own, each (N,)."""
        return replace(self, columns={**self.columns, **columns})


def write(
    folder: Path, outcome: Outcome, *, source: Path, data: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Write everything a run leaves behind into its folder.

    Args:
        folder: the run folder.
        outcome: the selection.
        source: the data file the run was trained on.
        data: its content as Ultralytics resolved it (absolute split paths).
        manifest: what else the manifest shall say (versions, seed, settings).
    """
    outcome = explain.with_reasons(replace(outcome, paths=Texts.of(outcome.paths)))
    settings = manifest.get("prune", {})
    content = {
        **manifest,
        **explain.facts(outcome, settings.get("share", 0.0), settings.get("floor", 0.0)),
        "images": {
            "total": len(outcome.paths),
            "kept": int(outcome.kept.sum()),
            "dropped": int((~outcome.kept).sum()),
            "list_sha256": hash_paths(outcome.paths),
        },
        "columns": list(outcome.columns),
        "data": {"source": os.path.abspath(source), **_portable(data, folder)},
    }
    # The mask comes into its place right after the manifest that names it: what stops the run before leaves the files
    # of the decision as they were, and what stops it in between leaves a mask that the manifest knows as well.
    with replace_file(folder / MASK) as temporary:
        with temporary.open("wb") as stream:
            arrays: dict[str, Any] = {"paths": outcome.paths, "kept": outcome.kept, **outcome.columns}
            npz.write(stream, arrays | explain.arrays(outcome.constraints))
        content["mask_sha256"] = _hash_file(temporary)
        if _is_file(folder / MASK) and (before := _hash_file(folder / MASK)) != content["mask_sha256"]:
            content["mask_sha256_before"] = before
        _write_history(folder / TRACE, outcome.history)
        _write_text(folder / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
    _write_files(folder, outcome, content["data"])


def task_of(manifest: Mapping[str, Any]) -> str:
    """Return Ultralytics' name of the task that a run trained for, by its manifest; of an older one `detect`."""
    return str(manifest.get("train", {}).get("task", "detect"))


def forget(folder: Path) -> None:
    """Take away what an earlier run has left in a folder, the manifest first; folders, such as cuts, stay."""
    for name in (MANIFEST, *_LEFT_BEHIND):
        (folder / name).unlink(missing_ok=True)


def export(run: str | Path, shares: Sequence[float] = ()) -> list[Path]:
    """Write a run's files again, byte for byte, and for each of `shares` a data set cut from the same scores.

    Args:
        run: a run folder.
        shares: other prune shares in [0, 0.95]; each gets a folder `prune-<share>` inside the run folder, marked as
            extrapolated, because the mask was learned for one share only.

    Returns:
        The data files written, the run's own first.

    Raises:
        RunError: the folder is not a finished run, its files do not belong together, or it cannot be written to.
        ConfigError: a share is out of range.
    """
    folder = Path(run)
    for share in shares:
        if not 0 <= share <= 0.95:
            raise ConfigError(f"Expected a prune share from 0 to 0.95, but got {share:g}.")
    manifest, outcome = read(folder)
    logits, learned = outcome.columns["logit"], manifest["prune"]["share"]
    if shares and not np.isfinite(logits).any():
        reason = "stopped before it judged any: start anew" if learned else "was run with prune 0: run it with a share"
        raise RunError(f"Expected a run that scored its images, but {folder} {reason}.")
    for share in shares:
        refuse_too_many(outcome.constraints.required, share)
    try:
        written = [_write_files(folder, outcome, manifest["data"])]
        for share in shares:
            part = _cut(outcome, share, learned, manifest["seed"])
            note = "" if share == learned else f" Extrapolated: the mask was learned for prune {learned:g}."
            note += _eased(part, share)
            target = folder / f"prune-{share:g}"
            target.mkdir(exist_ok=True)
            written.append(_write_files(target, part, manifest["data"], note=note))
    except OSError as error:
        raise RunError(
            f"Expected to write into {folder}, but {error.filename}: {error.strerror}. Make room or export a copy."
        ) from None
    return written


def _cut(outcome: Outcome, share: float, learned: float, seed: int) -> Outcome:
    """Another share cut from the scores that were learned for one, under the same constraints."""
    columns = outcome.columns
    order = in_order(columns["logit"], learned, columns.get("lot"), columns.get("twin"), seed=seed)
    kept = cut(order, share, outcome.constraints)
    return outcome.keeping(kept)


def _eased(part: Outcome, share: float) -> str:
    held = part.constraints.held(part.kept, share)
    return f" Floors eased to {held:.2f}." if held < part.constraints.floor - 1e-9 else ""


def read(folder: Path) -> tuple[dict[str, Any], Outcome]:
    """Return a run's manifest and selection.

    Raises:
        RunError: one of the two files is missing, unreadable, or not of the same run.
    """
    for name in (MANIFEST, MASK):
        if not _is_file(folder / name):
            raise RunError(f"Expected a finished run in {folder}, but it has no {name}: finish the run with --resume.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8", errors="surrogateescape"))
        if _hash_file(folder / MASK) not in (manifest["mask_sha256"], manifest.get("mask_sha256_before")):
            raise RunError(f"Expected the {MASK} that {folder / MANIFEST} names, but its content differs.")
        with np.load(folder / MASK, allow_pickle=False) as arrays:
            paths = npz.texts(arrays, "paths")
            constraints = explain.constraints_of(arrays, manifest["prune"].get("floor", 0.0), len(paths))
            columns = {name: npz.column(arrays, name) for name in manifest["columns"]}
            outcome = Outcome(paths, arrays["kept"], columns, constraints=explain.trusting(constraints, columns))
        _check(manifest, outcome)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"Expected {folder / MANIFEST} and {MASK} of this package, but they cannot be read ({error})."
        ) from None
    return manifest, outcome


def is_folder(data: Mapping[str, Any]) -> bool:
    """Return whether a manifest's `data` is a folder of class folders, as classification takes it, and no data file."""
    return data["rest"].get("task") == "classify"


def pruned_data(folder: Path, data: Mapping[str, Any]) -> Path:
    """Return where a run's pruned data set is, for a manifest's `data`: `pruned.yaml`, or the folder `pruned`."""
    return folder / ("pruned" if is_folder(data) else "pruned.yaml")


def scores_table(outcome: Outcome, rows: slice = slice(None)) -> pl.DataFrame:
    """Return the table behind scores.csv, or some rows of it: a row an image, sorted by path."""
    columns: dict[str, Any] = {"path": Texts.of(outcome.paths)[rows], "kept": outcome.kept[rows]}
    columns |= {name: values[rows] for name, values in outcome.columns.items()}
    for name, values in columns.items():
        if name == "path" or values.dtype.kind in "UO":
            texts = values if name == "path" else values.tolist()
            plain = "".join(texts).isascii()  # of all at once: one by one takes as long as the rest of the table
            columns[name] = pl.Series(name, texts if plain else list(map(shown, texts)), dtype=pl.String)
    return pl.DataFrame(columns)


def shown(path: str) -> str:
    r"""Return a path as text. A file name may hold bytes that are no UTF-8; CSV cannot, so they are shown as \xe9."""
    if path.isascii():
        return str(path)
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def hash_paths(paths: Sequence[str]) -> str:
    """Return the hash an image list is recognised by: SHA-256 over the paths, a line each."""
    digest = hashlib.sha256()
    for begin in range(0, len(paths), CHUNK):
        head = "\n" if begin else ""
        digest.update((head + "\n".join(paths[begin : begin + CHUNK])).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and put it in `target`'s place once it is whole and on disk.

    Whatever stops it, `target` is what it was or what it shall be, also after a power cut.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        if not error.filename or error.filename == str(temporary):  # a write that failed does not say whose
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk: until then a new name may be lost with the power, though the file is there."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot; the file itself is on disk
        pass
    finally:
        os.close(handle)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be searched
        return False


def _check(manifest: Mapping[str, Any], outcome: Outcome) -> None:
    """Raise a ValueError, KeyError or TypeError where something lacks that writing the files again takes."""
    lengths = {len(outcome.paths), len(outcome.kept), *(len(values) for values in outcome.columns.values())}
    if len(lengths) > 1 or "logit" not in outcome.columns:
        raise ValueError(f"columns {', '.join(outcome.columns)} of {sorted(lengths)} rows")
    data, share, seed = manifest["data"], manifest["prune"]["share"], manifest["seed"]
    if not (isinstance(data["rest"], dict) and {"source", "path"} <= data.keys()):
        raise ValueError("data lacks source, path or rest")
    if not (isinstance(share, float | int) and isinstance(seed, int)):
        raise ValueError(f"prune share {share!r}, seed {seed!r}")


def _write_files(folder: Path, outcome: Outcome, data: Mapping[str, Any], note: str = "") -> Path:
    tables.write(folder, len(outcome.paths), lambda rows: scores_table(outcome, rows), replace_file)
    paths = Texts.of(outcome.paths)
    for name, rows in (("kept.txt", outcome.kept), ("dropped.txt", ~outcome.kept)):
        with replace_file(folder / name) as temporary, temporary.open("wb") as stream:
            stream.writelines(paths.lines(rows))
    if is_folder(data):
        kept = [path for path, row in zip(outcome.paths, outcome.kept, strict=True) if row]
        return classfolders.write(pruned_data(folder, data), kept, {**data["rest"], "train": data["source"] + "/train"})
    head = (
        f"# {int(outcome.kept.sum())} of {len(outcome.paths)} training images of {data['source']}, "
        f"kept by yolo-adapruner.{note}\n"
    )
    body = {"path": data["path"], "train": os.path.abspath(folder / "kept.txt"), **data["rest"]}
    # JSON has no keys but strings; these two have class ids.
    for key in ("names", "kpt_names"):
        if isinstance(body.get(key), dict):
            body[key] = {int(k) if k.isdecimal() else k: v for k, v in body[key].items()}
    pruned = pruned_data(folder, data)
    _write_text(pruned, head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True))
    return pruned


def _write_history(target: Path, history: tuple[NDArray[np.int64], NDArray[np.uint8]] | None) -> None:
    if history is None:
        target.unlink(missing_ok=True)  # of an earlier run in the same folder
        return
    with replace_file(target) as temporary, temporary.open("wb") as stream:
        npz.write(stream, {"epochs": history[0], "weights": history[1]})


def _portable(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The data file's content as JSON gives it back, its split paths absolute, without what only its folder can use."""
    rest = {k: v for k, v in data.items() if k not in _DATA_KEYS_LEFT_OUT and v is not None}
    splits = {k: _from_anywhere(rest.pop(k), folder, k) for k in _SPLITS if k in rest}
    content = json.loads(json.dumps(_with_words_for_keys({**splits, **rest}), default=str))
    return {"path": os.path.abspath(data["path"]), "rest": content}


def _from_anywhere(split: Any, folder: Path, name: str) -> Any:
    """A split whose lists can be read from any working directory; one that cannot is written anew, into `folder`.

    A line that begins neither with / nor with ./ counts from where Ultralytics is started. One whose labels lie
    elsewhere by its absolute path stays as it is.
    """
    if isinstance(split, list):
        return [_from_anywhere(part, folder, f"{name}-{i}") for i, part in enumerate(split)]
    if not (isinstance(split, str | Path) and _is_file(Path(split))):
        return split
    try:
        text = Path(split).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return split
    lines = text.strip().splitlines()
    if not any(_counts_from_here(line) for line in lines):
        return split
    whole = [os.path.abspath(line) if _counts_from_here(line) else line for line in lines]
    if any((_IMAGES in line) != (_IMAGES in absolute) for line, absolute in zip(lines, whole, strict=True)):
        return split
    beside = str(Path(os.path.abspath(split)).parent) + os.sep
    whole = [line.replace("./", beside, 1) if line.startswith("./") else line for line in whole]
    _write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in whole))
    return os.path.abspath(folder / f"{name}.txt")


def _counts_from_here(line: str) -> bool:
    return bool(line) and not line.startswith("./") and not os.path.isabs(line) and os.path.isfile(line)


def _with_words_for_keys(value: Any) -> Any:
    """The same with text for keys that JSON has not, such as dates."""
    if isinstance(value, Mapping):
        plain = (str, int, float, bool, type(None))
        return {k if isinstance(k, plain) else str(k): _with_words_for_keys(v) for k, v in value.items()}
    return [_with_words_for_keys(v) for v in value] if isinstance(value, list | tuple) else value


def _write_text(target: Path, text: str) -> None:
    with replace_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
