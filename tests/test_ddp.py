"""Two processes train one mask: the same on both, every image once, and what one process would have kept.

`tests.two_processes` stands in for what upstream does on accelerators alone; its launcher, its worker script and its
sampler are the real ones.
"""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data.distributed import DistributedSampler

from tests import helpers
from tests.helpers import QUICK, read_list, results, stages
from yolo_adapruner import PruneConfig
from yolo_adapruner.cli import main
from yolo_adapruner.config import load
from yolo_adapruner.core import distributed
from yolo_adapruner.data import export
from yolo_adapruner.engine import run
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.launch import launching
from yolo_adapruner.errors import AdaPrunerError, ConfigError, DataError, RunError

N, RUINED, EPOCHS = 201, 20, 24
STILL = {**dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0), "augmentations": []}


# The parts


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 25])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_image_of_an_epoch_counts_on_one_rank_once(total, ranks):
    counted = []
    for rank in range(ranks):
        sampler = DistributedSampler(range(total), num_replicas=ranks, rank=rank, shuffle=True, seed=3)
        drawn = np.array(list(sampler))
        for first in range(0, len(drawn), 4):
            batch = drawn[first : first + 4]
            counted += list(batch[~distributed.repeated(sampler, first, len(batch))])
    assert sorted(counted) == list(range(total))


def test_without_a_group_nothing_is_added_shared_or_left_out():
    array = np.arange(6.0).reshape(2, 3)
    distributed.add_up((array,), torch.device("cpu"))
    assert (array == np.arange(6.0).reshape(2, 3)).all()
    assert distributed.of_first(0.25, torch.device("cpu")) == 0.25
    assert not distributed.repeated(torch.utils.data.SequentialSampler(range(3)), 0, 9).any()


@pytest.mark.slow
def test_sums_are_the_same_on_all_ranks_and_in_the_order_of_ranks(tmp_path):
    """1e16 + 1 - 1e16 is 0 or 1 by the order: three processes, each with one of the terms."""
    script = (
        "import numpy as np, torch; from yolo_adapruner.core import distributed; "
        "sums, counts = np.array([[1e16, 1.0, -1e16][rank], rank]), np.array([rank], np.int32); "
        "distributed.add_up((sums, counts), torch.device('cpu')); "
        "print(sums.tolist(), counts.tolist(), distributed.of_first(0.1 + rank, torch.device('cpu')))"
    )
    said = helpers.run_ranks(script, 3, tmp_path / "meet")
    assert said == [f"[{1e16 + 1.0 - 1e16}, 3.0] [3] 0.1\n"] * 3


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_with_what_it_said(tmp_path):
    """A rank that waits for one that is gone would have the test wait for its limit."""
    with pytest.raises(RuntimeError, match=r"(?s)^rank 1 ended with 7: .*no more"):
        helpers.run_ranks(
            "import os, time\nif rank: print('no more', file=sys.stderr, flush=True); os._exit(7)\ntime.sleep(900)",
            2,
            tmp_path / "meet",
        )


def launch(command: list[str]) -> None:
    with launching():
        subprocess.run(command, check=True, env=helpers.child_environment())


@pytest.mark.slow
@pytest.mark.parametrize("error", [ConfigError, DataError, RunError])
def test_the_line_of_a_launched_process_ends_the_launching_one(error):
    script = (
        "from yolo_adapruner.engine.launch import launched; from yolo_adapruner import errors\n"
        f"with launched('d.yaml'): raise errors.{error.__name__}('Expected this, but got that: do so.')"
    )
    with pytest.raises(error, match=r"^Expected this, but got that: do so\.$"):
        launch([sys.executable, "-c", script])


@pytest.mark.slow
def test_what_a_launched_process_finds_wrong_with_the_data_is_one_line():
    script = (
        "from yolo_adapruner.engine.launch import launched\n"
        "with launched('d.yaml'): raise RuntimeError('No valid images found in x')"
    )
    with pytest.raises(DataError, match=r"^Data set d.yaml: No valid images found in x$"):
        launch([sys.executable, "-c", script])


def test_launched_processes_that_end_without_a_line_are_a_line():
    with pytest.raises(RunError, match=r"the launched processes .* ended with exit code 7: see what they wrote above"):
        launch([sys.executable, "-c", "raise SystemExit(7)"])


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_launched_processes_end_with_the_launching_one(tmp_path, signal_):
    """Whatever ends it, and although torch's launcher, which stands between, is only killed or left behind."""
    worker = (
        "import os, time; from pathlib import Path; from yolo_adapruner.engine.launch import launched\n"
        f"with launched('d.yaml'): Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}}.'); time.sleep(300)"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], start_new_session=True)"
    script = (
        "import polars, subprocess, sys; from yolo_adapruner.engine.launch import launching\n"
        f"with launching(): subprocess.run([sys.executable, '-c', {launcher!r}], check=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=helpers.child_environment(),
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith("."):
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text()[:-1])
    process.send_signal(signal_)
    assert process.wait(timeout=60) == -signal_
    until = time.monotonic() + 60
    while helpers.alive(pid):
        assert time.monotonic() < until, "a launched process outlived the launching one"
        time.sleep(0.05)


@pytest.mark.parametrize("batch", [-1, 0.5, 2])
def test_a_batch_has_an_image_for_each_device(tmp_path, batch):
    with pytest.raises(ConfigError, match=rf"at least an image a device, but got batch={batch} for 3 devices"):
        helpers.new_trainer(helpers.build_set(tmp_path / "set"), tmp_path / "run", batch=batch, device="0,1,2")


# Whole runs


def ruin(data: Path, seed: int) -> None:
    """Put the boxes of some images where nothing is, under another class."""
    rng = np.random.default_rng(seed)
    images = helpers.training_images(data)
    for i in rng.choice(len(images), RUINED, replace=False):
        label = helpers.label_of(images[i])
        classes = [(int(line.split()[0]) + 1) % 3 for line in label.read_text().splitlines()]
        boxes = [f"{c} {rng.choice([0.1, 0.9])} {rng.choice([0.1, 0.9])} 0.15 0.15\n" for c in classes]
        label.write_text("".join(boxes))


def train(kind: str, home: Path, folder: str, patch: pytest.MonkeyPatch, **settings) -> run.RunResult:
    from tests import two_processes

    (home / f"{folder}-notes").mkdir()
    patch.setenv(two_processes.NOTES, str(home / f"{folder}-notes"))
    patch.setattr(run, "trainer_for", lambda task: getattr(two_processes, kind))
    base = {"model": str(home / "small.yaml"), "data": str(home / "set" / "data.yaml")}
    return run.train(load(base, {**QUICK, **STILL, **settings}), save_dir=home / folder)


def notes(home: Path, folder: str, rank: int) -> dict[str, dict[str, np.ndarray]]:
    """What a process left after each epoch and at the end, by moment."""
    files = sorted((home / f"{folder}-notes").glob(f"{rank}-*.npz"))
    assert files
    return {file.stem.split("-")[1]: dict(np.load(file)) for file in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A set of 201 images, 20 of them ruined, and two runs on it, one in one process and one in two."""
    home = tmp_path_factory.mktemp("home")
    ruin(helpers.build_set(home / "set", train=N, val=24, empty=0), seed=1)
    helpers.write_architecture(home / "small.yaml")
    prune = {"share": RUINED / N, "warmup": 16, "joint": 0.25}
    for kind, folder in (("Noted", "one"), ("TwoOnCpu", "two")):
        with pytest.MonkeyPatch.context() as patch:
            train(kind, home, folder, patch, prune=prune, epochs=EPOCHS, batch=16, nbs=16)
    return home


@pytest.mark.slow
def test_both_ranks_hold_the_same_mask_bit_for_bit(home):
    first, second = notes(home, "two", 0), notes(home, "two", 1)
    assert list(first) == list(second) == [*(f"{epoch:02}" for epoch in range(EPOCHS)), "end"]
    for moment, held in first.items():
        for name in held.keys() - {"drawn", "once", "writes"}:
            np.testing.assert_array_equal(held[name], second[moment][name], err_msg=f"{moment} {name}")
    assert [int(note["stage"]) for note in first.values()] == [1] * 16 + [2] * 6 + [3] * 3
    assert len(np.unique(first["end"]["logits"])) > N / 2  # they did move
    assert np.isfinite(first["end"]["suspicion"]).all()  # the judge did learn
    assert np.isfinite(first["end"]["similarity"]).all()  # images were compared


@pytest.mark.slow
def test_padding_is_trained_on_and_counted_once(home):
    first, second = notes(home, "two", 0), notes(home, "two", 1)
    for moment in first.keys() - {"end"}:
        ranks = (first[moment], second[moment])
        drawn, once = (np.concatenate([rank[name] for rank in ranks]) for name in ("drawn", "once"))
        images, stage = first[moment]["asked"], first[moment]["stage"]
        np.testing.assert_array_equal(images, second[moment]["asked"])
        if stage != 2:
            np.testing.assert_array_equal(images, np.flatnonzero(first[moment]["kept"]) if stage == 3 else np.arange(N))
            assert len(images) % 2  # so that one is padding
        assert len(drawn) == len(images) + len(images) % 2
        assert sorted(drawn[once]) == list(images)
        visits = np.isin(np.arange(N), images) & (stage != 3)
        np.testing.assert_array_equal(first[moment]["visits"], visits)


@pytest.mark.slow
def test_one_process_keeps_the_same_images(home):
    one, two = notes(home, "one", 0)["end"], notes(home, "two", 0)["end"]
    assert list(one["paths"]) == list(two["paths"])
    assert (one["kept"] == two["kept"]).mean() >= 0.99
    assert not (one["weights"] == two["weights"]).all()  # and yet it is another training


@pytest.mark.slow
def test_the_first_rank_alone_writes_the_run_folder(home):
    first, second = (notes(home, "two", rank)["end"]["writes"] for rank in (0, 1))
    assert any("results.csv" in write for write in first)
    assert any("kept.txt" in write for write in first)
    assert list(second) == []
    assert not list((home / "two").rglob("*.tmp"))


@pytest.mark.slow
def test_results_come_back_through_files(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaPruneTrainer, "train", lambda self: None)
        patch.setattr(AdaPruneTrainer, "__init__", lambda self: None)
        trainer = AdaPruneTrainer()
        trainer.seconds_before = 0.0
        trainer.save_dir, trainer.best = str(home / "two"), home / "two" / "weights" / "best.pt"
        result = run._finish(trainer)
    manifest, outcome = export.read(home / "two")
    assert (result.total, result.kept) == (N, N - RUINED) == (len(outcome.paths), len(read_list(home / "two/kept.txt")))
    assert result.map50_95 == manifest["best_validation"]["metrics/mAP50-95(B)"] > 0.3
    drawn = [int(row["prune/images"]) for row in results(home / "two")]  # in batches of 8 on each of two processes
    assert result.updates == sum(math.ceil(math.ceil(images / 2) / 8) for images in drawn)
    assert result.weights.is_file()
    assert result.data.is_file()


@pytest.mark.slow
def test_the_run_folder_is_the_one_a_single_process_leaves(home):
    def names(folder):
        return sorted(str(path.relative_to(home / folder)) for path in (home / folder).rglob("*"))

    assert names("two") == names("one")
    assert stages(home / "two") == stages(home / "one") == [1] * 16 + [2] * 6 + [3] * 2
    one, two = (yaml.safe_load((home / folder / run.RUN_CONFIG).read_text()) for folder in ("one", "two"))
    assert one == two
    assert load(home / "two" / run.RUN_CONFIG).prune == PruneConfig(share=RUINED / N, warmup=16, joint=0.25)
    assert set(results(home / "two")[0]) == set(results(home / "one")[0])


@pytest.mark.slow
def test_a_failed_run_in_two_processes_is_resumed_in_two(tmp_path, monkeypatch):
    """On the way an epoch of the joint stage comes out NaN, which both must train again."""
    from tests import two_processes

    helpers.build_set(tmp_path / "set", train=25)
    helpers.write_architecture(tmp_path / "small.yaml")
    monkeypatch.setenv(two_processes.EVENTS, "nan:3,fail:5")
    prune = {"share": 0.2, "warmup": 1, "joint": 0.6}
    with pytest.raises(AdaPrunerError, match=r"^Expected nothing, but epoch 5 fails: it was asked to\.$"):
        train("TwoOnCpu", tmp_path, "run", monkeypatch, prune=prune, epochs=6)
    stopped = notes(tmp_path, "run", 0)
    assert list(stopped) == ["00", "01", "02", "03"]
    assert (stopped["03"]["counts"][:, -1] == 3).all()
    assert (stopped["02"]["visits"] == 1).all()

    monkeypatch.delenv(two_processes.EVENTS)
    result = run.resume(tmp_path / "run")
    first, second = notes(tmp_path, "run", 0), notes(tmp_path, "run", 1)
    assert list(first) == list(second) == ["00", "01", "02", "03", "04", "05", "end"]
    for moment, held in first.items():
        np.testing.assert_array_equal(held["logits"], second[moment]["logits"], err_msg=moment)
        np.testing.assert_array_equal(held["counts"], second[moment]["counts"], err_msg=moment)
    asked = np.isin(np.arange(25), first["04"]["asked"])  # what three epochs have decided on may rest in the fourth
    np.testing.assert_array_equal(first["04"]["counts"][:, -1], 3 + asked)
    assert asked.sum() >= 20
    assert [row["epoch"] for row in results(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert result.kept == 20 == len(read_list(tmp_path / "run" / "kept.txt"))


@pytest.mark.slow
def test_a_launched_group_of_one_keeps_what_a_process_by_itself_keeps(tmp_path, monkeypatch):
    """Bit for bit: going through the group's sums and the launcher changes nothing."""
    helpers.build_set(tmp_path / "set", train=25)
    helpers.write_architecture(tmp_path / "small.yaml")
    prune = {"share": 0.2, "warmup": 1, "joint": 0.6}
    alone, launched = (
        train(kind, tmp_path, folder, monkeypatch, prune=prune, epochs=6)
        for kind, folder in (("Noted", "alone"), ("OneLaunched", "launched"))
    )
    for moment, held in notes(tmp_path, "alone", 0).items():
        for name in held.keys() - {"writes"}:
            np.testing.assert_array_equal(held[name], notes(tmp_path, "launched", 0)[moment][name], err_msg=name)
    assert (alone.kept, alone.updates, alone.map50_95) == (launched.kept, launched.updates, launched.map50_95)


@pytest.mark.slow
def test_what_launched_processes_refuse_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    from tests import two_processes

    helpers.build_set(tmp_path / "set", train=12)
    helpers.write_architecture(tmp_path / "small.yaml")
    config = {"model": "small.yaml", "data": "set/data.yaml", "prune": {"share": 0.5}, "project": "runs"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "trainer_for", lambda task: two_processes.TwoOnCpu)
    assert main(["train", "run.yaml", "--name", "r", *helpers.cli_words(QUICK)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "prune 0.5 of 12 images leaves 6 with batch 8: prune less or take a smaller batch" in error
    assert not (tmp_path / "runs").exists()
