"""What choosing images cost and what it saves, and whether the choice is more than chance. Knows numbers only."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import ConfigError

RESAMPLES = 4000


@dataclass(frozen=True)
class Ledger:
    """Hours of one arm at one share, each the mean over seeds.

    Attributes:
        selecting: the run that chose the images. It leaves a detector too; who can use that one has paid nothing.
        saved: what each training on the kept images is shorter than one on all; negative where it is longer.
        break_even: after so many trainings on the kept images the choice has paid; None if it never does.
    """

    selecting: float
    saved: float
    break_even: int | None


def ledger(selecting: Sequence[float], full: Sequence[float], kept: Sequence[float]) -> Ledger:
    """Return the ledger from hours a run, a value a seed: choosing, training on all images, training on the kept."""
    cost = statistics.fmean(selecting)
    saved = statistics.fmean(full) - statistics.fmean(kept)
    return Ledger(cost, saved, math.ceil(cost / saved - 1e-9) if saved > 0 else None)


@dataclass(frozen=True)
class Overlap:
    """How far the dropped sets of S seeds agree, beside S sets of the same sizes drawn blindly.

    Attributes:
        agreement: of what one seed dropped, the share another dropped as well; mean over pairs, [0, 1].
        low, high: 95 % interval of it over images (percentile bootstrap).
        chance: its expectation for blind draws.
        chance_low, chance_high: the middle 95 % of blind draws.
    """

    agreement: float
    low: float
    high: float
    chance: float
    chance_low: float
    chance_high: float

    @property
    def learned(self) -> bool:
        """Whether the sets agree more than blind draws do: a mask that learned nothing shows here."""
        return self.low > self.chance_high


def overlap(kept: NDArray[np.bool_], *, seed: int = 0) -> Overlap:
    """Return how far the dropped sets agree.

    For a pair it is |both dropped| / mean of the two sizes; that of blind draws is hypergeometric. Pairs of blind draws
    are independent of each other two by two, which is what their spread needs.

    Args:
        kept: which of the N images each seed kept, (S, N).
        seed: of the resampling.

    Raises:
        ConfigError: fewer than two seeds, or one that dropped nothing.
    """
    dropped = ~np.asarray(kept, bool)
    seeds, n = dropped.shape
    if seeds < 2 or not dropped.any(1).all():
        raise ConfigError(
            f"Expected two seeds or more that each dropped an image, but got {seeds} that dropped "
            f"{dropped.sum(1).tolist()}: run more seeds or prune more."
        )
    rng = np.random.default_rng([seed, n])
    pairs = list(itertools.combinations(range(seeds), 2))
    # Images that the same seeds dropped are alike, so a draw of images is a draw of counts of such patterns.
    patterns, counts = np.unique(dropped, axis=1, return_counts=True)
    drawn = rng.multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.percentile(_agreement(patterns, drawn, pairs), (2.5, 97.5))
    sizes = dropped.sum(1)
    blind = [
        rng.hypergeometric(sizes[a], n - sizes[a], sizes[b], RESAMPLES) / ((sizes[a] + sizes[b]) / 2) for a, b in pairs
    ]
    chance_low, chance_high = np.percentile(np.mean(blind, axis=0), (2.5, 97.5))
    return Overlap(
        agreement=float(_agreement(patterns, counts[None], pairs)[0]),
        low=float(low),
        high=float(high),
        chance=float(np.mean([2 * sizes[a] * sizes[b] / n / (sizes[a] + sizes[b]) for a, b in pairs])),
        chance_low=float(chance_low),
        chance_high=float(chance_high),
    )


def _agreement(
    patterns: NDArray[np.bool_], counts: NDArray[np.integer], pairs: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """Mean over pairs of the share dropped by both, (B,), for patterns (S, P) that stand for `counts` (B, P) images."""
    shares = []
    for a, b in pairs:
        both = counts @ (patterns[a] & patterns[b])
        size = (counts @ patterns[a] + counts @ patterns[b]) / 2
        shares.append(np.where(size > 0, both / np.maximum(size, 1), 0.0))
    return np.asarray(np.mean(shares, axis=0))


def ledger_line(what: str, found: Ledger) -> str:
    """Return a ledger in words, one line."""
    cost = f"{what}: choosing took {_hours(found.selecting)}"
    if found.break_even is None:
        return f"{cost}; trainings on the kept images are no shorter, so it never pays in hours"
    return (
        f"{cost}, each training on the kept images saves {_hours(found.saved)}: it pays after "
        f"{found.break_even} training{'s' if found.break_even > 1 else ''}"
    )


def overlap_line(what: str, found: Overlap, drawn: float = 0.0) -> str:
    """Return an overlap in words, one line.

    Args:
        what: what was dropped.
        found: the overlap of all of it.
        drawn: the share of it that went by lot, [0, 1], each seed's own: with one, chance is no verdict on the rest.
    """
    end = f"{drawn:.0%} of it went by lot, each seed by its own" if drawn else _verdict(found)
    return f"{what}: of what one seed dropped another dropped {_beside_chance(found)}; {end}"


def judged_line(what: str, images: float, found: Overlap) -> str:
    """Return in words, one line, how far seeds agree on what they dropped for a reason, `images` a seed."""
    return (
        f"{what}: of the {images:.3g} images that one seed dropped for a reason another did so with "
        f"{_beside_chance(found)}; {_verdict(found)}"
    )


def _beside_chance(found: Overlap) -> str:
    return (
        f"{found.agreement:.0%} [{found.low:.0%}, {found.high:.0%}]; blind draws {found.chance:.0%} "
        f"[{found.chance_low:.0%}, {found.chance_high:.0%}]"
    )


def _verdict(found: Overlap) -> str:
    return "beyond chance" if found.learned else "no more than chance: this choice is not the data's"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if abs(hours) >= 1 else f"{60 * hours:.1f} min"
