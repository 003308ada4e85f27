"""Whatever a config, a command line, a data file, a label or a run folder says: it works or is refused in one line.

Several thousand cases, the same in each run. Each goes through the code a run goes through, up to the first batch.
"""

import contextlib
import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from tests import helpers
from tests.helpers import label_of, training_images
from yolo_adapruner import cli
from yolo_adapruner.config import PruneConfig, RunConfig, load
from yolo_adapruner.data import export
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import labelcache
from yolo_adapruner.engine.names import ultralytics_args
from yolo_adapruner.engine.splits import box_classes, load_data
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import AdaPrunerError


def cases(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    level = LOGGER.level
    LOGGER.setLevel(logging.CRITICAL)
    yield
    LOGGER.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data file of a set of three training images, built once."""
    return helpers.build_set(tmp_path_factory.mktemp("fuzz") / "set", train=3, val=2, empty=0, size=32)


@pytest.fixture(autouse=True)
def deep_below(monkeypatch, tmp_path_factory):
    """The working directory is far from anything that a path of dots could reach."""
    folder = tmp_path_factory.mktemp("fuzz") / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """An address in a data file or a model's name is a failed download, and no download."""
    from ultralytics.utils import checks, downloads

    def offline(*args, **keywords):
        raise ConnectionError("Download failure. Environment may be offline.")

    for module in (checks.downloads, downloads):
        monkeypatch.setattr(module, "safe_download", offline)
    monkeypatch.setattr("ultralytics.data.utils.safe_download", offline)
    monkeypatch.setattr(downloads, "get_github_assets", offline)


def refused(act) -> bool:
    """Whether what is done is refused, in one line; anything but `AdaPrunerError` fails the test."""
    try:
        with one_line_errors("data.yaml"):
            act()
    except AdaPrunerError as error:
        line = str(error)
    else:
        return False
    assert len(line.splitlines()) == 1, line
    return True


# No "/": a data file may name it, and it would be searched for images.
NASTY = ["../", "", ".", "~", "\0", "a\nb", "x" * 300, "/dev/null", "/proc/self/mem", "coco8.yaml", "*", "é\ud800"]
WORDS = ["true", "null", "nan", ".inf", "-1", "1e999", "0x10", "[1", "{a: 1}", "!!binary x", "&a *a", "2024-13-01"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**4), 10**4)
    | st.integers()
    | st.floats()
    | st.text(max_size=6).filter(lambda text: not text.startswith("/"))
    | st.sampled_from(NASTY)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=4
)


# Configs and command lines


@cases(600)
@given(changes=st.dictionaries(st.sampled_from([*DEFAULT_CFG_DICT, *RunConfig.model_fields]), values, max_size=3))
def test_settings_of_any_kind_reach_ultralytics_or_are_refused(data, changes):
    least = {"model": "yolov8n.yaml", "data": str(data)}
    refused(lambda: ultralytics_args(load(least, changes)))


texts = st.lists(
    st.sampled_from([*WORDS, "model: yolov8n.yaml\n", "data: x\n", "prune: ", "  share: ", "- ", ": ", "\n", "#", "'"])
    | st.text(max_size=3),
    max_size=10,
).map("".join)


@cases(300)
@given(text=texts)
def test_run_configs_of_any_text(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "run-config.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: load(file))


flags = [
    *(
        f"--{name}"
        for name in ("data", "model", "epochs", "imgsz", "batch", "seed", "device", "name", "prune", "seeds")
    ),
    *("--resume", "--jobs", "--", "-x", "--help", "--version", "train", "compare", "export", "yolov3-tiny", "."),
    *(f"{key}=" for key in ("epochs", "mosaic", "prune.tau", "prune", "train", "model", "data", "nichts", "=")),
]
words = st.builds(str.__add__, st.sampled_from(flags), st.sampled_from(["", *WORDS, *NASTY[:-1]])) | st.sampled_from(
    [*flags, *WORDS, "0.1", "3", "cpu"]
)


@cases(700)
@given(command=st.sampled_from(["train", "compare", "export", "planted"]), rest=st.lists(words, max_size=6))
def test_command_lines_of_any_words(command, rest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_adapruner.engine.run.train", lambda config: exit(ultralytics_args(config) and 0))
        patch.setattr("yolo_adapruner.study.compare.compare", lambda config, **_: exit(ultralytics_args(config) and 0))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = cli.main([command, *rest])
            except SystemExit as end:
                code = end.code
    assert code in (0, 2), said.getvalue()
    assert len(said.getvalue().splitlines()) == (code == 2), said.getvalue()


# Label files

tokens = st.one_of(
    st.floats(0, 1).map(lambda x: f"{x:.4f}"),
    st.integers(-1, 4).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["nan", "inf", "-inf", "1e400", "-0.005", "1.005", "1.02", "0x1", "1_0", "٣", "½", "1,5", "disc", "-0"]
    ),
)
rows = st.one_of(
    st.lists(tokens, min_size=5, max_size=5),
    st.lists(st.floats(0, 1).map(str), min_size=5, max_size=5).map(lambda row: [str(int(float(row[0]) * 3)), *row[1:]]),
    st.lists(tokens, max_size=12),
)
label_files = st.one_of(
    st.lists(rows.map(" ".join), max_size=4).map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.tuples(st.sampled_from([b"\xef\xbb\xbf", b"\r\n", b"\x1a", b"\0"]), rows.map(" ".join).map(str.encode)).map(
        b"".join
    ),
)


def first_batch(data: dict) -> None:
    """Go through the data as a run does until it has a batch."""
    args = get_cfg(overrides={"imgsz": 32, "batch": 2, "mosaic": 0.5})
    dataset = labelcache.build(args, data["train"], 2, data)
    paths = images.unique_paths(dataset)
    images.skipped_paths(dataset)
    assert len(images.box_counts(dataset, paths)) == len(paths)
    assert len(box_classes(paths)) == len(paths)
    batch = dataset.collate_fn([dataset[i] for i in range(len(dataset))])
    assert np.isfinite(batch["bboxes"].numpy()).all()
    assert set(batch["cls"].flatten().tolist()) <= set(range(data["nc"]))


@cases(1500)
@given(content=label_files)
@example(content=b"0 nan 0.5 0.1 0.1")
@example(content=b"-0.005 0.5 0.5 0.1 0.1")
def test_label_files_of_any_content(data, content):
    label_of(training_images(data)[0]).write_bytes(content)
    found = load_data(str(data))
    assert not refused(lambda: first_batch(found))  # the other two images are sound


# Image lists

lines = st.one_of(
    st.sampled_from(
        ["images/train/000.png", "./images/train/001.png", "images/train", "labels/train/000.txt", "x.png"]
    ),
    st.sampled_from([*NASTY, "http://a.b/c.png", "data.yaml", "\0.png", ".png", "/.png", "./../000.png", "\u2028.png"]),
    st.text(max_size=5).map(lambda text: f"{text}.png"),
)


@cases(400)
@given(content=st.lists(lines, max_size=5), absolute=st.booleans())
def test_image_lists_of_any_content(data, content, absolute):
    root = data.parent
    text = "\n".join(f"{root}/{line}" if absolute else line for line in content)
    (root / "list.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = {**load_data(str(data)), "train": str(root / "list.txt")}
    refused(lambda: first_batch(found))


# Data files

changes = st.dictionaries(
    st.sampled_from(["path", "train", "val", "test", "names", "nc", "channels", "download", "kpt_shape", "flip_idx"]),
    values.filter(lambda value: not (isinstance(value, int | float) and abs(value) > 10**4)),
    min_size=1,
    max_size=3,
)


def write(data: Path, change: dict) -> Path:
    file = data.parent / "changed.yaml"
    content = {**yaml.safe_load(data.read_text(encoding="utf-8")), **change}
    file.write_bytes(yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))
    return file


@cases(700)
@given(change=changes)
def test_data_files_of_any_content(data, change):
    file = write(data, change)
    refused(lambda: first_batch(load_data(str(file))))


@cases(300)
@given(text=texts | st.binary(max_size=30).map(lambda b: b.decode("latin-1")))
def test_data_files_of_any_text(data, text):
    file = data.parent / "changed.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: load_data(str(file)))


@cases(30)
@given(change=changes)
def test_data_files_of_any_content_in_a_whole_trainer(data, tmp_path_factory, change):
    """Everything before the first epoch: model, loaders, pruner."""
    folder = tmp_path_factory.getbasetemp() / "fuzz-run" / "r"
    file = write(data, change)
    refused(lambda: helpers.new_trainer(file, folder, batch=2, share=0)._setup_train())


# Run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder's manifest and mask as `export` reads them."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    folder.mkdir()
    columns = {"weight": np.full(6, 0.5), "logit": np.arange(6.0)}
    outcome = export.Outcome([f"/set/{i}.png" for i in range(6)], np.arange(6) > 0, columns)
    data = {"path": "/set", "val": "/set/val", "names": {0: "a"}, "nc": 1}
    manifest = {"seed": 0, "prune": {"share": 0.2}}
    export.write(folder, outcome, source=Path("/set/data.yaml"), data=data, manifest=manifest)
    return folder


def changed(folder: Path) -> Path:
    copy = folder.parent / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))


@cases(200)
@given(
    keys=st.lists(
        st.sampled_from(["seed", "prune", "share", "data", "rest", "names", "path", "source", "columns"]),
        min_size=1,
        max_size=3,
    ),
    value=values,
    share=st.sampled_from([(), (0.5,)]),
)
def test_manifests_of_any_content(finished, keys, value, share):
    folder = changed(finished)
    manifest = json.loads((folder / export.MANIFEST).read_text(encoding="utf-8"))
    place = manifest
    for key in keys[:-1]:
        place = place[key] if isinstance(place.get(key), dict) else place
    place[keys[-1]] = value
    text = json.dumps(manifest, default=str)
    (folder / export.MANIFEST).write_text(text, encoding="utf-8")
    refused(lambda: export.export(folder, share))
    assert {path.name for path in folder.parent.iterdir()} == {"run", "changed"}


@cases(200)
@given(name=st.sampled_from([export.MANIFEST, export.MASK]), at=st.floats(0, 1), content=st.binary(max_size=8))
def test_run_files_with_bytes_changed(finished, name, at, content):
    folder = changed(finished)
    there = (folder / name).read_bytes()
    i = int(at * len(there))
    (folder / name).write_bytes(there[:i] + content + there[i + len(content) :])
    refused(lambda: export.export(folder))


def test_the_fuzzers_know_the_names_they_play_with():
    """A setting that is renamed would be fuzzed as an unknown one only."""
    assert {"tau"} <= PruneConfig.model_fields.keys()
    assert {f.removeprefix("--") for f in flags[:8]} == set(cli._FLAGS)
