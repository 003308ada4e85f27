"""Runs commands by turns on the same processors, so that whatever slows the machine down slows all of them alike.

A machine that is shared can be a quarter slower for minutes, which is more than what is to be told apart. Only the
command whose turn it is runs; the others are stopped (SIGSTOP). Whoever has come the least far is next, so that all are
at the same part of their work at about the same moment and end together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

SLICE = 20.0
"""Seconds of a turn; filling the caches anew takes far less."""


@dataclass(frozen=True)
class Command:
    """A command to be timed.

    Attributes:
        words: what to run; it must not leave its process group.
        output: file for all that it prints.
        progress: returns how far it has come, [0, 1].
    """

    words: Sequence[str]
    output: Path
    progress: Callable[[], float]


@dataclass(frozen=True)
class Timed:
    """What became of a command: the seconds in which it was let run, from its start to its end, and its exit status."""

    seconds: float
    status: int


def by_turns(commands: Mapping[str, Command], turn: float = SLICE) -> dict[str, Timed]:
    """Run commands to their ends and return what became of each; when one fails, the others are ended.

    Args:
        commands: by name.
        turn: seconds, > 0.
    """
    found: dict[str, Timed] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    spent = dict.fromkeys(commands, 0.0)
    before = signal.signal(signal.SIGTERM, _leave)  # a stopped command would outlive this process
    try:
        while left := [name for name in commands if name not in found]:
            name = min(left, key=lambda one: (commands[one].progress() if one in running else 0.0, spent[one]))
            began = time.perf_counter()
            if name in running:
                os.killpg(running[name].pid, signal.SIGCONT)
            else:
                running[name] = _start(commands[name])
            status = _wait(running[name], turn)
            if status is None:
                os.killpg(running[name].pid, signal.SIGSTOP)
            spent[name] += time.perf_counter() - began
            if status is not None:
                found[name] = Timed(spent[name], status)
                del running[name]
                if status:
                    break
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return found


def _start(command: Command) -> subprocess.Popen[bytes]:
    with command.output.open("wb") as output:
        # A group of its own, so that a turn stops its workers too.
        return subprocess.Popen(
            command.words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit status, or None when the time is up."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
