"""A folder is one process's at a time."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from yolo_adapruner import cli
from yolo_adapruner.data import alone
from yolo_adapruner.data.alone import LOCK, alone_in
from yolo_adapruner.engine import run as engine
from yolo_adapruner.engine import state
from yolo_adapruner.engine.state import RUN_CONFIG
from yolo_adapruner.errors import RunError

HOLDS = """
import os, sys, time
from pathlib import Path
from yolo_adapruner.data.alone import alone_in
with alone_in(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(600)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and that process, in a group of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", HOLDS, str(folder), "fork"]
    root = Path(__file__).parent.parent
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True)
    assert holder.stdout.readline() == "held\n"
    yield folder, holder
    os.killpg(holder.pid, signal.SIGKILL)
    holder.wait()


def test_a_folder_that_another_process_holds_is_refused_in_one_line(held):
    folder, _ = held
    with pytest.raises(RunError, match=r"another one works in it: wait until it is done") as caught, alone_in(folder):
        pytest.fail("held twice")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / LOCK).is_file()  # the other's, still


def test_a_killed_process_holds_nothing_and_nor_do_the_workers_it_forked(held):
    folder, holder = held
    holder.kill()
    holder.wait()
    with alone_in(folder):
        assert (folder / LOCK).is_file()
    assert list(folder.iterdir()) == []


def test_another_thread_of_this_process_is_refused_as_well(tmp_path):
    with alone_in(tmp_path):
        with pytest.raises(RunError, match="this process trains in it already"), alone_in(tmp_path / "." / ""):
            pass
        assert (tmp_path / LOCK).exists()
    with alone_in(tmp_path):
        pass


def test_patience_outlasts_a_process_that_is_about_to_end(held):
    folder, holder = held
    timer = threading.Timer(0.5, holder.kill)
    timer.start()
    began = time.monotonic()
    with alone_in(folder, patience=60):
        assert time.monotonic() - began >= 0.4
    timer.join()


def test_what_goes_wrong_inside_lets_go_too(tmp_path):
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path):
        pass


def test_a_lock_on_a_file_that_was_taken_away_counts_for_nothing(tmp_path, monkeypatch):
    """Between opening and locking, the holder before may have gone with its file; the next comer makes another."""
    calls = []

    def late(handle, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        return lockf(handle, how)

    lockf = fcntl.lockf
    monkeypatch.setattr(alone.fcntl, "lockf", late)
    with alone_in(tmp_path):
        assert (tmp_path / LOCK).is_file()
    assert len(calls) == 2


def test_without_locks_or_a_place_for_them_work_goes_on(tmp_path, monkeypatch):
    with alone_in(tmp_path / "missing"):
        pass

    def none_here(handle, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(alone.fcntl, "lockf", none_here)
    with alone_in(tmp_path):
        pass
    monkeypatch.setattr(alone, "fcntl", None)  # Windows
    with alone_in(tmp_path):
        pass


def refused(arguments, capsys):
    assert cli.main(arguments) != 0
    error = capsys.readouterr().err
    assert "another one works in it" in error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("command", [["compare"], ["study", "terms"]], ids=["compare", "study"])
def test_a_comparison_that_runs_elsewhere_is_not_touched(held, home, capsys, command):
    folder, _ = held
    plan = folder / "plan.json"
    plan.write_text("{}", encoding="utf-8")
    refused([*command, "run.yaml", "--name", folder.name, f"project={home}"], capsys)
    assert plan.read_text(encoding="utf-8") == "{}"
    assert sorted(p.name for p in folder.iterdir()) == [LOCK, "plan.json"]


@pytest.mark.parametrize("begun", [False, True], ids=["before its first epoch", "after it"])
def test_a_run_that_goes_on_elsewhere_is_not_resumed(held, home, capsys, monkeypatch, begun):
    folder, _ = held
    monkeypatch.setattr(engine, "_TO_END", 0.2)
    shutil.copy("run.yaml", folder / RUN_CONFIG)
    (folder / "weights").mkdir()
    if begun:
        monkeypatch.setattr(state, "task_of", lambda path: "detect")
        (folder / "weights" / state.NAME).write_bytes(b"")
    half_written = folder / f".{state.NAME}.1.tmp"
    half_written.write_bytes(b"")
    refused(["train", "--resume", str(folder)], capsys)
    assert half_written.exists()


def test_a_run_that_is_told_to_write_where_another_does_takes_nothing_away(held, home, capsys):
    folder, _ = held
    refused(["train", "run.yaml", "--name", folder.name, f"project={home}", "exist_ok=True"], capsys)
    assert sorted(p.name for p in folder.iterdir()) == [LOCK]
