"""The three stages with synthetic readings instead of a model: lengths, planted bad samples, resuming, redoing."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.floors import Constraints
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.core.signal import sample_loss

CHANNELS = 3

# Stated here, so that a better default changes no test of what a setting does.
STATED = {
    "share": 0.1,
    "warmup": "auto",
    "warmup_max": 0.5,
    "joint": 0.3,
    "ramp": 0.6,
    "s_start": 0.1,
    "s_end": 5.0,
    "lambda_base": 1.0,
    "lambda_gain": 50.0,
    "tau": 0.5,
    "rate": 0.5,
    "clip": 4.0,
    "tolerance": 0.1,
    "match": 0.02,
    "weight_min": 0.0,
    "memory": 1.0,
    "floor": 0.8,
}


def pruner_of(n: int, epochs: int, seed: int = 0, **prune) -> Pruner:
    return Pruner(n, CHANNELS, epochs, Settings(**PruneConfig(**{**STATED, **prune}).model_dump()), seed)


class Readings:
    """Loss-like readings of N samples, the bad ones high in one channel each, other noise each epoch."""

    def __init__(self, n: int = 200, bad: float = 0.1, without_objects: float = 0.1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.seed = n, seed
        self.own = rng.lognormal(0, 0.3, (n, CHANNELS)) * [0.3, 1.0, 0.1]
        order = rng.permutation(n)
        self.bad = order[: round(bad * n)]
        self.own[order[len(order) - round(without_objects * n) :], :2] = np.nan
        channel = rng.integers(0, CHANNELS, len(self.bad))
        self.own[self.bad, channel] *= 5

    def of(self, epoch: int) -> np.ndarray:
        return self.own * np.random.default_rng([self.seed, epoch]).lognormal(0, 0.3, self.own.shape)


def run_epoch(pruner: Pruner, values: np.ndarray, metric: float = 0.5, *, works: bool = False, batch: int = 16) -> dict:
    """An epoch of shuffled batches, as a training would give them."""
    pruner.open_epoch()
    order = np.random.default_rng(len(values)).permutation(len(values))
    for ids in np.array_split(order, max(1, len(order) // batch)):
        pruner.observe(ids, values[ids])
    return pruner.close_epoch(metric, works=works)


def run(
    pruner: Pruner, epochs: int, readings: Callable[[int], np.ndarray], first: int = 0, metric: float = 0.5
) -> list[dict]:
    return [run_epoch(pruner, readings(epoch), metric) for epoch in range(first, epochs)]


# Stages

LENGTHS = [
    # name, epochs, settings, epoch after which the model works, lengths of warm-up, joint, fine-tune
    ("auto, the model soon works", 30, {}, 4, (4, 9, 17)),
    ("auto, it works at once", 30, {}, 1, (1, 9, 20)),
    ("auto, it never works: warmup_max", 30, {}, 99, (15, 9, 6)),
    ("auto, a short warmup_max", 30, {"warmup_max": 0.1}, 99, (3, 9, 18)),
    ("0: a trained model", 30, {"warmup": 0}, 99, (0, 9, 21)),
    ("fixed, whatever the model does", 30, {"warmup": 6}, 2, (6, 9, 15)),
    ("fixed, longer than there is room", 30, {"warmup": 50}, 2, (20, 9, 1)),
    ("3 epochs: one each", 3, {}, 99, (1, 1, 1)),
    ("3 epochs without a warm-up", 3, {"warmup": 0}, 99, (0, 1, 2)),
    ("3 epochs of joint only", 3, {"joint": 1.0}, 99, (0, 3, 0)),
    ("5 epochs", 5, {}, 99, (2, 2, 1)),
    ("auto lengths where a tenth goes", 40, {"warmup_max": "auto", "joint": "auto"}, 99, (22, 12, 6)),
    ("a joint stage of less than an epoch is one", 30, {"joint": 0.001}, 4, (4, 1, 25)),
]


@pytest.mark.parametrize(("epochs", "prune", "works", "lengths"), [c[1:] for c in LENGTHS], ids=[c[0] for c in LENGTHS])
def test_stages_have_their_lengths(epochs, prune, works, lengths):
    readings, pruner = Readings(n=40), pruner_of(40, epochs, **prune)
    stages = []
    for epoch in range(epochs):
        stages.append(pruner.stage)
        assert (pruner.kept is not None) == (pruner.stage is Stage.FINETUNE)
        row = run_epoch(pruner, readings.of(epoch), works=epoch + 1 >= works)
        assert row["stage"] == stages[-1]
    assert stages == sorted(stages)
    assert tuple(stages.count(stage) for stage in Stage) == lengths
    assert pruner.kept is not None
    assert (~pruner.kept).sum() == 4


@pytest.mark.parametrize(
    ("share", "lengths"),
    [(0.01, (0.55, 0.3)), (0.1, (0.55, 0.3)), (0.2, (0.45, 0.25)), (0.3, (0.35, 0.2)), (0.95, (0.35, 0.2))],
)
def test_the_more_goes_the_sooner_it_is_decided(share, lengths):
    assert Settings(**PruneConfig(share=share).model_dump()).lengths == pytest.approx(lengths)
    own = Settings(**PruneConfig(share=share, warmup_max=0.4, joint=0.35).model_dump())
    assert own.lengths == (0.4, 0.35)


def test_the_default_settings_find_planted_bad_samples():
    readings = Readings()
    pruner = Pruner(200, CHANNELS, 30, Settings(**PruneConfig().model_dump()))
    run(pruner, 30, readings.of)
    dropped = np.flatnonzero(~pruner.kept)
    assert len(dropped) == round(PruneConfig().share * 200)
    assert np.isin(dropped, readings.bad).mean() >= 0.85


def test_each_stage_weighs_as_it_should():
    pruner, readings = pruner_of(40, 10, warmup=2), Readings(n=40)
    for epoch in range(10):
        weights = pruner.weights()
        if pruner.stage is Stage.JOINT:
            assert weights.shape == (40,)
            assert weights.dtype == np.float32
            assert ((weights >= 0) & (weights <= 1)).all()
        else:
            assert weights is None
        run_epoch(pruner, readings.of(epoch))


def test_an_epochs_row_says_what_it_ran_under():
    pruner, readings = pruner_of(200, 20, warmup=2, share=0.3), Readings()
    rows = run(pruner, 20, readings.of)
    assert all(list(row) == ["stage", "kept", "target", "s", "lambda"] for row in rows)
    warm, joint, tuned = rows[:2], rows[2:8], rows[8:]
    assert [(r["kept"], r["target"], r["s"], r["lambda"]) for r in warm] == [(1, 1, 0, 0)] * 2
    assert (joint[0]["target"], joint[0]["s"], joint[0]["lambda"]) == (1, 0.1, 1)
    assert joint[-1]["target"] == pytest.approx(0.7)
    assert joint[-1]["s"] == pytest.approx(5)
    assert {r["kept"] for r in tuned} == {0.7}


def test_everything_is_kept_during_the_warm_up_whatever_is_read():
    pruner, readings = pruner_of(200, 30), Readings()
    run(pruner, 15, readings.of)
    assert pruner.mask.kept_share == 1
    assert np.isnan(pruner.signal).all()


# What goes


@pytest.mark.parametrize("order", ["as they come", "bad first", "bad last", "shuffled"])
@pytest.mark.parametrize("epochs", [12, 30])
def test_planted_bad_samples_go_wherever_they_stand(order, epochs):
    readings = Readings()
    rest = np.setdiff1d(np.arange(200), readings.bad)
    place = {
        "as they come": np.arange(200),
        "bad first": np.r_[readings.bad, rest],
        "bad last": np.r_[rest, readings.bad],
        "shuffled": np.random.default_rng(3).permutation(200),
    }[order]
    pruner = pruner_of(200, epochs, warmup=1)
    run(pruner, epochs, lambda epoch: readings.of(epoch)[place])
    dropped = place[~pruner.kept]
    assert len(dropped) == 20
    assert np.isin(dropped, readings.bad).mean() >= 0.85  # by chance 0.1


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.8])
def test_the_share_is_met_to_the_sample(share):
    pruner = pruner_of(201, 12, warmup=1, share=share)
    rows = run(pruner, 12, Readings(n=201).of)
    assert (~pruner.kept).sum() == round(share * 201)
    # and the mask itself was there before it was cut
    assert rows[4]["kept"] == pytest.approx(1 - share, abs=0.02)


def test_permuted_samples_give_a_permuted_outcome():
    readings, order = Readings(n=120), np.random.default_rng(5).permutation(120)
    straight, permuted = pruner_of(120, 12), pruner_of(120, 12)
    run(straight, 12, readings.of)
    run(permuted, 12, lambda epoch: readings.of(epoch)[order])
    np.testing.assert_allclose(permuted.mask.logits, straight.mask.logits[order], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(permuted.signal, straight.signal[order], rtol=1e-9)
    assert (permuted.kept == straight.kept[order]).all()


def without(readings: Readings, samples: list[int], epochs: range) -> Callable[[int], np.ndarray]:
    """The readings, but of some samples none in some epochs."""

    def of(epoch: int) -> np.ndarray:
        values = readings.of(epoch)
        if epoch in epochs:
            values[samples] = np.nan
        return values

    return of


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_sample_that_is_never_seen_has_no_score_and_is_the_last_to_go(share):
    readings, pruner = Readings(n=60, without_objects=0), pruner_of(60, 10, warmup=0, share=share)
    run(pruner, 10, without(readings, [0], range(10)))
    assert np.isnan(pruner.signal[0])
    assert np.isnan(pruner.mask.logits[0])
    assert pruner.seen[0] == 0
    for known in (pruner.signal, pruner.mask.logits):
        assert np.isfinite(known[1:]).all()
    assert pruner.kept[0]


def test_where_almost_all_go_those_never_seen_go_too():
    pruner = pruner_of(60, 10, warmup=0, share=0.9)
    run(pruner, 10, without(Readings(n=60), list(range(30)), range(10)))
    assert (~pruner.kept).sum() == 54
    assert not pruner.kept[30:].any()
    assert pruner.kept[:30].sum() == 6


def test_a_sample_not_seen_in_an_epoch_moves_with_all_and_not_by_what_was_seen_before():
    readings = Readings()
    bad, good = int(readings.bad[0]), int(np.setdiff1d(np.arange(200), readings.bad)[0])
    pruner = pruner_of(200, 30, warmup=0)
    run(pruner, 5, readings.of)
    before = pruner.mask.logits.copy()
    assert before[bad] < before[good]
    run(pruner, 6, without(readings, [bad, good], range(5, 6)), first=5)
    moved = pruner.mask.logits - before
    assert moved[bad] == pytest.approx(moved[good], abs=1e-12)
    # one of neutral pressure moves as much; the others by what they showed
    others = np.delete(moved, [bad, good])
    assert others.min() < moved[bad] < others.max()


@pytest.mark.parametrize("missed", [range(1), range(3), range(6, 9)], ids=str)
def test_not_having_been_looked_at_for_a_while_is_no_reason_to_drop_a_good_sample(missed):
    readings = Readings()
    good = np.setdiff1d(np.arange(200), readings.bad)[::9].tolist()
    seen, missing = pruner_of(200, 30, warmup=0), pruner_of(200, 30, warmup=0)
    run(seen, 30, readings.of)
    run(missing, 30, without(readings, good, missed))
    assert (~missing.kept[good]).sum() <= (~seen.kept[good]).sum()


# Area


def observe(pruner: Pruner, values: np.ndarray, area: np.ndarray | None, metric: float = 0.5) -> None:
    pruner.open_epoch()
    pruner.observe(np.arange(len(values)), values, area)
    pruner.close_epoch(metric)


def test_without_areas_a_reading_is_a_whole_view_bit_for_bit():
    readings, bare, whole = Readings(), pruner_of(200, 20), pruner_of(200, 20)
    for epoch in range(20):
        observe(bare, readings.of(epoch), None)
        observe(whole, readings.of(epoch), np.ones(200, np.float32))
    assert_same(bare, whole)
    assert set(bare.seen) == {bare.joint_epochs}


def test_only_what_the_joint_stage_was_shown_counts_as_seen():
    pruner, area = pruner_of(40, 10, warmup=2), np.linspace(0.05, 2, 40)
    for epoch in range(10):
        observe(pruner, Readings(n=40).of(epoch), area)
    np.testing.assert_allclose(pruner.seen, pruner.joint_epochs * area)


def test_a_sample_in_four_parts_is_one_seen_whole():
    readings, parts, whole = Readings(), pruner_of(200, 10, warmup=0), pruner_of(200, 10, warmup=0)
    for epoch in range(10):
        values = readings.of(epoch)
        observe(whole, values, np.ones(200))
        parts.open_epoch()
        for _ in range(4):
            parts.observe(np.arange(200), values, np.full(200, 0.25))
        parts.close_epoch(0.5)
    np.testing.assert_allclose(parts.seen, whole.seen)
    np.testing.assert_allclose(parts.mask.logits, whole.mask.logits, atol=1e-9)


def test_an_epoch_on_a_sliver_moves_signal_and_logit_a_sliver_of_the_way():
    readings = Readings(bad=0, without_objects=0)
    sliver, area = 7, np.ones(200)
    area[sliver] = 0.05
    calm, cut = pruner_of(200, 30, warmup=0), pruner_of(200, 30, warmup=0)
    for epoch in range(6):
        values = readings.of(epoch)
        observe(calm, values, None)
        if epoch == 5:
            values[sliver] *= 20  # the sliver happens to show the worst of it
        observe(cut, values, area if epoch == 5 else None)
    whole = deepcopy(calm)
    wild = readings.of(6)
    wild[sliver] *= 20
    observe(whole, wild, None)
    assert cut.moments.means[sliver, 0] < 1.3 * calm.moments.means[sliver, 0]
    assert whole.moments.means[sliver, 0] > 3 * calm.moments.means[sliver, 0]
    assert abs(cut.mask.logits[sliver] - calm.mask.logits[sliver]) < 0.2
    assert calm.mask.logits[sliver] - whole.mask.logits[sliver] > 0.5


def test_an_area_that_cannot_be_is_refused():
    pruner = pruner_of(4, 10, warmup=0)
    pruner.open_epoch()
    with pytest.raises(ValueError, match="Expected an area of 0 or more"):
        pruner.observe(np.arange(4), np.ones((4, CHANNELS)), np.array([1, 1, 1, -1.0]))


def test_an_epoch_in_which_nobody_is_seen_moves_nothing():
    pruner = pruner_of(30, 10, warmup=0)
    before = pruner.mask.logits.copy()
    row = run_epoch(pruner, np.full((30, CHANNELS), np.nan))
    assert (pruner.mask.logits == before).all()
    assert row["kept"] == 1


# The best mask


def test_the_best_matching_mask_is_cut_not_the_last():
    epochs, readings = 40, Readings()
    pruner = pruner_of(200, epochs, warmup=0, joint=0.5, share=0.2)
    best, logits = None, {}
    for epoch in range(epochs):
        # the ramp ends after 12 of 20 joint epochs; epoch 15 has the best metric of those with a matching mask
        run_epoch(pruner, readings.of(epoch), metric=0.60 if epoch == 15 else 0.58)
        logits[epoch] = pruner.mask.logits.copy()
        if epoch == 15:
            best = pruner.mask.logits.copy()
    assert pruner.state.best_epoch == 15
    assert (pruner.mask.logits == best).all()
    assert not (logits[18] == best).all()
    assert (pruner.kept == select_kept(best, 0.2, seed=0)).all()


def test_without_a_matching_mask_the_last_is_cut():
    readings, pruner = Readings(), pruner_of(200, 12, warmup=0, share=0.2)
    run(pruner, 12, readings.of, metric=float("nan"))  # every epoch a fall: the ramp never leaves its beginning
    assert pruner.state.best_epoch == -1
    assert (~pruner.kept).sum() == 40
    assert (pruner.kept == select_kept(pruner.mask.logits, 0.2, seed=0)).all()


def test_a_run_stopped_early_can_be_decided():
    pruner, readings = pruner_of(200, 30, warmup=1), Readings()
    run(pruner, 5, readings.of)
    assert pruner.stage is Stage.JOINT
    kept = pruner.decide()
    assert pruner.stage is Stage.FINETUNE
    assert kept is pruner.kept
    assert (~kept).sum() == 20


def test_the_seed_decides_ties_only():
    flat = [pruner_of(50, 3, seed=seed, warmup=0) for seed in (0, 1)]
    for pruner in flat:
        run(pruner, 3, lambda _: np.ones((50, CHANNELS)))
    assert (flat[0].kept != flat[1].kept).any()
    told = [pruner_of(200, 12, seed=seed) for seed in (0, 1)]
    for pruner in told:
        run(pruner, 12, Readings().of)
    assert (told[0].kept == told[1].kept).all()


# Redoing and resuming


def assert_equal(left: dict, right: dict) -> None:
    def flat(value, name=""):
        if isinstance(value, dict):
            for key, part in value.items():
                yield from flat(part, f"{name}.{key}")
        else:
            yield name, value

    for (name, one), (_, other) in zip(flat(left), flat(right), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def assert_same(a: Pruner, b: Pruner) -> None:
    assert a.stage is b.stage
    assert_equal(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("epoch", [0, 2, 7], ids=["warm-up", "first joint", "joint"])
def test_an_epoch_opened_again_is_an_epoch_redone(epoch):
    readings = Readings()
    once, twice = pruner_of(200, 30, warmup=2), pruner_of(200, 30, warmup=2)
    for pruner in (once, twice):
        run(pruner, epoch, readings.of)
    before = deepcopy(twice.state_dict())
    twice.open_epoch()
    twice.observe(np.arange(100), np.full((100, CHANNELS), 1e3))  # then it is broken off
    for name in ("logits", "signal"):
        np.testing.assert_array_equal(twice.state_dict()[name], before[name])
    for pruner in (once, twice):
        run_epoch(pruner, readings.of(epoch))
    assert_same(once, twice)


def test_what_is_seen_belongs_to_an_open_epoch():
    pruner = pruner_of(10, 30)
    with pytest.raises(RuntimeError, match="before open_epoch"):
        pruner.observe(np.array([0]), np.ones((1, CHANNELS)))
    run_epoch(pruner, np.ones((10, CHANNELS)))
    with pytest.raises(RuntimeError, match="before open_epoch"):  # closed again
        pruner.observe(np.array([0]), np.ones((1, CHANNELS)))


# Falls slowly, so that the first mask that matches is the best and must outlive the epochs after it; one great fall.
METRICS = [0.1 if epoch == 8 else 0.54 - 0.002 * epoch for epoch in range(20)]
WARM_UPS = {"auto, the model works in time": ("auto", 2), "auto, it never does": ("auto", 99), "fixed": (4, 0)}


def run_with_metrics(pruner: Pruner, first: int, last: int, works: int) -> None:
    for epoch in range(first, last):
        run_epoch(pruner, Readings().of(epoch), METRICS[epoch], works=epoch >= works)


def test_a_resumed_run_with_areas_ends_as_one_that_was_not_interrupted_bit_for_bit():
    def epochs(pruner: Pruner, first: int, last: int) -> None:
        for epoch in range(first, last):
            area = np.random.default_rng([9, epoch]).random(200) * (np.arange(200) % 11 > 0)
            observe(pruner, Readings().of(epoch), area, METRICS[epoch])

    whole = pruner_of(200, 20, joint=0.5, warmup=2)
    epochs(whole, 0, 20)
    assert (whole.seen[::11] == 0).all()
    for stopped in (1, 3, 7, 12, 15):
        first, second = (pruner_of(200, 20, joint=0.5, warmup=2) for _ in range(2))
        epochs(first, 0, stopped)
        second.load_state_dict(first.state_dict())
        epochs(second, stopped, 20)
        assert_same(second, whole)


@pytest.mark.parametrize("lost", ["seen", "moments", "trace"])
def test_a_state_that_lacks_a_part_is_refused_before_anything_is_taken_over(lost):
    state = pruner_of(10, 30).state_dict()
    state["logits"] += 1
    del state[lost]
    pruner = pruner_of(10, 30)
    with pytest.raises(ValueError, match=f"Expected a state with {lost}, but this one has none"):
        pruner.load_state_dict(state)
    assert (pruner.mask.logits == 1).all()


@pytest.mark.parametrize(("warmup", "works"), WARM_UPS.values(), ids=WARM_UPS.keys())
def test_a_resumed_run_ends_as_one_that_was_not_interrupted_bit_for_bit(warmup, works):
    whole = pruner_of(200, 20, joint=0.5, warmup=warmup)
    states = []
    for epoch in range(20):
        run_with_metrics(whole, epoch, epoch + 1, works)
        states.append(whole.state_dict())
    assert 0 <= whole.state.best_epoch < whole.joint_epochs - 1
    copies = deepcopy(states)
    for stopped, state in enumerate(states, 1):
        resumed = pruner_of(200, 20, joint=0.5, warmup=warmup)
        resumed.load_state_dict(state)
        run_with_metrics(resumed, stopped, 20, works)
        assert_same(resumed, whole)
    for state, copy in zip(states, copies, strict=True):  # no run reached into a state it gave or was given
        assert_equal(state, copy)


def test_the_controller_knows_the_noise_of_what_the_warm_up_measured():
    """A metric that jumps by chance through the warm-up may jump on; one that did not may not."""
    actions = {}
    for jump in (0.0, 0.1):
        pruner = pruner_of(200, 20, joint=0.5, warmup=8)
        for epoch in range(8):
            pruner.open_epoch()
            pruner.close_epoch(0.4 + jump * (-1) ** epoch, fresh=epoch != 6)
        assert len(pruner.state.recent) == 7
        run_epoch(pruner, Readings().of(8), 0.4 - jump)
        before = pruner.state.progress
        run_epoch(pruner, Readings().of(9), 0.25)
        actions[jump] = pruner.state.action, pruner.state.progress > before
    assert actions == {0.0: ("back: metric", False), 0.1: ("advance", True)}


def test_the_weights_of_each_joint_epoch_are_noted_in_a_byte_each_at_the_scale_the_epoch_ran_under():
    pruner, noted = pruner_of(200, 20, joint=0.5, warmup=4), []
    for epoch in range(20):
        s = pruner.state.s
        run_with_metrics(pruner, epoch, epoch + 1, 0)
        if 4 <= epoch < 14 - 1:  # the last joint epoch goes back to the best mask
            noted.append(np.rint(255 * pruner.mask.weights(s)).astype(np.uint8))
    epochs, weights = pruner.history
    assert epochs.tolist() == list(range(5, 15))
    assert (weights.dtype, weights.shape) == (np.uint8, (10, 200))
    np.testing.assert_array_equal(weights[:9], noted)
    assert {0, 255} < set(weights[9].tolist())


def test_the_state_of_another_set_is_refused():
    with pytest.raises(ValueError, match="Expected the state of 11 samples, but got one of 10"):
        pruner_of(11, 30).load_state_dict(pruner_of(10, 30).state_dict())


def test_stopped_before_anything_was_judged_it_keeps_everything():
    pruner = Pruner(50, 2, 10, Settings(**PruneConfig(share=0.2, warmup=5).model_dump()))
    pruner.open_epoch()
    pruner.close_epoch(0.1)
    assert pruner.decide().all()


# Coming back, and staying out of the game


def after_a_wrong_verdict(**prune) -> tuple[np.ndarray, np.ndarray]:
    """Which of twenty clean samples came back that were judged wrongly in the middle, and which bad ones went."""
    readings = Readings()
    wronged = np.setdiff1d(np.arange(200), readings.bad)[:20]
    pruner = pruner_of(200, 10, warmup=0, joint=0.9, tau=0.25, clip=20.0, **prune)
    for epoch in range(9):
        run_epoch(pruner, readings.of(epoch), metric=0.5 + epoch / 1000)  # the best mask is the last
        if epoch == 4:
            pruner.mask.logits[wronged] = -30.0
    return pruner.kept[wronged], ~pruner.kept[readings.bad]


def test_a_sample_that_was_judged_wrongly_once_comes_back_within_the_stage():
    back, gone = after_a_wrong_verdict(memory=PruneConfig().memory)
    assert back.mean() >= 0.9
    assert gone.mean() >= 0.7


def test_without_forgetting_it_would_not():
    back, _ = after_a_wrong_verdict(memory=1.0)
    assert back.mean() <= 0.2


def test_no_weight_lies_below_the_least():
    pruner = pruner_of(200, 30, warmup=0, weight_min=0.25, s_start=5.0)
    pruner.mask.logits[:3] = [-50, 0, 50]
    assert pruner.weights()[:3].tolist() == [0.25, 0.625, 1.0]


def test_required_samples_weigh_1_keep_their_logit_and_leave_the_share_to_the_others():
    readings = Readings()
    required = np.isin(np.arange(200), readings.bad[:10])
    settings = Settings(**PruneConfig(**{**STATED, "warmup": 0, "s_start": 5.0}).model_dump())
    pruner = Pruner(200, CHANNELS, 30, settings, constraints=Constraints(required=required))
    rows = run(pruner, 9, readings.of)
    assert (pruner.mask.logits[required] == 1).all()
    assert pruner.kept[required].all()
    assert (~pruner.kept).sum() == 20
    assert not pruner.kept[np.setdiff1d(readings.bad, np.flatnonzero(required))].any()
    assert abs(rows[-1]["kept"] - 0.9) <= 0.02
    fresh = Pruner(200, CHANNELS, 30, settings, constraints=Constraints(required=required))
    fresh.mask.logits[:] = -3
    assert (fresh.weights() == 1).tolist() == required.tolist()


# Terms of the objective


TERM_SETS = [
    ("task", "selection", "neutral", "compression"),
    ("selection", "neutral", "compression"),
    ("task", "neutral", "compression"),
    ("task", "selection", "compression"),
    ("task", "selection", "neutral"),
    ("task", "selection"),
    (),
]


@pytest.mark.parametrize("terms", TERM_SETS, ids=lambda terms: "+".join(terms) or "none")
def test_a_step_is_down_the_gradient_of_the_terms_in_force_and_of_no_other(terms):
    """The objective is written out here and differentiated by torch, term by term."""
    readings, clip, rate = Readings(), 4.0, 0.5
    pruner = pruner_of(200, 30, warmup=0, terms=list(terms), share=0.3)
    ran = run_epoch(pruner, readings.of(0))
    loss = torch.from_numpy(sample_loss(pruner.signal, 0.5))
    f = {"task": loss, "selection": -loss.log()}
    alone = sum((f[term] for term in ("task", "selection") if term in terms), torch.zeros(200).double())
    neutral = torch.quantile(alone, 0.7) if "neutral" in terms else 0.0
    y = torch.full((200,), 0.5, dtype=torch.float64, requires_grad=True)
    parts = {"task": y * loss, "selection": -y * loss.log(), "neutral": -y * neutral}
    objective = sum((parts[term].sum() for term in parts if term in terms), 0 * y.sum())
    (gradient,) = torch.autograd.grad(objective, y)
    own = 1.0 - rate * (gradient / (1 + gradient.abs() / clip)).numpy()
    common = pruner.mask.logits - own  # what is left is the compression term's, the same for every sample
    np.testing.assert_allclose(common, common[0], atol=1e-9)
    if "compression" in terms:
        assert ran["lambda"] > 0
    else:
        assert ran["lambda"] == 0
        assert common[0] == pytest.approx(0, abs=1e-9)


def test_without_compression_nothing_calls_the_set_back_and_with_it_something_does():
    kept = {}
    for terms in (["task", "selection"], ["task", "selection", "compression"]):
        pruner = pruner_of(200, 30, warmup=0, terms=terms)
        kept[len(terms)] = run(pruner, 8, Readings().of)[-1]["kept"]  # before the exact share is cut
    assert kept == {2: 0.0, 3: pytest.approx(0.9, abs=0.02)}


def test_without_the_task_term_no_weight_meets_a_loss():
    pruner = pruner_of(200, 30, warmup=0, terms=["selection", "neutral", "compression"])
    for epoch in range(4):
        assert pruner.stage is Stage.JOINT
        assert pruner.weights() is None
        run_epoch(pruner, Readings().of(epoch))


@pytest.mark.parametrize("terms", TERM_SETS, ids=lambda terms: "+".join(terms) or "none")
def test_exactly_the_share_goes_whatever_terms_are_in_force(terms):
    pruner = pruner_of(200, 30, warmup=0, terms=list(terms))
    run(pruner, 9, Readings().of)
    assert (~pruner.kept).sum() == 20


# Decided samples leave


def joint_epoch(pruner, values, seen=None):
    """A joint epoch in which `seen` (all) read like `values`, (N,)."""
    ids = np.arange(pruner.n) if seen is None else np.flatnonzero(seen)
    pruner.open_epoch()
    pruner.observe(ids, values[ids, None] * np.ones((1, pruner.channels)))
    return pruner.close_epoch(0.5, rested=None if seen is None else ~np.asarray(seen))


def shrinking(n=40, epochs=100, **changes):
    settings = Settings(**PruneConfig(share=0.25, warmup=0, joint=0.3, floor=0, **changes).model_dump())
    return Pruner(n, 4, epochs, settings, ends_early=True)


def test_what_the_mask_has_decided_leaves_and_is_read_again_in_turn():
    pruner = shrinking()
    values = np.linspace(1, 1.2, 40)
    values[:8] += np.linspace(4, 5, 8)
    values[8:10] += 0.3  # to go as well, but it is not so sure of them
    assert pruner.active is None
    for _ in range(3):
        joint_epoch(pruner, values)
    gone = pruner.absent >= 3
    assert gone.sum() == 8
    assert gone[:8].all()
    turns = []
    for _ in range(8):
        active = pruner.active
        turns.append(set(np.flatnonzero(active & (pruner.absent >= 3))))
        assert len(turns[-1]) == 1
        assert active[pruner.absent < 3].all()
        joint_epoch(pruner, values, active)
    assert set.union(*turns) == set(np.flatnonzero(gone))  # round robin: each once


def test_a_decision_is_undone_by_what_the_turn_reads():
    pruner = shrinking(memory=1.0)
    values = np.linspace(1, 1.2, 40)
    values[:10] += np.linspace(4, 5, 10)
    for _ in range(3):
        joint_epoch(pruner, values)
    back = int(np.flatnonzero(pruner.absent >= 3)[0])
    values[back], values[30] = 1.1, 30.0
    epochs = 0
    while pruner.absent[back] and pruner.kept is None and epochs < 26:
        joint_epoch(pruner, values, pruner.active)
        epochs += 1
    assert pruner.absent[back] == 0
    assert pruner.kept is not None or pruner.active[back]


def test_who_was_never_seen_is_not_decided_on():
    pruner = shrinking()
    values = np.linspace(1, 1.2, 40)
    for _ in range(5):
        joint_epoch(pruner, values, np.arange(40) >= 12)
    assert not pruner.absent[:12].any()


def test_the_joint_stage_ends_once_three_epochs_after_the_ramp_would_drop_the_same():
    values = np.linspace(1, 3, 40)
    lengths = {}
    for early in (True, False):
        pruner = shrinking(epochs=100)
        pruner.ends_early = early
        epochs = 0
        while pruner.kept is None:
            joint_epoch(pruner, values, pruner.active)
            epochs += 1
        lengths[early] = epochs, (~pruner.kept).sum()
    assert lengths == {True: (18 + 2, 10), False: (30, 10)}  # the ramp's last epoch is the first of three


def test_a_warm_up_ends_once_two_epochs_agree():
    settings = Settings(**PruneConfig(share=0.25, warmup="auto").model_dump())
    random = np.random.default_rng(0)
    steady = random.random((40, 4)) + 0.1
    pruner = Pruner(40, 4, 40, settings)
    stages = []
    for epoch in range(6):
        pruner.open_epoch()
        pruner.observe(np.arange(40), steady if epoch > 2 else random.random((40, 4)) + 0.1)
        pruner.close_epoch(0.5, agree=0.8)
        stages.append(int(pruner.stage))
    assert stages == [1, 1, 1, 1, 2, 2]
    assert pruner.agreement == pytest.approx(1)
