"""What a run config may say: every error at once and in one line, overrides on top, file and code with one truth."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_adapruner import resources
from yolo_adapruner.api import resolve
from yolo_adapruner.config import PruneConfig, RunConfig, load, parse_yaml
from yolo_adapruner.errors import ConfigError

LEAST = {"model": "yolov3-tiny.yaml", "data": "digits.yaml"}
ROOT = Path(__file__).resolve().parent.parent


def refusal(source, overrides=None) -> str:
    """The one line a config is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


# The packaged file


def packaged() -> dict:
    return yaml.safe_load((ROOT / "cfg" / "yolov3-tiny.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PruneConfig.model_fields)
def test_the_packaged_file_states_each_setting_of_the_method_with_the_codes_default(name):
    stated = packaged()["prune"]
    default = PruneConfig.model_fields[name].default
    assert stated[name] == default
    assert type(stated[name]) is type(default)  # 5 is not 5.0 to a reader


def test_the_packaged_file_states_nothing_else_of_the_method():
    assert list(packaged()["prune"]) == list(PruneConfig.model_fields)


@pytest.mark.parametrize("source", ["yolov3-tiny", "yolov3-tiny.yaml", ROOT / "cfg" / "yolov3-tiny.yaml"], ids=str)
def test_the_packaged_file_is_found_by_name_and_by_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(source).model == "yolov3-tiny.yaml"
    assert load(source).prune == PruneConfig()


def test_a_file_of_ones_own_goes_before_a_packaged_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("yolov3-tiny.yaml").write_text("model: mine.pt\ndata: mine.yaml\n")
    assert load("yolov3-tiny.yaml").model == "mine.pt"


def test_a_config_goes_through_yaml_and_back_unchanged(tmp_path):
    config = load({**LEAST, "device": 0, "prune": {"warmup": 3, "share": 0.25}, "train": {"mosaic": 0.5, "cls": 1}})
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
    assert load(tmp_path / "saved.yaml") == config


def test_a_byte_order_mark_and_other_letters_are_read(tmp_path):
    (tmp_path / "Größe.yaml").write_text("model: größe.pt\ndata: d.yaml\n", encoding="utf-8-sig")
    assert load(tmp_path / "Größe.yaml").model == "größe.pt"


# What comes in as what

VALUES = [
    # name, content, setting, value
    ("a share as text", {"prune": {"share": "0.2"}}, "prune.share", 0.2),
    ("the least share", {"prune": {"share": 0}}, "prune.share", 0.0),
    ("the largest share", {"prune": {"share": 0.95}}, "prune.share", 0.95),
    ("auto", {"prune": {"warmup": "auto"}}, "prune.warmup", "auto"),
    ("no warm-up", {"prune": {"warmup": 0}}, "prune.warmup", 0),
    ("a warm-up as text", {"prune": {"warmup": "3"}}, "prune.warmup", 3),
    ("device 0, which YAML reads as a number", {"device": 0}, "device", "0"),
    ("a name of digits", {"name": 2024}, "name", "2024"),
    ("a batch with a point", {"batch": 8.0}, "batch", 8),
    ("a batch to be found", {"batch": -1}, "batch", -1),
    ("a batch that fills a share of the memory", {"batch": 0.7}, "batch", 0.7),
    ("epochs with a point", {"epochs": 5.0}, "epochs", 5),
    ("an empty section", {"prune": None, "train": None}, "train", {}),
    ("null for the default", {"epochs": None}, "epochs", 30),
    ("the largest seed", {"seed": 2**32 - 1}, "seed", 2**32 - 1),
]


YAML_VALUES = [
    ("1e-3", 0.001),
    ("5E+2", 500.0),
    ("-1.5e3", -1500.0),
    ("1e", "1e"),
    ("e3", "e3"),
    ("1e3x", "1e3x"),
    ("3", 3),
]


@pytest.mark.parametrize(("text", "value"), YAML_VALUES)
def test_yaml_values_are_read_as_people_write_them(text, value):
    assert parse_yaml(f"a: {text}") == {"a": value}
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(("content", "setting", "value"), [c[1:] for c in VALUES], ids=[c[0] for c in VALUES])
def test_values_are_read(content, setting, value):
    found = load({**LEAST, **content})
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


# Errors

ERRORS = [
    # name, content beside model and data, words
    ("a share of all", {"prune": {"share": 1.0}}, "prune.share: input should be less than or equal to 0.95, but got 1"),
    ("a share above 0.95", {"prune": {"share": 0.951}}, "prune.share: .*0.95, but got 0.951"),
    ("a share below 0", {"prune": {"share": -0.01}}, "prune.share: .*greater than or equal to 0, but got -0.01"),
    ("a share that is no number", {"prune": {"share": float("nan")}}, "prune.share: .*but got nan"),
    ("a share in words", {"prune": {"share": "a tenth"}}, "prune.share: .*valid number.* but got 'a tenth'"),
    ("no share", {"prune": {"share": None}}, "prune.share: .*but got None"),
    ("an endless rate", {"prune": {"rate": float("inf")}}, "prune.rate: .*finite number, but got inf"),
    ("a negative warm-up", {"prune": {"warmup": -1}}, "prune.warmup: .*auto or a whole number.* but got -1$"),
    ("a warm-up in words", {"prune": {"warmup": "soon"}}, "prune.warmup: .*auto or a whole number.* but got 'soon'$"),
    ("half an epoch", {"prune": {"warmup": 1.5}}, "prune.warmup: .*but got 1.5$"),
    ("warmup: on", {"prune": {"warmup": True}}, "prune.warmup: .*but got True$"),
    ("a tau of 1", {"prune": {"tau": 1}}, "prune.tau: .*less than 1, but got 1"),
    ("no joint stage", {"prune": {"joint": 0}}, "prune.joint: .*greater than 0 and at most 1, but got 0$"),
    ("a joint stage in words", {"prune": {"joint": "half"}}, "prune.joint: .*auto or a share.* but got 'half'$"),
    ("joint: on", {"prune": {"joint": True}}, "prune.joint: .*auto or a share.* but got True$"),
    ("more than all epochs", {"prune": {"joint": 1.5}}, "prune.joint: .*at most 1, but got 1.5$"),
    ("only a warm-up", {"prune": {"warmup_max": 1}}, "prune.warmup_max: .*less than 1, but got 1$"),
    ("two epochs", {"epochs": 2}, "epochs: .*greater than or equal to 3, but got 2"),
    ("three and a half epochs", {"epochs": 3.5}, "epochs: .*integer.*but got 3.5"),
    ("a batch of one", {"batch": 1}, "batch: input should be .*2 or more.* but got 1$"),
    ("a batch of none", {"batch": 0}, "batch: .*but got 0$"),
    ("two batches less than none", {"batch": -2}, "batch: .*but got -2$"),
    ("half an image", {"batch": 8.5}, "batch: .*but got 8.5$"),
    ("all of the memory", {"batch": 1.0}, "batch: .*but got 1.0$"),
    ("a batch in words", {"batch": "auto"}, "batch: .*but got 'auto'$"),
    ("batch: on", {"batch": True}, "batch: .*but got True$"),
    ("a negative seed", {"seed": -1}, "seed: .*but got -1"),
    ("a seed numpy cannot take", {"seed": 2**32}, "seed: .*but got 4294967296"),
    ("no learning rate", {"lr0": 0}, "lr0: .*greater than 0, but got 0"),
    ("a model that is a list", {"model": ["a", "b"]}, r"model: .*string, but got \['a', 'b'\]"),
    ("a section that is a number", {"prune": 0.1}, "prune: .*dictionary.*but got 0.1"),
    ("a section that is a list", {"train": ["mosaic"]}, r"train: .*dictionary, but got \['mosaic'\]"),
    ("a section that is text", {"train": "mosaic"}, "train: .*dictionary, but got 'mosaic'"),
    ("several devices", {"device": [0, 1]}, r"device: .*string, but got \[0, 1\]"),
    ("our epochs under train", {"train": {"epochs": 3}}, r"train: must not hold epochs \(set it at the top level\)"),
    ("our tau under train", {"train": {"tau": 3}}, r"train: must not hold tau \(set it under prune:\)"),
    ("resume under train", {"train": {"resume": True}}, r"train: must not hold resume \(use --resume RUN\)"),
    ("a number as key", {7: 8}, "7: keys should be strings"),
    ("a number as key below", {"prune": {7: 8}}, "prune.7: keys should be strings"),
    # did you mean
    ("epohs", {"epohs": 3}, "unknown setting epohs, did you mean epochs?"),
    ("optimiser", {"optimiser": "SGD"}, "unknown setting optimiser, did you mean optimizer?"),
    ("lambda_gian", {"prune": {"lambda_gian": 3}}, r"unknown setting prune.lambda_gian, did you mean lambda_gain\?"),
    ("a setting of the method at the top", {"tau": 0.3}, "unknown setting tau; it goes under prune:"),
    ("a setting of the run below", {"prune": {"epochs": 9}}, "unknown setting prune.epochs; it goes to the top level"),
    ("one of Ultralytics'", {"mosaic": 1.0}, "unknown setting mosaic; Ultralytics' own settings go under train:"),
    ("a key of two lines", {"a\nb": 1}, "unknown setting a b"),
    ("a long value", {"epochs": "9" * 10_000}, "epochs: .{1,200}$"),
]


@pytest.mark.parametrize(("content", "words"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_what_cannot_be_is_refused_in_one_line(content, words):
    line = refusal({**LEAST, **content})
    assert line.startswith("run config: ")
    assert re.search(words, line), line


def test_all_errors_come_at_once():
    line = refusal(
        {"epochs": 1, "epohs": 9, "train": {"seed": 1, "tau": 2}, "prune": {"share": 2, "tua": 1, "warmup": "x"}}
    )
    found = re.findall(r"(model is missing|data is missing|epochs|epohs|train|prune\.\w+)(?=[:,;]| is|$)", line)
    for name in ("epochs", "epohs", "train", "prune.share", "prune.tua", "prune.warmup"):
        assert name in found, line
    assert "model is missing" in line
    assert "data is missing" in line
    assert "seed (set it at the top level), tau (set it under prune:)" in line


FILES = [
    # name, file content, words
    ("nothing", "", "hold a mapping with model: and data:, but it holds NoneType"),
    ("a list", "- model\n- data\n", "hold a mapping with model: and data:, but it holds list"),
    ("a word", "yolov3-tiny\n", "hold a mapping with model: and data:, but it holds str"),
    ("no YAML", "model: [yolo\ndata: x\n", "readable YAML file, but: while parsing"),
    ("tabs", "model: a\n\tdata: b\n", "readable YAML file"),
    ("an unknown tag", "model: !!python/name:os.system x\n", "readable YAML file"),
    ("a month of 13", "model: a\ndata: 2024-13-45\n", "readable YAML file, but: month must be in 1..12"),
    ("a bool that is none", "model: !!bool perhaps\n", "readable YAML file"),
    ("a date that is none", "model: !!timestamp soon\n", "readable YAML file"),
    ("a number beyond reading", f"seed: {'9' * 5000}\n", "readable YAML file"),
    ("brackets without end", "[" * 600, "readable YAML file"),
    ("a key that cannot be one", "? {a: 1}\n: 2\n", "readable YAML file"),
    ("itself inside itself", "a: &a [*a]\nmodel: *a\ndata: x\n", "model: input should be a valid string"),
    ("bytes", b"\xff\xfe\x00", "readable YAML file"),
    ("a zero byte", b"model: a\0b", "readable YAML file"),
]


@pytest.mark.parametrize(("content", "words"), [c[1:] for c in FILES], ids=[c[0] for c in FILES])
def test_a_file_that_is_no_run_config_is_refused_by_name(content, words, tmp_path):
    file = tmp_path / "run config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal(file)
    assert str(file) in line
    assert words in line


ARCHITECTURE = """\
nc: 80
depth_multiple: 1.0
backbone:
  - [-1, 1, Conv, [16, 3, 1]]
head:
  - [[-1], 1, Detect, [nc]]
"""


@pytest.mark.parametrize("left_out", ["", "backbone", "head"])
def test_an_architecture_in_its_place_is_told_apart(left_out, tmp_path):
    content = {k: v for k, v in yaml.safe_load(ARCHITECTURE).items() if k != left_out}
    file = tmp_path / "yolov3-tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    line = refusal(file)
    assert f"{file} is an Ultralytics architecture" in line
    assert "--model yolov3-tiny.yaml" in line


MISSING = ["nix", "nix.yaml", "cfg/yolov3-tiny", "/no/such/file.yaml", "", "\0", "x" * 5000, "a folder"]


@pytest.mark.parametrize("source", MISSING, ids=lambda s: repr(s[:20]))
def test_a_file_that_is_not_there_gets_the_names_of_those_that_are(source, tmp_path, monkeypatch):
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)
    line = refusal(source)
    assert "Expected a run config (a YAML file or one of: " in line
    for name in resources.available("cfg"):
        assert name in line
    assert "there is no file" in line


# Overrides

BASE = {
    **LEAST,
    "epochs": 40,
    "prune": {"share": 0.2, "tau": 0.3},
    "train": {"mosaic": 0.0, "close_mosaic": 5},
}
OVERRIDES = [
    # name, overrides, what differs from BASE in the end
    ("none", {}, {}),
    ("None says nothing", {"epochs": None, "prune": None, "mosaic": None, "train": None}, {}),
    ("a field", {"epochs": 50}, {"epochs": 50}),
    ("a share, nothing else of the method", {"prune": 0.4}, {"prune": {"share": 0.4, "tau": 0.3}}),
    ("a share of 0", {"prune": 0}, {"prune": {"share": 0.0, "tau": 0.3}}),
    ("settings of the method", {"prune": {"tau": 0.7}}, {"prune": {"share": 0.2, "tau": 0.7}}),
    ("Ultralytics' settings", {"mosaic": 1.0, "hsv_h": 0}, {"train": {"mosaic": 1.0, "close_mosaic": 5, "hsv_h": 0}}),
    ("a section of them", {"train": {"mosaic": 1.0}}, {"train": {"mosaic": 1.0, "close_mosaic": 5}}),
    ("both, the single one first", {"mosaic": 0.7, "train": {"mosaic": 1.0}}, {"train.mosaic": 0.7}),
    ("both, the single one last", {"train": {"mosaic": 1.0}, "mosaic": 0.7}, {"train.mosaic": 0.7}),
    ("a false value is a value", {"mosaic": False, "seed": 0}, {"train.mosaic": False}),
]


@pytest.mark.parametrize(("overrides", "differs"), [c[1:] for c in OVERRIDES], ids=[c[0] for c in OVERRIDES])
def test_overrides_win_over_the_file_and_leave_the_rest(overrides, differs, tmp_path):
    expected = {**BASE, "prune": dict(BASE["prune"]), "train": dict(BASE["train"])}
    for name, value in differs.items():
        section, _, key = name.partition(".")
        if key:
            expected[section][key] = value
        else:
            expected[section] = value
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE))
    before = yaml.safe_dump(overrides)
    assert load(tmp_path / "run.yaml", overrides) == load(expected)
    assert load(BASE, overrides) == load(expected)
    assert yaml.safe_dump(overrides) == before
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == BASE


WRONG_OVERRIDES = [
    ("a share in words", {"prune": "half"}, "prune.share: .*but got 'half'"),
    ("a section that is a number", {"train": 5}, "train: .*dictionary, but got 5"),
    ("and a setting beside it", {"train": 5, "mosaic": 1}, "train: .*dictionary, but got 5"),
    ("a key that is no word", {5: 1}, "train.5.*string"),
    ("resume", {"resume": "x"}, "must not hold resume"),
    ("a setting of the method, bare", {"tau": 0.1}, r"must not hold tau \(set it under prune:\)"),
]


@pytest.mark.parametrize(("overrides", "words"), [c[1:] for c in WRONG_OVERRIDES], ids=[c[0] for c in WRONG_OVERRIDES])
def test_overrides_that_cannot_be_are_refused(overrides, words):
    assert re.search(words, refusal(BASE, overrides))


@pytest.mark.parametrize("section", [3, "text", [1, 2]], ids=str)
@pytest.mark.parametrize("overrides", [{"prune": 0.2}, {"prune": {"tau": 0.2}}, {"mosaic": 1}], ids=str)
def test_overrides_do_not_hide_a_section_that_is_none(section, overrides):
    name = "prune" if "prune" in overrides else "train"
    assert f"{name}: input should be a valid dictionary" in refusal({**LEAST, name: section}, overrides)


# From Python

IN_PYTHON = [
    # name, config, overrides, (share, tau) in the end; the run config says 0.2 and 0.3
    ("the run config's own", None, {}, (0.2, 0.3)),
    ("a share on top of it", None, {"prune": 0.4}, (0.4, 0.3)),
    ("other settings in its place", PruneConfig(tau=0.7), {}, (0.1, 0.7)),
    ("and a share on top of these", PruneConfig(tau=0.7), {"prune": 0.4}, (0.4, 0.7)),
    ("and a share of 0", PruneConfig(tau=0.7), {"prune": 0}, (0.0, 0.7)),
    ("and settings on top of these", PruneConfig(share=0.5), {"prune": {"tau": 0.8}}, (0.5, 0.8)),
]


@pytest.mark.parametrize(("config", "overrides", "expected"), [c[1:] for c in IN_PYTHON], ids=[c[0] for c in IN_PYTHON])
@pytest.mark.parametrize("as_object", [False, True], ids=["mapping", "RunConfig"])
def test_settings_from_python(config, overrides, expected, as_object):
    resolved = resolve(load(BASE) if as_object else BASE, config=config, epochs=7, **overrides)
    assert (resolved.prune.share, resolved.prune.tau) == expected
    assert (resolved.epochs, resolved.train) == (7, BASE["train"])


def test_another_share_of_the_same_run():
    config = load(BASE)
    other = config.with_prune(0.5)
    assert (other.prune.share, config.prune.share) == (0.5, 0.2)
    assert other.model_copy(update={"prune": config.prune}) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load(BASE).epochs = 3  # type: ignore[misc]


# Whatever comes: a config or a ConfigError

names = st.sampled_from([*RunConfig.model_fields, *PruneConfig.model_fields, "mosaic", "backbone", "resume"])
keys = names | st.text(max_size=5) | st.integers() | st.none() | st.booleans()
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates() | st.binary(max_size=4)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
mappings = st.dictionaries(keys, values, max_size=8)
FUZZ = settings(max_examples=100, deadline=None, derandomize=True)


def outcome(*args) -> RunConfig | str:
    try:
        return load(*args)
    except ConfigError as error:
        return str(error)


def is_config_or_one_line(result: RunConfig | str) -> bool:
    return isinstance(result, RunConfig) or len(result.splitlines()) == 1


@FUZZ
@given(content=mappings, full=st.booleans(), overrides=mappings)
def test_fuzz_mappings(content, full, overrides):
    assert is_config_or_one_line(outcome({**content, **LEAST} if full else content, overrides))


@FUZZ
@given(content=mappings | values)
def test_fuzz_files_of_yaml(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    assert is_config_or_one_line(outcome(file))


SIGNS = [
    "model: a\n",
    "data: b\n",
    "prune: ",
    "train: ",
    "  ",
    "- ",
    ": ",
    "&a ",
    "*a ",
    "<<: ",
    "---\n",
    *"{}[]|>\"'#%@`?\n\t",
]
TAGS = [
    f"!!{tag} "
    for tag in ["int", "bool", "float", "timestamp", "binary", "set", "omap", "pairs", "str", "null", "map", "seq"]
]
WORDS = ["2024-01-01", "2024-13-45", "1:30", "0b", "0o7", "0x", "1e9", ".inf", ".nan", "~", "yes", "off", "1_0"]


@FUZZ
@given(content=st.lists(st.sampled_from([*SIGNS, *TAGS, *WORDS]) | st.text(max_size=3), max_size=12).map("".join))
def test_fuzz_files_of_anything(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(content, encoding="utf-8", errors="surrogatepass")
    assert is_config_or_one_line(outcome(file))


@FUZZ
@given(tag=st.sampled_from(TAGS), value=st.sampled_from([*WORDS, "x", "[1]", "{a: 1}", "''", "=", "9" * 5000]))
def test_parse_yaml_raises_nothing_but_one_line(tag, value):
    try:
        parse_yaml(tag + value)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1


def test_a_method_setting_can_be_named_alone():
    config = load("yolov3-tiny", {"prune.tau": 0.3, "prune": 0.2, "prune.warmup": 0})
    assert (config.prune.tau, config.prune.share, config.prune.warmup) == (0.3, 0.2, 0)
    with pytest.raises(ConfigError, match=r"prune\.taus, did you mean tau\?"):
        load("yolov3-tiny", {"prune.taus": 0.3})


def test_the_method_s_settings_are_a_prune_config():
    with pytest.raises(ConfigError, match=r"Expected a PruneConfig as config, but got \{'share': 0\.1\}"):
        resolve("yolov3-tiny", config={"share": 0.1})
