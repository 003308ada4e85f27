"""From readings to a judged number: what `surprise`, `sample_loss` and `pressure` promise, not how they do it."""

import warnings

import numpy as np
import pytest

from yolo_adapruner.core import signal as module
from yolo_adapruner.core.signal import channel_surprise, pressure, sample_loss, surprise

NAN = np.nan


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def readings(rng) -> np.ndarray:
    """300 samples, 3 channels of one kind of spread each; the last 60 have the third channel only."""
    values = rng.lognormal(0, [0.3, 0.8, 0.5], (300, 3))
    values[240:, :2] = NAN
    return values


# surprise


def test_surprise_is_a_number_of_nats_for_each_sample(readings):
    signal = surprise(readings)
    assert signal.shape == (300,)
    assert np.isfinite(signal).all()
    assert (signal >= 0).all()


def test_a_sample_without_any_reading_has_no_surprise_and_changes_nobody_elses(readings):
    more = np.vstack((readings[:100], np.full((5, 3), NAN), readings[100:]))
    signal = surprise(more)
    assert np.isnan(signal[100:105]).all()
    np.testing.assert_allclose(np.delete(signal, range(100, 105)), surprise(readings), rtol=1e-12)


def test_nobody_has_any_reading():
    assert np.isnan(surprise(np.full((4, 3), NAN))).all()


@pytest.mark.parametrize("factors", [(10.0, 1.0, 1.0), (1e-2, 1e3, 7.0)], ids=str)
def test_surprise_does_not_depend_on_the_unit_of_a_channel(readings, factors):
    np.testing.assert_allclose(surprise(readings * factors), surprise(readings), rtol=1e-6, atol=1e-6)


def test_surprise_does_not_depend_on_the_order_of_samples_or_channels(readings, rng):
    order = rng.permutation(300)
    np.testing.assert_allclose(surprise(readings[order]), surprise(readings)[order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(surprise(readings[:, [2, 0, 1]]), surprise(readings), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_higher_reading_in_any_channel_is_never_less_surprising(readings, channel):
    sample = 17
    last = -1.0
    for value in np.geomspace(0.2, 1e4, 12):
        changed = readings.copy()
        changed[sample, channel] = value
        signal = surprise(changed)[sample]
        assert signal >= last - 1e-9
        last = signal
    assert last > np.nanquantile(surprise(readings), 0.99)  # one channel is enough to stand out


def test_a_channel_that_a_sample_lacks_counts_as_read_at_the_median(rng):
    values = rng.lognormal(0, 0.5, (2001, 3))
    values[0] = NAN, NAN, 2.5
    values[1, :2] = np.median(values[2:, :2], 0)  # an odd number of others: adding their median again leaves it there
    values[1, 2] = 2.5
    signal = surprise(values)
    assert signal[0] == pytest.approx(signal[1], rel=1e-9)
    # An image without boxes is then neither among the first to go as easy nor as suspect.
    assert np.quantile(signal, 0.2) < surprise(np.vstack((values, [[NAN, NAN, 1.0]])))[-1] < np.quantile(signal, 0.8)


def test_two_channels_that_agree_count_for_more_than_either(rng):
    values = rng.lognormal(0, 0.5, (1001, 3))
    values[0], values[1], values[2] = (4, 1, 1), (1, 4, 1), (4, 4, 1)
    one, other, both = surprise(values)[:3]
    assert both > 1.2 * max(one, other)


@pytest.mark.parametrize("bad_share", [0.04, 0.08])
@pytest.mark.parametrize("size", [8.0, 1e4])  # however bad they are
def test_a_minority_of_bad_samples_stands_out_and_hardly_moves_the_others(rng, bad_share, size):
    clean = rng.lognormal(0, 0.3, (400, 3))
    bad = np.zeros(400, bool)
    bad[: round(400 * bad_share)] = True
    spoilt = clean.copy()
    spoilt[bad, 1] *= size
    before, after = surprise(clean), surprise(spoilt)
    assert np.median(np.abs(after - before)[~bad]) < 0.5
    assert after[bad].min() > np.quantile(after[~bad], 0.95)
    rank = lambda values: values.argsort().argsort()  # noqa: E731
    assert np.corrcoef(rank(before[~bad]), rank(after[~bad]))[0, 1] > 0.95


def test_how_bad_the_bad_are_makes_no_difference_to_the_others(rng):
    clean = rng.lognormal(0, 0.3, (400, 3))
    worse, worst = clean.copy(), clean.copy()
    worse[:30, 1] *= 1e2
    worst[:30, 1] *= 1e6
    np.testing.assert_allclose(surprise(worse)[30:], surprise(worst)[30:], rtol=1e-9, atol=1e-9)


# Numpy's warnings, where they are not the subject, are left to the one test that is about them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EXTREMES = [
    ("all equal", np.ones((50, 2))),
    ("all zero", np.zeros((50, 2))),
    ("one sample", np.array([[1.0, 2.0]])),
    ("one far out", np.vstack((np.ones((49, 2)), [[1e12, 1.0]]))),
    ("no spread but in a few", np.r_[np.ones(45), np.arange(2, 7)][:, None]),
    ("an empty channel", np.column_stack((np.arange(1.0, 51), np.full(50, NAN)))),
]


@pytest.mark.parametrize("values", [c[1] for c in EXTREMES], ids=[c[0] for c in EXTREMES])
def test_surprise_of_extreme_sets_is_finite(values):
    signal = surprise(values)
    assert np.isfinite(signal).all()
    assert (signal >= 0).all()


def test_surprise_writes_no_warning_on_the_users_screen():
    far_out, unseen = np.vstack((np.ones((49, 2)), [[1e12, 1.0]])), np.array([[1.0], [NAN], [2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (far_out, unseen):
            surprise(values)


# sample_loss


@pytest.mark.parametrize("tau", [0.05, 0.25, 0.5, 0.9])
def test_sample_loss_is_one_at_the_tau_quantile(rng, tau):
    signal = rng.exponential(3, 201)
    loss = sample_loss(signal, tau)
    assert np.quantile(loss, tau) == pytest.approx(1)
    assert (loss < 1).mean() == pytest.approx(tau, abs=0.01)
    np.testing.assert_allclose(loss / loss[0], signal / signal[0])  # a unit, nothing else
    np.testing.assert_allclose(sample_loss(signal * 1e3, tau), loss)  # dimensionless


def test_samples_without_a_signal_have_no_loss_and_do_not_count(rng):
    signal = rng.exponential(1, 101)
    more = np.r_[signal, [NAN] * 40]
    np.testing.assert_allclose(sample_loss(more, 0.5)[:101], sample_loss(signal, 0.5))
    assert np.isnan(sample_loss(more, 0.5)[101:]).all()
    assert np.isnan(sample_loss(np.full(3, NAN), 0.5)).all()


def test_a_set_that_surprises_nobody_has_a_finite_loss():
    assert np.isfinite(sample_loss(np.zeros(5), 0.5)).all()


# pressure


def test_pressure_is_least_at_one_and_grows_both_ways():
    at_one = pressure(np.array([1.0]))[0]
    assert at_one == pytest.approx(1.0)
    harder, easier = pressure(np.geomspace(1.01, 100, 50)), pressure(np.geomspace(0.99, 1e-4, 50))
    for side in (harder, easier):
        assert (np.diff(side) > 0).all()
        assert side[0] > at_one


# l, f: the figures of the paper's term l - log l
FIGURES = [(0.01, 4.615), (0.1, 2.403), (1.0, 1.0), (5.0, 3.391), (10.0, 7.697)]


@pytest.mark.parametrize(("loss", "f"), FIGURES)
def test_pressure_in_figures(loss, f):
    assert pressure(np.array([loss]))[0] == pytest.approx(f, abs=1e-3)


def test_pressure_of_nothing_is_finite_and_of_no_loss_is_none():
    f = pressure(np.array([0.0, NAN]))
    assert np.isfinite(f[0])
    assert f[0] > pressure(np.array([1e-3]))[0]
    assert np.isnan(f[1])


# At O(N) and in strides, to the bit


def scale_by_sorting(logs: np.ndarray) -> tuple[float, float]:
    """Median and spread of the samples that are no outliers, each quantile asked of numpy anew."""
    median, upper = np.quantile(logs, (0.5, 0.75))
    spread = max((upper - median) / module._NORMAL_UPPER_QUARTILE, module._EPS)
    for _ in range(module._TRIMS):
        inside = logs[logs <= median + module._OUTLIER * spread]
        median, upper = np.quantile(inside, (0.5, 0.9))
        spread = max((upper - median) / module._NORMAL_UPPER_DECILE, module._EPS)
    return float(median), float(spread)


@pytest.mark.parametrize("wild", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 997])
def test_location_and_spread_are_numpys_quantiles_to_the_bit(n, wild, rng):
    logs = np.where(rng.random(n) < wild, rng.normal(9, 2, n), rng.normal(0, 0.4, n))
    for values in (logs, np.round(logs, 1)):  # ties, too
        assert module._location_and_spread(values.copy()) == scale_by_sorting(values)


def test_strides_change_no_bit(readings, monkeypatch):
    whole = surprise(readings)
    known = np.isfinite(readings)
    monkeypatch.setattr(module, "_CHUNK", 7)
    np.testing.assert_array_equal(surprise(readings), whole)
    np.testing.assert_array_equal(surprise(np.where(known, readings, 3.0), known), whole)
    nats = channel_surprise(readings)
    np.testing.assert_array_equal(np.sqrt((np.where(np.isfinite(nats), nats, np.log(2)) ** 2).sum(1)), whole)
