"""A judge in the pruner: its log odds are the signal, epochs are resumed exactly, and without a word surprise stays.

What nothing speaks against goes by lot.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings, Stage, stalled
from yolo_adapruner.core.reasons import DRAWN, SUSPECT, Evidence, explain
from yolo_adapruner.core.signal import surprise
from yolo_adapruner.core.suspicion import Suspicion, Worth, mean_probability, share_of_wrong, softplus

N, READINGS, CHANNELS = 60, 5, 3


class FirstColumn:
    """Says the first reading beside the rehearsed one; silent where asked to be."""

    kinds = ("shifted", "missing")

    def __init__(self, silent: bool = False, n: int = N) -> None:
        self.silent = silent
        self.planted = np.arange(n) % 2

    def __call__(self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray) -> np.ndarray | None:
        if self.silent:
            return None
        even = np.nanmedian(rehearsed[:, 0])
        return both(readings[:, 0] - even, rehearsed[:, 0] - even)


def both(given: np.ndarray, rehearsed: np.ndarray) -> np.ndarray:
    """What a judge of two kinds says by log odds of samples as they are and rehearsed, (N, 2, 3)."""
    odds = np.stack((given, rehearsed), 1)
    return np.stack((odds, np.where(odds > 0, -0.02, -4.0), np.where(odds > 0, -4.0, -0.02)), 2)


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

    def __call__(self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray) -> np.ndarray | None:
        told = np.where(evidence > 0, readings[:, 0], np.nan)
        return None if np.isnan(told).all() else both(told, np.zeros(len(told)))


DOUBTS = (0.5, 0.4, 0.3, 0.2, 0.19, 0.185, 0.181, 0.17, 0.1, 0.1)


def warm(doubts: tuple[float, ...], **method: object) -> Pruner:
    """A pruner after the epochs in which its judge doubts so much, or after as many of them as the warm-up took."""
    settings = Settings(**PruneConfig(**{"share": 0.1, "warmup_max": 0.5, "warmup_patience": 3, **method}).model_dump())
    pruner = Pruner(N, CHANNELS, 40, settings, judge=Learning(), readings=READINGS)
    for doubt in doubts:
        if pruner.stage is not Stage.WARMUP:
            break
        pruner.open_epoch()
        values = np.full((N, READINGS if pruner.rehearses else CHANNELS), np.log(doubt / (1 - doubt)))
        pruner.observe(np.arange(N), values, rehearsed=np.ones((N, READINGS)))
        pruner.close_epoch(0.5)
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


def mixed(share: float, n: int = 4000, apart: float = 4.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings of samples as they are and under faults, so many standard deviations apart, and who is wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < share
    return rng.normal(np.where(wrong, apart, 0.0)), rng.normal(apart, 1, n), wrong


def alone(odds: np.ndarray) -> np.ndarray:
    """The word of a judge that knows one kind of fault."""
    return np.column_stack((odds, np.zeros(len(odds))))


def log_odds(given: np.ndarray, rehearsed: np.ndarray) -> np.ndarray:
    """What readings of samples as they are are worth."""
    return Worth.of(alone(given), alone(rehearsed), np.zeros(len(rehearsed), int)).log_odds(alone(given))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.4])
def test_the_share_of_wrong_labels_is_told_by_how_many_read_like_faults(share: float) -> None:
    given, rehearsed, wrong = mixed(share)
    assert share_of_wrong(given, rehearsed) == pytest.approx(share, abs=0.03)
    odds = log_odds(given, rehearsed)
    assert mean_probability(odds) == pytest.approx(share, abs=0.03)
    assert ((odds > 0) == wrong).mean() > 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_hard_samples_are_not_counted_as_wrong_where_most_faults_read_worse(share: float, seed: int) -> None:
    given, rehearsed, wrong = mixed(share, 400, 6.0, seed)
    hard = ~wrong & (np.arange(len(given)) % 8 == 0)
    given[hard] = np.random.default_rng(seed).normal(3.5, 1, hard.sum())
    odds = log_odds(given, rehearsed)
    assert mean_probability(odds) == pytest.approx(share, abs=0.06)
    assert (odds[hard] > 0).mean() < 0.15
    if share:
        assert (odds[wrong] > 0).mean() > 0.7


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_where_faults_read_as_the_samples_do_no_label_is_called_wrong(share: float) -> None:
    given, rehearsed, _ = mixed(share, 300, 0.0)
    assert share_of_wrong(given, rehearsed) < 0.15
    assert not (log_odds(given, rehearsed) > 0).any()
    constant = np.zeros(50)
    assert share_of_wrong(constant, constant) < 0.01


def test_a_judge_that_is_wrong_way_round_says_nothing() -> None:
    given, rehearsed, _ = mixed(0.0)
    odds = log_odds(rehearsed, given)
    assert np.ptp(odds) == 0
    assert odds[0] < 0


def test_what_the_log_odds_are_worth_does_not_depend_on_their_scale() -> None:
    given, rehearsed, _ = mixed(0.1)
    np.testing.assert_allclose(log_odds(given / 2 + 3, rehearsed / 2 + 3), log_odds(given, rehearsed), atol=1e-3)


def kinds_of(rng: np.random.Generator, planted: np.ndarray) -> np.ndarray:
    """The word on faults of two kinds, one of them far easier to tell from right labels than the other."""
    odds = rng.normal(np.where(planted == 0, 10.0, 4.0))
    surely = np.log(np.array([[0.95, 0.05], [0.05, 0.95]]))
    return np.column_stack((odds, surely[planted]))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_faults_of_one_kind_are_found_though_others_were_rehearsed(kind: int, share: float) -> None:
    rng = np.random.default_rng(2)
    n = 1000
    planted = np.arange(n) % 2
    rehearsed = kinds_of(rng, planted)
    wrong = rng.random(n) < share
    right = np.column_stack((rng.normal(0, 1, n), np.log(np.full((n, 2), 0.5))))
    given = np.where(wrong[:, None], kinds_of(rng, np.full(n, kind)), right)
    worth = Worth.of(given, rehearsed, planted)
    if kind == 1:  # of the one that is easy to tell as many could be of the other
        assert worth.lift[1] > 1.5 > 0.5 > worth.lift[0] > 0
    odds = worth.log_odds(given)
    assert mean_probability(odds) == pytest.approx(share, abs=0.05)
    assert (odds[wrong] > 0).mean() > 0.7
    assert (odds[~wrong] > 0).mean() < 0.01


def test_a_kind_that_was_hardly_rehearsed_is_no_more_frequent_than_that() -> None:
    rng = np.random.default_rng(3)
    planted = (np.arange(400) < 4).astype(int)
    given = np.column_stack((rng.normal(0, 1, 400), np.log(np.full((400, 2), 0.5))))
    worth = Worth.of(given, kinds_of(rng, planted), planted)
    assert worth.lift[1] <= 1
    assert np.isfinite(worth.log_odds(given)).all()


def test_of_what_is_not_known_nothing_is_said_and_of_very_many_a_part_tells() -> None:
    given, rehearsed, _ = mixed(0.1, 60_000)
    assert mean_probability(log_odds(given, rehearsed)) == pytest.approx(0.1, abs=0.02)
    for nobody in (np.full(5, np.nan), np.empty(0)):
        assert np.isnan(log_odds(nobody, rehearsed[:5])).all()
        assert np.isnan(log_odds(given, nobody)).all()
    told = Suspicion(N, FirstColumn())
    assert np.isnan(told.share)
    assert np.isnan(told.posterior).all()


def test_only_those_that_were_rehearsed_say_what_a_fault_reads_like() -> None:
    given, rehearsed, _ = mixed(0.1, 400)
    rehearsed[::2] = np.nan
    judge = Known(n=400)
    told, second = Suspicion(400, judge), Suspicion(400, judge)
    for _ in range(2):
        told.learn(given[:, None], rehearsed[:, None], np.ones(400))
    said = both(given, rehearsed)
    np.testing.assert_allclose(told.posterior, Worth.of(said[:, 0], said[:, 1], judge.planted).log_odds(said[:, 0]))
    np.testing.assert_allclose(told.wrong, softplus(told.posterior))
    assert mean_probability(told.posterior) == told.share
    second.load_state_dict(told.state_dict())
    np.testing.assert_array_equal(second.posterior, told.posterior)


def test_who_is_called_suspect_is_who_was_not_drawn_by_lot() -> None:
    pruner, _ = told({"share": 0.5, "rest": "draw"})
    evidence = Evidence(pruner.signal, pruner.suspicion.posterior, pruner.suspicion.kind, lot=pruner.lots)
    reason, _, _ = explain(pruner.kept, evidence)
    assert set(reason[~pruner.kept]) == {SUSPECT, DRAWN}
    np.testing.assert_array_equal(reason == SUSPECT, np.isnan(pruner.lots) & ~pruner.kept)


# Lots


class Known(FirstColumn):
    """Says what it is given in the first reading, as it is."""

    def __call__(self, readings: np.ndarray, rehearsed: np.ndarray, evidence: np.ndarray) -> np.ndarray:
        return both(readings[:, 0], rehearsed[:, 0])


WRONG = 30
"""Of `MANY` samples, the first."""
MANY = 400


def told(method: dict[str, object], seed: int = 0) -> tuple[Pruner, np.ndarray]:
    """A pruner that has been through its joint stage, and how hard each sample read to its judge."""
    rng = np.random.default_rng(5)
    hard = np.where(np.arange(MANY) < WRONG, rng.uniform(4, 7, MANY), rng.uniform(-6, -1, MANY))
    fault = rng.uniform(4, 7, MANY)
    settings = Settings(**PruneConfig(warmup=1, joint=0.5, **method).model_dump())  # type: ignore[arg-type]
    pruner = Pruner(MANY, CHANNELS, 16, settings, seed, judge=Known(n=MANY), readings=READINGS)
    while pruner.kept is None:
        pruner.open_epoch()
        values = rng.lognormal(0, 0.2, (MANY, READINGS))
        values[:, 0] = hard + rng.normal(0, 0.3, MANY) if pruner.rehearses else values[:, 0]
        planted = values.copy()
        planted[:, 0] = fault + rng.normal(0, 0.3, MANY)
        pruner.observe(np.arange(MANY), values[:, : READINGS if pruner.rehearses else CHANNELS], rehearsed=planted)
        pruner.close_epoch(0.5)
    return pruner, hard


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


@pytest.mark.parametrize("judge", [None, FirstColumn(silent=True)], ids=["none", "one that cannot learn"])
def test_without_a_judge_s_word_no_lots_are_drawn(judge: FirstColumn | None) -> None:
    runs = [pruner_of(judge, rest=rest) for rest in ("draw", "rank")]
    for pruner in runs:
        run(pruner, 0, 7)
        assert pruner.lots is None
    np.testing.assert_array_equal(runs[0].mask.logits, runs[1].mask.logits)
