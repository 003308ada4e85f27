"""A run that was interrupted ends as one that was not, and refuses to go on from what is not its own.

Interruptions are raised where they hurt: in a batch of each stage, and between the files an epoch is saved in. Kills:
`test_kill.py`.
"""

import csv
import shutil
import signal
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics.models.yolo.detect import DetectionTrainer

from tests import helpers
from tests.helpers import QUICK, read_list, results, stages, train_here, training_images
from tests.killing import different
from yolo_adapruner import AdaPruneTrainer, PruneConfig
from yolo_adapruner.cli import main
from yolo_adapruner.engine import state

pytestmark = pytest.mark.slow

EPOCHS = 6  # two of warm-up, two joint, two of fine-tune
INTERRUPTED = "yolo-adapruner: interrupted; what is on disk can be resumed with --resume RUN"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A set of 24 images, the small architecture and a run config."""
    home = tmp_path_factory.mktemp("home")
    helpers.build_set(home / "set")
    helpers.write_architecture(home / "small.yaml")
    config = {"model": "small.yaml", "data": "set/data.yaml", "prune": {"share": 0.25, "warmup": 2, "joint": 0.3}}
    (home / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return home


def run_words(name: str, **settings: object) -> list[str]:
    return ["train", "run.yaml", "--name", name, *helpers.cli_words({**QUICK, "epochs": EPOCHS, **settings})]


@pytest.fixture(scope="module")
def whole(home):
    """The run that nothing interrupts."""
    with helpers.working_directory(home):
        assert main(run_words("whole")) == 0
    return home / "runs" / "adaprune" / "whole"


def interrupt_in_batch(patch, epoch):
    """Raise KeyboardInterrupt in the second batch of an epoch, counted from 1, once."""
    original = AdaPruneTrainer.optimizer_step
    steps = []

    def step(self):
        original(self)
        steps.append(self.epoch + 1)
        if steps.count(epoch) == 2:
            raise KeyboardInterrupt

    patch.setattr(AdaPruneTrainer, "optimizer_step", step)


def interrupt_between_state_and_checkpoint(patch, epoch):
    original = DetectionTrainer.save_model

    def save(self):
        if self.epoch + 1 == epoch:
            raise KeyboardInterrupt
        return original(self)

    patch.setattr(DetectionTrainer, "save_model", save)


def interrupt_after_saving(patch, epoch):
    original = AdaPruneTrainer.save_model

    def save(self):
        original(self)
        if self.epoch + 1 == epoch:
            raise KeyboardInterrupt

    patch.setattr(AdaPruneTrainer, "save_model", save)


@pytest.fixture(scope="module")
def interrupted(home):
    """A function that runs the command line in `home` up to an interruption, and returns the run folder."""

    def run(name, interrupt, epoch):
        with helpers.working_directory(home), pytest.MonkeyPatch.context() as patch:
            interrupt(patch, epoch)
            assert main(run_words(name)) == 130
        return home / "runs" / "adaprune" / name

    return run


@pytest.fixture(scope="module")
def joint(interrupted):
    """A run interrupted in the second epoch of its joint stage. Not to be changed: copy it."""
    return interrupted("joint", interrupt_in_batch, 4)


def check_finished(folder):
    assert stages(folder) == [1, 1, 2, 2, 3, 3]
    assert [row["epoch"] for row in results(folder)] == [1, 2, 3, 4, 5, 6]
    assert (len(read_list(folder / "kept.txt")), len(read_list(folder / "dropped.txt"))) == (18, 6)
    assert yaml.safe_load((folder / "pruned.yaml").read_text())["train"] == str(folder / "kept.txt")
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
        assert {row["epochs_seen"] for row in csv.DictReader(stream)} == {"2"}  # no joint epoch is judged twice


@pytest.mark.parametrize(
    ("name", "interrupt", "epoch"),
    helpers.gate_runs(
        [
            ("in-warm-up", interrupt_in_batch, 2),
            ("in-joint-first", interrupt_in_batch, 3),
            ("in-joint", interrupt_in_batch, 4),
            ("in-fine-tune-first", interrupt_in_batch, 5),
            ("in-fine-tune", interrupt_in_batch, 6),
            ("torn-save-in-joint", interrupt_between_state_and_checkpoint, 4),
            ("torn-save-in-fine-tune", interrupt_between_state_and_checkpoint, 6),
            ("after-joint", interrupt_after_saving, 4),
            ("at-once", interrupt_in_batch, 1),
            ("after-all", interrupt_after_saving, EPOCHS),
        ],
        *(2, 3, 5, 7, 8),
    ),
)
def test_an_interrupted_run_ends_as_the_run_that_nothing_interrupts(
    interrupted, whole, capsys, tmp_path, monkeypatch, name, interrupt, epoch
):
    folder = interrupted(name, interrupt, epoch)
    assert capsys.readouterr().err.split("\n") == ["", INTERRUPTED, ""]
    monkeypatch.chdir(tmp_path)  # a run knows its files from anywhere
    assert main(["train", "--resume", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "kept 18 of 24 training images, dropped 6 (25.0%)" in out
    check_finished(folder)
    assert list(tmp_path.iterdir()) == []
    assert different(whole, folder) == []
    assert not (folder / "weights" / state.NAME).exists()
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize(
    ("epoch", "settings"),
    [(5, {}), (8, {}), (6, {"mosaic": 1.0, "close_mosaic": 3}), (7, {"mosaic": 1.0, "close_mosaic": 2})],
    ids=["first-epoch", "last-but-one", "mosaic-closed-before", "mosaic-closes"],
)
def test_a_run_with_a_budget_of_updates_is_resumed_as_exactly(home, monkeypatch, tmp_path_factory, epoch, settings):
    monkeypatch.chdir(tmp_path_factory.mktemp("updates"))
    for name in ("set", "small.yaml", "run.yaml"):
        Path(name).symlink_to(home / name)
    longer = ["--prune", "0.5", "prune.budget=updates"]
    assert main([*run_words("whole", **settings), *longer]) == 0
    with monkeypatch.context() as patch:
        interrupt_after_saving(patch, epoch)
        assert main([*run_words("cut-off", **settings), *longer]) == 130
    runs = Path("runs/adaprune").absolute()
    assert main(["train", "--resume", str(runs / "cut-off")]) == 0
    assert stages(runs / "whole") == [1, 1, 2, 2, *[3] * 4]
    assert different(runs / "whole", runs / "cut-off") == []


def test_stock_training_is_resumed_as_exactly(home, monkeypatch):
    monkeypatch.chdir(home)
    runs = home / "runs" / "adaprune"
    assert main([*run_words("stock-whole"), "--prune", "0"]) == 0
    with monkeypatch.context() as patch:
        interrupt_in_batch(patch, 3)
        assert main([*run_words("stock"), "--prune", "0"]) == 130
    assert main(["train", "--resume", str(runs / "stock")]) == 0
    assert different(runs / "stock-whole", runs / "stock") == []


def test_a_run_started_anew_in_a_folder_does_not_go_on_from_an_earlier_run_s_state(joint, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    folder = shutil.copytree(joint, tmp_path / "run")
    words = [*run_words("run", project=tmp_path, exist_ok=True)]
    with monkeypatch.context() as patch:
        interrupt_in_batch(patch, 1)
        assert main(words) == 130
    assert not (folder / "weights" / state.NAME).exists()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_started_anew_in_a_finished_run_s_folder_is_resumed(whole, home, tmp_path, monkeypatch, epoch):
    monkeypatch.chdir(home)
    folder = shutil.copytree(whole, tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_in_batch(patch, epoch)
        assert main([*run_words("run", project=tmp_path, exist_ok=True), "--prune", "0.5"]) == 130
    assert not any((folder / name).exists() for name in ("manifest.json", "kept.txt", "scores.csv", "report.html"))
    assert main(["train", "--resume", str(folder)]) == 0
    assert len((folder / "dropped.txt").read_text().splitlines()) == 12


@pytest.mark.parametrize("spoil", [lambda f: f.write_bytes(b"torn"), lambda f: f.unlink()])
def test_a_resume_needs_no_checkpoint_of_ultralytics(joint, whole, tmp_path, spoil):
    folder = shutil.copytree(joint, tmp_path / "run")
    spoil(folder / "weights" / "last.pt")
    spoil(folder / "weights" / "best.pt")
    (folder / "weights" / ".last.pt.123.tmp").write_bytes(b"left by a kill")
    assert main(["train", "--resume", str(folder)]) == 0
    assert different(whole, folder) == []
    assert not list(folder.rglob(".*"))


def test_a_folder_that_was_moved_is_resumed_where_it_is(joint, whole, tmp_path):
    folder = shutil.copytree(joint, tmp_path / "anderswo")
    before = (joint / "weights" / "last.pt").read_bytes()
    assert main(["train", "--resume", str(folder)]) == 0
    check_finished(folder)
    assert different(whole, folder) == []
    assert (joint / "weights" / "last.pt").read_bytes() == before


def test_ultralytics_own_resume_takes_the_mask_along(joint, whole, tmp_path):
    from ultralytics import YOLO

    folder = shutil.copytree(joint, tmp_path / "run")
    kind = AdaPruneTrainer.configured(PruneConfig(share=0.25, warmup=2, joint=0.3))
    YOLO(str(folder / "weights" / "last.pt")).train(resume=True, trainer=kind, save_dir=str(folder))
    check_finished(folder)
    assert different(whole, folder) == []


def wait_for_epochs(process, table: Path, count: int) -> None:
    """Wait until a run has closed so many epochs."""
    while process.poll() is None:
        if table.is_file() and len(table.read_text(encoding="utf-8").splitlines()) > count:
            return
        time.sleep(0.005)
    out, err = process.communicate()
    pytest.fail(f"the run ended with {process.returncode} before epoch {count}:\n{out}\n{err}")


@pytest.mark.parametrize(
    ("stage", "prune"),
    helpers.gate_runs([(2, {"warmup": 1, "joint": 0.9}), (3, {"warmup": 1, "joint": 0.05})], 0),
)
def test_sigint_ends_the_command_line_with_130_and_one_line(home, tmp_path, monkeypatch, stage, prune):
    monkeypatch.chdir(tmp_path)
    config = {"model": str(home / "small.yaml"), "data": str(home / "set" / "data.yaml"), "prune": prune}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    process = helpers.start_cli(*run_words("r", epochs=24), cwd=tmp_path)
    folder = tmp_path / "runs" / "adaprune" / "r"
    wait_for_epochs(process, folder / "results.csv", 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.split("\n") == ["", INTERRUPTED, ""]
    assert stages(folder)[-1] == stage
    assert not list(folder.rglob("*.tmp"))
    assert main(["train", "--resume", str(folder)]) == 0
    assert [row["epoch"] for row in results(folder)] == list(range(1, 25))
    assert len(read_list(folder / "dropped.txt")) == round(0.1 * 24)


# What is refused


def torn(folder):
    file = folder / "weights" / state.NAME
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(folder):
    """A bit that changed in the middle of the file, among the weights, where torch does not look."""
    file = folder / "weights" / state.NAME
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edited(change):
    def edit(folder):
        file = folder / "weights" / state.NAME
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return edit


def other_list(folder):
    """The images a user took away meanwhile; the folder's own set, so that no other test misses them."""
    config = yaml.safe_load((folder / "adaprune.yaml").read_text())
    data = Path(config["data"])
    root = shutil.copytree(data.parent, folder.parent / "set")
    training_images(helpers.write_data(root / "data.yaml", root))[0].unlink()
    config["data"] = str(root / "data.yaml")
    (folder / "adaprune.yaml").write_text(yaml.safe_dump(config))


def own_set(folder):
    """Copy the set that a run was made on, so that no other test misses what is changed in it, and return its file."""
    config = yaml.safe_load((folder / "adaprune.yaml").read_text())
    root = shutil.copytree(Path(config["data"]).parent, folder.parent / "set")
    data = helpers.write_data(root / "data.yaml", root)
    config["data"] = str(data)
    (folder / "adaprune.yaml").write_text(yaml.safe_dump(config))
    state_of_own_set = edited(lambda c: c.update(images=[str(path) for path in training_images(data)]))
    state_of_own_set(folder)
    return data


def other_classes(*names):
    def edit(folder):
        data = own_set(folder)
        helpers.write_data(data, data.parent, names=dict(enumerate(names)))

    return edit


def other_settings(change):
    def edit(folder):
        file = folder / "adaprune.yaml"
        config = yaml.safe_load(file.read_text())
        change(config)
        file.write_text(yaml.safe_dump(config))

    return edit


class Harmful:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (Path("harm").touch, ())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (torn, "to be a state that this package wrote, but it cannot be read"),
        (lambda f: (f / "weights" / state.NAME).write_bytes(b""), "but it cannot be read"),
        (lambda f: (f / "weights" / state.NAME).write_bytes(b"no state\n"), "but it cannot be read"),
        (lambda f: torch.save(torch.zeros(3), f / "weights" / state.NAME), "but it cannot be read (Tensor)"),
        (edited(lambda c: c.pop("mask")), "but it cannot be read (mask missing)"),
        (lambda f: torch.save(Harmful(), f / "weights" / state.NAME), "but it cannot be read"),
        (flipped, "is damaged)"),
        (edited(lambda c: c.update(format=9)), "a state of format 5, but"),
        (lambda f: torch.save({"format": 1, "epochs": {}}, f / "weights" / state.NAME), "adaprune.pt has 1:"),
        (edited(lambda c: c["versions"].update(torch="1.0")), f"but torch 1.0 → {version('torch')}: install"),
        (edited(lambda c: c["versions"].update(ultralytics="8.0")), f"ultralytics 8.0 → {version('ultralytics')}"),
        (edited(lambda c: c["images"].append("/gone.png")), "Expected the 25 training images"),
        (edited(lambda c: c["images"].append("/gone.png")), "but 1 gone (first /gone.png): restore the list"),
        (edited(lambda c: c["images"].pop(0)), "but 1 new (first /"),
        (edited(lambda c: c["classes"].update({0: "disk"})), "the class names"),
        (edited(lambda c: c["classes"].update({0: "disk"})), "0 disk → disc"),
        (other_list, "but 24 gone (first "),
        (other_classes("disc", "square", "cross", "star"), "the class names that"),
        (other_classes("disc", "square", "cross", "star"), "but 3 None → star: restore them"),
        (other_settings(lambda c: c["prune"].update(share=0.5, tau=0.3)), "but share 0.25 → 0.5, tau 0.25 → 0.3: res"),
        (other_settings(lambda c: c.update(epochs=9)), "but epochs 6 → 9: restore them"),
        (other_settings(lambda c: c["train"].update(nbs=16)), "but train.nbs 8 → 16: restore them"),
        (lambda f: (f / "weights" / state.NAME).unlink(), "to go on from, but it is missing"),
        (lambda f: (f / "adaprune.yaml").unlink(), "it has no adaprune.yaml"),
        (lambda f: (f / "adaprune.yaml").write_text("model: ["), "to be a readable YAML file"),
    ],
)
def test_what_is_not_this_run_s_own_is_refused_in_one_line(joint, tmp_path, capsys, monkeypatch, spoil, words):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(joint, tmp_path / "run")
    spoil(folder)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "args.yaml"}
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("yolo-adapruner: Expected ")
    assert words in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path in kept} == kept
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("changed", [False, True])
def test_labels_that_changed_meanwhile_are_told(joint, tmp_path, monkeypatch, caplog, changed):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(joint, tmp_path / "run")
    images = training_images(own_set(folder))
    if changed:
        helpers.label_of(images[3]).write_text("0 .5 .5 .2 .2\n", encoding="utf-8")
    with caplog.at_level("WARNING"):
        assert main(["train", "--resume", "run"]) == 0
    assert ("labels of training images have changed since" in caplog.text) == changed


def test_a_finished_run_is_not_resumed(whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(whole)]) == 2
    err = capsys.readouterr().err
    assert err == f"yolo-adapruner: Expected an interrupted run, but {whole} is finished: nothing to resume.\n"
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


# What Ultralytics does over again by itself


def fail_once(patch, epoch, error):
    """Let the loss of an epoch's second batch fail once: raise `error`, or be NaN where it is None."""
    original = torch.nn.Module.__call__
    state = {"batches": 0, "done": False}

    def begin(trainer):
        state["batches"] = 0
        state["epoch"] = trainer.epoch + 1

    def call(self, *args, **kwargs):
        answer = original(self, *args, **kwargs)
        if type(self).__name__ == "DetectionModel" and self.training and args and isinstance(args[0], dict):
            state["batches"] += 1
            if state["epoch"] == epoch and state["batches"] == 2 and not state["done"]:
                state["done"] = True
                if error is not None:
                    raise error
                return answer[0] * torch.nan, answer[1]
        return answer

    patch.setattr(torch.nn.Module, "__call__", call)
    return begin


def test_an_epoch_that_ran_out_of_memory_is_begun_again(home, tmp_path, monkeypatch):
    """Ultralytics halves the batch and builds a new loader, whose samples say as well whose pixels they are."""
    begin = fail_once(monkeypatch, 1, RuntimeError("CUDA out of memory"))
    batches = []
    train_here(
        home / "set" / "data.yaml",
        tmp_path / "run",
        method={"warmup": 0},
        mosaic=1.0,
        close_mosaic=1,
        epochs=3,
        callbacks={
            "on_train_epoch_start": begin,
            "on_train_batch_end": lambda t: batches.append((t.epoch + 1, t.batch_size, set(t._batch_ids))),
        },
    )
    assert stages(tmp_path / "run") == [2, 3, 3]
    assert batches[0][1] == 8
    again = [(size, owners) for epoch, size, owners in batches[1:] if epoch == 1]
    assert [size for size, _ in again] == [4] * 6
    assert max(len(owners) for _, owners in again) > 4  # mixed
    assert set.union(*(owners for _, owners in again)) == set(range(24))
    with (tmp_path / "run" / "scores.csv").open(encoding="utf-8", newline="") as stream:
        counts = [int(row["epochs_seen"]) for row in csv.DictReader(stream)]
    assert max(counts) == 1
    assert sum(counts) >= 20  # a mosaic may cut a tile off
    assert len(read_list(tmp_path / "run" / "dropped.txt")) == 6


@pytest.mark.parametrize("epoch", helpers.gate_runs([3, 4, 5, 6], 1, 2))
def test_an_epoch_whose_loss_was_nan_is_trained_again_with_the_mask_as_it_was(home, tmp_path, monkeypatch, epoch):
    begin = fail_once(monkeypatch, epoch, None)
    started = []

    def start(trainer):
        begin(trainer)
        started.append((trainer.epoch + 1, int(trainer.pruner.stage)))

    train_here(
        home / "set" / "data.yaml",
        tmp_path / "run",
        method={"warmup": 2},
        epochs=EPOCHS,
        callbacks={"on_train_epoch_start": start},
    )
    expected = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    assert started == sorted([*expected, expected[epoch - 1]])
    check_finished(tmp_path / "run")


def test_nan_in_the_first_epoch_after_a_resume_ends_as_nan_there_in_a_run_that_goes_through(home, whole, monkeypatch):
    """Upstream recovers from last.pt, but knows of none in the first epoch of a process."""
    heard = AdaPruneTrainer.note

    def with_nan_in_epoch_4(patch, cut=False):
        begin = fail_once(patch, 4, None)

        def note(self, event):
            if event == "on_train_epoch_start":
                begin(self)
                if cut and self.epoch + 1 == 4:
                    raise KeyboardInterrupt
            heard(self, event)

        patch.setattr(AdaPruneTrainer, "note", note)

    monkeypatch.chdir(home)
    runs = home / "runs" / "adaprune"
    for name, cut in (("nan-whole", False), ("nan-cut", True)):
        with monkeypatch.context() as patch:
            with_nan_in_epoch_4(patch, cut)
            assert main(run_words(name)) == (130 if cut else 0)
    with monkeypatch.context() as patch:
        with_nan_in_epoch_4(patch)
        assert main(["train", "--resume", str(runs / "nan-cut")]) == 0
    assert different(runs / "nan-whole", runs / "nan-cut") == []
    assert "last.pt" in different(whole, runs / "nan-cut")
