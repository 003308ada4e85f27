"""Any loop: a weight for these samples, an update with their losses, a step an epoch; what is wrong is one line."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests import helpers
from yolo_adapruner import AdaPruner, IndexedDataset, PruneConfig
from yolo_adapruner.errors import AdaPrunerError, ConfigError, DataError, RunError
from yolo_adapruner.loop import DEFAULTS

N, WRONG, EPOCHS = 200, 20, 20


def losses_of(epoch: int, n: int = N, wrong: int = WRONG) -> torch.Tensor:
    """Losses that fall epoch by epoch; those of the first `wrong` samples stay high."""
    rng = np.random.default_rng(epoch)
    values = rng.lognormal(0, 0.4, n) * 0.8**epoch
    values[:wrong] = rng.lognormal(1, 0.2, wrong)
    return torch.from_numpy(values)


def run(
    pruner: AdaPruner, epochs: range | int, metric: float = 0.8, *, like: torch.dtype = torch.float64
) -> list[dict]:
    rows = []
    for epoch in range(epochs) if isinstance(epochs, int) else epochs:
        losses = losses_of(epoch, len(pruner)).to(like)
        for ids in torch.randperm(len(pruner), generator=torch.Generator().manual_seed(epoch)).split(16):
            pruner.update(ids, losses[ids])
        rows.append(pruner.step(metric))
    return rows


def assert_same(a: AdaPruner, b: AdaPruner) -> None:
    assert (a.epoch, a.stage, a.config) == (b.epoch, b.stage, b.config)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.active, b.active)
    assert torch.equal(a.weights(range(N)), b.weights(range(N)))
    for mine, others in zip(a.core.record.totals, b.core.record.totals, strict=True):
        np.testing.assert_array_equal(mine, others)


# A loop


@pytest.mark.parametrize("own_loader", [True, False], ids=["our sampler", "a loader of one's own"])
def test_a_plain_loop_drops_the_wrongly_labelled_samples(own_loader):
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    y = (x[:, 0] + x[:, 1] > 0).long()
    x[:, :2] += y[:, None] - 0.5  # no sample lies on the border
    wrong = torch.arange(400) < 40
    dataset = IndexedDataset(TensorDataset(x, torch.where(wrong, 1 - y, y)))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    pruner = AdaPruner(n=len(dataset), epochs=12, prune=0.1)
    order = {"sampler": pruner.sampler()} if own_loader else {"shuffle": True}
    loader, drawn = DataLoader(dataset, 32, **order), []
    for _ in range(12):
        drawn.append(0)
        for xs, ys, ids in loader:
            losses = functional.cross_entropy(model(xs), ys, reduction="none")
            optimizer.zero_grad()
            (pruner.weights(ids, like=losses) * losses).mean().backward()
            optimizer.step()
            pruner.update(ids, losses)
            drawn[-1] += len(ids)
        pruner.step(float((model(x).argmax(1) == y).float().mean()))
    assert (~pruner.kept).sum() == 40
    assert wrong.numpy()[~pruner.kept].mean() >= 0.9  # by chance 0.1
    assert drawn[0] == 400
    assert drawn[-1] == (360 if own_loader else 400)


def test_a_loader_that_knows_no_stage_trains_on_the_kept_alone():
    pruner = AdaPruner(N, EPOCHS, 0.1)
    assert (pruner.stage, pruner.kept) == ("warmup", None)
    assert (pruner.weights(range(N)) == 1).all()
    stages = [int(row["stage"]) for row in run(pruner, EPOCHS)]
    assert stages == sorted(stages)
    assert set(stages) == {1, 2, 3}
    assert pruner.stage == "finetune"
    np.testing.assert_array_equal(pruner.weights(range(N)).numpy(), pruner.kept)
    np.testing.assert_array_equal(np.flatnonzero(~pruner.kept), np.arange(WRONG))


def test_the_joint_stage_weighs_softly_and_the_suspect_less():
    pruner = AdaPruner(N, EPOCHS, 0.1, config=PruneConfig(warmup=2))
    run(pruner, 3)
    weights = pruner.weights(range(N))
    assert pruner.stage == "joint"
    assert ((weights > 0) & (weights < 1)).all()
    assert weights[:WRONG].max() < weights[WRONG:].median()


def test_an_automatic_warm_up_ends_once_the_median_loss_has_halved():
    pruner = AdaPruner(N, EPOCHS, 0.1)
    stages = [int(row["stage"]) for row in run(pruner, 6)]
    # the median falls to 0.8 of itself an epoch: 0.41 of the first after the fifth
    assert stages == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_defaults_rank_the_kept_as_well_as_the_dropped(share):
    """At a `tau` so low that all that stay are beyond `clip` they would tie, in the order of no evidence."""
    pruner = AdaPruner(N, EPOCHS, share)
    run(pruner, EPOCHS)
    stay = np.flatnonzero(pruner.kept)
    assert len(np.unique(pruner.scores[stay])) > 0.9 * len(stay)
    assert np.median(pruner.scores[:WRONG]) < pruner.scores[WRONG:].min()


@pytest.mark.parametrize(("works", "epochs"), [(True, 1), (False, 11)])
def test_the_caller_may_say_when_the_model_works(works, epochs):
    pruner, stages = AdaPruner(N, EPOCHS, 0.1), []
    for epoch in range(EPOCHS):
        pruner.update(range(N), losses_of(epoch))
        stages.append(pruner.step(0.5, works=works)["stage"])
    assert stages.count(1) == epochs


# What is taken


@pytest.mark.parametrize(
    "ids", [torch.tensor([3, 1, 3]), np.array([3, 1, 3], np.int32), [3, 1, 3], (3, 1, 3)], ids=type
)
@pytest.mark.parametrize("like", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ids_and_losses_of_any_type(ids, like):
    pruner = AdaPruner(5, 10, 0.2)
    losses = torch.tensor([1.0, 4.0, 3.0], dtype=like, requires_grad=True)
    weights = pruner.weights(ids, like=losses)
    assert (weights.dtype, weights.shape) == (like, (3,))
    pruner.update(ids, losses)
    # sample 3 stands there twice: its mean counts
    np.testing.assert_array_equal(pruner.core.record.means()[:, 0], [np.nan, 4, np.nan, 2, np.nan])


def test_weights_fit_losses_of_several_dimensions():
    pruner = AdaPruner(5, 10, 0.2, readings=3)
    losses = torch.ones(2, 3)
    assert pruner.weights([0, 1], like=losses).shape == (2, 1)
    assert pruner.weights([0, 1], like=torch.ones(2, 3, 4)).shape == (2, 1, 1)
    pruner.update([0, 1], losses)
    assert pruner.core.record.means().shape == (5, 3)


def test_several_readings_a_sample_count_together():
    pruner = AdaPruner(N, EPOCHS, 0.1, config=PruneConfig(warmup=2), readings=2)
    for epoch in range(EPOCHS):
        both = torch.stack([losses_of(epoch, wrong=10), losses_of(epoch, wrong=0)], 1)
        both[10:20, 1] *= 30 / both[10:20, 1]
        pruner.update(torch.arange(N), both)
        pruner.step(0.5)
    assert np.isin(np.arange(20), np.flatnonzero(~pruner.kept)).mean() >= 0.9


def test_losses_that_are_not_finite_are_not_counted():
    pruner = AdaPruner(4, 10, 0.25)
    pruner.update([0, 1, 2, 2], torch.tensor([torch.nan, torch.inf, 1.0, torch.nan]))
    np.testing.assert_array_equal(pruner.core.record.means()[:, 0], [np.nan, np.nan, 1, np.nan])


def test_an_epoch_of_nothing_but_nan_moves_nothing():
    pruner = AdaPruner(N, EPOCHS, 0.1, config=PruneConfig(warmup=2))
    run(pruner, 5)
    before = pruner.scores
    pruner.update(range(N), torch.full((N,), torch.nan))
    pruner.step(float("nan"))
    np.testing.assert_array_equal(pruner.scores, before)


def test_gradient_accumulation_changes_nothing_of_what_is_noted():
    whole, parts = AdaPruner(N, EPOCHS, 0.1), AdaPruner(N, EPOCHS, 0.1)
    for ids in torch.arange(N).split(50):
        whole.update(ids, losses_of(0)[ids])
        for few in ids.split(10):
            parts.update(few, losses_of(0)[few])
    whole.step(0.5), parts.step(0.5)
    assert_same(whole, parts)


def test_a_config_gives_its_settings_and_prune_wins():
    pruner = AdaPruner(10, 10, 0.3, config=PruneConfig(share=0.1, tau=0.5, warmup=1))
    assert (pruner.config.share, pruner.config.tau, pruner.config.warmup) == (0.3, 0.5, 1)
    assert AdaPruner(10, 10, config=PruneConfig(share=0.2)).config.share == 0.2
    # what the config leaves out is a loop's, not a detector's
    assert AdaPruner(10, 10, config=PruneConfig(share=0.2)).config.tau == DEFAULTS["tau"] != PruneConfig().tau


# Going on


def test_an_epoch_begun_again_forgets_what_was_read():
    straight, again = AdaPruner(N, EPOCHS, 0.1), AdaPruner(N, EPOCHS, 0.1)
    again.update(range(N), torch.full((N,), 7.0))
    again.reopen()
    run(straight, EPOCHS), run(again, EPOCHS)
    assert_same(straight, again)


@pytest.mark.parametrize("at", [0, 3, 8, 15])
def test_a_loaded_state_goes_on_as_if_nothing_had_been(at, tmp_path):
    straight, first, second = (AdaPruner(N, EPOCHS, 0.1) for _ in range(3))
    run(straight, EPOCHS)
    run(first, at)
    half = torch.arange(N // 2)
    first.update(half, losses_of(at)[half])  # in the middle of an epoch
    torch.save(first.state_dict(), tmp_path / "state.pt")
    run(second, 2)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(second, first)
    second.update(half + N // 2, losses_of(at)[half + N // 2])
    second.step(0.8)
    run(second, range(at + 1, EPOCHS))
    np.testing.assert_allclose(second.scores, straight.scores, rtol=1e-9)
    np.testing.assert_array_equal(second.kept, straight.kept)


def test_a_state_is_a_copy():
    pruner = AdaPruner(N, EPOCHS, 0.1)
    run(pruner, 8)
    state = pruner.state_dict()
    saved = copy.deepcopy(state)
    run(pruner, range(8, 12))
    other = AdaPruner(N, EPOCHS, 0.1)
    other.load_state_dict(state)
    untouched = AdaPruner(N, EPOCHS, 0.1)
    untouched.load_state_dict(saved)
    assert_same(other, untouched)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"open": 3},
        AdaPruner(N + 1, EPOCHS, 0.1).state_dict(),
        AdaPruner(N, EPOCHS, 0.1, readings=2).state_dict(),
        {**AdaPruner(N, EPOCHS, 0.1).state_dict(), "core": {}},
    ],
    ids=["nothing", "something else", "another set", "other readings", "no core"],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(state):
    pruner, same = AdaPruner(N, EPOCHS, 0.1), AdaPruner(N, EPOCHS, 0.1)
    run(pruner, 8), run(same, 8)
    with pytest.raises(RunError, match=r"^Expected the state of this pruner, but: .*\.$"):
        pruner.load_state_dict(state)
    assert_same(pruner, same)


# What samples an epoch draws


def test_the_sampler_follows_the_stage_and_draws_anew_each_epoch():
    pruner = AdaPruner(N, EPOCHS, 0.1)
    sampler = pruner.sampler()
    first = list(sampler)
    assert (sorted(first), len(sampler)) == (list(range(N)), N)
    assert list(sampler) == first  # the same epoch, the same order
    run(pruner, EPOCHS)
    assert list(sampler) != first
    assert (sorted(sampler), len(sampler)) == (pruner.active.tolist(), N - WRONG)
    assert list(pruner.sampler(shuffle=False)) == pruner.active.tolist()
    assert list(pruner.sampler(seed=1)) != list(sampler)


@pytest.mark.parametrize(
    ("item", "given"),
    [((1.0, 2), (1.0, 2, 1)), ([1.0, 2], (1.0, 2, 1)), ({"x": 1.0}, {"x": 1.0, "ids": 1}), (5.0, (5.0, 1))],
    ids=["tuple", "list", "mapping", "bare"],
)
def test_items_say_which_sample_they_are(item, given):
    dataset = IndexedDataset([None, item])
    assert dataset[1] == given
    assert dataset[-1] == given
    assert len(dataset) == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    "dataset", [Stream(), iter([1]), DataLoader([1, 2])], ids=["IterableDataset", "iterator", "loader"]
)
def test_what_has_no_rows_is_refused(dataset):
    with pytest.raises(DataError, match=r"^Expected a data set with rows .*: wrap the map-style data set before .*\.$"):
        IndexedDataset(dataset)


def test_a_mapping_that_has_the_key_is_refused():
    with pytest.raises(DataError, match="give IndexedDataset another key"):
        IndexedDataset([{"ids": 3}])[0]
    assert IndexedDataset([{"ids": 3}], key="row")[0] == {"ids": 3, "row": 0}


# What is refused

MADE_WRONG = [
    ("no samples", {"n": 0}, "n as a whole number, 1 or more, but got 0"),
    ("a data set for its length", {"n": [1, 2]}, r"n as a whole number, 1 or more, but got \[1, 2\]"),
    ("too few epochs", {"epochs": 2}, "epochs as a whole number, 3 or more, but got 2"),
    ("half an epoch", {"epochs": 9.5}, "epochs as a whole number, 3 or more, but got 9.5"),
    ("no readings", {"readings": 0}, "readings as a whole number, 1 or more, but got 0"),
    ("a negative share", {"prune": -0.1}, "prune as the share to remove, 0 to 0.95, but got -0.1"),
    ("per cent", {"prune": 30}, "prune as the share to remove, 0 to 0.95, but got 30"),
    ("no number", {"prune": float("nan")}, "prune as the share to remove, 0 to 0.95, but got nan"),
    ("a seed below 0", {"seed": -1}, "seed as a whole number, 0 or more, but got -1"),
    ("a word for a seed", {"seed": "a"}, "seed as a whole number, 0 or more, but got 'a'"),
    ("all of few", {"n": 9, "prune": 0.95}, "a sample that stays, but prune 0.95 takes all of 9: give a smaller share"),
    ("a keep list", {"config": PruneConfig(keep="x")}, "no keep list, but got one: a loop knows samples by number.*"),
    ("updates", {"config": PruneConfig(budget="updates")}, "budget=epochs, but got updates: a loop of your own .*"),
    ("settings in a dict", {"config": {"tau": 1}}, r"a PruneConfig as config, but got \{'tau': 1\}: .*"),
    ("a word", {"prune": "0.3"}, "prune as the share to remove, 0 to 0.95, but got '0.3'"),
]


@pytest.mark.parametrize(("wrong", "line"), [c[1:] for c in MADE_WRONG], ids=[c[0] for c in MADE_WRONG])
def test_a_pruner_that_cannot_be_is_refused(wrong, line):
    with pytest.raises(ConfigError, match=rf"^Expected {line}\.$"):
        AdaPruner(**{"n": 10, "epochs": 10, "prune": 0.1, **wrong})


ONE = torch.tensor([1.0])
USED_WRONG = [
    ("too high an id", [10], ONE, "sample ids from 0 to 9, but got 10: give each sample's row"),
    ("a negative id", [-1], ONE, "sample ids from 0 to 9, but got -1: give each sample's row"),
    (
        "ids that are no whole numbers",
        [0.5],
        ONE,
        r"sample ids as a list of whole numbers, but got float64 of shape \(1,\)",
    ),
    ("bools", [True], ONE, "sample ids as a list of whole numbers, but got bool"),
    ("words", ["a.jpg"], ONE, "sample ids as a list of whole numbers, but got <U5"),
    ("one id alone", 3, ONE, r"sample ids as a list of whole numbers, but got int64 of shape \(\)"),
    ("a mean loss", [1, 2], torch.tensor(1.0), r'one loss for each of 2 samples, shape \(2,\), but got \(\): .*"none"'),
    ("too few losses", [1, 2], ONE, r"one loss for each of 2 samples, shape \(2,\), but got \(1,\)"),
    ("losses by token", [1, 2], torch.ones(2, 7), r"one loss for each of 2 samples, shape \(2,\), but got \(2, 7\)"),
    ("ids of uneven length", [[0], [1, 2]], ONE, "sample ids as a list of whole numbers, but: .*inhomogeneous"),
    ("words for losses", [0], ["a"], "losses as a tensor or array of real numbers, but got <U1"),
    ("complex losses", [0], ONE * 1j, "losses as a tensor or array of real numbers, but got complex64"),
    ("losses that need gradients", [0, 1], [ONE[0].clone().requires_grad_()] * 2, "losses as a tensor or array"),
    ("negative losses", [1], -ONE, "losses of 0 or more, but got -1: subtract the lowest"),
]


@pytest.mark.parametrize(("ids", "losses", "line"), [c[1:] for c in USED_WRONG], ids=[c[0] for c in USED_WRONG])
def test_a_wrong_batch_is_refused_and_not_noted(ids, losses, line):
    pruner = AdaPruner(10, 10, 0.1)
    with pytest.raises(ConfigError, match=rf"^Expected {line}.*\.$"):
        pruner.update(ids, losses)
    assert not any(total.any() for total in pruner.core.record.totals)


@pytest.mark.parametrize(("ids", "like"), [([10], None), ([1, 2], ONE), ([1], torch.tensor(1.0)), ([1], np.ones(1))])
def test_weights_of_a_wrong_batch_are_refused(ids, like):
    with pytest.raises(ConfigError, match=r"^Expected .*\.$"):
        AdaPruner(10, 10, 0.1).weights(ids, like=like)


def test_a_step_without_an_update_is_refused_where_samples_are_judged():
    pruner = AdaPruner(N, EPOCHS, 0.1)
    with pytest.raises(RunError, match=r"^Expected losses before step\(\), but the epoch has none: call update"):
        pruner.step(0.5)
    assert pruner.epoch == 0
    run(pruner, EPOCHS)
    pruner.step(0.5)  # fine-tune: nobody is judged
    assert pruner.epoch == EPOCHS + 1


@pytest.mark.parametrize("metric", [None, [0.5], 1j, "0.9", torch.ones(2)], ids=["None", "list", "1j", "word", "two"])
def test_a_metric_that_is_no_number_is_refused(metric):
    pruner = AdaPruner(N, EPOCHS, 0.1)
    pruner.update(range(N), losses_of(0))
    with pytest.raises(ConfigError, match=r"^Expected the metric as one number, but got "):
        pruner.step(metric)
    assert pruner.epoch == 0


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_that_draws_nothing_is_refused_before_a_sampler_draws(seed):
    with pytest.raises(ConfigError, match=r"^Expected seed as a whole number, 0 or more, but got "):
        AdaPruner(N, EPOCHS, 0.1).sampler(seed=seed)


@pytest.mark.parametrize(("epochs", "share"), [(EPOCHS + 9, 0.1), (EPOCHS, 0.4)], ids=["epochs", "share"])
def test_a_state_for_other_epochs_or_another_share_says_so(epochs, share):
    other = AdaPruner(N, epochs, share)
    run(other, EPOCHS - 2)
    pruner, same = AdaPruner(N, EPOCHS, 0.1), AdaPruner(N, EPOCHS, 0.1)
    said = rf"made for epochs {epochs}, prune {share:g}, and this one for epochs {EPOCHS}, prune 0\.1"
    with pytest.raises(RunError, match=said):
        pruner.load_state_dict(other.state_dict())
    assert_same(pruner, same)


@pytest.mark.parametrize("metric", [-0.5, float("inf"), float("-inf")])
def test_a_metric_that_the_controller_cannot_hold_is_refused(metric):
    pruner = AdaPruner(N, EPOCHS, 0.1)
    pruner.update(range(N), losses_of(0))
    with pytest.raises(
        AdaPrunerError, match=r"^Expected a metric of 0 or more, .*math\.exp\(-loss\) in place of a loss\.$"
    ):
        pruner.step(metric)
    assert pruner.epoch == 0


# Several processes

TWO = """
import numpy as np, torch
from yolo_adapruner import AdaPruner
from tests.test_loop import losses_of, N, EPOCHS
pruner = AdaPruner(N, EPOCHS, 0.1)
sampler, drawn = pruner.sampler(), []
for epoch in range(EPOCHS):
    ids = torch.tensor(list(sampler))
    assert len(ids) == len(sampler)
    drawn.append(ids.numpy())
    pruner.update(ids, losses_of(epoch)[ids])
    pruner.step(0.8 if rank == 0 else 0.0)
np.savez(meet + f"-{rank}.npz", scores=pruner.scores, kept=pruner.kept, first=drawn[0], last=drawn[-1])
"""


@pytest.mark.slow
def test_two_processes_hold_the_mask_that_one_would(tmp_path):
    meet = tmp_path / "meet"
    helpers.run_ranks(TWO, 2, meet)
    one, two = (np.load(f"{meet}-{rank}.npz") for rank in range(2))
    np.testing.assert_array_equal(one["scores"], two["scores"])
    assert sorted([*one["first"], *two["first"]]) == list(range(N))
    assert sorted([*one["last"], *two["last"]]) == np.flatnonzero(one["kept"]).tolist()
    alone = AdaPruner(N, EPOCHS, 0.1)
    run(alone, EPOCHS)
    np.testing.assert_array_equal(one["kept"], alone.kept)
    np.testing.assert_allclose(one["scores"], alone.scores, rtol=1e-9)
