"""The running sums over a whole training, against the published formulas on the readings of all epochs at once."""

import numpy as np
import pytest

from yolo_adapruner.core.trajectory import Trajectory, early_epochs
from yolo_adapruner.study.baselines import area_under_margin, forgetting_events

N, EPOCHS = 60, 30


def epochs_of(seed: int = 0, *, shares: bool = False) -> np.ndarray:
    """Readings (epochs, N, 3) in which a quarter is not seen in each epoch, and sample 0 is never right."""
    rng = np.random.default_rng(seed)
    right = rng.random((EPOCHS, N)) if shares else rng.integers(0, 2, (EPOCHS, N)).astype(float)
    right[:, 0] = 0
    readings = np.stack((right, rng.normal(size=(EPOCHS, N)), rng.random((EPOCHS, N))), 2)
    readings[rng.random((EPOCHS, N)) < 0.25] = np.nan
    readings[:, 1] = np.nan
    return readings


@pytest.mark.parametrize("shares", [False, True])
def test_sums_are_those_of_the_formulas_on_all_epochs(shares):
    readings, kept = epochs_of(shares=shares), Trajectory(N, EPOCHS)
    for epoch in readings:
        kept.add(epoch)
    found = kept.columns()
    assert found["forgotten"] == pytest.approx(forgetting_events(readings[..., 0].T), rel=1e-5)
    assert np.isinf(found["forgotten"][[0, 1]]).all()
    seen = np.arange(N) != 1
    assert found["margin"][seen] == pytest.approx(area_under_margin(readings[..., 1].T)[seen], abs=1e-5)
    assert np.isnan(found["margin"][1])
    assert found["early_error"][seen] == pytest.approx(np.nanmean(readings[:, seen, 2], 0), rel=1e-5)


EARLY = [
    # epochs, first, behind the last
    (200, 20, 40),
    (40, 4, 8),
    (18, 2, 4),
    (3, 0, 1),
    (1, 0, 1),
]


@pytest.mark.parametrize(("epochs", "first", "end"), EARLY)
def test_the_early_part_is_the_second_tenth(epochs, first, end):
    assert early_epochs(epochs) == range(first, end)


def test_a_resumed_trajectory_ends_as_the_uninterrupted_one():
    readings = epochs_of()
    whole, first, second = (Trajectory(N, EPOCHS) for _ in range(3))
    for number, epoch in enumerate(readings):
        whole.add(epoch)
        (first if number < 11 else second).add(epoch)
        if number == 10:
            second.load_state_dict(first.state_dict())
    for name, values in whole.columns().items():
        np.testing.assert_array_equal(values, second.columns()[name])


def test_the_state_of_another_set_is_refused():
    with pytest.raises(ValueError, match="Expected the trajectory of 5 samples"):
        Trajectory(5, 3).load_state_dict(Trajectory(6, 3).state_dict())


@pytest.mark.parametrize("epochs", [3, 3000])
def test_an_image_costs_the_same_however_long_the_training(epochs):
    state = Trajectory(1000, epochs).state_dict()
    assert sum(values.nbytes for values in state.values()) == 21_000
