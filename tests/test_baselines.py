"""The peers' ways to choose images, each against a case worked out by hand from its published formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_adapruner.core.selection import drop_count, select_kept
from yolo_adapruner.errors import DataError
from yolo_adapruner.study.baselines import (
    area_under_margin,
    class_balanced_kept,
    copies_out_kept,
    error_norm,
    forgetting_events,
    listed_kept,
    margins,
    most_error,
    most_forgotten,
)

NAN = math.nan

# Class-balanced random


def test_a_class_in_four_of_forty_images_keeps_all_its_images():
    # 36 images of class 0 and 4 of class 1; half of the 40 stay: 20 turns, class 1 has a turn in every other one of
    # the first 8 and then no images left, so the 16 others are of class 0
    classes = [[0]] * 36 + [[1]] * 4
    kept = class_balanced_kept(classes, 0.5, seed=0)
    assert (kept[:36].sum(), kept[36:].sum()) == (16, 4)


def test_images_without_boxes_are_a_class_of_their_own():
    kept = class_balanced_kept([[0]] * 30 + [[]] * 30, 0.5, seed=3)
    assert (kept[:30].sum(), kept[30:].sum()) == (15, 15)


def test_an_image_of_two_classes_counts_for_both():
    # whichever is drawn first, the two classes of the mixed images are even after each of them
    kept = class_balanced_kept([[0, 1, 1]] * 10 + [[0]] * 10 + [[1]] * 10, 0.5, seed=1)
    shown = {c: kept[:10].sum() + kept[10 * (c + 1) : 10 * (c + 2)].sum() for c in (0, 1)}
    assert abs(shown[0] - shown[1]) <= 1


@settings(deadline=None, derandomize=True)
@given(
    classes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=2, max_size=40),
    prune=st.floats(0, 0.9),
    seed=st.integers(0, 5),
)
def test_class_balanced_keeps_the_exact_count_and_repeats_itself(classes, prune, seed):
    kept = class_balanced_kept(classes, prune, seed=seed)
    assert kept.sum() == len(classes) - drop_count(len(classes), prune)
    assert (kept == class_balanced_kept(classes, prune, seed=seed)).all()


def test_class_balanced_is_random_within_a_class():
    draws = {class_balanced_kept([[0]] * 20, 0.5, seed=seed).tobytes() for seed in range(10)}
    assert len(draws) == 10


# EL2N


def test_error_norm_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # sqrt(.3² + .2² + .1²), sqrt(.7² + .8² + .1²), right and sure, wrong and sure
    assert error_norm(p, np.array([0, 1, 0, 0])) == pytest.approx([math.sqrt(0.14), math.sqrt(1.14), 0, math.sqrt(2)])


def test_a_detector_s_error_norm_by_hand():
    # box off by 0.3, labelled class at p = 0.6, an unlabelled object at p = 0; then an image without boxes, p = 0.5
    found = most_error(np.array([0.3, NAN]), np.array([-math.log(0.6), NAN]), np.array([0.0, -math.log(0.5)]))
    assert found == pytest.approx([0.5, 0.5])


# Forgetting

EVENTS = [
    # name, right in each epoch, forgotten
    ("never forgotten once learned", [0, 0, 1, 1, 1], 0),
    ("twice", [1, 0, 1, 1, 0], 2),
    ("right from the start", [1, 1, 1, 1, 1], 0),
    ("never right", [0, 0, 0, 0, 0], math.inf),
    ("wrong twice in a row is one event", [1, 0, 0, 1, 1], 1),
    ("not seen in between", [1, NAN, 0, NAN, 1], 1),
    ("not seen is not wrong", [1, NAN, 1, NAN, NAN], 0),
    ("never seen", [NAN] * 5, math.inf),
    ("of four objects one, then two", [1, 0.75, 1, 0.5, 0.75], 0.75),
]


@pytest.mark.parametrize(("correct", "events"), [c[1:] for c in EVENTS], ids=[c[0] for c in EVENTS])
def test_forgetting_events_by_hand(correct, events):
    assert forgetting_events(np.array([correct], float)).tolist() == [events]


def test_what_was_never_learned_ranks_above_all_that_was_forgotten():
    correct = np.array([c[1] for c in EVENTS], float)
    score = most_forgotten(forgetting_events(correct))
    assert np.isfinite(score).all()
    assert select_kept(score, 6 / 9).nonzero()[0].tolist() == [1, 3, 7]


# Area under the margin


def test_margin_by_hand():
    logits = np.array([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0], [3.0, 3.0, 0.0]])
    assert margins(logits, np.array([1, 2, 0])).tolist() == [3.0, -4.0, 0.0]


def test_area_under_margin_is_the_mean_over_the_epochs_seen():
    found = area_under_margin(np.array([[1.0, 3.0, NAN], [-2.0, NAN, NAN], [NAN] * 3, [7.0, 8.0, 9.0]]))
    assert found.tolist() == [2.0, -2.0, 2.0, 8.0]  # never seen: the median of 2, -2 and 8


def test_area_under_margin_drops_the_mislabelled_first():
    rng = np.random.default_rng(0)
    trajectory = rng.normal(2, 1, (50, 20))
    trajectory[:5] -= 4  # another class is the likelier one throughout
    assert not select_kept(area_under_margin(trajectory), 0.1)[:5].any()


# Duplicates


def test_only_copies_go_while_there_are_any():
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6])  # three copies: two of group 0, one of group 2
    kept = copies_out_kept(groups, 0.3, seed=0)
    assert kept.sum() == 7
    assert kept[3]
    assert kept[6:].all()
    assert kept[:3].sum() == kept[4:6].sum() == 1


@pytest.mark.parametrize(("prune", "copies_left"), [(0.1, 2), (0.2, 1), (0.5, 0)])
def test_every_group_keeps_one_as_long_as_copies_last(prune, copies_left):
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6])
    kept = copies_out_kept(groups, prune, seed=2)
    assert kept.sum() == 10 - round(10 * prune)
    left = kept.sum() - len(set(groups[kept]))
    assert left == copies_left


def test_which_of_a_group_stays_is_drawn():
    stays = {copies_out_kept(np.array([0, 0, 0, 0, 1]), 0.6, seed=seed)[:4].tobytes() for seed in range(20)}
    assert len(stays) > 2


# A given list


def test_a_given_list_is_kept_as_it_is():
    assert listed_kept(["/a", "/b", "/c"], ["/c", "/a"]).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("listed", "words"),
    [(["/a", "/x", "/y"], "2 are not, the first: /x"), ([], "it is empty")],
    ids=["foreign", "empty"],
)
def test_a_list_of_other_images_is_refused(listed, words):
    with pytest.raises(DataError, match=f"Expected a list of training images to keep, but {words}"):
        listed_kept(["/a", "/b"], listed)
