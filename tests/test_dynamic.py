"""The samplers that choose anew in each epoch, against their published rules worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_adapruner.core.schedule import Visits
from yolo_adapruner.study import drawn as plans
from yolo_adapruner.study.drawn import AFSSPlan, InfoBatchPlan
from yolo_adapruner.study.dynamic import AFSS, Draw, infobatch, prune_rate, remember, sufficiency

# InfoBatch

LOSSES = np.array([0.1, 0.2, 0.3, 3.0, 4.0, 4.4])  # mean 2: three below it, three above


def test_all_above_the_mean_stay_with_weight_1_and_those_below_weigh_double_if_they_stay():
    for epoch in range(20):
        draw = infobatch(LOSSES, epoch, 100)
        assert draw.ids[-3:].tolist() == [3, 4, 5]
        assert draw.weights.tolist() == [2.0] * (len(draw.ids) - 3) + [1.0] * 3


def test_a_loss_at_the_mean_is_not_below_it():
    draw = infobatch(np.array([1.0, 2.0, 3.0]), 0, 10, prune=0.999)
    assert draw.ids.tolist() == [1, 2]


@pytest.mark.parametrize("prune", [0.3, 0.5, 0.8])
def test_the_expected_gradient_is_that_of_all_images(prune):
    # any gradient will do, so: each image's own unit vector; n = 4000 draws, 5 standard errors
    total = np.zeros(6)
    for epoch in range(4000):
        draw = infobatch(LOSSES, epoch, 5000, prune=prune)
        total[draw.ids] += draw.weights
    error = math.sqrt(prune / (1 - prune) / 4000)
    assert total / 4000 == pytest.approx(np.ones(6), abs=5 * error)


def test_nothing_is_left_out_in_the_last_eighth():
    sizes = [len(infobatch(LOSSES, epoch, 16, prune=0.99).ids) for epoch in range(16)]
    assert sizes[14:] == [6, 6]
    assert max(sizes[:14]) < 6


def test_an_image_that_was_never_seen_stays_and_does_not_move_the_mean():
    losses = np.array([math.nan, 1.0, 3.0, math.nan])
    draw = infobatch(losses, 0, 10, prune=0.999)
    assert draw.ids.tolist() == [0, 2, 3]
    assert draw.weights.tolist() == [1.0, 1.0, 1.0]
    assert infobatch(np.full(4, math.nan), 0, 10).ids.tolist() == [0, 1, 2, 3]


def test_a_draw_is_a_function_of_seed_and_epoch():
    def ids(**k: int) -> list[int]:
        losses = np.arange(100.0)
        return infobatch(losses, k.get("epoch", 3), 100, seed=k.get("seed", 0)).ids.tolist()

    assert ids() == ids()
    assert ids() != ids(seed=1)
    assert ids() != ids(epoch=4)


def test_a_pruned_image_keeps_its_loss():
    draw = Draw(np.array([0, 2]), np.array([2.0, 1.0]))
    assert remember(np.array([5.0, 6.0, 7.0]), draw, np.array([1.0, 2.0])).tolist() == [1.0, 6.0, 2.0]


RATES = [
    # epochs, share, anneal -> the rate: three of six lie below the mean
    (200, 0.3, 0.3 * 200 / 174 / 0.5),  # epochs 1 to 174 save
    (200, 0.1, 0.1 * 200 / 174 / 0.5),
    (16, 0.2, 0.2 * 16 / 13 / 0.5),
    (200, 0.5, 0.9),  # 1.15 would be needed
    (1, 0.3, 0.0),
]


@pytest.mark.parametrize(("epochs", "share", "rate"), RATES)
def test_the_rate_that_saves_a_share_by_hand(epochs, share, rate):
    assert prune_rate(LOSSES, epochs, share) == pytest.approx(rate)


def test_there_is_no_rate_before_there_are_losses_nor_where_all_are_equal():
    assert prune_rate(np.full(6, math.nan), 100, 0.3) == 0
    assert prune_rate(np.ones(6), 100, 0.3) == 0


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_training_visits_as_many_images_as_its_share_leaves(share):
    epochs, n, rng = 60, 500, np.random.default_rng(0)
    plan, visits = InfoBatchPlan(epochs, share, seed=3), Visits(n, 1)
    drawn = 0
    for epoch in range(epochs):
        draw = plan(epoch, visits)
        ids = draw.ids
        visits.add_losses(ids, rng.exponential(size=(len(ids), 1)))
        visits.close_epoch(epoch, draw)
        drawn += len(ids)
    spread = math.sqrt(epochs * n * 0.25)  # of as many coins
    assert abs(drawn - (1 - share) * epochs * n) < 4 * spread


# AFSS


def state(sufficient: np.ndarray, last_used: np.ndarray | None = None) -> AFSS:
    start = AFSS.start(len(sufficient)).measured(sufficient)
    return start if last_used is None else AFSS(start.sufficiency, np.asarray(last_used))


def test_before_the_first_measurement_everything_is_trained_on():
    assert AFSS.start(50).draw(0).ids.tolist() == list(range(50))


def test_levels_by_hand():
    # 100 hard, 100 moderate (both borders belong to it), 100 easy; all used one epoch ago: all of the hard, 40 % of the
    # moderate, 2 % of the easy
    sufficient = np.repeat([0.549, 0.55, 0.85, 0.851], [100, 50, 50, 100])
    draw = state(sufficient, np.full(300, 9)).draw(10)
    assert (draw.ids < 100).sum() == 100
    assert ((draw.ids >= 100) & (draw.ids < 200)).sum() == 40
    assert (draw.ids >= 200).sum() == 2
    assert set(draw.weights) == {1.0}


def test_a_moderate_image_waits_no_longer_than_three_epochs():
    now, seen = state(np.full(40, 0.7), np.full(40, -1)), np.zeros((12, 40), bool)
    for epoch in range(12):
        draw = now.draw(epoch)
        seen[epoch, draw.ids] = True
        now = now.after(draw, epoch)
    windows = np.stack([seen[i : i + 3].any(0) for i in range(10)])
    assert windows.all()
    assert seen.sum(1).max() < 40


def test_all_moderate_images_that_are_due_come_even_if_they_are_more_than_the_share():
    draw = state(np.full(10, 0.7), [0] * 8 + [4] * 2).draw(5)
    assert set(range(8)) <= set(draw.ids)
    assert len(draw.ids) == 8


def test_half_of_the_easy_at_most_are_those_longest_out_of_use():
    # 200 easy: 4 an epoch. Three have been out for 11 epochs and more, the longest two of them come, two others with
    last = np.full(200, 20)
    last[[7, 8, 9]] = [5, 4, 9]
    draws = [state(np.full(200, 0.9), last).draw(21, seed=seed).ids for seed in range(20)]
    assert all(len(ids) == 4 and {7, 8} <= set(ids) for ids in draws)
    assert len({tuple(ids) for ids in draws}) > 15


def test_an_easy_image_out_for_ten_epochs_is_not_yet_due():
    last = np.full(200, 20)
    last[7] = 11
    drawn = [7 in state(np.full(200, 0.9), last).draw(21, seed=seed).ids for seed in range(40)]
    assert sum(drawn) < 10
    last[7] = 10
    assert all(7 in state(np.full(200, 0.9), last).draw(21, seed=seed).ids for seed in range(40))


def test_sufficiency_is_measured_every_fifth_epoch():
    assert [epoch for epoch in range(17) if AFSS.start(1).due(epoch)] == [5, 10, 15]


SUFFICIENCY = [
    # hits, detections, boxes: min(precision, recall)
    (3, 4, 3, 0.75),
    (3, 3, 4, 0.75),
    (0, 0, 3, 0.0),
    (0, 5, 3, 0.0),
    (0, 0, 0, 1.0),  # nothing there, nothing found
    (0, 1, 0, 0.0),
    (4, 4, 4, 1.0),
]


@pytest.mark.parametrize(("hits", "detections", "boxes", "expected"), SUFFICIENCY)
def test_sufficiency_by_hand(hits, detections, boxes, expected):
    assert sufficiency(*(np.array([v]) for v in (hits, detections, boxes))).tolist() == [expected]


def afss_plan(monkeypatch, measured: list) -> AFSSPlan:
    """A plan over 40 images whose passes give what is listed, one after the other."""
    monkeypatch.setattr(plans, "measure", lambda trainer: measured.pop(0))
    return AFSSPlan(SimpleNamespace(paths=["x"] * 40, args=SimpleNamespace(seed=1)))


def test_the_plan_measures_when_it_is_due_and_draws_by_it(monkeypatch):
    measured = [np.repeat([0.2, 0.9], 20), np.full(40, 0.9), np.full(40, 0.2)]
    plan, visits = afss_plan(monkeypatch, measured), Visits(40, 1)
    sizes = []
    for epoch in range(16):
        draw = plan(epoch, visits)
        visits.close_epoch(epoch, draw)
        sizes.append(len(draw.ids))
    assert sizes == [40] * 5 + [20] * 5 + [1] * 5 + [40]  # 2 % of 20 are none, of 40 one
    assert measured == []


def test_an_epoch_of_no_images_is_one_of_the_least_sufficient(monkeypatch):
    sufficient = np.where(np.arange(40) == 7, 0.86, 0.9)
    plan, visits = afss_plan(monkeypatch, [sufficient]), Visits(40, 1)
    monkeypatch.setattr(plans.AFSS, "draw", lambda self, epoch, *, seed: Draw(np.zeros(0, int), np.zeros(0)))
    assert plan(5, visits).ids.tolist() == [7]


def test_a_resumed_plan_draws_by_the_last_measurement(monkeypatch):
    plan, visits = afss_plan(monkeypatch, [np.repeat([0.2, 0.9], 20)]), Visits(40, 1)
    plan(5, visits)
    other = afss_plan(monkeypatch, [])
    other.load_state_dict(plan.state_dict())
    assert other(6, visits).ids.tolist() == plan(6, visits).ids.tolist() == list(range(20))
