"""From scores to the kept set: the exact count, and ties that favour nobody."""

import numpy as np
import pytest

from yolo_adapruner.core.selection import drop_count, in_order, random_kept, select_kept, unknown_last

SHARES = [0.0, 0.01, 0.05, 0.1, 0.15, 0.25, 0.3, 0.35, 0.5, 0.55, 0.8, 0.95]


@pytest.mark.parametrize("prune", SHARES)
def test_exactly_round_prune_times_n_are_dropped_and_they_are_the_lowest(prune):
    for n in [*range(1, 61), 97, 205, 1000]:
        scores = np.random.default_rng(n).normal(size=n)
        kept = select_kept(scores, prune)
        dropped = round(prune * n)
        assert (~kept).sum() == drop_count(n, prune) == dropped
        assert set(np.flatnonzero(~kept)) == set(np.argsort(scores)[:dropped])


COUNTS = [
    # n, prune, dropped: halves go to the even number, as Python rounds
    (10, 0.25, 2),  # 2.5
    (10, 0.35, 4),  # 3.5
    (10, 0.04, 0),  # too small a share drops none
    (10, 0.06, 1),
    (7, 0.1, 1),
    (360, 0.1, 36),
]


@pytest.mark.parametrize(("n", "prune", "dropped"), COUNTS)
def test_counts_by_hand(n, prune, dropped):
    assert drop_count(n, prune) == dropped


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_scores_of_any_kind_of_number(dtype):
    assert select_kept(np.array([3, 1, 2, 4], dtype), 0.5).tolist() == [True, False, False, True]


# Ties


def test_ties_are_decided_the_same_way_each_time():
    scores = np.repeat([0.0, 1.0], 20)
    assert (select_kept(scores, 0.2, seed=3) == select_kept(scores.copy(), 0.2, seed=3)).all()
    # and alike for any scores of the same order: N and the seed decide, not the numbers
    assert (select_kept(scores, 0.2, seed=3) == select_kept(10 * scores - 5, 0.2, seed=3)).all()


def test_another_seed_decides_ties_otherwise_and_nothing_else():
    scores = np.concatenate([np.zeros(20), np.arange(1, 21)])
    kept = np.array([select_kept(scores, 0.25, seed=seed) for seed in range(5)])
    assert kept[:, 20:].all()
    assert len({tuple(row) for row in kept}) == 5


def test_ties_favour_nobody():
    dropped = np.mean([~select_kept(np.zeros(20), 0.5, seed=seed) for seed in range(400)], axis=0)
    assert dropped.min() > 0.4  # standard deviation 0.025
    assert dropped.max() < 0.6
    # with the default seed neither the first nor the last go together
    kept = select_kept(np.zeros(20), 0.5)
    assert 2 <= kept[:10].sum() <= 8


# What has no score

UNKNOWN = [
    # name, scores, what they are ranked by
    ("none unknown", [3.0, -1.0], [3, -1]),
    ("above the highest", [3.0, np.nan, -1.0, np.nan], [3, 4, -1, 4]),
    ("also where all others are low", [-5.0, np.nan], [-5, 1]),
    ("all unknown: all alike", [np.nan, np.nan], [1, 1]),
]


@pytest.mark.parametrize(("scores", "ranked"), [c[1:] for c in UNKNOWN], ids=[c[0] for c in UNKNOWN])
def test_what_has_no_score_goes_last(scores, ranked):
    assert unknown_last(np.array(scores)).tolist() == ranked


# The random arm


@pytest.mark.parametrize("prune", SHARES)
def test_random_drops_as_many_as_a_selection(prune):
    for n in (1, 2, 9, 100, 333):
        kept = random_kept(n, prune, seed=n)
        assert kept.shape == (n,)
        assert kept.dtype == bool
        assert (~kept).sum() == round(prune * n)


def test_random_is_a_function_of_its_seed():
    assert (random_kept(200, 0.3, seed=5) == random_kept(200, 0.3, seed=5)).all()
    assert len({random_kept(200, 0.3, seed=seed).tobytes() for seed in range(20)}) == 20


def test_random_favours_nobody():
    kept = np.mean([random_kept(20, 0.5, seed=seed) for seed in range(400)], axis=0)
    assert kept.min() > 0.4
    assert kept.max() < 0.6


# Errors

ERRORS = [
    # name, scores, prune, words
    ("a share of 1", [1.0, 2.0], 1.0, r"prune share in \[0, 1\), but got 1.0"),
    ("a share below 0", [1.0, 2.0], -0.1, r"prune share in \[0, 1\), but got -0.1"),
    ("a share that is no number", [1.0, 2.0], np.nan, r"prune share in \[0, 1\), but got nan"),
    ("scores that are none", [1.0, np.nan, np.inf, -np.inf], 0.5, "finite scores, but 3 of 4 are not"),
]


@pytest.mark.parametrize(("scores", "prune", "words"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_what_cannot_be_is_refused(scores, prune, words):
    with pytest.raises(ValueError, match=words):
        select_kept(np.array(scores), prune)


# Behind the share that was learned


def test_behind_the_learned_share_suspects_and_copies_go_then_the_highest_lots_and_the_unknown_last():
    logits = np.array([-3, -2, -1, 0.1, 0.2, 0.3, 0.4, 0.5, np.nan, 0.6])
    lots = np.array([np.nan, 0.1, 0.9, 0.2, 0.8, np.nan, 0.7, 0.1, np.nan, 0.3])
    twin = np.where(np.arange(10) == 7, 3, -1)
    assert in_order(logits, 0.3, None).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]
    assert in_order(logits, 0.3, lots, twin).tolist() == [0, 1, 2, 5, 7, 4, 6, 9, 3, 8]
    assert in_order(logits, 0.3, lots).tolist() == [0, 1, 2, 5, 4, 6, 9, 3, 7, 8]


@pytest.mark.parametrize("lots", [None, np.full(4, np.nan)])
def test_where_no_lots_were_drawn_the_order_stays(lots):
    scores = np.array([np.nan, 0.3, 0.1, 0.2])
    assert in_order(scores, 0.25, lots, np.full(4, 1)).tolist() == [2, 3, 1, 0]
