"""Ultralytics' training loader with epochs as long as somebody says: which rows of the data set the next one draws.

Workers, caches and pinned memory stay what they were from epoch to epoch. Knows no mask, no weights and no image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler
from ultralytics.data.build import ContiguousDistributedSampler, InfiniteDataLoader


class RowSampler(Sampler[int]):
    """Draws some rows in the way a stock sampler draws all of them: the same shuffles, the same part for a process.

    Args:
        stock: the sampler of the loader to be steered; while all rows are drawn, the order is bitwise its own.
        rows: number of rows of the data set.
        batch_size: images a batch, which decides the processes' parts where nothing is shuffled.

    Attributes:
        inner: a sampler of the stock one's kind over the drawn rows.
    """

    def __init__(self, stock: Any, rows: int, batch_size: int) -> None:
        self._stock, self._batch_size = stock, batch_size
        self.draw(np.arange(rows))

    def draw(self, rows: NDArray[np.integer]) -> None:
        """Draw these rows, (k,), k >= 1, from the next epoch on."""
        assert len(rows), "an epoch of no images"
        self._rows = rows.tolist()
        self.inner = _over(self._stock, self._rows, self._batch_size)

    @property
    def drawn(self) -> int:
        """Number of rows that an epoch draws, in all processes together."""
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, where Ultralytics sets it: in a run of several processes."""
        self._stock.set_epoch(epoch)
        self.inner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        rows = self._rows
        for i in self.inner:
            yield rows[i]


def _over(stock: Any, rows: Sequence[int], batch_size: int) -> Any:
    """A sampler of the stock one's kind that draws the places of `rows`."""
    if isinstance(stock, RandomSampler):
        return RandomSampler(rows, generator=stock.generator)
    if isinstance(stock, SequentialSampler):
        return SequentialSampler(rows)
    if isinstance(stock, DistributedSampler):
        sampler: Any = DistributedSampler(
            rows,  # type: ignore[arg-type]  # only its length is looked at
            num_replicas=stock.num_replicas,
            rank=stock.rank,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )
    else:
        assert isinstance(stock, ContiguousDistributedSampler), type(stock)
        sampler = ContiguousDistributedSampler(rows, stock.num_replicas, batch_size, stock.rank, stock.shuffle)
    sampler.set_epoch(stock.epoch)
    return sampler


class RowLoader(InfiniteDataLoader):
    """Ultralytics' loader over the rows that its `sampler`, a `RowSampler`, was told to draw.

    Ultralytics' own loader fetches ahead into the epochs to come, when nobody has said yet what they draw. Here workers
    stop at the end of an epoch and go on, the same processes, once the next one begins.
    """

    sampler: RowSampler

    @classmethod
    def of(cls, stock: Any) -> RowLoader:
        """Return such a loader in place of a stock one from which nothing was loaded yet."""
        ahead = {"prefetch_factor": stock.prefetch_factor, "persistent_workers": True} if stock.num_workers else {}
        if stock.pin_memory_device:
            ahead["pin_memory_device"] = stock.pin_memory_device
        return cls(
            dataset=stock.dataset,
            batch_size=stock.batch_size,
            sampler=RowSampler(stock.sampler, len(stock.dataset), stock.batch_size),
            num_workers=stock.num_workers,
            pin_memory=stock.pin_memory,
            collate_fn=stock.collate_fn,
            worker_init_fn=stock.worker_init_fn,
            generator=stock.generator,
            drop_last=stock.drop_last,
            **ahead,
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_workers:
            # Not the endless one. DataLoader itself guards the name against being set.
            object.__setattr__(self, "batch_sampler", self.batch_sampler.sampler)

    def __len__(self) -> int:
        batches = self.batch_sampler if self.num_workers else self.batch_sampler.sampler
        return len(batches)

    def __iter__(self) -> Iterator[Any]:
        if not self.num_workers:  # draws a row only when it is asked for
            yield from super().__iter__()
            return
        self.iterator = DataLoader.__iter__(self)
        yield from self.iterator

    def reset(self) -> None:
        """Have the next epoch begin with new workers, which see the data set as it is then."""
        super().reset()
        self._iterator = None
