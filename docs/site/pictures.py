"""Draws the tutorial's pictures from a finished run on the digits set, and puts its numbers into the page.

    yolo-adapruner train cfg/yolov3-tiny.yaml --prune 0.1
    python docs/site/pictures.py runs/adaprune/train

Writes docs/pictures/ and what stands between the marks of docs/tutorial.md. Reads the run's files and its images; no
number in either is typed by hand.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np

from yolo_adapruner.data.digits import FAULTS, load_truth
from yolo_adapruner.data.export import read
from yolo_adapruner.errors import AdaPrunerError

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "yolo-adapruner", "svg.fonttype": "path", "font.size": 9})
import matplotlib.pyplot as plt  # noqa: E402  after its backend

DOCS = Path(__file__).resolve().parent.parent
SHOWN = ("kept", "signal", "localisation", "classification", "presence", "missing", "boxes")
"""Columns of scores.csv in the tutorial; all of them would not fit."""
MORE = ("kind", "reason")  # and these where the run has them
TILE, ACROSS, DOWN = 224, 4, 3


def main(arguments: list[str]) -> int:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="finished run on the digits set")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder that holds tutorial.md")
    args = parser.parse_args(arguments)
    try:
        run = Run(args.run)
    except AdaPrunerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    pictures = args.docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(pictures / "dropped.jpg"), dropped(run), [cv2.IMWRITE_JPEG_QUALITY, 75])
    stages(run, pictures / "stages.svg")
    logits(run, pictures / "logits.svg")
    page = args.docs / "tutorial.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), run), encoding="utf-8")
    return 0


class Run:
    """A finished run: manifest, outcome, truth, the rows of its tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, self.outcome = read(folder)
        known = load_truth(self.manifest["data"]["path"])
        self.kinds = np.array([known.get(Path(path).as_posix(), "clean") for path in self.outcome.paths])
        self.epochs = _table(folder / "results.csv")
        self.scores = _table(folder / "scores.csv")

    @property
    def order(self) -> np.ndarray:
        """Images from the lowest logit up, those without one last."""
        return np.argsort(self.outcome.columns["logit"], kind="stable")

    def column(self, name: str) -> np.ndarray:
        """A column of results.csv."""
        return np.array([float(row[name]) for row in self.epochs])


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(lines)]


# Pictures


def dropped(run: Run) -> np.ndarray:
    """Return a sheet of the images that went first, with the boxes of their label files and what was planted."""
    chosen = [i for i in run.order if not run.outcome.kept[i]][: ACROSS * DOWN]
    tiles = [_tile(Path(run.outcome.paths[i]), str(run.kinds[i])) for i in chosen]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % ACROSS)
    return np.vstack([np.hstack(tiles[k : k + ACROSS]) for k in range(0, len(tiles), ACROSS)])


def _tile(path: Path, kind: str) -> np.ndarray:
    """One image, enlarged, its labels drawn, a line of text below."""
    image = cv2.resize(cv2.imread(str(path)), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
    for line in label.read_text(encoding="utf-8").splitlines():
        name, *box = line.split()
        x, y, w, h = (float(value) * TILE for value in box)
        corners = [(round(x - w / 2), round(y - h / 2)), (round(x + w / 2), round(y + h / 2))]
        cv2.rectangle(image, *corners, (255, 255, 255), 4)
        cv2.rectangle(image, *corners, (0, 0, 220), 2)
        _text(image, name, (max(2, corners[0][0] + 2), max(14, corners[0][1] + 15)), 0.5)
    foot = np.full((26, TILE, 3), 255, np.uint8)
    cv2.putText(foot, f"{path.stem}: {kind}", (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(np.vstack([image, foot]), 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _text(image: np.ndarray, text: str, place: tuple[int, int], size: float) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 3, cv2.LINE_AA)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 200), 1, cv2.LINE_AA)


def stages(run: Run, path: Path) -> None:
    """Draw kept share, target and validation mAP over the epochs, the stages shaded."""
    figure, left = plt.subplots(figsize=(7, 2.9), layout="constrained")
    epoch, stage = run.column("epoch"), run.column("prune/stage")
    for number, name, shade in ((1, "warm-up", "0.96"), (2, "joint", "0.88"), (3, "fine-tune", "0.96")):
        inside = epoch[stage == number]
        if len(inside):
            left.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=shade, lw=0)
            left.text(inside.mean(), 1.02, name, ha="center", va="bottom", transform=left.get_xaxis_transform())
    left.plot(epoch, run.column("prune/kept"), color="#c0392b", label="kept share")
    left.plot(epoch, run.column("prune/target"), color="#c0392b", ls=":", label="its target")
    left.plot(epoch, run.column("metrics/mAP50-95(B)"), color="#2c5fa8", label="validation mAP50-95")
    left.set(xlabel="epoch", ylim=(0, 1.05), xlim=(epoch[0] - 0.5, epoch[-1] + 0.5))
    left.legend(loc="lower right", frameon=True)
    _save(figure, path)


def logits(run: Run, path: Path) -> None:
    """Draw where the logits of wrongly labelled and of other images lie, and where the cut fell."""
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    values, wrong = run.outcome.columns["logit"], np.isin(run.kinds, FAULTS)
    seen = np.isfinite(values)
    bins = np.linspace(values[seen].min(), values[seen].max(), 50)
    groups = [values[seen & ~wrong], values[seen & wrong]]
    axes.hist(groups, bins, stacked=True, color=["#2c5fa8", "#c0392b"], label=["labelled rightly", "labelled wrongly"])
    gone = values[seen & ~run.outcome.kept]
    if len(gone):
        axes.axvline(gone.max(), color="0.2", ls="--", label="dropped: left of here")
    axes.set(xlabel="logit", ylabel="images", yscale="symlog")
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.legend(loc="upper left", frameon=True)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text(encoding="utf-8").splitlines()))


# The page's blocks


def filled(text: str, run: Run) -> str:
    """Return the page with the run's own output between its marks."""
    for name, block in {"summary": summary, "dropped": score_rows, "results": result_rows, "setting": setting}.items():
        opening, closing = f"<!-- output: {name} -->", f"<!-- end: {name} -->"
        if opening not in text or closing not in text:
            raise SystemExit(f"expected tutorial.md to hold {opening} and {closing}, but one is missing")
        before, _, rest = text.partition(opening)
        text = f"{before}{opening}\n\n{block(run)}\n\n{closing}{rest.partition(closing)[2]}"
    return text


def summary(run: Run) -> str:
    """The closing lines of the run; folders above the working directory cut off."""
    from yolo_adapruner.engine.run import RunResult
    from yolo_adapruner.study.summary import run_summary

    result = RunResult(
        folder=run.folder,
        weights=run.folder / "weights" / "best.pt",
        data=run.folder / "pruned.yaml",
        total=len(run.outcome.paths),
        kept=int(run.outcome.kept.sum()),
        map50_95=run.manifest["best_validation"]["metrics/mAP50-95(B)"],
        seconds=run.manifest["seconds"],
        updates=run.manifest["updates"],
    )
    text = run_summary(result).strip()
    place = str(run.folder)
    return "```text\n" + text.replace(place, f"runs/adaprune/{run.folder.name}") + "\n```"


def score_rows(run: Run) -> str:
    """The first rows of scores.csv by logit, as a table, with what was planted."""
    names = [*SHOWN, *(name for name in MORE if name in run.scores[0])]
    by_path = {row["path"]: row for row in run.scores}
    rows = [f"| image | {' | '.join(names)} | planted |", "|---" * (len(names) + 2) + "|"]
    for i in [*run.order[:5], run.order[len(run.order) // 2], run.order[-1]]:
        row = by_path[run.outcome.paths[i]]
        cells = [_short(row[name]) for name in names]
        rows.append(f"| {Path(row['path']).name} | {' | '.join(cells)} | {run.kinds[i]} |")
    return "\n".join(rows)


def _short(value: str) -> str:
    try:
        return value if value.isdigit() else f"{float(value):.3g}".replace("nan", "–")
    except ValueError:
        return value or "–"


def result_rows(run: Run) -> str:
    """Kept share, target, s and mAP: the first epoch, the joint stage, the last."""
    names = ["epoch", "prune/stage", "prune/kept", "prune/target", "prune/s", "metrics/mAP50-95(B)"]
    joint = [i for i, row in enumerate(run.epochs) if float(row["prune/stage"]) == 2]
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for i in sorted({0, *joint, len(run.epochs) - 1}):
        rows.append(f"| {' | '.join(_short(run.epochs[i][name]) for name in names)} |")
    return "\n".join(rows)


def setting(run: Run) -> str:
    """What the run was: versions and the hardware's time."""
    versions = run.manifest["versions"]
    known = ("yolo-adapruner", "ultralytics", "torch", "numpy")
    words = ", ".join(f"{name} {versions[name]}" for name in known if name in versions)
    share = 1 - run.outcome.kept.mean()
    return (
        f"One run, seed {run.manifest.get('seed', 0)}, {len(run.epochs)} epochs, {share:.0%} pruned, "
        f"{run.manifest['seconds'] / 60:.0f} minutes; {words}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
