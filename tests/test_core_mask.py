"""The mask: soft weights, the step by a sample's own evidence, and the common step to the target share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from yolo_adapruner.core import controller
from yolo_adapruner.core.mask import Mask
from yolo_adapruner.core.signal import pressure, sample_loss

NAN, INF = np.nan, np.inf


def mask_of(*logits: float) -> Mask:
    mask = Mask(len(logits))
    mask.logits = np.array(logits, np.float64)
    return mask


# Soft weights


@pytest.mark.parametrize("s", [0.1, 1.0, 5.0])
def test_weights_are_the_sigmoid_of_s_times_the_logit(s):
    mask = mask_of(*np.linspace(-30, 30, 241))
    weights = mask.weights(s)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, torch.sigmoid(torch.from_numpy(s * mask.logits)).numpy(), atol=1e-7)


def test_weights_of_huge_logits_neither_overflow_nor_leave_the_unit_interval():
    with np.errstate(all="raise"):
        weights = mask_of(-1e300, -1e3, 0, 1e3, 1e300).weights(5.0)
    assert weights.tolist() == [0, 0, 0.5, 1, 1]


def test_a_new_mask_keeps_everything():
    mask = Mask(7)
    assert len(mask) == 7
    assert mask.kept_share == 1
    assert (mask.weights(1.0) > 0.5).all()


def test_a_sample_counts_as_kept_from_weight_one_half_on():
    mask = mask_of(-1e-9, 0.0, 3.0, -3.0)
    assert mask.kept_share == 0.5
    assert ((mask.weights(5.0) >= 0.5) == [False, True, True, False])[1:].all()  # the first is 0.5 in float32


def test_a_mask_of_nothing_is_refused():
    with pytest.raises(ValueError, match="Expected at least one sample, but got 0"):
        Mask(0)


# A sample's own evidence (lam 0: no compression)

OWN = [
    # name, pressure, what is added to a logit at neutral 2, rate 0.5, clip 4
    ("neutral", 2.0, 0.0),
    ("easier to keep", 1.0, +0.4),
    ("pushed out", 3.0, -0.4),
    ("at the clip: half of it", 6.0, -1.0),
    ("beyond the clip", 38.0, -1.8),
    ("beyond the clip, the other way", -34.0, +1.8),
    ("no bound at all", INF, -2.0),
    ("not seen", NAN, 0.0),
]


@pytest.mark.parametrize(("value", "moved"), [c[1:] for c in OWN], ids=[c[0] for c in OWN])
@pytest.mark.parametrize("logit", [-50.0, 0.25, 50.0])  # the step does not fade where a decision is hard
def test_own_evidence_moves_a_logit_by_rate_times_bent_pressure(logit, value, moved):
    mask = mask_of(logit)
    mask.update(np.array([value]), neutral=2.0, lam=0.0, target=1.0, rate=0.5, clip=4.0)
    assert mask.logits[0] == pytest.approx(logit + moved, abs=1e-9)


def test_pressures_far_beyond_the_clip_are_told_apart():
    mask = mask_of(1.0, 1.0, 1.0)
    mask.update(np.array([500.0, 1000.0, 2000.0]), neutral=2.0, lam=0.0, target=1.0, rate=0.5, clip=4.0)
    assert mask.logits[0] > mask.logits[1] > mask.logits[2] > -1.0


def test_a_dropped_sample_comes_back_as_fast_as_it_went():
    mask = mask_of(1.0, 1.0)
    out, back = np.array([4.0, 2.0]), np.array([0.0, 2.0])
    for _ in range(20):
        mask.update(out, neutral=2.0, lam=0.0, target=1.0)
    assert mask.weights(5.0)[0] < 1e-30
    for _ in range(20):
        mask.update(back, neutral=2.0, lam=0.0, target=1.0)
    np.testing.assert_allclose(mask.logits, [1.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (1, 3)], ids=str)
def test_a_pressure_of_another_shape_is_refused_and_moves_nothing(shape):
    mask = mask_of(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="Expected one pressure for each of 3 samples, but got shape"):
        mask.update(np.zeros(shape), neutral=1.0, lam=1.0, target=0.5)
    assert mask.logits.tolist() == [1.0, 2.0, 3.0]


# Compression (pressure equal to neutral: no evidence)

COMPRESSION = [
    # name, logits, target, lam, logits after; rate 0.5, clip 4: a step reaches 2 * lam
    ("on target: nothing moves", [-1, 1, 2, 3], 0.75, 1, [-1, 1, 2, 3]),
    ("too many: down, 0 between the last to go and the first to stay", [1, 2, 3, 4], 0.5, 2, [-1.5, -0.5, 0.5, 1.5]),
    ("too few: up", [-4, -3, -2, -1], 0.5, 2, [-1.5, -0.5, 0.5, 1.5]),
    ("all of them back", [-1, -2], 1.0, 1, [1, 0]),
    ("out of reach: as far as lam allows", [10, 20], 0.5, 3, [4, 14]),
    ("out of reach below", [-20, -10], 0.5, 3, [-14, -4]),
    ("lam 0: no compression", [1, 2, 3, 4], 0.5, 0, [1, 2, 3, 4]),
    ("equals cannot be told apart and stay", [1, 1, 1, 1], 0.5, 1, [0, 0, 0, 0]),
    ("equals at the cut stay, the rest goes", [0.5, 1, 1, 2], 0.5, 1, [-0.5, 0, 0, 1]),
    ("nearest count: 0.4 of 4 are 2", [1, 2, 3, 4], 0.4, 2, [-1.5, -0.5, 0.5, 1.5]),
    ("a target of less than a sample keeps one", [1, 2], 0.1, 1, [-0.5, 0.5]),
]


@pytest.mark.parametrize(
    ("logits", "target", "lam", "after"), [c[1:] for c in COMPRESSION], ids=[c[0] for c in COMPRESSION]
)
def test_compression_moves_all_alike_to_the_target_and_not_past_it(logits, target, lam, after):
    mask = mask_of(*logits)
    mask.update(np.full(len(logits), 2.0), neutral=2.0, lam=lam, target=target, rate=0.5, clip=4.0)
    np.testing.assert_allclose(mask.logits, after, atol=1e-12)


def test_samples_not_seen_count_in_the_share_but_do_not_move():
    mask = mask_of(5.0, -5.0, 1.0, 2.0, 3.0, 4.0)
    mask.update(np.array([NAN, NAN, 2, 2, 2, 2]), neutral=2.0, lam=10.0, target=0.5)
    assert mask.logits[:2].tolist() == [5.0, -5.0]
    assert mask.kept_share == 0.5  # the first of the unseen and two of the seen
    assert np.diff(mask.logits[2:]).tolist() == [1, 1, 1]


def test_a_sample_takes_the_part_of_its_own_step_that_it_has_evidence_for():
    mask = mask_of(1.0, 1.0, 1.0)
    values, evidence = np.array([4.0, 4.0, 4.0]), np.array([1.0, 0.25, 0.0])
    mask.update(values, neutral=2.0, lam=0.0, target=1.0, rate=0.5, evidence=evidence)
    step = 1 / (1 + 2 / 20)  # pressure 2 bent by the clip of 20, times the rate
    np.testing.assert_allclose(mask.logits, [1 - step, 1 - step / 4, 1.0])


def test_without_evidence_a_sample_goes_along_with_the_common_step_and_before_nobody():
    mask = mask_of(1.0, 2.0, 3.0, 4.0)
    mask.update(np.array([9.0, 2, 2, 2]), neutral=2.0, lam=10.0, target=0.5, evidence=np.array([0.0, 1, 1, 0]))
    assert mask.logits.tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_full_evidence_is_none_given_bit_for_bit(rng):
    bare, full, values = Mask(50), Mask(50), rng.exponential(2, 50)
    bare.update(values, neutral=2.0, lam=3.0, target=0.8)
    full.update(values, neutral=2.0, lam=3.0, target=0.8, evidence=np.ones(50))
    assert (bare.logits == full.logits).all()


def test_evidence_of_another_shape_is_refused_and_moves_nothing():
    mask = mask_of(1.0, 2.0)
    with pytest.raises(ValueError, match="Expected the evidence of each of 2 samples, but got shape"):
        mask.update(np.zeros(2), neutral=1.0, lam=1.0, target=0.5, evidence=np.ones(3))
    assert mask.logits.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("target", [0.25, 1.0])
def test_an_epoch_without_any_evidence_moves_nothing(target):
    mask = mask_of(1.0, -2.0, 3.0)
    mask.update(np.full(3, NAN), neutral=NAN, lam=50.0, target=target)
    assert mask.logits.tolist() == [1.0, -2.0, 3.0]


finite = st.floats(-20, 20, allow_subnormal=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    logits=arrays(np.float64, 23, elements=finite, unique=True),
    values=arrays(np.float64, 23, elements=st.floats(0, 30)),
    target=st.floats(0.05, 1),
    lam=st.floats(0, 60),
)
def test_compression_never_reorders_and_never_widens_the_gap(logits, values, target, lam):
    alone, both = mask_of(*logits), mask_of(*logits)
    alone.update(values, neutral=2.0, lam=0.0, target=target)
    both.update(values, neutral=2.0, lam=lam, target=target)
    np.testing.assert_allclose(both.logits - alone.logits, both.logits[0] - alone.logits[0], atol=1e-9)
    if len(set(alone.logits.round(6))) == 23:  # no equals
        wanted = round(target * 23) / 23
        assert abs(both.kept_share - wanted) <= abs(alone.kept_share - wanted) + 1e-12


def test_permuted_samples_give_permuted_logits(rng):
    order = rng.permutation(60)
    values = [rng.exponential(2, 60) for _ in range(8)]
    straight, permuted = Mask(60), Mask(60)
    for epoch, v in enumerate(values):
        for mask, mine in ((straight, v), (permuted, v[order])):
            mask.update(mine, neutral=2.0, lam=3.0, target=1 - 0.05 * epoch)
    assert (permuted.logits == straight.logits[order]).all()


# In closed loop with the controller

DISTRIBUTIONS = {
    "narrow": lambda rng, n: np.abs(rng.normal(1, 0.05, n)),
    "half normal": lambda rng, n: np.abs(rng.normal(0, 1, n)),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "log-normal": lambda rng, n: rng.lognormal(0, 1.5, n),
    "heavy tail": lambda rng, n: rng.pareto(1.1, n) + 0.1,
    "no mean": lambda rng, n: np.abs(rng.standard_cauchy(n)),
    "two groups": lambda rng, n: np.where(rng.random(n) < 0.2, 5, 1) * rng.lognormal(0, 0.2, n),
}


@pytest.mark.parametrize("prune", [0.05, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("epochs", [5, 9, 18])  # joint epochs: a budget of 15, 30 and 60
@pytest.mark.parametrize("neutral_of", ["quantile", "constant"])  # whatever counts as neutral
def test_the_kept_share_reaches_the_target(prune, distribution, epochs, neutral_of):
    n = 300
    # What lies far beyond the clip is nearly equal; with a neutral far from the cut the clip has to be wider.
    clip = 4.0 if neutral_of == "quantile" else 1e4
    for seed in range(2):
        rng = np.random.default_rng(seed)
        schedule = controller.Schedule(kept=1 - prune, epochs=epochs)
        state, mask = controller.start(schedule, metric=0.5), Mask(n)
        base = DISTRIBUTIONS[distribution](rng, n)
        for _ in range(epochs):
            f = pressure(sample_loss(base * rng.lognormal(0, 0.4, n), 0.5))
            neutral = float(np.quantile(f, state.target)) if neutral_of == "quantile" else 2.0
            mask.update(f, neutral=neutral, lam=state.lam, target=state.target, clip=clip)
            assert mask.kept_share >= 1 - prune - schedule.match  # never lets go of the whole set
            state = controller.step(state, mask.kept_share, 0.5, schedule)
        assert state.progress == 1
        assert abs(mask.kept_share - schedule.kept) <= schedule.match
        assert state.best_epoch >= 0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Forgetting


def test_forgetting_alone_puts_no_sample_before_another_and_moves_none_across_the_cut():
    mask = Mask(50)
    mask.logits = np.random.default_rng(0).normal(0, 3, 50)
    before = mask.logits.copy()
    kept = float((before >= 0).mean())
    mask.update(np.full(50, 2.0), neutral=2.0, lam=1.0, target=kept, memory=0.3)
    np.testing.assert_allclose(mask.logits, 0.3 * before)


def test_a_sample_forgets_as_far_as_it_learns():
    mask = Mask(3)
    mask.logits = np.array([4.0, 4.0, 4.0])
    mask.update(np.full(3, 2.0), neutral=2.0, lam=1.0, target=1.0, evidence=np.array([1.0, 0.5, 0.0]), memory=0.5)
    assert mask.logits.tolist() == [2.0, 3.0, 4.0]


def test_a_sample_outside_the_game_forgets_nothing():
    mask = Mask(2)
    mask.logits = np.array([4.0, 4.0])
    mask.update(np.array([np.nan, 2.0]), neutral=2.0, lam=1.0, target=1.0, memory=0.5)
    assert mask.logits.tolist() == [4.0, 2.0]
