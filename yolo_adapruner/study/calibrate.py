"""How often an interval holds the truth, by simulated studies of which the truth is known.

    python -m yolo_adapruner.study.calibrate --studies 1000 --out docs/results/calibration.md

Sets the interval that `compare` reports beside simpler ones. Trains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolo_adapruner.study import simulate
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.evaluate import paired_difference
from yolo_adapruner.study.interval import paired
from yolo_adapruner.study.simulate import Study, World
from yolo_adapruner.study.verdict import judge

OURS = "seeds and images"

WORLDS: Mapping[str, World] = {
    "same list, 3 seeds": World(),
    "same list, 2 seeds": World(seeds=2),
    "same list, 5 seeds": World(seeds=5),
    "same list, 40 images": World(images=40),
    "labels spoiled": World(spoiled=0.1),
    "weights perturbed": World(perturbed=0.1),
    "weights perturbed, images differ": World(perturbed=0.1, image_spread=1.5),
    "labels spoiled, images differ": World(spoiled=0.1, image_spread=1.5, seed_spread=0.4),
    "labels spoiled, images differ, 5 seeds": World(spoiled=0.1, image_spread=1.5, seeds=5),
    "labels spoiled, images differ, 10 seeds": World(spoiled=0.1, image_spread=1.5, seeds=10),
    "labels spoiled, images differ, 2 seeds": World(spoiled=0.1, image_spread=1.5, seeds=2),
    "labels spoiled, images alone differ": World(spoiled=0.1, image_spread=2.5, seed_spread=0.02),
    "labels spoiled, 400 images": World(spoiled=0.1, image_spread=1.5, images=400),
    "same list, seeds differ much": World(images=400, seed_spread=1.0),
    "labels spoiled, seeds differ much, 5 seeds": World(spoiled=0.1, images=400, seed_spread=1.0, seeds=5),
}
"""Where intervals are tried: known effects of both kinds, and how much of the spread is seeds' and how much images'."""


@dataclass(frozen=True)
class Calibration:
    """What came of the studies in one world.

    Attributes:
        truth: the true difference of mAP.
        holds: method → share of the studies whose interval holds the truth.
        width: method → mean width of its interval.
        differs: method → share of the studies whose interval leaves out 0.
        outcomes: verdict → share of the studies, by our interval.
    """

    truth: float
    holds: dict[str, float]
    width: dict[str, float]
    differs: dict[str, float]
    outcomes: dict[str, float]


def calibrate(
    world: World, studies: int, *, margin: float = 0.02, first: int = 0, trainings: int = 2000
) -> Calibration:
    """Run simulated studies of one world and count.

    Args:
        world: what they draw from; without any effect the truth is 0, exactly.
        studies: how many, >= 1.
        margin: of the verdicts, in [0, 1].
        first: number of the first study; other numbers are other studies.
        trainings: over how many the truth is a mean, >= 1.
    """
    same = World(images=world.images, seeds=world.seeds, seed_spread=world.seed_spread) == world
    true = 0.0 if same else simulate.truth(world, trainings=trainings)
    holds, differs, outcomes = Counter[str](), Counter[str](), Counter[str]()
    width = dict.fromkeys(METHODS, 0.0)
    for number in range(first, first + studies):
        drawn = simulate.study(world, number)
        for name, method in METHODS.items():
            low, high = method(drawn, number)
            holds[name] += low <= true <= high
            differs[name] += low > 0 or high < 0
            width[name] += (high - low) / studies
        outcomes[judge(paired(drawn.a, drawn.b, drawn.replicates, images=world.images), margin).outcome] += 1
    return Calibration(
        true,
        {name: holds[name] / studies for name in METHODS},
        width,
        {name: differs[name] / studies for name in METHODS},
        {name: count / studies for name, count in sorted(outcomes.items())},
    )


def _ours(drawn: Study, number: int) -> tuple[float, float]:
    found = paired(drawn.a, drawn.b, drawn.replicates, images=drawn.images)
    return found.low, found.high


def _seeds_alone(drawn: Study, number: int) -> tuple[float, float]:
    _, low, high = paired_difference(drawn.a, drawn.b)
    return low, high


def _images_alone(drawn: Study, number: int) -> tuple[float, float]:
    low, high = np.percentile(drawn.replicates.mean(1), (2.5, 97.5))
    return float(low), float(high)


def _percentile(drawn: Study, number: int) -> tuple[float, float]:
    """Seeds and images drawn together, and the middle 95 % of what comes of it."""
    resamples, seeds = drawn.replicates.shape
    chosen = np.random.default_rng([number, 1]).integers(0, seeds, (resamples, seeds))
    low, high = np.percentile(np.take_along_axis(drawn.replicates, chosen, 1).mean(1), (2.5, 97.5))
    return float(low), float(high)


METHODS: Mapping[str, Callable[[Study, int], tuple[float, float]]] = {
    OURS: _ours,
    "t over seeds": _seeds_alone,
    "bootstrap over images": _images_alone,
    "percentile bootstrap over both": _percentile,
}


def table(results: Mapping[str, Calibration], studies: int) -> str:
    """Return the table in Markdown."""
    lines = [
        f"| world | images, seeds | truth | {' | '.join(METHODS)} | declared different | verdicts |",
        "|" + "---|" * (len(METHODS) + 5),
    ]
    for name, found in results.items():
        world = WORLDS[name]
        cells = [f"{found.holds[m]:.1%} (± {50 * found.width[m]:.1f})" for m in METHODS]
        outcomes = ", ".join(f"{outcome} {share:.0%}" for outcome, share in found.outcomes.items())
        lines.append(
            f"| {name} | {world.images}, {world.seeds} | {100 * found.truth:+.1f} | {' | '.join(cells)} "
            f"| {found.differs[OURS]:.1%} | {outcomes} |"
        )
    error = 1.96 * (0.05 * 0.95 / studies) ** 0.5
    lines += [
        "",
        f"Share of {studies} simulated studies whose 95 % interval holds the true difference (mean half width, points "
        f"of mAP). Counted over {studies} studies a share of 95 % comes out as 95 ± {100 * error:.1f} %. Declared "
        "different: the interval over seeds and images leaves out 0. Verdicts against a margin of 2 points.",
    ]
    return "\n".join(lines)


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run the studies of each world and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, metavar="N", help="studies a world (default 1000)")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    args = parser.parse_args(argv)
    results = {}
    for name in args.worlds:
        results[name] = calibrate(WORLDS[name], args.studies)
        print(f"{name}: {results[name].holds}", flush=True)
    text = table(results, args.studies)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
