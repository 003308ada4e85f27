"""Any loop, outside vision: full against random against pruned on numbers and text with planted wrong labels.

    python -m yolo_adapruner.study.loops --out docs/results/loops

Each seed splits each set anew, plants wrong labels in train and validation, prunes in a run of its own at each share,
and trains every arm from new weights for equally many updates. Results go to OUT.json as they come, so that a study
that was interrupted goes on, and its tables to OUT.md. Knows how to train by `loopruns` and nothing of the mask.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.selection import random_kept
from yolo_adapruner.study import loopruns, loopsets
from yolo_adapruner.study.command import one_line, write
from yolo_adapruner.study.interval import Difference, paired
from yolo_adapruner.study.loopruns import Recipe
from yolo_adapruner.study.planted import auroc

RECIPES = {
    "cancer": Recipe(epochs=60, batch=32, width=32, lr=1e-3),
    "covertype-like": Recipe(epochs=24, batch=64, width=64, lr=1e-3),
    "text": Recipe(epochs=12, batch=64, width=64, lr=1e-3),
}
"""How each set is trained; chosen on seeds from 100 on, which no table reports."""

NOISE, SHARES, CLEAN_SHARES, EASY, EASY_SHARE = 0.2, (0.1, 0.2, 0.3), (0.1, 0.3), 0.75, 0.3
"""Planted share, shares pruned with and without it, and the high `tau` by which the easy go, at one share."""

Arms = dict[str, dict[str, float]]


def cell(name: str, noise: float, seed: int) -> Arms:
    """Return one seed's arms: `full`, `oracle` (the planted out), and by share `random`, `pruned`, `one run`, `easy`.

    Each has the accuracies `val` and `test` of its best validated epoch, [0, 1]; `pruned` and `easy`, which are trained
    anew on what a run kept, also `auroc` of the score for a planted label and the planted share among the dropped,
    `wrong`. `one run` is the network that the pruning run itself left.
    """
    data, recipe = loopsets.load(name, noise=noise, seed=seed), RECIPES[name]
    everything = np.arange(len(data.wrong))

    def anew(rows: Any) -> dict[str, float]:
        return vars(loopruns.train(data, recipe, rows, seed=seed)).copy()

    def pruned(share: float, config: PruneConfig | None = None) -> tuple[dict[str, float], dict[str, float]]:
        pruner, itself = loopruns.prune(data, recipe, share, seed=seed, config=config)
        assert pruner.kept is not None
        found = {"auroc": auroc(-pruner.scores, data.wrong), "wrong": float(data.wrong[~pruner.kept].mean())}
        return {**anew(pruner.active), **found}, vars(itself).copy()

    arms = {"full": anew(everything)}
    if noise:
        arms["oracle"] = anew(everything[~data.wrong])
    for share in SHARES if noise else CLEAN_SHARES:
        arms[f"random {share:g}"] = anew(everything[random_kept(len(everything), share, seed=seed)])
        arms[f"pruned {share:g}"], arms[f"one run {share:g}"] = pruned(share)
    arms[f"easy {EASY_SHARE:g}"], _ = pruned(EASY_SHARE, PruneConfig(tau=EASY))
    return arms


def study(names: Sequence[str], seeds: Sequence[int], path: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Compute the cells that `path` lacks, writing it after each, and return what is in it."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": []}
    done = {(c["set"], c["noise"], c["seed"]) for c in found["cells"]}
    packages = ("numpy", "torch", "scikit-learn")
    found["versions"] = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    found["text"] = loopsets.versions()
    found["recipes"] = {name: vars(RECIPES[name]) for name in RECIPES}
    for seed, name, noise in itertools.product(seeds, names, (NOISE, 0.0)):
        if (name, noise, seed) in done:
            continue
        start = time.perf_counter()
        arms = cell(name, noise, seed)
        seconds = round(time.perf_counter() - start, 1)
        found["cells"].append({"set": name, "noise": noise, "seed": seed, "seconds": seconds, "arms": arms})
        write(path, json.dumps(_without_nan(found), indent=1))
        say(f"{name}, {noise:.0%} planted, seed {seed}: {seconds:.0f} s")
    return found


def _without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Return one set's table at one noise in Markdown: a row an arm, paired differences with 95 % intervals."""
    arms: list[Arms] = [c["arms"] for c in cells]
    lines = [
        "| arm | pruned | test accuracy | against full | against random | planted among the dropped | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(arms[0], key=_place):
        name, share = arm.rsplit(" ", 1) if arm[-1].isdigit() else (arm, "")
        random = f"random {share}"
        cells_of_row = [
            name,
            f"{float(share):.0%}" if share else "–",
            f"{100 * _mean(arms, arm, 'test'):.1f}",
            "" if name == "full" else _difference(arms, arm, "full"),
            _difference(arms, arm, random) if share and name != "random" else "",
            f"{_mean(arms, arm, 'wrong'):.0%}" if arms[0][arm].get("auroc") is not None else "",
            f"{_mean(arms, arm, 'auroc'):.3f}" if arms[0][arm].get("auroc") is not None else "",
        ]
        lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines)


def _place(arm: str) -> tuple[float, int]:
    name, share = arm.rsplit(" ", 1) if arm[-1].isdigit() else (arm, "0")
    return float(share), ("full", "oracle", "random", "pruned", "one run", "easy").index(name)


def _mean(arms: Sequence[Arms], arm: str, figure: str) -> float:
    return statistics.fmean(one[arm][figure] for one in arms)


def _difference(arms: Sequence[Arms], arm: str, other: str) -> str:
    found: Difference = paired([one[arm]["test"] for one in arms], [one[other]["test"] for one in arms])
    interval = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})" if found.known else ""
    return f"{100 * found.mean:+.1f}{interval}"


def report(found: dict[str, Any]) -> str:
    """Return all tables of a study in Markdown, with what they were made by."""
    parts = []
    for name in RECIPES:
        for noise in (NOISE, 0.0):
            cells = [c for c in found["cells"] if (c["set"], c["noise"]) == (name, noise)]
            if cells:
                planted = f"{noise:.0%} of the labels planted wrong" if noise else "no label planted wrong"
                parts += [f"## {name}, {planted}, {len(cells)} seeds", table(cells)]
    said = [f"{k} {v}" for k, v in found["versions"].items()]
    text = ", ".join(f"{k} {v}" for k, v in found["text"].items())
    seconds = sum(c["seconds"] for c in found["cells"])
    parts.append(
        f"Points of accuracy on a clean test part; 95 % intervals of the paired differences, over seeds that also draw "
        f"the split. {', '.join(said)}; the text is of {text}; one thread, {seconds / 60:.0f} minutes in all."
    )
    return "\n\n".join(parts)


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run the study and write its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED")
    parser.add_argument("--out", type=Path, required=True, help="path of the results without .json and .md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tables = report(study(args.sets, args.seeds, args.out.with_suffix(".json"), lambda line: print(line, flush=True)))
    print(tables)
    write(args.out.with_suffix(".md"), tables)


if __name__ == "__main__":
    sys.exit(main())
