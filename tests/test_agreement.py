"""Agreement of an image's gradient with the validation images'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

from yolo_adapruner.data.digits import build
from yolo_adapruner.engine import labelcache
from yolo_adapruner.engine.gradients import Gradients, gradients
from yolo_adapruner.engine.splits import load_data
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.agreement import candidates, main, table


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Checkpoint of an untrained detector and a data file of a few scenes."""
    root = tmp_path_factory.mktemp("agreement")
    torch.manual_seed(0)
    model = YOLO("yolo11n.yaml")
    data = build(root / "digits", train=12, val=6, seed=3) / "data.yaml"
    from ultralytics.nn.tasks import DetectionModel

    model.model = DetectionModel("yolo11n.yaml", nc=10, verbose=False)
    model.save(root / "model.pt")
    return root / "model.pt", data


def test_a_row_is_the_gradient_of_the_whole_models_loss_for_that_image(small):
    weights, data = small
    content = load_data(str(data))
    found = gradients(weights, content, "val", 64)
    files = labelcache.build(get_cfg(DEFAULT_CFG, {"imgsz": 64, "rect": False}), content["val"], 1, content, mode="val")
    model = YOLO(str(weights)).model.float().eval()
    model.model[-1].training = True
    model.args = get_cfg(DEFAULT_CFG)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    batch = files.collate_fn([files[2]])
    loss, _ = model.init_criterion()(model(batch["img"].float() / 255), batch)
    loss.sum().backward()
    head = model.model[-1]
    for branch, rows in ((head.cv2, found.box), (head.cv3, found.classes)):
        expected = torch.cat([p.grad.flatten() for end in branch for p in end[-1].parameters()]).numpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(rows[2], expected, rtol=1e-4, atol=1e-6)


def test_who_pulls_away_from_validation_ranks_first():
    rng = np.random.default_rng(0)
    good, noise = np.array([1.0, 0, 0, 0]), 0.1
    rows = noise * rng.normal(size=(20, 4)) + good
    rows[:3] -= 2 * good
    train = Gradients([str(i) for i in range(20)], rows.astype(np.float32), rows.astype(np.float32))
    held = (noise * rng.normal(size=(8, 4)) + good).astype(np.float32)
    found = candidates(train, Gradients([str(i) for i in range(8)], held, held))
    for name in ("cosine", "cosine to units", "influence"):
        assert sorted(np.argsort(-found[f"{name}, all"])[:3]) == [0, 1, 2], name


def test_influence_is_that_of_the_damped_second_moment():
    rng = np.random.default_rng(1)
    rows, held = rng.normal(size=(6, 9)).astype(np.float32), rng.normal(size=(4, 9)).astype(np.float32)
    found = candidates(Gradients([""] * 6, rows, rows), Gradients([""] * 4, held, held))["influence, box"]
    moment = rows.astype(float).T @ rows / 6
    damped = moment + np.trace(moment) / 6 * np.eye(9)
    np.testing.assert_allclose(-found, rows @ np.linalg.solve(damped, held.astype(float).mean(0)), rtol=1e-5)


def test_the_table_has_a_column_a_kind():
    kinds = np.array(["clean", "clean", "swapped", "missing"])
    rows = table({"perfect": np.array([0.0, 1, 2, 3]), "blind": np.zeros(4)}, kinds).splitlines()
    assert rows[0] == "| reading | swapped | missing | all |"
    assert rows[2:] == ["| perfect | 1.00 | 1.00 | 1.00 |", "| blind | 0.50 | 0.50 | 0.50 |"]


def test_the_command_prints_the_table_and_refuses_a_classifier_in_a_line(small, tmp_path, capsys):
    weights, data = small
    assert main(["--data", str(data), "--truth", str(data.parent), "--weights", str(weights), "--imgsz", "64"]) == 0
    assert "| length, class |" in capsys.readouterr().out
    YOLO("yolo11n-cls.yaml").save(tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="detector with box and class branches"):
        gradients(tmp_path / "other.pt", load_data(str(data)), "val", 64)
