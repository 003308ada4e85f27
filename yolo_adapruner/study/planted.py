"""How much of what a run drops was planted: the main command on sets like the embedded one, over seeds.

    python -m yolo_adapruner.study.planted --seeds 1 2 3 --out docs/results/digits.md

Each seed draws a set of its own (other scans in train, other scenes, other faults) and trains with it. The embedded set
is seed 0; settings were chosen on it, so it is left out. A seed whose run folder is finished is not run again.

Knows the truth file of the embedded set and finished run folders; trains nothing itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.signal import channel_surprise
from yolo_adapruner.data.digits import FAULTS, build, load_groups, load_truth
from yolo_adapruner.data.export import Outcome, read
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.truth import members


@dataclass(frozen=True)
class Planted:
    """What was planted and what of it a run dropped.

    Attributes:
        dropped, total: kind -> images; the kinds are those of the truth file.
        auroc: of the logit for "this image's labels are wrong", over the images that have one, [0, 1]; NaN where all or
            none are.
        pairs: planted groups of near-duplicates, and those of which exactly one image is kept. Either of a pair may
            go, and the original counts as clean by its kind.
    """

    dropped: dict[str, int]
    total: dict[str, int]
    auroc: float
    pairs: tuple[int, int] = (0, 0)

    @property
    def noise_share(self) -> float:
        """Share of the dropped images whose labels were planted wrong, [0, 1]; NaN when nothing was dropped."""
        out = sum(self.dropped.values())
        return sum(self.dropped.get(kind, 0) for kind in FAULTS) / out if out else float("nan")


def planted(outcome: Outcome, root: str | Path) -> Planted | None:
    """Return what a selection did to the planted images of the set under `root`, or None where no truth lies there."""
    truth = load_truth(root)
    if not truth:
        return None
    kinds = np.array([truth.get(Path(path).as_posix(), "clean") for path in outcome.paths])
    groups = load_groups(root)
    wrong = np.isin(kinds, FAULTS)
    logits = outcome.columns["logit"]
    judged = np.isfinite(logits)
    of = np.array([groups.get(Path(path).as_posix(), "") for path in outcome.paths])
    pairs = members(of)
    return Planted(
        dropped=dict(Counter(kinds[~outcome.kept].tolist())),
        total=dict(Counter(kinds.tolist())),
        auroc=auroc(-logits[judged], wrong[judged]),
        pairs=(len(pairs), sum(int(outcome.kept[rows].sum()) == 1 for rows in pairs)),
    )


def auroc(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half; NaN where a side is empty."""
    from scipy.stats import rankdata

    n, p = len(positive), int(positive.sum())
    if p in (0, n) or not np.isfinite(score).all():
        return float("nan")
    return float((rankdata(score)[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run the main command for each seed and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="yolov3-tiny")
    parser.add_argument("--prune", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--epochs", type=int, help="epoch budget, in place of the run config's")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    args = parser.parse_args(argv)

    from yolo_adapruner.api import prune, resolve

    project = Path(resolve(args.config).project).absolute()
    rows, selections = [], []
    for seed in args.seeds:
        folder = project / f"planted-s{seed}"
        root = build(project / "planted-data" / f"seed{seed}", seed=seed)
        if not (folder / "manifest.json").is_file():
            folder = prune(
                args.config, data=root / "data.yaml", prune=args.prune, seed=seed, name=folder.name, epochs=args.epochs
            ).folder
        manifest, outcome = read(folder)
        found = planted(outcome, root)
        assert found is not None, "a set just built has a truth file"
        rows.append((seed, found, manifest))
        selections.append((outcome, load_truth(root)))
    versions = ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())
    text = table(rows, f"{args.config}, prune {args.prune:g}; {manifest['hardware']}; {versions}.")
    text += "\n\n" + reading_table(selections)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def table(rows: Sequence[tuple[int, Planted, dict[str, Any]]], facts: str) -> str:
    """Return the table in Markdown: a row a seed (seed, what was found, the run's manifest), and the mean."""
    kinds = [k for k in (*FAULTS, "duplicate", "empty", "clean") if any(k in row[1].total for row in rows)]
    lines = [
        f"| seed | noise among the dropped | AUROC | {' | '.join(kinds)} | pairs, one kept | validation mAP50-95 "
        "| minutes |",
        "|" + "---|" * (len(kinds) + 6),
    ]
    for seed, found, manifest in rows:
        cells = [f"{found.dropped.get(k, 0)} of {found.total.get(k, 0)}" for k in kinds]
        lines.append(
            f"| {seed} | {found.noise_share:.1%} | {found.auroc:.3f} | {' | '.join(cells)} "
            f"| {found.pairs[1]} of {found.pairs[0]} "
            f"| {100 * manifest['best_validation']['metrics/mAP50-95(B)']:.1f} | {manifest['seconds'] / 60:.1f} |"
        )
    shares = [row[1].noise_share for row in rows]
    spread = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    mean_auroc = statistics.fmean(row[1].auroc for row in rows)
    lines += [
        f"| mean | {100 * statistics.fmean(shares):.1f}{spread} % | {mean_auroc:.3f} |" + " |" * (len(kinds) + 3),
        "",
        f"Dropped of planted, by kind. {facts}",
    ]
    return "\n".join(lines)


def reading_table(selections: Sequence[tuple[Outcome, dict[str, str]]]) -> str:
    """Return the AUROC of each reading for each kind of fault against the right labels, mean over runs, in Markdown.

    Args:
        selections: a finished run's outcome and its set's truth, one a run.
    """
    from yolo_adapruner.engine.channels import CHANNELS

    figures: dict[str, dict[str, list[float]]] = {}
    for outcome, truth in selections:
        kinds = np.array([truth.get(Path(path).as_posix(), "clean") for path in outcome.paths])
        nats = channel_surprise(np.column_stack([outcome.columns[name] for name in CHANNELS]))
        readings = {
            **{f"{name} alone": nats[:, i] for i, name in enumerate(CHANNELS)},
            "largest channel": np.nanmax(nats, 1),
            "signal (norm over channels)": outcome.columns["signal"],
            "learned logit": -outcome.columns["logit"],
        }
        for name, values in readings.items():
            seen = np.nan_to_num(values, nan=float(np.nanmedian(values)))
            for fault in FAULTS:
                among = (kinds == fault) | ~np.isin(kinds, FAULTS)
                figures.setdefault(name, {}).setdefault(fault, []).append(auroc(seen[among], kinds[among] == fault))
            wrong = np.isin(kinds, FAULTS)
            figures[name].setdefault("any fault", []).append(auroc(seen, wrong))
            top = np.argsort(-seen, kind="stable")[: int(wrong.sum())]
            figures[name].setdefault("hits", []).append(float(wrong[top].mean()))
    kinds_shown = (*FAULTS, "any fault", "hits")
    lines = [f"| reading | {' | '.join(kinds_shown)} |", "|" + "---|" * (len(kinds_shown) + 1)]
    lines += [
        f"| {name} | {' | '.join(f'{statistics.fmean(by_kind[kind]):.3f}' for kind in kinds_shown)} |"
        for name, by_kind in figures.items()
    ]
    lines += [
        "",
        "AUROC of the mean reading over the joint epochs for a kind of fault against rightly labelled images; hits: "
        "share of the planted among as many images with the highest reading.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
