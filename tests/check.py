"""Run every gate of the project, one after the other, and fail if any of them failed.

Arguments are handed to pytest: `check.py -m "not slow"` leaves the long tests out.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # not resolved: in a virtual environment it is a link to the outer interpreter

# pytest comes last: its closing line is then the last thing on the screen when all is well
GATES = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "walls": [str(BIN / "lint-imports")],
    "tests": [sys.executable, "-m", "pytest", "--cov=yolo_adapruner.core", "--cov-fail-under=95"],
}


def main(pytest_arguments: list[str]) -> int:
    """Run the gates in order and return 0 if all passed, otherwise 1."""
    failed = []
    for name, command in GATES.items():
        extra = pytest_arguments if name == "tests" else []
        print(f"\n== {name}", flush=True)
        if subprocess.run([*command, *extra], cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
