"""What a user can get wrong: one line that says what was expected, what came, what to do; and nothing half-written."""

import errno
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests import helpers
from tests.helpers import label_of, training_images, write_data
from yolo_adapruner.cli import main
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import DataError, RunError

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = helpers.cli_words({**helpers.QUICK, "epochs": 3, "batch": 4})


@pytest.fixture
def no_network(monkeypatch):
    """Ultralytics' ways to the network; taking one fails the test."""
    from ultralytics.utils import downloads

    def refuse(*args, **kwargs):
        pytest.fail(f"asked the network for {args}")

    monkeypatch.setattr(downloads, "get_github_assets", refuse)
    monkeypatch.setattr(downloads, "safe_download", refuse)


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder below one, and its size; Ultralytics' label caches aside."""
    found = (path for path in folder.rglob("*") if path.suffix != ".cache")
    return {str(path.relative_to(folder)): path.lstat().st_size if path.is_file() else -1 for path in found}


def refused(capsys, *words: str | Path) -> str:
    """Run the command line in this folder and return the one line it refuses with, having written nothing."""
    before = tree(Path.cwd())
    capsys.readouterr()
    code = main([str(word) for word in words])
    err = capsys.readouterr().err
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("yolo-adapruner: ")
    assert "unexpected" not in err
    assert len(err) < 700, err
    assert tree(Path.cwd()) == before
    return err


def train_refused(capsys, *words: str | Path) -> str:
    return refused(capsys, "train", "run.yaml", *SETTINGS, *words)


# The command line itself


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "Expected a run config, but got none"),
        (["train", "run.yaml", "extra"], "Expected settings as key=value, but got extra"),
        (["train", "run.yaml", "lr0=[1"], "Expected values that YAML can read, but"),
        (["train", "run.yaml", "--resume", "runs/x"], "Expected --resume RUN alone, but got run.yaml as well"),
        (["train", "--resume", "runs/x", "--epochs", "9"], "Expected --resume RUN alone, but got --epochs as well"),
        (["train", "--resume", "runs/x", "lr0=0.1"], "Expected --resume RUN alone, but got lr0=0.1 as well"),
    ],
)
def test_words_that_make_no_command(home, capsys, words, line):
    assert line in refused(capsys, *words)


# Run config


def test_a_missing_run_config(home, capsys):
    line = refused(capsys, "train", "nichts.yaml")
    assert "Expected a run config (a YAML file or one of: resnet18-cifar10, resnet18-digits, yolov3-tiny" in line
    assert "no file nichts.yaml" in line


@pytest.mark.parametrize("share", ["1.2", "-0.1", "nan", "inf", "0.96"])
def test_a_share_out_of_range(home, capsys, share):
    line = train_refused(capsys, "--prune", share)
    assert "prune.share" in line
    assert f"but got {share}" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epoch=3", ("'epoch' is not a valid YOLO argument", "epochs=")),
        ("mosiac=0", ("'mosiac' is not a valid YOLO argument", "mosaic=")),
        ("quatsch=1", ("'quatsch' is not a valid YOLO argument",)),
        ("tau=0.3", ("tau (set it under prune:)",)),
        ("resume=True", ("resume (use --resume RUN)",)),
        ("cfg=hyp.yaml", ("got cfg=hyp.yaml", "write what that file holds under train:")),
        ("mode=val", ("got mode=val", "leave it out")),
        ("pretrained=pre.pt", ("as pretrained, but there is no file pre.pt",)),
        ("device=mps", ("got device=mps",)),
        ("name=it's", ("without an apostrophe",)),
        ("mosaic=sehr", ("mosaic",)),
        ("fliplr=2", ("fliplr",)),
        ("imgsz=16", ("imgsz", "32")),
        ("optimizer=sdg", ("Expected an optimizer that there is", "'sdg' not found", "SGD")),
        ("freeze=99", ("Expected a layer that is left to train", "freeze=99")),
        ("freeze=foo", ("Expected whole numbers as freeze, such as 0,1 or [0, 1], but got foo",)),
        ("classes=[a, 1]", ("Expected whole numbers as classes", "['a', 1]")),
    ],
)
def test_a_setting_that_cannot_be(home, capsys, setting, words):
    line = train_refused(capsys, setting)
    assert all(word in line for word in words), line


def test_unknown_keys_of_a_run_config_are_told_all_at_once(home, capsys):
    (home / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\nepoch: 3\nprune: {shrae: 1}\n")
    line = refused(capsys, "train", "run.yaml")
    assert "unknown setting epoch, did you mean epochs?" in line
    assert "unknown setting prune.shrae, did you mean share?" in line


def test_an_unknown_ultralytics_key_in_a_run_config(home, capsys):
    (home / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\ntrain: {mosiac: 1}\n")
    assert "'mosiac' is not a valid YOLO argument" in refused(capsys, "train", "run.yaml")


def test_an_architecture_in_the_run_config_s_place(home, capsys):
    from ultralytics.utils import ROOT as ULTRALYTICS

    architecture = next((ULTRALYTICS / "cfg" / "models").rglob("yolov3-tiny.yaml"))
    line = refused(capsys, "train", architecture)
    assert "Expected a run config, but" in line
    assert "is an Ultralytics architecture" in line


def test_a_run_config_in_the_architecture_s_place(home, capsys):
    line = train_refused(capsys, "--model", ROOT / "cfg" / "yolov3-tiny.yaml")
    assert "is a run config: pass it as the first argument" in line


def test_in_the_folder_of_the_run_config_its_model_is_still_the_architecture(home, monkeypatch):
    """There `model: yolov3-tiny.yaml` names the run config itself as well."""
    from yolo_adapruner.config import load
    from yolo_adapruner.engine.names import ultralytics_args

    monkeypatch.chdir(ROOT / "cfg")
    model = ultralytics_args(load("yolov3-tiny.yaml"))["model"]
    assert {"backbone", "head"} <= yaml.safe_load(Path(model).read_text(encoding="utf-8")).keys()


# Model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("foo.pt", "there is no file foo.pt"),
        ("/nichts/foo.pt", "there is no file /nichts/foo.pt"),
        ("foo.yaml", "foo.yaml cannot be read: 'foo.yaml' does not exist"),
        ("yolo99n.yaml", "yolo99n.yaml cannot be read"),
        ("foo", "foo cannot be read"),
        ("foo.onnx", "foo.onnx cannot be read"),
    ],
)
def test_a_missing_model_is_not_looked_for_on_the_network(home, capsys, no_network, model, words):
    line = train_refused(capsys, "--model", model)
    assert "Expected an Ultralytics architecture or checkpoint as model" in line
    assert words in line


def test_a_missing_checkpoint_to_start_from_is_not_looked_for_on_the_network(home, capsys, no_network):
    assert "there is no file foo.pt" in train_refused(capsys, "pretrained=foo.pt")


def test_a_checkpoint_that_cannot_be_fetched(home, capsys, monkeypatch):
    from ultralytics.utils import downloads

    def offline(*args, **kwargs):
        raise ConnectionError("❌  Download failure for yolo11n.pt. Environment may be offline.")

    monkeypatch.setattr(downloads, "safe_download", offline)
    line = train_refused(capsys, "--model", "yolo11n.pt")
    assert "Download failure for yolo11n.pt" in line


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("yolo26n-sem.yaml", "a semantic segmentation model (its last layer is SemanticSegment)"),
        ("yolo26n-depth.yaml", "a depth model (its last layer is Depth)"),
        ("yolov8n-rtdetr.yaml", "RT-DETR (its last layer is RTDETRDecoder)"),
        ("yolov8s-worldv2.yaml", "YOLO-World (its last layer is WorldDetect)"),
        ("yoloe-11s.yaml", "YOLOE (its last layer is YOLOEDetect)"),
        ("yoloe-26s-seg.yaml", "YOLOE (its last layer is YOLOESegment26)"),
        ("rtdetr-l.pt", "RT-DETR (its last layer is RTDETRDecoder)"),
        ("yolov8s-worldv2.pt", "YOLO-World (its last layer is WorldDetect)"),
    ],
)
def test_a_model_of_a_kind_that_no_trainer_is_for(home, capsys, no_network, model, words):
    line = train_refused(capsys, "--model", model)
    assert f"Expected a YOLO model for detect, segment, pose, obb or classify, but {model} is " in line.replace(
        str(home), ""
    )
    assert words in line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task=segment"], "Expected a model for detect, but task=segment is for segment"),
        (["task=classify"], "but task=classify is for classify"),
        (["--model", "yolo11n-pose.yaml", "task=obb"], "Expected a model for pose, but task=obb is for obb"),
    ],
)
def test_another_task_than_the_model_s(home, capsys, words, line):
    assert line in train_refused(capsys, *words)


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_a_comparison_of_what_it_cannot_judge(home, capsys, task):
    line = refused(capsys, "compare", "run.yaml", "--model", f"yolo11n-{task.replace('ment', '')}.yaml")
    model = f"yolo11n-{task.replace('ment', '')}.yaml"
    assert f"Expected a model for detect or classify to compare with, but {model} is for {task}" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("leer.pt", b""),
        ("text.pt", b"not a checkpoint\n"),
        ("leer.yaml", b""),
        ("liste.yaml", b"- 1\n"),
        ("kaputt.yaml", b"backbone: [\n"),
        ("halb.yaml", b"nc: 3\nbackbone: []\n"),
        ("fremd.yaml", b"nc: 3\nbackbone: [[-1, 1, Konv, [8, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n"),
        ("binär.yaml", b"\xff\xfe\x00\x01"),
    ],
)
def test_a_broken_model_file(home, capsys, no_network, name, content):
    (home / name).write_bytes(content)
    line = train_refused(capsys, "--model", name)
    assert "Expected an Ultralytics architecture or checkpoint as model" in line
    assert name in line


# Data file


@pytest.mark.parametrize("data", ["nichts.yaml", "/nichts/data.yaml", "ordner/nichts.yaml", "coco*.yaml", "../x", "[a"])
def test_a_missing_data_file(home, capsys, data):
    line = train_refused(capsys, "--data", data)
    assert "Expected a data file (a YAML with train, val and names" in line
    assert f"there is no {data}" in line


def test_a_folder_without_a_data_file(home, capsys):
    (home / "leer").mkdir()
    assert "No YAML file found in" in train_refused(capsys, "--data", "leer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": None}, "'train:' key missing"),
        ({"val": None}, "'val:' key missing"),
        ({"names": None}, "either 'names' or 'nc' are required"),
        ({"names": "disc"}, "'names' must be list or dict"),
        ({"names": {-1: "disc", 1: "square", 2: "cross"}}, "its names have no class 0: number them 0, 1, 2"),
        ({"nc": 7}, "'names' length 3 and 'nc: 7' must match"),
        ({"nc": "drei", "names": None}, "must be an integer"),
        ({"train": "images/nichts"}, "images/nichts"),
        ({"val": "images/nichts"}, "images/nichts"),
        ({"train": "leer"}, "leer"),
        ({"train": "leere-liste.txt"}, "leere-liste.txt"),
        ({"train": 3}, "'train' must be"),
        ({"path": "/nichts"}, "/nichts"),
    ],
)
def test_a_data_file_that_cannot_be(home, capsys, changes, words):
    (home / "set" / "leer").mkdir()
    (home / "set" / "leere-liste.txt").touch()
    write_data(home / "set" / "data.yaml", home / "set", **changes)
    line = train_refused(capsys)
    assert "Data set" in line
    assert words in line


@pytest.mark.parametrize(
    ("key", "words"),
    [("train", "train names nothing: give a folder of images or a list of them"), ("val", "'val:' images not found")],
)
def test_a_data_file_with_nothing_behind_a_split(home, capsys, key, words):
    data = home / "set" / "data.yaml"
    text = data.read_text(encoding="utf-8").replace(f"{key}: images/{key}", f"{key}:")
    data.write_text(text, encoding="utf-8")
    assert words in train_refused(capsys)


@pytest.mark.parametrize("content", [b"", b"[1, 2]\n", b"path: [\n", b"\xff\xfe\x00\x01", b"nur ein Satz\n", b"\x00"])
def test_a_data_file_that_is_no_mapping(home, capsys, content):
    (home / "kaputt.yaml").write_bytes(content)
    line = train_refused(capsys, "--data", "kaputt.yaml")
    assert "Data set" in line


# Images and labels


def test_no_label_files_at_all(home, capsys):
    shutil.rmtree(home / "set" / "labels" / "train")
    assert "No labels found in" in train_refused(capsys)


def test_label_files_without_a_single_box(home, capsys):
    for image in training_images(home / "set" / "data.yaml"):
        label_of(image).write_text("")
    line = train_refused(capsys)
    assert "Expected training images with labelled boxes, but none of the 12 images" in line
    assert "check that the labels folder mirrors the images folder" in line


def test_labels_that_lie_elsewhere_by_the_absolute_path(home, capsys):
    """Of `images/...`, without a slash before, Ultralytics takes the labels from beside the image."""
    (home / "images").mkdir()
    for image in training_images(home / "set" / "data.yaml"):
        shutil.copy(image, home / "images")
        shutil.copy(label_of(image), home / "images")
    names = sorted(path.name for path in (home / "images").glob("*.png"))
    (home / "list.txt").write_text("".join(f"images/{name}\n" for name in names), encoding="utf-8")
    write_data(home / "data.yaml", home / "set", train=str(home / "list.txt"))
    line = train_refused(capsys, "--data", "data.yaml")
    assert f"in {home / 'labels' / '000.txt'}, but the list of training images says images/000.png" in line
    assert f"lie in {home / 'images' / '000.txt'}: move" in line


def test_every_image_unreadable(home, capsys):
    for image in training_images(home / "set" / "data.yaml"):
        image.write_bytes(b"no image at all")
    assert "No valid images found in" in train_refused(capsys)


def test_every_label_file_broken(home, capsys):
    for image in training_images(home / "set" / "data.yaml"):
        label_of(image).write_text("99 0.5 0.5 0.2 0.2\n")
    line = train_refused(capsys)
    assert "No valid images found in" in line
    assert "exceeds dataset class count 3" in line


def test_a_share_that_leaves_less_than_a_batch(home, capsys):
    line = train_refused(capsys, "--prune", "0.8")
    assert "prune 0.8 of 12 images leaves 2 with batch 4: prune less or take a smaller batch" in line


BROKEN_LABELS = {
    "class out of range": "3 0.5 0.5 0.2 0.2\n",
    "nan": "0 nan 0.5 0.2 0.2\n",
    "nan class": "nan 0.5 0.5 0.2 0.2\n",
    "infinite": "0 0.5 inf 0.2 0.2\n",
    "pixels": "0 32 32 12 12\n",
    "negative": "0 0.5 0.5 -0.2 0.2\n",
    "fractional class": "0.5 0.5 0.5 0.2 0.2\n",
    "too few columns": "0 0.5 0.5 0.2\n",
    "words": "disc 0.5 0.5 0.2 0.2\n",
    "ragged": "0 0.5 0.5 0.2 0.2\n1 0.5\n",
    "no text": "\x00\x01\x02",
}
HARMLESS_LABELS = {
    "blank lines": "\n\n0 0.5 0.5 0.2 0.2\n\n",
    "windows": "0 0.5 0.5 0.2 0.2\r\n1 0.4 0.4 0.2 0.2\r\n",
    "byte-order mark": "\ufeff0 0.5 0.5 0.2 0.2\n",
    "tabs": "0\t0.5\t0.5\t0.2\t0.2\n",
    "twice the same": "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n",
    "over the edge": "0 0.95 0.95 0.2 0.2\n",
    "no area": "0 0.5 0.5 0 0\n",
    "a polygon": "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6\n",
}


@pytest.mark.slow
def test_broken_images_and_labels_take_no_part_and_the_run_goes_on(tmp_path, monkeypatch, capsys, caplog):
    helpers.build_set(tmp_path / "set", train=32, val=4)
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    images = iter(training_images(tmp_path / "set" / "data.yaml"))
    bad = []
    for content in (b"", b"no image", (tmp_path / "set" / "images" / "train" / "000.png").read_bytes()[:200]):
        bad.append(next(images))
        bad[-1].write_bytes(content)
    for text in BROKEN_LABELS.values():
        bad.append(next(images))
        label_of(bad[-1]).write_text(text, encoding="utf-8")
    for text in HARMLESS_LABELS.values():
        label_of(next(images)).write_bytes(text.encode())
    assert main(["train", "run.yaml", "--prune", "0.25", "--name", "r", *SETTINGS]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    left = 32 - len(bad)
    assert f"kept {left - round(left / 4)} of {left} training images" in captured.out
    assert f"{len(bad)} listed images are unreadable or wrongly labelled and take no part, the first: {bad[0]}" in (
        caplog.text
    )
    run = tmp_path / "runs" / "adaprune" / "r"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["skipped"] == sorted(map(str, bad))
    assert manifest["images"]["total"] == left
    named = helpers.read_list(run / "kept.txt") + helpers.read_list(run / "dropped.txt")
    assert len(named) == left
    assert not set(named) & set(map(str, bad))
    logits = [float(row.split(",")[3]) for row in (run / "scores.csv").read_text().splitlines()[1:]]
    assert all(map(math.isfinite, logits))


# Where it is written


@pytest.mark.parametrize("words", [["project=datei"], ["project=datei/runs"], ["project=.", "--name", "datei/r"]])
def test_a_file_in_the_run_folder_s_place(home, capsys, words):
    (home / "datei").write_text("in the way")
    line = train_refused(capsys, *words)
    assert "Expected a folder to write the run to, but" in line
    assert "Choose another --name or project=" in line
    assert (home / "datei").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_place_that_cannot_be_written(home, capsys):
    line = train_refused(capsys, "project=/proc/yolo-adapruner")
    assert "Expected a folder to write the run to, but /proc/yolo-adapruner" in line


def test_a_name_too_long(home, capsys):
    assert "File name too long" in train_refused(capsys, "--name", "x" * 300)


def test_a_folder_that_was_there_before_stays(home, capsys):
    """Also where Ultralytics is told to write into it."""
    (home / "runs" / "r").mkdir(parents=True)
    (home / "runs" / "r" / "mine.txt").write_text("mine")
    shutil.rmtree(home / "set" / "labels" / "train")
    assert main(["train", "run.yaml", *SETTINGS, "project=runs", "--name", "r", "exist_ok=True"]) == 2
    assert "No labels found in" in capsys.readouterr().err
    assert (home / "runs" / "r" / "mine.txt").read_text() == "mine"


# What pruning cannot do


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("val=False", "Expected validation after each epoch, but got val=False"),
        ("save=False", "Expected checkpoints to be written, but got save=False"),
        ("time=1", "Expected a budget in epochs, but got time=1"),
        ("device=98,99", "Expected a device of this machine, but got device=98,99"),
        ("amp=bf16", "Expected a CUDA device that computes in bfloat16 for amp=bf16, but cpu is none"),
        ("device=99", "Expected a device of this machine, but got device=99"),
        ("device=quatsch", "Expected a device of this machine, but got device=quatsch"),
        ("distill_model=yolo11x.pt", "but got distill_model=yolo11x.pt"),
        ("quantize=8", "but got quantize=8 (int8, quantization-aware training)"),
        ("quantize=int8", "but got quantize=8"),
        ("int8=True", "but got quantize=8"),
        ("data=[a.yaml,b.yaml]", "data: input should be a valid string, but got ['a.yaml', 'b.yaml']"),
    ],
)
def test_recipes_that_pruning_cannot_follow(home, capsys, setting, words):
    words_without_device = [word for word in SETTINGS if not word.startswith("device=")]
    assert words in refused(capsys, "train", "run.yaml", *words_without_device, setting)


@pytest.mark.parametrize("setting", ["fraction=0.5", "single_cls=True", "classes=[1]", "classes=1"])
@pytest.mark.parametrize("command", [["compare"], ["study", "terms"]], ids=["compare", "study"])
def test_a_comparison_of_a_part_of_the_data_file(home, capsys, command, setting):
    """Lists are cut from the part, and a part of them would be trained on; classes left out would count as missed."""
    line = refused(capsys, *command, "run.yaml", *SETTINGS, setting)
    assert f"Expected a recipe that trains on the data file as it is, but got {setting}" in line


@pytest.mark.parametrize("command", [["compare"], ["study", "terms"]], ids=["compare", "study"])
def test_a_comparison_on_a_device_that_is_not_there_leaves_no_folder(home, capsys, command):
    assert "device of this machine, but got device=99" in refused(capsys, *command, "run.yaml", "--device", "99")


@pytest.mark.parametrize(
    ("trainer_of", "trainer", "words"),
    [
        ("YOLO('yolo11n-seg.yaml')", "AdaPruneTrainer", "is for segment: train it with AdaPruneSegmentationTrainer"),
        ("YOLO('yolo11n.yaml')", "AdaPruneOBBTrainer", "Expected a model for obb, but yolo11n.yaml is for detect"),
        ("YOLO('yolo11n-cls.yaml')", "AdaPruneTrainer", "is for classify: train it with AdaPruneClassificationTrainer"),
        ("RTDETR('yolov8n-rtdetr.yaml')", "AdaPruneTrainer", "RT-DETR (its last layer is RTDETRDecoder)"),
        ("YOLOWorld('yolov8s-worldv2.yaml')", "AdaPruneTrainer", "YOLO-World (its last layer is WorldDetect)"),
        ("YOLOE('yoloe-11s-seg.yaml')", "AdaPruneSegmentationTrainer", "YOLOE (its last layer is YOLOESegment)"),
    ],
)
def test_other_models_through_ultralytics_own_interface(home, trainer_of, trainer, words):
    import ultralytics

    import yolo_adapruner
    from yolo_adapruner.errors import ConfigError

    name, architecture = trainer_of.removesuffix("')").split("('")
    model = getattr(ultralytics, name)(architecture)
    before = tree(home)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        model.train(
            trainer=getattr(yolo_adapruner, trainer),
            data="set/data.yaml",
            project=str(home / "runs"),
            **helpers.QUICK,
        )
    assert "\n" not in str(caught.value)
    assert tree(home) == before


def test_several_data_sets_for_one_trainer(home):
    from yolo_adapruner import AdaPruneTrainer
    from yolo_adapruner.errors import ConfigError

    with pytest.raises(ConfigError, match=r"Expected one data file, but got data=\['a.yaml', 'b.yaml'\]"):
        AdaPruneTrainer(overrides={**helpers.QUICK, "model": "small.yaml", "data": ["a.yaml", "b.yaml"]})


# Errors of the system and of Ultralytics


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "best.pt"), RunError, "best.pt: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "last.pt"), RunError, "last.pt: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), RunError, "a.png: Permission denied"),
        (ConnectionError("❌  Download failure for x. Environment\nmay be offline"), RunError, "x. Environment may be"),
        (
            RuntimeError("\x1b[34mtrain: \x1b[0mNo valid images found in é/ü. See https://a.b/c for help"),
            DataError,
            "é/ü.",
        ),
        (
            SyntaxError("x.yaml 'train:' key missing ❌.\n'train' and 'val' are required"),
            DataError,
            "missing . 'train'",
        ),
    ],
)
def test_an_error_of_the_system_s_or_ultralytics_becomes_one_line(error, kind, words):
    with pytest.raises(kind) as caught, one_line_errors("x.yaml"):
        raise error
    line = str(caught.value)
    assert words in line
    assert len(line.splitlines()) == 1
    assert not set(line) & set("❌\x1b")
    assert "https" not in line


@pytest.mark.parametrize("error", [KeyError("boxes"), RuntimeError("shape mismatch"), OSError("?"), TypeError("None")])
def test_an_unknown_error_keeps_its_place(error):
    with pytest.raises(type(error)) as caught, one_line_errors("x.yaml"):
        raise error
    assert caught.value is error


def test_a_long_message_is_cut():
    with pytest.raises(DataError) as caught, one_line_errors("x.yaml"):
        raise RuntimeError("No valid images found in x\n" + "\n".join(f"{i}.png: corrupt" for i in range(1000)))
    assert len(str(caught.value)) < 500


def test_a_defect_of_ours_says_so_and_where_to_look(home, capsys, monkeypatch):
    from yolo_adapruner.engine import run

    def broken(*_):
        raise KeyError("boxes\nand more")

    monkeypatch.setattr(run, "_finish", broken)
    assert main(["train", "run.yaml", *SETTINGS]) == 1
    assert "yolo-adapruner: unexpected KeyError: 'boxes" in capsys.readouterr().err
    monkeypatch.setenv("YOLO_ADAPRUNER_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["train", "run.yaml", *SETTINGS])


# Other commands


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--resume", "nichts"], "has no adaprune.yaml: start a new run"),
        (["train", "--resume", "set"], "has no adaprune.yaml: start a new run"),
        (["export", "nichts"], "has no manifest.json"),
        (["export", "set", "--prune", "2"], "Expected a prune share from 0 to 0.95, but got 2"),
        (["compare", "run.yaml", "--prune", "1.5"], "Expected prune shares in (0, 0.95]"),
        (["compare", "run.yaml", "--seeds", "0"], "seeds 0"),
    ],
)
def test_other_commands(home, capsys, words, line):
    assert line in refused(capsys, *words)


def test_python_callers_get_the_same_lines_as_exceptions(home):
    from yolo_adapruner import prune
    from yolo_adapruner.errors import ConfigError, DataError

    with pytest.raises(ConfigError, match=r"prune\.share"):
        prune("run.yaml", prune=1.2)
    with pytest.raises(DataError, match=r"there is no nichts\.yaml"):
        prune("run.yaml", data="nichts.yaml")
    with pytest.raises(ConfigError, match="'mosiac' is not a valid YOLO argument"):
        prune("run.yaml", mosiac=1)
