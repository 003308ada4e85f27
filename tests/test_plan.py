"""A plan of what each epoch draws: shorter epochs leave the recipe, the counts and a resume as they are."""

import itertools

import numpy as np
import pytest

from tests import helpers
from tests.helpers import LENGTHS, results, train_here
from tests.killing import different
from yolo_adapruner import AdaPruneTrainer, PruneConfig
from yolo_adapruner.core.schedule import Draw, Dynamic, Stretch, Visits, validates
from yolo_adapruner.data import export
from yolo_adapruner.engine import runtime, state
from yolo_adapruner.engine.snapshot import Steps
from yolo_adapruner.study.dynamic import infobatch

N = 24
STILL = {"plots": False, "epochs": 4}


# What is known of each sample


def test_visits_keep_what_was_last_seen_of_each_sample():
    visits = Visits(3, 2)
    visits.add(np.array([0, 1]), np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([1.0, 0.5]))
    visits.add_losses(np.array([0, 1]), np.array([[5.0], [6.0]]))
    visits.close_epoch(0, None)
    visits.add(np.array([1, 1]), np.array([[8.0, 1.0], [6.0, 1.0]]), np.array([0.25, 0.75]))
    visits.add_losses(np.array([1]), np.array([[9.0]]))
    visits.close_epoch(1, Draw.of(np.array([False, True, False])))
    np.testing.assert_array_equal(visits.losses, [5, 9, np.nan])
    np.testing.assert_array_equal(visits.readings, [[1, 2], [6.5, 1], [np.nan, np.nan]])
    assert (visits.last.tolist(), visits.count.tolist()) == ([0, 1, 0], [1, 2, 1])
    other = Visits(3, 2)
    other.load_state_dict(visits.state_dict())
    for name, held in visits.state_dict().items():
        np.testing.assert_array_equal(getattr(other, name), held)


def test_an_epoch_opened_again_forgets_what_was_read_in_it():
    visits = Visits(2, 1)
    visits.add(np.array([0]), np.array([[1.0]]))
    visits.open_epoch()
    visits.close_epoch(0, None)
    assert np.isnan(visits.readings).all()


# Where the steps fall


def steps_taken(lengths: list[int], per_epoch: int, accumulate: int) -> list[int]:
    """Batches, counted through, that Ultralytics' condition steps after, with epochs of these lengths."""
    steps, last, done, taken = Steps(), -1, 0, []
    steps.per_epoch = per_epoch
    for epoch, length in enumerate(lengths):
        steps.open_epoch(epoch)
        for i in range(length):
            steps.next_batch()
            ni = i + per_epoch * epoch
            if ni - last >= accumulate + steps.owed:
                taken.append(done)
                last = ni
                steps.stepped()
            done += 1
        steps.skip(steps.missing)
    return taken


def test_gradients_are_collected_over_as_many_batches_whatever_an_epoch_s_length():
    assert steps_taken([6, 6, 6], 6, 4) == [3, 7, 11, 15]
    assert steps_taken([6, 3, 5, 1, 1, 6], 6, 4) == [3, 7, 11, 15, 19]
    assert steps_taken([6, 1, 1, 6], 6, 1) == list(range(14))


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return helpers.build_set(tmp_path_factory.mktemp("set"), train=N)


def planned(plan):
    """The trainer's class, with a planner."""

    class Planned(AdaPruneTrainer):
        planner = staticmethod(lambda trainer: plan)

    return Planned


class Recorded:
    """Draws what it is given by epoch, and notes what it was told."""

    def __init__(self, *draws):
        self.draws, self.told = draws, {}

    def __call__(self, epoch, seen):
        self.told[epoch] = (seen.losses.copy(), seen.last.copy(), seen.count.copy())
        return self.draws[epoch] if epoch < len(self.draws) else None


@pytest.mark.slow
def test_a_plan_that_draws_everything_is_stock_training_bit_for_bit(data, tmp_path):
    settings = {"epochs": 3, "mosaic": 0.5, "close_mosaic": 1}
    plan = Recorded()
    train_here(data, tmp_path / "ours", share=0, trainer=planned(plan), **settings)
    train_here(data, tmp_path / "stock", share=0, **settings)
    assert set(different(tmp_path / "stock", tmp_path / "ours")) == {"scores.csv", "results.csv"}  # visits, images
    ours, stock = (results(tmp_path / name) for name in ("ours", "stock"))
    times = {"time", "prune/images", "prune/validated"}
    assert [{k: v for k, v in row.items() if k not in times} for row in ours] == [
        {k: v for k, v in row.items() if k != "time"} for row in stock
    ]
    losses = plan.told[2][0]
    assert np.isfinite(losses).all()
    assert len(set(losses)) > N / 2


@pytest.mark.slow
@pytest.mark.parametrize("rect", [False, True])
def test_an_epoch_trains_on_what_is_drawn_and_keeps_the_recipe(data, tmp_path, rect):
    """Learning rates by epoch and momentum as with all images; the losses handed back are those of the forward."""
    batches, rates, momenta, averages = {}, [], [], []
    weights = np.array([2.0, 1, 1, 1, 1, 1, 1, 1, 1])
    draws = [None, Draw(np.array([0, 2, 3, 5, 7, 11, 13, 17, 23]), weights), Draw.of(np.arange(N) == 4)]
    plan = Recorded(*draws)

    def on_batch(trainer):
        batches.setdefault(trainer.epoch, []).append(trainer._batch_ids.tolist())
        assert trainer.loss.isfinite()

    def on_epoch(trainer):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        momenta.append([group["momentum"] for group in trainer.optimizer.param_groups])
        averages.append(trainer.ema.updates)

    settings = {"optimizer": "SGD", "lr0": 0.001, "warmup_epochs": 1.5, "rect": rect, **STILL}
    train_here(data, tmp_path / "all", share=0, callbacks={"on_train_epoch_end": on_epoch}, **settings)
    full = rates[:], momenta[:], averages[:]
    for noted in (rates, momenta, averages):
        noted.clear()
    trainer = train_here(
        data,
        tmp_path / "run",
        share=0,
        trainer=planned(plan),
        callbacks={"on_train_epoch_end": on_epoch, "on_train_batch_end": on_batch},
        **settings,
    )
    assert [len(batches[epoch]) for epoch in range(4)] == [3, 2, 1, 3]
    for epoch, draw in enumerate([*draws, None]):
        drawn = sorted(i for batch in batches[epoch] for i in batch)
        assert drawn == (list(range(N)) if draw is None else draw.ids.tolist())
    assert rates[2:] == full[0][2:]  # the warm-up's iterations end in the second epoch, whose half is missing
    assert momenta[2:] == full[1][2:] == [[0.937] * len(momenta[0])] * 2
    assert averages == full[2]
    assert trainer.updates == 3 + 2 + 1 + 3
    losses, last, count = plan.told[3]
    assert (last == [1 if i in draws[1].ids else 2 if i == 4 else 0 for i in range(N)]).all()
    assert count.sum() == N + 9 + 1
    assert np.isfinite(losses).all()
    assert [row["epoch"] for row in results(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_losses_are_the_images_shares_of_the_loss_whatever_they_weigh(data, tmp_path):
    sums = {}
    plan = Recorded(Draw(np.arange(N), np.linspace(0.5, 3, N)))

    def note(trainer):
        noted = trainer._shares
        ids, shares, *_ = (noted._waiting or noted._settled[-1][0])[-1]
        weighted = float((shares[:, 0].double().numpy() * trainer._weights[ids].numpy()).sum())
        sums[len(sums)] = (weighted, float(trainer.loss.detach()))

    train_here(data, tmp_path / "r", share=0, trainer=planned(plan), epochs=1, callbacks={"on_train_batch_end": note})
    assert len(sums) == 3
    for weighted, loss in sums.values():
        assert weighted == pytest.approx(loss, rel=1e-5)


class Memory:
    """InfoBatch by the losses, with a state of its own beside."""

    def __init__(self):
        self.asked = 0

    def __call__(self, epoch, seen):
        self.asked = max(self.asked, epoch + 1)
        return infobatch(seen.losses, epoch, 6, seed=1)

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = int(state["asked"])


@pytest.mark.slow
def test_an_interrupted_run_draws_what_the_run_that_nothing_interrupts_does(data, tmp_path):
    settings = {"epochs": 6, "nbs": 16, "mosaic": 0.5, "close_mosaic": 2}

    class Dynamic(AdaPruneTrainer):
        planner = staticmethod(lambda trainer: Memory())
        stop_in = None

        def optimizer_step(self):
            super().optimizer_step()
            if self.epoch == self.stop_in:
                raise KeyboardInterrupt

    whole = train_here(data, tmp_path / "whole", share=0, trainer=Dynamic, **settings)
    assert whole.visits.count.min() < 6 == whole.visits.count.max()
    for epoch in (2, 4):
        kind = type("Dynamic", (Dynamic,), {"stop_in": epoch})
        folder = tmp_path / f"cut-{epoch}"
        with pytest.raises(KeyboardInterrupt):
            train_here(data, folder, share=0, trainer=kind, **settings)
        overrides = {"resume": str(folder / "weights" / "adaprune.pt"), "save_dir": str(folder), "data": str(data)}
        trainer = Dynamic.configured(PruneConfig(share=0, **LENGTHS))(overrides=overrides)
        trainer.train()
        assert different(tmp_path / "whole", folder) == []
        np.testing.assert_array_equal(trainer.visits.count, whole.visits.count)
        assert trainer.plan.asked == 6


@pytest.mark.slow
def test_one_image_does_not_stand_alone_where_batch_normalisation_needs_two(data, tmp_path):
    plan = Recorded(Draw.of(np.arange(N) < 9))
    sizes = []
    train_here(
        data,
        tmp_path / "r",
        share=0,
        imgsz=32,
        epochs=2,
        trainer=planned(plan),
        callbacks={"on_train_batch_end": lambda t: sizes.append(len(t._batch_ids))},
    )
    assert sizes == [8, 2, 8, 8, 8]


# What the dynamic mode draws


def simulated(dynamic, hardness, suspicion=None, active=None):
    """Draws epoch by epoch, every drawn sample reading as hard as it is: rows of (drawn, weights), (epochs, N)."""
    n = len(hardness)
    seen, weights = Visits(n, 1), np.zeros((dynamic.epochs, n))
    for epoch in range(dynamic.epochs):
        draw = dynamic(epoch, seen, suspicion, active)
        ids = np.arange(n) if draw is None else draw.ids
        weights[epoch, ids] = 1 if draw is None else draw.weights
        seen.add(ids, -np.log1p(-hardness[ids])[:, None])
        seen.close_epoch(epoch, draw)
    return weights, seen


def test_easy_samples_are_drawn_less_often_and_all_weigh_the_same_in_the_end():
    n, dynamic = 400, Dynamic(80, 0.5, 4, 0.1, seed=2, rescale=1)
    hardness = np.random.default_rng(0).permutation(np.linspace(0.05, 0.9, n))
    weights, seen = simulated(dynamic, hardness)
    drawn = weights > 0
    assert seen.settled == 2  # the second epoch agreed with the first
    assert drawn[:2].all()
    assert drawn[72:].all()
    assert drawn[2:72].mean() == pytest.approx(0.5, abs=0.02)
    assert (np.abs(drawn[2:72].mean(1) - 0.5) < 0.1).all()  # no epoch is much longer than another
    order = np.argsort(hardness)
    visits = drawn[2:72].mean(0)[order].reshape(8, -1).mean(1)
    assert (np.diff(visits) > -0.02).all()
    assert visits[0] == pytest.approx(0.25, abs=0.03)
    assert visits[-1] == pytest.approx(1, abs=0.01)
    assert weights.sum(0)[order].reshape(8, -1).mean(1) == pytest.approx(80, rel=0.02)  # the expectation is kept
    gaps = [np.diff(np.flatnonzero(column), prepend=-1).max() for column in drawn.T]
    assert max(gaps) == 4


def test_a_suspect_is_hard_for_ever_and_yet_drawn_seldom_and_not_made_up_for():
    n, dynamic = 200, Dynamic(60, 0.5, 5, 0.1, rescale=1)
    hardness, suspicion = np.linspace(0.1, 0.5, n), np.full(n, -2.0)
    hardness[:20], suspicion[:20], suspicion[20] = 0.9, 1.5, np.nan
    weights, _ = simulated(dynamic, hardness, suspicion)
    assert (weights[2:54] > 0).mean(0)[:20] == pytest.approx(np.full(20, 0.2), abs=0.05)
    assert set(weights[:, :20].flatten()) == {0.0, 1.0}
    assert (weights[2:54] > 0)[:, -10:].all()


def test_how_far_a_visit_makes_up_for_those_left_out_is_a_power_and_changes_no_draw():
    hardness = np.linspace(0.05, 0.9, 100)
    full, half, none = (simulated(Dynamic(40, 0.5, 4, 0.1, rescale=r), hardness)[0] for r in (1, 0.5, 0))
    np.testing.assert_array_equal(none, full > 0)
    np.testing.assert_allclose(half, np.sqrt(full))
    assert full.max() > 3


@pytest.mark.slow
@pytest.mark.parametrize("rescale", [0.0, 1.0])
def test_a_run_weighs_its_visits_as_its_settings_say(rescale, data, tmp_path):
    weights = []

    class Noted(AdaPruneTrainer):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            weights.append(self._tap.weights)
            return batch

    method = {"dynamic": True, "warmup": 1, "joint": 0.2, "dynamic_rescale": rescale}
    train_here(data, tmp_path / "r", share=0, method=method, epochs=8, trainer=Noted)
    if rescale:
        assert max(w.max() for w in weights if w is not None) > 2
    else:
        assert all(w is None for w in weights)


def test_what_is_out_of_the_game_is_not_drawn_and_takes_no_place():
    n = 100
    active = np.arange(n) % 2 == 0
    weights, _ = simulated(Dynamic(40, 0.5, 4, 0.1), np.linspace(0, 0.9, n), active=active)
    middle = weights[6:36] > 0
    assert not middle[:, ~active].any()
    assert middle[:, active].mean() == pytest.approx(0.5, abs=0.03)


def test_a_draw_hangs_on_nothing_but_the_epoch_and_what_was_seen():
    hardness = np.linspace(0, 0.9, 50)
    dynamic = Dynamic(20, 0.5, 4)
    _, seen = simulated(Dynamic(9, 0.5, 4, 0.0), hardness)
    first, again = dynamic(9, seen), dynamic(9, seen)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert list(dynamic(10, seen).ids) != list(first.ids)
    assert list(Dynamic(20, 0.5, 4, seed=1)(9, seen).ids) != list(first.ids)


def test_epochs_are_shortened_late_in_a_run_whose_readings_never_settle():
    random = np.random.default_rng(3)
    dynamic, seen = Dynamic(40), Visits(100, 1)
    lengths = []
    for epoch in range(40):
        draw = dynamic(epoch, seen)
        lengths.append(100 if draw is None else len(draw.ids))
        seen.add(np.arange(100), random.random((100, 1)))
        seen.close_epoch(epoch, draw)
    assert seen.settled == -1
    assert lengths[:6] == [100] * 6
    assert max(lengths[6:34]) < 70
    assert lengths[34:] == [100] * 6


def test_no_epoch_is_shortened_before_labels_can_be_judged():
    hardness = np.linspace(0, 0.9, 100)  # agrees with itself from the first epoch on
    dynamic, seen = Dynamic(40), Visits(100, 1)
    lengths = []
    for epoch in range(40):
        draw = dynamic(epoch, seen, ready=10)
        lengths.append(100 if draw is None else len(draw.ids))
        seen.add(np.arange(100), -np.log1p(-hardness)[:, None])
        seen.close_epoch(epoch, draw)
    assert seen.settled == 2
    assert lengths[:10] == [100] * 10
    assert max(lengths[10:34]) < 70


def test_validation_comes_per_image_trained_on():
    trained, validated = 0, []
    for epoch in range(20):
        trained += 50
        if validates(trained, 100, epoch, 20):
            validated.append(epoch)
            trained = 0
    assert validated == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 19]


@pytest.mark.slow
def test_a_dynamic_run_that_is_resumed_ends_as_one_that_was_not_interrupted(data, tmp_path):
    method = {"dynamic": True, "warmup": 2, "joint": 0.2, "dynamic_anneal": 0.1}
    settings = {"epochs": 10, "mosaic": 0.5, "close_mosaic": 2, "share": 0.25, "method": method}

    class Cut(AdaPruneTrainer):
        stop_in = None

        def optimizer_step(self):
            super().optimizer_step()
            if self.epoch == self.stop_in:
                raise KeyboardInterrupt

    whole = train_here(data, tmp_path / "whole", trainer=Cut, **settings)
    rows = results(tmp_path / "whole")
    lengths = [row["prune/images"] for row in rows]
    assert lengths[:2] == [N, N]
    assert max(lengths[2:9]) < 0.75 * N
    assert lengths[9] == 18
    assert [row["prune/validated"] for row in rows][-1] == 1
    assert not all(row["prune/validated"] for row in rows)
    manifest, outcome = export.read(tmp_path / "whole")
    assert manifest["visits"] == {"images": sum(lengths), "of": 10 * N, "epochs": 10}
    np.testing.assert_array_equal(outcome.columns["visits"], whole.visits.count)
    for epoch in (3, 6):
        folder = tmp_path / f"cut-{epoch}"
        with pytest.raises(KeyboardInterrupt):
            train_here(data, folder, trainer=type("Cut", (Cut,), {"stop_in": epoch}), **settings)
        overrides = {"resume": str(folder / "weights" / "adaprune.pt"), "save_dir": str(folder), "data": str(data)}
        Cut.configured(PruneConfig(share=0.25, **{**LENGTHS, **method}))(overrides=overrides).train()
        assert different(tmp_path / "whole", folder) == []


@pytest.mark.slow
def test_an_epoch_that_is_not_validated_is_never_the_best(data, tmp_path):
    """Its metrics are those of the last validation, and best.pt is of an epoch that was looked at."""
    method = {"dynamic": True, "warmup": 1, "joint": 0.2}
    written = []

    def saved(trainer):
        written.append((trainer._since == 0, trainer.fitness is None))

    train_here(data, tmp_path / "r", share=0, method=method, epochs=8, callbacks={"on_model_save": saved})
    assert all(looked is not unknown for looked, unknown in written)
    rows = results(tmp_path / "r")
    for before, row in itertools.pairwise(rows):
        same = row["metrics/mAP50-95(B)"] == before["metrics/mAP50-95(B)"]
        assert same or row["prune/validated"]


SHORT = {"share": 0.5, "method": {"warmup": 1, "joint": 0.3, "floor": 0}, "epochs": 20}
"""A run whose fine-tune epochs draw half of the images, so that every second one is validated."""


@pytest.fixture
def minute_apart(monkeypatch):
    """Epochs that are not the best are saved once a minute, as where nothing else is asked for: here never."""
    monkeypatch.delenv(runtime.SAVE_SECONDS)


@pytest.mark.slow
def test_short_epochs_that_are_not_the_best_are_not_saved(data, tmp_path, monkeypatch, minute_apart):
    saved, best = [], []

    def note(trainer):
        if trainer.epoch < 20 and trainer.fitness is not None and trainer.fitness == trainer.best_fitness:
            best.append(trainer.epoch + 1)

    callbacks = {"on_model_save": lambda trainer: saved.append(trainer.epoch + 1), "on_fit_epoch_end": note}
    train_here(data, tmp_path / "r", callbacks=callbacks, **SHORT)
    decided = sum(row["prune/stage"] < 3 for row in results(tmp_path / "r"))
    assert saved == sorted({1, *best, decided, 20})  # and once it is known which images go
    assert len(saved) < 16
    saved.clear()
    monkeypatch.setenv(runtime.SAVE_SECONDS, "0")
    train_here(data, tmp_path / "all", callbacks=callbacks, **SHORT)
    assert saved == list(range(1, 21))
    assert different(tmp_path / "r", tmp_path / "all") == []


def test_a_word_that_is_no_number_of_seconds_counts_as_unset(monkeypatch):
    assert runtime.save_seconds() == 0
    monkeypatch.setenv(runtime.SAVE_SECONDS, "often")
    assert runtime.save_seconds() == 60


@pytest.mark.slow
def test_a_run_that_was_cut_off_behind_epochs_that_are_not_saved_ends_as_ever(data, tmp_path, minute_apart):
    cut_in = []

    class Cut(AdaPruneTrainer):
        def optimizer_step(self):
            super().optimizer_step()
            if self.epoch > 10 and state.load(self.wdir / "adaprune.pt")["epoch"] < self.epoch - 1:
                cut_in.append(self.epoch)
                raise KeyboardInterrupt

    whole = train_here(data, tmp_path / "whole", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        train_here(data, tmp_path / "cut", trainer=Cut, **SHORT)
    file = tmp_path / "cut" / "weights" / "adaprune.pt"
    assert cut_in  # there was an epoch that was trained, and not saved
    trainer = AdaPruneTrainer.configured(whole.prune_config)(
        overrides={"resume": str(file), "save_dir": str(tmp_path / "cut"), "data": str(data)}
    )
    trainer.train()
    assert different(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.slow
def test_nan_behind_an_epoch_that_is_not_saved_goes_on_with_the_mask_as_it_is(data, tmp_path, minute_apart):
    """Ultralytics takes the weights of its last checkpoint; the mask has moved on since and stays where it is."""
    begun, failed = [], []

    class Fails(AdaPruneTrainer):
        def _handle_nan_recovery(self, epoch):
            if epoch > 10 and not failed and state.load(self.wdir / "adaprune.pt")["epoch"] < epoch - 1:
                failed.append(epoch)
                self.loss = self.loss * float("nan")
                self._since, self._validated = 0, dict.fromkeys(self._validated, -1.0)  # what failed was worth
            return super()._handle_nan_recovery(epoch)

    callbacks = {"on_train_epoch_start": lambda trainer: begun.append(trainer.epoch)}
    trainer = train_here(data, tmp_path / "r", trainer=Fails, callbacks=callbacks, **SHORT)
    assert begun == sorted([*range(20), *failed])
    assert len(failed) == 1
    rows = results(tmp_path / "r")
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert min(row["metrics/mAP50-95(B)"] for row in rows) >= 0
    assert trainer.visits.count.sum() == sum(row["prune/images"] for row in rows)
    assert trainer.visits.count.max() == 20


@pytest.mark.parametrize("trained", [8000, 7651, 400])
@pytest.mark.parametrize("kept", [399, 320, 200, 20])
def test_a_stretched_training_trains_on_as_many_samples_as_planned(trained, kept):
    stretch = Stretch.of(planned=40, n=400, trained=trained, begin=20, kept=kept)
    assert abs(trained + (stretch.epochs - stretch.begin) * kept - 40 * 400) <= kept / 2


def test_a_stretched_training_s_schedule_goes_by_what_it_has_trained_on():
    stretch = Stretch.of(planned=40, n=400, trained=20 * 400, begin=20, kept=320)
    assert stretch.epochs == 45
    at = [stretch.at(epoch) / stretch.epochs for epoch in range(20, 46)]
    trained = [(20 * 400 + done * 320) / (40 * 400) for done in range(26)]
    assert at == pytest.approx(trained)
    assert (at[0], at[-1]) == (0.5, 1.0)


def test_a_training_that_has_trained_on_all_it_was_to_has_one_epoch_left():
    assert Stretch.of(planned=4, n=10, trained=40, begin=3, kept=5).epochs == 4
