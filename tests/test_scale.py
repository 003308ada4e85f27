"""What the mask's own work costs as a set grows: counted exactly where it can be, and else within wide margins."""

import json
from functools import partial

import pytest

from yolo_adapruner import bench
from yolo_adapruner.core import history, mask, signal, suspicion
from yolo_adapruner.data import export
from yolo_adapruner.engine import judge
from yolo_adapruner.study import scale

WIDE = 3.0  # what a hundred times as many images may make an iteration longer; misses of the cache are a quarter


def test_an_iteration_costs_the_batch_and_not_the_set():
    few, many = scale.iterations((10_000, 1_000_000), repeats=300).values()
    assert many < WIDE * few


@pytest.mark.parametrize(
    ("work", "most"),
    [(scale.update, 40), (scale.close_epoch, 48), (partial(scale.close_epoch, judged=True), 150)],
    ids=["the mask's step", "an epoch's end", "an epoch's end with a judge"],
)
def test_beside_what_is_there_an_epoch_takes_a_few_bytes_a_sample(work, most, monkeypatch):
    """An epoch's end sorts all samples once to see whom a cut would drop: 45 bytes each at its height.

    With a judge it holds what is said of each, in 56 bytes, twice while that is put on top of what was said before.
    """
    for module in (history, mask, signal):
        monkeypatch.setattr(module, "_CHUNK", 1 << 11)
    for module in (judge, suspicion):
        monkeypatch.setattr(module, "_STRIDE", 1 << 11)
    for name in ("judge.MOST_ROWS", "rehearse.MOST_REHEARSED"):
        monkeypatch.setattr(f"yolo_adapruner.engine.{name}", 1000)
    _, bytes_each = work(200_000)
    assert 1 < bytes_each < most


def test_an_outcome_of_any_size_is_written_and_read_back(tmp_path):
    scale._write(3000, tmp_path)()
    whole, found = scale.outcome(3000), export.read(tmp_path)[1]
    assert found.paths == whole.paths
    assert found.paths[2999] == "/data/sets/traffic/images/train/camera-000002999.jpg"
    assert (~found.kept).sum() == 900
    assert {"duplicate", "label suspect"} < set(found.columns["reason"])


@pytest.mark.slow
def test_the_files_bench_says_what_each_of_its_processes_took(capsys):
    assert bench.main(["export", "--images", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]["500"]
    for step in ("write", "export"):
        assert found[step]["cpu_seconds"] > 0
        assert 0.05 < found[step]["peak_gb"] < 4
    assert 0 < found["disk"]["gb"] < 0.01


def test_the_mask_bench_says_what_it_measured(capsys):
    assert bench.main(["mask", "--images", "100", "300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["100", "300"]
    assert all("bytes an image" in line for line in lines)
