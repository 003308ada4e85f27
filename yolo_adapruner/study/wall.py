"""Wall time of whole commands against stock training of the same recipe, and what the detectors are worth in the end.

A cell is one command in a process of its own, timed from its start to its end: imports, set-up, training, validation,
files. Seed by seed all arms run by turns (`turns.py`), so that whatever drifts on the machine drifts for all. A cell's
figures lie in its folder when all arms of its seed are done; it is not run again, and one that was cut off is run anew,
for half a time is none. An arm that is added later is timed apart from the others. Knows nothing of how anything is
trained.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from yolo_adapruner.config import RunConfig
from yolo_adapruner.data import export
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study import turns
from yolo_adapruner.study.evaluate import coco_metrics, paired_difference
from yolo_adapruner.study.ground import judge_data

STOCK, SHORT, DYNAMIC, RECORD = "stock", "short", "dynamic", "cell.json"
ARMS = (STOCK, "prune-0.3", "prune-0.5", DYNAMIC)
_SAID = 400


@dataclass(frozen=True)
class Bench:
    """The cells of one comparison.

    Attributes:
        config: the recipe that all share. What its data calls `val` chooses checkpoints and `test` is reported on; of
            a set without `test`, two halves of `val`, drawn by the recipe's seed.
        folder: where cells are kept.
        arms: `stock`, `short-SHARE` (stock training of that share of the epochs), `prune-SHARE`, `dynamic` (nothing
            dropped), `dynamic-SHARE`.
        seeds: of the runs; arms are paired by them.
    """

    config: RunConfig
    folder: Path
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if STOCK not in self.arms or not self.seeds:
            raise ConfigError(f"Expected {STOCK} among the arms and a seed, but got {self.arms} and {self.seeds}.")
        for arm in self.arms:
            method_of(arm)

    def run(self) -> Iterator[dict[str, Any]]:
        """Yield each cell's figures, running those that are not there; see `figures`.

        Raises:
            RunError: a command failed, or the folder holds cells of another recipe.
        """
        self._claim()
        for seed in self.seeds:
            missing = [arm for arm in self.arms if not (self._home(arm, seed) / RECORD).is_file()]
            if missing and not self.data.is_file():
                self._split()
            for arm, seconds in self._timed(missing, seed).items():
                home = self._home(arm, seed)
                found = {"arm": arm, "seed": seed, "seconds": seconds, **self._worth(arm, home / "run")}
                with export.replace_file(home / RECORD) as temporary:
                    temporary.write_text(json.dumps(found, indent=2), encoding="utf-8")
            for arm in self.arms:
                yield json.loads((self._home(arm, seed) / RECORD).read_text(encoding="utf-8"))

    def _home(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}-s{seed}"

    def _claim(self) -> None:
        """Note the recipe in the folder, or refuse a folder that holds another."""
        file, text = self.folder / "recipe.yaml", yaml.safe_dump(json.loads(json.dumps(self.config.model_dump())))
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise RunError(f"Expected {self.folder} to hold cells of this recipe, but it holds others: name another.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with export.replace_file(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunError(f"Expected to write into {self.folder}, but: {error.strerror}. Name another.") from None

    @property
    def data(self) -> Path:
        """The data file that all cells train from."""
        return self.folder / "data.yaml"

    def _split(self) -> None:
        from yolo_adapruner.engine.splits import load_data
        from yolo_adapruner.engine.trouble import quiet

        with quiet():  # the bench's output is its table or one line of JSON
            judge_data(self.folder.absolute(), load_data(self.config.data), self.config.seed)

    def _timed(self, arms: Sequence[str], seed: int) -> dict[str, float]:
        """Seconds of each arm's command, of all by turns."""
        commands = {}
        for arm in arms:
            home = self._home(arm, seed)
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            progress = partial(_progress, home / "run" / "results.csv", self._epochs(arm))
            commands[arm] = turns.Command(self._command(arm, seed, home), home / "output.txt", progress)
        found = turns.by_turns(commands)
        for arm, timed in found.items():
            if timed.status:
                last = commands[arm].output.read_text(encoding="utf-8", errors="replace").strip()[-_SAID:]
                raise RunError(f"Expected {arm} of seed {seed} to end well, but it says: {' '.join(last.split())}")
        return {arm: timed.seconds for arm, timed in found.items()}

    def _command(self, arm: str, seed: int, home: Path) -> list[str]:
        """The words of a cell's command; what it reads is written into its folder."""
        from yolo_adapruner.engine.names import ultralytics_args

        own = {"seed": seed, "data": str(self.data.absolute()), "project": str(home.absolute()), "name": "run"}
        config = self.config.model_copy(update=own)
        if (method := method_of(arm)) is None:
            config = config.model_copy(update={"epochs": self._epochs(arm)})
            args = {**ultralytics_args(config), "save_dir": str((home / "run").absolute())}
            (home / "arguments.json").write_text(json.dumps(args, default=str), encoding="utf-8")
            return [sys.executable, "-m", "yolo_adapruner.engine.stock", str(home / "arguments.json")]
        config = config.model_copy(update={"prune": config.prune.model_copy(update=method)})
        text = yaml.safe_dump(json.loads(json.dumps(config.model_dump(), default=str)))
        (home / "run.yaml").write_text(text, encoding="utf-8")
        return [sys.executable, "-m", "yolo_adapruner", "train", str(home / "run.yaml")]

    def _worth(self, arm: str, run: Path) -> dict[str, Any]:
        """The detector's mAP on what is reported on, and what of the full training the run has trained on."""
        from yolo_adapruner.engine.detections import collect

        config = self.config
        found, _ = collect(
            run / "weights" / "best.pt",
            str(self.data),
            "test",
            imgsz=config.imgsz,
            batch=int(config.batch),
            device=config.device,
        )
        metrics = coco_metrics(found, yaml.safe_load(self.data.read_text(encoding="utf-8"))["names"])
        manifest = run / export.MANIFEST
        visits = json.loads(manifest.read_text(encoding="utf-8")).get("visits") if manifest.is_file() else None
        return {
            "map50_95": metrics.map50_95,
            "images": self._epochs(arm) / config.epochs if visits is None else visits["images"] / visits["of"],
        }

    def _epochs(self, arm: str) -> int:
        """Epochs of an arm: the recipe's, or a short training's share of them."""
        kind, _, share = arm.partition("-")
        return max(round(float(share) * self.config.epochs), 1) if kind == SHORT else self.config.epochs


def _progress(results: Path, epochs: int) -> float:
    """How far a training has come, by the epochs in its results.csv."""
    try:
        return max(results.read_bytes().count(b"\n") - 1, 0) / epochs  # less the line of names
    except OSError:
        return 0.0


def method_of(arm: str) -> dict[str, Any] | None:
    """Return what an arm changes of the method's settings; None for stock training.

    Raises:
        ConfigError: the arm is not known.
    """
    kind, _, share = arm.partition("-")
    try:
        if arm == STOCK or (kind == SHORT and 0 < float(share) <= 1):
            return None
        if arm == DYNAMIC:
            return {"dynamic": True, "share": 0.0}
        if kind in ("prune", DYNAMIC) and 0 < float(share) <= 0.95:
            return {"dynamic": kind == DYNAMIC, "share": float(share)}
    except ValueError:
        pass
    raise ConfigError(f"Expected arms among {', '.join(ARMS)}, dynamic-SHARE or short-SHARE, but got {arm}.")


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each arm's figures against stock, over the seeds that both have.

    - ratio, least, most: median, smallest and largest over seeds of (seconds / stock's seconds);
    - images: mean share of the images that as many epochs on all would have trained on;
    - difference, low, high: mean of mAP50-95 less stock's in points, with its paired 95 % interval (NaN of one seed).
    """
    by = {(cell["arm"], cell["seed"]): cell for cell in cells}
    rows = []
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        pairs = [(cell, by[STOCK, seed]) for (a, seed), cell in by.items() if a == arm and (STOCK, seed) in by]
        if not pairs:
            continue
        ratios = [one["seconds"] / stock["seconds"] for one, stock in pairs]
        maps = [[100 * cell["map50_95"] for cell in side] for side in zip(*pairs, strict=True)]
        difference, low, high = paired_difference(*maps)
        rows.append(
            {
                "arm": arm,
                "seeds": len(pairs),
                "seconds": statistics.median(one["seconds"] for one, _ in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "images": statistics.mean(one["images"] for one, _ in pairs),
                "map50_95": statistics.mean(maps[0]),
                "difference": difference,
                "low": low,
                "high": high,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a summary in Markdown, mAP in points."""
    text = [
        "| arm | seeds | wall time, s | / stock | least to most | images trained on | mAP50-95 | less stock's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = "" if row["seeds"] == 1 or row["arm"] == STOCK else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        text.append(
            f"| {row['arm']} | {row['seeds']} | {row['seconds']:.0f} | {row['ratio']:.3f} | {row['least']:.3f} to "
            f"{row['most']:.3f} | {100 * row['images']:.0f} % | {row['map50_95']:.2f} | "
            f"{row['difference']:+.2f}{interval} |"
        )
    return "\n".join(text)


def machine() -> str:
    """Return how busy the machine is: a wall time measured on a busy one is not worth much."""
    return f"load of the last minute {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
