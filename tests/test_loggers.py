"""The controller's columns reach the loggers that Ultralytics feeds, an epoch each, equal to results.csv."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import helpers
from tests.helpers import results, train_here

pytestmark = pytest.mark.slow

EPOCHS = helpers.QUICK["epochs"]
OURS = ("stage", "kept", "target", "s", "lambda", "iou", "probability")
REASON = "is not installed: pip install yolo-adapruner[loggers]"


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run with all six loggers on; a settings file of its own, and no pytest that Ultralytics could see."""
    home = tmp_path_factory.mktemp("logged")
    data = helpers.build_set(home / "set")
    dist = home / "site" / "dvclive-99.0.dist-info"  # Ultralytics asks the installed package for its version
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: dvclive\nVersion: 99.0\n", encoding="utf-8")
    root = Path(__file__).parent.parent
    environment = helpers.child_environment(
        YOLO_CONFIG_DIR=str(home / "config"),
        MLFLOW_TRACKING_URI=(home / "mlruns").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",
        MLFLOW_EXPERIMENT_NAME="pruning",
        PYTHONPATH=os.pathsep.join([str(root), str(home / "site")]),
    )
    environment.pop("PYTEST_CURRENT_TEST", None)
    words = [sys.executable, "-m", "tests.logging_run", data, home / "run", home / "notes.json"]
    ended = subprocess.run(
        list(map(str, words)), cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return home, json.loads((home / "notes.json").read_text(encoding="utf-8"))


def column(folder: Path, name: str) -> list[float]:
    return [row[f"prune/{name}"] for row in results(folder)]


def agree(logged_values: dict[int, float], folder: Path, name: str) -> None:
    """One value an epoch, counted from 1, equal to six digits, which results.csv has."""
    table = dict(enumerate(column(folder, name), start=1))
    assert sorted(logged_values) == sorted(e for e, value in table.items() if math.isfinite(value))
    assert logged_values == pytest.approx({e: table[e] for e in logged_values}, rel=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_tensorboard_has_each_column_for_each_epoch(logged, name):
    pytest.importorskip("tensorboard", reason=f"tensorboard {REASON}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    home, _ = logged
    events = EventAccumulator(str(home / "run")).Reload().Scalars(f"prune/{name}")
    assert len(events) == len({e.step for e in events})
    agree({e.step: e.value for e in events}, home / "run", name)


@pytest.mark.parametrize("name", OURS)
def test_mlflow_has_each_column_for_each_epoch(logged, name):
    pytest.importorskip("mlflow", reason=f"mlflow {REASON}")
    home, _ = logged
    found = [p for p in (home / "mlruns").glob(f"*/*/metrics/prune/{name}") if ".trash" not in p.parts]
    assert len(found) == 1, "one run, with the metric in its file store"
    rows = [line.split() for line in found[0].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({step for _, _, step, *_ in rows})
    # MLflow's autologging would note each of the judge's own fits as if the user had made it.
    assert not [*(home / "mlruns").glob("*/*/metrics/training_*"), *(home / "mlruns").glob("*/models/*")]
    # Ultralytics counts MLflow's steps from 0.
    agree({int(step) + 1: float(value) for _, value, step, *_ in rows}, home / "run", name)


@pytest.mark.parametrize("tool", ["wandb", "comet", "clearml"])
def test_ultralytics_callbacks_hand_the_columns_to_the_others(logged, tool):
    """Their packages are stand-ins; the callbacks that call them are Ultralytics' own."""
    home, notes = logged
    for name in OURS:
        values = [(epoch, metrics[f"prune/{name}"]) for epoch, metrics in notes[tool] if f"prune/{name}" in metrics]
        assert len(values) == len(dict(values)), "an epoch twice"
        agree(dict(values), home / "run", name)


def test_ultralytics_callback_hands_the_columns_to_dvclive(logged):
    home, notes = logged
    for name in OURS:
        values = [metrics[f"prune/{name}"] for _, metrics in notes["dvc"] if f"prune/{name}" in metrics]
        assert values == pytest.approx([v for v in column(home / "run", name) if math.isfinite(v)], rel=1e-5)


def test_a_callback_of_the_users_sees_them_and_may_write_among_the_metrics(logged):
    _, notes = logged
    assert len(notes["seen"]) == EPOCHS + 1  # the last evaluation, too
    assert all({f"prune/{name}" for name in ("stage", "kept")} <= set(keys) for keys in notes["seen"][:-1])
    assert not [key for key in notes["seen"][-1] if key.startswith("prune/")], "the last evaluation is no epoch"
    assert "mine" in notes["left"]


def test_neither_metrics_nor_checkpoints_nor_fitness_know_of_it(tmp_path):
    """What is shown to loggers is taken back: the trainer's metrics are Ultralytics' own before and after."""
    at_save = []
    trainer = train_here(
        helpers.build_set(tmp_path / "set"),
        tmp_path / "run",
        callbacks={"on_model_save": lambda t: at_save.append((sorted(t.metrics), t.fitness))},
    )
    plain = {key for key in trainer.metrics if not key.startswith("prune/")}
    assert set(trainer.metrics) == plain
    assert all(not key.startswith("prune/") for keys, _ in at_save for key in keys)
    fitness = [row["metrics/mAP50-95(B)"] for row in results(tmp_path / "run")]
    assert [f for _, f in at_save] == pytest.approx(fitness, abs=1e-5)
    saved = torch.load(tmp_path / "run" / "weights" / "last.pt", weights_only=False)
    assert not [key for key in saved["train_metrics"] if key.startswith("prune/")]
