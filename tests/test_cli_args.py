"""The command line's own work: words to settings, errors to one line and an exit code, and nothing heavy for --help."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolo_adapruner import __version__, cli
from yolo_adapruner.config import RunConfig, load
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.study.arms import CHOICES, PLAIN

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "compare", "study", "export")


def run(*words: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, or `code` with the words as its arguments."""
    head = ["-c", code] if code else ["-m", "yolo_adapruner"]
    return subprocess.run(
        [sys.executable, *head, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


# In a process of its own

LOADED = """
import sys
from yolo_adapruner.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
heavy = {"albumentations", "torch", "ultralytics", "numpy", "pydantic", "polars", "yaml", "cv2"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join)
def test_help_and_version_answer_at_once(words):
    done = run(*words, code=LOADED)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    if "--version" in words:
        assert done.stdout == f"yolo-adapruner {__version__}\n"
    else:
        assert done.stdout.startswith("usage: yolo-adapruner")
        assert [name for name in COMMANDS if name in words or name in done.stdout]


def test_a_bad_setting_is_refused_without_loading_a_model():
    code = LOADED.replace(
        '"torch", "ultralytics", "numpy", "pydantic", "polars", "yaml", "cv2"}', '"torch", "ultralytics"}'
    )
    done = run("train", "yolov3-tiny", "--prune", "2", code=code)
    assert done.returncode == 2
    assert done.stdout == ""
    message, loaded = done.stderr.splitlines()
    assert message.startswith("yolo-adapruner: ")
    assert "prune.share: input should be less than or equal to 0.95, but got 2" in message
    assert loaded == "[]"


def test_the_module_hands_on_the_exit_code():
    done = run("export", "no/such/run")
    assert done.returncode == 2
    assert done.stderr == (
        "yolo-adapruner: Expected a finished run in no/such/run, but it has no manifest.json: "
        "finish the run with --resume.\n"
    )
    assert done.stdout == ""


# Words to settings


@pytest.fixture
def seen(monkeypatch) -> list[tuple[str, RunConfig | str, object]]:
    """What each command would be called with: (command, config, the rest)."""
    calls: list[tuple[str, RunConfig | str, object]] = []
    monkeypatch.setattr(cli, "_train", lambda a: calls.append(("train", cli._run_config(a, a.prune), a.resume)))
    monkeypatch.setattr(
        cli, "_compare", lambda a: calls.append(("compare", cli._run_config(a, None), (a.prune, a.seeds)))
    )
    monkeypatch.setattr(cli, "_export", lambda a: calls.append(("export", a.folder, a.prune)))
    return calls


TRAIN = [
    # name, words after `train`, overrides of yolov3-tiny they amount to
    ("the name alone", "yolov3-tiny", {}),
    ("the file", f"{ROOT}/cfg/yolov3-tiny.yaml", {}),
    ("a share", "yolov3-tiny --prune 0.3", {"prune": 0.3}),
    ("a share of 0 is not none", "yolov3-tiny --prune 0", {"prune": 0.0}),
    ("with =", "yolov3-tiny --prune=0.3 --epochs=5", {"prune": 0.3, "epochs": 5}),
    ("the flags first", "--prune 0.3 --seed 4 yolov3-tiny", {"prune": 0.3, "seed": 4}),
    ("a setting", "yolov3-tiny mosaic=0.5", {"train": {"mosaic": 0.5}}),
    (
        "settings between flags",
        "yolov3-tiny mosaic=0.5 --epochs 5 hsv_h=0 --seed 3 lr0=0.1",
        {"train": {"mosaic": 0.5, "hsv_h": 0}, "epochs": 5, "seed": 3, "lr0": 0.1},
    ),
    ("a setting first", "mosaic=0.5 yolov3-tiny", {"train": {"mosaic": 0.5}}),
    (
        "a setting after a flag",
        "--epochs 5 mosaic=0.5 yolov3-tiny --seed 3",
        {"train": {"mosaic": 0.5}, "epochs": 5, "seed": 3},
    ),
    ("ours as a setting", "yolov3-tiny epochs=7 prune=0.4", {"epochs": 7, "prune": 0.4}),
    ("the flag wins", "yolov3-tiny epochs=7 --epochs 8 prune=0.4 --prune 0.5", {"epochs": 8, "prune": 0.5}),
    ("the last wins", "yolov3-tiny mosaic=0.5 mosaic=0.7", {"train": {"mosaic": 0.7}}),
    (
        "values as YAML",
        "yolov3-tiny plots=true cos_lr=no box=1e1_",
        {"train": {"plots": True, "cos_lr": False, "box": "1e1_"}},
    ),
    ("small numbers", "yolov3-tiny lr0=1e-3 weight_decay=5e-4", {"lr0": 0.001, "train": {"weight_decay": 0.0005}}),
    ("a list", "yolov3-tiny classes=[0,2]", {"train": {"classes": [0, 2]}}),
    ("a value with =", "yolov3-tiny note=a=b", {"train": {"note": "a=b"}}),
    ("no value says nothing", "yolov3-tiny mosaic= device=", {}),
    ("device 0", "yolov3-tiny --device 0", {"device": "0"}),
    ("device 0 as a setting", "yolov3-tiny device=0", {"device": "0"}),
    ("a flag's value with =", "yolov3-tiny --name lr0=3", {"name": "lr0=3"}),
    (
        "names of our own arguments",
        "yolov3-tiny run=3 config=4 source=5",
        {"train": {"run": 3, "config": 4, "source": 5}},
    ),
    (
        "all flags",
        "yolov3-tiny --data d.yaml --model m.pt --epochs 9 --imgsz 64 --batch 4 --seed 1 --device cpu --name n",
        {
            "data": "d.yaml",
            "model": "m.pt",
            "epochs": 9,
            "imgsz": 64,
            "batch": 4,
            "seed": 1,
            "device": "cpu",
            "name": "n",
        },
    ),
]


@pytest.mark.parametrize(("words", "overrides"), [c[1:] for c in TRAIN], ids=[c[0] for c in TRAIN])
def test_words_become_settings(seen, words, overrides):
    assert cli.main(["train", *words.split()]) == 0
    assert seen == [("train", load("yolov3-tiny", overrides), None)]


def test_a_config_of_ones_own_may_have_an_odd_path(seen, tmp_path):
    file = tmp_path / "lr=0.1, größe.yaml"
    file.write_text("model: m.pt\ndata: d.yaml\n")
    assert cli.main(["train", str(file)]) == 0
    assert seen[0][1].model == "m.pt"


COMPARE = [
    # name, words after `compare`, (shares, seeds), overrides
    ("nothing: the config's share", "yolov3-tiny", (None, 3), {}),
    ("shares", "yolov3-tiny --prune 0.1 0.2 --seeds 5", ([0.1, 0.2], 5), {}),
    (
        "settings after the shares",
        "yolov3-tiny --prune 0.1 0.2 mosaic=0.5",
        ([0.1, 0.2], 3),
        {"train": {"mosaic": 0.5}},
    ),
    (
        "the config after the shares",
        "--prune 0.1 0.2 yolov3-tiny mosaic=0.5",
        ([0.1, 0.2], 3),
        {"train": {"mosaic": 0.5}},
    ),
    ("the config after another flag", "--prune 0.1 --seeds 2 yolov3-tiny", ([0.1], 2), {}),
    ("seed and seeds", "yolov3-tiny --seed 4 --seeds 2", (None, 2), {"seed": 4}),
    ("a share as a setting", "yolov3-tiny prune=0.4", (None, 3), {"prune": 0.4}),
]


@pytest.mark.parametrize(("words", "rest", "overrides"), [c[1:] for c in COMPARE], ids=[c[0] for c in COMPARE])
def test_words_become_a_comparison(seen, words, rest, overrides):
    assert cli.main(["compare", *words.split()]) == 0
    assert seen == [("compare", load("yolov3-tiny", overrides), rest)]


def test_what_else_a_comparison_takes(monkeypatch):
    said = []
    monkeypatch.setattr(cli, "_compare", lambda a: said.append((a.prune, a.arms, a.kept, a.margin)))
    assert cli.main(["compare", "yolov3-tiny"]) == 0
    words = "--prune auto yolov3-tiny mosaic=0 --margin 0.3 --arms random,most-error --kept k.txt"
    assert cli.main(["compare", *words.split()]) == 0
    assert said == [(None, ("pruned", "random"), None, 0.5), ("auto", ("random", "most-error"), "k.txt", 0.3)]


def test_files_end_at_the_first_setting(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(cli, "_compare", lambda a: said.append((a.config, a.prune, a.cells, a.settings)))
    words = "compare yolov3-tiny --prune 0.1 box=7 --cells a.json ./b=c.json imgsz=64 mosaic=0"
    assert cli.main(words.split()) == 0
    assert said == [("yolov3-tiny", [0.1], ["a.json", "./b=c.json"], ["box=7", "imgsz=64", "mosaic=0"])]
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "yolov3-tiny", "--cells", "imgsz=64"])
    assert stop.value.code == 2
    assert "argument --cells: expected one or more files, but got 'imgsz=64'" in capsys.readouterr().err


def test_the_help_names_every_arm(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert f"totrainanew:{','.join(CHOICES)}(default{','.join(PLAIN)})" in said


@pytest.mark.parametrize(("words", "shares"), [("run", []), ("run --prune 0.1 0.2", [0.1, 0.2])])
def test_words_become_an_export(seen, words, shares):
    assert cli.main(["export", *words.split()]) == 0
    assert seen == [("export", "run", shares)]


def test_a_run_to_resume_needs_no_config(monkeypatch):
    resumed = []
    monkeypatch.setattr(cli, "_train", lambda args: resumed.append((args.resume, args.config)))
    assert cli.main(["train", "--resume", "runs/a"]) == 0
    assert resumed == [("runs/a", None)]


BESIDE_RESUME = ["yolov3-tiny", "mosaic=1", "--epochs 9", "--prune 0", "--seed 0", "--name x", "--budget updates"]


@pytest.mark.parametrize("words", ["--budget updates", "prune.budget=updates", "prune.budget=epochs --budget updates"])
def test_a_budget_of_updates_is_a_flag_of_train(monkeypatch, words):
    """Not of `compare`, whose own says what the other arms have."""
    configs = []

    def train(config):
        configs.append(config)
        raise ConfigError("Enough.")

    monkeypatch.setattr("yolo_adapruner.engine.run.train", train)
    assert cli.main(["train", "yolov3-tiny", "--keep", "stay.txt", *words.split()]) == 2
    (config,) = configs
    assert (config.prune.budget, Path(config.prune.keep).name) == ("updates", "stay.txt")


@pytest.mark.parametrize("words", BESIDE_RESUME)
def test_what_a_resumed_run_would_pass_over_in_silence_is_refused(capsys, words):
    assert cli.main(["train", "--resume", "runs/a", *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"yolo-adapruner: Expected --resume RUN alone, but got {words.split()[0]} as well")


# Errors: one line, exit code 2

REFUSED = [
    # name, words, words of the line
    ("no config", "train", "Expected a run config, but got none: name a file, or a packaged one such as yolov3-tiny"),
    ("flags only", "train --prune 0.1 --seed 3", "Expected a run config, but got none"),
    ("settings only", "train mosaic=0.5", "Expected a run config, but got none"),
    ("no config to compare", "compare --prune 0.1 0.2", "Expected a run config, but got none"),
    ("a config that is not there", "train nix.yaml", "yolov3-tiny), but there is no file nix.yaml"),
    ("two configs", "train yolov3-tiny other.yaml", "Expected settings as key=value, but got other.yaml"),
    ("a key without a value", "train yolov3-tiny mosaic", "Expected settings as key=value, but got mosaic"),
    ("a value without a key", "train yolov3-tiny =3", "Expected settings as key=value, but got =3"),
    (
        "a value that is no YAML",
        "train yolov3-tiny classes=[1",
        "Expected values that YAML can read, but: while parsing",
    ),
    ("a date that is none", "train yolov3-tiny x=2024-13-45", "Expected values that YAML can read, but: month"),
    ("a share above", "train yolov3-tiny --prune 1.5", "prune.share: input should be less than or equal to 0.95"),
    ("a share below", "train yolov3-tiny --prune -0.5", "prune.share: input should be greater than or equal to 0"),
    ("two errors", "train yolov3-tiny --prune 2 --epochs 1", "epochs: input should be greater than or equal to 3"),
    (
        "updates in shorter epochs",
        "train yolov3-tiny prune.dynamic=true prune.budget=updates",
        "budget must be epochs with dynamic, which is there to save time, but got updates",
    ),
    ("a setting of the method", "train yolov3-tiny tau=0.3", "must not hold tau (set it under prune:)"),
    ("a word among the shares", "compare yolov3-tiny --prune 0.1 x", "Expected settings as key=value, but got x"),
]


@pytest.mark.parametrize(("words", "line"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(seen, capsys, words, line):
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("yolo-adapruner: ")
    assert err.count("\n") == 1
    assert line in err
    assert not seen


USAGE = [
    # name, words, words of the line
    ("no command", "", "the following arguments are required: COMMAND"),
    ("an unknown command", "prune yolov3-tiny", "invalid choice: 'prune'"),
    ("an unknown flag", "train yolov3-tiny --foo 3", "unrecognized arguments: --foo"),
    ("an unknown flag among settings", "train yolov3-tiny mosaic=1 --foo=3", "unrecognized arguments: --foo=3"),
    ("a flag of another command", "train yolov3-tiny --seeds=3", "unrecognized arguments: --seeds=3"),
    ("a share in words", "train yolov3-tiny --prune half", "argument --prune: invalid float value: 'half'"),
    ("epochs with a point", "train yolov3-tiny --epochs 3.5", "argument --epochs: invalid int value: '3.5'"),
    ("no share", "compare yolov3-tiny --prune", "argument --prune: expected at least one argument"),
    (
        "a setting for a share",
        "compare yolov3-tiny --prune mosaic=1",
        "--prune: expected one or more shares, but got 'mos",
    ),
    ("no run", "export", "the following arguments are required: RUN"),
    ("two runs", "export a b", "unrecognized arguments: b"),
    ("a setting to export", "export a mosaic=1", "unrecognized arguments: mosaic=1"),
    ("a share in words to export", "export a --prune 0.1 half", "argument --prune: invalid float value: 'half'"),
]


@pytest.mark.parametrize(("words", "line"), [c[1:] for c in USAGE], ids=[c[0] for c in USAGE])
def test_usage_errors_are_one_line_too_and_exit_with_2(seen, capsys, words, line):
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("yolo-adapruner: ")
    assert err.count("\n") == 1
    assert line in err
    assert not seen


# How a command ends

ENDS = [
    # name, what the command raises, exit code, the line
    ("a data set that cannot be", DataError("Expected images, but got none."), 2, "Expected images, but got none."),
    ("a run that cannot be", RunError("Expected a run."), 2, "Expected a run."),
    ("interrupted", KeyboardInterrupt(), 130, "interrupted; give the same command again"),
    ("nobody reads on", BrokenPipeError(32, "Broken pipe"), 1, "whatever read the output has closed it before the end"),
    (
        "a defect of ours",
        ZeroDivisionError("division\n  by zero"),
        1,
        "unexpected ZeroDivisionError: division by zero (set",
    ),
    ("a defect without a word", AssertionError(), 1, "unexpected AssertionError: no message"),
]


@pytest.mark.parametrize(("error", "code", "line"), [c[1:] for c in ENDS], ids=[c[0] for c in ENDS])
def test_a_command_that_fails_says_why_in_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.delenv("YOLO_ADAPRUNER_DEBUG", raising=False)

    def fail(args):
        raise error

    monkeypatch.setattr(cli, "_export", fail)
    assert cli.main(["export", "run"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert f"yolo-adapruner: {line}" in err
    assert err.strip("\n").count("\n") == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train yolov3-tiny", "what is on disk can be resumed with --resume RUN"),
        (
            "compare yolov3-tiny",
            "the same command in the same folder (--name) goes on after the trainings that are done",
        ),
        ("study terms yolov3-tiny", "the same command in the same folder (--name) goes on after the trainings"),
        ("report run", "give the same command again"),
    ],
)
def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, words, line):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, f"_{words.split()[0]}", interrupt)
    assert cli.main(words.split()) == 130
    assert f"yolo-adapruner: interrupted; {line}" in capsys.readouterr().err


def test_an_interruption_before_anything_has_begun_is_one_line_too(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_sort_words", interrupt)
    assert cli.main(["train", "yolov3-tiny"]) == 130
    assert capsys.readouterr().err.count("\n") == 2


def test_an_interruption_while_the_report_is_written_names_the_command_for_it(monkeypatch, capsys):
    from yolo_adapruner.engine import run
    from yolo_adapruner.study import closing

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "resume", lambda _: SimpleNamespace(folder=Path("runs/x")))
    monkeypatch.setattr(closing, "report_run", interrupt)
    assert cli.main(["train", "--resume", "runs/x"]) == 130
    assert "the run is whole: yolo-adapruner report runs/x writes it" in capsys.readouterr().err


def test_a_defect_of_ours_shows_its_traceback_on_demand(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setenv("YOLO_ADAPRUNER_DEBUG", "1")
    monkeypatch.setattr(cli, "_export", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["export", "run"])
