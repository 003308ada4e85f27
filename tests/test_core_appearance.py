"""Which drawn samples are the same picture: copies among others under noise, neighbours, labels, epochs redone."""

import numpy as np
import pytest

from yolo_adapruner.core import appearance as appearance_module
from yolo_adapruner.core import nearest as nearest_module
from yolo_adapruner.core.appearance import Appearance, dimensions
from yolo_adapruner.core.layout import BACKGROUNDS, Layout
from yolo_adapruner.core.nearest import nearest
from yolo_adapruner.core.redundancy import Graph, overlap

N, D = 200, 32
COPIES = {190 + i: i for i in range(10)}


class Views:
    """Features of N pictures, an epoch's each under its own noise, which has a large share in a few directions."""

    def __init__(self, copies: dict[int, int], noise: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.own = rng.normal(size=(N, D)) * np.linspace(1.5, 0.1, D)
        for copy, original in copies.items():
            self.own[copy] = self.own[original]
        self.noise = noise * rng.normal(size=(D, D)) * np.linspace(2.0, 0.05, D)[:, None] / D**0.5
        self.seed = seed

    def of(self, epoch: int) -> np.ndarray:
        drawn = np.random.default_rng([self.seed, epoch]).normal(size=(N, D)) @ self.noise
        return ((self.own + drawn) * (1 + epoch) + 3 * epoch).astype(np.float32)  # the network moves on


def seen(views: Views, epochs: int, labels: Layout | None = None) -> Appearance:
    appearance = Appearance(N, D, labels)
    for epoch in range(epochs):
        appearance.open_epoch()
        appearance.add(np.arange(N), views.of(epoch), np.ones(N))
        appearance.close_epoch()
    return appearance


def likeness(appearance: Appearance, first: int, second: int) -> float:
    neighbours, kernel = appearance.pairs()
    return float(kernel[first][neighbours[first] == second].sum())


def test_copies_are_the_same_picture_and_others_are_not() -> None:
    neighbours, kernel = seen(Views(COPIES), 12).pairs()
    assert all(neighbours[copy, 0] == original for copy, original in COPIES.items())
    assert kernel[list(COPIES), 0].min() > 0.9
    alone = np.setdiff1d(np.arange(N), [*COPIES, *COPIES.values()])
    assert kernel[alone].max() < 0.1


def test_a_set_without_copies_has_none() -> None:
    _, kernel = seen(Views({}), 12).pairs()
    assert kernel.max() < 0.1


def test_what_augmentation_does_to_one_picture_tells_none_apart() -> None:
    """Of noise alone all pictures would be the same if its size did not count; so nothing is claimed."""
    views = Views({})
    views.own[:] = 0
    _, kernel = seen(views, 12).pairs()
    assert kernel.max() < 0.1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("few", [True, False])
def test_where_a_few_pictures_lie_far_off_the_others_are_no_copies(few, seed) -> None:
    """As with photographs: the variance is that of the few, and beside it most lie close together."""
    width, rng = 96, np.random.default_rng(seed)
    size = np.where(rng.random(N) < 0.15, 4, 0.2) if few else np.exp(rng.normal(size=N))
    own = size[:, None] * rng.normal(size=(N, width)) * np.linspace(1.5, 0.1, width)
    own[:5] = own[100:105]
    noise = rng.normal(size=(width, width)) * np.linspace(2, 0.05, width)[:, None] / width**0.5
    appearance = Appearance(N, width)
    for _ in range(12):
        appearance.open_epoch()
        appearance.add(np.arange(N), own + rng.normal(size=(N, width)) @ noise, np.ones(N))
        appearance.close_epoch()
    neighbours, kernel = appearance.pairs()
    assert np.array_equal(neighbours[:5, 0], np.arange(100, 105))
    assert kernel[:5, 0].min() > 0.5
    others = np.setdiff1d(np.arange(N), [*range(5), *range(100, 105)])
    assert (kernel[others].max(1) >= 0.5).mean() < 0.02, "it was more than a third"


def test_where_cameras_stand_still_copies_are_told_from_pictures_of_one_camera() -> None:
    """Four of them, so that a quarter of all pictures are much like each other and none of these is a copy."""
    views, rng = Views({}, noise=0.3), np.random.default_rng(3)
    views.own = 4 * rng.normal(size=(4, D))[np.arange(N) % 4] + views.own
    copies = {190 + i: 2 + i for i in range(8)}  # of the same camera each
    for copy, original in copies.items():
        views.own[copy] = views.own[original]
    neighbours, kernel = seen(views, 12).pairs()
    assert all(neighbours[copy, 0] == original for copy, original in copies.items())
    assert kernel[list(copies), 0].min() > 0.5
    alone = np.setdiff1d(np.arange(N), [*copies, *copies.values()])
    assert kernel[alone].max() < 0.5


@pytest.mark.parametrize("n", [3, 20, 33, 40])
def test_a_small_set_is_compared_without_a_warning(n) -> None:
    rng = np.random.default_rng(n)
    own = rng.normal(size=(n, D))
    own[-1] = own[0]
    appearance = Appearance(n, D)
    for _ in range(12):
        appearance.open_epoch()
        appearance.add(np.arange(n), own + 0.3 * rng.normal(size=(n, D)), np.ones(n))
        appearance.close_epoch()
    _, kernel = appearance.pairs()
    assert ((kernel >= 0) & (kernel <= 1)).all()


def test_before_three_epochs_nobody_is_compared() -> None:
    appearance = seen(Views(COPIES), 2)
    neighbours, kernel = appearance.pairs()
    assert (neighbours == -1).all()
    assert (kernel == 0).all()
    assert not appearance.known.any()


def test_an_epoch_that_is_begun_again_counts_once() -> None:
    views = Views(COPIES)
    once, twice = seen(views, 4), seen(views, 3)
    twice.open_epoch()
    twice.add(np.arange(N), views.of(9), np.ones(N))
    twice.open_epoch()
    twice.add(np.arange(N), views.of(3), np.ones(N))
    twice.close_epoch()
    assert np.array_equal(once.mean, twice.mean)
    assert np.array_equal(once.pairs()[1], twice.pairs()[1])


def test_parts_of_a_view_make_a_view() -> None:
    views = Views(COPIES)
    whole, parts = seen(views, 4), Appearance(N, D)
    for epoch in range(4):
        for _ in range(4):
            parts.add(np.arange(N), views.of(epoch), np.full(N, 0.25))
        parts.close_epoch()
    np.testing.assert_allclose(parts.weight, whole.weight)
    np.testing.assert_allclose(parts.mean.astype(float), whole.mean.astype(float), atol=2e-3)


def test_what_was_not_seen_or_is_not_finite_stays_unknown() -> None:
    views, appearance = Views(COPIES), Appearance(N, D)
    for epoch in range(4):
        values = views.of(epoch)
        values[5] = np.nan
        values[6, 0] = np.inf
        appearance.add(np.arange(7, dtype=int), values[:7], np.ones(7))
        appearance.add(np.arange(8, N), values[8:], np.ones(N - 8))
        appearance.close_epoch()
    assert np.flatnonzero(~appearance.known).tolist() == [5, 6, 7]
    neighbours, kernel = appearance.pairs()
    assert (neighbours[5:8] == -1).all()
    assert not np.isin(neighbours, [5, 6, 7]).any()
    assert np.isfinite(kernel).all()


def test_it_goes_on_bit_for_bit() -> None:
    views = Views(COPIES)
    straight, first, second = seen(views, 5), seen(views, 3), Appearance(N, D)
    second.load_state_dict(first.state_dict())
    for epoch in (3, 4):
        second.add(np.arange(N), views.of(epoch), np.ones(N))
        second.close_epoch()
    assert all(np.array_equal(a, b) for a, b in zip(straight.pairs(), second.pairs(), strict=True))


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected features \(200, 32\), but the state has \(10, 32\)"):
        Appearance(N, D).load_state_dict(Appearance(10, D).state_dict())


@pytest.mark.parametrize(("n", "features"), [(1, 256), (10_000, 256), (10**6, 64), (10**7, 64), (300_000, 104)])
def test_a_million_samples_take_128_megabytes(n, features) -> None:
    assert dimensions(n) == features
    assert n > 10**6 or 2 * n * dimensions(n) <= 128e6


# Labels


def boxes_of(*rows: tuple[int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Classes (n, 1) and boxes of a fifth of the side."""
    return np.array([[r[0]] for r in rows], float).reshape(-1, 1), np.array([[*r[1:], 0.2, 0.2] for r in rows]).reshape(
        -1, 4
    )


LABELS = [
    # name, one sample's boxes, the other's, agreement
    ("the same", [(0, 0.3, 0.3), (1, 0.6, 0.6)], [(0, 0.3, 0.3), (1, 0.6, 0.6)], 1),
    ("moved a little, in another order", [(0, 0.3, 0.3), (1, 0.6, 0.6)], [(1, 0.65, 0.55), (0, 0.35, 0.25)], 1),
    ("mirrored", [(0, 0.3, 0.3)], [(0, 0.7, 0.3)], 1),
    ("elsewhere", [(0, 0.3, 0.3)], [(0, 0.3, 0.6)], 0),
    ("of another class", [(0, 0.3, 0.3)], [(1, 0.3, 0.3)], 0),
    ("one of two missing", [(0, 0.3, 0.3), (1, 0.6, 0.6)], [(0, 0.3, 0.3)], 2 / 3),
    ("no boxes against some", [(0, 0.3, 0.3)], [], 0),
    ("no boxes at all", [], [], BACKGROUNDS),
]


@pytest.mark.parametrize(("name", "one", "other", "agreement"), LABELS, ids=[case[0] for case in LABELS])
def test_labels_agree_by_class_and_place(name, one, other, agreement) -> None:
    classes, boxes = zip(boxes_of(*one), boxes_of(*other), strict=True)
    layout = Layout(classes, boxes)
    assert layout.agreement(np.array([0, 1]), np.array([1, 0])).tolist() == pytest.approx([agreement] * 2)


def drawn_layout(copies: dict[int, int]) -> Layout:
    rng = np.random.default_rng(1)
    labels = [boxes_of(*((int(rng.integers(3)), *rng.uniform(0.1, 0.9, 2)) for _ in range(4))) for _ in range(N)]
    for copy, original in copies.items():
        labels[copy] = labels[original]
    return Layout(*zip(*labels, strict=True))


def test_one_picture_with_other_labels_is_another_sample() -> None:
    views = Views(COPIES)
    assert likeness(seen(views, 12, drawn_layout(COPIES)), 190, 0) > 0.9
    assert likeness(seen(views, 12, drawn_layout({})), 190, 0) < 0.3


def test_labels_that_agree_by_more_than_chance_are_evidence() -> None:
    layout = drawn_layout(COPIES)
    assert layout.evidence(np.array([190]), np.array([0]))[0] > 5
    assert layout.evidence(np.array([20]), np.array([30]))[0] < 1


def test_agreement_by_chance_counts_for_nothing() -> None:
    """All samples have one box in common and one of their own; copies share both."""
    rng = np.random.default_rng(2)
    labels = [boxes_of((0, 0.5, 0.5), (1, *rng.uniform(0.1, 0.9, 2))) for _ in range(N)]
    labels[190] = labels[0]
    layout = Layout(*zip(*labels, strict=True))
    assert layout.agreement(np.array([190, 20]), np.array([0, 30])).tolist() == [1, 0.5]
    assert layout.beyond_chance(np.array([190, 20]), np.array([0, 30])).tolist() == [1, 0]


def test_labels_that_all_samples_share_are_none() -> None:
    layout = Layout(*zip(*[boxes_of((0, 0.5, 0.5))] * N, strict=True))
    assert layout.evidence(np.array([1]), np.array([2])).tolist() == [0]
    assert Layout([np.zeros((0, 1))] * 2, [np.zeros((0, 4))] * 2).evidence(np.array([0]), np.array([1])).tolist() == [0]


# Neighbours


def test_neighbours_are_those_of_all_distances() -> None:
    points = np.random.default_rng(0).normal(size=(50, 5))
    distance = ((points[:, None] - points) ** 2).sum(2) + 1e9 * np.eye(50)
    assert np.array_equal(nearest(points, 3), distance.argsort(1)[:, :3])


def test_a_crowd_of_copies_does_not_make_a_point_its_own_neighbour() -> None:
    found = nearest(np.zeros((20, 3)), 4)
    assert found.shape == (20, 4)
    assert not (found == np.arange(20)[:, None]).any()


def test_many_points_go_to_the_library_where_there_is_one(monkeypatch) -> None:
    asked = []

    class Index:
        nprobe = 0

        def train(self, points):
            asked.append("train")

        def add(self, points):
            self.points = points

        def search(self, points, k):
            return None, nearest_module._exact(points, k)

    class Library:
        @staticmethod
        def index_factory(size, kind):
            return Index()

    points = np.random.default_rng(0).normal(size=(60, 4))
    expected = nearest(points, 3)
    monkeypatch.setattr(nearest_module, "MANY", 50)
    monkeypatch.setattr(nearest_module, "_faiss", lambda: Library)
    assert np.array_equal(nearest(points, 3), expected)
    assert asked == ["train"]


@pytest.mark.parametrize("size", [9, 20, 100])
def test_of_a_group_of_any_size_one_stays(size) -> None:
    """Twelve epochs of features, from which lists of eight are made: a video of one still scene."""
    n, rng = 400, np.random.default_rng(size)
    own = rng.normal(size=(n, D))
    own[:size] = own[0]
    appearance = Appearance(n, D)
    for _ in range(12):
        appearance.open_epoch()
        appearance.add(np.arange(n), own + 0.5 * rng.normal(size=(n, D)), np.ones(n))
        appearance.close_epoch()
    likeness = appearance.likeness()
    taken, twin, _ = overlap(Graph.of(*appearance.pairs(likeness), likeness), rng.normal(size=n), np.ones(n))
    assert (taken[:size] < 0.5).sum() == 1
    assert (twin[size:] == -1).all()


def test_a_neighbour_that_the_search_did_not_find_is_none(monkeypatch) -> None:
    appearance = seen(Views(COPIES), 12)
    neighbours, kernel = appearance.pairs()
    monkeypatch.setattr(appearance_module, "nearest", lambda *a: np.where(np.arange(8) < 5, nearest(*a), -1))
    fewer, left = appearance.pairs()
    assert np.array_equal(fewer, np.where(np.arange(8) < 5, neighbours, -1))
    assert np.array_equal(left, np.where(np.arange(8) < 5, kernel, 0))


def test_many_points_without_the_library_take_long(monkeypatch) -> None:
    monkeypatch.setattr(nearest_module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nearest_module, "_faiss", lambda: None)
    assert [nearest_module.takes_long(n) for n in (nearest_module.MANY - 1, nearest_module.MANY)] == [False, True]
    monkeypatch.setattr(nearest_module, "_faiss", lambda: object())
    assert not nearest_module.takes_long(nearest_module.MANY)
