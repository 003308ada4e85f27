"""One run from end to end: what it leaves behind, what each stage reads, and that plain Ultralytics can use it."""

import csv
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from tests import helpers
from tests.helpers import QUICK, read_list, results, stages, train_here, training_images
from yolo_adapruner import AdaPruneTrainer
from yolo_adapruner.data import npz
from yolo_adapruner.engine.channels import CHANNELS
from yolo_adapruner.errors import ConfigError

pytestmark = pytest.mark.slow

LEFT_BEHIND = (
    "adaprune.yaml",
    "args.yaml",
    "dropped.txt",
    "kept.txt",
    "manifest.json",
    "mask.npz",
    "pruned.yaml",
    "results.csv",
    "scores.csv",
    "scores.parquet",
    "trace.npz",
    "weights/best.pt",
    "weights/last.pt",
)
WRITTEN_AGAIN = ("dropped.txt", "kept.txt", "pruned.yaml", "scores.csv", "scores.parquet")

# Stands between plain Ultralytics and this package: importing it fails, as where it is not installed.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "yolo_adapruner":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a blank and letters outside ASCII in its path, as users have them."""
    return tmp_path_factory.mktemp("räume") / "ein Satz – наборы"


@pytest.fixture(scope="module")
def data(home):
    """24 training images, two of them without boxes."""
    return helpers.build_set(home / "set")


@pytest.fixture(scope="module")
def cli_run(home, data):
    """One run through the command line as a user starts it: yolov3-tiny from a run config in the working directory."""
    (home / "läufe.yaml").write_text("model: yolov3-tiny.yaml\ndata: set/data.yaml\n", encoding="utf-8")
    # Without floors, so that the scores alone say who goes; what floors hold against them: `test_floors_run`.
    settings = {**{key: value for key, value in QUICK.items() if key != "verbose"}, "prune.floor": 0}
    settings |= {f"prune.{key}": value for key, value in helpers.LENGTHS.items()}
    process = helpers.start_cli(
        "train", "läufe.yaml", "--prune", "0.25", "--name", "erster", *helpers.cli_words(settings), cwd=home
    )
    out, err = process.communicate()
    assert process.returncode == 0, f"{out}\n{err}"
    return home / "runs" / "adaprune" / "erster", out, err


@pytest.fixture(scope="module")
def run(cli_run):
    return cli_run[0]


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    """What plain Ultralytics makes of the run without this package: predictions, and the images it then trains on."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code = f"""{BLOCKED}
import json
from ultralytics import YOLO
try:
    import yolo_adapruner
except ModuleNotFoundError:
    blocked = True
model = YOLO({str(run / "weights" / "best.pt")!r})
image = {str(training_images(run.parents[2] / "set" / "data.yaml")[0])!r}
names = model.predict(image, imgsz=64, verbose=False)[0].names
seen = []
def look(trainer):
    seen.extend(trainer.train_loader.dataset.im_files)
small = YOLO({str(helpers.write_architecture(elsewhere / "small.yaml"))!r})
small.add_callback("on_train_start", look)
settings = dict(epochs=1, imgsz=64, batch=8, device="cpu", plots=False, project={str(elsewhere)!r})
small.train(data={str(run / "pruned.yaml")!r}, **settings)
print("\\n" + json.dumps({{"blocked": blocked, "names": names, "seen": seen}}))
"""
    done = helpers.python("-c", code, cwd=elsewhere)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


# What the run leaves behind


def test_the_command_line_says_what_was_dropped_and_nothing_on_stderr(cli_run):
    _, out, err = cli_run
    assert "kept 18 of 24 training images, dropped 6 (25.0%)" in out
    assert err == ""


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_the_run_folder_holds_what_it_should(run, name):
    assert (run / name).is_file()
    assert (run / name).stat().st_size > 0


def test_nothing_unfinished_is_left_behind(run):
    assert [path.name for path in run.rglob("*.tmp")] == []


def test_exactly_the_asked_share_is_dropped_and_the_lists_are_the_set(run, data):
    kept, dropped = read_list(run / "kept.txt"), read_list(run / "dropped.txt")
    assert len(dropped) == round(0.25 * 24)
    assert sorted(kept + dropped) == [str(path) for path in training_images(data)]
    assert kept == sorted(kept)
    assert all(Path(path).is_file() for path in kept)


def test_results_has_the_controllers_columns_and_the_stages_in_order(run):
    rows = results(run)
    names = {"prune/stage", "prune/kept", "prune/target", "prune/s", "prune/lambda"}
    assert names <= rows[0].keys()
    assert stages(run) == [1, 1, 2, 3]
    assert [row["prune/kept"] for row in rows] == [1, 1, 0.75, 0.75]
    assert [row["prune/lambda"] > 0 for row in rows] == [False, False, True, True]


def test_scores_tell_of_every_image_and_agree_with_the_lists(run, data):
    with (run / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(path) for path in training_images(data)]
    assert [row["path"] for row in rows if row["kept"] == "true"] == read_list(run / "kept.txt")
    boxes = [len(helpers.label_of(path).read_text().splitlines()) for path in training_images(data)]
    assert [int(row["boxes"]) for row in rows] == boxes
    assert {row["epochs_seen"] for row in rows} == {"1"}
    assert {row["seen"] for row in rows} == {"1.0"}
    for row in rows:
        values = {name: float(row[name]) for name in CHANNELS}
        assert math.isfinite(values["missing"])
        assert math.isfinite(values["localisation"]) <= (int(row["boxes"]) > 0)
        assert math.isfinite(float(row["logit"]))
        assert 0 <= float(row["weight"]) <= 1
    logits = {kept: [float(row["logit"]) for row in rows if row["kept"] == kept] for kept in ("true", "false")}
    assert max(logits["false"]) <= min(logits["true"])


def test_parquet_and_mask_hold_the_same_as_the_csv(run):
    table, other = pl.read_csv(run / "scores.csv"), pl.read_parquet(run / "scores.parquet")
    assert table.columns == other.columns
    assert table["path"].to_list() == other["path"].to_list()
    with np.load(run / "mask.npz", allow_pickle=False) as mask:
        assert npz.texts(mask, "paths") == other["path"].to_list()
        for name in ("logit", "kept", *CHANNELS):
            np.testing.assert_array_equal(mask[name], other[name].to_numpy())


def test_the_manifest_says_what_was_run(run, data):
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["images"] | {"list_sha256": ""} == {"total": 24, "kept": 18, "dropped": 6, "list_sha256": ""}
    assert manifest["skipped"] == []
    assert manifest["prune"]["share"] == 0.25
    assert manifest["seed"] == 0
    assert manifest["data"]["source"] == str(data)
    assert manifest["versions"].keys() >= {"yolo-adapruner", "ultralytics", "torch"}
    assert "metrics/mAP50-95(B)" in manifest["best_validation"]


def test_the_saved_run_config_does_not_depend_on_the_working_directory(run, data):
    config = yaml.safe_load((run / "adaprune.yaml").read_text(encoding="utf-8"))
    assert config["data"] == str(data)
    assert config["model"] == "yolov3-tiny.yaml"
    assert config["prune"]["share"] == 0.25


def test_the_pruned_data_file_keeps_splits_and_names(run, data):
    pruned, source = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (run / "pruned.yaml", data))
    assert pruned["train"] == str(run / "kept.txt")
    assert pruned["names"] == source["names"]
    assert Path(pruned["path"], pruned["val"]) == data.parent / "images" / "val"


# Plain Ultralytics


def test_best_pt_predicts_where_this_package_cannot_be_imported(plain):
    assert plain["blocked"]
    assert list(plain["names"].values()) == list(helpers.NAMES)


def test_plain_ultralytics_trains_on_exactly_the_kept_images_from_another_folder(plain, run):
    assert plain["seen"] == read_list(run / "kept.txt")


# Writing files again


def test_export_writes_deleted_files_again_byte_for_byte(run, tmp_path):
    from yolo_adapruner.cli import main

    copy = shutil.copytree(run, tmp_path / "run")
    (first := tmp_path / "first").mkdir()
    main(["export", str(copy)])  # the copy's own path stands in pruned.yaml
    for name in WRITTEN_AGAIN:
        (copy / name).rename(first / name)
    assert main(["export", str(copy)]) == 0
    for name in WRITTEN_AGAIN:
        assert (copy / name).read_bytes() == (first / name).read_bytes(), name
        if name != "pruned.yaml":
            assert (copy / name).read_bytes() == (run / name).read_bytes(), name


def test_export_cuts_other_shares_from_the_same_scores(run, tmp_path, capsys):
    from yolo_adapruner.cli import main

    copy = shutil.copytree(run, tmp_path / "run")
    assert main(["export", str(copy), "--prune", "0.05", "0.5"]) == 0
    own, few, half = capsys.readouterr().out.splitlines()
    assert [Path(own), Path(few), Path(half)] == [
        copy / "pruned.yaml",
        copy / "prune-0.05" / "pruned.yaml",
        copy / "prune-0.5" / "pruned.yaml",
    ]
    dropped = {share: set(read_list(Path(file).parent / "dropped.txt")) for share, file in ((5, few), (50, half))}
    assert {share: len(paths) for share, paths in dropped.items()} == {5: 1, 50: 12}
    assert dropped[5] < set(read_list(run / "dropped.txt")) < dropped[50]
    assert "Extrapolated" in Path(half).read_text(encoding="utf-8").splitlines()[0]
    assert "Extrapolated" not in Path(own).read_text(encoding="utf-8").splitlines()[0]


# What is read in each stage


def read_by_stage():
    """Callbacks that note which images each epoch's batches hold, and the list they note it in."""
    epochs = []

    def begin(trainer):
        epochs.append((trainer.pruner.stage, []))

    def note(trainer):
        epochs[-1][1].extend(trainer.paths[i] for i in trainer._batch_ids)

    return epochs, {"on_train_epoch_start": begin, "on_train_batch_end": note}


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
def test_in_the_fine_tune_stage_dropped_images_are_not_read(tmp_path, cache):
    """They are deleted as that stage begins, so reading one would end the run."""
    data = helpers.build_set(tmp_path / "set")
    epochs, callbacks = read_by_stage()
    note_begin = callbacks["on_train_epoch_start"]
    gone = []

    def begin(trainer):
        note_begin(trainer)
        if trainer.pruner.kept is not None and not gone:
            for path, kept in zip(trainer.paths, trainer.pruner.kept, strict=True):
                if not kept:
                    Path(path).unlink()
                    Path(path).with_suffix(".npy").unlink(missing_ok=True)
                    gone.append(path)

    trainer = train_here(
        data, tmp_path / "run", epochs=5, cache=cache, callbacks={**callbacks, "on_train_epoch_start": begin}
    )
    assert gone == read_list(tmp_path / "run" / "dropped.txt")
    assert [int(stage) for stage, _ in epochs] == [1, 1, 2, 2, 3]
    for stage, seen in epochs:
        expected = read_list(tmp_path / "run" / "kept.txt") if stage == 3 else trainer.paths
        assert sorted(seen) == expected


def test_images_are_mixed_by_the_recipe_in_every_stage(tmp_path, monkeypatch):
    from ultralytics.data import augment

    data = helpers.build_set(tmp_path / "set")
    mixed = {}
    now = []
    for name in ("Mosaic", "MixUp", "CutMix"):
        kind = getattr(augment, name)
        original = kind.get_indexes

        def count(self, _name=name, _original=original):
            mixed[now[-1], _name] = mixed.get((now[-1], _name), 0) + 1
            return _original(self)

        monkeypatch.setattr(kind, "get_indexes", count)
    train_here(
        data,
        tmp_path / "run",
        epochs=6,
        mosaic=1.0,
        mixup=0.5,
        cutmix=0.5,
        close_mosaic=0,
        callbacks={"on_train_epoch_start": lambda trainer: now.append(int(trainer.pruner.stage))},
    )
    assert now == [1, 1, 1, 2, 2, 3]
    assert set(mixed) == {(stage, name) for stage in (1, 2, 3) for name in ("Mosaic", "MixUp", "CutMix")}
    assert mixed[2, "Mosaic"] >= 2 * 24
    assert mixed[3, "Mosaic"] >= 18


def test_mosaic_tiles_come_from_kept_images_alone(tmp_path, monkeypatch):
    from ultralytics.data.dataset import YOLODataset

    data = helpers.build_set(tmp_path / "set")
    read, now = {}, []
    original = YOLODataset.load_image

    def load(self, i, *args, **kwargs):
        if self.augment and now:
            read.setdefault(now[-1], set()).add(self.im_files[i])
        return original(self, i, *args, **kwargs)

    monkeypatch.setattr(YOLODataset, "load_image", load)
    train_here(
        data,
        tmp_path / "run",
        epochs=6,
        mosaic=1.0,
        close_mosaic=0,
        callbacks={"on_train_epoch_start": lambda trainer: now.append(int(trainer.pruner.stage))},
    )
    assert sorted(read[3]) == read_list(tmp_path / "run" / "kept.txt")
    assert len(read[1]) == len(read[2]) == 24


@pytest.mark.parametrize(
    ("budget", "close", "mixed"),
    [
        ("epochs", 1, [True, True, True, True, True, False]),
        ("updates", 1, [True] * 8 + [False]),  # of as many epochs as there are now
        ("updates", 3, [True] * 6 + [False] * 3),  # closes as the longer stage begins: not yet
        ("updates", 4, [True, True] + [False] * 7),  # had closed before
    ],
)
def test_mosaic_closed_at_the_end_stays_closed_in_the_fine_tune_stage(tmp_path, monkeypatch, budget, close, mixed):
    from ultralytics.data.augment import Mosaic

    data = helpers.build_set(tmp_path / "set")
    epochs = []
    original = Mosaic.get_indexes

    def count(self):
        epochs[-1] += 1
        return original(self)

    monkeypatch.setattr(Mosaic, "get_indexes", count)
    train_here(
        data,
        tmp_path / "run",
        epochs=6,
        mosaic=1.0,
        close_mosaic=close,
        share=0.5,
        method={"warmup": 1, "joint": 0.3, "budget": budget},
        callbacks={"on_train_epoch_start": lambda _: epochs.append(0)},
    )
    assert stages(tmp_path / "run") == [1, 2, 2, *[3] * (len(mixed) - 3)]
    assert [count > 0 for count in epochs] == mixed


def make_half_wide(data):
    """Make every second training image twice as wide as high."""
    for image in training_images(data)[::2]:
        helpers.cv2.imwrite(str(image), helpers.cv2.resize(helpers.cv2.imread(str(image)), (96, 48)))


def test_rect_training_prunes_as_well(tmp_path):
    """Rect sorts the images by shape, and the kept part has other batches than the whole."""
    data = helpers.build_set(tmp_path / "set")
    make_half_wide(data)
    epochs, callbacks = read_by_stage()
    trainer = train_here(data, tmp_path / "run", epochs=5, rect=True, callbacks=callbacks)
    assert [int(stage) for stage, _ in epochs] == [1, 1, 2, 2, 3]
    assert sorted(epochs[0][1]) == trainer.paths
    assert epochs[0][1] != trainer.paths
    assert sorted(epochs[-1][1]) == read_list(tmp_path / "run" / "kept.txt")


def test_batches_of_a_rect_part_are_as_large_as_their_images_need(tmp_path):
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset

    from yolo_adapruner.engine.dataset import subset
    from yolo_adapruner.engine.splits import load_data

    file = helpers.build_set(tmp_path / "set")
    make_half_wide(file)
    args = get_cfg(overrides={"imgsz": 64, "rect": True})
    data = load_data(str(file))
    full = build_yolo_dataset(args, data["train"], 4, data, mode="train", stride=32)
    part = subset(full, set(full.im_files[2:]), args)  # ten wide ones, twelve square ones
    assert part.im_files == full.im_files[2:]
    assert [part.batch_shapes[i].tolist() for i in part.batch] == [[32, 64]] * 8 + [[64, 64]] * 14
    assert [part[i]["img"].shape[1:] for i in (0, 9, 21)] == [(32, 64), (64, 64), (64, 64)]
    assert (len(full), len(part)) == (24, 22)


def test_a_joint_stage_over_the_whole_run_leaves_no_fine_tune_stage(data, tmp_path):
    train_here(data, tmp_path / "run", method={"joint": 1.0})
    assert stages(tmp_path / "run") == [2, 2, 2, 2]
    assert len(read_list(tmp_path / "run" / "dropped.txt")) == 6


@pytest.mark.parametrize(("epoch", "dropped"), [(1, 0), (3, 6)], ids=["in the warm-up", "in the joint stage"])
def test_a_run_stopped_from_outside_drops_the_asked_share_once_it_has_judged(data, tmp_path, epoch, dropped):
    def stop(trainer):
        trainer.stop = trainer.epoch + 1 == epoch

    train_here(data, tmp_path / "run", epochs=6, method={"warmup": 2}, callbacks={"on_train_epoch_end": stop})
    assert len(results(tmp_path / "run")) == epoch
    assert len(read_list(tmp_path / "run" / "dropped.txt")) == dropped


# From Python


def test_prune_returns_the_finished_run(data, tmp_path, monkeypatch):
    from yolo_adapruner import PruneConfig, prune

    monkeypatch.chdir(tmp_path)
    helpers.write_architecture(tmp_path / "small.yaml")
    result = prune(
        {"model": "small.yaml", "data": data},
        config=PruneConfig(warmup=1),
        prune=0.5,
        name="von python",
        project=tmp_path / "läufe",
        **QUICK,
    )
    assert result.folder == tmp_path / "läufe" / "von python"
    assert (result.total, result.kept) == (24, 12)
    assert result.weights.is_file()
    assert result.data == result.folder / "pruned.yaml"
    assert len(read_list(result.folder / "dropped.txt")) == 12
    assert result.updates == 3 * 2 + 2 * 2
    assert stages(result.folder) == [1, 2, 3, 3]
    assert 0 <= result.map50_95 <= 1
    assert result.seconds > 0


def test_ultralytics_own_interface_takes_the_trainer(data, tmp_path, monkeypatch):
    from ultralytics import YOLO

    from yolo_adapruner import AdaPruneTrainer, PruneConfig

    monkeypatch.chdir(tmp_path)
    model = YOLO("yolov3-tiny.yaml")
    metrics = model.train(
        trainer=AdaPruneTrainer.configured(PruneConfig(share=0.2)), data=str(data), project=str(tmp_path), **QUICK
    )
    assert 0 <= metrics.box.map <= 1
    folder = Path(model.trainer.save_dir)
    assert folder.parent == tmp_path
    assert len(read_list(folder / "dropped.txt")) == round(0.2 * 24)
    assert stages(folder) == [1, 1, 2, 3]
    assert model.predict(str(training_images(data)[0]), imgsz=64, verbose=False)[0].names == dict(
        enumerate(helpers.NAMES)
    )


def test_a_model_laid_out_channels_last_learns_alike_and_loads_without_us(data, tmp_path, monkeypatch):
    from ultralytics import YOLO

    plain, laid = tmp_path / "plain", tmp_path / "laid"
    train_here(data, plain, share=0.2)
    monkeypatch.setenv("YOLO_ADAPRUNER_CHANNELS_LAST", "1")
    trainer = train_here(data, laid, share=0.2)
    losses = [[float(results(run)[0][f"train/{part}_loss"]) for part in ("box", "cls", "dfl")] for run in (plain, laid)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # rounded in another order, otherwise the same
    first = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert not first.weight.is_contiguous()
    found = YOLO(laid / "weights/best.pt").predict(str(training_images(data)[0]), imgsz=64, verbose=False)
    assert found[0].names == dict(enumerate(helpers.NAMES))
    assert "channels last" in json.loads((laid / "manifest.json").read_text())["hardware"]
    assert "channels last" not in json.loads((plain / "manifest.json").read_text())["hardware"]


def test_ultralytics_own_interface_takes_the_class_as_it_is(data, tmp_path, monkeypatch):
    """On a checkpoint, and at the default share."""
    from ultralytics import YOLO

    from yolo_adapruner import AdaPruneTrainer

    monkeypatch.chdir(tmp_path)
    small = YOLO(str(helpers.write_architecture(tmp_path / "small.yaml")))
    small.train(trainer=AdaPruneTrainer, data=str(data), project=str(tmp_path), name="a", **QUICK)
    assert len(read_list(tmp_path / "a" / "dropped.txt")) == round(0.1 * 24)


def stock_run(data, folder, **settings):
    """Train with Ultralytics' own trainer, on one thread as well."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    trainer = DetectionTrainer(overrides={**QUICK, **settings, "data": str(data), "save_dir": str(folder)})
    torch.set_num_threads(1)
    trainer.train()


def test_prune_0_is_stock_training_bit_for_bit(data, tmp_path):
    model = helpers.write_architecture(tmp_path / "small.yaml")
    settings = {"epochs": 3, "mosaic": 0.5, "close_mosaic": 1, "model": str(model)}
    ours = train_here(data, tmp_path / "ours", share=0, **settings)
    stock_run(data, tmp_path / "stock", **settings)
    for name in ("best.pt", "last.pt"):
        one, other = (
            torch.load(tmp_path / side / "weights" / name, weights_only=False)["model"].state_dict()
            for side in ("ours", "stock")
        )
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert ours.pruner is None
    assert read_list(tmp_path / "ours" / "dropped.txt") == []
    assert len(read_list(tmp_path / "ours" / "kept.txt")) == 24


@pytest.mark.parametrize("architecture", helpers.gate_runs(["small", "yolo26n.yaml"], 0))
def test_the_warm_up_is_stock_training(data, tmp_path, architecture):
    """The same losses and the same validation, epoch for epoch, until the joint stage begins."""
    model = str(helpers.write_architecture(tmp_path / "small.yaml")) if architecture == "small" else architecture
    train_here(data, tmp_path / "ours", model=model)
    stock_run(data, tmp_path / "stock", model=model)
    ours, stock = results(tmp_path / "ours"), results(tmp_path / "stock")
    names = [name for name in stock[0] if name != "time"]
    same = [all(row[name] == other[name] for name in names) for row, other in zip(ours, stock, strict=True)]
    assert stages(tmp_path / "ours") == [1, 1, 2, 3]
    assert same == [True, True, False, False]


def test_prune_0_says_that_nothing_will_be_pruned(data, tmp_path, monkeypatch, capsys, caplog):
    from yolo_adapruner.cli import main

    monkeypatch.chdir(tmp_path)
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text(f"model: small.yaml\ndata: '{data}'\n", encoding="utf-8")
    words = helpers.cli_words({**QUICK, "epochs": 3})
    assert main(["train", "run.yaml", "--prune", "0", "--name", "r", *words]) == 0
    out = capsys.readouterr().out
    assert "nothing will be pruned" in caplog.text
    assert "kept 24 of 24 training images, dropped 0 (0.0%)" in out
    assert main(["export", "runs/adaprune/r"]) == 0
    assert main(["export", "runs/adaprune/r", "--prune", "0.1"]) == 2
    assert "run it with a share" in capsys.readouterr().err


def test_trained_as_one_class_the_pruned_data_file_keeps_the_classes_that_its_labels_have(data, tmp_path):
    from ultralytics.cfg import get_cfg

    from yolo_adapruner.engine import labelcache
    from yolo_adapruner.engine.splits import load_data

    trainer = train_here(data, tmp_path / "run", epochs=4, single_cls=True)
    assert trainer.data["names"] == {0: "item"}
    pruned = load_data(str(tmp_path / "run" / "pruned.yaml"))
    assert pruned["names"] == load_data(str(data))["names"]
    read = labelcache.build(get_cfg(overrides={"task": "detect"}), pruned["train"], 4, pruned)
    assert len(read) == 18  # Ultralytics passes over an image with a class that the file does not name


def test_a_last_batch_of_one_at_the_smallest_of_several_sizes_is_refused_before_anything_is_trained(data, tmp_path):
    """Seventeen are left, and batch normalisation has one value of an image of 32 pixels."""
    settings = {"share": 0.29, "batch": 4, "imgsz": 64}
    with pytest.raises(ConfigError, match=r"the last of the 17 images .* stands alone with batch 4"):
        train_here(data, tmp_path / "run", multi_scale=0.5, **settings)
    train_here(data, tmp_path / "other", multi_scale=0.0, epochs=4, **settings)


def test_patience_counts_from_the_fine_tune_stage_on(data, tmp_path):
    class Falling(AdaPruneTrainer):
        def validate(self):
            metrics, _ = super().validate()
            return metrics, 1 / (1 + self.epoch)

    method = {"warmup": 2, "joint": 0.25, "validate_all": True}
    train_here(data, tmp_path / "run", trainer=Falling, epochs=8, patience=1, method=method)
    assert stages(tmp_path / "run") == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("cos_lr", [False, True])
def test_with_a_budget_of_updates_what_pruning_spares_is_spent_on_the_kept_images(data, tmp_path, caplog, cos_lr):
    method = {"warmup": 2, "joint": 0.25, "budget": "updates"}
    train_here(data, tmp_path / "run", share=0.5, epochs=8, cos_lr=cos_lr, warmup_epochs=0, method=method)
    rows = results(tmp_path / "run")
    # two epochs of warm-up and two joint ones on 24 images: eight of twelve make up for the other four
    assert [row["prune/images"] for row in rows] == [24] * 4 + [12] * 8
    assert "12 epochs instead of 8, for as many updates as on all images" in caplog.text
    train_here(data, tmp_path / "stock", share=0, epochs=8, cos_lr=cos_lr, warmup_epochs=0)
    stock = [row["lr/pg0"] for row in results(tmp_path / "stock")]
    rates = [row["lr/pg0"] for row in rows]
    # by what has been trained on: two short epochs take it as far as a long one
    assert rates[:4] + rates[4::2] == pytest.approx(stock)
    assert all(before > after for before, after in itertools.pairwise(rates))
    visits = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["visits"]
    assert visits == {"images": 8 * 24, "of": 8 * 24, "epochs": 12}


def test_a_share_that_rounds_to_no_image_says_so(data, tmp_path, caplog):
    train_here(data, tmp_path / "run", share=0.02)
    assert "rounds to none: nothing will be pruned" in caplog.text
    assert read_list(tmp_path / "run" / "dropped.txt") == []


def test_a_checkpoint_without_warm_up_starts_in_the_joint_stage(data, tmp_path):
    train_here(data, tmp_path / "first", share=0, epochs=3)
    trainer = train_here(data, tmp_path / "run", model=tmp_path / "first" / "weights" / "best.pt", method={"warmup": 0})
    assert stages(tmp_path / "run") == [2, 3, 3, 3]
    assert trainer.pruner.moments.count.max() == 1


# The same seed


def test_two_runs_with_the_same_seed_keep_the_same_images(data, tmp_path):
    for name in ("a", "b"):
        train_here(data, tmp_path / name, seed=5, epochs=6)
    assert (tmp_path / "a" / "kept.txt").read_bytes() == (tmp_path / "b" / "kept.txt").read_bytes()
    assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()
    train_here(data, tmp_path / "c", seed=6, epochs=6)
    assert (tmp_path / "a" / "scores.csv").read_bytes() != (tmp_path / "c" / "scores.csv").read_bytes()
