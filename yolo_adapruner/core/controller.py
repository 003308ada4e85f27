"""PPC, the pruning performance controller: (state, kept share, validation metric) -> next state. Pure.

It decides *when* and *how hard*, between epochs; what a single sample deserves is the mask's business. It sees one
number from validation data an epoch, and nothing that a result is later reported on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_GONE = 0.5
"""Part of the final share that a mask must have dropped to match it, however near `match` lets it come."""


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
            the reference, >= 0.
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
        best_metric, best_epoch: of the epochs whose mask matched the final share, the last of several as good; epoch
            -1: none did yet.
        action: what the last step did: "start", "advance", "back: metric", "back: kept", "wait", "settle".
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


def start(schedule: Schedule, metric: float) -> State:
    """Return the state at the joint stage's first epoch; `metric` is the validation metric the warm-up ended with."""
    # A NaN as reference would count every later epoch as a fall.
    reference = 0.0 if math.isnan(metric) else metric
    return _at(State(0, 0.0, 1.0, schedule.s_start, schedule.lambda_base, reference), 0.0, kept=1.0, schedule=schedule)


def step(state: State, kept: float, metric: float, schedule: Schedule, *, fresh: bool = True) -> State:
    """Close a joint epoch and return the next state.

    The ramp goes a step on while the metric holds. It goes a step back when the metric has fallen by more than the
    tolerance below the reference, and when the mask has dropped more than was asked for. Where nobody has measured the
    metric since a fall, it stays: one reading is one step back. Nor can such an epoch be the best.

    Args:
        state: the state this epoch ran under.
        kept: the data set's kept share after this epoch's update of the mask.
        metric: the validation metric of this epoch, >= 0; higher is better. NaN counts as a fall.
        schedule: the settings.
        fresh: the metric was measured in this epoch; if not it is the last one that was.
    """
    stride = 1 / max(1, round(schedule.ramp * schedule.epochs))
    fell = not metric >= state.reference * (1 - schedule.tolerance)
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
        state, epoch=state.epoch + 1, action=action, reference=state.reference if fell else max(state.reference, metric)
    )
    # `match` may be all of a small share, and a mask that has dropped nothing yet is none for it.
    matches = abs(kept - schedule.kept) <= schedule.match and 1 - kept >= _GONE * (1 - schedule.kept)
    if fresh and matches and metric >= state.best_metric:
        closed = replace(closed, best_metric=metric, best_epoch=state.epoch)
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
