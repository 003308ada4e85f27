"""Does learning collapse on itself? Weights and readings of images over the joint stage, with a wrong verdict put in.

    python -m yolo_adapruner.study.dynamics --seeds 0 --out docs/results/dynamics.md

On a digit set with planted faults, near-duplicates and one class made rare, a detector is warmed up once and each arm's
joint stage goes on from it. In some arms a tenth of the clean images is judged wrongly: their logits are set far down
in the middle of the stage, or their weights are held at 0. An arm that is done is not run again. The tables are made
anew by the command; a text under `WORDS` stays.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Stage
from yolo_adapruner.core.signal import surprise
from yolo_adapruner.data.digits import FAULTS, build, load_truth
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.planted import auroc

SIZE, WARM, JOINT, VERDICT, DEPTH = 96, 24, 12, 4, 10.0
"""Pixels; epochs of the warm-up and of the joint stage; the epoch after which the verdict falls; its logit."""
RARE, RARE_IMAGES = 9, 6
"""Class made rare, and the images of it that are left."""
WRONG, RARELY, CLEAN, COPY, JUDGED = "noisy", "rare class", "clean", "duplicate", "clean, judged wrongly"
WORDS = "What to make of it:"
_SHARE = 0.1
_RECIPE: dict[str, Any] = {
    "task": "detect",
    "imgsz": SIZE,
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.001,
    "lrf": 1.0,
    "mosaic": 0.0,
    "scale": 0.25,
    "fliplr": 0.0,
    "plots": False,
    "verbose": False,
    "device": "cpu",
}


@dataclass(frozen=True)
class Arm:
    """One way to run the joint stage.

    Attributes:
        verdict: a tenth of the clean images gets the logit -`DEPTH` after epoch `VERDICT`.
        held: their weights are this in every epoch, whatever their logits; None leaves them.
        settings: of the method.
    """

    verdict: bool = False
    held: float | None = None
    settings: Mapping[str, float] = field(default_factory=dict)


ARMS = {
    "left alone": Arm(),
    "weight held at 0": Arm(held=0.0),
    "wrong verdict": Arm(verdict=True),
    "wrong verdict, memory 1": Arm(verdict=True, settings={"memory": 1.0}),
    "wrong verdict, memory 1, weight_min 0.25": Arm(verdict=True, settings={"memory": 1.0, "weight_min": 0.25}),
}


class Watcher(AdaPruneTrainer):
    """A trainer that judges `chosen` images wrongly as its `arm` says, and writes down every joint epoch.

    Attributes:
        arm, chosen: what is done, and to which image paths; one for the class.
        weights, readings: (N,) an epoch each: the weight it was trained with, and the surprise of its own readings.
    """

    arm = Arm()
    chosen: frozenset[str] = frozenset()

    def _set_up_mask(self) -> None:
        super()._set_up_mask()
        assert self.pruner is not None
        self.pruner.ends_early = False  # what comes after the verdict is what is asked
        self.weights: list[NDArray[np.float32]] = []
        self.readings: list[NDArray[np.float64]] = []
        self.rows = np.array([path in self.chosen for path in self.paths])

    def _open_epoch(self, pruner: Pruner | None) -> None:
        super()._open_epoch(pruner)
        if self._weights is not None and self.arm.held is not None:
            self._weights[self.rows] = self.arm.held

    def _close_epoch(self, pruner: Pruner | None) -> None:
        assert pruner is not None
        joint, record = pruner.stage is Stage.JOINT, pruner.record
        super()._close_epoch(pruner)
        if joint:
            assert self._weights is not None
            self.weights.append(self._weights.numpy().copy())
            self.readings.append(surprise(record.means()))
            if self.arm.verdict and len(self.weights) == VERDICT:
                pruner.mask.logits[self.rows] = -DEPTH


def make_set(root: Path, seed: int) -> tuple[Path, dict[str, str]]:
    """Build a digit set with a class made rare; return its data file and what each training image is."""
    root = build(root, size=SIZE, val=60, test=60, seed=seed)
    truth, kinds, rare = load_truth(root), dict[str, str](), 0
    for image in sorted((root / "images" / "train").iterdir()):
        text = (root / "labels" / "train" / f"{image.stem}.txt").read_text(encoding="utf-8")
        has = RARE in {int(line.split()[0]) for line in text.splitlines()}
        kind = truth.get(image.as_posix(), CLEAN)
        rare += has
        if has and rare > RARE_IMAGES:
            continue
        kinds[image.as_posix()] = WRONG if kind in FAULTS else RARELY if has and kind == CLEAN else kind
    listed = root / "rare.txt"
    listed.write_text("".join(f"{path}\n" for path in kinds), encoding="utf-8")
    names = "".join(f'  {i}: "{i}"\n' for i in range(10))
    data = root / "rare.yaml"
    data.write_text(f"path: {root}\ntrain: {listed}\nval: images/val\nnames:\n{names}", encoding="utf-8")
    return data, kinds


def warm_up(data: Path, folder: Path, model: str, seed: int) -> Path:
    """Train on everything for `WARM` epochs, once, and return the checkpoint."""
    checkpoint = folder / "weights" / "last.pt"
    if not (folder / "manifest.json").is_file():
        own = {"model": model, "data": str(data), "epochs": WARM, "save_dir": str(folder), "seed": seed}
        AdaPruneTrainer.configured(PruneConfig(share=0))(overrides={**_RECIPE, "warmup_epochs": 1.0, **own}).train()
    return checkpoint


def run_arm(name: str, data: Path, kinds: Mapping[str, str], checkpoint: Path, folder: Path, seed: int) -> Path:
    """Run an arm's joint stage, once, and return the .npz of what was watched."""
    out = folder / "watched.npz"
    if out.is_file():
        return out
    clean = [path for path, kind in kinds.items() if kind == CLEAN]
    chosen = frozenset(np.random.default_rng(seed).choice(clean, len(clean) // 10, replace=False).tolist())
    config = PruneConfig(share=_SHARE, warmup=0, joint=JOINT / (JOINT + 1), ramp=0.25, tolerance=1.0, floor=0.0)
    config = config.model_copy(update=dict(ARMS[name].settings))
    # Under a name of the class's own module, as `configured` makes them.
    kind = type("Watcher", (Watcher,), {"arm": ARMS[name], "chosen": chosen, "__module__": __name__})
    own = {"model": str(checkpoint), "data": str(data), "epochs": JOINT + 1, "save_dir": str(folder), "seed": seed}
    trainer = kind.configured(config)(overrides={**_RECIPE, "warmup_epochs": 0.0, **own})  # type: ignore[attr-defined]
    trainer.train()
    groups = np.array([JUDGED if path in chosen else kinds[path] for path in trainer.paths])
    pruner = trainer.pruner
    found: dict[str, Any] = {"groups": groups, "kept": pruner.kept, "logits": pruner.mask.logits}
    found |= {"weights": np.array(trainer.weights), "readings": np.array(trainer.readings)}
    with replace_file(out) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **found)
    return out


@dataclass(frozen=True)
class Figures:
    """What one arm gave on one seed, groups by name.

    Attributes:
        kept: share of a group's images that were kept, [0, 1].
        reading: mean over a group and the epochs after the verdict, nats.
        auroc: of the logit for planted faults, over all images that were not judged wrongly.
    """

    kept: Mapping[str, float]
    reading: Mapping[str, float]
    auroc: float


def figures(watched: Mapping[str, NDArray[Any]]) -> Figures:
    """Return the figures of a watched arm."""
    groups = watched["groups"]
    members = {name: groups == name for name in (JUDGED, CLEAN, RARELY, COPY, WRONG)}
    others = ~members[JUDGED]
    return Figures(
        {name: float(watched["kept"][rows].mean()) for name, rows in members.items()},
        {name: float(np.nanmean(watched["readings"][VERDICT:, rows])) for name, rows in members.items()},
        auroc(-watched["logits"][others], members[WRONG][others]),
    )


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Return both tables in Markdown, a row an arm, means over seeds."""
    names = (JUDGED, CLEAN, RARELY, COPY, WRONG)
    head = f"| arm | {' | '.join(names)} |"
    kept = [f"{head[:-1]}| AUROC |", "|---|" + "---|" * (len(names) + 1)]
    readings = [head, "|---|" + "---|" * len(names)]
    for arm, runs in found.items():
        shares = " | ".join(f"{statistics.fmean(run.kept[name] for run in runs):.0%}" for name in names)
        kept.append(f"| {arm} | {shares} | {statistics.fmean(run.auroc for run in runs):.3f} |")
        nats = " | ".join(f"{statistics.fmean(run.reading[name] for run in runs):.2f}" for name in names)
        readings.append(f"| {arm} | {nats} |")
    n = len(next(iter(found.values())))
    return "\n".join(
        [
            f"Kept in the end, and AUROC of the logit for planted faults without the wrongly judged; n = {n} seeds.",
            "",
            *kept,
            "",
            f"Mean reading in nats (surprise of one epoch's readings) in the epochs after {VERDICT}.",
            "",
            *readings,
        ]
    )


def draw(watched: Mapping[str, Mapping[str, NDArray[Any]]], out: Path) -> None:
    """Draw each arm's mean weight by group over the joint epochs, and under it the mean reading."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(watched), 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(2, len(watched), sharex=True, sharey="row", squeeze=False)
    for column, (arm, values) in enumerate(watched.items()):
        epochs = np.arange(1, len(values["weights"]) + 1)
        for name in (CLEAN, JUDGED, WRONG, COPY, RARELY):
            rows = values["groups"] == name
            for row, what in enumerate(("weights", "readings")):
                axes[row][column].plot(epochs, np.nanmean(values[what][:, rows], 1), label=name)
        axes[0][column].set_title(arm.replace(", ", ",\n"), fontsize=9)
        axes[1][column].set_xlabel("joint epoch")
    axes[0][0].set_ylabel("mean weight")
    axes[1][0].set_ylabel("mean reading, nats")
    axes[0][0].legend(fontsize=7)
    with replace_file(out) as temporary, rc_context({"svg.hashsalt": "dynamics"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run all arms on all seeds and write the page and its figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--model", default="yolo11n.yaml")
    parser.add_argument("--project", type=Path, default=Path("runs/dynamics"))
    parser.add_argument("--out", type=Path, help="write the page here; the figure goes beside it")
    args = parser.parse_args(argv)
    project = args.project.absolute()
    found: dict[str, list[Figures]] = {name: [] for name in ARMS}
    first: dict[str, dict[str, NDArray[Any]]] = {}
    for seed in args.seeds:
        data, kinds = make_set(project / "data" / f"seed{seed}", seed)
        checkpoint = warm_up(data, project / f"warm-s{seed}", args.model, seed)
        for name in ARMS:
            folder = project / f"{name.replace(',', '').replace(' ', '-')}-s{seed}"
            out = run_arm(name, data, kinds, checkpoint, folder, seed)
            with np.load(out) as arrays:
                watched = dict(arrays)
            found[name].append(figures(watched))
            first.setdefault(name, watched)
    text = table(found)
    print(text)
    if args.out:
        picture = args.out.with_suffix(".svg")
        draw(first, picture)
        _write(
            args.out, f"{text}\n\n![weights and readings over the joint stage, seed {args.seeds[0]}]({picture.name})"
        )


def _write(page: Path, made: str) -> None:
    """Put what was made anew before the page's own words, and leave those."""
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    words = old[old.index(WORDS) :] if WORDS in old else ""
    command = (
        "```bash\n# not run by the tests: 36 epochs an arm\n"
        "python -m yolo_adapruner.study.dynamics --seeds SEEDS --out docs/results/dynamics.md\n```"
    )
    head = f"# Does learning collapse on itself?\n\n{command}"
    page.write_text("\n\n".join(part for part in (head, made, words) if part).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
