"""Every family and task that the mask is said to work with, one small model of each, and the table that says so.

`python -m tests.test_families` writes that table into docs/models.md; its rows and ticks are the cases below.
"""

import copy
import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.metrics import probiou

from tests import helpers
from yolo_adapruner.engine.channels import detection_channels
from yolo_adapruner.engine.heads import TASKS
from yolo_adapruner.engine.losses import Assignment, LossTap, per_image_losses
from yolo_adapruner.engine.tasks import trainer_for

DOC = Path(__file__).parent.parent / "docs" / "models.md"

CHECKS = {
    "stock": "stock at weights 1",
    "split": "exact split",
    "own": "own image only",
    "mix": "mix does not drift the judgement",
    "step": "training step",
    "run": "run and export",
}
"""The columns of ticks; a family's test of that name is in the parameter list of the function of that name."""
ALL = tuple(name for name in CHECKS if name != "mix")


@dataclass(frozen=True)
class Family:
    """A row of the table: a small model, and what is checked of it."""

    name: str
    task: str = "detect"
    checks: tuple[str, ...] = ALL
    narrow: tuple[tuple[str, float], ...] = ()
    """Settings over the architecture's own, for one that comes in no small size."""

    def architecture(self) -> dict:
        return {**yaml_model_load(f"{self.name}.yaml"), **dict(self.narrow)}


FAMILIES = [
    Family("yolov3-tiny"),
    Family("yolov3", narrow=(("width_multiple", 0.125), ("depth_multiple", 0.1))),
    Family("yolov5n"),
    Family("yolov8n"),
    Family("yolov9t"),
    Family("yolov10n", checks=(*ALL, "mix")),
    Family("yolo11n"),
    Family("yolo12n"),
    Family("yolo26n", checks=(*ALL, "mix")),
    Family("yolov8n-seg", "segment"),
    Family("yolo11n-seg", "segment"),
    Family("yolo26n-seg", "segment", checks=(*ALL, "mix")),
    Family("yolov8n-pose", "pose"),
    Family("yolo11n-pose", "pose"),
    Family("yolo26n-pose", "pose", checks=(*ALL, "mix")),
    Family("yolov8n-obb", "obb"),
    Family("yolo11n-obb", "obb"),
    Family("yolo26n-obb", "obb", checks=(*ALL, "mix")),
]
IN_THE_GATE = ["yolov3-tiny", "yolov8n", "yolov10n", "yolo11n", "yolo26n", "yolo11n-seg", "yolo26n-pose", "yolov8n-obb"]
"""Of these a whole run is trained there, of the others in the long part: each generation, each task."""
MODELS = {"detect": DetectionModel, "segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
KEYPOINTS = 3
B = 4


def families(check, gate=None):
    """Parametrise by the families that a check is said to hold for; if `gate` names some, the others are long."""
    rows = [family for family in FAMILIES if check in family.checks]
    names = [family.name for family in rows]
    indices = [names.index(name) for name in gate or names]
    return pytest.mark.parametrize("family", helpers.gate_runs(rows, *indices, ids=names))


# Sets of each task


def label_line(task, cls, x, y, side, rng):
    """One object as the task's label files write it; all within the square of that side."""
    if task == "detect":
        return [cls, x, y, side, side]
    angle = rng.uniform(0, math.pi)
    corners = [
        (x + dx * side / 2, y + dy * side / 2)
        for dx, dy in (
            (math.cos(a) * long, math.sin(a) * long)
            for a, long in ((angle, 1.0), (angle + 0.9, 0.9), (angle + math.pi, 1.0), (angle + math.pi + 0.9, 0.9))
        )
    ]
    if task in ("segment", "obb"):
        return [cls, *(v for corner in corners for v in corner)]
    points = [(*corner, visible) for corner, visible in zip(corners, (2, 1, rng.integers(3)), strict=False)]
    return [cls, x, y, side, side, *(v for point in points for v in point)]


def build_set(root, task, *, train=8, val=4):
    """Write a set of a task like `helpers.build_set`'s and return its data file; the third training image is empty."""
    rng = np.random.default_rng(5)
    for split, count in (("train", train), ("val", val)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            objects = 0 if (split, i) == ("train", 2) else 1 + i % 3
            shapes = [(int(rng.integers(3)), *rng.uniform(0.3, 0.7, 2), rng.uniform(0.3, 0.5)) for _ in range(objects)]
            cv2.imwrite(str(images / f"{i:03}.png"), helpers.picture(64, shapes, rng))
            lines = [" ".join(f"{v:.5g}" for v in label_line(task, *shape, rng)) for shape in shapes]
            (labels / f"{i:03}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return helpers.write_data(root / "data.yaml", root, licence="none", **(POSE_KEYS if task == "pose" else {}))


POSE_KEYS = {
    "kpt_shape": [KEYPOINTS, 3],
    "flip_idx": [0, 2, 1],
    "kpt_names": {c: ["tip", "left", "right"] for c in range(3)},
    "kpt_oks_sigmas": [0.2, 0.3, 0.4],
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A data file of each task, written when first asked for."""
    made = {}

    def of(task):
        if task not in made:
            made[task] = build_set(tmp_path_factory.mktemp(task) / "set", task)
        return made[task]

    return of


@pytest.fixture(scope="module")
def batches(sets):
    """The first four training images as Ultralytics loads them for a task: one object, two, none, one."""
    made = {}

    def of(task, **settings):
        key = (task, *settings.items())
        if key not in made:
            data = check_det_dataset(str(sets(task)))
            cfg = get_cfg(overrides={"task": task, "imgsz": 64, **settings})
            dataset = build_yolo_dataset(cfg, data["train"], B, data, mode="val", stride=32)
            made[key] = dataset.collate_fn([dataset[i] for i in range(B)])
            made[key]["img"] = made[key]["img"].float() / 255
        return made[key]

    return of


@pytest.fixture(scope="module")
def models():
    """A model of each family at random weights, in training mode, as a trainer would set it up; built once."""
    made = {}

    def of(family, **settings):
        if family.name not in made:
            made[family.name] = build(family)
        made[family.name].args = get_cfg(DEFAULT_CFG, {"epochs": 10, **settings})
        return made[family.name]

    return of


def build(family):
    torch.manual_seed(3)
    extra = {"data_kpt_shape": [KEYPOINTS, 3]} if family.task == "pose" else {}
    model = MODELS[family.task](family.architecture(), nc=3, verbose=False, **extra).train()
    # Fresh heads are so sure of the background that the box terms nearly vanish; let all terms count.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cv3." in name and name.endswith(".2.bias"):
                parameter.zero_()
    # As in evaluation: in training mode the batch's figures tie the images together.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


class OwnerTap(LossTap):
    """Weighs each anchor by an owner of its own choice, as a batch of mixed pictures does; weights are (owners,)."""

    def assigned(self, seen, judged, anchors):
        super().assigned(seen, judged, anchors)
        random = torch.Generator().manual_seed(int(seen.foreground.sum()))
        owner = torch.randint(len(self.weights), seen.foreground.shape, generator=random)
        self.anchor_weights = self.weights[owner]


def loss_of(model, batch, weights=None, tap=LossTap):
    """The batch's loss, a sum of the terms by name, with its graph."""
    criterion = model.init_criterion()
    if tap is not None:
        tap(criterion).weights = weights
    loss, items = criterion(model.predict(batch["img"]), batch)
    return loss, items


def gradients(model, loss):
    """Every parameter's gradient by a loss."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.sum(), [p for _, p in named], allow_unused=True)
    return {name: g for (name, _), g in zip(named, found, strict=True) if g is not None}


def shares_of(model, batch, weights, tap=LossTap):
    """The terms at some weights, (T,), and each one's derivative by them, (T, owners)."""
    leaf = weights.clone().requires_grad_()
    loss, _ = loss_of(model, batch, leaf, tap)
    shares = [per_image_losses(term, leaf) if term.requires_grad else torch.zeros_like(leaf) for term in loss]
    return loss.detach(), torch.stack(shares)


OWNERS = pytest.mark.parametrize("tap", [LossTap, OwnerTap], ids=["an image each", "owners within images"])


@families("stock")
@OWNERS
def test_stock(family, models, batches, tap):
    """Loss and every gradient are bitwise the stock ones at weights of 1; every term counts in this."""
    model, batch = models(family), batches(family.task)
    stock, items = loss_of(model, batch, tap=None)
    expected = gradients(model, stock)
    loss, _ = loss_of(model, batch, torch.ones(B), tap)
    found = gradients(model, loss)
    none = {name for name, value in items.items() if value <= 0}
    assert none == ({"sem_loss"} if family.task == "segment" and "26" not in family.name else set())
    assert torch.equal(loss, stock)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@families("split")
@OWNERS
def test_split(family, models, batches, tap):
    """Term by term the shares sum to the term, and the term is linear in the weights."""
    model, batch = models(family), batches(family.task)
    terms, shares = shares_of(model, batch, torch.ones(B), tap)
    torch.testing.assert_close(shares.double().sum(1).float(), terms, rtol=1e-6, atol=0)
    weights = torch.tensor([0.3, 2.0, 0.7, 0.0])
    weighted, again = shares_of(model, batch, weights, tap)
    torch.testing.assert_close(weighted, (shares * weights).sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(again, shares, rtol=1e-4, atol=1e-6)


@families("own")
def test_own(family, models, batches):
    """Of an image that alone has a weight, and of no other, the loss says how its pixels should change."""
    model, batch = models(family), batches(family.task)
    for image in range(B):
        pixels = batch["img"].clone().requires_grad_()
        loss, _ = loss_of(model, {**batch, "img": pixels}, torch.eye(B)[image])
        for term in loss:  # each, lest a large one hide another that is amiss
            by_pixel = torch.autograd.grad(term, pixels, retain_graph=True, allow_unused=True)[0]
            if by_pixel is not None:
                moved = by_pixel.abs().amax(dim=(1, 2, 3))
                assert moved[torch.arange(B) != image].max() == 0
        total = torch.autograd.grad(loss.sum(), pixels)[0].abs().amax(dim=(1, 2, 3))
        assert total[image] > 0


@families("mix")
def test_mix(family, models, batches):
    """End to end: the two heads' mix drifts with the epochs and the losses with it, what the judge reads does not."""
    model, batch = models(family), batches(family.task)
    readings, losses = [], []
    for epochs in (0, 5, 9):
        criterion = model.init_criterion()
        tap = LossTap(criterion)
        tap.watching, tap.weights = True, torch.tensor([0.3, 2.0, 0.7, 0.5])
        for _ in range(epochs):
            criterion.update()
        loss, _ = criterion(model.predict(batch["img"]), batch)
        readings.append(detection_channels(tap.assignment))
        losses.append(float(loss.detach().sum()))
    assert criterion.o2m == pytest.approx(0.1)
    assert len(set(losses)) == 3
    assert readings[0].isfinite().sum() == 4 * B - 3  # the empty image speaks on one channel alone
    for other in readings[1:]:
        assert torch.equal(other.nan_to_num(-1), readings[0].nan_to_num(-1))


@families("step")
def test_step(family, models, batches):
    """A step down a weighted loss lowers it, and the weights are not among what is trained."""
    model, batch = copy.deepcopy(models(family)), batches(family.task)
    weights = torch.tensor([0.3, 1.0, 0.7, 0.5])
    before, _ = loss_of(model, batch, weights)
    found = gradients(model, before)
    norm = torch.cat([g.flatten() for g in found.values()]).norm()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found:
                parameter -= 1e-3 * found[name] / norm
        after, _ = loss_of(model, batch, weights)
    assert 0 < after.sum() < before.sum()


# The terms one by one


@pytest.mark.parametrize("settings", [{"overlap_mask": False}, {"mask_ratio": 1}], ids=lambda s: ",".join(s))
@pytest.mark.parametrize("name", ["yolo11n-seg", "yolo26n-seg"])
def test_masks_however_they_are_stored(name, settings, models, batches):
    family = next(f for f in FAMILIES if f.name == name)
    model, batch = models(family, **settings), batches("segment", **settings)
    assert torch.equal(loss_of(model, batch, torch.ones(B))[0], loss_of(model, batch, tap=None)[0])
    terms, shares = shares_of(model, batch, torch.ones(B))
    torch.testing.assert_close(shares.double().sum(1).float(), terms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
@pytest.mark.parametrize("letter", ["v8n", "11n", "26n"])
def test_a_batch_without_objects(task, letter, models, batches):
    """No positive, so nothing but the classes' term, which is each image's own."""
    family = next(f for f in FAMILIES if f.task == task and letter in f.name)
    model, batch = models(family), dict(batches(task))
    for key in ("cls", "bboxes", "batch_idx", "keypoints"):
        if key in batch:
            batch[key] = batch[key][:0]
    if task == "segment":
        batch["masks"], batch["sem_masks"] = torch.zeros(B, 16, 16), torch.zeros(B, 16, 16)
    assert torch.equal(loss_of(model, batch, torch.ones(B))[0], loss_of(model, batch, tap=None)[0])
    terms, shares = shares_of(model, batch, torch.ones(B))
    assert (terms > 0).sum() == 1
    torch.testing.assert_close(shares.double().sum(1).float(), terms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.task != "detect"], ids=lambda family: family.name)
def test_half_precision(family, models, batches):
    """Under autocast as well: a weight must not change the type a term is computed in."""
    model, batch = models(family), batches(family.task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock, _ = loss_of(model, batch, tap=None)
        loss, _ = loss_of(model, batch, torch.ones(B))
        terms, shares = shares_of(model, batch, torch.ones(B))
    assert torch.equal(loss, stock)
    expected, found = gradients(model, stock), gradients(model, loss)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    torch.testing.assert_close(shares.double().sum(1).float(), terms, rtol=1e-2, atol=0)


def test_a_likelihood_below_0_is_no_image_s(models, batches):
    """26-pose cuts it off after the mean, so below 0 no image has a share of it, in stock training neither."""
    family = next(f for f in FAMILIES if f.name == "yolo26n-pose")
    model, batch = models(family), batches("pose")
    leaf = torch.ones(B, requires_grad=True)
    criterion = model.init_criterion()
    LossTap(criterion).weights = leaf
    for head in (criterion.one2many, criterion.one2one):
        inner = head.rle_loss
        head.rle_loss = lambda *arguments, inner=inner: inner(*arguments) - 1e3
    loss, items = criterion(model.predict(batch["img"]), batch)
    assert items["rle_loss"] == 0
    assert (per_image_losses(loss[-1], leaf) == 0).all()


def test_validation_in_between_is_stock(models, batches):
    """The tap stays on the criterion that validates: without weights every stand-in steps aside."""
    for name in ("yolo26n-seg", "yolo26n-pose", "yolo26n-obb"):
        family = next(f for f in FAMILIES if f.name == name)
        model, batch = models(family), batches(family.task)
        criterion = model.init_criterion()
        tap = LossTap(criterion)
        tap.weights = torch.full((B,), 0.5)
        half = criterion(model.predict(batch["img"]), batch)[0]
        tap.clear()
        criterion = copy.deepcopy(criterion)  # NaN recovery copies the model with it
        stock = loss_of(model, batch, tap=None)[0]
        assert torch.equal(criterion(model.predict(batch["img"]), batch)[0], stock)
        torch.testing.assert_close(half, 0.5 * stock)


# What the judge reads off rotated boxes


def rotated(*predictions):
    """One image with one long box, lying, and predictions of which the first two are assigned to it."""
    boxes = torch.tensor(predictions, dtype=torch.float32)[None]
    count = boxes.shape[1]
    return Assignment(
        scores=torch.full((1, count, 2), 0.2).index_fill(2, torch.tensor([1]), 0.6),
        boxes=boxes,
        gt_labels=torch.ones(1, 1, 1),
        gt_boxes=torch.tensor([[[32.0, 32.0, 40.0, 8.0, 0.0]]]),
        gt_valid=torch.ones(1, 1, 1, dtype=torch.bool),
        foreground=torch.arange(count)[None] < 2,
        gt_index=torch.zeros(1, count, dtype=torch.long),
    )


def test_an_angle_is_part_of_where_a_box_lies():
    lying, standing = (32.0, 32.0, 40.0, 8.0, 0.0), (32.0, 32.0, 40.0, 8.0, math.pi / 2)
    right, off, wrong = (
        float(detection_channels(rotated(*both))[0, 0])
        for both in ((lying, lying), (lying, (*lying[:4], 0.2)), (standing, standing))
    )
    assert right < 1e-3 < off < wrong
    assert wrong == pytest.approx(1 - float(probiou(torch.tensor([lying]), torch.tensor([standing]))), abs=1e-6)


def test_a_prediction_across_a_labelled_box_is_not_explained_by_it():
    lying, standing = (32.0, 32.0, 40.0, 8.0, 0.0), (32.0, 32.0, 40.0, 8.0, math.pi / 2)
    along, across = (float(detection_channels(rotated(lying, lying, third))[0, 3]) for third in (lying, standing))
    assert along == pytest.approx(0, abs=1e-6)
    assert across == pytest.approx(-math.log(1 - 0.6) / 3, rel=1e-5)  # the mean over all three predictions


# Runs


def check_folder(folder, task, data, dropped):
    """What a run leaves behind fits its data set, and plain Ultralytics takes it."""
    from ultralytics import YOLO

    images = helpers.training_images(data)
    kept = helpers.read_list(folder / "kept.txt")
    assert sorted([*kept, *helpers.read_list(folder / "dropped.txt")]) == [str(path) for path in images]
    assert len(kept) == len(images) - dropped
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
        counts = {row["path"]: int(row["boxes"]) for row in csv.DictReader(stream)}
    assert counts == {str(i): len(helpers.label_of(i).read_text(encoding="utf-8").splitlines()) for i in images}
    source, pruned = (yaml.safe_load(f.read_text(encoding="utf-8")) for f in (data, folder / "pruned.yaml"))
    assert pruned["train"] == str(folder / "kept.txt")
    rest = {key: value for key, value in source.items() if key not in ("path", "train", "val")}
    assert {key: pruned[key] for key in rest} == rest
    assert check_det_dataset(str(folder / "pruned.yaml"))["val"] == str(data.parent / "images" / "val")
    assert YOLO(folder / "weights" / "best.pt").task == task


@families("run", gate=IN_THE_GATE)
@pytest.mark.slow
def test_run(family, sets, tmp_path, monkeypatch):
    """Joint stage and fine-tune through the trainer; the controller is handed what the task is about."""
    from yolo_adapruner.core.pruner import Pruner

    kind, handed = trainer_for(family.task), []
    close_epoch, validate = Pruner.close_epoch, kind.validate

    def close(self, metric, **more):
        handed.append(metric)
        return close_epoch(self, metric, **more)

    def told_apart(self):
        metrics, fitness = validate(self)
        return {key: (i + 1) / 100 for i, key in enumerate(metrics)}, fitness

    monkeypatch.setattr(Pruner, "close_epoch", close)
    monkeypatch.setattr(kind, "validate", told_apart)
    architecture = tmp_path / f"{family.name}.yaml"
    architecture.write_text(yaml.safe_dump(family.architecture()), encoding="utf-8")
    settings = {"method": {"warmup": 0}, "epochs": 2, "batch": 4, "nbs": 4}
    trainer = helpers.train_here(
        sets(family.task), tmp_path / "run", trainer=kind, model=architecture, share=0.25, **settings
    )
    assert helpers.stages(tmp_path / "run") == [2, 3]
    column = {"segment": "(M)", "pose": "(P)"}.get(family.task, "(B)")
    assert handed == [row[f"metrics/mAP50-95{column}"] for row in helpers.results(tmp_path / "run")]
    assert np.isfinite(trainer.pruner.signal).all()
    assert trainer.updates == 2 + 2
    check_folder(tmp_path / "run", family.task, sets(family.task), dropped=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n-seg", "yolo26n-seg", "yolo26n-pose", "yolo26n-obb"])
def test_a_run_whose_images_are_mixed_judges_each_by_its_own(name, sets, tmp_path, monkeypatch):
    """In every batch the owners' shares of all terms, those of masks, keypoints and angles too, sum to the loss."""
    family = next(f for f in FAMILIES if f.name == name)
    kind, worst = trainer_for(family.task), []
    preprocess, step = kind.preprocess_batch, kind.optimizer_step

    def with_leaf(self, batch):
        batch = preprocess(self, batch)
        if self.pruner.stage == 2:
            assert self._tap.owners is not None
            self._tap.weights = torch.ones(self._tap.owners.count, requires_grad=True)
        return batch

    def compared(self):
        if self._tap.weights is not None:
            # The graph is gone with the step's backward, which left each owner's share on the leaf.
            total = float(self.loss.detach())
            worst.append(abs(float(self._tap.weights.grad.double().sum()) - total) / total)
        step(self)

    monkeypatch.setattr(kind, "preprocess_batch", with_leaf)
    monkeypatch.setattr(kind, "optimizer_step", compared)
    architecture = tmp_path / f"{name}.yaml"
    architecture.write_text(yaml.safe_dump(family.architecture()), encoding="utf-8")
    mixed = {"mosaic": 1.0, "mixup": 0.5, "copy_paste": 0.5, "degrees": 10.0, "close_mosaic": 0}
    settings = {"method": {"warmup": 0}, "epochs": 3, "batch": 4, "nbs": 4, **mixed}
    trainer = helpers.train_here(
        sets(family.task), tmp_path / "run", trainer=kind, model=architecture, share=0.25, **settings
    )
    assert len(worst) >= 2
    assert max(worst) <= 2e-6
    assert (trainer.pruner.seen > 0).sum() >= 6  # of 8: a mosaic may leave one out
    check_folder(tmp_path / "run", family.task, sets(family.task), dropped=2)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_the_command_line_from_first_to_last(task, tmp_path, monkeypatch, capsys):
    """The task follows from the architecture's last layer: nothing on the command line names it."""
    from yolo_adapruner.cli import main

    monkeypatch.chdir(tmp_path)
    data = build_set(tmp_path / "set", task, train=12)
    small = {**helpers.ARCHITECTURE, "head": [[[2, 3, 4], 1, *HEADS[task]]]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**small, "kpt_shape": [KEYPOINTS, 3]}), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(f"model: yolov3-tiny.yaml\ndata: {data}\n", encoding="utf-8")
    words = helpers.cli_words({**helpers.QUICK, "batch": 4, "warmup_epochs": 0, "project": "runs"})
    command = ["train", "run.yaml", "--model", "small.yaml", "--prune", "0.25", "--name", "a", *words]
    assert main(command) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "kept 9 of 12 training images, dropped 3" in out
    check_folder(tmp_path / "runs" / "a", task, data, dropped=3)
    # A checkpoint is for the task it was trained for, and goes through the same doors.
    command = ["train", "run.yaml", "--model", "runs/a/weights/best.pt", "--prune", "0.5", "--name", "b", *words]
    assert main([*command, "prune.warmup=0"]) == 0, capsys.readouterr().err
    check_folder(tmp_path / "runs" / "b", task, data, dropped=6)
    before = (tmp_path / "runs" / "b" / "pruned.yaml").read_bytes()
    assert main(["export", "runs/b", "--prune", "0.25"]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "b" / "pruned.yaml").read_bytes() == before
    assert len(check_det_dataset("runs/b/prune-0.25/pruned.yaml")["names"]) == 3


HEADS = {
    "segment": ["Segment", ["nc", 8, 16]],
    "pose": ["Pose", ["nc", [KEYPOINTS, 3]]],
    "obb": ["OBB", ["nc", 1]],
}
"""Last layers for the small architecture, by task, as upstream's own architectures write them."""


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_the_task_it_was(tmp_path, monkeypatch):
    from yolo_adapruner import prune
    from yolo_adapruner.engine import run
    from yolo_adapruner.engine.tasks import AdaPruneOBBTrainer

    monkeypatch.chdir(tmp_path)
    data = build_set(tmp_path / "set", "obb")
    small = {**helpers.ARCHITECTURE, "head": [[[2, 3, 4], 1, *HEADS["obb"]]]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    save = AdaPruneOBBTrainer.save_model

    def stop_after_two(self):
        save(self)
        if self.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(AdaPruneOBBTrainer, "save_model", stop_after_two)
    settings = {**helpers.QUICK, "batch": 4, "project": str(tmp_path / "runs"), "name": "a"}
    with pytest.raises(KeyboardInterrupt):
        prune({"model": "small.yaml", "data": str(data)}, prune=0.25, **settings)
    monkeypatch.setattr(AdaPruneOBBTrainer, "save_model", save)
    result = run.resume(tmp_path / "runs" / "a")
    assert (result.total, result.kept) == (8, 6)
    assert len(helpers.results(result.folder)) == 4
    check_folder(result.folder, "obb", data, dropped=2)


@pytest.mark.slow
def test_several_folders_in_one_data_file(tmp_path):
    """What is left of list-valued data: one run over all of them, one list of those kept."""
    for name in ("a", "b"):
        helpers.build_set(tmp_path / name, train=6, val=2, empty=1, seed=ord(name))
    folders = [f"{name}/images/train" for name in ("a", "b")]
    data = helpers.write_data(tmp_path / "both.yaml", tmp_path, train=folders, val="a/images/val")
    trainer = helpers.train_here(data, tmp_path / "run", method={"warmup": 0}, epochs=2, batch=4)
    assert trainer.paths == [str(tmp_path / folder / f"{i:03}.png") for folder in folders for i in range(6)]
    assert len(helpers.read_list(tmp_path / "run" / "kept.txt")) == 9


@pytest.mark.slow
def test_from_python_a_list_of_data_files_is_a_run_each(tmp_path):
    from ultralytics import YOLO

    from yolo_adapruner import AdaPruneTrainer, PruneConfig

    sets = [helpers.build_set(tmp_path / name, train=8, val=2, empty=1, seed=ord(name)) for name in ("a", "b")]
    model = YOLO(str(helpers.write_architecture(tmp_path / "small.yaml")))
    kind = AdaPruneTrainer.configured(PruneConfig(share=0.25, warmup=0))
    settings = {**helpers.QUICK, "epochs": 2, "batch": 4, "project": str(tmp_path / "runs")}
    model.train(trainer=kind, data=[str(data) for data in sets], **settings)
    for data in sets:
        folder = tmp_path / "runs" / "multitrain" / data.parent.name
        images = {str(path) for path in helpers.training_images(data)}
        kept = helpers.read_list(folder / "kept.txt")
        assert len(kept) == 6
        assert set(kept) < images


# The table in the docs


def table():
    """The table of docs/models.md: a row a family, a tick a check that has a case above."""
    head = ["model", "task", "last layer", "loss", *CHECKS.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for family in FAMILIES:
        model = build(family)
        model.args = get_cfg(DEFAULT_CFG)
        criterion = model.init_criterion()
        heads = [criterion.one2many, criterion.one2one] if hasattr(criterion, "one2many") else [criterion]
        loss = f"{'two × ' if len(heads) > 1 else ''}{type(heads[0]).__name__}"
        ticks = ["✓" if check in family.checks else "–" for check in CHECKS]
        name = f"{family.name}{' (narrowed)' if family.narrow else ''}"
        cells = [name, family.task, type(model.model[-1]).__name__, loss, *ticks]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLE = re.compile(r"\| model \| task \|.*?\n(?=\n|$)", re.S)


def test_the_table_in_the_docs_is_the_one_these_cases_make():
    found = TABLE.search(DOC.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == table() + "\n", "write it with python -m tests.test_families"


@pytest.mark.parametrize("check", CHECKS)
def test_each_column_has_its_test(check):
    assert callable(globals()[f"test_{check}"])
    assert set(TASKS) - {"classify"} == {family.task for family in FAMILIES}  # classes: test_classify_*


if __name__ == "__main__":
    text = DOC.read_text(encoding="utf-8")
    DOC.write_text(TABLE.sub(lambda _: table() + "\n", text), encoding="utf-8")
