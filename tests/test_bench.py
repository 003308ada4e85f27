"""The step cost bench: its statistics by hand, two sides of one input, figures that say what they were measured on."""

import json
from types import SimpleNamespace

import pytest
import torch
from ultralytics.utils import LOGGER

from tests import helpers
from yolo_adapruner import bench
from yolo_adapruner.config import load
from yolo_adapruner.engine import epochcost, stepcost

pytestmark = pytest.mark.alone
WIDE = 2.0  # a mask that doubles a step is broken, on the busiest machine


@pytest.fixture
def config(tmp_path):
    """A run config file of the tiny network on a set of 24 images."""
    data = helpers.build_set(tmp_path / "set")
    model = helpers.write_architecture(tmp_path / "small.yaml")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {model}\ndata: {data}\nbatch: 8\nimgsz: 64\ndevice: cpu\ntrain: {{nbs: 8}}\n", encoding="utf-8"
    )
    return file


# By hand


def test_the_ratio_is_the_median_over_rounds_of_the_ratio_of_median_steps():
    # medians 1, 2, 4 and 1.1, 2.6, 4.8: ratios 1.1, 1.3, 1.2; one slow step in a round moves none of them
    cost = stepcost.summarise([[1, 1, 90], [2, 2, 2], [4, 3, 5]], [[1.1, 1, 2], [2.6, 2.6, 2.6], [4.8, 4.8, 4.8]])
    assert cost.ratio == pytest.approx(1.2)
    assert cost.quartiles == pytest.approx((1.15, 1.25))
    assert (cost.rounds, cost.steps) == (3, 3)
    assert (cost.stock_ms, cost.masked_ms) == pytest.approx((2000, 2600))
    assert cost.interval == pytest.approx((1.1, 1.3))


def test_rounds_that_agree_leave_no_spread():
    cost = stepcost.summarise([[2.0]] * 5, [[2.1]] * 5)
    assert cost.quartiles == cost.interval == pytest.approx((1.05, 1.05))


def test_what_computed_is_named_where_a_gpu_is_chosen_by_its_number(config, monkeypatch):
    from ultralytics.utils import torch_utils

    monkeypatch.setattr(torch_utils, "select_device", lambda device, verbose: torch.device("cuda", int(device)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert stepcost.facts(load(config, {"device": "1"}))["hardware"].startswith("cuda (card 1)")


# Measured


@pytest.mark.slow
def test_the_bench_prints_one_line_with_a_ratio_in_wide_bounds(config, capsys):
    words = ["attribution", "--config", str(config), "--imgsz", "64", "--steps", "3", "--repeats", "4", "--json"]
    capsys.readouterr()
    assert bench.main(words) == 0
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert 1 / WIDE < found["ratio"] < WIDE
    assert found["quartiles"][0] <= found["ratio"] <= found["quartiles"][1]
    assert (found["rounds"], found["steps"], found["imgsz"], found["batch"]) == (4, 3, 64, 8)
    assert found["mixing"] == {"mosaic": 1.0, "mixup": 0.5}
    assert found["hardware"].startswith("cpu")
    assert {"torch", "ultralytics", "yolo-adapruner"} <= found["versions"].keys()


@pytest.mark.slow
def test_both_sides_are_given_the_same_pictures_and_leave_the_log_as_it_was(config):
    before = LOGGER.level
    cost = stepcost.measure(load(config, {"mosaic": 0.0}), steps=2, repeats=2)
    assert cost.same_input
    assert LOGGER.level == before
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_in_words_it_says_the_same(config, capsys):
    words = ["attribution", "--config", str(config), "--imgsz", "64", "--steps", "1", "--repeats", "2", "mixup=0"]
    capsys.readouterr()
    assert bench.main(words) == 0
    out = capsys.readouterr().out
    for part in ("masked / stock step:", "2 rounds of 1 steps a side", "64 px, batch 8, mosaic 1, mixup 0", "torch"):
        assert part in out


@pytest.mark.slow
def test_the_parts_of_a_step_are_measured_side_by_side(config, capsys):
    words = ["step", "--config", str(config), "--imgsz", "64", "--steps", "1", "--repeats", "2", "--clock", "cpu"]
    capsys.readouterr()
    assert bench.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["parts"]) == list(stepcost.PARTS)
    assert all(part["same_input"] for part in found["parts"].values())
    assert all(1 / (2 * WIDE) < part["ratio"] < 2 * WIDE for part in found["parts"].values())  # a step of 20 ms
    assert (found["clock"], found["mixing"]) == ("cpu", {"mosaic": 0.0, "mixup": 0.0})
    # What a GPU would have to launch: about 180 for the mask and 850 for the judge, with any model and image size.
    more = {name: part["masked_operations"] - part["stock_operations"] for name, part in found["parts"].items()}
    assert 0 < more["mask"] < 300
    assert more["mask"] < more["mask, judge"] < 1300


@pytest.mark.slow
def test_a_profile_says_where_both_epochs_went_and_draws_it(config, tmp_path, capsys):
    words = ["profile", "--config", str(config), "--imgsz", "64", "--epochs", "1", "--clock", "cpu"]
    capsys.readouterr()
    assert bench.main([*words, "--svg", str(tmp_path / "p.svg"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["seconds"]
    for side in ("stock", "ours"):
        assert list(found[side]) == list(epochcost.PHASES)
        own = {part for part, seconds in found[side].items() if seconds > 0}
        assert own >= {"loader", "forward", "loss", "backward", "optimizer", "validation"}
        assert ({"judge", "redundancy"} <= own) is (side == "ours")
    assert (tmp_path / "p.svg").read_text().count("<svg") == 1
    assert epochcost.table(found).splitlines()[-1].startswith("| all |")


@pytest.mark.slow
def test_a_sides_peak_memory_is_its_processs(config, capsys):
    words = ["memory", "--config", str(config), "--imgsz", "64", "--steps", "1", "--side", "masked"]
    capsys.readouterr()
    assert bench.main(words) == 0
    assert 0.1 < float(capsys.readouterr().out.splitlines()[-1]) < 16


def test_memory_is_the_ratio_of_the_medians_of_the_processes(config, monkeypatch, capsys):
    peaks = iter([1.0, 1.1, 2.0, 2.2, 3.0, 9.0])
    asked = []

    def run(words, **_):
        asked.append(words[-1])
        return SimpleNamespace(returncode=0, stdout=f"a warning\n{next(peaks)}\n", stderr="")

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(["memory", "--config", str(config)]) == 0
    assert asked == ["stock", "masked"] * 3
    line = "peak memory masked / stock: 1.1000, medians of 3; stock 1.000 to 3.000 GB; masked 1.100 to 9.000 GB"
    assert capsys.readouterr().out.splitlines()[0] == line


def test_a_side_that_fails_says_why_in_one_line(config, monkeypatch, capsys):
    failed = SimpleNamespace(returncode=2, stdout="", stderr="bench: Expected room, but got none: make some.\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    assert bench.main(["memory", "--config", str(config)]) == 2
    assert capsys.readouterr().err == "bench: Expected room, but got none: make some.\n"


WRONG = [
    ("no steps", ["--steps", "0"], "Expected steps >= 1 and repeats >= 2, but got steps 0"),
    ("one round", ["--repeats", "1"], "Expected steps >= 1 and repeats >= 2, but got steps 10 and repeats 1"),
    ("a word", ["mosaic"], "Expected settings as key=value, but got mosaic"),
    ("a value that is no YAML", ["mosaic=["], "Expected values that YAML can read"),
    ("a batch of one", ["--batch", "1"], "batch: input should be a whole number of images, 2 or more"),
]


@pytest.mark.parametrize(("words", "line"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_what_cannot_be_is_refused_in_one_line(words, line, config, capsys):
    assert bench.main(["attribution", "--config", str(config), *words]) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
