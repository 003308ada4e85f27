"""The nearest neighbours of each point among all others: exact by torch, or by a library where the points are many."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MANY = 50_000
"""From so many points on an approximate search is used where one is installed (`pip install yolo-adapruner[large]`)."""
_CELLS = 2**25  # distances held at once
_LISTS = 4096


def nearest(points: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the `k` nearest others of each point by Euclidean distance, (N, k), nearest first.

    Where a library's search finds fewer, -1 stands for those that are missing.

    Args:
        points: (N, d), finite.
        k: in 1..N-1.
    """
    points = np.ascontiguousarray(points, np.float32)
    if len(points) >= MANY and (library := _faiss()) is not None:
        return _without_self(_by_faiss(library, points, k + 1), k)
    return _without_self(_exact(points, k + 1), k)


def takes_long(n: int) -> bool:
    """Whether `n` points are compared each with each on a processor, where a library would look at some of them."""
    return n >= MANY and _faiss() is None and not torch.cuda.is_available()


def _exact(points: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    device = "cuda" if len(points) >= MANY and torch.cuda.is_available() else "cpu"
    all_points = torch.from_numpy(points).to(device)
    squares = (all_points**2).sum(1)
    rows = max(1, _CELLS // len(points))
    found = []
    for part in all_points.split(rows):
        found.append((squares - 2 * part @ all_points.T).topk(k, largest=False).indices.cpu())
    return torch.cat(found).numpy()


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def _by_faiss(library: Any, points: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    lists = min(_LISTS, int(np.sqrt(len(points))))
    index = library.index_factory(points.shape[1], f"IVF{lists},Flat")
    index.train(points[:: max(1, len(points) // (64 * lists))])
    index.add(points)
    index.nprobe = 16
    return np.asarray(index.search(points, k)[1], np.int64)


def _without_self(found: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Leave each point out of its own list; where copies crowd it out of there, its last neighbour goes."""
    own = found == np.arange(len(found))[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(found), k)
