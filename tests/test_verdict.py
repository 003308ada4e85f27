"""Intervals over seeds and images by hand, verdicts in words, and how often an interval holds the truth."""

import math

import numpy as np
import pytest

from tests import helpers
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.calibrate import OURS, WORLDS, calibrate
from yolo_adapruner.study.evaluate import paired_difference
from yolo_adapruner.study.interval import Difference, half_width, paired, quantile, shared_variance
from yolo_adapruner.study.simulate import World, study, truth
from yolo_adapruner.study.verdict import (
    BETTER,
    INCONCLUSIVE,
    MOST_SEEDS,
    WITHIN,
    WORSE,
    further_seeds,
    judge,
    sentence,
)

# The interval


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_without_images_it_is_the_t_interval_over_seeds(seeds):
    a, b = np.random.default_rng(seeds).random((2, seeds)).tolist()
    found = paired(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx(paired_difference(a, b), abs=1e-12)
    assert (found.seeds, found.image_variance, found.images) == (seeds, 0.0, 0)


def test_shared_variance_is_the_covariance_between_seeds():
    # columns 1, 2, 3 and 2, 4, 6: covariance 2; with 3, 2, 1 it is -1 and counts as none
    assert shared_variance(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])) == pytest.approx(2.0)
    assert shared_variance(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])) == 0.0
    assert shared_variance(np.array([[1.0], [2.0], [3.0]])) == 1.0  # one seed: all there is


def test_shared_variance_leaves_out_what_each_seed_has_for_itself():
    rng = np.random.default_rng(0)
    common, own = rng.normal(0, 2, (20000, 1)), rng.normal(0, 5, (20000, 3))
    assert shared_variance(common + own) == pytest.approx(4, rel=0.1)


def test_a_sample_without_any_box_is_left_out():
    values = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [math.nan, 0.0]])
    assert shared_variance(values) == pytest.approx(2.0)


def test_quantile_by_hand():
    # one variance alone: its own t; t(0.975) of 2 and of 10 degrees of freedom, from the table
    assert quantile(0.975, 1.0, 2, 0.0, 10) == pytest.approx(4.302653, abs=1e-6)
    assert quantile(0.975, 0.0, 2, 1.0, 10) == pytest.approx(2.228139, abs=1e-6)
    # both alike: Satterthwaite has 4 / (1/2 + 1/10) = 6.667 degrees of freedom, t 2.3888; Cochran and Cox the mean of
    # the two above, 3.265396
    assert quantile(0.975, 1.0, 2, 1.0, 10) == pytest.approx((2.3888 + 3.265396) / 2, abs=1e-4)


def test_the_interval_widens_with_what_images_add():
    a, b = [0.30, 0.32, 0.31], [0.31, 0.31, 0.31]
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.02, (500, 1)) + rng.normal(0, 0.001, (500, 3))
    alone, both = paired(a, b), paired(a, b, images, images=100)
    assert both.mean == alone.mean
    assert both.image_variance == pytest.approx(0.02**2, rel=0.15)
    assert both.high - both.mean == pytest.approx(both.mean - both.low)
    assert both.high > alone.high
    assert both.high - both.mean == half_width(both.seed_variance, 3, both.image_variance, 100)


def test_one_seed_has_no_interval():
    found = paired([0.5], [0.25], np.random.default_rng(0).normal(0, 0.01, (100, 1)), images=50)
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.known


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_arms_must_pair_up(a, b):
    with pytest.raises(ConfigError, match=f"{len(a)} and {len(b)}"):
        paired(a, b)


# The verdict


def difference(low: float, high: float, **more: float) -> Difference:
    mean = (low + high) / 2
    return Difference(
        mean, low, high, **{"seeds": 3, "seed_variance": 1e-5, "image_variance": 0.0, "images": 80, **more}
    )


VERDICTS = [
    # low, high, in points, against a margin of 0.5
    (0.1, 0.3, BETTER),
    (0.1, 9.0, BETTER),
    (0.0, 0.3, WITHIN),
    (-0.4, 0.2, WITHIN),
    (-0.5, -0.1, WITHIN),  # a loss, all of it within the margin
    (-0.4, 7.0, WITHIN),  # not known how much is gained, but known that no more than 0.4 is lost
    (-0.51, 0.2, INCONCLUSIVE),
    (-0.9, -0.1, INCONCLUSIVE),
    (-0.9, -0.5, INCONCLUSIVE),
    (-0.9, -0.51, WORSE),
    (-9.0, 9.0, INCONCLUSIVE),
    (math.nan, math.nan, INCONCLUSIVE),
]


@pytest.mark.parametrize(("low", "high", "outcome"), VERDICTS)
def test_outcomes_by_hand(low, high, outcome):
    assert judge(difference(low / 100, high / 100), 0.005).outcome == outcome


def test_the_same_run_twice_is_within_any_margin():
    zeros = paired([0.3, 0.4], [0.3, 0.4], np.zeros((50, 2)), images=20)
    assert (zeros.low, zeros.high) == (0.0, 0.0)
    assert judge(zeros, 0.0).outcome == WITHIN


@pytest.mark.parametrize(("base", "outcome"), [(0.0, INCONCLUSIVE), (0.005, INCONCLUSIVE), (0.006, WITHIN)])
def test_where_there_is_nothing_to_lose_nothing_is_shown(base, outcome):
    zeros = paired([0.0, 0.0], [0.0, 0.0], np.zeros((50, 2)), images=20)
    assert judge(zeros, 0.005, base=base).outcome == outcome
    words = "inconclusive, there are only 0.0 mAP to lose and your margin is 0.5"
    assert sentence("x", zeros, 0.005, base=0.0).endswith(words)


SENTENCES = [
    (difference(-0.004, 0.002), "dropping 10 % costs -0.1 mAP [-0.4, +0.2]: within your margin of 0.5"),
    (difference(-0.0021, 0.0019), "dropping 10 % costs 0.0 mAP [-0.2, +0.2]: within your margin of 0.5"),
    (difference(0.002, 0.006), "dropping 10 % gains +0.4 mAP [+0.2, +0.6]: better"),
    (difference(-0.02, -0.01), "dropping 10 % costs -1.5 mAP [-2.0, -1.0]: worse than your margin of 0.5 allows"),
]


@pytest.mark.parametrize(("found", "words"), SENTENCES, ids=[s[1][11:25] for s in SENTENCES])
def test_a_verdict_in_words(found, words):
    assert sentence("dropping 10 %", found, 0.005) == words


def test_what_is_open_is_said_with_what_would_close_it():
    open_ = difference(-0.01, 0.01, seed_variance=2.6e-5)
    count = further_seeds(open_, 0.005)
    assert sentence("x", open_, 0.005).endswith(
        f": inconclusive against your margin of 0.5, about {count} more seeds would settle it"
    )
    loss = sentence("x", difference(-0.012, -0.002), 0.005)
    assert "costs -0.7 mAP [-1.2, -0.2]: a loss, but whether within your margin of 0.5 is inconclusive, about" in loss
    few = difference(-0.01, 0.01, image_variance=1e-4)
    assert sentence("x", few, 0.005).endswith("more seeds would not settle it: the 80 test images are too few")
    near = difference(-0.01, 0.0001)
    assert sentence("x", near, 0.005).endswith(
        f"even {MOST_SEEDS} seeds would not settle it: it lies too near the margin"
    )
    one = difference(math.nan, math.nan)
    assert sentence("x", Difference(-0.01, math.nan, math.nan, 1, math.nan, 0.0, 80), 0.005).startswith(
        "x costs -1.0 mAP: inconclusive, one seed says nothing"
    )
    assert judge(one, 0.005).more_seeds is None


def test_further_seeds_by_hand():
    # mean 0 against a margin of 1, s = 1: (t(.975, n-1) + t(.8, n-1)) / sqrt(n) <= 1. At n = 9 (2.306 + 0.889) / 3 =
    # 1.065, at n = 10 (2.262 + 0.883) / 3.162 = 0.995: 10, which is 7 more than 3
    found = Difference(0.0, -2.48, 2.48, seeds=3, seed_variance=1.0, image_variance=0.0, images=0)
    assert further_seeds(found, 1.0) == 7


@pytest.mark.slow
def test_so_many_seeds_do_settle_it_in_four_of_five_studies():
    rng = np.random.default_rng(0)
    settled = 0
    for _ in range(2000):
        values = rng.normal(0.0, 1.0, 10)
        settled += judge(paired(values.tolist(), [0.0] * 10), 1.0).outcome != INCONCLUSIVE
    assert 0.77 < settled / 2000 < 0.86


# Simulated studies


def test_a_world_has_the_effect_it_was_given():
    assert abs(truth(World(), trainings=40)) < 0.005
    assert truth(World(spoiled=0.1), trainings=10) < -0.02
    assert truth(World(perturbed=0.2), trainings=10) < -0.02


def test_a_study_is_a_function_of_its_number():
    one, again, other = (study(World(images=20), number, resamples=5) for number in (3, 3, 4))
    assert (one.a, one.b) == (again.a, again.b)
    assert (one.replicates == again.replicates).all()
    assert one.a != other.a
    assert one.replicates.shape == (5, 3)


def test_few_studies_are_counted():
    found = calibrate(World(images=20, seeds=2), 4)
    assert found.truth == 0.0
    assert sum(found.outcomes.values()) == 1.0
    assert all(4 * share in range(5) for share in found.holds.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    helpers.gate_runs(["same list, 3 seeds", "weights perturbed", "labels spoiled, images alone differ"], 1),
)
def test_the_interval_holds_the_truth_in_93_to_97_percent_of_1000_studies(name):
    found = calibrate(WORLDS[name], 1000, trainings=400)  # a tenth of the interval's half width, at the most
    assert 0.93 <= found.holds[OURS] <= 0.97
    if found.truth == 0:
        assert found.differs[OURS] <= 0.05 + 0.0135  # counted over 1,000 studies: 5 ± 1.35 %
        assert found.outcomes.get(BETTER, 0) + found.outcomes.get(WORSE, 0) <= 0.05
