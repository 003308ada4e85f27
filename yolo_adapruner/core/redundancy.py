"""What keeping both of a pair costs: the term sum_i y_i max_j y_j k_ij of the objective, and who of a pair pays it.

k_ij in [0, 1] is how likely samples i and j are the same picture. A sample pays for the one that is most like it, as in
facility location, and not for the sum over all: many that are somewhat alike, such as scenes without objects, do not
add up to a copy. Taken for all samples at once the term's gradient is the same for two copies, and both would fall. So
it is taken in order (Gauss-Seidel): the best-wanted sample decides first, and each later one pays only for those that
outrank it and stay. Of any group of copies exactly one pays nothing, and of a chain a-b-c, where a and c are not alike,
a and c stay.

Knows samples by number and no features; where k comes from is `appearance`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TWIN = 0.5
"""From this likelihood on, two samples are called the same picture."""
CERTAIN = 30.0
"""Log odds, nats, from which on two samples are the same picture as surely as can be told."""
_SWEEPS = 100
_CENTRES, _CROWDS = 64, 512
_SETTLED = 1e-3
_NEGLIGIBLE = 1e-3
_STICKS = 0.5
Measure = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Graph:
    """Who is like whom: each pair once, E pairs.

    Attributes:
        first, second: (E,) sample numbers, first < second.
        kernel: (E,) in [0, 1].
        crowded: (N,) bool, whose nearest are twins for the most part, so that there may be more of them than are here;
            None where all pairs are.
        measure: gives the kernel of pairs that are not here, (P,) in [0, 1] of two times (P,) numbers.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    kernel: NDArray[np.float64]
    crowded: NDArray[np.bool_] | None = None
    measure: Measure | None = None

    @classmethod
    def of(cls, neighbours: NDArray[np.integer], kernel: NDArray[np.floating], measure: Measure | None = None) -> Graph:
        """Return the graph of nearest neighbours, (N, K) numbers and kernel values; below 0 is no neighbour.

        A pair that only one side counts among its nearest is one all the same. With a `measure` groups of more than K
        copies are told for what they are.
        """
        n, width = neighbours.shape
        own, other = np.repeat(np.arange(n), width), neighbours.ravel().astype(np.int64)
        values = np.asarray(kernel, np.float64).ravel()
        real = (other >= 0) & (other != own) & (values > _NEGLIGIBLE)
        low, high = np.minimum(own, other)[real], np.maximum(own, other)[real]
        _, once = np.unique(low * n + high, return_index=True)
        crowded = (neighbours >= 0).all(1) & (2 * (np.asarray(kernel) >= TWIN).sum(1) > width)
        return cls(low[once], high[once], values[real][once], crowded if measure is not None else None, measure)

    def around_centres(self, rank: NDArray[np.int64], weights: NDArray[np.floating]) -> Graph:
        """Return this graph and, in crowds, how like each sample is to the best-ranked that stays for it.

        In a group of more copies than anybody's list holds, two that are not on each other's list would both look
        single. So the best-ranked sample of a crowd is compared with all of it, then the best of those that are no
        copies of that one, and so on: a comparison a copy, not one a pair.

        Args:
            rank: (N,) 0 outranks all others.
            weights: (N,) in [0, 1]; who weighs less than half stands in for nobody.
        """
        if self.crowded is None or self.measure is None or not self.crowded.any():
            return self
        crowd = self._crowds(rank, weights)
        left = np.isin(crowd, crowd[self.crowded])
        more: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]] = []
        for _ in range(_CENTRES):
            able = left & (weights >= 0.5)
            if not able.any():
                break
            centre = _best(crowd, able, rank)
            left[centre[centre >= 0]] = False
            other = np.flatnonzero(left)
            other = other[centre[crowd[other]] >= 0]
            alike = self.measure(centre[crowd[other]], other)
            more.append((centre[crowd[other]], other, alike))
            left[other[alike >= TWIN]] = False
        if not more:
            return self
        one, two = (np.concatenate([part[side] for part in more]) for side in (0, 1))
        return replace(
            self,
            first=np.concatenate([self.first, np.minimum(one, two)]),
            second=np.concatenate([self.second, np.maximum(one, two)]),
            kernel=np.concatenate([self.kernel, *(part[2] for part in more)]),
        )

    def _crowds(self, rank: NDArray[np.int64], weights: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return each sample's crowd, (N,): connected by its twins, or two of which the best are twins."""
        assert self.crowded is not None
        assert self.measure is not None
        crowd = _components(len(rank), self.first, self.second, self.kernel >= TWIN)
        best = _best(crowd, np.isin(crowd, crowd[self.crowded]) & (weights >= 0.5), rank)
        best = best[best >= 0]
        if not 2 <= len(best) <= _CROWDS:
            return crowd
        one, two = (best[side] for side in np.triu_indices(len(best), 1))
        return crowd[_components(len(rank), crowd[one], crowd[two], self.measure(one, two) >= TWIN)[crowd]]


def _best(crowd: NDArray[np.int64], among: NDArray[np.bool_], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the best-ranked of each crowd `among` some, by the crowd's number, (N,); -1 where there is none."""
    able = np.flatnonzero(among)
    best = np.full(len(rank), -1)
    order = able[np.argsort(-rank[able])]
    best[crowd[order]] = order  # the last written outranks the others
    return best


def _components(
    n: int, first: NDArray[np.int64], second: NDArray[np.int64], used: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the lowest number that each of `n` samples is connected with by the pairs `used`, (n,)."""
    label, first, second = np.arange(n), first[used], second[used]
    while True:
        low = np.minimum(label[first], label[second])
        before = label.copy()
        for side in (first, second):
            np.minimum.at(label, label[side], low)
            np.minimum.at(label, side, low)
        label = label[label]
        if np.array_equal(label, before):
            return label


class Overlap(NamedTuple):
    """What `overlap` says of each sample.

    Attributes:
        taken: (N,) in [0, 1], how much of it is there already.
        twin: (N,) the one it is there in, -1 where it is likelier than not that none that stays is the same.
        certainty: (N,) in [0, 1], how sure it is that the twin shows the same: the log odds of that over `CERTAIN`. It
            tells one in a thousand from one in a million, which `taken` does not. 0 without a twin.
    """

    taken: NDArray[np.float64]
    twin: NDArray[np.int64]
    certainty: NDArray[np.float64]


def overlap(
    graph: Graph, wanted: NDArray[np.floating], weights: NDArray[np.floating], *, counted: bool = False
) -> Overlap:
    """Return how much of each sample is there already, and of whom it is a copy.

    Sample i's is max_j e_j k_ij over the samples j that outrank it, where e_j says how much of j stays: y_j (1 - j's
    own), or y_j itself where that the samples are alike is `counted` in it.

    Args:
        graph: who is like whom.
        wanted: (N,) finite, higher outranks lower; ties go to the lower number.
        weights: (N,) y in [0, 1], what each would weigh if nothing were like it, or does weigh, where that is counted.
        counted: the weights are what comes out with copies counted.
    """
    n = len(wanted)
    rank = np.empty(n, np.int64)
    rank[np.lexsort((np.arange(n), -np.asarray(wanted, np.float64)))] = np.arange(n)
    graph = graph.around_centres(rank, weights)
    swap = rank[graph.first] > rank[graph.second]
    above, below = np.where(swap, graph.second, graph.first), np.where(swap, graph.first, graph.second)
    taken = np.zeros(n)
    # A fixed point of the ordered pass, for all samples at once: exact after as many sweeps as the longest descent, and
    # after one where the weights know already who stays.
    for _ in range(1 if counted else _SWEEPS):
        stays = weights if counted else weights * (1 - taken)
        now = np.zeros(n)
        np.maximum.at(now, below, graph.kernel * stays[above])
        moved, taken = float(np.abs(now - taken).max(initial=0)), now
        if moved < _SETTLED:
            break
    else:
        if not counted:  # a descent of hundreds: one by one takes longer than a sweep, and less than that many
            taken = _one_by_one(above, below, graph.kernel, weights, rank)
    shown = graph.kernel * (weights if counted else weights * (1 - taken))[above]
    twin, certainty = np.full(n, -1, np.int64), np.zeros(n)
    alike = np.flatnonzero(shown >= TWIN)
    order = alike[np.argsort(shown[alike], kind="stable")]
    twin[below[order]] = above[order]  # the last written shows the most of it
    certainty[below[order]] = np.clip(_log_odds(graph.kernel[order]) / CERTAIN, 0, 1)
    return Overlap(taken, twin, certainty)


def _one_by_one(
    above: NDArray[np.int64],
    below: NDArray[np.int64],
    kernel: NDArray[np.float64],
    weights: NDArray[np.floating],
    rank: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How much of each sample is there already, (N,), from the first in rank to the last."""
    order = np.argsort(rank[below], kind="stable")
    taken, own = [0.0] * len(rank), weights.tolist()
    for i, j, k in zip(above[order].tolist(), below[order].tolist(), kernel[order].tolist(), strict=True):
        taken[j] = max(taken[j], k * own[i] * (1 - taken[i]))
    return np.array(taken)


def _log_odds(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(likelihood) - np.log1p(-likelihood))


def similarity(graph: Graph, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each sample's k to its nearest, (N,) in [0, 1]; NaN for one of which nothing is known."""
    nearest = np.zeros(len(known))
    for side in (graph.first, graph.second):
        np.maximum.at(nearest, side, graph.kernel)
    return np.where(known, nearest, np.nan)


class Redundancy:
    """The term's account, epoch by epoch.

    Args:
        n: number of samples.

    Attributes:
        taken: (N,) in [0, 1], how much of each sample was there already by the last epoch's account.
        twin: (N,) the most similar sample that outranks it, -1 none.
        certainty: (N,) in [0, 1], how sure it is that the twin shows the same.
        similarity: (N,) k to the nearest other sample, NaN unknown.
    """

    def __init__(self, n: int) -> None:
        self.taken: NDArray[np.float64] = np.zeros(n)
        self.twin: NDArray[np.int64] = np.full(n, -1, np.int64)
        self.certainty: NDArray[np.float64] = np.zeros(n)
        self.similarity: NDArray[np.float64] = np.full(n, np.nan)
        self._remembered: dict[str, NDArray[Any]] | None = None

    def remember(self) -> None:
        """Keep the account as it is now, for the mask that is kept."""
        self._remembered = {name: getattr(self, name) for name in _ACCOUNT}

    def recall(self) -> None:
        """Go back to the account that was kept, if one was."""
        for name, array in (self._remembered or {}).items():
            setattr(self, name, array)

    def step(
        self,
        graph: Graph,
        pressure: NDArray[np.floating],
        weights: NDArray[np.floating],
        known: NDArray[np.bool_],
        *,
        counted: bool = False,
    ) -> NDArray[np.float64]:
        """Take an epoch's account, and return how much of each sample is there already, (N,) in [0, 1].

        Args:
            graph: who is like whom, as far as known now.
            pressure: (N,) each sample's own, NaN unknown.
            weights: (N,) y, see `overlap`.
            known: (N,) bool, whose neighbours are known.
            counted: see `overlap`.
        """
        self.taken, self.twin, self.certainty = self.account(graph, pressure, weights, counted=counted)
        self.similarity = similarity(graph, known)
        return self.taken

    def account(
        self,
        graph: Graph,
        pressure: NDArray[np.floating],
        weights: NDArray[np.floating],
        *,
        counted: bool = False,
    ) -> Overlap:
        """Return the `overlap` that `step` would take, without taking it.

        Who outranks whom is told by the pressure of the samples' own evidence, so that a copy with a suspect label
        loses to its twin; who has paid before stays behind unless the other's evidence is clearly worse.
        """
        wanted = -np.nan_to_num(pressure, nan=float(np.nanmedian(pressure)) if np.isfinite(pressure).any() else 0.0)
        return overlap(graph, wanted - _STICKS * self.taken, weights, counted=counted)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, as arrays."""
        return {**{name: getattr(self, name).copy() for name in _ACCOUNT}, "remembered": self._remembered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in _ACCOUNT:
            setattr(self, name, np.array(state[name]))
        kept = state["remembered"]
        self._remembered = None if kept is None else {name: np.array(kept[name]) for name in _ACCOUNT}


_ACCOUNT = ("taken", "twin", "certainty", "similarity")
