"""Batches read together: the readings of each by itself, on its own account, whatever came with it; and few operations.

Held batches are what a GPU gets; on a CPU each is read at once, so these tests ask for it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import helpers
from tests.helpers import train_here
from tests.test_rehearse import mixed, random_assignment
from yolo_adapruner.config import load
from yolo_adapruner.engine import held, stepcost
from yolo_adapruner.engine import trainer as trainer_module
from yolo_adapruner.engine.channels import detection_channels
from yolo_adapruner.engine.evidence import Evidence, Later, sound
from yolo_adapruner.engine.held import Held
from yolo_adapruner.engine.losses import Assignment
from yolo_adapruner.engine.rehearse import Spoilt, features
from yolo_adapruner.engine.together import together

CLOSE = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}  # a row of more padding is summed in another order


def batches(layers: int) -> list[Assignment]:
    """Four batches of other labels and owners; the third has none."""
    found = [random_assignment(seed, most=most) for seed, most in enumerate((5, 8, 0, 3))]
    if not layers:
        return found
    return [mixed(seen, 1 if i == 1 else layers, i) for i, seen in enumerate(found)]


@pytest.mark.parametrize("read", [detection_channels, features])
@pytest.mark.parametrize("layers", [0, 1, 2], ids=["unmixed", "mosaic", "blend"])
def test_together_each_reads_as_alone(layers, read):
    parts = batches(layers)
    torch.testing.assert_close(read(together(parts)), torch.cat([read(part) for part in parts]), **CLOSE)


def test_what_is_not_finite_stays_with_its_own_image():
    parts = batches(0)
    parts[1].boxes[2] = torch.nan
    parts[1].boxes[0, 3] = torch.inf
    parts[3].scores[1] = torch.nan
    parts[3].boxes[0] = 1e30
    bad = [len(parts[0].scores) + 2, len(parts[0].scores), sum(len(part.scores) for part in parts[:3]) + 1]
    alone = torch.cat([features(part) for part in batches(0)])
    good = [i for i in range(len(alone)) if i not in (*bad, bad[2] - 1)]
    torch.testing.assert_close(features(together(parts))[good], alone[good], **CLOSE)
    assert [i for i, known in enumerate(sound(together(parts), torch.tensor(1.0)).tolist()) if not known] == sorted(bad)


def spoilt(rows: int, owners: int) -> Spoilt:
    shape = (2, rows)
    return Spoilt(
        torch.full((*shape, 1), float(rows)),
        torch.full((*shape, 4), float(rows)),
        torch.ones(*shape, 1),
        torch.full(shape, owners - 1),
        torch.arange(owners) == 0,
    )


def test_labels_under_faults_go_together_as_the_assignments_do():
    both = Spoilt.together([spoilt(3, 4), spoilt(1, 2)])
    assert both.classes[..., 0].tolist() == [[3, 3, 3], [3, 3, 3], [1, 0, 0], [1, 0, 0]]
    assert both.valid[..., 0].tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert both.owners[:2].tolist() == [[3, 3, 3]] * 2
    assert both.owners[2:, 0].tolist() == [4 + 1] * 2
    assert both.carried.tolist() == [True, False, False, False, True, False]


class Reader:
    """What is read, by call: number of entries, and the first score of each."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[float]]] = []

    def __call__(self, seen: Assignment, loss: Tensor, spoilt: Spoilt | None) -> Tensor:
        self.calls.append((len(seen.scores), loss.flatten().tolist()))
        return seen.scores[:, 0, :1]


def numbered(value: float, images: int = 2, classes: int = 3) -> Assignment:
    seen = random_assignment(0, images=images, classes=classes)
    return replace(seen, scores=torch.full_like(seen.scores, value))


def test_a_batch_is_read_at_once_where_one_is_the_most():
    reader = Reader()
    later = Held(reader, 1).add(numbered(0.5), torch.tensor(7.0), None)
    assert later.values.tolist() == [[0.5], [0.5]]
    assert reader.calls == [(2, [7.0])]


def test_batches_wait_for_the_last_and_each_gets_its_own_back():
    reader = Reader()
    kept = Held(reader, 3)
    first = [kept.add(numbered(v, n), torch.tensor(10 * v), None) for v, n in ((0.25, 2), (0.5, 1))]
    assert [later.values for later in first] == [None, None]
    last = kept.add(numbered(0.75), torch.tensor(7.5), None)
    assert reader.calls == [(5, [2.5, 2.5, 5, 7.5, 7.5])]
    assert [later.values.tolist() for later in (*first, last)] == [[[0.25]] * 2, [[0.5]], [[0.75]] * 2]


def test_those_of_another_kind_are_read_apart_and_what_is_cleared_never_is():
    reader = Reader()
    kept = Held(reader, 9)
    later = [
        kept.add(numbered(0.25), torch.tensor(1.0), None),
        kept.add(numbered(0.5, classes=4), torch.tensor(2.0), None),
        kept.add(numbered(0.75), torch.tensor(3.0), spoilt(2, 2)),
    ]
    kept.read()
    assert [count for count, _ in reader.calls] == [2, 2, 2]
    assert [one.values[0, 0].item() for one in later] == [0.25, 0.5, 0.75]
    gone = kept.add(numbered(0.25), torch.tensor(1.0), None)
    kept.clear()
    kept.read()
    assert gone.values is None
    assert len(reader.calls) == 3


@pytest.mark.parametrize(("name", "limit"), [("_IMAGES", 5), ("_NUMBERS", 2 * 2 * 60 * 8)])
def test_no_more_are_held_than_fit(name, limit, monkeypatch):
    monkeypatch.setattr(held, name, limit)
    reader = Reader()
    kept = Held(reader, 99)
    for _ in range(12):
        kept.add(numbered(0.5), torch.tensor(1.0), None)
    kept.read()
    assert sum(count for count, _ in reader.calls) == 24
    assert len(reader.calls) > 1


def test_evidence_waits_for_readings_and_is_without_where_they_are_not():
    noted, later = Evidence(), Later()
    noted.add(np.array([4, 5]), torch.tensor([[1.0], [2.0]]), np.ones(2), where=later)
    noted.settle(taken=True)
    later.values = torch.tensor([[torch.nan, torch.nan], [torch.nan, 3.0]])
    ids, values, _ = noted.collect()
    assert ids.tolist() == [4, 5]
    assert np.isnan(values[:, 0]).tolist() == [True, False]


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"judge": False}, {"judge": True}], ids=["channels", "judge"])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_a_run_that_reads_several_at_once_reads_what_one_at_a_time_does(method, mosaic, tmp_path, monkeypatch):
    data = helpers.build_set(tmp_path / "set", train=24)
    runs = []
    for most in (1, 4):
        kept, sizes = trainer_module.Held, []

        def small(read, _, most=most, kept=kept, sizes=sizes):
            def noting(seen, loss, spoilt):
                sizes.append(len(seen.scores))
                return read(seen, loss, spoilt)

            return kept(noting, most)

        monkeypatch.setattr(trainer_module, "Held", small)
        settings = {"epochs": 3, "batch": 4, "mosaic": mosaic, "close_mosaic": 0}
        method = {**method, "warmup": 0, "joint": 0.67}
        runs.append(train_here(data, tmp_path / f"{most}", share=0.25, method=method, **settings))
        monkeypatch.undo()
        assert max(sizes) == 4 if most == 1 else max(sizes) > 4
    one, several = (run.pruner for run in runs)
    assert np.isfinite(one.moments.means).any(0).all()
    np.testing.assert_allclose(several.moments.means, one.moments.means, rtol=1e-3, atol=1e-5)
    assert (several.kept == one.kept).all()


@pytest.mark.slow
@pytest.mark.alone
def test_the_mask_adds_few_operations_to_a_step(tmp_path):
    data = helpers.build_set(tmp_path / "set")
    given = {"model": str(helpers.write_architecture(tmp_path / "small.yaml")), "data": str(data), "device": "cpu"}
    config = load("yolov3-tiny", {**given, "imgsz": 64, "batch": 8, "mosaic": 0.0, "mixup": 0.0})
    cost = stepcost.measure_parts(config, steps=1, repeats=2)
    more = {name: part.masked_operations - part.stock_operations for name, part in cost.items()}
    assert 0 < more["mask"] <= 16  # 12; a GPU waits for each
    assert more["mask"] < more["mask, judge"] <= 110
