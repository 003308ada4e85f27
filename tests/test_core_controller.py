"""PPC as a pure function: when the ramp goes on, when it goes back, what is held and what is remembered."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_adapruner.core.controller import RECENT, Schedule, State, noise, start, step

NAN, INF = math.nan, math.inf

# 5 strides of 0.2, so that targets are 1, 0.96, 0.92, 0.88, 0.84, 0.8
SCHEDULE = Schedule(kept=0.8, epochs=10, ramp=0.5, tolerance=0.1, match=0.02)


def at(progress: float, **changes) -> State:
    """The state on SCHEDULE's ramp, with 0.5 as metric to hold."""
    state = State(epoch=3, progress=progress, target=1 - 0.2 * progress, s=1.0, lam=1.0, reference=0.5)
    return replace(state, **changes)


def test_the_joint_stage_starts_with_everything_kept():
    state = start(SCHEDULE, metric=0.4)
    assert (state.epoch, state.progress, state.target, state.reference) == (0, 0.0, 1.0, 0.4)
    assert (state.s, state.lam, state.action) == (SCHEDULE.s_start, SCHEDULE.lambda_base, "start")
    assert (state.best_metric, state.best_epoch) == (-INF, -1)


STEPS = [
    # name, progress, kept, metric, action, progress after
    ("the metric holds: on", 0.4, 0.92, 0.5, "advance", 0.6),
    ("the metric rises: on", 0.4, 0.92, 0.7, "advance", 0.6),
    ("a fall within the tolerance: on", 0.4, 0.92, 0.46, "advance", 0.6),
    ("a fall by the tolerance to the digit: on", 0.4, 0.92, 0.5 * 0.9, "advance", 0.6),
    ("a fall beyond it: back", 0.4, 0.92, 0.4499, "back: metric", 0.2),
    ("no metric counts as a fall: back", 0.4, 0.92, NAN, "back: metric", 0.2),
    ("more dropped than asked for: back", 0.4, 0.89, 0.5, "back: kept", 0.2),
    ("more dropped, but within match: on", 0.4, 0.901, 0.5, "advance", 0.6),
    ("less dropped than asked for: on", 0.4, 1.0, 0.5, "advance", 0.6),
    ("both: the metric is named", 0.4, 0.5, 0.1, "back: metric", 0.2),
    ("no further back than the beginning", 0.0, 1.0, 0.1, "back: metric", 0.0),
    ("nor beyond it by less than a stride", 0.1, 0.98, 0.1, "back: metric", 0.0),
    ("the last stride ends at 1", 0.8, 0.84, 0.5, "advance", 1.0),
    ("a shorter last stride too", 0.9, 0.82, 0.5, "advance", 1.0),
    ("at the end: settle", 1.0, 0.8, 0.5, "settle", 1.0),
    ("a fall at the end: back", 1.0, 0.8, 0.1, "back: metric", 0.8),
    ("too much dropped at the end: back", 1.0, 0.7, 0.5, "back: kept", 0.8),
]


@pytest.mark.parametrize(
    ("progress", "kept", "metric", "action", "after"), [c[1:] for c in STEPS], ids=[c[0] for c in STEPS]
)
def test_a_step_goes_on_or_back(progress, kept, metric, action, after):
    state = step(at(progress), kept, metric, SCHEDULE)
    assert state.action == action
    assert state.progress == pytest.approx(after, abs=1e-12)
    assert state.target == pytest.approx(1 - 0.2 * after, abs=1e-12)
    assert state.epoch == 4


REFERENCES = [
    # name, metric, reference after (0.5 before)
    ("a better epoch raises it", 0.6, 0.6),
    ("an equal one leaves it", 0.5, 0.5),
    ("a worse one within the tolerance does not lower it", 0.46, 0.5),
    ("a fall does not lower it", 0.1, 0.5),
    ("no metric leaves it", NAN, 0.5),
]


@pytest.mark.parametrize(("metric", "after"), [c[1:] for c in REFERENCES], ids=[c[0] for c in REFERENCES])
def test_the_reference_is_never_lowered(metric, after):
    assert step(at(0.4), 0.92, metric, SCHEDULE).reference == after


def test_a_metric_that_nobody_measured_again_takes_no_second_step_back_and_is_never_the_best():
    fell = step(at(0.6), 0.88, 0.4, SCHEDULE)
    assert (fell.action, fell.progress) == ("back: metric", pytest.approx(0.4))
    for _ in range(3):
        fell = step(fell, 0.92, 0.4, SCHEDULE, fresh=False)
        assert (fell.action, fell.progress) == ("wait", pytest.approx(0.4))
    assert step(fell, 0.92, 0.5, SCHEDULE).action == "advance"
    # Without a fall the ramp goes on; the mask that matches first waits for a metric of its own.
    done = step(at(1.0), 0.8, 0.5, SCHEDULE, fresh=False)
    assert (done.action, done.best_epoch) == ("settle", -1)
    assert step(done, 0.8, 0.49, SCHEDULE).best_metric == 0.49


def test_a_fall_that_comes_in_small_steps_is_a_fall():
    state, metric = at(1.0), 0.5
    for _ in range(2):
        metric *= 0.95
        state = step(state, 0.8, metric, SCHEDULE)
    assert state.action == "settle"  # 0.451
    assert step(state, 0.8, metric * 0.95, SCHEDULE).action == "back: metric"


BEST = [
    # name, kept, metric, epoch remembered (best before: 0.3 of epoch 1; this is epoch 3)
    ("matches and is better", 0.8, 0.5, 3),
    ("matches within match, above", 0.819, 0.5, 3),
    ("matches within match, below", 0.781, 0.5, 3),
    ("too much kept", 0.83, 0.9, 1),
    ("too little kept", 0.77, 0.9, 1),
    ("matches and is worse", 0.8, 0.2, 1),
    ("matches and is equal: the later one rests on more", 0.8, 0.3, 3),
    ("matches without a metric", 0.8, NAN, 1),
]


@pytest.mark.parametrize(("kept", "metric", "epoch"), [c[1:] for c in BEST], ids=[c[0] for c in BEST])
@pytest.mark.parametrize("progress", [0.6, 1.0])  # what matches is the final share, wherever the ramp stands
def test_the_best_epoch_is_one_whose_mask_matches_the_final_share(kept, metric, epoch, progress):
    state = step(at(progress, best_metric=0.3, best_epoch=1), kept, metric, SCHEDULE)
    assert state.best_epoch == epoch
    assert state.best_metric == (metric if epoch == 3 else 0.3)


@pytest.mark.parametrize(("kept", "best"), [(1.0, 1), (0.996, 1), (0.995, 3), (0.99, 3), (0.98, 3)])
def test_a_mask_that_has_dropped_less_than_half_of_a_small_share_matches_nothing(kept, best):
    """At 0.01 to go all that is kept is within 0.02 of what shall be."""
    state = at(1.0, best_metric=0.3, best_epoch=1)
    assert step(state, kept, 0.5, replace(SCHEDULE, kept=0.99)).best_epoch == best


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 9, 10, 30, 49, 100, 333])
@pytest.mark.parametrize("ramp", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("kept", [0.05, 0.7, 0.9])
def test_the_ramp_ends_at_one_exactly_after_its_part_of_the_epochs(epochs, ramp, kept):
    schedule = Schedule(kept=kept, epochs=epochs, ramp=ramp)
    strides = max(1, round(ramp * epochs))
    state, seen = start(schedule, 0.5), []
    for _ in range(strides):
        seen.append(state.progress)
        state = step(state, state.target, 0.5, schedule)
    assert state.progress == 1.0
    assert state.target == pytest.approx(kept, abs=1e-12)
    assert state.s == pytest.approx(schedule.s_end)
    assert seen == pytest.approx([i / strides for i in range(strides)], abs=1e-9)
    assert step(state, state.target, 0.5, schedule).action == "settle"


LAMBDAS = [
    # name, kept, metric, lambda after: base 2, gain 10, distance to the *next* target
    ("on target: on to 0.88", 0.92, 0.5, 2 + 10 * 0.04),
    ("more dropped than asked for: back to 0.96", 0.88, 0.5, 2 + 10 * 0.08),
    ("far behind: on to 0.88", 1.0, 0.5, 2 + 10 * 0.12),
    ("a fall: back to 0.96", 0.92, 0.1, 2 + 10 * 0.04),
]


@pytest.mark.parametrize(("kept", "metric", "lam"), [c[1:] for c in LAMBDAS], ids=[c[0] for c in LAMBDAS])
def test_lambda_grows_with_the_distance_to_the_target(kept, metric, lam):
    schedule = replace(SCHEDULE, lambda_base=2.0, lambda_gain=10.0)
    state = step(at(0.4), kept, metric, schedule)
    assert state.lam == pytest.approx(lam, abs=1e-6)
    assert state.lam == pytest.approx(2 + 10 * abs(kept - state.target), abs=1e-12)


@pytest.mark.parametrize(("progress", "s"), [(0.0, 0.1), (0.5, (0.1 * 5) ** 0.5), (1.0, 5.0)])
def test_the_scale_grows_geometrically_along_the_ramp(progress, s):
    two = Schedule(kept=0.8, epochs=2, ramp=1.0)  # strides of a half
    states = [start(two, 0.5)]
    for _ in range(2):
        states.append(step(states[-1], 0.8, 0.5, replace(two, match=1.0)))
    assert {state.progress: state.s for state in states}[progress] == pytest.approx(s)


def test_a_warm_up_without_a_metric_does_not_hold_the_ramp_for_ever():
    state = start(SCHEDULE, metric=NAN)
    for _ in range(5):
        state = step(state, state.target, 0.3, SCHEDULE)
    assert state.progress == 1.0


NOISES = [
    # name, readings, standard deviation; 1.2105 = 1.4826 / sqrt(1.5)
    ("none", [], 0.0),
    ("four: two residuals are too few to tell", [0.1, 0.9, 0.1, 0.9], 0.0),
    ("a steady rise is no noise", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.0),
    ("nor a steady fall", [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0.0),
    ("up and down by 0.1 about a rise: residuals of 0.2", [0.0, 0.3, 0.2, 0.5, 0.4, 0.7], 0.2 * 1.2105),
    ("one collapse among nine does not excuse itself", [0.3] * 5 + [0.0] + [0.3] * 4, 0.0),
]


@pytest.mark.parametrize(("readings", "sd"), [c[1:] for c in NOISES], ids=[c[0] for c in NOISES])
def test_noise_is_what_does_not_lie_between_its_neighbours(readings, sd):
    assert noise(readings) == pytest.approx(sd, abs=1e-4)


@pytest.mark.parametrize("rise", [0.0, 0.03])
def test_noise_is_the_standard_deviation_of_a_reading_whatever_the_trend(rise):
    draws = np.random.default_rng(0).normal(0, 0.02, (400, RECENT)) + rise * np.arange(RECENT)
    assert np.mean([noise(row) for row in draws.tolist()]) == pytest.approx(0.02, rel=0.1)


ALTERNATING = tuple(0.5 + 0.04 * (-1) ** i for i in range(RECENT))  # residuals 0.08, sd 0.0968: two are 0.1937


@pytest.mark.parametrize(
    ("recent", "metric", "action"),
    [
        (ALTERNATING, 0.45 - 0.193, "advance"),
        (ALTERNATING, 0.45 - 0.194, "back: metric"),
        (ALTERNATING[:4], 0.449, "back: metric"),
        ((0.5,) * RECENT, 0.449, "back: metric"),
        (ALTERNATING, NAN, "back: metric"),
    ],
    ids=["within tolerance and noise", "beyond both", "too few readings", "no noise", "no metric"],
)
def test_a_fall_is_more_than_the_tolerance_and_twice_the_noise(recent, metric, action):
    assert step(at(0.4, recent=recent), 0.92, metric, SCHEDULE).action == action


def test_a_fall_is_no_noise_so_that_going_to_and_fro_over_it_excuses_none():
    state = at(1.0, recent=tuple(0.5 + 0.001 * (-1) ** i for i in range(RECENT)))
    quiet = noise(state.recent)
    for _ in range(10):
        state = step(state, 0.8, 0.2, SCHEDULE)
        assert state.action == "back: metric"
        state = step(state, 0.84, 0.501, SCHEDULE)
        assert state.action == "advance"
        assert noise(state.recent) <= quiet


def test_of_two_masks_that_only_chance_tells_apart_the_later_one_is_taken():
    matched = at(1.0, best_metric=0.5, best_epoch=1, recent=ALTERNATING)
    later = step(matched, 0.8, 0.5 - 0.193, SCHEDULE)
    assert (later.best_epoch, later.best_metric) == (3, 0.5)  # so that many small falls do not add up
    assert step(matched, 0.8, 0.5 - 0.194, SCHEDULE).best_epoch == 1
    assert step(replace(matched, recent=(0.5,) * RECENT), 0.8, 0.499, SCHEDULE).best_epoch == 1


def test_what_was_measured_is_remembered_the_warm_ups_readings_among_it():
    state = start(SCHEDULE, 0.4, [0.1, NAN, 0.3, 0.4])
    assert state.recent == (0.1, 0.3, 0.4)
    state = step(state, 1.0, 0.5, SCHEDULE)
    state = step(state, 1.0, 0.5, SCHEDULE, fresh=False)
    state = step(state, 1.0, NAN, SCHEDULE)
    assert state.recent == (0.1, 0.3, 0.4, 0.5)
    for i in range(20):
        state = step(state, 1.0, i, SCHEDULE)
    assert state.recent == tuple(range(20 - RECENT, 20))


def ramps(spread: float, fall: float = 0.0) -> float:
    """Part of 200 joint stages of ten epochs, behind ten of warm-up, whose ramp of five strides is at its end by then.

    The metric rises from 0.2 by 0.01 an epoch with normal noise of `spread`, and falls by `fall` where much is pruned.
    """
    draws, there = np.random.default_rng(1), 0
    for _ in range(200):
        warm = [0.2 + 0.01 * epoch + draws.normal(0, spread) for epoch in range(10)]
        state = start(SCHEDULE, warm[-1], warm)
        for epoch in range(10, 20):
            level = 0.2 + 0.01 * epoch - (fall if state.progress > 0.5 else 0)
            state = step(state, state.target, level + draws.normal(0, spread), SCHEDULE)
        there += state.progress == 1
    return there / 200


def test_the_ramp_gets_there_where_the_metric_jumps_by_chance_and_not_where_pruning_costs():
    assert ramps(0.0) == 1
    assert ramps(0.04) > 0.8  # as on 100 images of DeepPCB; by the tolerance alone a third got there
    assert ramps(0.0, fall=0.15) == 0
    assert ramps(0.01, fall=0.15) == 0


def test_a_step_is_pure():
    state = at(0.4)
    before = deepcopy(state)
    assert step(state, 0.92, 0.5, SCHEDULE) == step(state, 0.92, 0.5, SCHEDULE)
    assert state == before
    with pytest.raises(AttributeError):
        state.progress = 0.0  # type: ignore[misc]


shares = st.floats(0, 1)
metrics = st.floats(0, 1) | st.just(NAN)
schedules = st.builds(
    Schedule,
    kept=st.floats(0.05, 1),
    epochs=st.integers(1, 40),
    ramp=st.floats(0.01, 1),
    s_start=st.floats(0.01, 1),
    s_end=st.floats(1, 20),
    lambda_base=st.floats(0, 5),
    lambda_gain=st.floats(0, 100),
    tolerance=st.floats(0, 0.99),
    match=st.floats(0.001, 0.5),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    schedule=schedules,
    warm=metrics,
    earlier=st.lists(metrics, max_size=12),
    epochs=st.lists(st.tuples(shares, metrics), max_size=40),
)
def test_whatever_comes_the_controller_stays_in_bounds(schedule, warm, earlier, epochs):
    state = start(schedule, warm, [*earlier, warm])
    for number, (kept, metric) in enumerate(epochs, 1):
        before, state = state, step(state, kept, metric, schedule)
        assert state.epoch == number
        assert 0 <= state.progress <= 1
        assert schedule.kept - 1e-12 <= state.target <= 1
        assert schedule.s_start * (1 - 1e-9) <= state.s <= schedule.s_end * (1 + 1e-9)
        assert state.lam >= schedule.lambda_base
        assert state.reference >= before.reference
        assert state.best_metric >= before.best_metric
        if state.best_epoch != before.best_epoch:
            assert state.best_epoch == before.epoch
            assert abs(kept - schedule.kept) <= schedule.match
