"""What a user gets: the wheel, its dependencies' bounds, the packaged files, and the two commands of the README."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import yolo_adapruner
from yolo_adapruner import resources

ROOT = Path(__file__).resolve().parent.parent
OPENCV = ("opencv-python", "opencv-python-headless")


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command without the tree on its path, so that only what is installed can be imported."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if check and done.returncode:
        pytest.fail(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist built from this tree, so that a file missing in either is missed here."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that holds the wheel, and sees this one's packages through a .pth file.

    A path in a .pth file is added as it is: .pth files in the folder it names are not read, so an editable install of
    the tree stays out of sight.
    """
    home = tmp_path_factory.mktemp("env")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    # pip first, the .pth file second: pip takes what it can see for installed, this very package included
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).stdout.strip())
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "dependencies.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    return home / "bin"


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def _requirements(wheel: Path) -> dict[str, Requirement]:
    found = [Requirement(line) for line in _metadata(wheel).get_all("Requires-Dist", [])]
    return {item.name: item for item in found if item.marker is None}


def _bash_blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# The environment


def test_both_opencv_packages_have_one_version_and_import():
    versions = {name: metadata.version(name) for name in OPENCV}
    assert len(set(versions.values())) == 1, f"two OpenCV versions share one cv2/: {versions}"

    import cv2

    assert versions["opencv-python"].startswith(cv2.__version__.partition("-")[0])


@pytest.mark.parametrize("module", ["yolo_adapruner", "yolo_adapruner.resources", "yolo_adapruner.cli"])
def test_importing_the_front_door_loads_no_heavy_package(module):
    code = f"import sys; import {module}; print({{'torch', 'ultralytics', 'cv2'}} & set(sys.modules))"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.strip() == "set()"


# What answers at once: none of these may cost the seconds that torch takes to import
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["compare", "--help"], ["train", "-x"]]
)
def test_help_and_version_load_no_heavy_package(words):
    code = f"""
import sys
from yolo_adapruner.cli import main
try:
    main({words!r})
except SystemExit:
    print({{"torch", "ultralytics", "cv2", "numpy", "pydantic", "yaml", "polars"}} & set(sys.modules))
"""
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout.splitlines()[-1] == "set()"


def test_ultralytics_reads_and_writes_in_a_folder_of_this_session_only():
    from ultralytics.utils import ONLINE, SETTINGS, USER_CONFIG_DIR
    from ultralytics.utils.checks import check_font

    home = Path(os.environ["YOLO_CONFIG_DIR"])
    assert home.name.startswith("yolo-adapruner-tests-")
    assert home / "Ultralytics" == USER_CONFIG_DIR
    assert {name: SETTINGS[name] for name in ("datasets_dir", "weights_dir", "runs_dir", "sync")} == {
        "datasets_dir": str(home / "datasets"),
        "weights_dir": str(home / "weights"),
        "runs_dir": str(home / "runs"),
        "sync": False,
    }
    assert not ONLINE
    assert check_font("Arial.ttf") == USER_CONFIG_DIR / "Arial.ttf"  # found, so never asked for


# The public names


@pytest.mark.parametrize("name", yolo_adapruner.__all__)
def test_every_public_name_is_there(name):
    assert getattr(yolo_adapruner, name) is not None
    assert name in dir(yolo_adapruner)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        yolo_adapruner.prnue  # noqa: B018


# The files that come with the package


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("cfg", "yolov3-tiny", "cfg/yolov3-tiny.yaml"),
        ("cfg", "yolov3-tiny.yaml", "cfg/yolov3-tiny.yaml"),
        ("data", "digits", "data/digits.yaml"),
        ("data", "digits.yaml", "data/digits.yaml"),
    ],
)
def test_find_takes_a_name_with_and_without_its_ending(kind, name, file):
    assert resources.find(kind, name) == ROOT / file


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "nothing-of-this-name",
        "data/digits.yaml",  # a path is the caller's
        "../data/digits.yaml",
        "yolov3-tiny",  # of the other kind
        "README.md",
    ],
)
def test_find_returns_none_for_what_is_not_a_name(name):
    assert resources.find("data", name) is None


def test_available_lists_every_name_that_find_takes():
    for kind in ("cfg", "data"):
        names = resources.available(kind)
        assert names == sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))
        assert all(resources.find(kind, name) for name in names)
    assert "digits" in resources.available("data")


def test_a_stray_data_folder_beside_an_installed_package_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.yaml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "yolo_adapruner")
    assert resources.find("data", "digits") is None
    assert resources.available("data") == []


def test_packaged_files_come_before_a_clone_s(tmp_path, monkeypatch):
    share = tmp_path / "yolo_adapruner" / "share" / "data"
    for where in (share, tmp_path / "data"):
        where.mkdir(parents=True)
        (where / "digits.yaml").touch()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "yolo_adapruner")
    assert resources.find("data", "digits") == share / "digits.yaml"


# The walls: import-linter forbids a list of packages in core/, here is the rule itself


def test_core_imports_numpy_torch_and_the_standard_library_only():
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "yolo_adapruner"}
    found = {}
    for file in sorted((ROOT / "yolo_adapruner" / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found |= {name.partition(".")[0]: file.name for name in names}
    assert found, "expected to have read some imports"
    assert {name: file for name, file in found.items() if name not in allowed} == {}


# The commands of the README


def test_the_readme_has_two_commands_one_to_run_and_one_to_test():
    first, second = _bash_blocks(ROOT / "README.md")[:2]
    assert first.rstrip().endswith("yolo-adapruner train cfg/yolov3-tiny.yaml --prune 0.1")
    assert second.rstrip().endswith("tests/check.py")
    assert first.splitlines()[:2] == second.splitlines()[:2], "the two ways into .venv differ"
    assert "'.[dev]'" in second


def test_ci_runs_the_readme_s_second_command(tmp_path):
    """Runs .ci/run on a README whose second command is a harmless one."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    others = "```bash\nfalse\n```\n```python\nfalse\n```\n", "```bash\nfalse\n```\n"
    page = "```bash\necho ran &&\n  ls -A # tests/check.py\n```\n".join(others)
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    done = run("bash", ".ci/run", cwd=tmp_path)
    assert done.stdout.splitlines()[-3:] == ["ran", ".ci", "README.md"]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("no block at all\n", "got: nothing"),
        ("```bash\ntrue\n```\n", "got: nothing"),
        ("```bash\ntrue\n```\n```bash\npytest\n```\n", "got: pytest"),
        ("```bash\ntrue\n```\n```bash\nfalse # tests/check.py\n```\n", ""),  # a failing command fails the run
    ],
)
def test_ci_fails_where_the_readme_lost_its_command_or_the_command_fails(tmp_path, page, words):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    done = run("bash", ".ci/run", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert words in done.stderr


# The wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_packaged_files_the_licence_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = next(name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        for kind in ("cfg", "data"):
            for file in (ROOT / kind).rglob("*.yaml"):  # the architectures in cfg/models as well
                assert archive.read(f"yolo_adapruner/share/{file.relative_to(ROOT).as_posix()}") == file.read_bytes()
    files = [path for path in (ROOT / "yolo_adapruner").rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
    assert {"report.html", "report.css", "report.js"} <= {path.name for path in files}
    assert {name for name in names if "/share/" not in name} == {path.relative_to(ROOT).as_posix() for path in files}
    assert {name.partition("/")[0] for name in names} == {"yolo_adapruner"}


@pytest.mark.slow
def test_the_metadata_says_what_the_readme_says(wheel):
    found = _metadata(wheel)
    assert found["Name"] == "yolo-adapruner"
    assert found["Version"] == yolo_adapruner.__version__
    assert found["License-Expression"] == "AGPL-3.0-or-later"
    assert found["Requires-Python"] == ">=3.10"


@pytest.mark.slow
def test_torch_is_not_pinned_and_the_opencv_bounds_are_the_same(wheel):
    needs = _requirements(wheel)
    assert [clause.operator for clause in needs["torch"].specifier] == [">="]
    assert "torchvision" not in needs  # Ultralytics brings it, from where torch comes from
    first, second = (needs[name].specifier for name in OPENCV)
    assert first == second


@pytest.mark.slow
def test_the_wheel_runs_in_a_new_environment_from_an_empty_folder(installed, tmp_path):
    where = run(installed / "python", "-c", "import yolo_adapruner; print(yolo_adapruner.__file__)", cwd=tmp_path)
    assert installed.parent in Path(where.stdout.strip()).parents

    done = run(installed / "yolo-adapruner", "--help", cwd=tmp_path)
    assert "train" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_installed_command_prunes_the_example_set_by_name_from_an_empty_folder(installed, tmp_path):
    """The README's first command where there is no clone, on few pixels and few epochs."""
    short = ["--epochs", "3", "--imgsz", "64", "--batch", "32", "--device", "cpu", "--name", "kurz"]
    done = run(installed / "yolo-adapruner", "train", "yolov3-tiny", "--prune", "0.1", *short, cwd=tmp_path)
    assert "kept 324 of 360 training images, dropped 36 (10.0%)" in done.stdout
    assert "dropped by kind: " in done.stdout  # truth.csv was built with the set, and found
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    folder = tmp_path / "runs" / "adaprune" / "kurz"
    assert len((folder / "dropped.txt").read_text(encoding="utf-8").splitlines()) == 36
    assert (folder / "weights" / "best.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("cfg", "yolov3-tiny"), ("cfg", "resnet18-digits"), ("cfg/models", "resnet18-32px"), ("data", "digits")],
)
def test_the_installed_package_finds_its_files_by_name(installed, tmp_path, kind, name):
    code = f"from yolo_adapruner.resources import find; print(find({kind!r}, {name!r}))"
    found = Path(run(installed / "python", "-c", code, cwd=tmp_path).stdout.strip())
    assert installed.parent in found.parents
    assert found.read_bytes() == (ROOT / kind / f"{name}.yaml").read_bytes()
