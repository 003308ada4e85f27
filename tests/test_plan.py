"""A plan of what each epoch draws: shorter epochs leave the recipe, the counts and a resume as they are."""

import numpy as np
import pytest

from tests import helpers
from tests.helpers import results, train_here
from tests.killing import different
from yolo_adapruner import AdaPruneTrainer, PruneConfig
from yolo_adapruner.core.schedule import Draw, Visits
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
@pytest.mark.usefixtures("runs_on_one_thread")
def test_a_plan_that_draws_everything_is_stock_training_bit_for_bit(data, tmp_path):
    settings = {"epochs": 3, "mosaic": 0.5, "close_mosaic": 1}
    plan = Recorded()
    train_here(data, tmp_path / "ours", share=0, trainer=planned(plan), **settings)
    train_here(data, tmp_path / "stock", share=0, **settings)
    assert different(tmp_path / "stock", tmp_path / "ours") == []
    losses = plan.told[2][0]
    assert np.isfinite(losses).all()
    assert len(set(losses)) > N / 2


@pytest.mark.slow
@pytest.mark.usefixtures("runs_on_one_thread")
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
@pytest.mark.usefixtures("runs_on_one_thread")
def test_losses_are_the_images_shares_of_the_loss_whatever_they_weigh(data, tmp_path):
    sums = {}
    plan = Recorded(Draw(np.arange(N), np.linspace(0.5, 3, N)))

    def note(trainer):
        ids, shares, _ = trainer._shares._waiting[-1] if trainer._shares._waiting else trainer._shares._settled[-1]
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
@pytest.mark.usefixtures("runs_on_one_thread")
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
        trainer = Dynamic.configured(PruneConfig(share=0))(overrides=overrides)
        trainer.train()
        assert different(tmp_path / "whole", folder) == []
        np.testing.assert_array_equal(trainer.visits.count, whole.visits.count)
        assert trainer.plan.asked == 6


@pytest.mark.slow
@pytest.mark.usefixtures("runs_on_one_thread")
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
