"""What was seen of each sample: an epoch's means, and mean and spread over epochs in one pass."""

import warnings

import numpy as np
import pytest

from yolo_adapruner.core import history as module
from yolo_adapruner.core.history import EpochRecord, RunningMoments

NAN, INF = np.nan, np.inf


def test_an_epoch_gives_the_mean_of_each_sample_and_nan_where_there_is_none():
    record = EpochRecord(4, 2)
    record.add(np.array([0, 2]), np.array([[1.0, 10.0], [3.0, NAN]]))
    record.add(np.array([2, 0]), np.array([[5.0, NAN], [2.0, 20.0]], np.float32))
    np.testing.assert_array_equal(record.means(), [[1.5, 15], [NAN, NAN], [4, NAN], [NAN, NAN]])


def test_a_sample_twice_in_one_batch_counts_twice():
    record = EpochRecord(2, 1)
    record.add(np.array([1, 1, 1]), np.array([[1.0], [2.0], [6.0]]))
    np.testing.assert_array_equal(record.means(), [[NAN], [3]])


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_a_reading_that_is_no_number_is_no_reading(bad):
    record = EpochRecord(1, 2)
    record.add(np.array([0]), np.array([[bad, 1.0]]))
    record.add(np.array([0]), np.array([[4.0, bad]]))
    assert record.means().tolist() == [[4, 1]]


def test_the_first_columns_alone_are_the_same():
    record = EpochRecord(3, 3)
    record.add(np.array([0, 2, 2]), np.array([[1.0, NAN, 5.0], [3.0, 4.0, NAN], [4.0, 4.0, 1.0]]))
    np.testing.assert_array_equal(record.means(2), record.means()[:, :2])


def test_of_many_samples_the_same_is_summed_in_fewer_bits(monkeypatch):
    rng = np.random.default_rng(0)
    ids, values, area = rng.integers(0, 50, 400), rng.lognormal(0, 1, (400, 3)), rng.random(400)
    values[rng.random(values.shape) < 0.2] = NAN
    whole = EpochRecord(50, 3)
    whole.add(ids, values, area)
    monkeypatch.setattr(module, "_MANY", 50)
    monkeypatch.setattr(module, "_CHUNK", 64)
    half = EpochRecord(50, 3)
    half.add(ids, values, area)
    assert half.totals[0].nbytes * 2 == whole.totals[0].nbytes
    np.testing.assert_allclose(half.means(), whole.means(), rtol=1e-5)
    np.testing.assert_array_equal(half.area, whole.area)


def test_the_order_of_batches_and_samples_changes_nothing():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (30, 3)).astype(float)  # whole numbers add up the same in any order
    ids = rng.integers(0, 10, 30)
    order = rng.permutation(30)
    straight, shuffled = EpochRecord(10, 3), EpochRecord(10, 3)
    straight.add(ids, values)
    for part in np.array_split(order, 4):
        shuffled.add(ids[part], values[part])
    np.testing.assert_array_equal(straight.means(), shuffled.means())


# Area


def test_readings_of_an_epoch_are_averaged_by_the_area_they_were_made_on():
    record = EpochRecord(3, 2)
    record.add(np.array([0, 0, 1]), np.array([[1.0, NAN], [5.0, 3.0], [2.0, 2.0]]), np.array([0.75, 0.25, 0.1]))
    record.add(np.array([0]), np.array([[9.0, 9.0]]), np.array([0.0]))  # nothing of it was to be seen
    np.testing.assert_allclose(record.means(), [[2, 3], [2, 2], [NAN, NAN]])
    np.testing.assert_allclose(record.area, [1.0, 0.1, 0])


def test_area_without_any_reading_is_no_evidence():
    record = EpochRecord(2, 2)
    record.add(np.array([0, 1]), np.array([[NAN, NAN], [NAN, 1.0]]), np.array([0.5, 0.5]))
    assert record.area.tolist() == [0, 0.5]


def test_no_area_is_a_whole_view_each_bit_for_bit():
    rng = np.random.default_rng(2)
    ids, values = rng.integers(0, 10, 30), rng.lognormal(size=(30, 3))
    bare, whole = EpochRecord(10, 3), EpochRecord(10, 3)
    bare.add(ids, values)
    whole.add(ids, values, np.ones(30, np.float32))
    np.testing.assert_array_equal(bare.means(), whole.means())
    np.testing.assert_array_equal(bare.area, np.bincount(ids, minlength=10))


@pytest.mark.parametrize("area", [[-0.1, 1], [NAN, 1], [INF, 1], [1], [1, 1, 1], [[1], [1]]], ids=str)
def test_an_area_that_cannot_be_is_refused_and_adds_nothing(area):
    record = EpochRecord(2, 1)
    with pytest.raises(ValueError, match="Expected an area of 0 or more for each of 2 readings"):
        record.add(np.array([0, 1]), np.ones((2, 1)), np.array(area))
    assert np.isnan(record.means()).all()


def moments_of(epochs: np.ndarray) -> RunningMoments:
    moments = RunningMoments(*epochs.shape[1:])
    for values in epochs:
        moments.add(values)
    return moments


@pytest.fixture
def epochs() -> np.ndarray:
    """12 epochs of 20 samples and 3 columns, a third of it missing, far from 0 so that a naive sum of squares fails."""
    rng = np.random.default_rng(1)
    values = 1e6 + rng.normal(size=(12, 20, 3))
    values[rng.random(values.shape) < 0.3] = NAN
    values[:, 0] = NAN  # never seen
    values[:, 1] = NAN
    values[5, 1] = 7.0  # seen once
    return values


def test_moments_are_those_of_numpy(epochs):
    moments = moments_of(epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's own about empty slices
        mean, spread = np.nanmean(epochs, 0), np.nanstd(epochs, 0, ddof=1)
    np.testing.assert_array_equal(moments.count, np.isfinite(epochs).sum(0))
    np.testing.assert_allclose(moments.means, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.spread[2:], spread[2:], rtol=1e-6)
    assert moments.spread[1].tolist() == [0, 0, 0]  # one reading
    assert np.isnan(moments.spread[0]).all()  # none


def test_epochs_of_equal_weight_are_epochs_without_one_bit_for_bit(epochs):
    bare, ones = moments_of(epochs), RunningMoments(20, 3)
    for values in epochs:
        ones.add(values, np.ones(20))
    for name, values in bare.state_dict().items():
        np.testing.assert_array_equal(ones.state_dict()[name], values, err_msg=name)
    np.testing.assert_array_equal(ones.spread, bare.spread)


def test_weighted_moments_are_those_of_the_textbook():
    rng = np.random.default_rng(3)
    values, weight = 1e3 + rng.normal(size=(9, 6, 2)), rng.random((9, 6))
    values[rng.random(values.shape) < 0.3] = NAN
    weight[4] = 0  # an epoch that saw nobody
    moments = RunningMoments(6, 2)
    for v, w in zip(values, weight, strict=True):
        moments.add(v, w)
    for i, column in np.ndindex(6, 2):
        seen = np.isfinite(values[:, i, column]) & (weight[:, i] > 0)
        v, w = values[seen, i, column], weight[seen, i]
        mean = (w * v).sum() / w.sum()
        assert moments.count[i, column] == seen.sum()
        assert moments.means[i, column] == pytest.approx(mean, rel=1e-12)
        variance = (w * (v - mean) ** 2).sum() / (w.sum() - (w**2).sum() / w.sum())
        assert moments.spread[i, column] == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_equal_readings_of_odd_weights_have_no_spread_and_no_warning():
    rng = np.random.default_rng(4)
    values, moments = rng.lognormal(size=(500, 2)), RunningMoments(500, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            moments.add(values, rng.random(500))
            np.testing.assert_allclose(moments.means, values, rtol=1e-12)
            np.testing.assert_allclose(moments.spread, 0, atol=1e-6)


@pytest.mark.parametrize("feather", [1e-3, 1e-13, 1e-200])
def test_a_feather_beside_a_whole_view_gives_a_finite_spread(feather):
    moments = RunningMoments(1, 1)
    moments.add(np.array([[2.0]]), np.array([1.0]))
    moments.add(np.array([[5.0]]), np.array([feather]))
    assert moments.means[0, 0] == pytest.approx(2 + 3 * feather / (1 + feather), rel=1e-12)
    assert np.isfinite(moments.spread).all()


def test_moments_of_before_epochs_had_a_weight_are_refused():
    state = RunningMoments(2, 1).state_dict()
    del state["weight"], state["weight2"]
    with pytest.raises(ValueError, match="Expected moments with weight, weight2, but the state has none"):
        RunningMoments(2, 1).load_state_dict(state)


def test_moments_go_on_from_a_saved_state_bit_for_bit(epochs):
    whole, first = moments_of(epochs), moments_of(epochs[:5])
    state = first.state_dict()
    second = RunningMoments(20, 3)
    second.load_state_dict(state)
    first.add(epochs[0])  # must not reach into the state, nor into what took it over
    for values in epochs[5:]:
        second.add(values)
    for name, values in whole.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[name], values)


def test_strides_and_columns_apart_change_no_bit(monkeypatch):
    rng = np.random.default_rng(3)
    whole, parts, record = RunningMoments(50, 3), RunningMoments(50, 3), EpochRecord(50, 3)
    epochs = [np.where(rng.random((50, 3)) < 0.3, NAN, rng.random((50, 3))) for _ in range(4)]
    weights = rng.random((4, 50)) * (rng.random((4, 50)) < 0.8)
    for values, weight in zip(epochs, weights, strict=True):
        whole.add(values, weight)
    monkeypatch.setattr(module, "_CHUNK", 7)
    for values, weight in zip(epochs, weights, strict=True):
        parts.add_columns((values[:, :2], values[:, 2]), weight)
        record.add(rng.integers(0, 50, 50), values, weight)
    for name, held in whole.state_dict().items():
        np.testing.assert_array_equal(parts.state_dict()[name], held, err_msg=name)
    np.testing.assert_array_equal(parts.spread, whole.spread)
    means = record.means()
    assert np.isnan(means).any()
    np.testing.assert_array_equal(record.close(), means)
