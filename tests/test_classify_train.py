"""Classification through the trainer: stock where it must be, the run folder, resume, and bad input."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.classify import ClassificationTrainer

from tests import classes, helpers
from yolo_adapruner import PruneConfig, cli
from yolo_adapruner.config import load
from yolo_adapruner.engine import classset
from yolo_adapruner.engine import run as engine
from yolo_adapruner.engine.classloss import CHANNELS
from yolo_adapruner.errors import ConfigError, DataError, RunError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return classes.build_folders(tmp_path_factory.mktemp("folders") / "set")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of a set with an empty class."""
    own = tmp_path_factory.mktemp("finished") / "set"
    shutil.copytree(data, own)
    (own / "train" / "never").mkdir()
    return classes.train_here(own, own.parent / "run", share=0.3, method={"warmup": 1})


def _weights(trainer):
    return torch.load(trainer.last, weights_only=False)["model"].float().state_dict()


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.slow
def test_share_0_trains_bitwise_as_ultralytics_alone(data, tmp_path):
    ours = classes.train_here(data, tmp_path / "ours", share=0, epochs=3)
    settings = {**helpers.QUICK, "imgsz": 32, "epochs": 3, "model": str(tmp_path / "small-cls.yaml"), "data": str(data)}
    stock = ClassificationTrainer(overrides={**settings, "save_dir": str(tmp_path / "stock")})
    stock.train()
    assert _same(_weights(ours), _weights(stock))


@pytest.mark.slow
def test_with_a_budget_of_updates_the_kept_images_are_trained_on_for_longer(data, tmp_path):
    method = {"warmup": 2, "joint": 0.2, "budget": "updates"}
    run = classes.train_here(data, tmp_path / "run", share=0.5, epochs=5, method=method)
    images = [row["prune/images"] for row in helpers.results(tmp_path / "run")]
    assert images == [30] * 3 + [15] * 4
    assert run.visits.count.sum() == 5 * 30


@pytest.mark.slow
def test_warm_up_trains_bitwise_as_ultralytics_alone(data, tmp_path):
    settings = {"epochs": 5, "method": {"warmup": 3, "joint": 0.2}}
    seen = {}
    for share in (0, 0.3):
        folder = tmp_path / str(share)
        note = lambda trainer, share=share: seen.setdefault(  # noqa: E731
            (share, trainer.epoch), {k: v.clone() for k, v in trainer.model.state_dict().items()}
        )
        classes.train_here(data, folder, share=share, callbacks={"on_train_epoch_end": note}, **settings)
    assert _same(seen[0, 2], seen[0.3, 2])
    assert not _same(seen[0, 3], seen[0.3, 3])


def test_the_run_folder_holds_scores_lists_and_a_set_of_links(finished):
    folder = Path(finished.save_dir)
    scores = pl.read_csv(folder / "scores.csv")
    assert len(scores) == 30
    assert {*CHANNELS, "weight", "logit", "signal", "class"} <= set(scores.columns)
    assert "boxes" not in scores.columns
    assert scores["class"].to_list() == [
        ("cross", "disc", "never", "square").index(Path(p).parent.name) for p in scores["path"]
    ]
    assert np.isfinite(scores.select(CHANNELS).to_numpy()).all()
    kept = helpers.read_list(folder / "kept.txt")
    assert len(kept) == 21
    links = sorted((folder / "pruned" / "train").rglob("*.png"))
    assert sorted(os.path.realpath(link) for link in links) == sorted(map(os.path.realpath, kept))
    assert (folder / "pruned" / "train" / "never").is_dir()
    assert helpers.stages(folder) == [1, 2, 3, 3]
    assert "prune/probability" in helpers.results(folder)[0]


def test_the_manifest_says_what_the_set_is(finished):
    manifest = json.loads((Path(finished.save_dir) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["rest"]["task"] == "classify"
    assert manifest["empty_classes"] == ["never"]
    assert manifest["contradictions"] == []
    assert manifest["best_validation"]["metrics/accuracy_top1"] == pytest.approx(
        finished.metrics["metrics/accuracy_top1"]
    )


@pytest.mark.slow
def test_the_checkpoint_loads_and_trains_on_in_plain_ultralytics_on_the_pruned_set(finished, tmp_path):
    run = Path(finished.save_dir)
    code = (
        f"from ultralytics import YOLO; model = YOLO({str(run / 'weights' / 'best.pt')!r}); "
        f"model.train(data={str(run / 'pruned')!r}, epochs=1, imgsz=32, batch=8, device='cpu', plots=False); "
        "import sys; assert 'yolo_adapruner' not in sys.modules; print('names', sorted(model.names.values()))"
    )
    done = helpers.python("-c", code, cwd=tmp_path)
    assert "names ['cross', 'disc', 'never', 'square']" in done.stdout, done.stderr


def test_readings_go_to_the_image_they_were_made_of(data, tmp_path):
    """One image is black: whatever the shuffle, the same path has its own reading."""
    own = tmp_path / "set"
    shutil.copytree(data, own)
    odd = sorted((own / "train").rglob("*.png"))[7]
    cv2.imwrite(str(odd), np.zeros((32, 32, 3), np.uint8))
    noted = {}

    def note(trainer):
        if trainer._tap.answer is not None:
            black = trainer._pictures.flatten(1).amax(1) == 0
            for i in np.flatnonzero(black.numpy()):
                noted[trainer.epoch] = trainer.paths[trainer._batch_ids[i]]

    class Watched(_trainer()):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            self._pictures = batch["img"]
            return batch

        def _observe_batch(self, pruner):
            note(self)
            super()._observe_batch(pruner)

    quiet = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "auto_augment": "", "erasing": 0.0}
    classes.train_here(own, tmp_path / "run", share=0.3, method={"warmup": 1}, trainer=Watched, **quiet)
    assert noted == {0: str(odd), 1: str(odd)}


def _trainer():
    from yolo_adapruner import AdaPruneClassificationTrainer

    return AdaPruneClassificationTrainer


def _stop_after(epoch):
    def stop(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2], ids=["warm-up", "joint", "fine-tune"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(data, tmp_path, monkeypatch, after):
    monkeypatch.chdir(tmp_path)
    classes.write_architecture(tmp_path / "small-cls.yaml")
    config = {"model": "small-cls.yaml", "data": str(data), "epochs": 4, "imgsz": 32, "batch": 8, "device": "cpu"}
    config |= {"prune": {"share": 0.3, "warmup": 1, "joint": 0.25}, "train": {"plots": False}}
    whole = engine.train(load({**config, "name": "whole"})).folder
    kind = _trainer()
    saved = kind.save_model

    def cut_off(self):
        saved(self)
        if self.epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "save_model", cut_off)
        with pytest.raises(KeyboardInterrupt):
            engine.train(load({**config, "name": "cut"}))
    again = engine.resume("runs/adaprune/cut").folder
    assert (whole / "scores.csv").read_bytes() == (again / "scores.csv").read_bytes()
    ends = (torch.load(folder / "weights" / "last.pt", weights_only=False)["model"] for folder in (whole, again))
    assert _same(*(model.float().state_dict() for model in ends))


def test_another_share_can_be_cut_by_the_command_line(finished, capsys):
    folder = Path(finished.save_dir)
    assert cli.main(["export", str(folder), "--prune", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "prune-0.5" / "pruned")
    assert len(list((folder / "prune-0.5" / "pruned" / "train").rglob("*.png"))) == 15


# ---- bad input


def _changed(data, tmp_path, change):
    root = tmp_path / "set"
    shutil.copytree(data, root)
    change(root)
    return root


def _no_validation(root):
    shutil.rmtree(root / "val")


def _foreign_class(root):
    (root / "val" / "star").mkdir()


def _no_train(root):
    (root / "train").rename(root / "training")


def _nothing_to_train_on(root):
    for file in (root / "train").rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_validation, "Expected images to validate on in "),
        (_foreign_class, "has star as well: add an empty folder of that name to train, or take it out."),
        (_no_train, "but there is no train: split the set once"),
        (_nothing_to_train_on, "no training images found"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused_in_one_line(data, tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    root = _changed(data, tmp_path, change)
    before = sorted(p.name for p in tmp_path.iterdir())
    classes.write_architecture(tmp_path / "small-cls.yaml")
    (tmp_path / "run.yaml").write_text(json.dumps({"model": "small-cls.yaml", "data": str(root)}), encoding="utf-8")
    assert cli.main(["train", "run.yaml", "imgsz=32", "device=cpu"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("yolo-adapruner: ")
    assert words in line
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "run.yaml", "small-cls.yaml"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere", "digits-classes, which comes with this package"),
        ("imagenet", "but there is no imagenet"),  # Ultralytics would run a script to fetch it
        ("set/data.yaml", "is a file: name the folder, or take a detection model"),
    ],
)
def test_data_that_is_no_folder_is_refused_in_one_line(home, capsys, given, words):
    classes.write_architecture(home / "small-cls.yaml")
    assert cli.main(["train", "run.yaml", "--data", given, "--model", "small-cls.yaml", "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_ultralytics_own_classifier_trains_with_a_mask(data, tmp_path):
    trainer = classes.train_here(data, tmp_path / "run", model="yolo11n-cls.yaml", imgsz=64, epochs=3, share=0.3)
    assert len(helpers.read_list(tmp_path / "run" / "kept.txt")) == 21
    assert YOLO(trainer.best).task == "classify"


def test_single_cls_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="single_cls=True"):
        classes.train_here(data, tmp_path / "run", single_cls=True)


def test_a_detector_is_no_model_for_the_classifiers_trainer(data, tmp_path):
    model = helpers.write_architecture(tmp_path / "small.yaml")
    with pytest.raises(
        ConfigError, match=r"Expected a model for classify, but .* is for detect: train it with AdaPrune"
    ):
        classes.train_here(data, tmp_path / "run", model=model)


@pytest.fixture(scope="module")
def odd(data, tmp_path_factory):
    """A finished run of a set with grey and RGBA images, an unreadable one, one in two classes, none of disc in val."""
    root = tmp_path_factory.mktemp("odd") / "set"
    shutil.copytree(data, root)
    cross, disc, square = (sorted((root / "train" / name).iterdir()) for name in classes.NAMES)
    cv2.imwrite(str(cross[0]), np.full((32, 32), 90, np.uint8))
    cv2.imwrite(str(cross[1]), np.full((40, 24, 4), 90, np.uint8))
    disc[0].write_bytes(b"no image")
    shutil.copyfile(square[0], root / "train" / "disc" / "again.png")
    shutil.rmtree(root / "val" / "disc")
    trainer = classes.train_here(root, root.parent / "run", share=0.3, method={"warmup": 1})
    return root, json.loads((Path(trainer.save_dir) / "manifest.json").read_text(encoding="utf-8")), trainer


def test_grey_and_transparent_images_are_trained_on(odd):
    root, _, trainer = odd
    scores = pl.read_csv(Path(trainer.save_dir) / "scores.csv")
    seen = dict(zip(scores["path"], scores["seen"], strict=True))
    for name in ("000.png", "003.png"):
        assert seen[str(root / "train" / "cross" / name)] > 0


def test_an_unreadable_image_takes_no_part_and_is_listed(odd):
    _, manifest, trainer = odd
    (left_out,) = manifest["skipped"]
    assert Path(left_out).read_bytes() == b"no image"
    assert left_out not in trainer.paths
    assert len(trainer.paths) == 30


def test_an_image_under_two_classes_is_listed_with_both_files(odd):
    _, manifest, _ = odd
    (pair,) = manifest["contradictions"]
    assert [Path(p).parent.name for p in pair] == ["disc", "square"]
    assert len({hashlib.sha256(Path(p).read_bytes()).digest() for p in pair}) == 1


def test_what_is_odd_about_a_set_is_said_in_a_line_each(odd, monkeypatch):
    _, _, trainer = odd
    said = []
    monkeypatch.setattr(classset.LOGGER, "warning", said.append)
    classset.look_over(trainer.train_loader.dataset, {**trainer.data["names"], 3: "never"})
    assert said[0] == "1 of 4 classes have no training image, the first: never"
    assert all("\n" not in line for line in said)


def test_resume_refuses_another_list_of_images(data, tmp_path):
    root = _changed(data, tmp_path, lambda root: None)
    with pytest.raises(KeyboardInterrupt):
        classes.train_here(root, tmp_path / "run", share=0.1, callbacks={"on_fit_epoch_end": _stop_after(1)})
    gone = sorted((root / "train").rglob("*.png"))[0]
    gone.unlink()
    with pytest.raises(RunError, match=f"1 gone \\(first {gone}\\)"):
        _trainer().configured(PruneConfig(share=0.1, **helpers.LENGTHS))(
            overrides={"resume": str(tmp_path / "run" / "weights" / "adaprune.pt"), "save_dir": str(tmp_path / "run")}
        ).train()


def test_the_embedded_model_is_a_resnet18_for_small_images_and_loads_by_name(tmp_path):
    from torchvision.models import resnet18

    from yolo_adapruner import resources

    model = YOLO(str(resources.find("cfg/models", "resnet18-32px"))).model.eval()
    body = model.model[:-1]
    reference = resnet18()
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = reference.avgpool = reference.fc = torch.nn.Identity()
    names = reference.state_dict()
    reference.load_state_dict(dict(zip(names, body.state_dict().values(), strict=True)))
    picture = torch.rand(2, 3, 32, 32)
    seen = []
    model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(picture)
    torch.testing.assert_close(seen[0].flatten(1), reference.eval()(picture))
    assert seen[0].shape == (2, 512, 4, 4)
    assert sum(p.numel() for p in body.parameters()) == 11_168_832


def test_the_narrow_model_differs_in_its_width_alone():
    from yolo_adapruner import resources

    wide, narrow = (
        resources.find("cfg/models", name).read_text(encoding="utf-8").split("nc: 10\n")[1].splitlines()
        for name in ("resnet18-32px", "resnet18-32px-w16")
    )
    differing = [(a, b) for a, b in zip(wide, narrow, strict=True) if a != b]
    assert [(a.split(" #")[0], b.split(" #")[0]) for a, b in differing] == [
        ("width_multiple: 1.0", "width_multiple: 0.25")
    ]


def test_a_class_known_to_val_alone_is_refused_from_python_too(data, tmp_path):
    root = _changed(data, tmp_path, _foreign_class)
    with pytest.raises(DataError, match="has star as well"):
        classset.load(str(root))
