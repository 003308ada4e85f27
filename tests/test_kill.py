"""Twenty times SIGKILL: whatever the moment, the resumed run ends where the run that nothing killed ends, bit for bit.

Three runs, each killed and resumed again and again until it is through, so that a run has up to seven kills behind it.
Moments by the clock fall anywhere in or after the start of a given epoch; the others are in the middle of a write or
between two, which a clock seldom hits.
"""

import os
import random
import shutil
import signal

import pytest
import yaml
from ultralytics.models.yolo.detect import DetectionTrainer

from tests import helpers
from tests.helpers import QUICK
from tests.killing import Kill, Killer, different
from tests.test_resume import wait_for_epochs

pytestmark = [pytest.mark.slow, pytest.mark.alone]

EPOCHS = 8  # two of warm-up, two joint, four of fine-tune
STAGES = [1, 1, 2, 2, 3, 3, 3, 3]
END_TO_END = {**helpers.ARCHITECTURE, "end2end": True}
CLOCK = "clock"
RUNS = {
    # The last batch is not full, mosaic draws from its buffer and closes in the fine-tune stage.
    "mosaic": (
        {"model": "start.pt", "mosaic": 0.7, "mixup": 0.3, "close_mosaic": 3, "save_period": 3},
        [
            (1, CLOCK),
            (2, Kill("write adaprune.pt", count=700)),
            (3, CLOCK),
            (4, Kill("replaced adaprune.pt")),
            (5, CLOCK),
            (6, CLOCK),
            (8, Kill("strip best.pt")),
        ],
    ),
    # Four batches an epoch and a step every third: gradients are pending where epochs end, but for the warm-up's ramp.
    "accumulate": (
        {"model": "start.pt", "nbs": 24, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 1.5, "multi_scale": 0.5},
        [
            (1, Kill("write adaprune.pt", count=5)),
            (2, CLOCK),
            (3, Kill("write last.pt")),
            (4, CLOCK),
            (5, Kill("replace adaprune.pt")),
            (7, CLOCK),
            (8, Kill("replace mask.npz")),
        ],
    ),
    # The mix of an end-to-end model's two heads drifts from epoch to epoch.
    "end-to-end": (
        {
            "model": "end.yaml",
            "batch": 9,
            "close_mosaic": 6,
            "mosaic": 1.0,
            "cos_lr": True,
            "prune.validate_all": True,  # or no late epoch could be the best
        },
        [
            (1, CLOCK),
            (2, Kill("event on_model_save")),
            (3, CLOCK),
            (5, Kill("replace best.pt")),
            (6, CLOCK),
            (8, Kill("remove adaprune.pt")),
        ],
    ),
}
MOMENTS = sum(len(moments) for _, moments in RUNS.values())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A set of 27 images, a detector that finds something on it, an untrained end-to-end one, and a run config."""
    home = tmp_path_factory.mktemp("home")
    data = helpers.build_set(home / "set", train=27)
    helpers.write_architecture(home / "small.yaml")
    (home / "end.yaml").write_text(yaml.safe_dump(END_TO_END), encoding="utf-8")
    settings = {"epochs": 24, "lr0": 0.01, "warmup_epochs": 1, "scale": 0.2, "val": False, "save_dir": str(home / "s")}
    trainer = DetectionTrainer(overrides={**QUICK, "model": str(home / "small.yaml"), "data": str(data), **settings})
    trainer.train()
    shutil.move(trainer.best, home / "start.pt")
    config = {"model": "small.yaml", "data": "set/data.yaml", "prune": {"share": 0.25, "warmup": 2}}
    (home / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def killer(home):
    with Killer(home) as killer:
        yield killer


def words(name, settings):
    return ["train", "run.yaml", "--name", name, *helpers.cli_words({**QUICK, "epochs": EPOCHS, **settings})]


def test_there_are_twenty_kills_in_all_stages_and_in_writes():
    moments = [moment for _, moments in RUNS.values() for moment in moments]
    assert len(moments) == 20
    assert {STAGES[epoch - 1] for epoch, kill in moments if kill is CLOCK} == {1, 2, 3}
    assert sum(kill is not CLOCK and kill.act.startswith("write") for _, kill in moments) >= 3


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_ends_where_one_that_nothing_killed_ends(killer, home, name, record_property):
    settings, moments = RUNS[name]
    whole, folder = home / "runs" / "adaprune" / f"{name}-whole", home / "runs" / "adaprune" / name
    end = killer.run(*words(whole.name, settings))
    assert end.status == 0, end.said
    assert helpers.stages(whole) == STAGES
    draw = random.Random(f"{name} 3")
    command = words(name, settings)
    for epoch, kill in moments:
        if kill is CLOCK:
            kill = Kill("event on_train_epoch_start", after=draw.uniform(0, end.epoch_seconds))
        killed = killer.run(*command, kill=Kill(kill.act, epoch, kill.count, kill.after))
        assert killed.status == -signal.SIGKILL, (epoch, kill, killed.said)
        print(f"\n{name}: {kill}: {killed.moment}, {killed.lost} batches lost", end="")
        command = ["train", "--resume", folder]
    finished = killer.run(*command)
    assert finished.status == 0, finished.said
    assert different(whole, folder) == []
    assert not list(folder.rglob(".*"))
    if name != "end-to-end":  # that one finds nothing yet
        assert len({row["metrics/mAP50-95(B)"] for row in helpers.results(whole)}) > 3


def test_a_run_killed_in_a_process_of_its_own_and_resumed_in_another_ends_the_same(killer, home):
    """The runs above are forks of one process, and share what Python draws once a process, such as hashes."""
    settings, _ = RUNS["mosaic"]
    whole = home / "runs" / "adaprune" / "fork"
    assert killer.run(*words("fork", settings)).status == 0
    folder = home / "runs" / "adaprune" / "own"
    process = helpers.start_cli(*words("own", settings), cwd=home)
    wait_for_epochs(process, folder / "results.csv", 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    process = helpers.start_cli("train", "--resume", folder, cwd=home)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert different(whole, folder) == []


def test_a_run_killed_before_its_config_was_written_says_so_in_one_line(killer, home):
    killed = killer.run(*words("early", {"model": "start.pt"}), kill=Kill("replace adaprune.yaml"))
    assert killed.status == -signal.SIGKILL
    folder = home / "runs" / "adaprune" / "early"
    end = killer.run("train", "--resume", folder)
    assert (end.status, end.said) == (
        2,
        f"yolo-adapruner: Expected an interrupted run in {folder}, but it has no adaprune.yaml: start a new run.\n",
    )
