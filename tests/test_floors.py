"""What a selection must not lose: floors by hand and by brute force, required samples, easing, drift."""

import itertools

import numpy as np
import pytest

from yolo_adapruner.core.drift import drift, largest
from yolo_adapruner.core.floors import BACKGROUND, CLASS, SIZE, Constraints, Groups, refused
from yolo_adapruner.core.selection import drop_count, select_kept


def groups_of(*samples: dict[int, int], names: int = 3) -> Groups:
    """Groups of samples given as {group: count}."""
    things = [(i, g) for i, has in enumerate(samples) for g, n in has.items() for _ in range(n)]
    sample, group = np.array(things, np.int64).reshape(-1, 2).T
    return Groups.of(sample, group, [CLASS] * names, [f"c{g}" for g in range(names)])


def random_groups(n: int, names: int, seed: int) -> Groups:
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(n), rng.poisson(2, n))
    p = 1 / np.arange(1, names + 1) ** 2
    return Groups.of(
        sample, rng.choice(names, len(sample), p=p / p.sum()), [CLASS] * names, list(map(str, range(names)))
    )


def test_groups_count_things_by_sample_and_group():
    groups = groups_of({0: 2, 2: 1}, {}, {2: 3})
    assert list(zip(groups.sample, groups.group, groups.count, strict=True)) == [(0, 0, 2), (0, 2, 1), (2, 2, 3)]
    assert groups.totals().tolist() == [2, 0, 4]
    assert groups.totals(np.array([True, True, False])).tolist() == [2, 0, 1]


LEAST = [
    # name, boxes of the group, floor, prune, boxes that must stay
    ("three quarters of nine tenths, rounded up", 10, 0.75, 0.1, 7),
    ("a single box stays", 1, 0.8, 0.1, 1),
    ("three stay whole", 3, 0.8, 0.1, 3),
    ("an exact product is not rounded up", 10, 1.0, 0.1, 9),
    ("no floor", 10, 0.0, 0.1, 0),
]


@pytest.mark.parametrize(("boxes", "floor", "prune", "least"), [c[1:] for c in LEAST], ids=[c[0] for c in LEAST])
def test_least_of_a_group_by_hand(boxes, floor, prune, least):
    assert Constraints(groups_of({0: boxes}, names=1), floor).least(prune).tolist() == [least]


def test_the_only_image_of_a_class_stays_though_it_scores_lowest():
    groups = groups_of({1: 1}, *[{0: 1}] * 9)
    kept = select_kept(np.arange(10.0), 0.2, constraints=Constraints(groups, 0.8))
    assert np.flatnonzero(~kept).tolist() == [1, 2]


def test_what_is_passed_over_leaves_room_for_the_next():
    # 4 of class 1; at prune 0.3 and floor 0.8, ceil(0.56 * 4) = 3 must stay: the first may go, the second not
    groups = groups_of({1: 1}, {1: 1}, {1: 1}, {1: 1}, *[{0: 1}] * 6)
    kept = select_kept(np.arange(10.0), 0.3, constraints=Constraints(groups, 0.8))
    assert np.flatnonzero(~kept).tolist() == [0, 4, 5]


@pytest.mark.parametrize("prune", [0.05, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_floors_hold_and_the_count_is_exact_whatever_the_scores(prune, seed):
    n, groups = 400, random_groups(400, 12, seed)
    weight = np.zeros(n)
    np.add.at(weight, groups.sample, groups.group * groups.count)
    constraints = Constraints(groups, 0.8)
    kept = select_kept(-weight, prune, constraints=constraints)  # all that is rare scores lowest
    assert (~kept).sum() == drop_count(n, prune)
    assert constraints.held(kept, prune) >= 0.8 - 1e-9
    assert (groups.totals(kept) >= constraints.least(prune)).all()
    assert constraints.held(select_kept(-weight, prune), prune) < 0.8  # and without floors they would not


def test_without_a_floor_in_the_way_it_is_the_plain_selection():
    scores = np.random.default_rng(0).normal(size=300)
    groups = groups_of(*[{0: 1}] * 300, names=1)
    for floor in (0.0, 0.8, 1.0):
        assert (select_kept(scores, 0.3, constraints=Constraints(groups, floor)) == select_kept(scores, 0.3)).all()


def test_nothing_that_is_passed_over_could_go_before_the_last_that_goes():
    groups = random_groups(60, 6, 1)
    constraints = Constraints(groups, 0.9)
    scores = np.random.default_rng(2).normal(size=60)
    kept = select_kept(scores, 0.2, constraints=constraints)
    last = scores[~kept].max()
    for i in np.flatnonzero(kept & (scores < last)):
        before = ~kept & (scores < scores[i])
        before[i] = True
        assert (groups.totals(~before) < constraints.least(0.2)).any()


def test_a_selection_is_found_whenever_greedy_can_and_floors_ease_only_then():
    # two images with everything each class has: 1 of 2 must go, floor 1 asks for ceil(0.5 * 3) = 2 of each class
    groups = groups_of({0: 2, 1: 1}, {0: 1, 1: 2}, names=2)
    constraints = Constraints(groups, 1.0)
    kept = select_kept(np.array([0.0, 1.0]), 0.5, constraints=constraints)
    assert kept.tolist() == [False, True]  # eased: the count is exact, the lowest goes
    assert constraints.held(kept, 0.5) == pytest.approx(1 / 3 / 0.5)
    for wanted in itertools.product([False, True], repeat=2):
        if sum(wanted) == 1:
            assert (groups.totals(np.array(wanted)) < constraints.least(0.5)).any()  # no choice holds it


def test_floors_ease_no_further_than_they_must():
    # each class in one image of 1 box and one of 9: to drop half, floor 1 (5 of 10) leaves the small ones only
    groups = groups_of({0: 9}, {0: 1}, {1: 9}, {1: 1}, names=2)
    kept = select_kept(np.array([0.0, 1.0, 0.5, 1.0]), 0.5, constraints=Constraints(groups, 1.0))
    assert kept.tolist() == [True, False, True, False]


def test_required_samples_stay_and_the_count_is_exact():
    required = np.zeros(20, bool)
    required[:5] = True
    kept = select_kept(np.arange(20.0), 0.5, constraints=Constraints(required=required))
    assert np.flatnonzero(~kept).tolist() == list(range(5, 15))


def test_required_samples_outlast_the_floors():
    groups = groups_of({0: 1}, {1: 1}, names=2)
    constraints = Constraints(groups, 1.0, np.array([True, False]))
    assert select_kept(np.array([0.0, 1.0]), 0.5, constraints=constraints).tolist() == [True, False]


def test_more_to_go_than_may_is_refused():
    constraints = Constraints(required=np.array([True, True, False]))
    with pytest.raises(ValueError, match="at most 1 samples to go"):
        refused(np.arange(3), 2, constraints, 0.5)


def test_samples_and_groups_without_any_box_are_no_obstacle():
    groups = Groups.of(np.zeros(0, int), np.zeros(0, int), [CLASS], ["none"])
    kept = select_kept(np.arange(4.0), 0.5, constraints=Constraints(groups, 0.8))
    assert kept.tolist() == [False, False, True, True]
    assert Constraints(groups, 0.8).held(kept, 0.5) == 1.0


def test_many_samples_and_classes_need_no_table_of_both():
    # dense, 200 000 by 1 000 would be 1.6 GB; this allocates by entries
    rng = np.random.default_rng(0)
    sample = np.repeat(np.arange(200_000), 2)
    group = rng.integers(0, 1000, len(sample))
    groups = Groups.of(sample, group, [CLASS] * 1000, [str(i) for i in range(1000)])
    assert len(groups.sample) <= len(sample)
    scores = -np.bincount(sample, group).astype(float)
    constraints = Constraints(groups, 0.8)
    kept = select_kept(scores, 0.3, constraints=constraints)
    assert (~kept).sum() == 60_000
    assert constraints.held(kept, 0.3) >= 0.8 - 1e-9


# Floors count what is likely right


def nats(*probabilities: float) -> np.ndarray:
    return -np.log1p(-np.array(probabilities))


def backgrounds(n: int, empty: int) -> Groups:
    """Of n samples the first `empty` without boxes, the others with one each."""
    return Groups.of(np.arange(n), (np.arange(n) >= empty).astype(int), [BACKGROUND, CLASS], ["", "c"])


@pytest.mark.parametrize(("suspects", "gone"), [(10, 10), (8, 8), (0, 2)])
def test_images_without_boxes_that_are_likelier_unlabelled_are_no_background(suspects, gone):
    wrong = np.where(np.arange(100) < suspects, nats(0.9)[0], 1e-3)
    blind = Constraints(backgrounds(100, 10), 0.8)
    scores = np.arange(100.0)
    assert (~select_kept(scores, 0.1, constraints=blind))[:10].sum() == 2  # whatever they are, eight have to stay
    kept = select_kept(scores, 0.1, constraints=blind.trusting(wrong))
    assert (~kept)[:10].sum() == gone
    assert blind.trusting(wrong).held(kept, 0.1) >= 0.8 - 1e-5


def test_true_background_images_are_held_beside_unlabelled_ones():
    wrong = np.concatenate([np.full(5, nats(0.999)[0]), np.full(95, 1e-3)])
    constraints = Constraints(backgrounds(100, 10), 0.8).trusting(wrong)
    kept = select_kept(np.arange(100.0), 0.1, constraints=constraints)
    assert np.flatnonzero(~kept)[:7].tolist() == [0, 1, 2, 3, 4, 5, 10]  # of the five true ones, one may go


@pytest.mark.parametrize(("suspects", "gone"), [(4, 4), (7, 7), (10, 2), (0, 2)])
def test_wrong_boxes_of_a_class_may_go_but_not_a_class_that_is_nothing_but_suspects(suspects, gone):
    # Ten of a class, one in each image: a floor of 0.72 holds eight of them.
    groups = groups_of(*[{0: 1}] * 10, *[{1: 1}] * 90, names=2)
    wrong = np.concatenate([np.full(suspects, nats(0.999)[0]), np.full(100 - suspects, 1e-3)])
    scores = np.where(np.arange(100) < max(suspects, 2), -1.0, 1.0)
    constraints = Constraints(groups, 0.8).trusting(wrong)
    assert (~select_kept(scores, 0.1, constraints=constraints))[: max(suspects, 2)].sum() == gone
    assert groups.count.dtype == np.int64  # what drift is counted by stays as it is


def test_where_nothing_is_doubtful_floors_are_those_that_trust_all():
    groups = random_groups(300, 8, 3)
    constraints = Constraints(groups, 0.8)
    for wrong in (np.full(300, nats(0.19)[0]), np.full(300, np.nan)):
        assert constraints.trusting(wrong).right is None
        assert constraints.trusting(wrong).least(0.1).tolist() == constraints.least(0.1).tolist()
    doubted = constraints.trusting(np.full(300, nats(0.6)[0]))
    assert doubted.right is not None
    assert doubted.trusting(np.zeros(300)).right is None  # what was said before is forgotten
    np.testing.assert_allclose(doubted.least(0.1), 0.4 * 0.72 * groups.totals(), rtol=1e-5)
    assert Constraints(None, 0.8).trusting(np.full(300, 2.0)).counted is None


# Drift


def test_drift_by_hand():
    groups = Groups.of(
        np.array([0, 0, 1, 0, 0, 1, 2]),
        np.array([0, 0, 1, 3, 4, 3, 5]),
        [CLASS, CLASS, CLASS, SIZE, SIZE, BACKGROUND],
        ["cat", "dog", "none", "small", "large", BACKGROUND],
    )
    assert drift(groups, np.array([True, False, False])) == {
        "classes": {"cat": [2, 2], "dog": [1, 0]},
        "sizes": {"small": [2, 1], "large": [1, 1]},
        "background": [1, 0],
        "boxes": [3, 2],
    }


LARGEST = [
    # name, counts, the group that changed most as a part of itself
    ("the rare one, though fewer points", {"a": [90, 81], "b": [10, 4]}, ("b", 0.1, 4 / 85)),
    ("none changed", {"a": [4, 2], "b": [2, 1]}, None),
    ("nothing left", {"a": [4, 0]}, None),
    ("no groups", {}, None),
]


@pytest.mark.parametrize(("counts", "found"), [c[1:] for c in LARGEST], ids=[c[0] for c in LARGEST])
def test_the_largest_change_is_relative(counts, found):
    assert largest(counts) == (found and (found[0], *map(pytest.approx, found[1:])))
