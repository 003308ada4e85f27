"""A judge in the pruner: its log odds are the signal, epochs are resumed exactly, and without a word surprise stays."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.core.signal import surprise
from yolo_adapruner.core.suspicion import Suspicion, softplus

N, READINGS, CHANNELS = 60, 5, 3


class FirstColumn:
    """Says the first reading beside the rehearsed one; silent where asked to be."""

    kinds = ("shifted", "missing")

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent

    def __call__(self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray) -> np.ndarray | None:
        if self.silent:
            return None
        odds = readings[:, 0] - np.nanmedian(rehearsed[:, 0])
        return np.column_stack((odds, np.where(odds > 0, -0.1, -2.0), np.where(odds > 0, -2.0, -0.1)))


def pruner_of(judge: FirstColumn | None) -> Pruner:
    settings = Settings(**PruneConfig(share=0.1, warmup=1, joint=0.5).model_dump())
    return Pruner(N, CHANNELS, 12, settings, judge=judge, readings=READINGS)


def run(pruner: Pruner, first: int, last: int, unseen: int = -1) -> None:
    for epoch in range(first, last):
        values = np.random.default_rng(epoch).lognormal(0, 0.2, (N, READINGS)) + np.linspace(0, 3, N)[:, None]
        if unseen >= 0:
            values[unseen] = np.nan
        pruner.open_epoch()
        width = READINGS if pruner.rehearses else CHANNELS
        pruner.observe(np.arange(N), values[:, :width], rehearsed=values + 1)
        pruner.close_epoch(0.5)


def test_the_signal_is_minus_log_of_the_probability_of_right_labels_from_mean_log_odds() -> None:
    pruner = pruner_of(FirstColumn())
    run(pruner, 0, 7, unseen=3)
    assert pruner.stage is Stage.FINETUNE
    odds = pruner.suspicion.log_odds
    np.testing.assert_allclose(pruner.signal, np.log1p(np.exp(odds)))
    assert np.isnan(odds[3])
    assert pruner.suspicion.kind[3] == ""
    assert set(pruner.suspicion.kind) == {"", "shifted", "missing"}
    assert set(np.flatnonzero(~pruner.kept)) == set(np.argsort(np.nan_to_num(odds))[-6:])


@pytest.mark.parametrize("judge", [None, FirstColumn(silent=True)], ids=["none", "one that cannot learn"])
def test_without_a_judge_s_word_the_signal_is_the_surprise(judge: FirstColumn | None) -> None:
    pruner = pruner_of(judge)
    run(pruner, 0, 5)
    np.testing.assert_array_equal(pruner.signal, surprise(pruner.moments.means[:, :CHANNELS]))
    assert np.isnan(pruner.suspicion.log_odds).all()


def test_a_resumed_run_ends_as_one_that_was_not_interrupted_bit_for_bit() -> None:
    whole = pruner_of(FirstColumn())
    run(whole, 0, 7)
    for stopped in range(1, 7):
        first, second = pruner_of(FirstColumn()), pruner_of(FirstColumn())
        run(first, 0, stopped)
        second.load_state_dict(deepcopy(first.state_dict()))
        run(second, stopped, 7)
        np.testing.assert_array_equal(second.mask.logits, whole.mask.logits)
        np.testing.assert_array_equal(second.suspicion.log_odds, whole.suspicion.log_odds)


def test_an_epoch_counts_by_its_evidence() -> None:
    mean, judge = Suspicion(2, FirstColumn()), FirstColumn()
    rehearsed, values = np.zeros((2, READINGS)), np.zeros((2, READINGS))
    for odds, evidence in ((1.0, [1, 1]), (4.0, [0.5, 0])):
        values[:, 0] = odds
        mean.learn(values, rehearsed, np.array(evidence, float))
    np.testing.assert_allclose(mean.log_odds, [(1 + 0.5 * 4) / 1.5, 1])
    assert judge.kinds[0] == mean.kind[0]


def test_a_judge_s_state_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="judge's state of shape"):
        pruner_of(FirstColumn()).load_state_dict(pruner_of(None).state_dict())


def test_softplus_neither_overflows_nor_loses_small_numbers() -> None:
    np.testing.assert_allclose(softplus(np.array([-700.0, 0.0, 5000.0])), [np.exp(-700.0), np.log(2), 5000.0])
