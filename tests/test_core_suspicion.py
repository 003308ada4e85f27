"""A judge in the pruner: its log odds are the signal, epochs are resumed exactly, and without a word surprise stays.

What nothing speaks against goes by lot.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from scipy.stats import rankdata

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core import suspicion as suspicion_module
from yolo_adapruner.core.floors import BACKGROUND, CLASS, Constraints, Groups
from yolo_adapruner.core.pruner import SPREAD, Pruner, Settings, Stage, draw_lots, near_even, stalled
from yolo_adapruner.core.reasons import DRAWN, SUSPECT, Evidence, explain
from yolo_adapruner.core.selection import cut, in_order
from yolo_adapruner.core.signal import surprise
from yolo_adapruner.core.suspicion import (
    LEFT_OUT,
    MOST,
    Suspicion,
    mean_probability,
    shares_of_wrong,
    softplus,
    wrong_ones,
)

N, READINGS, CHANNELS = 60, 5, 3


class FirstColumn:
    """Says the first reading beside the rehearsed one; silent where asked to be."""

    kinds = ("shifted", "missing")

    def __init__(self, silent: bool = False, n: int = N, worsens: bool = True, often: float = 1.5) -> None:
        self.silent, self.worsens, self.often = silent, worsens, often
        self.planted = np.arange(n) % 2
        self.asked: list[np.ndarray] = []

    def __call__(
        self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
    ) -> np.ndarray | None:
        if self.silent:
            return None
        self.asked.append(right)
        even = np.nanmedian(rehearsed[:, 0])
        return word(readings[:, 0] - even, rehearsed[:, 0] - even)


def word(odds: np.ndarray, rehearsal: np.ndarray) -> np.ndarray:
    """What a judge of two kinds says, (N, 4)."""
    return np.column_stack((odds, rehearsal, np.where(odds > 0, -0.1, -2.0), np.where(odds > 0, -2.0, -0.1)))


def pruner_of(judge: FirstColumn | None, **method: object) -> Pruner:
    config = {"share": 0.1, "warmup": 1, "joint": 0.5, "rest": "rank", **method}
    return Pruner(N, CHANNELS, 12, Settings(**PruneConfig(**config).model_dump()), judge=judge, readings=READINGS)


def run(pruner: Pruner, first: int, last: int, unseen: int = -1) -> None:
    for epoch in range(first, last):
        values = np.random.default_rng(epoch).lognormal(0, 0.2, (N, READINGS)) + np.linspace(0, 3, N)[:, None]
        if unseen >= 0:
            values[unseen] = np.nan
        pruner.open_epoch()
        width = READINGS if pruner.rehearses else CHANNELS
        pruner.observe(np.arange(N), values[:, :width], rehearsed=values + 1)
        pruner.close_epoch(0.5)


@pytest.mark.parametrize("worsens", [True, False])
def test_only_who_is_rehearsed_teaches_and_of_the_others_is_asked_once_an_epoch(worsens: bool) -> None:
    taught = np.arange(N) % 3 == 0
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    class Asked(FirstColumn):
        def __call__(
            self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
        ) -> np.ndarray:
            assert rehearsed.shape == (taught.sum(), READINGS)
            asked.append((evidence.copy(), right.copy()))
            again = np.full(N, np.nan)
            again[taught] = rehearsed[:, 0]
            return np.where(evidence[:, None] > 0, word(readings[:, 0], again), np.nan)

    judge = Asked(worsens=worsens)
    judge.planted = np.where(taught, judge.planted, -1)
    told = Suspicion(N, judge)
    values = np.random.default_rng(0).normal(0, 1, (N, READINGS))
    for epoch in range(2):
        said = told.learn(values, values[taught] + 1, np.ones(N))
        assert said is not None
        assert np.isfinite(said).all()
        *before, last = asked
        assert len(before) == 2 - epoch  # the first epoch has no probe to ask who is calm
        assert all((evidence > 0).tolist() == taught.tolist() for evidence, _ in before)
        assert (last[0] == 1).all()
        assert not any(right[~taught].any() for _, right in asked)
        asked.clear()
    np.testing.assert_allclose(told.log_odds, values[:, 0])
    assert not told.wrong_ones[~taught].any()
    other = Suspicion(N, judge)
    other.load_state_dict(told.state_dict())
    np.testing.assert_array_equal(other.posterior, told.posterior)
    with pytest.raises(ValueError, match="probe's state"):
        Suspicion(N, FirstColumn()).load_state_dict(told.state_dict())


def test_a_pruner_notes_rehearsals_of_those_that_teach_alone() -> None:
    taught = np.arange(N) % 3 == 0
    judge = FirstColumn()
    judge.planted = np.where(taught, judge.planted, -1)
    pruner = pruner_of(judge)
    pruner.open_epoch()
    pruner.close_epoch(0.5)
    pruner.open_epoch()
    values = np.random.default_rng(0).lognormal(0, 1, (N, READINGS))
    order = np.random.default_rng(1).permutation(N)
    for ids, area in ((order[:25], None), (order[25:], np.full(N - 25, 0.5))):
        pruner.observe(ids, values[ids], area, rehearsed=2 * values[ids])
    total, weight, seen = pruner.totals[3:]
    assert len(total) == len(seen) == taught.sum()
    np.testing.assert_allclose(total / weight, 2 * values[taught])


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
    mean, judge = Suspicion(2, FirstColumn(n=2)), FirstColumn(n=2)
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


# The warm-up ends once the judge has learned what it can


class Learning(FirstColumn):
    """Doubts all alike, by what it is told in the first reading."""

    def __call__(
        self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
    ) -> np.ndarray | None:
        told = np.where(evidence > 0, readings[:, 0], np.nan)
        return None if np.isnan(told).all() else word(told, np.zeros(len(told)))


DOUBTS = (0.5, 0.4, 0.3, 0.2, 0.19, 0.185, 0.181, 0.17, 0.1, 0.1)


def warm(doubts: tuple[float, ...], *, works: bool = False, worsens: bool = True, **method: object) -> Pruner:
    """A pruner after the epochs in which its judge doubts so much, or after as many of them as the warm-up took."""
    settings = Settings(**PruneConfig(**{"share": 0.1, "warmup_max": 0.5, "warmup_patience": 3, **method}).model_dump())
    pruner = Pruner(N, CHANNELS, 40, settings, judge=Learning(worsens=worsens), readings=READINGS)
    for doubt in doubts:
        if pruner.stage is not Stage.WARMUP:
            break
        pruner.open_epoch()
        values = np.full((N, READINGS if pruner.rehearses else CHANNELS), np.log(doubt / (1 - doubt)))
        pruner.observe(np.arange(N), values, rehearsed=np.ones((N, READINGS)))
        pruner.close_epoch(0.5, works=works)
    return pruner


def test_an_auto_warm_up_ends_once_the_judge_s_doubt_has_stopped_falling() -> None:
    pruner = warm(DOUBTS)
    # 0.19, 0.185 and 0.181 are not a tenth below 0.2.
    np.testing.assert_allclose(pruner.doubts, DOUBTS[:7])
    assert pruner.stage is Stage.JOINT
    assert np.isnan(pruner.suspicion.log_odds).all()  # what was said in the warm-up judges nobody


@pytest.mark.parametrize("method", [{"warmup_patience": 0}, {"warmup": 10}, {"warmup_max": 0.07}], ids=str)
def test_where_it_could_not_end_the_warm_up_nothing_is_rehearsed_in_it(method: dict) -> None:
    pruner = warm((0.2,), **method)
    assert pruner.stage is Stage.WARMUP
    assert not pruner.rehearses
    assert not pruner.doubts


def test_a_longer_patience_waits_longer_and_a_doubt_that_falls_again_counts_anew() -> None:
    assert warm(DOUBTS, warmup_patience=5).stage is Stage.WARMUP  # 0.17 is the fourth that is no low, 0.1 is one
    assert len(warm((*DOUBTS, *[0.1] * 8), warmup_patience=5).doubts) == 14


PATIENCES = [
    # settings, whether a fault on a wrong label reads worse, epochs
    ({"share": 0.05}, True, 18),
    ({"share": 0.1}, True, 9),
    ({"share": 0.2}, True, 5),
    ({"share": 0.3}, True, 3),
    ({"share": 0.5}, True, 3),
    ({"share": 0.1, "dynamic": True}, True, 3),
    ({"share": 0.1}, False, 3),
    ({"share": 0.1, "warmup_patience": 4}, True, 4),
    ({"share": 0.1, "warmup_patience": 0}, True, 0),
]


@pytest.mark.parametrize(("method", "worsens", "epochs"), PATIENCES, ids=[str(c) for c in PATIENCES])
def test_the_less_goes_the_longer_a_detector_s_judge_is_waited_for(method: dict, worsens: bool, epochs: int) -> None:
    assert warm((), **{"warmup_patience": "auto", **method}, worsens=worsens).patience == epochs


def test_a_short_training_s_longest_warm_up_is_long_enough_for_the_judge_to_be_asked() -> None:
    method = {"share": 0.05, "warmup_max": 0.25, "warmup_patience": "auto"}  # 10 epochs at most; 18 would be waited for
    pruner = warm(DOUBTS[:3], works=True, **method)
    assert (pruner.warmup_limit, pruner.patience) == (10, 9)
    assert pruner.rehearses
    assert pruner.stage is Stage.WARMUP
    assert len(warm((0.2,) * 12, works=True, **method).doubts) == 10  # the first low, and nine that bring no new one


def test_where_little_goes_what_the_model_knows_ends_no_warm_up_in_which_the_judge_still_learns() -> None:
    assert warm(DOUBTS[:3], works=True).stage is Stage.WARMUP
    assert warm(DOUBTS, works=True).stage is Stage.JOINT  # by the judge, after the seventh
    for method in ({"share": 0.3}, {"dynamic": True}, {"warmup_patience": 0}):
        assert len(warm(DOUBTS, works=True, **method).doubts) <= 1
    assert warm(DOUBTS[:1], works=True, worsens=False).stage is Stage.JOINT
    assert warm((np.nan,), works=True).stage is Stage.JOINT  # a judge that says nothing


def test_a_resumed_warm_up_remembers_its_doubts() -> None:
    whole, first = warm(DOUBTS), warm(DOUBTS[:5])
    second = warm(())
    second.load_state_dict(deepcopy(first.state_dict()))
    for pruner in (first, second):
        assert pruner.doubts == whole.doubts[:5]
    for _ in range(2):
        second.open_epoch()
        second.observe(np.arange(N), np.full((N, READINGS), -1.48), rehearsed=np.ones((N, READINGS)))
        second.close_epoch(0.5)
    assert second.stage is Stage.JOINT


def test_only_those_that_were_rehearsed_tell_how_ready_it_is_and_an_epoch_without_any_begins_anew() -> None:
    pruner = warm(())
    for rehearsed_rows in (20, 0):
        pruner.open_epoch()
        values = np.full((N, READINGS), 2.0)
        values[:20] = -2.0
        rehearsed = np.full((N, READINGS), np.nan)
        rehearsed[:rehearsed_rows] = 1.0
        pruner.observe(np.arange(N), values, rehearsed=rehearsed)
        pruner.close_epoch(0.5)
    assert pruner.doubts[0] == pytest.approx(1 / (1 + np.exp(2.0)))
    assert np.isnan(pruner.doubts[1])
    assert stalled([0.2, 0.2, 0.2], 2)
    assert not stalled([0.2, np.nan, 0.2, 0.2], 2)


# The share of wrong labels


def share_of_wrong(log_odds: np.ndarray) -> float:
    """The share of the one class there is, by log odds for it."""
    return float(shares_of_wrong(log_odds[:, None]).sum())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_share_of_a_class_is_told_from_log_odds_learned_at_even_frequency(share: float) -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(20_000) < share
    x = rng.normal(np.where(wrong, 1.0, -1.0), 1.0)
    log_odds = 2 * x  # what the densities of N(1, 1) and N(-1, 1) say, exactly
    assert share_of_wrong(log_odds) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("shares", [(0.1, 0.02, 0.0), (0.0, 0.0, 0.2), (0.05, 0.05, 0.05)], ids=str)
def test_each_kind_s_share_is_told_from_what_is_said_of_the_kinds(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    n, k = 20_000, len(shares)
    kind = rng.choice(k + 1, n, p=[*shares, 1 - sum(shares)])
    means = np.vstack((2.5 * np.eye(k), np.zeros(k)))
    x = means[kind] + rng.normal(size=(n, k))
    likelihoods = x @ means[:k].T - (means[:k] ** 2).sum(1) / 2  # of these normal densities, exactly
    np.testing.assert_allclose(shares_of_wrong(likelihoods), shares, atol=0.006)


def test_where_nothing_is_known_there_is_no_share_and_where_all_is_clear_it_is_counted() -> None:
    assert np.isnan(share_of_wrong(np.zeros(0)))
    assert np.isnan(Suspicion(5, FirstColumn(n=5)).share)
    assert np.isnan(Suspicion(5, None).share)
    assert share_of_wrong(np.array([900.0, -900.0, -900.0, -900.0])) == pytest.approx(0.25)
    assert 0 < share_of_wrong(np.full(50, -900.0)) < 0.001
    assert 0.999 < share_of_wrong(np.full(50, 900.0)) < 1


@pytest.mark.parametrize("often", [1.0, 1.5, 2.0])
def test_even_odds_are_those_that_the_shares_put_there(often) -> None:
    told = Suspicion(5, FirstColumn(n=5, often=often))
    values = np.zeros((5, READINGS))
    values[:, 0] = [-3.0, -2.0, -2.5, 3.0, np.nan]
    told.learn(values, np.zeros((5, READINGS)), np.array([1.0, 1, 1, 1, 0]))
    kinds = word(values[:4, 0], np.zeros(4))[:, 2:]
    each = often * (values[:4, :1] + kinds) + np.log(2) + np.log(told.shares / (1 - told.share))
    np.testing.assert_allclose(told.posterior[:4], np.logaddexp(*each.T))
    assert np.isnan(told.posterior[4])
    np.testing.assert_allclose(told.wrong, softplus(told.posterior))
    assert mean_probability(told.posterior) == pytest.approx(told.share, abs=1e-4)
    assert told.share == pytest.approx(0.25, abs=0.02 if often < 1.5 else 0.01)  # the least sure is the least near


def test_a_kind_that_is_not_rehearsed_makes_the_others_no_rarer() -> None:
    odds = {}
    for kinds in (("shifted",), ("shifted", "missing")):
        judge = FirstColumn(n=4)
        judge.kinds, judge.planted = kinds, np.zeros(4, int)
        told = Suspicion(4, judge)
        never = np.full((4, len(kinds) - 1), -30.0)
        told._sum, told._weight = np.column_stack(([-3.0, -2.0, -2.5, 3.0], np.zeros(4), never)), np.ones(4)
        odds[kinds] = told.posterior
    np.testing.assert_allclose(*odds.values(), atol=1e-3)


class OfOneKind(FirstColumn):
    """Told by the second reading how surely a fault is of the first kind, if it is one."""

    def __call__(
        self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
    ) -> np.ndarray | None:
        first = readings[:, 1]
        return np.column_stack((readings[:, 0], rehearsed[:, 0], first, np.log1p(-np.exp(first))))


def test_where_faults_are_of_one_kind_that_kind_s_odds_are_higher_and_the_other_s_lower() -> None:
    """As many are wrong in both sets, and the two that are asked about read alike."""
    n, found = 100, {}
    for name, kinds in (("one", np.zeros(20)), ("both", np.arange(20) % 2)):
        told = Suspicion(n, OfOneKind(n=n))
        values = np.full((n, READINGS), -6.0)
        values[:20, 0] = 6.0
        values[20:22, 0] = 0.5  # a little like a fault, of the first kind and of the second
        first = np.r_[kinds == 0, True, False, np.arange(78) % 2 == 0]
        values[:, 1] = np.log(np.where(first, 0.95, 0.05))
        told.learn(values, np.zeros((n, READINGS)), np.ones(n))
        assert told.share == pytest.approx(0.2, abs=0.02)
        assert told.kind[0] == "shifted"
        found[name] = told.posterior[20:22]
    assert found["both"][0] == pytest.approx(found["both"][1], abs=0.1)
    assert found["one"][0] > found["both"][0] + 0.4
    assert found["one"][1] < found["both"][1] - 1


def test_who_reads_a_little_like_a_fault_is_no_suspect_where_faults_are_rare() -> None:
    told = Suspicion(40, FirstColumn(n=40))
    values = np.zeros((40, READINGS))
    values[:, 0] = np.r_[5.0, 0.5, np.full(38, -4.0)]
    told.learn(values, np.zeros((40, READINGS)), np.ones(40))
    assert told.log_odds[1] > 0
    assert (told.posterior > 0).tolist() == [True] + [False] * 39


def test_odds_that_tell_nothing_leave_labels_right() -> None:
    assert share_of_wrong(np.zeros(50)) == pytest.approx(0.05)


# Who is left out of what right labels are learned from


def read(rng: np.random.Generator, wrong: np.ndarray, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of samples, and of their rehearsals: a fault on a fault reads worst, one on a hard sample best."""
    odds = rng.normal(np.where(wrong | hard, 3.0, -3.0))
    return odds, rng.normal(np.where(wrong, 7.0, np.where(hard, 3.0, 5.0)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.3])
def test_wrong_samples_are_left_out_and_as_good_as_no_hard_ones_alone(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 500
    wrong = rng.random(n) < share
    planted = np.arange(n) % 5
    odds, rehearsed = read(rng, wrong, np.zeros(n, bool))
    rehearsed += planted  # kinds are not equally easy to tell, and are ranked each by itself
    out = wrong_ones(odds, rehearsed, planted)
    if share:
        assert out[wrong].mean() > 0.9
        assert out[~wrong].mean() < (0.15 if share > 0.05 else 0.3)  # of few, chance has more to say
    hard = rng.random(n) < 0.15
    odds, rehearsed = read(rng, np.zeros(n, bool), hard)
    assert wrong_ones(odds, rehearsed + planted, planted).mean() < 0.03


def test_those_who_were_not_rehearsed_are_left_out_by_their_own_odds_and_unknown_ones_never() -> None:
    rng = np.random.default_rng(0)
    wrong = np.arange(300) < 60
    odds, rehearsed = read(rng, wrong, np.zeros(300, bool))
    rehearsed[:30] = np.nan
    odds[295:] = np.nan
    out = wrong_ones(odds, rehearsed, np.zeros(300, int))
    assert out[:30].mean() > 0.9
    assert not out[295:].any()
    assert not wrong_ones(odds, np.full(300, np.nan), np.zeros(300, int)).any()
    assert not wrong_ones(np.full(300, np.nan), rehearsed, np.zeros(300, int)).any()


def test_a_large_set_is_divided_by_a_part_of_it() -> None:
    rng = np.random.default_rng(1)
    wrong = rng.random(50_000) < 0.1
    odds, rehearsed = read(rng, wrong, np.zeros(50_000, bool))
    out = wrong_ones(odds, rehearsed, np.zeros(50_000, int))
    assert out[wrong].mean() > 0.9
    assert out[~wrong].mean() < 0.08


def taught(worsens: bool) -> tuple[Suspicion, Known, np.ndarray]:
    """What two epochs of 200 samples leave, 30 of them wrong, whose odds are known."""
    rng = np.random.default_rng(2)
    wrong = np.arange(200) < 30
    judge = Known(n=200, worsens=worsens)
    told = Suspicion(200, judge)
    for _ in range(2):
        odds, rehearsed = read(rng, wrong, np.zeros(200, bool))
        told.learn(odds[:, None], rehearsed[:, None], np.ones(200))
    # Each epoch counts once, though it was judged more than once.
    assert told._weight.tolist() == [2.0] * 200
    assert told._probe[:, 1].tolist() == [2.0] * 200
    return told, judge, wrong


def test_the_judge_is_asked_without_the_most_suspect_and_then_without_the_wrong_ones() -> None:
    told, judge, wrong = taught(worsens=True)
    first, probe, word_, later_probe, later_word = judge.asked
    assert first.all()
    for asked in (probe, later_probe):
        assert (~asked).sum() == round(LEFT_OUT * 200)
        assert (~asked)[wrong].mean() > 0.9
    for asked in (word_, later_word):
        assert (~asked)[wrong].mean() > 0.8
        assert asked[~wrong].mean() > 0.85
    np.testing.assert_array_equal(told.wrong_ones, ~later_word)
    other = Suspicion(200, Known(n=200))
    other.load_state_dict(deepcopy(told.state_dict()))
    np.testing.assert_array_equal(other.wrong_ones, told.wrong_ones)


def test_where_a_rehearsal_may_be_what_is_right_the_probe_has_the_word() -> None:
    told, judge, wrong = taught(worsens=False)
    assert [(~asked).sum() for asked in judge.asked] == [0, 30, 30]
    assert told.wrong_ones.sum() == round(LEFT_OUT * 200)
    assert told.wrong_ones[wrong].mean() > 0.9
    np.testing.assert_allclose(told.log_odds, told._probe[:, 0] / told._probe[:, 1])


class Misled(FirstColumn):
    """Calls nobody wrong whose like has taught it: a wrong sample, asked where more than a few of them taught."""

    def __call__(
        self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        self.asked.append(right)
        wrong = readings[:, 1] > 0
        lenient = 4.0 * (right & wrong).sum() / wrong.sum()
        # Lenient also with a fault on top of theirs: then their rehearsals read no worse than others'.
        return word(readings[:, 0] - wrong * lenient, rehearsed[:, 0] - wrong * lenient)


def test_wrong_ones_that_have_taught_the_judge_do_not_remain_its_teachers() -> None:
    rng = np.random.default_rng(4)
    wrong = np.arange(400) < 40
    judge = Misled(n=400)
    told = Suspicion(400, judge)
    for _ in range(6):
        odds, rehearsed = read(rng, wrong, np.zeros(400, bool))
        told.learn(np.column_stack((odds, wrong)), rehearsed[:, None], np.ones(400))
    assert not judge.asked[-1][wrong].any()
    assert (told.posterior[wrong] > 0).mean() > 0.9
    assert (told.posterior[~wrong] > 0).mean() < 0.05


def test_who_is_called_suspect_is_who_was_not_drawn_by_lot() -> None:
    pruner, _ = told({"share": 0.5, "rest": "draw"})
    evidence = Evidence(pruner.signal, pruner.suspicion.posterior, pruner.suspicion.kind, lot=pruner.lots)
    reason, _, _ = explain(pruner.kept, evidence)
    assert set(reason[~pruner.kept]) == {SUSPECT, DRAWN}
    np.testing.assert_array_equal(reason == SUSPECT, np.isnan(pruner.lots) & ~pruner.kept)


# Lots


class Known(FirstColumn):
    """Says what it is given in the first reading, as it is."""

    def __call__(
        self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        self.asked.append(right)
        return word(readings[:, 0], rehearsed[:, 0])


WRONG = 30
"""Of `MANY` samples, the first."""
MANY = 400


def told(
    method: dict[str, object],
    seed: int = 0,
    looks: Looks | None = None,
    required: np.ndarray | None = None,
    harder: dict[int, float] | None = None,
    groups: Groups | None = None,
) -> tuple[Pruner, np.ndarray]:
    """A pruner that has been through its joint stage, and how hard each sample read to its judge."""
    rng = np.random.default_rng(5)
    hard = np.where(np.arange(MANY) < WRONG, rng.uniform(3, 6, MANY), rng.uniform(-6, -1, MANY))
    for sample, value in (harder or {}).items():
        hard[sample] = value
    settings = Settings(**PruneConfig(warmup=1, joint=0.5, **method).model_dump())  # type: ignore[arg-type]
    pruner = Pruner(
        MANY,
        CHANNELS,
        16,
        settings,
        seed,
        judge=Known(n=MANY),
        readings=READINGS,
        constraints=Constraints(groups, 0.8, required),
    )
    pruner.appearance = looks
    while pruner.kept is None:
        pruner.open_epoch()
        values = rng.lognormal(0, 0.2, (MANY, READINGS))
        values[:, 0] = hard + rng.normal(0, 0.3, MANY) if pruner.rehearses else values[:, 0]
        pruner.observe(np.arange(MANY), values[:, : READINGS if pruner.rehearses else CHANNELS], rehearsed=values)
        pruner.close_epoch(0.5)
    return pruner, hard


def test_a_floor_holds_no_suspect_for_being_one_of_few_of_its_kind() -> None:
    of_few = np.arange(MANY) < WRONG + 20  # images without boxes: those that lack theirs, and twenty true ones
    groups = Groups.of(np.arange(MANY), np.where(of_few, 0, 1), [BACKGROUND, CLASS], ["", "c"])
    pruner, _ = told({"share": 0.3, "rest": "draw"}, groups=groups)
    blind = cut(pruner._in_order(pruner.mask.logits, pruner.lots), 0.3, pruner.constraints)
    assert blind[:WRONG].sum() > 5
    assert not pruner.kept[:WRONG].any()
    assert pruner.kept[WRONG : WRONG + 20].sum() >= 0.8 * 0.7 * 20 - 1
    assert pruner.limits.held(pruner.kept, 0.3) >= 0.8 - 1e-5


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_suspects_go_and_of_the_others_hard_and_easy_ones_alike(share: float) -> None:
    pruner, hard = told({"share": share, "rest": "draw"})
    assert not pruner.kept[:WRONG].any()
    calm, gone = hard[WRONG:], ~pruner.kept[WRONG:]
    # The mean hardness of those that went is that of all, within three standard errors of a random choice.
    error = calm.std() / np.sqrt(gone.sum()) * np.sqrt(1 - gone.mean())
    assert abs(calm[gone].mean() - calm.mean()) < 3 * error
    weights = pruner.mask.weights(pruner.settings.s_end)
    assert ((weights < 0.1) | (weights > 0.9)).mean() > 0.8
    assert pruner.kept.mean() == pytest.approx(1 - share)
    assert pruner.mask.kept_share == pytest.approx(1 - share, abs=0.02)


def test_ranked_the_hardest_of_the_others_go_first() -> None:
    pruner, hard = told({"share": 0.3, "rest": "rank"})
    assert pruner.lots is None
    assert hard[~pruner.kept].min() > hard[pruner.kept].max() - 1
    assert hard[WRONG:][~pruner.kept[WRONG:]].mean() > hard[WRONG:].mean() + 1


def test_where_suspects_are_more_than_shall_go_the_most_suspect_go() -> None:
    drawn, hard = told({"share": 0.05, "rest": "draw"})
    ranked, _ = told({"share": 0.05, "rest": "rank"})
    assert set(np.flatnonzero(~drawn.kept)) == set(np.flatnonzero(~ranked.kept)) <= set(range(WRONG))
    assert hard[~drawn.kept].mean() > hard[:WRONG].mean()


def test_a_lot_is_a_sample_s_own_for_the_run_and_higher_where_something_speaks_against_it() -> None:
    first, other = told({"share": 0.5, "rest": "draw"})[0], told({"share": 0.5, "rest": "draw"}, seed=1)[0]
    lots = first.lots
    assert lots is not None
    assert np.isnan(lots[:WRONG]).all()
    assert ((lots[WRONG:] >= 0) & (lots[WRONG:] <= 1)).all()
    assert not np.allclose(lots[WRONG:], other.lots[WRONG:])
    assert (first.kept != other.kept).mean() > 0.2
    # u^(1 - 2 P): at P = 0 the bare number, at even odds 1.
    p = 1 - np.exp(-first.suspicion.wrong[WRONG:])
    np.testing.assert_allclose(lots[WRONG:], first._uniform[WRONG:] ** (1 - 2 * p))
    gone = WRONG + np.flatnonzero(~first.kept[WRONG:])
    stayed = np.flatnonzero(first.kept)
    assert lots[gone].mean() > lots[stayed].mean() + 0.4


def test_samples_that_nobody_judged_go_by_the_bare_lot_and_not_first() -> None:
    assert draw_lots(np.array([0.3, 0.9]), np.array([np.nan, 0.0])).tolist() == [0.3, 0.9]
    pruner, _ = told({"share": 0.1, "rest": "draw"})
    new = np.arange(MANY - 50, MANY)  # known from a run before, and nothing was said of their labels in this one
    pruner.suspicion._weight[new] = 0
    order = in_order(pruner.mask.logits, 0.1, pruner.lots)
    place = np.empty(MANY, int)
    place[order] = np.arange(MANY)
    beyond = place[new][place[new] >= MANY // 10]
    assert abs(beyond.mean() - (MANY * 1.1 - 1) / 2) < 3 * MANY * 0.9 / np.sqrt(12 * len(beyond))


def test_where_only_some_can_be_rehearsed_no_more_are_left_out_than_of_all() -> None:
    rng = np.random.default_rng(0)
    odds, rehearsed = rng.normal(size=100), np.full(100, np.nan)
    rehearsed[:30] = odds[:30]
    odds[30:] += 5  # the others cannot carry their fault, and read worse as a whole
    assert 0 < wrong_ones(odds, rehearsed, np.zeros(100, int)).mean() <= MOST


def test_who_is_asked_does_not_go_by_the_order_of_the_files(monkeypatch) -> None:
    monkeypatch.setattr(suspicion_module, "_ASKED", 1000)
    asked = suspicion_module._some(np.arange(80_000))
    assert len(np.unique(asked)) == 1000
    cameras = np.bincount(asked % 4, minlength=4)  # four of them, frame by frame
    assert cameras.min() > 200
    assert np.array_equal(asked, suspicion_module._some(np.arange(80_000)))
    assert np.array_equal(suspicion_module._some(np.arange(1000)), np.arange(1000))


def test_a_lot_rises_the_more_with_doubt_the_sharper_it_is_and_never_decides_on_a_suspect() -> None:
    wrong = -np.log(1 - np.array([0.0, 0.125, 0.125, 0.5, 0.51]))
    uniform = np.array([0.3, 0.3, 0.9, 0.3, 0.3])
    np.testing.assert_allclose(draw_lots(uniform, wrong), [0.3, 0.3**0.75, 0.9**0.75, 1, np.nan])
    np.testing.assert_allclose(draw_lots(uniform, wrong, 4), [0.3, 0.3**0.31640625, 0.9**0.31640625, 1, np.nan])


def test_from_one_in_five_on_doubt_goes_before_any_lot_the_likelier_wrong_first() -> None:
    wrong = -np.log(1 - np.array([0.5, 0.35, 0.201, 0.199, 0.0]))
    uniform = np.array([0.0, 0.01, 0.5, 0.5, 0.98])
    for sharpness in (1, 4):
        lots = draw_lots(uniform, wrong, sharpness)
        assert np.argsort(-lots).tolist()[:3] == [0, 1, 2]
        assert lots.max() == 1
        assert lots[3] == pytest.approx(0.5 ** (0.602**sharpness))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_who_goes_is_up_to_the_lot_and_who_stays_stands_in_the_order_of_doubt(share: float, monkeypatch) -> None:
    def agreement(pruner: Pruner) -> float:
        return float(np.corrcoef(*(rankdata(v[pruner.kept]) for v in (-pruner.mask.logits, hard)))[0, 1])

    pruner, hard = told({"share": share, "rest": "draw"})
    assert agreement(pruner) > 0.95
    monkeypatch.setattr(Pruner, "_spare", lambda *_: None)
    by_lot, _ = told({"share": share, "rest": "draw"})
    np.testing.assert_array_equal(by_lot.kept, pruner.kept)
    assert abs(agreement(by_lot)) < 0.3


def test_a_copy_that_stays_weighs_less_than_a_sample_as_doubtful_that_has_none() -> None:
    pruner = Pruner(6, CHANNELS, 16, Settings(**PruneConfig().model_dump()), judge=Known(n=6), readings=READINGS)
    wrong, f = np.array([0.01, 0.01, 0.5, 0.5, 2.0, 0.01]), np.array([-5.0, -5.0, -5.0, -5.0, -5.0, 3.0])
    pruner._spare(f, 1.5, wrong, np.array([0.0, 0.2, 0.0, 1.0, 0.0, 0.0]))
    assert f[0] < f[1] < f[2] < f[3] == 1
    assert f[4:].tolist() == [-5, 3]  # a suspect and one that is to go are not the lot's to spare


def test_near_even_is_1_at_even_odds_and_tells_small_probabilities_apart() -> None:
    p = np.array([0.0, 1e-4, 1e-3, 1 / (1 + np.e), 0.5])
    odds = np.log(p[1:] / (1 - p[1:]))
    np.testing.assert_allclose(near_even(-np.log1p(-p)), [0, *1 / (1 - odds)], atol=1e-12)
    assert near_even(np.array([np.log(2) + 1e-12]))[0] == 1


@pytest.mark.parametrize("judge", [None, FirstColumn(silent=True)], ids=["none", "one that cannot learn"])
def test_without_a_judge_s_word_no_lots_are_drawn(judge: FirstColumn | None) -> None:
    runs = [pruner_of(judge, rest=rest) for rest in ("draw", "rank")]
    for pruner in runs:
        run(pruner, 0, 7)
        assert pruner.lots is None
    np.testing.assert_array_equal(runs[0].mask.logits, runs[1].mask.logits)


# Copies

PAIRS = 40
"""Each of the last 2 * PAIRS samples is one of two that look the same."""


class Looks:
    """An appearance that knows the pairs from the first epoch on."""

    known = np.ones(MANY, bool)

    def __init__(self, kernel: float | np.ndarray = 0.95) -> None:
        self.kernel = kernel

    def open_epoch(self) -> None: ...
    def close_epoch(self) -> None: ...

    def likeness(self) -> None: ...

    def pairs(self, likeness: None) -> tuple[np.ndarray, np.ndarray]:
        neighbours, kernel = np.full((MANY, 1), -1), np.zeros((MANY, 1))
        first = MANY - 2 * PAIRS + np.arange(PAIRS)
        neighbours[first, 0], kernel[first, 0] = first + PAIRS, self.kernel
        return neighbours, kernel


def copies_kept(share: float, redundancy: float = 2.0, kernel: float | np.ndarray = 0.95) -> tuple[Pruner, np.ndarray]:
    """How many of each pair stay, (PAIRS,), beside WRONG suspects in a set of MANY."""
    pruner, _ = told({"share": share, "redundancy": redundancy}, looks=Looks(kernel))
    return pruner, pruner.kept[-2 * PAIRS :].reshape(2, PAIRS).sum(0)


def test_copies_go_before_whom_the_lot_falls_on_and_one_of_each_stays() -> None:
    pruner, stayed = copies_kept((WRONG + PAIRS) / MANY)
    assert not pruner.kept[:WRONG].any()
    assert (stayed == 1).mean() >= 0.95


@pytest.mark.parametrize("listed", ["good", "a suspect"])
def test_a_copy_gives_way_to_one_that_must_stay(listed: str) -> None:
    first = MANY - 2 * PAIRS + np.arange(PAIRS)
    required = np.zeros(MANY, bool)
    required[first[::2]] = True  # one of every second pair
    harder = {} if listed == "good" else dict.fromkeys(first[::2].tolist(), 4.0)
    pruner, _ = told({"share": (WRONG + PAIRS) / MANY}, looks=Looks(0.999999), required=required, harder=harder)
    assert pruner.kept[first[::2]].all()
    assert (~pruner.kept[first[::2] + PAIRS]).mean() >= 0.95
    assert pruner.redundancy.twin[first[::2]].tolist() == [-1] * len(first[::2])


def test_of_two_copies_the_one_whose_labels_are_trusted_more_stays() -> None:
    first = MANY - 2 * PAIRS + np.arange(PAIRS)
    # P is .02 and .0001 or so: neither is suspect, and lots say nothing of it.
    doubtful = np.where(np.arange(PAIRS) % 2, first, first + PAIRS)
    harder = {int(i): -3.0 if i in doubtful else -7.0 for i in [*first, *(first + PAIRS)]}
    pruner, _ = told({"share": (WRONG + PAIRS) / MANY}, looks=Looks(0.999999), harder=harder)
    assert (~pruner.kept[doubtful]).mean() >= 0.95
    assert (pruner.kept[first].astype(int) + pruner.kept[first + PAIRS] == 1).mean() >= 0.95


def test_beyond_the_copies_the_lot_leaves_one_of_a_pair_as_often_as_any_other_image() -> None:
    share = 0.4
    pruner, stayed = copies_kept(share)
    assert stayed.max() == 1
    alone = pruner.kept[WRONG : -2 * PAIRS]
    # What is left of the share falls on single images and on the one of each pair that stays, by the same lot.
    assert abs((stayed == 0).mean() - (~alone).mean()) < 3 * np.sqrt(0.25 / PAIRS)


def test_a_mild_suspect_goes_before_a_copy_and_a_copy_before_a_lot() -> None:
    pruner = Pruner(4, CHANNELS, 16, Settings(**PruneConfig().model_dump()), judge=Known(n=4), readings=READINGS)
    wrong = np.array([np.log(2) + 0.01, 0.01, 0.01, np.nan])
    pruner._uniform[:] = 0.3, 0.3, 0.95, 0.3
    pressures = pruner._pressure(wrong, np.array([0.0, 0.97, 0.0, 0.0]))
    assert pressures[0] > pressures[1] > pressures[2] > 1 - SPREAD * 0.05
    assert np.isnan(pressures[3])


def test_redundancy_beyond_two_puts_a_copy_beside_a_suspect_of_so_many_nats() -> None:
    settings = Settings(**PruneConfig(redundancy=4.0).model_dump())
    pruner = Pruner(3, CHANNELS, 16, settings, judge=Known(n=3), readings=READINGS)
    pruner._uniform[:] = 0.0  # what has no copy would go last of all
    wrong = np.array([1.9, 0.0, 2.1])
    low, copy, high = pruner._pressure(wrong, np.array([0.0, 1.0, 0.0]))
    assert low < copy < high


def test_where_the_share_has_no_room_for_all_copies_nothing_else_goes_by_lot() -> None:
    pruner, stayed = copies_kept((WRONG + PAIRS // 2) / MANY)
    assert not pruner.kept[:WRONG].any()
    assert stayed.min() == 1
    assert (stayed == 1).sum() >= PAIRS // 2 - 1


def test_the_surer_copies_go_first() -> None:
    sure = np.arange(PAIRS) % 2 == 0
    _, stayed = copies_kept((WRONG + sure.sum()) / MANY, kernel=np.where(sure, 1 - 1e-9, 0.999))
    assert (stayed[sure] == 1).mean() >= 0.95
    assert (stayed[~sure] == 2).mean() >= 0.95


def test_without_weight_copies_go_by_lot() -> None:
    _, stayed = copies_kept(0.2, redundancy=1e-6)
    assert (stayed == 1).mean() < 0.6
