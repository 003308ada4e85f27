"""The judge that learns from rehearsed faults: finds faults of that kind, names them, and never sees whom it judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import build_set, python, results, stages, train_here
from yolo_adapruner.core.pruner import Stage
from yolo_adapruner.core.suspicion import Suspicion
from yolo_adapruner.engine import rehearse, trainer
from yolo_adapruner.engine.judge import FaultJudge, judge
from yolo_adapruner.engine.rehearse import FEATURES
from yolo_adapruner.errors import DataError
from yolo_adapruner.study.planted import auroc

N = 200
SIGNS = {"shifted": ("localisation", 3.0), "swapped": ("classification", 4.0), "missing": ("missing", 3.0)}
KINDS = np.array(list(SIGNS))


def spoil(readings: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    result = readings.copy()
    for kind, (name, factor) in SIGNS.items():
        result[kinds == kind, FEATURES.index(name)] *= factor
    return result


def readings(rng: np.random.Generator) -> np.ndarray:
    return rng.lognormal(0, 0.3, (N, len(FEATURES)))


def planted(seed: int, share: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Readings of images some of which are wrong, their truth, and the rehearsal of each image."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(N) < share, rng.choice(KINDS, N), "clean")
    found = spoil(readings(rng), truth)
    rehearsed_kinds = rng.choice(KINDS, N)
    return found, truth, spoil(found, rehearsed_kinds), rehearsed_kinds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_faults_like_the_rehearsed_ones_are_found_and_named(seed: int) -> None:
    found, truth, rehearsed, kinds = planted(seed)
    verdict = judge(found, rehearsed, kinds)
    wrong = truth != "clean"
    assert auroc(verdict.suspicion, wrong) > 0.94
    assert (verdict.kind[wrong] == truth[wrong]).mean() > 0.9


def test_a_set_without_faults_gives_no_image_away() -> None:
    """A judge that saw whom it judges would be sure of all of them; out of fold, most stay below even odds."""
    found, _, rehearsed, kinds = planted(3, share=0.0)
    assert (judge(found, rehearsed, kinds).suspicion > 0).mean() < 0.15


def hard(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Right labels of which a share are of images that the detector sees nothing in, whatever their labels are.

    Where it sees the objects, a fault leaves some of them unexplained.
    """
    rng = np.random.default_rng(seed)
    is_hard = rng.random(N) < share
    found = readings(rng)
    found[:, FEATURES.index("extra")] = 0.1
    rehearsed = readings(rng)
    rehearsed[:, FEATURES.index("extra")] = 0.1
    for values, unseen in ((found, is_hard), (rehearsed, np.ones(N, bool))):
        values[unseen, FEATURES.index("presence")] *= 4
    rehearsed[~is_hard & (rng.random(N) < 0.7), FEATURES.index("extra")] = 0.5
    return found, is_hard, rehearsed, rng.choice(KINDS, N)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hard_images_read_like_faults_and_are_not_taken_for_them(seed: int) -> None:
    found, is_hard, rehearsed, kinds = hard(seed, 0.12)
    told = Suspicion(N, FaultJudge(kinds, seed, torch.device("cpu")))
    told.learn(found, rehearsed, np.ones(N))
    assert told.share < is_hard.mean() / 2
    assert (told.posterior[is_hard] > 0).mean() < 0.5
    assert not (told.posterior[~is_hard] > 0).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_faults_among_hard_images_are_found(seed: int) -> None:
    found, is_hard, rehearsed, kinds = hard(seed, 0.12)
    wrong = ~is_hard & (np.arange(N) < N // 5)
    found[wrong] = rehearsed[wrong]  # the label that is a fault; its own rehearsal reads like it
    told = Suspicion(N, FaultJudge(kinds, seed, torch.device("cpu")))
    told.learn(found, rehearsed, np.ones(N))
    seen = wrong & (found[:, FEATURES.index("extra")] > 0.3)
    assert (told.posterior[seen] > 0).mean() > 0.9
    assert np.median(told.posterior[is_hard]) + 2 < np.median(told.posterior[seen])  # nats
    assert not (told.posterior[~is_hard & ~wrong] > 0).any()


def test_of_many_images_a_part_teaches_and_all_are_judged() -> None:
    found, truth, rehearsed, kinds = planted(4)
    taught = np.random.default_rng(0).permutation(N) < N // 2
    told = Suspicion(N, FaultJudge(np.where(taught, kinds, ""), 4, torch.device("cpu")))
    for _ in range(2):
        said = told.learn(found, rehearsed[taught], np.ones(N))
    assert said is not None
    assert np.isfinite(said).all()
    wrong = truth != "clean"
    for part in (taught, ~taught):
        assert auroc(told.log_odds[part], wrong[part]) > 0.94
        assert (told.kind[part & wrong] == truth[part & wrong]).mean() > 0.85
    assert told.wrong_ones.any()
    assert not (told.wrong_ones & ~taught).any()


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="but got blurred"):
        FaultJudge(np.array(["shifted", "blurred", ""]), 0, torch.device("cpu"))


@pytest.mark.parametrize("most", [60, 120])
def test_where_there_are_more_than_can_be_learned_from_nobody_is_judged_by_what_he_taught(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_adapruner.engine.judge.MOST_ROWS", most)
    found, truth, rehearsed, kinds = planted(6)
    verdict = judge(found, rehearsed, kinds)
    assert auroc(verdict.suspicion, truth != "clean") > 0.9
    assert np.isfinite(verdict.rehearsal).sum() == most  # of who did not teach the rehearsal is not asked for


def test_a_rehearsal_that_changes_nothing_teaches_nothing() -> None:
    rng = np.random.default_rng(0)
    assert abs(judge(readings(rng), readings(rng), rng.choice(KINDS, N)).suspicion.mean()) < 1


def test_the_same_input_gives_the_same_verdict() -> None:
    found, _, rehearsed, kinds = planted(5)
    a, b = judge(found, rehearsed, kinds, seed=1), judge(found, rehearsed, kinds, seed=1)
    assert np.array_equal(a.suspicion, b.suspicion)


def test_images_without_labels_or_rehearsal_are_judged_too() -> None:
    found, _, rehearsed, kinds = planted(6)
    found[:5, :3] = np.nan
    rehearsed[:20] = np.nan
    verdict = judge(found, rehearsed, kinds)
    assert np.isfinite(verdict.suspicion).all()
    assert set(verdict.kind) <= set(KINDS)


@pytest.mark.parametrize("n", [5, N])
def test_too_little_to_learn_from_is_refused(n: int) -> None:
    found, _, rehearsed, kinds = planted(7)
    with pytest.raises(DataError, match="2 kinds"):
        judge(found[:n], rehearsed[:n], kinds[:n] if n < N else np.full(N, "shifted"))


@pytest.mark.slow
def test_judging_draws_from_no_stream_of_the_training(tmp_path: Path) -> None:
    """In a process of its own: a library that is loaded in the middle of a training may draw while it is."""
    script = (
        "import random, numpy as np, torch; from yolo_adapruner.engine import judge, rehearse\n"
        "states = lambda: (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], "
        "torch.get_rng_state().tolist())\n"
        "rng = np.random.default_rng(0); a, b = rng.lognormal(0, 1, (2, 60, len(rehearse.FEATURES)))\n"
        "before = states(); judge.judge(a, b, np.array(['shifted', 'missing'] * 30)); print(states() == before)"
    )
    assert python("-c", script, cwd=tmp_path, PYTHONPATH=str(Path(__file__).parent.parent)).stdout.strip() == "True"


@pytest.mark.slow
def test_a_ready_judge_ends_the_warm_up_and_asking_it_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    shapes, tables, warm = build_set(tmp_path / "set"), {}, {}
    for patience in (0, 1):
        method = {"warmup_max": 0.7, "joint": 0.1, "warmup_patience": patience}
        folder = tmp_path / str(patience) / "run"
        train_here(shapes, folder, method=method, epochs=10)
        tables[patience], warm[patience] = results(folder), stages(folder).count(Stage.WARMUP)
    assert warm[0] == 7
    assert 2 <= warm[1] < 7
    for waited, asked in zip(tables[0][: warm[1]], tables[1], strict=False):
        assert waited.pop("time") > 0 < asked.pop("time")
        assert asked == waited


@pytest.mark.slow
def test_every_epoch_is_rehearsed_however_few_batches_of_mixed_images_it_has(tmp_path: Path) -> None:
    settings = {"epochs": 8, "batch": 12, "mosaic": 1.0, "close_mosaic": 0}  # two batches, and one of three rehearsed
    run = train_here(build_set(tmp_path / "set"), tmp_path / "run", method={"warmup": "auto"}, **settings)
    assert len(run.pruner.doubts) >= 3
    assert np.isfinite(run.pruner.doubts).all()


@pytest.mark.slow
def test_of_a_large_set_only_a_part_is_asked_whether_the_judge_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt: list[int] = []
    of = rehearse.Rehearsal.spoil

    def counted(self: rehearse.Rehearsal, *args: object) -> object:
        spoilt.append(1)
        return of(self, *args)

    monkeypatch.setattr(rehearse.Rehearsal, "spoil", counted)
    monkeypatch.setattr(trainer, "TRIED", 24)
    run = train_here(build_set(tmp_path / "set", train=48), tmp_path / "run", method={"warmup_patience": 1}, epochs=5)
    warm = len(run.pruner.doubts)
    joint = run.pruner.state.epoch
    assert 2 <= warm <= 3
    assert np.isfinite(run.pruner.doubts).all()
    assert len(spoilt) == 3 * warm + 6 * joint  # every other of six batches, and all


@pytest.mark.slow
def test_of_a_large_set_only_a_part_is_rehearsed_and_every_image_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rehearse, trainer):
        monkeypatch.setattr(module, "MOST_REHEARSED", 24)
    run = train_here(build_set(tmp_path / "set", train=48), tmp_path / "run", method={"warmup": 1}, epochs=5)
    told = run.pruner.suspicion
    assert len(told.taught) == 24
    assert np.isfinite(told.posterior).all()
    assert len(np.unique(told.posterior)) == 48
