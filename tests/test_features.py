"""Features off the training forward: whose they are, and that reading them changes neither training nor checkpoints."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from tests import helpers
from tests.helpers import train_here
from yolo_adapruner.engine.features import FeatureTap
from yolo_adapruner.engine.owners import Ownership
from yolo_adapruner.engine.places import PADDING

SIZE = 16


class Layer(nn.Module):
    def forward(self, given):
        return given


def vectors(maps: torch.Tensor, owners: Ownership | None = None, picture: torch.Tensor | None = None) -> torch.Tensor:
    """Vectors of a batch by the maps its head is given and the picture it was made of, by default a grey one."""
    first, head = Layer(), Layer()
    tap = FeatureTap(first, head, SIZE)
    tap.watching = True
    first(maps.new_full((len(maps), 3, 32, 32), 0.5) if picture is None else picture)
    head([maps, maps[..., ::2, ::2]])
    found = tap.take(owners)
    assert found is not None
    return found


def owned(planes: np.ndarray, table: list[list[int]], count: int, blend: list[float] | None = None) -> Ownership:
    """Owners of places alone: planes (B, L, h, w), the owner of each source of each sample."""
    nothing = torch.zeros(0, dtype=torch.long)
    return Ownership(
        count=count,
        labels=nothing,
        image=nothing,
        slot=nothing,
        planes=torch.from_numpy(planes.astype(np.uint8)),
        table=torch.tensor(table),
        blend=torch.tensor(blend or [1.0] * len(planes))[:, None],
        shape=planes.shape[2:],
    )


def maps_of(batch: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 6, size, size, generator=torch.Generator().manual_seed(seed))


def pictures_of(batch: int, seed: int = 0) -> torch.Tensor:
    """Pictures with large patches of even colour."""
    drawn = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return drawn.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_mirrored_picture_looks_the_same_and_another_does_not() -> None:
    maps = maps_of(2)
    found = vectors(torch.cat((maps, maps.flip(3))))
    torch.testing.assert_close(found[:2], found[2:])
    assert (found[0] - found[1]).abs().max() > 0.05


def test_a_picture_looks_as_its_pixels_do_not_only_as_the_network_has_it() -> None:
    """What has learned nothing yet has much the same map for any picture."""
    maps, picture = maps_of(1).repeat(4, 1, 1, 1), pictures_of(2)
    picture = torch.cat((picture, picture.flip(3)))
    found = vectors(maps, picture=picture)
    torch.testing.assert_close(found[:2], found[2:])
    apart = (found[0] - found[1]).abs()
    assert (apart > 0.01).sum() == SIZE // 4, "a quarter of the numbers are of the pixels, the others of the map"


def test_a_part_of_a_mosaic_has_its_own_pixels() -> None:
    maps, planes = maps_of(1).repeat(2, 1, 1, 1), np.ones((2, 1, 32, 32))
    planes[:, :, :, 16:] = 2
    picture = pictures_of(2)
    found = vectors(maps, owned(planes, [[0, 1], [2, 3]], 4), picture)
    alone = vectors(maps[..., :8], picture=picture[..., :16])
    torch.testing.assert_close(found[[0, 2]], alone)
    assert (found[1] - found[3]).abs().max() > 0.01


def test_where_there_is_room_the_pixels_are_told_as_they_are() -> None:
    """Mean and spread of three colours in eight fields."""
    first, head = Layer(), Layer()
    tap = FeatureTap(first, head, 256)
    tap.watching = True
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 1, :, 8:24] = 1
    first(picture)
    head([maps_of(1)])
    found = tap.take(None)
    assert found.shape == (1, 256)
    told = found[0, :48].view(2, 3, 4, 2)
    assert told[0, 1].tolist() == [[0, 1]] * 4, "the columns of fields from the edge inwards"
    assert told[0, [0, 2]].abs().max() == told[1].abs().max() == 0


def test_an_owner_of_a_whole_picture_looks_as_it_does_unmixed() -> None:
    maps = maps_of(3)
    owners = owned(np.ones((3, 1, 32, 32)), [[2], [0], [1]], 3)
    torch.testing.assert_close(vectors(maps, owners)[[2, 0, 1]], vectors(maps))


def test_a_part_of_a_mosaic_looks_as_it_does_alone() -> None:
    """Four pictures side by side, one of them in two samples, beside padding that belongs to nobody."""
    maps, planes = maps_of(2), np.ones((2, 1, 16, 16))
    planes[:, :, :8, 8:], planes[:, :, 8:, :8], planes[:, :, 8:, 8:] = 2, 3, 4
    planes[1, :, 8:, 8:] = 1 | PADDING
    found = vectors(maps, owned(planes, [[0, 1, 2, 3], [4, 5, 3, 0]], 6))
    torch.testing.assert_close(found[1], vectors(maps[:1, :, :8, 8:])[0])
    torch.testing.assert_close(found[4], vectors(maps[1:, :, :8, :8])[0])
    both = vectors(torch.stack((maps[0, :, 8:, 8:], maps[1, :, 8:, :8])))
    torch.testing.assert_close(found[3], both.mean(0))


def test_of_a_blend_each_owner_has_its_share() -> None:
    maps, planes = maps_of(1), np.ones((1, 2, 16, 16))
    planes[:, 1] = 2
    found = vectors(maps, owned(planes, [[0, 1]], 2, blend=[0.3]))
    torch.testing.assert_close(found, vectors(maps).expand(2, -1))


def test_who_is_hardly_seen_says_nothing() -> None:
    planes = np.ones((1, 1, 16, 16))
    planes[0, 0, 0, :3] = 2
    found = vectors(maps_of(1), owned(planes, [[0, 1]], 2))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_it_watches_training_forwards_alone_and_until_it_is_closed() -> None:
    model = nn.Sequential(Layer(), Layer())
    tap = FeatureTap(*model, SIZE)

    def forward() -> None:
        model[0](pictures_of(1))
        model[1]([maps_of(1)])

    for watching, training in ((False, True), (True, False)):
        tap.watching = watching
        model.train(training)
        forward()
        assert tap.take(None) is None
    model.train()
    forward()
    assert tap.take(None) is not None
    tap.close()
    forward()
    assert tap.take(None) is None
    assert not any(layer._forward_pre_hooks for layer in model)


WARM = {"warmup": 3, "joint": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with and without the comparison of images: warm-up weights after three epochs, and the trainer."""
    folder = tmp_path_factory.mktemp("features")
    data = helpers.build_set(folder / "set", train=16, val=4)
    found = {}
    for redundancy in (0.0, 0.5):
        taken = []

        def note(trainer, taken=taken):
            taken.append(deepcopy(trainer.model.state_dict()))

        trainer = train_here(
            data,
            folder / f"run-{redundancy}",
            method={**WARM, "redundancy": redundancy},
            epochs=8,
            mosaic=0.5,
            close_mosaic=0,
            callbacks={"on_train_epoch_end": note},
        )
        found[redundancy] = trainer, taken[2]
    return found


def test_comparing_images_leaves_the_training_as_it_is_bit_for_bit(runs) -> None:
    (_, without), (_, compared) = runs[0.0], runs[0.5]
    assert all(torch.equal(without[name], compared[name]) for name in without)


def test_the_run_knows_how_alike_its_images_are(runs) -> None:
    without, compared = runs[0.0][0].pruner, runs[0.5][0].pruner
    assert without.appearance is None
    assert np.isnan(without.redundancy.similarity).all()
    assert compared.appearance.mean.shape == (16, 256)
    assert compared.appearance.known.all()
    assert np.isfinite(compared.redundancy.similarity).all()


def test_a_checkpoint_carries_no_hook(runs) -> None:
    trainer = runs[0.5][0]
    assert not any(trainer.model.model[at]._forward_pre_hooks for at in (0, -1))
    for file in (trainer.last, trainer.best):
        content = torch.load(file, weights_only=False)
        model = content["ema"] or content["model"]
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
        assert not any(type(part).__module__.startswith("yolo_adapruner") for part in vars(model).values())
