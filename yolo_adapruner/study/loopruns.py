"""A plain PyTorch training of a small network, as anybody's: with `AdaPruner`'s three lines, and without.

All trainings of a set take the same number of updates and are validated as often; the best validated epoch is tested.
Knows sets as features and labels, and none of their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.indexed import IndexedDataset
from yolo_adapruner.loop import AdaPruner
from yolo_adapruner.study.loopsets import Labelled, Split


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: epochs over the whole set, batch, width of its two hidden layers, learning rate."""

    epochs: int
    batch: int
    width: int
    lr: float


@dataclass(frozen=True)
class Trained:
    """Accuracies of the epoch that validated best, in [0, 1]."""

    val: float
    test: float


def network(features: int, classes: int, recipe: Recipe, seed: int) -> nn.Module:
    """Return a new perceptron of two hidden layers; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = recipe.width
        return nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )


def train(data: Labelled, recipe: Recipe, rows: NDArray[np.int64], *, seed: int) -> Trained:
    """Train on some rows of the training set for as many updates as all of them take in the recipe's epochs."""
    model, optimizer = _start(data, recipe, seed)
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    batches = _batches(rows, recipe.batch, np.random.default_rng([seed, 2]))
    updates = -(-len(y) // recipe.batch)
    best = Trained(-1.0, -1.0)
    for _ in range(recipe.epochs):
        for _ in range(updates):
            ids = torch.from_numpy(next(batches))
            _update(optimizer, functional.cross_entropy(model(x[ids]), y[ids]))
        best = _better(best, model, data)
    return best


def prune(
    data: Labelled, recipe: Recipe, share: float, *, seed: int, config: PruneConfig | None = None
) -> tuple[AdaPruner, Trained]:
    """Train on all with a pruner in the loop, as its documentation says; return it and what this run itself came to."""
    model, optimizer = _start(data, recipe, seed)
    rows = IndexedDataset(TensorDataset(torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)))
    pruner = AdaPruner(len(rows), recipe.epochs, share, config=config, seed=seed)
    loader = DataLoader(rows, recipe.batch, sampler=pruner.sampler(seed=seed))
    best = Trained(-1.0, -1.0)
    for _ in range(recipe.epochs):
        for x, y, ids in loader:
            losses = functional.cross_entropy(model(x), y, reduction="none")
            _update(optimizer, (pruner.weights(ids, like=losses) * losses).mean())
            pruner.update(ids, losses)
        pruner.step(accuracy(model, data.val))
        best = _better(best, model, data)
    return pruner, best


def accuracy(model: nn.Module, part: Split) -> float:
    """Return the share of a part that the model classifies as labelled, [0, 1]."""
    with torch.no_grad():
        found = model(torch.from_numpy(part.x)).argmax(1)
    return float((found.numpy() == part.y).mean())


def _start(data: Labelled, recipe: Recipe, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(data.train.x.shape[1], data.classes, recipe, seed)
    return model, torch.optim.AdamW(model.parameters(), recipe.lr)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _better(best: Trained, model: nn.Module, data: Labelled) -> Trained:
    val = accuracy(model, data.val)
    return Trained(val, accuracy(model, data.test)) if val > best.val else best


def _batches(rows: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        order = rng.permutation(rows)
        yield from (order[first : first + size] for first in range(0, len(order), size))
