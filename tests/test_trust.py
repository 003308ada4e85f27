"""A data set is read, not run, and its names stay names: none becomes code or a path outside the run folder."""

import ast
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import yolo_adapruner
from tests import helpers
from tests.helpers import label_of, training_images, write_data
from yolo_adapruner.cli import main
from yolo_adapruner.engine import runtime
from yolo_adapruner.engine.labelcache import FreshLabels
from yolo_adapruner.engine.names import refuse_script
from yolo_adapruner.engine.splits import load_data, split_images
from yolo_adapruner.errors import DataError

PACKAGE = Path(yolo_adapruner.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
SETTINGS = helpers.cli_words({**helpers.QUICK, "batch": 4})


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys, *words: str | Path) -> str:
    capsys.readouterr()
    code = main(["train", "run.yaml", *map(str, words), *SETTINGS])
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1), err
    return err


# The package's own code


def called(call: ast.Call) -> str:
    """The last two names of what is called: `np.load`, `eval`."""
    parts = ast.unparse(call.func).split(".")
    return ".".join(parts[-2:])


def given(call: ast.Call, name: str) -> object:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"}
RUNS_CODE |= {
    f"os.{verb}{how}" for verb in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
}
UNSAFE_MODULES = {"subprocess", "pty", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "imp", "runpy"}
SAFE_LOADERS = {"_Loader"}


def faults(tree: ast.AST, *, starts: bool = False) -> list[str]:
    """What in a module would run code or a shell, or read a file so that it could; `starts`: it may start processes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if ast.unparse(node) == "from subprocess import CalledProcessError":  # what upstream's launcher raises
                continue
            if starts and ast.unparse(node) == "import subprocess":
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found.append("imports from pickle")
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
            found += [ast.unparse(node)] if node.attr not in ("UnpicklingError", "PicklingError") else []
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        if name in RUNS_CODE or given(node, "shell") not in (None, "False"):
            found.append(ast.unparse(node))
        if name in ("torch.load", "torch_load") and given(node, "weights_only") != "True":
            found.append(ast.unparse(node))
        if name == "np.load" and given(node, "allow_pickle") not in (None, "False"):
            found.append(ast.unparse(node))
        if name.startswith("yaml.") and name != "yaml.safe_load" and "load" in name:
            found += [] if name == "yaml.load" and given(node, "Loader") in SAFE_LOADERS else [ast.unparse(node)]
    return found


BENCHES = ("bench.py", "study/scale.py", "study/wall.py")
"""What measures whole processes, and has this very Python started for it."""
STARTERS = ("bench.py", "study/scale.py", "study/turns.py")
"""What starts processes."""


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_a_shell_or_code_from_a_file(module):
    starts = module.relative_to(PACKAGE).as_posix() in STARTERS
    assert faults(ast.parse(module.read_text(encoding="utf-8")), starts=starts) == []


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_starts_no_other_program_than_this_python(name):
    text = (PACKAGE / name).read_text(encoding="utf-8")
    starts = re.findall(r"\b(subprocess\.\w+\(|by_turns\()", text)
    assert starts == (["by_turns("] if name == "study/wall.py" else ["subprocess.run("])
    assert re.search(r"(words =|return) \[sys\.executable, \"-m\", \"yolo_adapruner[.\"]", text)


def test_turns_are_taken_by_the_bench_of_wall_times_alone():
    """They start what they are handed, so that whoever hands it to them is looked at above."""
    using = [module for module in MODULES if "by_turns(" in module.read_text(encoding="utf-8")]
    assert {module.relative_to(PACKAGE).as_posix() for module in using} == {"study/turns.py", "study/wall.py"}
    text = (PACKAGE / "study/turns.py").read_text(encoding="utf-8")
    assert re.findall(r"subprocess\.(\w+)\(", text) == ["Popen"]


def test_the_yaml_loader_of_ours_is_a_safe_one():
    from yolo_adapruner import config

    assert issubclass(config._Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "from subprocess import run",
        "import os.path, subprocess as s",
        "from pickle import load",
        "pickle.load(f)",
        "eval(x)",
        "os.system('ls')",
        "os.execv('ls', [])",
        "call(x, shell=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "numpy.np.load(f, allow_pickle=p)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.full_load(f)",
        "yaml.unsafe_load_all(f)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert faults(ast.parse(line))


# Code that comes with a data set


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_label_cache_that_came_with_the_data_set_is_never_unpickled(home, capsys):
    from ultralytics.data.utils import load_dataset_cache_file

    from yolo_adapruner.engine.detections import collect

    mark = home / "exploded"
    caches = [home / "set" / "labels" / f"{split}.cache" for split in ("train", "val")]
    for cache in caches:
        with cache.open("wb") as file:
            np.save(file, np.array({"version": Bomb(mark)}, dtype=object))
    there = files(home / "set")
    assert main(["train", "run.yaml", "--prune", "0.25", "--name", "r", *SETTINGS]) == 0
    collect(home / "runs/adaprune/r/weights/best.pt", home / "set/data.yaml", "val", imgsz=64, batch=4, device="cpu")
    assert len(split_images(load_data("set/data.yaml"), "val")) == 4
    assert not mark.exists()
    assert files(home / "set") == there
    load_dataset_cache_file(caches[0])  # what plain Ultralytics does with it
    assert mark.exists()


SCRIPT = "import os; os.mkdir('exploded')"


@pytest.mark.parametrize(
    "script",
    [SCRIPT, "bash -c 'mkdir exploded'", "bash explode.sh", f"http\n{SCRIPT}", "https://a.b/x.zip; y", "x", 7, ["x"]],
)
def test_a_script_in_a_data_file_is_refused_where_ultralytics_would_run_it(home, capsys, script):
    write_data(home / "set" / "data.yaml", home / "set", val="images/missing", download=script)
    (home / "explode.sh").write_text("mkdir exploded")
    line = refused(capsys)
    assert "Expected the images of" in line
    assert "its download: is a script" in line
    with pytest.raises(DataError, match="its download: is a script"):
        load_data("set/data.yaml")
    with pytest.raises(DataError, match="its download: is a script"):
        load_data("set")
    assert not (home / "exploded").exists()


def test_a_script_is_refused_whichever_images_are_looked_for(home, capsys):
    write_data(home / "set" / "data.yaml", home / "set", test="images/missing", download=SCRIPT)
    assert load_data("set/data.yaml")["nc"] == 3
    assert "its download: is a script" in refused(capsys, "split=test")
    assert not (home / "exploded").exists()


def test_the_classes_of_a_set_trained_as_one_are_read_without_its_script(home):
    """Whose validation images are missing, which nobody has asked for."""
    write_data(home / "set" / "data.yaml", home / "set", val="images/missing", test="images/val", download=SCRIPT)
    overrides = {"model": "small.yaml", "data": "set/data.yaml", "split": "test", "single_cls": True}
    trainer = yolo_adapruner.AdaPruneTrainer(overrides={**overrides, "project": str(home / "runs")})
    assert trainer.data["names"] == {0: "item"}
    assert not (home / "exploded").exists()


def test_a_bare_name_s_script_is_refused_as_well(home):
    write_data(home / "bare.yaml", home / "set", val="images/missing", download=SCRIPT)
    for name in ("bare", "bare.yaml"):
        with pytest.raises(DataError, match="its download: is a script"):
            refuse_script(name)
        with pytest.raises(DataError, match="its download: is a script"):
            yolo_adapruner.AdaPruneTrainer(
                overrides={"model": "small.yaml", "data": name, "project": str(home / "runs")}
            )
    assert not (home / "exploded").exists()


def test_a_script_that_would_not_be_run_is_passed_over(home):
    write_data(home / "set" / "data.yaml", home / "set", download=SCRIPT)
    assert load_data("set/data.yaml")["nc"] == 3


@pytest.mark.parametrize("address", ["https://a.b/x.zip", "http://a.b/x.tar.gz?download=1"])
def test_an_archive_s_address_is_no_script(home, address):
    write_data(home / "set" / "data.yaml", home / "set", val="images/missing", download=address)
    refuse_script("set/data.yaml")


def test_the_packaged_set_may_build_itself():
    from ultralytics.utils import ROOT

    from yolo_adapruner import resources

    refuse_script(str(resources.find("data", "digits")))
    refuse_script(str(ROOT / "cfg" / "datasets" / "coco.yaml"))


def test_a_sidecar_that_is_a_pickle_is_never_unpickled(home, capsys):
    """Also a checkpoint as such; last.pt is Ultralytics' format, a pickle, and is read only where a user names it."""
    from yolo_adapruner.errors import RunError

    mark = home / "exploded"

    def cut_off(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        helpers.train_here(home / "set/data.yaml", home / "r", batch=4, callbacks={"on_model_save": cut_off})
    (home / "r" / "adaprune.yaml").write_text(
        f"model: {home}/small.yaml\ndata: {home}/set/data.yaml\nprune: {{share: 0.25}}\n"
    )
    (home / "r" / "weights" / "adaprune.pt").write_bytes(pickle.dumps({"format": 1, "images": Bomb(mark)}))
    from yolo_adapruner.engine.run import resume

    with pytest.raises(RunError, match=r"Expected .*adaprune\.pt"):
        resume(home / "r")
    assert not mark.exists()


# Names


NAMES = ["../../evil", "/tmp/evil", "..", "a\nb: [c", "\x1b]0;x\x07\x1b[31m", "$\\frac{", "-rf", "%s {0} $HOME `id`"]
NAMES += ["x" * 2000, "Größe ☃ 漢", "'\"\\", "", " ", "null", "0", "a\u2028b", "!!python/object:os.system"]


@pytest.mark.slow
@pytest.mark.parametrize("plots", [False, True])
def test_class_names_of_any_kind_stay_names(home, capsys, plots):
    """They come back from pruned.yaml and best.pt as they were, and nothing is written but the run folder."""
    from ultralytics import YOLO
    from ultralytics.data.utils import check_det_dataset

    write_data(home / "set" / "data.yaml", home / "set", names=NAMES)
    for i, image in enumerate(training_images(home / "set" / "data.yaml")):
        label_of(image).write_text(f"{i} 0.5 0.5 0.3 0.3\n{i + 5} 0.3 0.3 0.2 0.2\n")
    there = files(home)
    assert main(["train", "run.yaml", "--prune", "0.25", "--name", "r", *SETTINGS, f"plots={plots}"]) == 0
    folder = home / "runs" / "adaprune" / "r"
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert {k: v for k, v in files(home).items() if not k.startswith("runs/adaprune/r/")} == there
    assert check_det_dataset(folder / "pruned.yaml")["names"] == dict(enumerate(NAMES))
    assert YOLO(folder / "weights" / "best.pt").names == dict(enumerate(NAMES))
    assert main(["export", str(folder)]) == 0
    assert check_det_dataset(folder / "pruned.yaml")["names"] == dict(enumerate(NAMES))
    assert not any(evil.exists() for evil in (Path("/tmp/evil"), home.parent / "evil", home / "evil"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({0: "a", 2: "b"}, "requires class indices 0-1"),
        ({-1: "a", -2: "b"}, "have no class 0: number them"),
        ({"x": "a"}, "'x'"),
        ({}, "at least one class name"),
        ([], "at least one class name"),
        (7, "names"),
    ],
)
def test_names_with_gaps_are_refused(home, capsys, names, words):
    write_data(home / "set" / "data.yaml", home / "set", names=names)
    assert words in refused(capsys)


def test_names_that_are_no_words_are_read_as_words(home):
    write_data(home / "set" / "data.yaml", home / "set", names=[None, ["a"], {"b": 1}, 1.5, True])
    assert load_data("set/data.yaml")["names"] == {0: "None", 1: "['a']", 2: "{'b': 1}", 3: "1.5", 4: "True"}


IMAGE_NAMES = ["a b", "-rf", "'q'", '"d"', "größe ☃", "{0}", "*", "[a]", "a,b", "#h", " lead", "trail ", "%20", "a;b&c"]
IMAGE_NAMES += [
    "$HOME",
    "`id`",
    "a..b",
    "!",
    "~",
    "=1+1",
    "x" * 200,
    "a\tb",
    "\x1b[31m",
    "images",
    "a\\b",
    "?",
    "|",
    "<>",
]


def test_image_names_of_any_kind_come_back_from_the_lists(home):
    """As plain Ultralytics reads them there: the same images with the same boxes."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    rng = np.random.default_rng(0)
    images = home / "set" / "images" / "train"
    for name in IMAGE_NAMES:
        source = images / f"{rng.integers(10):03}.png"
        shutil.copyfile(source, images / f"{name}.png")
        shutil.copyfile(label_of(source), label_of(images / f"{name}.png"))
    there = files(home)
    assert main(["train", "run.yaml", "--prune", "0.25", "--name", "r", *SETTINGS]) == 0
    folder = home / "runs" / "adaprune" / "r"
    assert {k: v for k, v in files(home).items() if not k.startswith("runs/adaprune/r/")} == there
    kept, dropped = helpers.read_list(folder / "kept.txt"), helpers.read_list(folder / "dropped.txt")
    assert sorted([*kept, *dropped]) == sorted(map(str, training_images(home / "set" / "data.yaml")))
    data = check_det_dataset(folder / "pruned.yaml")
    stock = build_yolo_dataset(get_cfg(), data["train"], 4, data, mode="val")
    assert sorted(stock.im_files) == sorted(kept)
    for file, label in zip(stock.im_files, stock.labels, strict=True):
        assert len(label["cls"]) == len(label_of(Path(file)).read_text().splitlines())


@pytest.mark.parametrize("name", [b"a\nb", b"a\rb", b"a\x0bb", b"a\xc2\x85b", b"a\xe2\x80\xa8b", b"caf\xe9"], ids=ascii)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_name_that_no_list_can_hold_is_refused_before_anything_is_trained(home, capsys, name, split):
    folder = home / "set" / "images" / split
    shutil.copyfile(folder / "000.png", os.fsencode(folder) + b"/" + name + b".png")
    line = refused(capsys)
    assert "Expected image paths that a list of images can hold, one line of UTF-8 each, but got" in line
    assert not (home / "runs").exists()


def test_the_labels_are_ultralytics_own(home):
    """Ours writes no cache; the labels, the counts and the order are its."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset

    images = training_images(home / "set" / "data.yaml")
    label_of(images[0]).write_text("7 0.5 0.5 0.1 0.1\n")
    label_of(images[1]).unlink()
    images[2].write_bytes(b"")
    label_of(images[3]).write_text("0 0.1 0.1 0.4 0.1 0.4 0.4\n")
    args = {"data": {"names": dict(enumerate(helpers.NAMES))}, "task": "detect", "hyp": get_cfg(), "augment": True}
    ours, stock = (kind(str(images[0].parent), **args) for kind in (FreshLabels, YOLODataset))
    assert ours.im_files == stock.im_files
    assert len(ours.im_files) == 10
    for own, theirs in zip(ours.labels, stock.labels, strict=True):
        assert own.keys() == theirs.keys()
        for key in own:
            np.testing.assert_array_equal(own[key], theirs[key])


# The machine around


def test_a_folder_for_fonts_that_another_user_laid_out_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = runtime._private_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert runtime._private_folder() == folder
    folder.chmod(0o777)
    assert runtime._private_folder() != folder
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert runtime._private_folder() != folder
