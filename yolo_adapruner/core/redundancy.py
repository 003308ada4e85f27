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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TWIN = 0.5
"""From this likelihood on, two samples are called the same picture."""
CERTAIN = 30.0
"""Log odds, nats, from which on two samples are the same picture as surely as can be told."""
_SWEEPS = 100
_SETTLED = 1e-3
_NEGLIGIBLE = 1e-3
_STICKS = 0.5


@dataclass(frozen=True)
class Graph:
    """Who is like whom: each pair once, E pairs.

    Attributes:
        first, second: (E,) sample numbers, first < second.
        kernel: (E,) in [0, 1].
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    kernel: NDArray[np.float64]

    @classmethod
    def of(cls, neighbours: NDArray[np.integer], kernel: NDArray[np.floating]) -> Graph:
        """Return the graph of nearest neighbours, (N, K) numbers and kernel values; below 0 is no neighbour.

        A pair that only one side counts among its nearest is one all the same.
        """
        n, width = neighbours.shape
        own, other = np.repeat(np.arange(n), width), neighbours.ravel().astype(np.int64)
        values = np.asarray(kernel, np.float64).ravel()
        real = (other >= 0) & (other != own) & (values > _NEGLIGIBLE)
        low, high = np.minimum(own, other)[real], np.maximum(own, other)[real]
        _, once = np.unique(low * n + high, return_index=True)
        return cls(low[once], high[once], values[real][once])


class Overlap(NamedTuple):
    """What `overlap` says of each sample.

    Attributes:
        taken: (N,) in [0, 1], how much of it is there already.
        twin: (N,) the most similar of those that outrank it, -1 where none is likelier than not the same.
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
    twin, certainty = np.full(n, -1, np.int64), np.zeros(n)
    alike = np.flatnonzero(graph.kernel >= TWIN)
    order = alike[np.argsort(graph.kernel[alike], kind="stable")]
    twin[below[order]] = above[order]  # the last written is the most similar
    certainty[below[order]] = np.clip(_log_odds(graph.kernel[order]) / CERTAIN, 0, 1)
    return Overlap(taken, twin, certainty)


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
