"""Run every gate of the project, one after the other, and fail if any of them failed.

Tests run in three parts: the quick ones and then those that are marked `slow`, side by side, file by file; and by
themselves those that are marked `alone`. `check.py --part quick` runs one of them; `--part long` those that the other
three leave out, the rest of long tables of cases, before a release. Other arguments are handed to pytest: `check.py
tests/test_core_mask.py -k step`. Coverage is asked for where all of the quick tests run.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # not resolved: in a virtual environment it is a link to the outer interpreter
WORKERS = min(os.cpu_count() or 1, 4)  # each holds torch, and what it trains

PYTEST = [sys.executable, "-m", "pytest", "--durations=10", "--durations-min=10"]
# The quick tests alone have to cover the core: code that a training happens to pass through is not tested by that, and
# tracing a training costs a quarter of its time.
COVERAGE = ["--cov=yolo_adapruner.core", "--cov-fail-under=95"]
# in the order of tests/conftest.py, which begins with the files that take longest
SIDE_BY_SIDE = ["-n", str(WORKERS), "--dist=loadfile", "--no-loadscope-reorder"]
TESTS = {"quick": SIDE_BY_SIDE, "slow": SIDE_BY_SIDE, "alone": [], "long": []}
GATE = ("quick", "slow", "alone")
CHECKS = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "walls": [str(BIN / "lint-imports")],
}
NOTHING_TO_RUN = 5  # pytest's exit code where the arguments leave a part without tests


def gates(part: str | None, pytest_arguments: list[str]) -> dict[str, list[str]]:
    """Return the commands by name; pytest comes last, whose closing line is then the last thing on the screen."""
    tests = {}
    for name in [part] if part else GATE:
        coverage = COVERAGE if name == "quick" and not pytest_arguments else []
        tests[f"tests: {name}"] = [*PYTEST, f"--part={name}", *TESTS[name], *coverage, *pytest_arguments]
    return CHECKS | tests


def main(arguments: list[str]) -> int:
    """Run the gates in order and return 0 if all passed, otherwise 1."""
    usage = "check.py [--part {quick,slow,alone,long}] [pytest's arguments ...]"
    parser = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    parser.add_argument("--part", choices=TESTS)
    known, rest = parser.parse_known_args(arguments)
    commands = gates(known.part, rest)
    failed, empty = [], []
    for name, command in commands.items():
        print(f"\n== {name}", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code == NOTHING_TO_RUN and rest:
            empty.append(name)
        elif code:
            failed.append(name)
    if len(empty) == len(commands) - len(CHECKS):
        failed += empty
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
