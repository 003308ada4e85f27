"""Epochs shorter than the data set: the loader draws what it is told, and as the stock one where that is everything."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, RandomSampler, SequentialSampler, get_worker_info
from torch.utils.data.distributed import DistributedSampler
from ultralytics.data.build import ContiguousDistributedSampler, build_dataloader

from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine.epochs import RowLoader, RowSampler

N, BATCH = 10, 4


class Rows(Dataset):
    """Gives each row's number and the process that fetched it."""

    batch_size = BATCH

    def __len__(self):
        return N

    def __getitem__(self, i):
        worker = get_worker_info()
        return i, -1 if worker is None else worker.id, 0 if worker is None else worker.seed

    @staticmethod
    def collate_fn(batch):
        return batch


def stock(*, workers=0, shuffle=True):
    torch.manual_seed(0)
    return build_dataloader(Rows(), BATCH, workers, shuffle=shuffle, device="cpu")


def rows(loader):
    return [[row for row, *_ in batch] for batch in loader]


def test_all_rows_come_in_the_stock_order_epoch_after_epoch():
    ours = RowLoader.of(stock())
    theirs = stock()
    assert [rows(ours) for _ in range(3)] == [rows(theirs) for _ in range(3)]


@pytest.mark.parametrize("drawn", [[0, 3, 4, 8], [1, 2, 3, 7, 9]], ids=["whole-batches", "part-of-a-batch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_as_long_as_what_is_drawn(workers, drawn):
    loader = RowLoader.of(stock(workers=workers))
    lengths = []
    orders = set()
    for draw in (np.arange(N), drawn, drawn, [5], np.arange(N)):  # fetched ahead, the second would be of all rows
        loader.sampler.draw(np.asarray(draw))
        epoch = rows(loader)
        lengths.append((len(loader), len(epoch)))
        assert sorted(chain(*epoch)) == sorted(draw)
        orders.add(tuple(chain(*epoch)))
    assert lengths == [(-(-k // BATCH),) * 2 for k in (N, len(drawn), len(drawn), 1, N)]
    assert len(orders) == 5  # shuffled anew each time
    loader.close()


def test_workers_are_the_same_from_epoch_to_epoch_until_the_loader_is_reset():
    loader = RowLoader.of(stock(workers=2))
    processes = []
    for draw in (np.arange(N), np.arange(5)):
        loader.sampler.draw(draw)
        assert {worker for batch in loader for _, worker, _ in batch} == {0, 1}
        processes.append([worker.pid for worker in loader.iterator._workers])
    loader.reset()
    rows(loader)
    processes.append([worker.pid for worker in loader.iterator._workers])
    loader.close()
    assert processes[0] == processes[1] != processes[2]


def test_nothing_is_shuffled_where_the_stock_loader_does_not():
    loader = RowLoader.of(stock(shuffle=False))
    loader.sampler.draw(np.array([1, 2, 5, 6, 9]))
    assert rows(loader) == [[1, 2, 5, 6], [9]]


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: DistributedSampler(Rows(), 2, rank, shuffle=True, seed=3),
        lambda rank: ContiguousDistributedSampler(Rows(), 2, BATCH, rank),
    ],
    ids=["shuffled", "contiguous"],
)
def test_each_process_has_its_part_of_what_is_drawn(make):
    both = [RowSampler(make(rank), N, BATCH) for rank in (0, 1)]
    orders = []
    for epoch, draw in enumerate((np.arange(N), np.array([0, 2, 3, 5, 7, 8]))):
        for rank, sampler in enumerate(both):
            sampler.draw(draw)
            sampler.set_epoch(epoch)
            if epoch == 0:
                assert list(sampler) == list(make(rank))
            assert len(list(sampler)) == len(sampler)
        parts = [list(sampler) for sampler in both]
        assert sorted(chain(*parts)) == draw.tolist()
        orders.append(parts)
    assert orders[0] != orders[1]


def test_a_sampler_that_is_unknown_is_not_guessed_at():
    known = [RandomSampler(Rows(), generator=torch.Generator()), SequentialSampler(Rows())]
    assert [len(RowSampler(sampler, N, BATCH)) for sampler in known] == [N, N]
    with pytest.raises(AssertionError):
        RowSampler(object(), N, BATCH)


def test_under_rect_the_images_of_a_batch_share_one_shape_that_each_fits_in():
    """Rows in the order of their shapes, three batches; what is not drawn keeps the shape it was built for."""
    shapes = np.array([[32, 64], [64, 64], [64, 96]])
    dataset = SimpleNamespace(rect=True, batch_size=4, batch=np.arange(N) // 4, batch_shapes=shapes)
    drawn = np.array([0, 1, 2, 5, 6, 9])
    assert images.regroup(dataset, drawn)
    given = dataset.batch_shapes[dataset.batch]
    assert given[drawn].tolist() == [[64, 64]] * 4 + [[64, 96]] * 2
    assert given[[3, 4, 7, 8]].tolist() == [[32, 64], [64, 64], [64, 64], [64, 96]]
    assert not images.regroup(dataset, drawn)  # as it is, so that no worker need be told
    assert images.regroup(dataset, np.arange(N))
    assert (dataset.batch_shapes[dataset.batch] == shapes[np.arange(N) // 4]).all()
    assert not images.regroup(SimpleNamespace(rect=False), drawn)
