"""The bench of whole commands: its arms, order and figures by hand, and one small grid that is run."""

import json
import math
from pathlib import Path

import pytest
import yaml

from tests import helpers
from yolo_adapruner import bench
from yolo_adapruner.config import load
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study import wall
from yolo_adapruner.study.turns import Timed


@pytest.fixture
def config(tmp_path):
    """A run config of the tiny network on a set of 24 images."""
    data = helpers.build_set(tmp_path / "set")
    model = helpers.write_architecture(tmp_path / "small.yaml")
    return load({"model": str(model), "data": str(data), **{k: helpers.QUICK[k] for k in ("imgsz", "batch", "device")}})


def test_arms_change_the_method_and_nothing_else():
    assert wall.method_of("stock") is None
    assert wall.method_of("short-0.6") is None
    assert wall.method_of("prune-0.3") == {"dynamic": False, "share": 0.3}
    assert wall.method_of("dynamic") == {"dynamic": True, "share": 0.0}
    assert wall.method_of("dynamic-0.2") == {"dynamic": True, "share": 0.2}


@pytest.mark.parametrize(
    "arm", ["prune", "prune-x", "prune-0", "prune-0.99", "stock-0.1", "random-0.1", "short", "short-0", "short-2", ""]
)
def test_an_arm_that_is_unknown_is_refused(arm, config, tmp_path):
    with pytest.raises(ConfigError, match=r"Expected arms among stock, prune-0\.3, prune-0\.5, dynamic"):
        wall.Bench(config, tmp_path, ("stock", arm))


def cell(arm, seed, seconds, map50_95, images=1.0):
    return {"arm": arm, "seed": seed, "seconds": seconds, "map50_95": map50_95, "images": images}


def test_figures_are_paired_by_seed():
    cells = [
        cell("stock", 0, 100, 0.30),
        cell("dynamic", 0, 60, 0.31, 0.5),
        cell("stock", 1, 200, 0.40),
        cell("dynamic", 1, 140, 0.40, 0.6),
        cell("stock", 2, 100, 0.20),
        cell("dynamic", 2, 65, 0.22, 0.55),
        cell("prune-0.3", 0, 80, 0.29, 0.8),
    ]
    stock, dynamic, prune = wall.summary(cells)
    assert (stock["ratio"], stock["difference"], stock["seeds"]) == (1, 0, 3)
    assert (dynamic["ratio"], dynamic["least"], dynamic["most"]) == pytest.approx((0.65, 0.6, 0.7))
    assert dynamic["difference"] == pytest.approx(1.0)
    half = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees of freedom; the differences 1, 0, 2 deviate by 1
    assert (dynamic["low"], dynamic["high"]) == pytest.approx((1 - half, 1 + half))
    assert dynamic["images"] == pytest.approx(0.55)
    assert (prune["seeds"], prune["ratio"]) == (1, pytest.approx(0.8))
    text = wall.table([stock, dynamic, prune])
    assert "| dynamic | 3 | 65 | 0.650 | 0.600 to 0.700 | 55 % | 31.00 | +1.00 [-1.48, +3.48] |" in text
    assert "| prune-0.3 | 1 | 80 | 0.800 | 0.800 to 0.800 | 80 % | 29.00 | -1.00 |" in text


@pytest.mark.slow
def test_a_grid_is_run_once_and_a_cell_that_was_cut_off_again(config, tmp_path, monkeypatch, capsys):
    settings = helpers.cli_words({"epochs": 4, "nbs": 8, "mosaic": 0.0, "plots": False, "imgsz": 64, "batch": 8})
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {config.model}\ndata: {config.data}\ndevice: cpu\n", encoding="utf-8")
    words = ["wall", *settings, "--config", str(file), "--arms", "stock,short-0.5,dynamic", "--seeds", "0", "--json"]
    words += ["--work", str(tmp_path / "work")]
    assert bench.main(words) == 0
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    stock, short, dynamic = found["arms"]
    assert (short["arm"], short["images"]) == ("short-0.5", 0.5)
    assert len((tmp_path / "work" / "short-0.5-s0" / "run" / "results.csv").read_text().splitlines()) == 1 + 2
    assert [(one["arm"], one["seconds"]) for one in found["cells"]] == [(a["arm"], a["seconds"]) for a in found["arms"]]
    assert (found["epochs"], found["imgsz"], found["mixing"]) == (4, 64, {"mosaic": 0.0})
    assert "ultralytics" in found["versions"]
    halves = [(tmp_path / "work" / f"{name}.txt").read_text().splitlines() for name in ("choose", "report")]
    assert not set(halves[0]) & set(halves[1])  # what chose the checkpoint reports nothing
    trained = yaml.safe_load((tmp_path / "work" / "dynamic-s0" / "run.yaml").read_text())["data"]
    assert yaml.safe_load(Path(trained).read_text())["test"].endswith("report.txt")
    assert (stock["arm"], stock["images"], dynamic["arm"]) == ("stock", 1, "dynamic")
    assert dynamic["images"] < 1
    assert (tmp_path / "work" / "stock-s0" / "run" / "weights" / "best.pt").is_file()
    assert not (tmp_path / "work" / "stock-s0" / "run" / "manifest.json").exists()  # Ultralytics' own trainer

    asked = []

    def fails(commands):
        asked.extend(commands)
        for command in commands.values():
            command.output.write_text("no memory left\n")
        return {name: Timed(1.0, 1) for name in commands}

    monkeypatch.setattr(wall.turns, "by_turns", fails)
    assert bench.main(words) == 0
    assert json.loads(capsys.readouterr().out)["arms"] == [stock, short, dynamic]
    assert asked == []
    (tmp_path / "work" / "dynamic-s0" / wall.RECORD).unlink()
    assert bench.main(words) == RunError("").exit_code
    assert "bench: Expected dynamic of seed 0 to end well, but it says: no memory left" in capsys.readouterr().err
    assert asked == ["dynamic"]
    assert bench.main([words[0], "lr0=0.5", *words[1:]]) == RunError("").exit_code
    assert "to hold cells of this recipe" in capsys.readouterr().err
