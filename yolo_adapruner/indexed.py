"""Which samples a batch holds, and which an epoch draws: what any loop needs beside `loop.AdaPruner`.

A sample's number is its row in the training set, whatever shuffles, splits or batches it afterwards. Knows no mask and
no losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from yolo_adapruner.core import distributed
from yolo_adapruner.errors import ConfigError, DataError


class IndexedDataset(Dataset[Any]):
    """A map-style data set whose items say which sample they are.

    A tuple or list item gets the number as a last element, a mapping under `key`; any other item becomes the pair
    (item, number). Wrap before a `Subset` is taken and the numbers are those of the whole set; wrap the `Subset`, and
    they are rows of it.

    Args:
        dataset: has `len()` and takes row numbers.
        key: where a mapping keeps the number; it must be free.

    Raises:
        DataError: the data set is none with rows, such as an `IterableDataset` or a `DataLoader`.
    """

    def __init__(self, dataset: Any, key: str = "ids") -> None:
        if isinstance(dataset, IterableDataset | DataLoader) or not _has_rows(dataset):
            raise DataError(
                f"Expected a data set with rows (len() and [row]), but {type(dataset).__name__} has none to tell "
                "samples apart by: wrap the map-style data set before a loader is made of it."
            )
        self.dataset, self.key = dataset, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        """Return the item with its number, 0..N-1.

        Raises:
            DataError: a mapping has something under `key` already.
        """
        item = self.dataset[row]
        number = row + len(self) if row < 0 else row
        if isinstance(item, Mapping):
            if self.key in item:
                raise DataError(
                    f"Expected items without {self.key!r}, but they have it: give IndexedDataset another key."
                )
            return {**item, self.key: number}
        return (*item, number) if isinstance(item, tuple | list) else (item, number)


def _has_rows(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


class Follows(Protocol):
    """What a sampler asks a pruner for."""

    @property
    def active(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def epoch(self) -> int: ...  # noqa: D102


class ActiveSampler(Sampler[int]):
    """Draws the samples that the pruner's stage trains on: all of them, then the kept ones. For `DataLoader(sampler=)`.

    The order depends on the seed and on the pruner's epoch, so that a resumed run draws what it would have drawn. Where
    `torch.distributed` runs, each process gets its part, all parts equally long, as `DistributedSampler` deals them.

    Args:
        pruner: whom to follow.
        shuffle: draw in random order.
        seed: decides the order, a whole number >= 0.

    Raises:
        ConfigError: the seed is none.
    """

    def __init__(self, pruner: Follows, *, shuffle: bool = True, seed: int = 0) -> None:
        check_whole("seed", seed, 0)
        self.pruner, self.shuffle, self.seed = pruner, shuffle, seed

    def __len__(self) -> int:
        ranks, _ = distributed.place()
        return -(-len(self.pruner.active) // ranks)

    def __iter__(self) -> Iterator[int]:
        rows = self.pruner.active
        if self.shuffle:
            rows = np.random.default_rng([self.seed, self.pruner.epoch]).permutation(rows)
        ranks, rank = distributed.place()
        own = np.arange(len(self)) * ranks + rank
        return iter(rows[own % len(rows)].tolist())


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least so much.

    Raises:
        ConfigError: names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"Expected {name} as a whole number, {least} or more, but got {value!r}.")


def as_numbers(ids: Any, n: int) -> NDArray[np.int64]:
    """Return sample numbers as an array, (B,).

    Args:
        ids: whole numbers in a tensor, an array or a sequence, (B,); a number may stand there several times.
        n: number of samples.

    Raises:
        ConfigError: they are no whole numbers in 0..n-1, or no list of them.
    """
    try:
        values = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Expected sample ids as a list of whole numbers, but: {reason}.") from None
    if values.size == 0 and values.ndim == 1:
        return np.zeros(0, np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ConfigError(
            f"Expected sample ids as a list of whole numbers, but got {values.dtype} of shape {values.shape}: give "
            "each sample's row in the training set, as IndexedDataset does."
        )
    if (wrong := values[(values < 0) | (values >= n)]).size:
        raise ConfigError(
            f"Expected sample ids from 0 to {n - 1}, but got {wrong[0]}: give each sample's row in the training set, "
            "as IndexedDataset does."
        )
    return values.astype(np.int64)
