"""The redundancy term on drawn graphs: of each group of copies one stays, and it is the one with the best evidence."""

import numpy as np
import pytest

from yolo_adapruner.core.redundancy import Graph, Redundancy, overlap, similarity


def graph_of(*pairs: tuple[int, int], kernel: float = 1.0) -> Graph:
    first, second = np.array(sorted((min(p), max(p)) for p in pairs), np.int64).reshape(-1, 2).T
    return Graph(first, second, np.full(len(first), kernel))


def clique(*members: int) -> list[tuple[int, int]]:
    return [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]


GROUPS = [
    # name, pairs, wanted, how much of each is there already
    ("nobody is alike", [], [3, 2, 1], [0, 0, 0]),
    ("the better of a pair stays", [(0, 1)], [1, 2, 0], [1, 0, 0]),
    ("a tie goes to the lower number", [(0, 1)], [1, 1, 1], [0, 1, 0]),
    ("one of three stays", clique(0, 1, 2), [1, 3, 2], [1, 0, 1]),
    ("one of five equal ones stays", clique(0, 1, 2, 3, 4), [0] * 5, [0, 1, 1, 1, 1]),
    ("both ends of a chain stay", [(0, 1), (1, 2)], [3, 2, 1], [0, 1, 0]),
    ("the middle of a chain stays for both ends", [(0, 1), (1, 2)], [2, 3, 1], [1, 0, 1]),
    ("every other one of a long chain stays", [(i, i + 1) for i in range(8)], range(9, 0, -1), [0, 1] * 4 + [0]),
]


@pytest.mark.parametrize(("name", "pairs", "wanted", "there"), GROUPS, ids=[g[0] for g in GROUPS])
def test_of_copies_one_stays(name, pairs, wanted, there) -> None:
    taken, twin, _ = overlap(graph_of(*pairs), np.array(wanted, float), np.ones(len(wanted)))
    assert taken.tolist() == there
    assert all(taken[i] == 0 or twin[i] >= 0 for i in range(len(there)))


def test_who_is_dropped_for_its_own_sake_takes_nobody_along() -> None:
    taken, *_ = overlap(graph_of((0, 1)), np.array([2.0, 1.0]), np.array([0.0, 1.0]))
    assert taken.tolist() == [0, 0]


def test_the_twin_is_the_most_similar_of_those_that_outrank_and_stay() -> None:
    graph = Graph(np.array([0, 1, 2]), np.array([3, 3, 3]), np.array([0.6, 0.9, 0.95]))
    _, twin, _ = overlap(graph, np.array([5.0, 4.0, 1.0, 2.0]), np.ones(4))
    # 2 is most like 3, which goes as a copy of 1 and shows nobody anything any more.
    assert twin.tolist() == [-1, -1, -1, 1]


def test_of_a_chain_nobody_is_called_a_copy_of_one_that_is_not_like_it() -> None:
    taken, twin, certainty = overlap(graph_of((0, 1), (1, 2)), np.array([3.0, 2.0, 1.0]), np.ones(3))
    assert taken.tolist() == [0, 1, 0]
    assert twin.tolist() == [-1, 0, -1]
    assert certainty.tolist() == [0, 1, 0]


def test_a_chain_of_a_thousand_is_followed_to_its_end() -> None:
    n = 1000
    graph = graph_of(*((i, i + 1) for i in range(n - 1)))
    taken, twin, _ = overlap(graph, np.arange(n, 0, -1.0), np.ones(n))
    assert taken.tolist() == [0, 1] * (n // 2)
    assert twin[1::2].tolist() == list(range(0, n, 2))


def crowds(sizes: list[int], others: int, width: int = 8) -> tuple[Graph, list[np.ndarray]]:
    """Groups of copies of which each member knows `width` of the others, drawn by lot, and samples without any."""
    rng = np.random.default_rng(0)
    n = sum(sizes) + others
    group = np.repeat(np.arange(len(sizes) + others), [*sizes, *[1] * others])[rng.permutation(n)]
    members = [np.flatnonzero(group == g) for g in range(len(sizes))]
    neighbours, kernel = np.full((n, width), -1), np.zeros((n, width))
    for own in members:
        for i in own:
            near = rng.permutation(own[own != i])[:width]
            neighbours[i, : len(near)], kernel[i, : len(near)] = near, 0.99
    return Graph.of(neighbours, kernel, lambda a, b: np.where(group[a] == group[b], 0.99, 0.0)), members


def test_of_more_copies_than_a_list_holds_one_stays() -> None:
    graph, members = crowds([2, 9, 20, 100, 300], 200)
    wanted = np.random.default_rng(1).normal(size=len(graph.crowded))
    taken, twin, _ = overlap(graph, wanted, np.ones(len(wanted)))
    for own in members:
        best = own[wanted[own].argmax()]
        assert own[taken[own] < 0.5].tolist() == [best]
        assert set(twin[own]) == {-1, best}
    assert (twin >= 0).sum() == sum(len(own) - 1 for own in members)
    # Without what tells how alike those are that are on nobody's list, that is not so.
    alone = overlap(Graph(graph.first, graph.second, graph.kernel), wanted, np.ones(len(wanted)))
    assert (alone.taken[members[-1]] < 0.5).sum() > 10


def test_a_group_that_the_lists_divide_is_one_all_the_same() -> None:
    # Two halves of forty copies, none on a list of the other half's.
    group = np.repeat([0, 1, *range(2, 102)], [20, 20, *[1] * 100])
    neighbours, kernel = np.full((140, 8), -1), np.zeros((140, 8))
    for i in range(40):
        half = np.flatnonzero(group == group[i])
        neighbours[i], kernel[i] = np.random.default_rng(i).permutation(half[half != i])[:8], 0.99
    graph = Graph.of(neighbours, kernel, lambda a, b: np.where((a < 40) & (b < 40), 0.99, 0.0))
    wanted = np.random.default_rng(1).normal(size=140)
    taken, *_ = overlap(graph, wanted, np.ones(140))
    assert np.flatnonzero(taken[:40] < 0.5).tolist() == [wanted[:40].argmax()]
    assert not taken[40:].any()


def test_of_a_crowd_whose_best_goes_for_its_labels_the_next_stays() -> None:
    graph, (own,) = crowds([50], 10)
    wanted = np.random.default_rng(1).normal(size=len(graph.crowded))
    order = own[np.argsort(-wanted[own])]
    weights = np.ones(len(wanted))
    weights[order[:3]] = 0
    taken, twin, _ = overlap(graph, wanted, weights, counted=False)
    assert set(own[taken[own] < 0.5]) == set(order[:4])  # three that go all the same, and one that stays
    assert set(twin[order[4:]]) == {order[3]}


def test_a_crowd_of_look_alikes_is_compared_with_the_best_of_those_that_are_no_copies() -> None:
    # On a line, alike within 0.1: a crowd in which the ends have nothing to do with each other.
    place = (np.arange(400) + 0.9 * np.random.default_rng(0).random(400)) / 400
    near = np.argsort(np.abs(place[:, None] - place), axis=1)[:, 1:9]
    likeness = lambda a, b: np.where(np.abs(place[a] - place[b]) < 0.1, 0.9, 0.0)  # noqa: E731
    graph = Graph.of(near, likeness(np.repeat(np.arange(400), 8), near.ravel()).reshape(400, 8), likeness)
    taken, *_ = overlap(graph, np.random.default_rng(1).normal(size=400), np.ones(400))
    stays = np.sort(place[taken < 0.5])
    # Nobody that stays is alike, and whoever goes is like one that stays.
    assert np.diff(stays).min() >= 0.1
    assert np.abs(place[:, None] - stays).min(1).max() < 0.1


def test_what_is_hardly_alike_is_no_twin() -> None:
    taken, twin, certainty = overlap(graph_of((0, 1), kernel=0.3), np.array([2.0, 1.0]), np.ones(2))
    assert taken[1] == pytest.approx(0.3)
    assert twin.tolist() == [-1, -1]
    assert certainty.tolist() == [0, 0]


def test_certainty_tells_one_in_a_thousand_from_one_in_a_million() -> None:
    odds = np.array([0.0, np.log(1e3), np.log(1e6), 30.0, 60.0])
    n = len(odds)
    graph = Graph(np.arange(n), np.arange(n) + n, 1 / (1 + np.exp(-odds)))
    taken, _, certainty = overlap(graph, np.repeat([1.0, 0.0], n), np.repeat([0.99, 1.0], n))
    assert taken[n + 3] == pytest.approx(0.99)
    assert certainty[:n].tolist() == [0] * n
    np.testing.assert_allclose(certainty[n:], np.minimum(odds / 30, 1), atol=1e-4)


def test_where_weights_count_copies_a_copy_of_one_that_stays_is_there_already() -> None:
    # 0-1-2, 0 and 2 not alike: 1 is half a copy of 0 and stays, so 2 shows nothing that is not there.
    graph = Graph(np.array([0, 1]), np.array([1, 2]), np.array([0.5, 1.0]))
    wanted = np.array([3.0, 2.0, 1.0])
    assert overlap(graph, wanted, np.ones(3)).taken.tolist() == [0, 0.5, 0.5]
    assert overlap(graph, wanted, np.ones(3), counted=True).taken.tolist() == [0, 0.5, 1]
    # Where 1 goes it stands in for nothing.
    assert overlap(graph, wanted, np.array([1.0, 0.0, 1.0]), counted=True).taken.tolist() == [0, 0.5, 0]


def test_many_that_are_somewhat_alike_do_not_make_a_sure_copy() -> None:
    # Ten images without boxes are .6 alike each; a true pair must go before any of them.
    taken, *_ = overlap(graph_of(*clique(*range(10)), kernel=0.6), np.arange(10.0, 0, -1), np.ones(10))
    assert taken.tolist() == [0] + [pytest.approx(0.6)] * 9


def test_a_pair_is_one_whoever_of_the_two_counts_the_other_as_near() -> None:
    graph = Graph.of(np.array([[1, 2], [0, -1], [-1, -1]]), np.array([[0.8, 0.5], [0.8, 0.9], [0.0, 0.0]]))
    assert [graph.first.tolist(), graph.second.tolist(), graph.kernel.tolist()] == [[0, 0], [1, 2], [0.8, 0.5]]
    assert similarity(graph, np.array([True, True, True])).tolist() == [0.8, 0.8, 0.5]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_of_a_hundred_thousand_in_cliques_each_keeps_one(size) -> None:
    n = 100_000 // size * size
    rng = np.random.default_rng(size)
    groups = rng.permutation(n).reshape(-1, size)
    pairs = np.concatenate([groups[:, [a, b]] for a in range(size) for b in range(a + 1, size)])
    graph = Graph(pairs.min(1), pairs.max(1), np.ones(len(pairs)))
    wanted = rng.normal(size=n)
    taken, *_ = overlap(graph, wanted, np.ones(n))
    stays = groups[taken[groups] == 0]
    assert len(stays) == n // size
    assert np.array_equal(np.sort(stays), np.sort(groups[np.arange(len(groups)), wanted[groups].argmax(1)]))


def settled(epochs: list[tuple[Graph, list[float]]]) -> tuple[np.ndarray, Redundancy]:
    """What of each sample is there already after epochs of (graph, own pressures)."""
    n = len(epochs[0][1])
    term, taken = Redundancy(n), np.zeros(n)
    for graph, pressure in epochs:
        taken = term.step(graph, np.array(pressure), np.ones(n), np.ones(n, bool))
    return taken, term


def test_a_copy_with_a_suspect_label_loses_even_if_that_shows_late() -> None:
    pair = graph_of((0, 1))
    taken, term = settled([(pair, [1.0, 1.2, 1.0])] * 3 + [(pair, [9.0, 1.2, 1.0])])
    assert taken.tolist() == [1, 0, 0]
    assert term.twin.tolist() == [1, -1, -1]


def test_two_copies_do_not_take_turns_by_chance() -> None:
    pair = graph_of((0, 1))
    taken, _ = settled([(pair, [1.0, 1.1]), (pair, [1.1, 1.0]), (pair, [1.0, 1.1]), (pair, [1.1, 1.0])])
    assert taken.tolist() == [0, 1]


def test_who_proves_to_be_no_copy_gets_everything_back() -> None:
    taken, term = settled([(graph_of((0, 1)), [1.0, 1.2])] * 3 + [(graph_of(), [1.0, 1.2])])
    assert taken.tolist() == [0, 0]
    assert term.similarity.tolist() == [0, 0]


def test_it_goes_on_where_it_stopped() -> None:
    pair = graph_of((0, 1))
    _, term = settled([(pair, [1.0, 1.1])] * 2)
    again = Redundancy(2)
    again.load_state_dict(term.state_dict())
    arguments = (pair, np.array([9.0, 1.0]), np.ones(2), np.ones(2, bool))
    assert again.step(*arguments).tolist() == term.step(*arguments).tolist()
    assert again.twin.tolist() == term.twin.tolist()
