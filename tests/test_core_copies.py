"""Copies in a whole run with synthetic readings and features: one of each pair goes, and the suspect one first."""

import numpy as np
import pytest

from tests.test_core_appearance import COPIES, D, N, Views
from tests.test_core_pruner import CHANNELS, Readings, pruner_of
from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings, Stage

SETTINGS = {"warmup": 8, "tau": 0.25, "clip": 20.0}


def settings(**changes) -> Settings:
    return Settings(**PruneConfig(**{**SETTINGS, **changes}).model_dump())


def epoch(pruner: Pruner, number: int, readings: np.ndarray, views: Views) -> None:
    pruner.open_epoch()
    pruner.observe(np.arange(N), readings)
    if pruner.appearance is not None:
        pruner.appearance.add(np.arange(N), views.of(number), np.ones(N))
    pruner.close_epoch(0.5)


def finished(pruner: Pruner, readings: Readings, views: Views) -> Pruner:
    for number in range(30):
        if pruner.stage is not Stage.FINETUNE:
            epoch(pruner, number, readings.of(number), views)
    return pruner


def clean_readings(suspect: list[int] = ()) -> Readings:
    readings = Readings(N, bad=0.0, without_objects=0.0)
    for copy, original in COPIES.items():
        readings.own[copy] = readings.own[original]
    readings.own[suspect, 1] *= 8
    return readings


def test_at_the_copies_share_one_of_each_pair_goes() -> None:
    # Before all labels: without any fault some clean image is the most surprising, and would go before a copy.
    strong = settings(share=0.05, redundancy=20.0)
    pruner = finished(Pruner(N, CHANNELS, 30, strong, features=D), clean_readings(), Views(COPIES))
    pairs = np.array(list(COPIES.items()))
    assert (pruner.kept[pairs].sum(1) == 1).all()
    assert np.isin(np.flatnonzero(~pruner.kept), pairs).all()
    gone = np.flatnonzero(~pruner.kept)
    mate = {**COPIES, **{original: copy for copy, original in COPIES.items()}}
    assert pruner.redundancy.twin[gone].tolist() == [mate[i] for i in gone]


@pytest.mark.parametrize("wrong", [0, 190], ids=["the original", "the copy"])
def test_the_wrongly_labelled_one_of_a_pair_goes(wrong) -> None:
    readings = clean_readings([wrong])
    pruner = finished(Pruner(N, CHANNELS, 30, settings(share=0.05), features=D), readings, Views(COPIES))
    assert not pruner.kept[wrong]
    assert pruner.kept[190 - wrong]


def test_copies_and_wrong_labels_go_together() -> None:
    wrong = list(range(100, 110))
    pruner = finished(Pruner(N, CHANNELS, 30, settings(share=0.1), features=D), clean_readings(wrong), Views(COPIES))
    assert not pruner.kept[wrong].any()
    assert (pruner.kept[np.array(list(COPIES.items()))].sum(1) == 1).all()


def test_without_copies_the_choice_is_what_it_is_without_the_term() -> None:
    readings = clean_readings(list(range(100, 120)))
    kept = [
        finished(Pruner(N, CHANNELS, 30, settings(share=0.1), features=f), readings, Views({})).kept for f in (0, D)
    ]
    assert np.array_equal(*kept)


def test_at_strength_0_nothing_is_compared() -> None:
    assert Pruner(N, CHANNELS, 30, settings(redundancy=0.0), features=D).appearance is None
    assert pruner_of(N, 30).appearance is None


def test_a_run_in_two_parts_ends_as_in_one() -> None:
    readings, views = clean_readings([3]), Views(COPIES)
    whole = finished(Pruner(N, CHANNELS, 30, settings(), features=D), readings, views)
    first, second = (Pruner(N, CHANNELS, 30, settings(), features=D) for _ in range(2))
    for number in range(12):
        epoch(first, number, readings.of(number), views)
    second.load_state_dict(first.state_dict())
    for number in range(12, 30):
        if second.stage is not Stage.FINETUNE:
            epoch(second, number, readings.of(number), views)
    assert np.array_equal(whole.mask.logits, second.mask.logits)
    assert np.array_equal(whole.redundancy.twin, second.redundancy.twin)
