"""What a run and a comparison say at their end: tables at a terminal, the plain text in a pipe, and all of it once."""

import sys
from pathlib import Path

import pytest

from tests import helpers
from tests.report_runs import make_run
from yolo_adapruner.engine.run import RunResult
from yolo_adapruner.study import summary, terminal
from yolo_adapruner.study.conclude import Comparison
from yolo_adapruner.study.planted import Planted
from yolo_adapruner.study.summary import run_summary
from yolo_adapruner.study.table import EPOCHS, Row


@pytest.fixture
def result(tmp_path) -> RunResult:
    folder = tmp_path / "[red]run[/red]"
    make_run(folder, images=False)
    return RunResult(folder, folder / "weights" / "best.pt", folder / "pruned.yaml", 40, 20, 0.432, 90.0, 100)


@pytest.fixture
def compared(tmp_path) -> Comparison:
    facts = {
        "seeds": 1,
        "jobs": 1,
        "config": {"model": "m.yaml", "data": "d.yaml", "imgsz": 64, "batch": 8, "epochs": 4},
        "hardware": "cpu",
        "reported_on": "test split",
        "largest_gap_to_ultralytics": 0.0,
        "verdicts": ["dropping 10 % costs [bold]", "a second line"],
    }
    row = Row("full", 0.0, EPOCHS, 40, 20.0, [0.5], [0.7], 1.0, None, None, {"a [b]": (0.5, 0.7, 3)})
    return Comparison(tmp_path, [row], facts)


def at_a_terminal(monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def test_in_a_pipe_the_summary_is_the_plain_text(result, capsys):
    terminal.show_run(result)
    assert capsys.readouterr().out == run_summary(result) + "\n"


def test_the_summary_names_the_report_once_there_is_one(result):
    line = f"report     {result.folder / 'report.html'}   (opens in a browser)"
    assert line not in run_summary(result).splitlines()
    (result.folder / "report.html").touch()
    assert run_summary(result).splitlines().count(line) == 1


def test_a_terminal_gets_the_same_figures_and_names_as_they_are(result, capsys, monkeypatch):
    at_a_terminal(monkeypatch)
    terminal.show_run(result)
    words = " ".join(capsys.readouterr().out.split())
    for part in ("kept 20 of 40 training images, dropped 20 (50.0%)", str(result.weights), "0.432", "1.5 min"):
        assert words.count(part) == 1


def test_no_name_stands_before_two_lines_and_none_is_said_twice(result, monkeypatch):
    monkeypatch.setattr(
        summary, "planted", lambda *_: Planted({"boxes": 3, "clean": 17}, {"boxes": 5, "clean": 35}, 0.9, (4, 3))
    )
    lines = summary.run_lines(result)
    names = [name for name, _ in lines if name]
    assert len(names) == len(set(names))
    assert not [line for line in lines if line[0] and line[1].startswith(line[0])]
    assert ("planted", "noise among the dropped: 3 of 20 (15%)") in lines
    assert ("", "of 4 pairs of near-duplicates 3 lost one image") in lines
    assert names[:4] == ["images", "reasons", "drift", "planted"]


def test_a_comparison_at_a_terminal_is_tables_with_all_figures(compared, capsys, monkeypatch):
    at_a_terminal(monkeypatch)
    terminal.show_comparison(compared)
    out = capsys.readouterr().out
    assert "|" not in out
    full = next(line.split() for line in out.splitlines() if line.startswith("full"))
    assert full[:5] == ["full", "0%", "equal", "epochs", "40"]
    assert "• dropping 10 % costs [bold]\n" in out
    assert "• a second line" in out
    assert "a [b] (3)" in out


def test_a_comparison_in_a_pipe_is_the_report_and_its_place(compared, capsys):
    terminal.show_comparison(compared)
    assert capsys.readouterr().out == f"{compared.report()}\n\nsaved in {compared.folder}\n"
    (compared.folder / "report.html").touch()
    terminal.show_comparison(compared)
    assert capsys.readouterr().out.endswith(f"saved in {compared.folder}\nreport {compared.folder / 'report.html'}\n")


@pytest.mark.slow
def test_a_run_announces_its_images_and_transforms_once_and_ends_with_one_summary(tmp_path):
    data = helpers.build_set(tmp_path / "set")
    small = helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text(f"model: {small}\ndata: {data}\n", encoding="utf-8")
    settings = helpers.cli_words({**helpers.QUICK, "prune.warmup": 1, "prune.joint": 0.5, "close_mosaic": 0})
    done = helpers.python("-m", "yolo_adapruner", "train", "run.yaml", "--prune", "0.25", *settings, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("train: \x1b[0mFast image access", "val: \x1b[0mFast image access", "albumentations: \x1b[0m"):
        assert done.stdout.count(part) == 1
    for part in ("kept 18 of 24", "scores.csv", "report.html", "stage 1:", "stage 2:", "stage 3:"):
        assert done.stdout.count(part) == 1
    assert list(Path(tmp_path, "runs").rglob("report.html"))
