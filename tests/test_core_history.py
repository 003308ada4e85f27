"""What was seen of each sample: an epoch's means, and mean and spread over epochs in one pass."""

import warnings

import numpy as np
import pytest

from yolo_adapruner.core.history import EpochRecord, RunningMoments

NAN = np.nan


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
