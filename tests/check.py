"""Run every gate of the project, one after the other, and fail if any of them failed.

Arguments are handed to pytest: `check.py -m "not slow"` leaves the long tests out. Tests run in three parts: the quick
ones and then those that are marked `slow`, side by side, file by file; and by themselves those that are marked `alone`.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # not resolved: in a virtual environment it is a link to the outer interpreter
WORKERS = min(os.cpu_count() or 1, 4)  # each holds torch, and what it trains

PYTEST = [sys.executable, "-m", "pytest"]
# The quick tests alone have to cover the core: code that a training happens to pass through is not tested by that, and
# tracing a training costs a quarter of its time.
COVERAGE = ["--cov=yolo_adapruner.core", "--cov-fail-under=95"]
# in the order of tests/conftest.py, which begins with the files that take longest
SIDE_BY_SIDE = ["-n", str(WORKERS), "--dist=loadfile", "--no-loadscope-reorder"]
TESTS = {
    "quick tests": [*PYTEST, "--part=quick", *SIDE_BY_SIDE, *COVERAGE],
    "slow tests": [*PYTEST, "--part=slow", *SIDE_BY_SIDE],
    "tests alone": [*PYTEST, "--part=alone"],
}
# pytest comes last: its closing line is then the last thing on the screen when all is well
GATES = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "walls": [str(BIN / "lint-imports")],
    **TESTS,
}
NOTHING_TO_RUN = 5  # pytest's exit code where the arguments leave a part without tests


def main(pytest_arguments: list[str]) -> int:
    """Run the gates in order and return 0 if all passed, otherwise 1."""
    failed, empty = [], []
    for name, command in GATES.items():
        extra = pytest_arguments if name in TESTS else []
        print(f"\n== {name}", flush=True)
        code = subprocess.run([*command, *extra], cwd=ROOT, check=False).returncode
        if code == NOTHING_TO_RUN and extra:
            empty.append(name)
        elif code:
            failed.append(name)
    if len(empty) == len(TESTS):
        failed += empty
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
