"""How much of what a run drops was planted, cell by cell: sets x kinds of defect x shares x seeds, one JSON line each.

    python -m yolo_adapruner.study.hits --set bccd/data.yaml --kind shifted missing --share 0.1 0.2 --seeds 0 1 2 \
        --work runs/hits --out hits.jsonl model=yolo11n.yaml imgsz=192 epochs=30
    python -m yolo_adapruner.study.hits --table hits.jsonl

A cell plants one kind of defect (`defects.py`), trains with prune = the planted share, and holds the outcome against
the truth. The kind `mixed` plants every kind of wrong label, as much of each, and each is held against the clean ones
by itself as well. The set `digits` is the embedded one, drawn anew by the seed; its kind `own` means the faults that it
comes with.
A cell whose line is in the file is not run again, and the set and the run folder of one that was cut off are taken up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import key_values
from yolo_adapruner.core.signal import surprise
from yolo_adapruner.core.suspicion import probability
from yolo_adapruner.data.export import MANIFEST, Outcome, read
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.planted import auroc
from yolo_adapruner.study.truth import CLEAN, COPY_KINDS, KINDS, LABEL_KINDS, Truth, load_truth, members

RECIPE: dict[str, Any] = {
    "model": "yolo11n.yaml",
    "imgsz": 160,
    "epochs": 30,
    "batch": 8,
    "nbs": 8,
    "mosaic": 0.0,
    "scale": 0.25,
    "warmup_epochs": 1.0,
    "plots": False,
    "verbose": False,
}
"""Settings of a cell's run; `key=value` words win over them."""
DIGITS, OWN, MIXED = "digits", "own", "mixed"
_PLANTED = (*KINDS, MIXED, OWN)
DOUBTS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0)
"""Edges of the probabilities of wrong labels by which images are counted, see `figures`."""
_CHANNELS = ("localisation", "classification", "presence", "missing")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data: the clean set: a data file, or `digits`.
        kind: what is planted: one of `truth.KINDS`, `mixed` or `own`.
        share: of the training images, planted and pruned.
        seed: of the set, the defects and the run.
        settings: over `RECIPE`, as sorted `key=value` words.
        images: so many training images of the set, a sample drawn by the seed; None takes all.
    """

    data: str
    kind: str
    share: float
    seed: int
    settings: tuple[str, ...]
    images: int | None = None

    @property
    def name(self) -> str:
        """A folder's name for its run."""
        words = "".join(f"-{word}" for word in self.settings).replace("/", "_")
        return f"{self.planted}{words}"

    @property
    def planted(self) -> str:
        """A folder's name for its set."""
        return f"{self.set}-{self.kind}-{self.share:g}-s{self.seed}"

    @property
    def set(self) -> str:
        """The clean set by the name of its folder, and of its file where that is not data, with the sample's size."""
        file = Path(self.data)
        own = "" if file.stem == "data" else f"-{file.stem}"
        name = self.data if self.data == DIGITS else file.resolve().parent.name + own
        return name if self.images is None else f"{name}-{self.images}"

    @property
    def shares(self) -> dict[str, float]:
        """Kind -> share of the training images that it is planted in."""
        kinds = LABEL_KINDS if self.kind == MIXED else (self.kind,)
        return {kind: self.share / len(kinds) for kind in kinds}

    def key(self) -> str:
        """The cell as one word, the same in any session and wherever the set lies."""
        return json.dumps([self.set, self.kind, self.share, self.seed, *self.settings])


def cells(
    sets: Sequence[str],
    kinds: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
    words: Sequence[str],
    images: int | None = None,
) -> Iterator[Cell]:
    """Yield every cell of a grid, seed by seed, so that a grid cut off has all sets and kinds.

    Raises:
        ConfigError: a kind is not known, or `own` is asked of a set that has none.
    """
    key_values(words)
    if unknown := sorted(set(kinds) - set(_PLANTED)):
        raise ConfigError(f"Expected kinds among {', '.join(_PLANTED)}, but got {', '.join(unknown)}.")
    if OWN in kinds and set(sets) != {DIGITS}:
        raise ConfigError(f"Expected a kind to plant, but only the set {DIGITS} has faults of its {OWN}: name a kind.")
    for seed in seeds:
        for share in shares:
            for data in sets:
                for kind in kinds:
                    yield Cell(data, kind, share, seed, tuple(sorted(words)), images)


def run(cell: Cell, work: Path, own: Collection[str] = ()) -> dict[str, Any]:
    """Run a cell and return its line; what `work` holds of it already is taken up.

    Args:
        cell: what to run.
        work: folder of sets and runs.
        own: see `figures`.

    Raises:
        ConfigError, DataError, RunError: see their lines.
    """
    from yolo_adapruner.api import prune
    from yolo_adapruner.engine.run import resume

    data = _planted(cell, work / "sets")
    folder = (work / "runs" / cell.name).absolute()
    settings = {**RECIPE, **key_values(cell.settings)}
    if not _finished(folder):
        if (folder / "adaprune.yaml").is_file():
            resume(folder)
        else:
            prune(
                "yolov3-tiny",
                data=data,
                prune=cell.share,
                seed=cell.seed,
                project=str(folder.parent),
                name=folder.name,
                **settings,
            )
    manifest, outcome = read(folder)
    facts = {key: manifest[key] for key in ("seconds", "hardware", "versions")}
    metric = manifest["best_validation"].get("metrics/mAP50-95(B)")
    return {
        "cell": cell.key(),
        **asdict(cell),
        "data": cell.set,
        **figures(outcome, load_truth(data.parent), own),
        "validation": metric,
        **facts,
    }


def figures(outcome: Outcome, truth: Mapping[str, Truth], own: Collection[str] = ()) -> dict[str, Any]:
    """Return what a selection did to what was planted.

    Args:
        outcome: of a run on a planted set.
        truth: path -> what became of it, of the images that something became of.
        own: file names of images that the clean set itself labels wrongly. They are no clean ones to be held against
            the planted, and where one is dropped that is named as `own`.

    - auroc: of the logit for "this image has the planted defect" against the clean ones; signal, suspicion and
      channels say the same of the mask's signal, the judge's log odds, and the surprise of the four mean channels.
      In a set with wrong labels these are what was planted, whatever else there is. Of copies alone every copy is a
      positive, and its original neither that nor a clean image.
    - hits: share of the planted among the dropped; faulty: that of the planted and the set's own wrong ones; found: the
      share of the planted that is dropped.
    - by_kind: of several kinds of wrong label each -> how many were planted, and AUROC and found of these alone.
    - named: truth -> the reason and the kind that its dropped images were given -> how many.
    - doubts: of images with a probability of wrong labels between any two of `DOUBTS` how many are planted or of the
      set's own wrong ones, and how many there are. Null of copies, and where nobody judged labels.
    - groups, one_kept, none_kept: groups of copies, those of which exactly one and none was kept. recognised: those in
      which an image was said to be a copy of another one of them, whatever went; alike: images that were said to be
      copies of one they were not planted as. Null where images were not compared.
    """
    known = [truth.get(Path(path).as_posix(), Truth(CLEAN)) for path in outcome.paths]
    kinds = np.array([t.kind for t in known])
    wrong = (kinds == CLEAN) & np.isin([Path(path).name for path in outcome.paths], list(own))
    kinds = np.where(wrong, OWN, kinds)
    groups = np.array([t.group for t in known])
    planted = np.isin(kinds, LABEL_KINDS)
    copies = ~planted.any()
    if copies:
        planted = np.isin(kinds, COPY_KINDS)
    original = copies & ~planted & (groups != "")
    columns = outcome.columns
    scores = {"auroc": -columns["logit"], "signal": columns["signal"]}
    if "suspicion" in columns:
        scores["suspicion"] = columns["suspicion"]
    scores["channels"] = surprise(np.column_stack([columns[name] for name in _CHANNELS]))
    dropped = ~outcome.kept
    found: dict[str, Any] = {"images": len(kinds), "planted": int(planted.sum()), "dropped": int(dropped.sum())}

    def told(which: NDArray[np.bool_]) -> dict[str, float | None]:
        others = ~planted & ~original & ~wrong
        judged = {name: np.isfinite(values) & (which | others) for name, values in scores.items()}
        areas = {name: _rounded(auroc(scores[name][rows], which[rows])) for name, rows in judged.items()}
        return {**areas, "found": _rounded(float(dropped[which].mean()) if which.any() else float("nan"))}

    found |= told(planted)
    for name, which in (("hits", planted), ("faulty", planted | wrong)):
        found[name] = _rounded(float(which[dropped].mean()) if dropped.any() else float("nan"))
    several = [kind for kind in LABEL_KINDS if (kinds == kind).any()]
    if len(several) > 1:
        found["by_kind"] = {kind: {"planted": int((kinds == kind).sum()), **told(kinds == kind)} for kind in several}
    found["doubts"] = None
    if not copies and "suspicion" in columns and np.isfinite(columns["suspicion"]).any():
        found["doubts"] = _by_doubt(columns["suspicion"], planted | wrong)
    return {**found, "own": int(wrong.sum()), "named": _named(outcome, kinds), **_groups(outcome, groups)}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the lines in Markdown: a row a set, recipe, share and kind, with mean, least and most over seeds.

    Where several kinds were planted in one set, each has a row of its own below that of all.
    "one kept" is the share of the groups of copies of which exactly one image was kept, "none kept" the number of those
    that are gone whole, "recognised" the share of those of which an image was said to be a copy of another.
    """
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        key = (line["data"], " ".join(line["settings"]), line["share"], line["kind"])
        rows.setdefault(key, []).append(line)
        for kind, own in line.get("by_kind", {}).items():
            rows.setdefault((*key[:-1], f"{line['kind']}: {kind}"), []).append(own)
    columns = ("auroc", "suspicion", "channels", "found", "hits", "faulty", "validation")
    heads = ("set", "settings", "share", "planted", "seeds", *columns, "one kept", "none kept", "recognised")
    text = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (data, settings, share, kind), found in sorted(rows.items()):
        entries = [_spread([line.get(name) for line in found]) for name in columns]
        copies = [line for line in found if line.get("groups")]
        entries.append(_spread([line["one_kept"] / line["groups"] for line in copies]))
        entries.append(str(sum(line["none_kept"] for line in copies)) if copies else "–")
        compared = [line for line in copies if line.get("recognised") is not None]
        entries.append(_spread([line["recognised"] / line["groups"] for line in compared]))
        text.append(f"| {data} | {settings} | {share:g} | {kind} | {len(found)} | {' | '.join(entries)} |")
    return "\n".join([*text, "", confusion(lines), *(["", doubted] if (doubted := doubts(lines)) else [])])


def doubts(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return how often labels are wrong of which a run says so with some probability, in Markdown; "" where none does.

    A row a set, summed over its lines: of the images of a bin the share that is planted or the set's own, and how many
    these images are.
    """
    total: dict[str, NDArray[np.int64]] = {}
    for line in lines:
        if line.get("doubts"):
            total[line["data"]] = total.get(line["data"], 0) + np.array(line["doubts"])
    if not total:
        return ""
    heads = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(DOUBTS)]
    text = [f"| P | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for name, counts in sorted(total.items()):
        shares = (f"{100 * wrong / n:.0f} % of {n}" if n else "–" for wrong, n in counts)
        text.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(text)


def confusion(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what the dropped images were said to be against what they are, in Markdown, summed over lines."""
    total: dict[str, Counter[str]] = {}
    for line in lines:
        for truth, said in line["named"].items():
            total.setdefault(truth, Counter()).update(said)
    columns = sorted({said for counts in total.values() for said in counts})
    text = [f"| dropped, in truth | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    text += [f"| {truth} | {' | '.join(str(counts[c]) for c in columns)} |" for truth, counts in sorted(total.items())]
    return "\n".join(text)


def read_names(file: Path) -> list[str]:
    """Return the lines of a list of file names.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(f"Expected file names of wrongly labelled images in {file}, but: {error.strerror}.") from None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the finished cells of a file, the last line of each; a line cut off by a kill is left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
    except OSError as error:
        raise DataError(f"Expected lines of finished cells in {file}, but: {error.strerror}.") from None
    found = {}
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        found[content["cell"]] = content
    return list(found.values())


def _append(file: Path, line: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        torn = stream.read(1) not in (b"", b"\n")  # a kill cut the last line off: it must not swallow this one
        stream.write(b"\n" * torn + json.dumps(line).encode() + b"\n")


def _planted(cell: Cell, folder: Path) -> Path:
    """The data file of a cell's set, made where it does not stand yet."""
    from yolo_adapruner.data.digits import build
    from yolo_adapruner.study.defects import plant

    clean = cell.data
    if cell.data == DIGITS and cell.kind == OWN:
        return build(folder / f"digits-own-{cell.share:g}-s{cell.seed}", noise=cell.share, seed=cell.seed) / "data.yaml"
    if cell.data == DIGITS:
        root = build(folder / f"digits-clean-s{cell.seed}", noise=0, duplicates=0, seed=cell.seed)
        clean = str(root / "data.yaml")
    return plant(clean, folder / cell.planted, cell.shares, seed=cell.seed, images=cell.images)


def _finished(folder: Path) -> bool:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return content.get("best_validation") is not None


def _by_doubt(suspicion: NDArray[np.floating], wrong: NDArray[np.bool_]) -> list[list[int]]:
    """Wrong ones and all by `DOUBTS`, of those that were judged."""
    known = np.isfinite(suspicion)
    bins = np.digitize(probability(np.asarray(suspicion[known], np.float64)), DOUBTS[1:-1])
    counts = (np.bincount(bins[which], minlength=len(DOUBTS) - 1) for which in (wrong[known], slice(None)))
    return [[int(one), int(all_)] for one, all_ in zip(*counts, strict=True)]


def _named(outcome: Outcome, kinds: NDArray[np.str_]) -> dict[str, dict[str, int]]:
    blank = np.full(len(kinds), "")
    reasons, named = outcome.columns.get("reason", blank), outcome.columns.get("kind", blank)
    result: dict[str, Counter[str]] = {}
    for row in np.flatnonzero(~outcome.kept):
        reason, kind = str(reasons[row]), str(named[row])
        said = f"{reason}: {kind}" if reason == "label suspect" else reason or kind
        result.setdefault(str(kinds[row]), Counter())[said] += 1
    return {truth: dict(counts) for truth, counts in result.items()}


def _groups(outcome: Outcome, groups: NDArray[np.str_]) -> dict[str, int | None]:
    copies = members(groups)
    left = [int(outcome.kept[rows].sum()) for rows in copies]
    found: dict[str, int | None] = {"groups": len(left), "one_kept": left.count(1), "none_kept": left.count(0)}
    twin, similarity = outcome.columns.get("twin"), outcome.columns.get("similarity")
    if twin is None or similarity is None or not np.isfinite(similarity).any():
        return found | {"recognised": None, "alike": None}
    said = np.flatnonzero(twin >= 0)
    alike = (groups[said] == "") | (groups[said] != groups[twin[said]])
    recognised = sum(bool(np.isin(twin[rows], rows).any()) for rows in copies)
    return found | {"recognised": recognised, "alike": int(alike.sum())}


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run a grid's missing cells, or print the table of a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", nargs="+", default=[DIGITS], help=f"data files of clean sets, or {DIGITS}")
    parser.add_argument("--kind", nargs="+", default=list(LABEL_KINDS), help=f"some of {', '.join(_PLANTED)}")
    parser.add_argument("--share", type=float, nargs="+", default=[0.1], help="planted and pruned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, help="take a sample of so many training images, drawn by the seed")
    parser.add_argument("--own", type=Path, metavar="FILE", help="file names of images that the sets label wrongly")
    parser.add_argument("--work", type=Path, default=Path("runs/hits"), help="folder of sets and runs")
    parser.add_argument("--out", type=Path, default=Path("hits.jsonl"), help="a line a finished cell")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="FILE", help="print the table of these files and run nothing"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the runs")
    args = parser.parse_args(argv)
    if args.table:
        print(table([line for file in args.table for line in read_lines(file)]))
        return
    own = read_names(args.own) if args.own else ()
    done = {line["cell"] for line in read_lines(args.out)}
    for cell in cells(args.set, args.kind, args.share, args.seeds, args.settings, args.images):
        if cell.key() in done:
            continue
        line = run(cell, args.work, own)
        _append(args.out, line)
        print(*(f"{key} {line[key]}" for key in ("cell", "auroc", "hits")), flush=True)


if __name__ == "__main__":
    sys.exit(main())
