"""A reading reaches the image it was read from, whatever the loader does with the order; and nothing else moves a fate.

A detector that learns nothing in a few epochs can judge nothing. So most of these runs read a marker instead: each
image is one grey tone, and the channels' stand-in reads the tone at the centre of the batch's own pixels.
"""

import csv
import math
import os
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests import helpers
from tests.helpers import QUICK, read_list, train_here, training_images, write_data
from yolo_adapruner import AdaPruneTrainer
from yolo_adapruner.core.suspicion import Suspicion
from yolo_adapruner.engine import rehearse
from yolo_adapruner.engine import trainer as trainer_module
from yolo_adapruner.engine.channels import CHANNELS
from yolo_adapruner.engine.losses import LossTap

pytestmark = pytest.mark.slow

N = 24
STRIDES = (8, 16, 32)
GREY = 114
RUINED = (3, 11, 19)
STILL = {
    **QUICK,
    **dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0),
    "augmentations": [],
    "epochs": 6,
    "method": {"judge": False, "redundancy": 0, "floor": 0},
}
"""No augmentation that would move or tint the marker, and nothing but the marker that decides who is dropped.

Most run without the judge, which costs time and moves no reading.
"""


def tone(i: int) -> int:
    """The grey tone of image i."""
    return 20 + 9 * i


def marker(i: int) -> float:
    """What the stand-in reads from image i; a ruined one stands out."""
    return 1 + i / 100 + (50 if i in RUINED else 0)


@pytest.fixture
def marked(tmp_path):
    """A set whose training image i is one tone all over, with a box in the middle; half of the images are wide."""
    data = helpers.build_set(tmp_path / "set", train=N, val=4)
    for i, image in enumerate(training_images(data)):
        shape = (64, 64) if i % 2 else (48, 96)
        cv2.imwrite(str(image), np.full((*shape, 3), tone(i), np.uint8))
        helpers.label_of(image).write_text("0 0.5 0.5 0.4 0.4\n")
    return data


@pytest.fixture
def reader(monkeypatch):
    """A trainer's class whose channels read each owner's marker off the batch's own pixels."""
    images, pixels, again = [], [], []

    class Marked(AdaPruneTrainer):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            height, width = batch["img"].shape[2:]
            images[:] = [batch["img"][:, 0] * 255]
            pixels[:] = [batch["img"][:, 0, height // 2, width // 2] * 255]
            return batch

    def ask(tap, *labels):
        again[:] = [original(tap, *labels)]
        return again[0]

    def widened(seen, by=None, **_):
        """All 14 readings of an owner; under spoilt labels it stands out, as a ruined image does."""
        known = read(seen)[:, :1].expand(-1, len(rehearse.FEATURES))
        both = len(seen.scores) > len(pixels[0])  # under the true labels, and then the same entries under spoilt ones
        spoilt = (
            torch.arange(len(known)) >= len(known) // 2 if both else torch.tensor([bool(again) and seen is again[0]])
        )
        return known + 50 * spoilt[:, None]

    def read(seen):
        if seen.owned is None:
            tones = pixels[0].tolist() * (len(seen.scores) // len(pixels[0]))
            which = [round((tone_ - tone(0)) / 9) for tone_ in tones]
            assert len(which) == len(seen.scores)
        else:
            which = [most_seen(seen, k) for k in range(seen.owned.count)]
        return torch.tensor([[math.nan if i is None else marker(i)] * len(CHANNELS) for i in which])

    def most_seen(seen, k):
        """Which image shows at most of the anchors that owner k is said to own, None where that is hard to tell."""
        height, width = images[0].shape[1:]
        grids = [torch.meshgrid(*(torch.arange(s // 2, n, s) for n in (height, width)), indexing="ij") for s in STRIDES]
        y, x = (torch.cat([grid[axis].flatten() for grid in grids]) for axis in (0, 1))
        batch = images[0].repeat(len(seen.scores) // len(images[0]), 1, 1)
        tones = batch[:, y, x][seen.owned.anchors[0] == k]
        tones = tones[(tones - GREY).abs() > 2]
        counts = ((tones - tone(0)) / 9).round().long().bincount(minlength=1)
        return int(counts.argmax()) if len(tones) > 4 and counts.max() > 0.6 * len(tones) else None

    original = LossTap.again
    monkeypatch.setattr(LossTap, "again", ask)
    monkeypatch.setattr(trainer_module, "detection_channels", read)
    monkeypatch.setattr(rehearse, "features", widened)
    Marked.pixels = pixels
    return Marked


def tone_of(path: str) -> int:
    """Which of the marked images a file is, by its pixels."""
    return round((int(cv2.imread(path)[5, 5, 0]) - tone(0)) / 9)


def check(trainer, folder: Path, *, mixed: bool = False) -> None:
    """Each image's mean reading is its own marker, and the ruined ones were dropped."""
    numbers = [tone_of(path) for path in trainer.paths]
    assert len(set(numbers)) == len(numbers)
    read = trainer.pruner.moments.means[:, 0]
    # Scaled pixels of a mosaic may show a tone between two; a reading on a wrong account is off by much more.
    np.testing.assert_allclose(read, [marker(i) for i in numbers], atol=0.02 if mixed else 1e-6)
    assert sorted(tone_of(path) for path in read_list(folder / "dropped.txt")) == list(RUINED)
    count = trainer.pruner.moments.count
    assert (count >= 1).all() if mixed else (count == 2).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_under_a_shuffling_loader(marked, reader, tmp_path, seed):
    orders = []
    trainer = train_here(
        marked,
        tmp_path / "run",
        share=len(RUINED) / N,
        trainer=reader,
        seed=seed,
        callbacks={"on_train_batch_end": lambda t: orders.append(list(t._batch_ids))},
        **STILL,
    )
    check(trainer, tmp_path / "run")
    first, second = ([i for batch in epoch for i in batch] for epoch in (orders[:3], orders[3:6]))
    assert sorted(first) == sorted(second) == list(range(N))
    assert len({tuple(first), tuple(second), tuple(range(N))}) == 3  # it does shuffle


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_under_a_judge(marked, reader, tmp_path, monkeypatch, mosaic, at_once):
    """What is read under spoilt labels goes onto the same account, and the readings beside it are still its own."""
    monkeypatch.setattr(rehearse, "_FEW_ANCHORS", 1000 if at_once else 0)
    # Ranked: a lot would decide beside the marker, where an image of two epochs was seen in one.
    method = {**STILL["method"], "judge": True, "rest": "rank"}
    settings = {**STILL, "mosaic": mosaic, "close_mosaic": 0, "method": method}
    rehearsed, learn = [], Suspicion.learn

    def note(suspicion, readings, spoilt, evidence):
        rehearsed.append(spoilt[:, 0])
        return learn(suspicion, readings, spoilt, evidence)

    monkeypatch.setattr(Suspicion, "learn", note)
    trainer = train_here(marked, tmp_path / "run", share=len(RUINED) / N, trainer=reader, **settings)
    check(trainer, tmp_path / "run", mixed=mosaic > 0)
    suspects = np.flatnonzero(trainer.pruner.suspicion.posterior > 0)
    assert sorted(tone_of(trainer.paths[i]) for i in suspects) == list(RUINED)
    wanted = np.array([marker(tone_of(path)) + 50 for path in trainer.paths])
    assert len(rehearsed) == 2
    for means in rehearsed:
        known = np.isfinite(means)
        assert known.sum() > N / 3
        np.testing.assert_allclose(means[known], wanted[known], atol=0.02 if mosaic else 1e-4)


def test_an_image_s_loss_is_weighted_by_its_own_weight_in_the_joint_stage_only(marked, reader, tmp_path, monkeypatch):
    used, stages = [], []
    original = LossTap.weigh

    def note(tap, values):
        if tap.anchor_weights is not None:
            used.append(tap.anchor_weights[:, 0].clone())
        return original(tap, values)

    monkeypatch.setattr(LossTap, "weigh", note)

    def compare(trainer):
        stages.append((int(trainer.pruner.stage), len(used)))
        if used:
            by_tone = dict(
                zip(map(tone_of, trainer.paths), trainer.pruner.mask.weights(trainer.pruner.state.s), strict=True)
            )
            pixels = reader.pixels[0].tolist()
            expected = torch.tensor([by_tone[round((tone_ - tone(0)) / 9)] for tone_ in pixels])
            assert all(torch.equal(weights, expected) for weights in used)
            spread.append(float(expected.max() - expected.min()))
        used.clear()

    spread = []
    train_here(marked, tmp_path / "run", trainer=reader, callbacks={"on_train_batch_end": compare}, **STILL)
    assert {stage for stage, count in stages if count} == {2}
    assert [count for stage, count in stages if stage == 2] == [2] * 6  # the classification term and the box terms
    assert max(spread) > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"rect": True},
        {"cache": "ram"},
        {"cache": "disk"},
        {"mosaic": 1.0, "close_mosaic": 0},
        {"mosaic": 0.5, "cutmix": 0.5, "close_mosaic": 0},
        {"mosaic": 1.0, "multi_scale": 0.5, "close_mosaic": 0},
        {"mosaic": 1.0, "close_mosaic": 3},
        {"batch": 5},
        {"multi_scale": 0.5},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_whatever_the_recipe(marked, reader, tmp_path, settings):
    trainer = train_here(marked, tmp_path / "run", share=len(RUINED) / N, trainer=reader, **{**STILL, **settings})
    check(trainer, tmp_path / "run", mixed="mosaic" in settings)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_with_worker_processes(marked, reader, tmp_path, mosaic):
    """On a CPU Ultralytics takes none, so they are set behind its back: a GPU run has them."""
    settings = {**STILL, "mosaic": mosaic, "close_mosaic": 0}
    trainer = helpers.new_trainer(marked, tmp_path / "run", share=len(RUINED) / N, trainer=reader, **settings)
    trainer.args.workers = 2
    workers = []
    trainer.add_callback("on_train_epoch_start", lambda t: workers.append(t.train_loader.num_workers))
    trainer.train()
    assert min(workers) == min(2, os.cpu_count())
    check(trainer, tmp_path / "run", mixed=mosaic > 0)


def test_images_of_one_name_in_different_folders(marked, reader, tmp_path):
    for i, image in enumerate(training_images(marked)):
        for path, suffix in ((image, ".png"), (helpers.label_of(image), ".txt")):
            (path.parent / str(i % 4)).mkdir(exist_ok=True)
            path.rename(path.parent / str(i % 4) / f"{i // 4}{suffix}")
    trainer = train_here(marked, tmp_path / "run", share=len(RUINED) / N, trainer=reader, **STILL)
    check(trainer, tmp_path / "run")


def test_a_list_with_duplicates_and_relative_lines(marked, reader, tmp_path):
    """A row an image, however often and however spelled the list names it."""
    root = marked.parent
    names = [f"./images/train/{image.name}" for image in training_images(marked)]
    lines = [*names, *names[:6], str(root / "images" / ".." / "images" / "train" / "007.png"), names[11]]
    random.Random(0).shuffle(lines)
    (root / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = write_data(root / "list.yaml", root, train="train.txt")
    seen = []
    trainer = train_here(
        data,
        tmp_path / "run",
        share=len(RUINED) / N,
        trainer=reader,
        callbacks={
            "on_train_epoch_start": lambda _: seen.append([]),
            "on_train_batch_end": lambda t: seen[-1].extend(t.paths[i] for i in t._batch_ids),
        },
        **STILL,
    )
    check(trainer, tmp_path / "run")
    kept, dropped = read_list(tmp_path / "run" / "kept.txt"), read_list(tmp_path / "run" / "dropped.txt")
    assert sorted(kept + dropped) == trainer.paths == [str(path) for path in training_images(marked)]
    with (tmp_path / "run" / "scores.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == trainer.paths
    assert len(seen[0]) == len(lines)
    assert set(seen[-1]) == set(kept)


def test_fraction_takes_part_of_the_list(marked, reader, tmp_path):
    trainer = train_here(marked, tmp_path / "run", share=2 / 18, trainer=reader, **STILL, fraction=0.75)
    assert [tone_of(path) for path in trainer.paths] == list(range(18))
    dropped = [tone_of(path) for path in read_list(tmp_path / "run" / "dropped.txt")]
    assert dropped == [i for i in RUINED if i < 18]
    assert trainer.skipped == []


def test_linked_images_go_by_the_name_they_are_listed_under(marked, reader, tmp_path):
    """Links to one file with labels of their own are images of their own; kept.txt must not name the file behind."""
    root = marked.parent
    for image in training_images(marked)[::3]:
        target = root / "store" / image.name
        target.parent.mkdir(exist_ok=True)
        image.rename(target)
        image.symlink_to(target)
    trainer = train_here(marked, tmp_path / "run", share=len(RUINED) / N, trainer=reader, **STILL)
    check(trainer, tmp_path / "run")
    assert all(Path(path).parent == root / "images" / "train" for path in trainer.paths)


def test_new_names_in_the_same_order_change_no_image_s_fate(tmp_path):
    """With the real channels: a run on a copy whose files and folders are all called something else."""
    first = helpers.build_set(tmp_path / "a" / "set")
    second = helpers.build_set(tmp_path / "anderswo" / "Bilder und mehr")
    for i, image in enumerate(training_images(second)):
        name = f"{chr(ord('a') + i)}-neu {i}"
        helpers.label_of(image).rename(helpers.label_of(image).with_name(f"{name}.txt"))
        image.rename(image.with_name(f"{name}.png"))
    fates = []
    for data, folder in ((first, tmp_path / "one"), (second, tmp_path / "two")):
        train_here(data, folder, epochs=6)
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))[1:]
        order = {str(path): i for i, path in enumerate(training_images(data))}
        fates.append({order[row[0]]: row[1:] for row in rows})
    assert fates[0] == fates[1]
    assert len({row[0] for row in fates[0].values()}) == 2
