"""Commands by turns: only one of them runs at a time, all end together, and none outlives what started it."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from yolo_adapruner.study.turns import Command, by_turns

STAMPS = """
import pathlib, sys, time
steps = 0
with open(sys.argv[1], "w") as file:
    while steps < int(sys.argv[2]):
        time.sleep(0.01)
        steps += 1
        print(time.monotonic(), file=file, flush=True)
"""


def stamps(tmp_path: Path, name: str, steps: int) -> Command:
    """A command that writes the time down `steps` times, every hundredth of a second in which it is let run."""
    file = tmp_path / name
    return Command(
        [sys.executable, "-c", STAMPS, str(file), str(steps)],
        tmp_path / f"{name}.txt",
        lambda: len(file.read_text().splitlines()) / steps if file.exists() else 0.0,
    )


def times(tmp_path: Path, name: str) -> list[float]:
    return [float(line) for line in (tmp_path / name).read_text().splitlines()]


def test_only_one_runs_at_a_time_and_they_end_together(tmp_path: Path) -> None:
    found = by_turns({"long": stamps(tmp_path, "long", 300), "short": stamps(tmp_path, "short", 100)}, turn=0.5)
    assert [timed.status for timed in found.values()] == [0, 0]
    long, short = times(tmp_path, "long"), times(tmp_path, "short")
    assert (len(long), len(short)) == (300, 100)
    order = [name for _, name in sorted([(t, "long") for t in long] + [(t, "short") for t in short])]
    switches = sum(a != b for a, b in pairwise(order))
    assert 2 <= switches <= 100  # some 200 if both ran, and 8 on an idle machine
    assert short[-1] > long[150]  # run one after the other, or as much each, the short one would be done by then
    assert found["long"].seconds > found["short"].seconds
    # Its own steps, and not the time in which the other ran.
    assert found["short"].seconds < 0.8 * (max(long[-1], short[-1]) - min(long[0], short[0]))


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    bad = Command([sys.executable, "-c", "print('no'); raise SystemExit(3)"], tmp_path / "bad.txt", lambda: 0.5)
    began = time.monotonic()
    found = by_turns({"endless": stamps(tmp_path, "endless", 10**6), "bad": bad}, turn=0.1)
    assert time.monotonic() - began < 60
    assert set(found) == {"bad"}
    assert found["bad"].status == 3
    assert (tmp_path / "bad.txt").read_text() == "no\n"
    assert_at_rest(tmp_path / "endless")


def test_none_outlives_what_started_it(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from yolo_adapruner.study.turns import *; from tests.test_turns import stamps; "
        f"p = Path({str(tmp_path)!r}); by_turns({{n: stamps(p, n, 10**6) for n in 'ab'}}, turn=0.1)"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not all((tmp_path / name).exists() for name in "ab") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # not SIGINT, which a job in the background ignores
        try:
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    for name in "ab":
        assert_at_rest(tmp_path / name)


def assert_at_rest(file: Path) -> None:
    """Nobody has the file open any more, not even a stopped process."""
    for entry in Path("/proc").glob("[0-9]*/cmdline") if Path("/proc/self/cmdline").exists() else []:
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        assert os.fsencode(file) not in words
