"""What runs on one data set dropped: the share of each class's boxes, and how far the runs agree.

    python -m yolo_adapruner.study.dropped RUN [RUN ...]

Reads finished run folders and label files; knows no model.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from yolo_adapruner.data.export import Outcome, read
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.command import one_line


def class_shares(outcome: Outcome, classes: Sequence[Sequence[int]]) -> dict[int, float]:
    """Return, class by class, the share of its boxes that lie in dropped images, [0, 1].

    Args:
        outcome: a finished selection of N images.
        classes: the class of each box of each image, N lists.
    """
    total = Counter(c for image in classes for c in image)
    gone = Counter(c for image, kept in zip(classes, outcome.kept, strict=True) if not kept for c in image)
    return {c: gone[c] / total[c] for c in sorted(total)}


def agreement(a: Outcome, b: Outcome) -> float:
    """Return the share of what `a` dropped that `b` dropped as well, [0, 1]; chance is the share `b` dropped at all.

    Raises:
        ConfigError: the two runs had other images, or `a` dropped none.
    """
    if list(a.paths) != list(b.paths) or a.kept.all():
        raise ConfigError("Expected runs on the same images that dropped some, but the lists differ or nothing went.")
    return float((~a.kept & ~b.kept).sum() / (~a.kept).sum())


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables for the runs named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    print(tables(parser.parse_args(argv).runs))


def tables(runs: Sequence[Path]) -> str:
    """Return the class table, a row a run, and the agreement of each pair, in Markdown."""
    from yolo_adapruner.engine.splits import box_classes

    loaded = [read(run) for run in runs]
    names = {int(c): name for c, name in loaded[0][0]["data"]["rest"]["names"].items()}
    lines = [f"| run | images | {' | '.join(names.values())} |", "|" + "---|" * (len(names) + 2)]
    for run, (_, outcome) in zip(runs, loaded, strict=True):
        shares = class_shares(outcome, box_classes(outcome.paths))
        cells = [f"{shares[c]:.0%}" if c in shares else "–" for c in names]
        lines.append(f"| {run.name} | {(~outcome.kept).mean():.0%} | {' | '.join(cells)} |")
    lines += ["", "Share of the images and of each class's boxes that went."]
    if len(runs) > 1:
        pairs = [agreement(a, b) for (_, a), (_, b) in itertools.permutations(loaded, 2)]
        chance = statistics.fmean(float((~outcome.kept).mean()) for _, outcome in loaded)
        lines += [
            f"Of what one run dropped, another dropped {statistics.fmean(pairs):.0%} "
            f"({min(pairs):.0%} to {max(pairs):.0%}); chance: {chance:.0%}."
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
