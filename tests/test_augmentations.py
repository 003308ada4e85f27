"""`augmentations:` of the run config: transforms by name, checked, tried on a picture, and used by every run."""

import json
import random
import re
import subprocess
import sys

import albumentations as A
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import helpers
from yolo_adapruner import api
from yolo_adapruner.augmentations import _known, for_ultralytics, normalise
from yolo_adapruner.config import RunConfig, load
from yolo_adapruner.engine import names
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.tryout import try_out
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study import cells, evaluate, grid

LEAST = {"model": "yolov3-tiny.yaml", "data": "digits.yaml"}
ISSUE = [
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "p": 0.3}},
    {"Rotate": {"limit": 10, "p": 0.5}},
    "Blur",
]


def built(value):
    """What Ultralytics makes of a list."""
    return [A.from_dict(spec) for spec in for_ultralytics(normalise(value))]


# What comes in as what

EQUAL = [
    # name, from the run config, by hand
    ("names and arguments", ISSUE[:2], [A.RandomBrightnessContrast(brightness_limit=0.2, p=0.3), A.Rotate(10, p=0.5)]),
    ("a name alone", ["Blur"], [A.Blur()]),
    ("a name with nothing behind it", [{"Blur": None}], [A.Blur()]),
    ("a default p that is not 0.5", [{"SomeOf": {"transforms": ["Blur"]}}], [A.SomeOf([A.Blur()], n=1, p=1)]),
    ("a pair", [{"Blur": {"blur_limit": [3, 7], "p": 1}}], [A.Blur(blur_limit=(3, 7), p=1)]),
    ("a pair from Python", [{"Blur": {"blur_limit": (3, 7)}}], [A.Blur(blur_limit=(3, 7))]),
    ("mappings inside", [{"Affine": {"scale": {"x": [0.9, 1.1], "y": 1}}}],
     [A.Affine(scale={"x": (0.9, 1.1), "y": 1})]),
    ("one of several", [{"OneOf": {"transforms": ["Blur", {"Rotate": {"limit": 5}}], "p": 0.2}}],
     [A.OneOf([A.Blur(), A.Rotate(5)], p=0.2)]),
    ("some of several", [{"SomeOf": {"transforms": ["Blur", "ToGray", "CLAHE"], "n": 2, "replace": True}}],
     [A.SomeOf([A.Blur(), A.ToGray(), A.CLAHE()], n=2, replace=True)]),
    ("two levels", [{"Compose": {"transforms": [{"OneOf": {"transforms": ["Blur"]}}]}}],
     [A.Compose([A.OneOf([A.Blur()])])]),
    ("none", [], []),
]  # fmt: skip


@pytest.mark.parametrize(("value", "transforms"), [c[1:] for c in EQUAL], ids=[c[0] for c in EQUAL])
def test_transforms_are_those_one_would_make_by_hand(value, transforms):
    assert [A.to_dict(t) for t in built(value)] == [A.to_dict(t) for t in transforms]


def test_a_list_goes_through_the_run_config_and_yaml_and_back_unchanged(tmp_path):
    config = load({**LEAST, "augmentations": ISSUE})
    assert config.augmentations == [*ISSUE[:2], {"Blur": {}}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
    assert load(tmp_path / "run.yaml") == config
    json.dumps(config.model_dump())


WAYS = [
    # name, what Ultralytics is handed: None is its own four, [] none
    ("left out", {}, None),
    ("none", {"augmentations": []}, []),
    ("one", {"augmentations": ["Blur"]}, ["Blur"]),
]


@pytest.mark.parametrize(("given", "found"), [c[1:] for c in WAYS], ids=[c[0] for c in WAYS])
def test_ultralytics_is_handed_them(given, found):
    args = names.ultralytics_args(load({**LEAST, **given}))
    held = args.get("augmentations")
    assert (held if held is None else [spec["transform"]["__class_fullname__"] for spec in held]) == found


@pytest.mark.parametrize("text", ["augmentations=[Blur, {Rotate: {limit: 10}}]", "augmentations=[]"])
def test_on_the_command_line_they_are_one_yaml_value(text):
    from yolo_adapruner import cli

    args, rest = cli._parser().parse_known_args(["train", "yolov3-tiny", text])
    cli._sort_words(args, rest)
    expected = [{"Blur": {}}, {"Rotate": {"limit": 10}}] if "Blur" in text else []
    assert cli._run_config(args, None).augmentations == expected


# Errors

ERRORS = [
    # name, augmentations, words
    ("an unknown name", ["Blurr"], r"augmentations: unknown transform Blurr, did you mean Blur\?"),
    ("nothing near", ["qqqqqq"], "unknown transform qqqqqq; albumentations has no transform of that name"),
    ("an import path", ["os.system"], "unknown transform os.system"),
    ("a name of the library that is none", ["from_dict"], "unknown transform from_dict"),
    ("a base class", ["ImageOnlyTransform"], "unknown transform ImageOnlyTransform"),
    ("a function", ["Lambda"], "Lambda holds functions, which a run config cannot"),
    ("a file", [{"TextImage": {"font_path": "x"}}], "TextImage needs a font file"),
    ("other pictures", ["FDA", "Mosaic"], "FDA needs other pictures; Mosaic needs other pictures"),
    ("volumes", [{"CenterCrop3D": {"size": [1, 2, 3]}}], "CenterCrop3D is for volumes"),
    ("an unknown argument", [{"Rotate": {"limt": 3}}], r"Rotate: unknown argument 'limt', did you mean limit\?"),
    ("an argument of another version", [{"Blur": {"always_apply": 1}}], "'always_apply', it takes blur_limit, p"),
    ("a number as argument", [{"Blur": {3: 4}}], "Blur: unknown argument 3"),
    ("a value out of range", [{"Blur": {"p": 2}}], "Blur: p: input should be less than or equal to 1"),
    ("a value in words", [{"Rotate": {"limit": "far"}}], "Rotate: limit: input should be a valid"),
    ("a value it would change", [{"Blur": {"blur_limit": 4}}], "Blur: blur_limit: .*must be odd.*adjusted to"),
    ("an argument that is missing", ["RandomResizedCrop"], "RandomResizedCrop: size: field required"),
    ("a value that is no number", [{"CoarseDropout": {"fill": float("nan")}}], "CoarseDropout: fill: .* but got nan"),
    ("an object", [{"Blur": {"blur_limit": object()}}], "Blur: blur_limit: expected numbers, words, .* but got <obj"),
    ("a transform object", [A.Blur()], r"expected one name, or one name with its arguments, but got Blur\("),
    ("a name of two", [{"Blur": {}, "Rotate": {}}], "expected one name, or one name with its arguments, but got"),
    ("no arguments", [{"Blur": [3]}], r"Blur: expected a mapping of arguments, but got \[3\]"),
    ("no list", "Blur", r"augmentations: input should be a list of transforms such as \[Blur.*but got 'Blur'"),
    ("a mapping", {"Blur": {}}, "should be a list of transforms"),
    ("an empty choice", [{"OneOf": {"transforms": []}}], "OneOf: transforms is missing"),
    ("a choice of none", ["OneOf"], "OneOf: transforms is missing"),
    ("a choice of nothing", [{"OneOf": {"transforms": [{"Blur": {"p": 0}}]}}], "OneOf: expected a transform with p ab"),
    ("a fault inside", [{"OneOf": {"transforms": ["Blurr"]}}], "OneOf: transforms unknown transform Blurr"),
    ("a chance in words", [{"OneOf": {"transforms": ["Blur"], "p": "x"}}], "OneOf: p should be a number from 0 to 1"),
    ("more than there are", [{"SomeOf": {"transforms": ["Blur"], "n": 3}}], "SomeOf: `n` is greater"),
    ("a number of none", [{"SomeOf": {"transforms": ["Blur"], "n": 0}}], "SomeOf: n should be a whole number"),
    ("boxes of one's own", [{"Compose": {"transforms": ["Blur"], "bbox_params": {}}}], "unknown argument 'bbox_param"),
]


@pytest.mark.parametrize(("value", "words"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_what_cannot_be_is_refused_in_one_line(value, words):
    with pytest.raises(ConfigError) as caught:
        load({**LEAST, "augmentations": value})
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert re.search(words, line), line


def test_all_errors_come_at_once():
    value = ["Blurr", {"Rotate": {"limt": 3, "p": object()}}, {"OneOf": {"transforms": ["Lambda", {"Blur": {"p": 7}}]}}]
    with pytest.raises(ConfigError) as caught:
        load({**LEAST, "epochs": 1, "augmentations": value})
    for words in ("epochs:", "Blurr", "'limt'", "Rotate: p", "transforms Lambda holds", "transforms Blur: p:"):
        assert words in str(caught.value)


def test_a_list_inside_itself_ends_in_one_line():
    value = []
    value.append({"OneOf": {"transforms": value}})
    with pytest.raises(ConfigError, match="nested deeper than 8 levels"):
        load({**LEAST, "augmentations": value})


def test_under_train_they_are_sent_to_the_top():
    with pytest.raises(ConfigError, match=r"train: must not hold augmentations \(set it at the top level\)"):
        load({**LEAST, "train": {"augmentations": ["Blur"]}})


NAMES = st.sampled_from(["Blur", "OneOf", "SomeOf", "Compose", "Rotate", "Affine", "Lambda", "x"])
KEYS = st.sampled_from(["p", "limit", "blur_limit", "transforms", "n", "scale", "fill"]) | st.text(max_size=3)
LEAVES = st.none() | st.booleans() | st.integers(-5, 9) | st.floats() | st.text(max_size=4) | st.dates() | NAMES
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | KEYS | st.integers(), inner, max_size=3),
    max_leaves=12,
)


def entries_or_line(value) -> list | str:
    try:
        return load({**LEAST, "augmentations": value}).augmentations or []
    except ConfigError as error:
        return str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=1) | VALUES, max_size=3) | VALUES)
def test_fuzz_gives_a_config_or_one_line(value):
    found = entries_or_line(value)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
    else:
        assert normalise(found) == found
        assert len(for_ultralytics(found)) == len(found)


# Tried on a picture

SIZE = {"height": 96, "width": 96}
NEEDED = {
    "AtLeastOneBBoxRandomCrop": SIZE,
    "CenterCrop": SIZE,
    "Crop": {"x_max": 96, "y_max": 96},
    "CropAndPad": {"px": 3},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 3},
    "LongestMaxSize": {"max_size": 96},
    "PadIfNeeded": {"min_height": 96, "min_width": 96},
    "RandomCrop": SIZE,
    "RandomResizedCrop": {"size": [96, 96]},
    "RandomSizedBBoxSafeCrop": SIZE,
    "RandomSizedCrop": {"min_max_height": [40, 80], "size": [96, 96]},
    "Resize": SIZE,
    "SmallestMaxSize": {"max_size": 96},
}
OTHER_SIZE = ("BBoxSafeRandomCrop", "RandomCropFromBorders", "RandomScale")
SINGLE = sorted(name for name, kind in _known().items() if not issubclass(kind, A.BaseCompose))


@pytest.mark.parametrize("name", SINGLE)
def test_every_transform_of_the_library_fits_or_is_refused_for_a_reason(name):
    found = entries_or_line([{name: NEEDED.get(name, {})}])
    if isinstance(found, str):
        assert re.search(f"augmentations: {name} (needs|holds|is for|tears|changes) ", found), found
    elif name in OTHER_SIZE:
        with pytest.raises(ConfigError, match=f"but {name} gives .* pixels for 96x96x3"):
            try_out(for_ultralytics(found), 96, 3)
    else:
        try_out(for_ultralytics(found), 96, 3)


RESTORED = {"transforms": [{"RandomScale": {"p": 1}}, {"Resize": {"height": 96, "width": 96, "p": 1}}], "p": 0.3}
LEFT_TO_CHANCE = {"transforms": ["RandomScale", {"Resize": {"height": 96, "width": 96, "p": 1}}]}
FITS = [
    # name, augmentations, channels, rect, words or None
    ("a crop of the size", [{"RandomCrop": {"height": 96, "width": 96}}], 3, False, None),
    ("a crop of another", [{"RandomCrop": {"height": 64, "width": 64}}], 3, False, "RandomCrop gives 64x64x3 pixels"),
    ("a size restored", [{"Sequential": RESTORED}], 3, False, None),
    ("a size restored at times", [{"Sequential": LEFT_TO_CHANCE}], 3, False, "RandomScale gives"),
    ("in a choice", [{"OneOf": {"transforms": ["Blur", "RandomScale"]}}], 3, False, "RandomScale gives"),
    ("that hardly ever runs", [{"RandomScale": {"p": 0.001}}], 3, False, "RandomScale gives"),
    ("a quarter turn of a square", ["RandomRotate90"], 3, False, None),
    ("a quarter turn of a rectangle", ["Transpose"], 3, True, "Transpose gives 48x96x3 pixels for 96x48x3"),
    ("grey pictures", ["Blur"], 1, False, None),
    ("five channels", ["Blur"], 5, False, "pictures of 1 or 3 channels for augmentations, but these have 5"),
    ("five channels, none wanted", [], 5, False, None),
    ("a channel that is not there", [{"SelectiveChannelTransform": {"transforms": ["Blur"], "channels": [4]}}], 3,
     False, "SelectiveChannelTransform fails on 96x96x3 pixels"),
    ("two faults", ["RandomScale", {"Resize": {"height": 9, "width": 9}}], 3, False,
     "RandomScale gives .*; Resize gives"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "channels", "rect", "words"), [c[1:] for c in FITS], ids=[c[0] for c in FITS])
def test_what_does_not_fit_a_batch_is_refused(value, channels, rect, words):
    specs = for_ultralytics(normalise(value))
    if words is None:
        try_out(specs, 96, channels, rect=rect)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        try_out(specs, 96, channels, rect=rect)
    assert len(str(caught.value).splitlines()) == 1


def test_trying_draws_nothing_from_anybody():
    def states():
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    specs = for_ultralytics(normalise([*ISSUE, "CoarseDropout", "RandomRain"]))
    before = states()
    try_out(specs, 96, 3)
    assert states() == before


def test_albumentations_is_loaded_only_where_it_is_needed():
    code = (
        "import sys; from yolo_adapruner import cli, config; config.load('yolov3-tiny');"
        "print('albumentations' in sys.modules); config.load('yolov3-tiny', {'augmentations': ['Blur']});"
        "print('albumentations' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["False", "True"]


# In a run


@pytest.fixture
def run(tmp_path):
    """The run config of a run in seconds."""
    data = helpers.build_set(tmp_path / "set")
    settings = {k: v for k, v in helpers.QUICK.items() if k in RunConfig.model_fields}
    return {
        "model": str(helpers.write_architecture(tmp_path / "small.yaml")),
        "data": str(data),
        "project": str(tmp_path / "runs"),
        "prune": {"share": 0.25, "warmup": 1},
        "train": {k: v for k, v in helpers.QUICK.items() if k not in settings},
        **settings,
    }


def in_use(dataset) -> list[str]:
    """The transforms a data set applies."""
    [found] = [t for t in dataset.transforms.transforms if type(t).__name__.endswith("Albumentations")]
    return [type(t).__name__ for t in found.transform.transforms]


def watch(patch, interrupt_in: int = 0) -> list[list[str]]:
    """What each epoch's loader applies; optionally interrupted at the end of an epoch, counted from 1."""
    seen, original = [], AdaPruneTrainer.save_model

    def save(self):
        seen.append(in_use(self.train_loader.dataset))
        original(self)
        if self.epoch + 1 == interrupt_in:
            raise KeyboardInterrupt

    patch.setattr(AdaPruneTrainer, "save_model", save)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "applied"),
    [
        (ISSUE, ["RandomBrightnessContrast", "Rotate", "Blur"]),
        ([], []),
        (
            None,
            ["Blur", "MedianBlur", "ToGray", "CLAHE", "RandomBrightnessContrast", "RandomGamma", "ImageCompression"],
        ),
    ],
    ids=["the issue's", "none", "left out"],
)
def test_a_run_applies_them_in_every_stage_and_writes_them_down(run, value, applied, monkeypatch):
    seen = watch(monkeypatch)
    result = api.prune(run, augmentations=value)
    assert helpers.stages(result.folder) == [1, 2, 3, 3]
    assert seen == [applied] * 4
    saved = load(result.folder / "adaprune.yaml")
    assert saved.augmentations == (value and [*ISSUE[:2], {"Blur": {}}])
    manifest = json.loads((result.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["train"].get("augmentations") == (None if value is None else for_ultralytics(saved.augmentations))


@pytest.mark.slow
def test_a_resumed_run_applies_them_again(run, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, interrupt_in=2)
        with pytest.raises(KeyboardInterrupt):
            api.prune(run, augmentations=ISSUE, name="stopped")
    seen = watch(monkeypatch)
    from yolo_adapruner.engine.run import resume

    resume(f"{run['project']}/stopped")
    assert seen == [["RandomBrightnessContrast", "Rotate", "Blur"]] * 2


@pytest.mark.slow
def test_what_does_not_fit_ends_a_run_before_it_leaves_anything(run, tmp_path):
    with pytest.raises(ConfigError, match=r"RandomScale gives .* pixels for 64x64x3"):
        api.prune(run, augmentations=["RandomScale"])
    assert not (tmp_path / "runs").exists()


def test_every_arm_of_a_comparison_trains_with_them(run, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from yolo_adapruner.data import export
    from yolo_adapruner.engine import detections
    from yolo_adapruner.engine import run as engine

    trained = {}

    def train(config, save_dir, **how):
        trained[save_dir.name] = names.ultralytics_args(config)["augmentations"]
        return SimpleNamespace(weights="w", kept=18, updates=3, map50_95=0.1)

    config = load({**run, "augmentations": ISSUE})
    base = tmp_path / "set" / "data.yaml"
    metrics = SimpleNamespace(map50_95=0.1, map50=0.2, per_class={}, by_size={})
    hits = SimpleNamespace(save=lambda file: file.touch())
    paths = [str(path) for path in helpers.training_images(base)]
    outcome = export.Outcome(paths, np.arange(24) >= 6, {})
    monkeypatch.setattr(engine, "train", train)
    monkeypatch.setattr(detections, "collect", lambda *_, **__: ({}, {"map50_95": 0.1, "map50": 0.2}))
    monkeypatch.setattr(evaluate, "coco_metrics", lambda *_, **__: metrics)
    monkeypatch.setattr(evaluate, "matched", lambda *_: hits)
    monkeypatch.setattr(export, "read", lambda _: ({}, outcome))
    grid.run_all(grid.plan([0.25], [0]), cells.CellRunner(tmp_path, config, base), 1)
    assert len(trained) == 6
    assert {json.dumps(value) for value in trained.values()} == {json.dumps(for_ultralytics(config.augmentations))}
