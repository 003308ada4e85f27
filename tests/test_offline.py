"""The main command needs no network: it passes without a route, and asks for no name and no connection.

Where this user may make a network namespace, the command runs in an empty one. With or without it, Python's own sockets
are refused and each attempt is noted, so that one which is caught and passed over shows all the same.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import helpers

ROOT = Path(__file__).resolve().parent.parent
LEFT_TO_US = ("YOLO_OFFLINE", "YOLO_AUTOINSTALL", "NO_ALBUMENTATIONS_UPDATE", "YOLO_CONFIG_DIR", "MPLBACKEND")
"""What the tests set in the environment and a user does not."""

GUARD = """
import errno, os, socket

def _note(*what):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        print(os.getpid(), *what, file=file)
    raise OSError(errno.ENETUNREACH, "Network is unreachable")

def _refuse(name):
    function = getattr(socket.socket, name)
    def refuse(self, *args):
        return function(self, *args) if self.family == socket.AF_UNIX else _note(name, *args)
    setattr(socket.socket, name, refuse)

for name in ("connect", "connect_ex", "sendto"):
    _refuse(name)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
    setattr(socket, name, lambda *args, name=name, **_: _note(name, *args))
"""


def without_a_route() -> list[str]:
    """What to put before a command so that it has no network; nothing where this user may not do that."""
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
            return prefix
    return []


@pytest.fixture
def offline(tmp_path):
    """Run Python as a user would who has no network, and return what it said and what it tried."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    log = tmp_path / "network.log"
    changes = {"HOME": str(tmp_path / "home"), "NETWORK_LOG": str(log), "PYTHONPATH": f"{tmp_path / 'guard'}:{ROOT}"}
    environment = helpers.child_environment(**changes)
    for name in LEFT_TO_US:
        environment.pop(name, None)

    def run(*words: str | Path) -> tuple[subprocess.CompletedProcess[str], str]:
        log.write_text("")
        command = [*without_a_route(), sys.executable, *map(str, words)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return ended, log.read_text()

    return run


@pytest.mark.slow
def test_the_main_command_needs_no_network(offline, tmp_path):
    """The README's, on a set that trains in seconds: packaged config and architecture, pictures and all."""
    data = helpers.build_set(tmp_path / "set", train=16, val=4)
    small = ["--data", data, "--epochs", "3", "--imgsz", "64", "--batch", "4", "--name", "r"]
    ended, tried = offline("-m", "yolo_adapruner", "train", ROOT / "cfg" / "yolov3-tiny.yaml", "--prune", "0.1", *small)
    assert ended.returncode == 0, ended.stderr
    assert "kept 14 of 16 training images" in ended.stdout
    assert tried == ""
    run = tmp_path / "runs" / "adaprune" / "r"
    ended, tried = offline("-m", "yolo_adapruner", "export", run, "--prune", "0.5")
    assert ended.returncode == 0, ended.stderr
    assert tried == ""
    assert len(helpers.read_list(run / "prune-0.5" / "kept.txt")) == 8


@pytest.mark.slow
def test_the_guard_sees_what_would_be_asked(offline):
    """Plain Ultralytics looks two names up when it is imported."""
    ended, tried = offline("-c", "import ultralytics; ultralytics.YOLO")
    assert ended.returncode == 0, ended.stderr
    assert "getaddrinfo one.one.one.one" in tried
