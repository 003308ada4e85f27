"""PPC, the pruning performance controller: (state, kept share, validation metric) -> next state. Pure.

It decides *when* and *how hard*, between epochs; what a single sample deserves is the mask's business. It sees one
number from validation data an epoch, and nothing that a result is later reported on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

_GONE = 0.5
"""Part of the final share that a mask must have dropped to match it, however near `match` lets it come."""
NOISE = 2.0
"""Standard deviations of the validation metric's noise by which two readings may differ and count as equal."""
RECENT = 10
"""Readings from which the noise is estimated: it changes as a model learns."""
_FEWEST = 5
"""Readings below which nothing is said about it: three residuals."""


@dataclass(frozen=True)
class Schedule:
    """The controller's settings.

    Attributes:
        kept: share of the data set to keep in the end, (0, 1].
        epochs: length of the joint stage in epochs, >= 1.
        ramp: part of the joint stage in which the target goes from 1 to `kept`, (0, 1]; the rest lets the mask settle.
        s_start, s_end: scale s of the soft weight sigmoid(s * logit) at the ramp's beginning and end, > 0.
        lambda_base, lambda_gain: strength of the compression term, lambda = base + gain * |kept share - target|.
        tolerance: how far the validation metric may fall below its reference before a step is taken back, as a share of
            the reference, >= 0; the metric's own noise comes on top.
        match: |kept share - kept| up to which a mask counts as having reached the target, if it has dropped half of
            1 - kept at least.
    """

    kept: float
    epochs: int
    ramp: float = 0.6
    s_start: float = 0.1
    s_end: float = 5.0
    lambda_base: float = 1.0
    lambda_gain: float = 50.0
    tolerance: float = 0.05
    match: float = 0.02


@dataclass(frozen=True)
class State:
    """Where the controller stands after `epoch` joint epochs.

    Attributes:
        epoch: joint epochs closed so far.
        progress: how far along the ramp, [0, 1].
        target: kept share asked of the mask now.
        s, lam: scale and lambda in force.
        reference: the validation metric to hold, the best of the joint stage so far (the warm-up's last before that).
        best_metric, best_epoch: the best metric of the epochs whose mask matched the final share, and the last of those
            as good, up to the metric's noise; epoch -1: none did yet.
        action: what the last step did: "start", "advance", "back: metric", "back: kept", "wait", "settle".
        recent: the last `RECENT` readings of the validation metric that were no falls, the warm-up's too.
    """

    epoch: int
    progress: float
    target: float
    s: float
    lam: float
    reference: float
    best_metric: float = -math.inf
    best_epoch: int = -1
    action: str = "start"
    recent: tuple[float, ...] = ()


def start(schedule: Schedule, metric: float, recent: Sequence[float] = ()) -> State:
    """Return the state at the joint stage's first epoch.

    Args:
        schedule: the settings.
        metric: the validation metric the warm-up ended with.
        recent: what the warm-up measured, an epoch each; the last is `metric` itself.
    """
    # A NaN as reference would count every later epoch as a fall.
    reference = 0.0 if math.isnan(metric) else metric
    begun = State(0, 0.0, 1.0, schedule.s_start, schedule.lambda_base, reference, recent=measured(*recent))
    return _at(begun, 0.0, kept=1.0, schedule=schedule)


def measured(*readings: float) -> tuple[float, ...]:
    """The last `RECENT` of these readings that are numbers."""
    return tuple(reading for reading in readings if not math.isnan(reading))[-RECENT:]


def noise(readings: Sequence[float]) -> float:
    """Return the standard deviation of a single reading about its trend, >= 0; 0 of too few to tell.

    Each reading is held against the mean of the two beside it, which a steady rise leaves alone. Of independent noise
    such a residual has 1.5 times its variance. By the median, so that one collapse does not excuse itself.

    Args:
        readings: of the validation metric in the order they were taken, without NaN.
    """
    if len(readings) < _FEWEST:
        return 0.0
    beside = zip(readings[:-2], readings[1:-1], readings[2:], strict=True)
    residuals = [abs(now - (before + after) / 2) for before, now, after in beside]
    return 1.4826 * median(residuals) / math.sqrt(1.5)  # 1.4826: from a normal's median deviation to its standard one


def step(state: State, kept: float, metric: float, schedule: Schedule, *, fresh: bool = True) -> State:
    """Close a joint epoch and return the next state.

    The ramp goes a step on while the metric holds. It goes a step back when the metric has fallen below the reference
    by more than the tolerance and `NOISE` standard deviations of its noise, and when the mask has dropped more than was
    asked for. Where nobody has measured the metric since a fall, it stays: one reading is one step back. Nor can such
    an epoch be the best.

    Args:
        state: the state this epoch ran under.
        kept: the data set's kept share after this epoch's update of the mask.
        metric: the validation metric of this epoch, >= 0; higher is better. NaN counts as a fall.
        schedule: the settings.
        fresh: the metric was measured in this epoch; if not it is the last one that was.
    """
    stride = 1 / max(1, round(schedule.ramp * schedule.epochs))
    chance = NOISE * noise(state.recent)  # of the readings before this one, or it would excuse itself
    fell = not metric >= state.reference * (1 - schedule.tolerance) - chance
    if fell and not fresh:
        progress, action = state.progress, "wait"
    elif fell:
        progress, action = state.progress - stride, "back: metric"
    elif kept < state.target - schedule.match:
        progress, action = state.progress - stride, "back: kept"
    elif state.progress < 1:
        progress, action = state.progress + stride, "advance"
    else:
        progress, action = 1.0, "settle"
    closed = replace(
        state,
        epoch=state.epoch + 1,
        action=action,
        reference=state.reference if fell else max(state.reference, metric),
        # A fall may be what pruning costs, and going to and fro over it is no noise.
        recent=measured(*state.recent, metric) if fresh and not fell else state.recent,
    )
    # `match` may be all of a small share, and a mask that has dropped nothing yet is none for it.
    matches = abs(kept - schedule.kept) <= schedule.match and 1 - kept >= _GONE * (1 - schedule.kept)
    # Of two that only chance tells apart the later one rests on more.
    if fresh and matches and metric >= state.best_metric - chance:
        closed = replace(closed, best_metric=max(state.best_metric, metric), best_epoch=state.epoch)
    return _at(closed, progress, kept, schedule)


def _at(state: State, progress: float, kept: float, schedule: Schedule) -> State:
    """The state with target, s and lambda read off the ramp at `progress`."""
    # A ramp of n equal strides must end at 1 exactly, whatever 1/n rounds to.
    progress = min(max(progress, 0.0), 1.0)
    progress = 1.0 if progress > 1 - 1e-9 else progress
    target = 1 - (1 - schedule.kept) * progress
    return replace(
        state,
        progress=progress,
        target=target,
        s=schedule.s_start * (schedule.s_end / schedule.s_start) ** progress,
        lam=schedule.lambda_base + schedule.lambda_gain * abs(kept - target),
    )
