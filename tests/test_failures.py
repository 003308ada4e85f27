"""The world around a run fails: a full disk, an image that vanishes, a read-only set, several runs at once."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests import helpers
from tests.helpers import label_of, training_images
from yolo_adapruner.cli import main
from yolo_adapruner.data import export
from yolo_adapruner.engine import run
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import AdaPrunerError, RunError

IMAGES, BATCH, SHARE = 16, 8, 0.25
SETTINGS = helpers.cli_words({**helpers.QUICK, "epochs": 5, "batch": BATCH, "prune.warmup": 2})
"""Two epochs of warm-up, then the joint stage and, from epoch 4 on, the fine-tune."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The working directory: a set, the small architecture, a run config of both."""
    helpers.build_set(tmp_path / "set", train=IMAGES, val=4, empty=1)
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written and what it says."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def train(capsys, *words: str | Path) -> tuple[int, str]:
    """Run `train` of the command line here and return its exit code and what it said to stderr."""
    capsys.readouterr()
    code = main(["train", *map(str, words)])
    return code, capsys.readouterr().err


def refused(capsys, *words: str | Path) -> str:
    """The one line of a `train` that ends in failure."""
    code, err = train(capsys, *words)
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert "unexpected" not in err
    return err


def new_run(project: Path | str, *words: str) -> list[str]:
    return ["run.yaml", "--prune", str(SHARE), "--name", "r", f"project={project}", *SETTINGS, *words]


def is_whole(folder: Path) -> None:
    """Assert that the lists in a run folder belong together and divide the images of the set."""
    manifest, outcome = export.read(folder)
    kept, dropped = helpers.read_list(folder / "kept.txt"), helpers.read_list(folder / "dropped.txt")
    assert (len(kept), len(dropped)) == (IMAGES - IMAGES * SHARE, IMAGES * SHARE)
    assert sorted([*kept, *dropped]) == list(outcome.paths)
    assert manifest["images"]["kept"] == len(kept)
    assert not list(folder.rglob("*.tmp"))


def epoch_of(checkpoint: Path) -> int:
    """Which epoch a checkpoint that can be gone on from is of, from 0."""
    return torch.load(checkpoint, weights_only=False)["epoch"]


def goes_on(capsys, folder: Path) -> None:
    """Assert that an interrupted run goes on to its end, with the lists it had if it had any."""
    decided = helpers.read_list(folder / "kept.txt") if (folder / "kept.txt").exists() else None
    assert train(capsys, "--resume", folder) == (0, "")
    is_whole(folder)
    assert decided in (None, helpers.read_list(folder / "kept.txt"))
    assert [row["epoch"] for row in helpers.results(folder)] == [1, 2, 3, 4, 5]


# A full disk: a real file system of 16 MB, filled to the last page just before a write.


class Disk:
    """A small file system of its own, and a file that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave this many bytes, in whole pages."""
        room = shutil.disk_usage(self.folder).free - leave
        with self.filler.open("ab") as file:
            while room > 0:
                room -= file.write(b"\0" * min(room, 1 << 20))

    def empty(self) -> None:
        self.filler.unlink(missing_ok=True)


def mounted(folder: Path, *words: str | Path):
    """Mount something at a folder, or skip where this user may not."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None or subprocess.run(["mount", *words, folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    return folder


@pytest.fixture
def disk(tmp_path):
    folder = mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=16m", "tmpfs")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def before(monkeypatch, owner, name: str, act, when=lambda *_: True) -> None:
    """Do something before a function is called, the first time that its arguments are the wanted ones."""
    function, waiting = getattr(owner, name), [True]

    def call(*args, **keywords):
        if waiting and when(*args):
            waiting.clear()
            act()
        return function(*args, **keywords)

    monkeypatch.setattr(owner, name, call)


def in_epoch(epoch: int):
    return lambda trainer, *_: trainer.epoch == epoch


def before_writing(monkeypatch, name: str, act, when=lambda: True) -> None:
    """Do something before the first write of a file of this name, whichever module writes it."""
    for module in [module for key, module in sys.modules.items() if key.startswith("yolo_adapruner.")]:
        if hasattr(module, "replace_file"):
            before(monkeypatch, module, "replace_file", act, lambda path: path.name == name and when())


def fill_for(disk: Disk, monkeypatch, write: str) -> None:
    """Fill the disk before one of the writes that come before the first checkpoint."""
    if write == "args.yaml":
        disk.fill()
    elif write == "adaprune.yaml":
        before_writing(monkeypatch, write, disk.fill)
    else:
        hook = {"results.csv": "save_metrics", "adaprune.pt": "save_model"}[write]
        before(monkeypatch, AdaPruneTrainer, hook, disk.fill)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["reading it back", "the launched processes' end"])
def test_what_fails_after_a_run_is_whole_takes_nothing_of_it_away(home, capsys, monkeypatch, after):
    owner, name = (run, "RunResult") if after == "reading it back" else (AdaPruneTrainer, "train")
    original = getattr(owner, name)

    def fail(*arguments, **keywords):
        original(*arguments, **keywords)
        raise RunError("Expected all to be well.")

    monkeypatch.setattr(owner, name, fail)
    assert main(["train", "run.yaml", "--name", "whole", *SETTINGS]) == 2
    assert capsys.readouterr().err.startswith("yolo-adapruner: Expected ")
    folder = home / "runs" / "adaprune" / "whole"
    assert all((folder / name).is_file() for name in ("weights/best.pt", "pruned.yaml", "manifest.json"))


@pytest.mark.slow
@pytest.mark.parametrize("write", ["args.yaml", "adaprune.yaml", "results.csv", "adaprune.pt"])
def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_nothing(home, disk, capsys, monkeypatch, write):
    fill_for(disk, monkeypatch, write)
    line = refused(capsys, *new_run(disk.folder))
    assert "Expected room to write the run, but" in line
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    disk.empty()
    assert train(capsys, *new_run(disk.folder)) == (0, "")
    is_whole(disk.folder / "r")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "leave", "epoch"),
    helpers.gate_runs(
        itertools.product(["save_model", "read_results_csv"], [0, 400, 2900, 5000], [1, 3, 4]),
        *(1, 3, 8, 11, 13, 17, 18, 22),
    ),
)
def test_a_disk_that_fills_up_while_an_epoch_is_saved_costs_at_most_that_epoch(
    home, disk, capsys, monkeypatch, hook, epoch, leave
):
    """Wherever among sidecar, last.pt, best.pt and lists the room ends; a checkpoint here takes 2,700 KB.

    Ultralytics reads the table when it packs a checkpoint, after the sidecar's write.
    """
    before(monkeypatch, AdaPruneTrainer, hook, lambda: disk.fill(leave * 1024), in_epoch(epoch))
    code, err = train(capsys, *new_run(disk.folder))
    folder = disk.folder / "r"
    if code == 0:  # all of it fitted in
        return is_whole(folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "Expected room to write the run, but" in err
    assert epoch_of(folder / "weights" / "last.pt") >= epoch - 1
    if (folder / "manifest.json").exists():
        is_whole(folder)
    disk.empty()
    return goes_on(capsys, folder)


@pytest.mark.slow
@pytest.mark.parametrize("leave", [400, 2900])
def test_a_disk_that_fills_up_in_the_first_checkpoint(home, disk, capsys, monkeypatch, leave):
    before(monkeypatch, AdaPruneTrainer, "save_model", lambda: disk.fill(leave * 1024))
    assert "Expected room to write the run, but" in refused(capsys, *new_run(disk.folder))
    disk.empty()
    if (disk.folder / "r").exists():
        goes_on(capsys, disk.folder / "r")
    else:
        assert train(capsys, *new_run(disk.folder)) == (0, "")


LISTS = [
    "mask.npz",
    "trace.npz",
    "manifest.json",
    "scores.csv",
    "scores.parquet",
    "kept.txt",
    "dropped.txt",
    "pruned.yaml",
]


def is_said(line, folder, name):
    """Whether a line says which file a disk that is full from one on has stopped: of two tables the first one tells."""
    file = "scores.csv" if name == "scores.parquet" else name
    return f"Expected room to write the run, but {folder / file}: No space left on device" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", helpers.gate_runs(LISTS, 0, 3, 6))
def test_a_disk_that_is_full_when_the_lists_are_first_written(home, disk, capsys, monkeypatch, name):
    before_writing(monkeypatch, name, disk.fill)
    folder = disk.folder / "r"
    line = refused(capsys, *new_run(disk.folder))
    assert is_said(line, folder, name)
    disk.empty()
    goes_on(capsys, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", helpers.gate_runs(LISTS, 1, 4, 7))
def test_a_disk_that_is_full_when_the_lists_are_written_again_at_the_end(home, disk, capsys, monkeypatch, name):
    at_the_end: list[bool] = []
    before(monkeypatch, AdaPruneTrainer, "final_eval", lambda: at_the_end.append(True))
    before_writing(monkeypatch, name, disk.fill, lambda: bool(at_the_end))
    folder = disk.folder / "r"
    line = refused(capsys, *new_run(disk.folder))
    assert is_said(line, folder, name)
    is_whole(folder)  # those of the decision
    disk.empty()
    assert main(["export", str(folder)]) == 0
    is_whole(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_a_full_disk_stops_says_whose_it_was_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def write():
        with export.replace_file(target) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_is_a_warning(home, capfd, monkeypatch, caplog):
    """Ultralytics draws in threads; an error there would be a traceback on the terminal."""
    from PIL import Image

    save = Image.Image.save

    def full(*args, **keywords):
        if threading.current_thread() is threading.main_thread():
            return save(*args, **keywords)
        time.sleep(0.5)  # the last one is still at it when the training is over
        raise OSError(28, "No space left on device")

    hook = threading.excepthook
    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["train", *new_run("runs", "plots=True")]) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert "A picture is missing, the run goes on: OSError: [Errno 28] No space left on device" in caplog.text
    assert threading.excepthook is hook
    is_whole(home / "runs" / "r")


# An image that was there when the run began


def delete(image: Path) -> None:
    image.unlink()


def truncate(image: Path) -> None:
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


def empty(image: Path) -> None:
    image.write_bytes(b"")


def overwrite(image: Path) -> None:
    image.write_bytes(b"no image at all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "epoch", "workers"),
    helpers.gate_runs(
        [(delete, epoch, workers) for epoch in (0, 2, 3) for workers in (0, 2)]
        + [(harm, 2, 0) for harm in (truncate, empty, overwrite)],
        *(0, 3, 4, 6),
    ),
)
def test_an_image_that_vanishes_between_epochs(home, capsys, monkeypatch, harm, epoch, workers):
    image = training_images(home / "set" / "data.yaml")[3]
    folder, content = home / "runs" / "r", image.read_bytes()
    (home / "keep.txt").write_text(f"{image}\n", encoding="utf-8")  # dropped, it would not be missed in the fine-tune

    build = AdaPruneTrainer.build_dataset

    def build_dataset(trainer, *args, **keywords):
        trainer.args.workers = workers  # Ultralytics loads in the main process where it trains on the CPU
        dataset = build(trainer, *args, **keywords)
        dataset.max_buffer_length = 1  # Ultralytics holds the images of eight batches in memory, here all there are
        return dataset

    monkeypatch.setattr(AdaPruneTrainer, "build_dataset", build_dataset)
    before(monkeypatch, AdaPruneTrainer, "_open_epoch", lambda: harm(image), in_epoch(epoch + 1))
    line = refused(capsys, *new_run("runs", "batch=2", "--keep", "keep.txt"))
    assert f"Expected the image {image}, which was there when the run began, but it is gone or cannot be read" in line
    assert "put it back and go on with --resume RUN" in line
    # Two workers load eight batches ahead, an epoch's, and miss the image as much later.
    assert epoch_of(folder / "weights" / "last.pt") in (epoch, epoch + bool(workers))
    missing = refused(capsys, "--resume", folder)
    assert re.search("Expected the (16 )?training images that", missing)
    assert "start a new run" in missing
    image.write_bytes(content)
    goes_on(capsys, folder)


@pytest.mark.slow
def test_a_validation_image_that_vanishes(home, capsys, monkeypatch):
    image = home / "set" / "images" / "val" / "002.png"
    content = image.read_bytes()
    before(monkeypatch, AdaPruneTrainer, "_open_epoch", image.unlink, in_epoch(2))
    assert f"Expected the image {image}" in refused(capsys, *new_run("runs"))
    image.write_bytes(content)
    goes_on(capsys, home / "runs" / "r")


# A data set that cannot be written, and one that could be


@pytest.fixture
def read_only(home):
    """The set where nothing can be written: mounted so for root, who may write whatever its permissions say."""
    folder = home / "set"
    if os.geteuid():
        for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            path.chmod(0o555)
        yield folder
        for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            path.chmod(0o755)
        return
    mounted(folder, "--bind", folder)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["False", "disk", "ram"])
def test_a_data_set_that_cannot_be_written_is_enough(read_only, home, capsys, cache):
    cache_file = read_only / "labels" / "train.cache"
    with pytest.raises(OSError, match=r"Read-only|denied"):
        cache_file.touch()
    assert train(capsys, *new_run("runs", f"cache={cache}")) == (0, "")
    is_whole(home / "runs" / "r")


def test_a_run_and_its_judge_write_nothing_into_the_data_set(home, capsys):
    """No label cache either: Ultralytics would leave one beside each label folder."""
    from yolo_adapruner.engine.detections import collect
    from yolo_adapruner.engine.splits import load_data, split_images

    there = tree(home / "set")
    assert train(capsys, *new_run("runs")) == (0, "")
    data = home / "set" / "data.yaml"
    collect(home / "runs" / "r" / "weights" / "best.pt", data, "val", imgsz=64, batch=4, device="cpu")
    split_images(load_data(str(data)), "val")
    assert tree(home / "set") == there


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc")
@pytest.mark.slow
def test_a_full_disk_under_the_data_set_does_not_matter(home, disk, capsys):
    shutil.copytree(home / "set", disk.folder / "set")
    helpers.write_data(home / "set" / "data.yaml", disk.folder / "set")
    disk.fill()
    assert train(capsys, *new_run("runs")) == (0, "")
    is_whole(home / "runs" / "r")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "its disk took only a part",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "its disk took only a part"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
            "its disk took only a part",
        ),
        (
            OSError(errno.EFBIG, "File too large", "last.pt"),
            "last.pt: File too large. Make room and go on with --resume",
        ),
        (OSError(errno.EIO, "Input/output error"), "a file: Input/output error"),
        (FileNotFoundError("Image Not Found /set/a b.png"), "Expected the image /set/a b.png, which was there"),
        (
            FileNotFoundError(f"Image Not Found {__file__}"),
            "One that OpenCV never could decode, as a TIFF of floats, has to be converted.",
        ),
        (RuntimeError("selected index k out of range"), "take a larger one"),
        (KeyError("boxes"), None),
    ],
)
def test_what_torch_and_the_system_say_in_mid_run_becomes_one_line(error, words):
    with pytest.raises(AdaPrunerError if words else KeyError) as caught, one_line_errors("x.yaml"):
        raise error
    assert words is None or words in str(caught.value)


# Several runs on one data set


def outcome(folder: Path) -> tuple[list[str], list[dict[str, float]]]:
    """What a run found, without the time it took."""
    rows = [{k: v for k, v in row.items() if k != "time"} for row in helpers.results(folder)]
    kept = folder / "kept.txt"
    return helpers.read_list(kept) if kept.exists() else [], rows


PLAIN = """
import json, sys
from ultralytics import YOLO
YOLO(sys.argv[1]).train(data=sys.argv[2], project=sys.argv[3], name=sys.argv[4], **json.loads(sys.argv[5]))
"""


@pytest.mark.slow
def test_runs_at_the_same_time_on_one_data_set_find_what_each_finds_alone(home):
    """One on the full set, one on a pruned list, one of plain Ultralytics, which rewrites the label cache of both."""
    pruned = home / "pruned.txt"
    pruned.write_text("".join(f"{path}\n" for path in training_images(home / "set" / "data.yaml")[:12]))
    data = helpers.write_data(home / "pruned.yaml", home / "set", train=str(pruned))

    def start(project: str) -> list[subprocess.Popen[str]]:
        plain = [PLAIN, "small.yaml", str(data), str(home / project), "plain", json.dumps({**helpers.QUICK})]
        words = ["train", "run.yaml", "--prune", str(SHARE), f"project={project}", *SETTINGS]
        return [
            helpers.start_cli(*words, "--name", "full", cwd=home),
            helpers.start_cli(*words, "--name", "pruned", "--data", data, cwd=home),
            subprocess.Popen(
                [sys.executable, "-c", *plain],
                cwd=home,
                env=helpers.child_environment(),
                stdout=-3,
                stderr=-1,
                text=True,
            ),
        ]

    for process in start("together"):
        _, err = process.communicate()
        assert process.returncode == 0, err
    for words in (["--name", "full"], ["--name", "pruned", "--data", str(data)]):
        assert main(["train", "run.yaml", "--prune", str(SHARE), "project=alone", *SETTINGS, *words]) == 0
    for name in ("full", "pruned"):
        assert outcome(home / "together" / name) == outcome(home / "alone" / name)


@pytest.mark.slow
@pytest.mark.long
def test_a_label_cache_that_others_tear_and_rewrite_all_the_time_does_not_matter(home, capsys):
    cache, done = home / "set" / "labels" / "train.cache", threading.Event()

    def tear():
        contents = [b"", b"\x93NUMPY\x01\x00", os.urandom(2000)]
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                cache.unlink()
            time.sleep(0.001)
            cache.write_bytes(contents[0])
            contents.append(contents.pop(0))

    thread = threading.Thread(target=tear)
    thread.start()
    try:
        for i in range(5):
            assert train(capsys, *new_run(f"runs{i}")) == (0, "")
    finally:
        done.set()
        thread.join()
    found = [outcome(home / f"runs{i}" / "r") for i in range(5)]
    assert found.count(found[0]) == 5


@pytest.mark.slow
def test_a_stale_label_cache_of_ultralytics_own_is_not_believed(home, capsys):
    """Same list, same sizes, same times, other labels: what the label files say counts."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset

    image = training_images(home / "set" / "data.yaml")[0]
    label = label_of(image)
    stat, there = label.stat(), label.read_text()
    args = {"data": {"names": dict(enumerate(helpers.NAMES))}, "task": "detect", "hyp": get_cfg(), "augment": False}
    YOLODataset(str(image.parent), **args)
    assert (home / "set" / "labels" / "train.cache").exists()
    line = there.splitlines()[0]
    label.write_text(there.replace(line, f"{(int(line[0]) + 1) % 3}{line[1:]}", 1))
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stock = YOLODataset(str(image.parent), **args).labels[0]["cls"][0, 0]
    trainer = helpers.new_trainer(home / "set" / "data.yaml", home / "runs" / "r")
    trainer._setup_train()
    assert stock == int(line[0])
    assert trainer.train_loader.dataset.labels[0]["cls"].tolist() != [[stock]] * len(there.splitlines())
