"""What a run leaves behind: the files, the same bytes again, other shares, and what is said of a torn folder."""

import csv
import hashlib
import itertools
import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data import export as module
from yolo_adapruner.data import tables, texts
from yolo_adapruner.data.explain import with_reasons
from yolo_adapruner.data.export import Outcome, export, hash_paths, read, replace_file, scores_table, write
from yolo_adapruner.data.texts import Texts
from yolo_adapruner.errors import ConfigError, RunError

FILES = ("scores.csv", "scores.parquet", "kept.txt", "dropped.txt", "pruned.yaml")
CHANNELS = ("localisation", "classification", "missing")
COLUMNS = [
    "path",
    "kept",
    "weight",
    "logit",
    "signal",
    "signal_mean",
    "signal_spread",
    *CHANNELS,
    "suspicion",
    "kind",
    "lot",
    "epochs_seen",
    "seen",
    "boxes",
    "similarity",
    "twin",
    "reason",
    "detail",
]
N = 40

ODD_NAMES = [
    "with space.jpg",
    "with, comma.jpg",
    'with "quotes".jpg',
    "with 'quotes'.jpg",
    "# not a comment.jpg",
    "colon: here.jpg",
    "Größe – 猫 🐈.jpg",
    "{brace} [bracket] & * ! %.jpg",
    "back\\slash.jpg",
    "tab\there.jpg",
    "-dash.jpg",
    " leading.jpg",
    "null.jpg",
]


def outcome_of(paths: list[str], share: float = 0.2, seed: int = 0) -> Outcome:
    """An outcome as a run gives it, the numbers drawn; every fifth image without boxes."""
    n, rng = len(paths), np.random.default_rng(1)
    logits = rng.normal(1, 3, n)
    numbers = {name: rng.random(n) for name in ("signal", "signal_mean", "signal_spread", *CHANNELS)}
    numbers["localisation"][::5] = np.nan
    columns = {"weight": 1 / (1 + np.exp(-5 * logits)), "logit": logits, **numbers}
    columns |= {"suspicion": rng.normal(size=n), "kind": np.where(rng.random(n) < 0.5, "shifted", "")}
    columns["lot"] = np.where(rng.random(n) < 0.5, rng.random(n), np.nan)
    columns |= {"epochs_seen": np.full(n, 9), "seen": 9 * rng.random(n), "boxes": rng.integers(0, 9, n)}
    columns |= {"similarity": rng.random(n), "twin": np.where(rng.random(n) < 0.2, rng.integers(0, n, n), -1)}
    return Outcome(paths, select_kept(logits, share, seed=seed), columns)


def run_folder(folder: Path, paths: list[str] | None = None, share: float = 0.2, **data) -> Outcome:
    """A folder as a finished run leaves it."""
    root = folder.parent / "set"
    folder.mkdir(parents=True, exist_ok=True)
    outcome = outcome_of(paths or [f"{root}/images/train/{i:03}.jpg" for i in range(N)], share)
    content = {
        "path": root,
        "train": f"{root}/images/train",
        "val": f"{root}/images/val",
        "test": f"{root}/images/test",
        "names": {0: "zero", 1: "eins, zwei", 2: "Größe"},
        "nc": 3,
        "channels": 3,
        "download": "print('never run again')",
        "yaml_file": f"{root}/data.yaml",
        "minival": None,
        **data,
    }
    manifest = {"seed": 0, "prune": {"share": share}, "versions": {"python": "3"}}
    write(folder, outcome, source=root / "data.yaml", data=content, manifest=manifest)
    return outcome


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    run_folder(folder)
    return folder


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


# What is written


def test_a_run_leaves_its_files_and_nothing_else(run):
    assert sorted(p.name for p in run.iterdir()) == sorted((*FILES, "manifest.json", "mask.npz"))


def test_the_weights_of_the_joint_epochs_lie_beside_the_scores_and_those_of_an_earlier_run_go(tmp_path):
    weights = np.array([[0, 128, 255], [0, 3, 255]], np.uint8)
    columns = {"weight": np.zeros(3), "logit": np.arange(3.0)}
    for history in ((np.array([4, 5]), weights), None):
        outcome = Outcome(["/a", "/b", "/c"], np.array([True, True, False]), columns, history)
        manifest = {"seed": 0, "prune": {"share": 0.3}}
        write(tmp_path, outcome, source=tmp_path / "d.yaml", data={"path": "/", "val": "v"}, manifest=manifest)
        if history:
            with np.load(tmp_path / "trace.npz") as trace:
                assert trace["epochs"].tolist() == [4, 5]
                np.testing.assert_array_equal(trace["weights"], weights)
    assert not (tmp_path / "trace.npz").exists()


def test_scores_are_a_row_an_image_in_the_documented_columns(run):
    outcome = outcome_of([f"{run.parent}/set/images/train/{i:03}.jpg" for i in range(N)])
    with (run / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == outcome.paths
    assert [row["kept"] == "true" for row in rows] == outcome.kept.tolist()
    for name in COLUMNS[2:-2]:
        values = [row[name] if name == "kind" else float(row[name]) for row in rows]
        np.testing.assert_array_equal(values, outcome.columns[name], err_msg=name)
    table = pl.read_parquet(run / "scores.parquet")
    assert table.columns == COLUMNS
    assert table.equals(scores_table(with_reasons(outcome)), null_equal=True)


def test_kept_and_dropped_are_all_images_once_by_absolute_path(run):
    kept, dropped = lines(run / "kept.txt"), lines(run / "dropped.txt")
    paths = pl.read_csv(run / "scores.csv")["path"].to_list()
    assert sorted(kept + dropped) == paths
    assert (len(kept), len(dropped)) == (32, 8)
    assert all(Path(path).is_absolute() for path in kept + dropped)
    by_logit = pl.read_csv(run / "scores.csv").sort("logit")["path"].to_list()
    assert set(dropped) == set(by_logit[:8])


def test_pruned_yaml_is_the_data_file_with_another_train(run):
    text = (run / "pruned.yaml").read_text(encoding="utf-8")
    root = run.parent / "set"
    assert text.startswith(f"# 32 of 40 training images of {root}/data.yaml, kept by yolo-adapruner.\n")
    content = yaml.safe_load(text)
    assert content == {
        "path": str(root),
        "train": str(run / "kept.txt"),
        "val": f"{root}/images/val",
        "test": f"{root}/images/test",
        "names": {0: "zero", 1: "eins, zwei", 2: "Größe"},
        "nc": 3,
        "channels": 3,
    }
    assert list(content)[:4] == ["path", "train", "val", "test"]


def test_the_manifest_says_what_the_run_was(run):
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    paths = pl.read_csv(run / "scores.csv")["path"].to_list()
    assert manifest["images"] == {"total": 40, "kept": 32, "dropped": 8, "list_sha256": hash_paths(paths)}
    assert manifest["mask_sha256"] == hashlib.sha256((run / "mask.npz").read_bytes()).hexdigest()
    assert manifest["seed"] == 0
    assert manifest["versions"] == {"python": "3"}


def test_a_relative_folder_still_gets_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_folder(Path("runs/a"))
    assert yaml.safe_load(Path("runs/a/pruned.yaml").read_text())["train"] == str(tmp_path / "runs/a/kept.txt")


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [(["a", "b"], ["a", "b"], True), (["a", "b"], ["b", "a"], False), (["a"], ["a", "b"], False)],
)
def test_an_image_list_is_recognised_by_its_hash(left, right, same):
    assert (hash_paths(left) == hash_paths(right)) is same


def test_odd_names_survive_every_file(tmp_path):
    folder = tmp_path / "a run, “quoted” & spaced"
    paths = sorted(f"{tmp_path}/{name}" for name in ODD_NAMES)
    outcome = run_folder(folder, paths, names={0: "a: b", 1: "#c", 2: "'d'", 3: "no"})
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == paths
    assert pl.read_parquet(folder / "scores.parquet")["path"].to_list() == paths
    assert lines(folder / "kept.txt") == [p for p, kept in zip(paths, outcome.kept, strict=True) if kept]
    content = yaml.safe_load((folder / "pruned.yaml").read_text(encoding="utf-8"))
    assert content["train"] == str(folder / "kept.txt")
    assert content["names"] == {0: "a: b", 1: "#c", 2: "'d'", 3: "no"}
    assert read(folder)[1].paths == paths


def test_a_file_name_that_is_no_utf8_does_not_lose_the_run(tmp_path):
    paths = sorted([f"{tmp_path}/caf\udce9.jpg", f"{tmp_path}/plain.jpg", f"{tmp_path}/x.jpg", f"{tmp_path}/y.jpg"])
    run_folder(tmp_path / "run", paths, share=0.25)
    written = {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    assert read(tmp_path / "run")[1].paths == paths
    listed = (written["kept.txt"] + written["dropped.txt"]).splitlines()
    assert f"{tmp_path}/caf".encode() + b"\xe9.jpg" in listed  # the name as the file system has it
    assert b"caf\\xe9.jpg" in written["scores.csv"]
    export(tmp_path / "run")
    assert written == {name: (tmp_path / "run" / name).read_bytes() for name in FILES}


# The outcome of a run


def test_the_outcome_of_a_pruner():
    rng, paths = np.random.default_rng(0), [f"/i/{i:03}.jpg" for i in range(50)]
    pruner = Pruner(50, 3, 6, Settings(**PruneConfig(share=0.2, warmup=0, joint=0.5).model_dump()), seed=0)
    for _ in range(6):
        pruner.open_epoch()
        values = rng.lognormal(0, 0.5, (50, 3))
        values[:10, :2] = np.nan
        pruner.observe(np.arange(50), values)
        pruner.close_epoch(0.5)
    outcome = Outcome.of(pruner, paths, list(range(50)), CHANNELS, 0.2)
    assert list(scores_table(outcome).columns) == COLUMNS[:-2]
    assert (outcome.kept == pruner.kept).all()
    assert (~outcome.kept).sum() == 10
    assert set(np.argsort(outcome.columns["logit"])[:10]) == set(np.flatnonzero(~outcome.kept))
    assert outcome.columns["boxes"].tolist() == list(range(50))
    assert (outcome.columns["epochs_seen"] == 3).all()
    assert (outcome.columns["seen"] == 3).all()
    assert np.isnan(outcome.columns["localisation"][:10]).all()
    assert np.isfinite(outcome.columns["missing"]).all()
    assert ((outcome.columns["weight"] >= 0) & (outcome.columns["weight"] <= 1)).all()


def test_an_image_that_was_never_seen_says_so_and_has_no_score(tmp_path):
    rng, paths = np.random.default_rng(0), [f"/i/{i:03}.jpg" for i in range(N)]
    pruner = Pruner(N, 3, 6, Settings(**PruneConfig(share=0.2, warmup=0, joint=0.5).model_dump()), seed=0)
    for _ in range(6):
        pruner.open_epoch()
        pruner.observe(np.arange(1, N), rng.lognormal(0, 0.5, (N - 1, 3)), np.linspace(0.1, 1.2, N - 1))
        pruner.close_epoch(0.5)
    outcome = Outcome.of(pruner, paths, [1] * N, CHANNELS, 0.2)
    np.testing.assert_allclose(outcome.columns["seen"], [0, *3 * np.linspace(0.1, 1.2, N - 1)])
    for name in ("logit", "weight", "signal", "signal_spread"):
        assert np.isnan(outcome.columns[name][0])
        assert np.isfinite(outcome.columns[name][1:]).all()
    manifest = {"seed": 0, "prune": {"share": 0.2}}
    write(tmp_path, outcome, source=Path("d.yaml"), data={"path": "/i", "names": {0: "a"}}, manifest=manifest)
    export(tmp_path, [0.5, 0.95])
    for share in (0.5, 0.95):  # the last to go, whatever is cut
        assert paths[0] in lines(tmp_path / f"prune-{share}" / "kept.txt")


def test_a_run_stopped_before_it_judged_has_no_scores_to_cut(tmp_path):
    pruner = Pruner(N, 3, 30, Settings(**PruneConfig(warmup=5).model_dump()))
    assert pruner.decide().all()
    outcome = Outcome.of(pruner, [f"/i/{i:03}.jpg" for i in range(N)], [1] * N, CHANNELS, 0.1)
    manifest = {"seed": 0, "prune": {"share": 0.1}}
    write(tmp_path, outcome, source=Path("d.yaml"), data={"path": "/i", "names": {0: "a"}}, manifest=manifest)
    with pytest.raises(RunError, match="stopped before it judged any: start anew"):
        export(tmp_path, [0.3])


def test_the_outcome_of_a_run_without_pruning_keeps_everything():
    paths = [f"/i/{i}.jpg" for i in range(3)]
    outcome = Outcome.of(None, paths, [1, 0, 2], CHANNELS, 0.0)
    assert list(scores_table(outcome).columns) == COLUMNS[:-2]
    assert outcome.kept.all()
    assert outcome.columns["weight"].tolist() == [1, 1, 1]
    assert np.isnan(outcome.columns["logit"]).all()
    assert outcome.columns["epochs_seen"].tolist() == [0, 0, 0]
    assert outcome.columns["seen"].tolist() == [0, 0, 0]


def test_the_outcome_of_an_undecided_run_is_refused():
    pruner = Pruner(5, 3, 30, Settings(**PruneConfig().model_dump()))
    with pytest.raises(RunError, match="mask is decided"):
        Outcome.of(pruner, list("abcde"), [1] * 5, CHANNELS, 0.1)


# Again, byte for byte


@pytest.mark.parametrize("harm", ["nothing", "deleted", "overwritten"])
@pytest.mark.parametrize("name", [*FILES, "all"])
def test_files_are_written_again_byte_for_byte(run, harm, name):
    before = {file: (run / file).read_bytes() for file in (*FILES, "manifest.json", "mask.npz")}
    for file in FILES if name == "all" else [name]:
        if harm == "deleted":
            (run / file).unlink()
        elif harm == "overwritten":
            (run / file).write_bytes(b"something else")
    assert export(run) == [run / "pruned.yaml"]
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


DATA = [
    # name, what the data file holds
    ("class names as a list", {"names": ["zero", "one"]}),
    ("class names by number", {"names": {0: "zero", 10: "ten", 2: "two"}}),
    ("class names in other letters", {"names": {0: "Größe", 1: "猫"}}),
    ("a date", {"made": yaml.safe_load("2024-01-31")}),
    ("a date for a key", {"history": yaml.safe_load("2024-01-31: labelled")}),
    ("a path object", {"val": Path("/set/val")}),
    ("several folders", {"val": ["/set/a", "/set/b"]}),
    ("nested and odd", {"kpt_shape": (17, 3), "extra": {"a": [1, 2.5, None, True], "b": {"1": "x"}}}),
]


@pytest.mark.parametrize("data", [c[1] for c in DATA], ids=[c[0] for c in DATA])
def test_whatever_the_data_file_holds_comes_again_byte_for_byte(tmp_path, data):
    run_folder(tmp_path / "run", **data)
    before = (tmp_path / "run/pruned.yaml").read_bytes()
    export(tmp_path / "run")
    assert (tmp_path / "run/pruned.yaml").read_bytes() == before
    if "names" in data:
        assert yaml.safe_load(before)["names"] == data["names"]


PLAIN = {"seed": 0, "prune": {"share": 0.2}}


def test_a_list_that_counts_from_the_working_directory_is_read_from_any_folder(tmp_path, monkeypatch):
    """Of the validation images, and the set's root; `./` counts from the list's own folder, as Ultralytics has it."""
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "b" / "val.txt").write_text("a/1.png\n./2.png\n/elsewhere/3.png\n", encoding="utf-8")
    (tmp_path / "b" / "plain.txt").write_text("./2.png\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = {"path": Path("."), "val": str(tmp_path / "b" / "val.txt"), "test": [str(tmp_path / "b" / "plain.txt"), "a"]}
    (tmp_path / "run").mkdir()
    outcome = outcome_of([f"/images/{i}.png" for i in range(N)])
    write(tmp_path / "run", outcome, source=Path("d.yaml"), data=data | {"names": ["x"]}, manifest=PLAIN)
    pruned = yaml.safe_load((tmp_path / "run" / "pruned.yaml").read_text(encoding="utf-8"))
    assert pruned["path"] == str(tmp_path)
    assert pruned["val"] == str(tmp_path / "run" / "val.txt")
    lines = (tmp_path / "run" / "val.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "2.png"), "/elsewhere/3.png"]
    assert pruned["test"] == [str(tmp_path / "b" / "plain.txt"), "a"]


def test_a_list_whose_labels_would_lie_elsewhere_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    (tmp_path / "val.txt").write_text("images/1.png\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    data = {"path": tmp_path, "val": str(tmp_path / "val.txt"), "names": ["x"]}
    outcome = outcome_of([f"/images/{i}.png" for i in range(N)])
    write(tmp_path / "run", outcome, source=Path("d.yaml"), data=data, manifest=PLAIN)
    pruned = yaml.safe_load((tmp_path / "run" / "pruned.yaml").read_text(encoding="utf-8"))
    assert pruned["val"] == str(tmp_path / "val.txt")


def test_a_moved_run_points_at_its_new_place(run):
    moved = run.rename(run.with_name("moved"))
    export(moved)
    assert yaml.safe_load((moved / "pruned.yaml").read_text())["train"] == str(moved / "kept.txt")


def test_a_run_without_pruning_is_written_again(tmp_path):
    paths = [f"/i/{i}.jpg" for i in range(3)]
    folder = tmp_path / "run"
    folder.mkdir()
    outcome = Outcome.of(None, paths, [1, 0, 2], CHANNELS, 0.0)
    manifest = {"seed": 0, "prune": {"share": 0.0}}
    write(folder, outcome, source=Path("d.yaml"), data={"path": "/i", "names": {0: "a"}}, manifest=manifest)
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert lines(folder / "kept.txt") == paths
    assert (folder / "dropped.txt").read_bytes() == b""
    export(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    with pytest.raises(RunError, match="was run with prune 0: run it with a share"):
        export(folder, [0.1])


def test_a_run_written_with_its_texts_as_arrays_of_str_is_read_and_written_alike(run):
    """As all runs were before paths were kept in one run of bytes."""
    before = {name: (run / name).read_bytes() for name in FILES}
    outcome = read(run)[1]
    texts = {name: np.array(list(values)) for name, values in outcome.columns.items() if values.dtype.kind in "UO"}
    arrays_of(run, paths=np.array(list(outcome.paths)), **texts, **{"paths.lengths": None, "detail.lengths": None})
    assert read(run)[1].paths == outcome.paths
    export(run)
    assert {name: (run / name).read_bytes() for name in FILES} == before


def test_a_table_in_parts_is_the_table_whole(run, monkeypatch):
    before = {name: (run / name).read_bytes() for name in FILES}
    whole = pl.read_parquet(run / "scores.parquet")
    for part in (tables, texts):
        monkeypatch.setattr(part, "CHUNK", 7)
    export(run)
    assert {name: (run / name).read_bytes() for name in FILES if name != "scores.parquet"} == {
        name: content for name, content in before.items() if name != "scores.parquet"
    }
    assert pl.read_parquet(run / "scores.parquet").equals(whole, null_equal=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants the device that is always full")
@pytest.mark.parametrize("full", ["scores.csv", "scores.parquet"])
def test_a_full_disk_is_an_os_error_whichever_table_it_stops(tmp_path, full):
    @contextmanager
    def replacing(target):
        yield Path("/dev/full") if target.name == full else target

    table = pl.DataFrame({"x": np.random.default_rng(0).random(9000)})
    with pytest.raises(OSError, match="No space left"):
        tables.write(tmp_path, 9000, lambda rows: table[rows], replacing)


# Texts


MANY = ["", "a", "Größe", "caf\udce9.jpg", "two\nlines", "猫 🐈", ""]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_texts_read_as_their_list(chunk, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    found = Texts.of(MANY)
    assert (list(found), len(found), found == MANY, found == MANY) == (MANY, 7, True, True)
    assert [found[i] for i in range(-7, 7)] == MANY + MANY
    for part in (slice(2, 5), slice(None), slice(3, 3), slice(5, 99), slice(None, None, -2)):
        assert found[part] == MANY[part]
    rows = np.array([True, False, True, True, False, True, False])
    assert b"".join(found.lines(rows)) == "\nGröße\ncaf\udce9.jpg\n猫 🐈\n".encode("utf-8", "surrogateescape")
    assert found != MANY[:-1]
    assert found != [*MANY[:-1], "b"]
    with pytest.raises(IndexError):
        found[7]


@pytest.mark.parametrize("lengths", [[3], [1], [3, -1], []])
def test_texts_of_other_lengths_than_their_bytes_are_refused(lengths):
    with pytest.raises(ValueError, match="of 3 bytes in all"):
        Texts(np.zeros(3, np.uint8), np.array([*lengths, 1], np.int64))


# Other shares


def test_other_shares_are_nested_and_marked(run):
    shares = [0.0, 0.05, 0.1, 0.2, 0.5, 0.95]
    written = export(run, shares)
    assert written == [run / "pruned.yaml", *(run / f"prune-{share:g}" / "pruned.yaml" for share in shares)]
    dropped = [set(lines(run / f"prune-{share:g}" / "dropped.txt")) for share in shares]
    assert [len(d) for d in dropped] == [0, 2, 4, 8, 20, 38]
    assert all(less <= more for less, more in itertools.pairwise(dropped))
    for share, file in zip(shares, written[1:], strict=True):
        head = lines(file)[0]
        assert head.startswith(f"# {40 - round(share * 40)} of 40 training images")
        assert ("Extrapolated: the mask was learned for prune 0.2." in head) is (share != 0.2)
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["train"] == str(file.with_name("kept.txt"))
        assert sorted(p.name for p in file.parent.iterdir()) == sorted(FILES)


def test_the_runs_own_share_cut_again_is_the_run(run):
    export(run, [0.2])
    for name in ("kept.txt", "dropped.txt", "scores.csv", "scores.parquet"):
        assert (run / "prune-0.2" / name).read_bytes() == (run / name).read_bytes()


def test_another_share_changes_kept_and_no_score(run):
    export(run, [0.5])
    own, other = pl.read_csv(run / "scores.csv"), pl.read_csv(run / "prune-0.5/scores.csv")
    depends = ("kept", "reason", "detail")
    assert own.drop(depends).equals(other.drop(depends), null_equal=True)
    assert other["kept"].sum() == 20
    assert ((other["reason"] == "") == other["kept"]).all()


def test_a_larger_share_takes_suspects_and_copies_before_it_takes_by_lot(run):
    export(run, [0.8])
    own, other = pl.read_csv(run / "scores.csv"), pl.read_csv(run / "prune-0.8/scores.csv")
    went = own["kept"] & ~other["kept"]
    free = own["lot"].is_not_nan() & (own["twin"] == -1)
    by_lot, spared = own.filter(went & free), own.filter(other["kept"])
    assert min(len(by_lot), len(own.filter(went & ~free))) >= 3
    assert by_lot["lot"].min() > spared["lot"].max()
    assert by_lot["logit"].max() > spared["logit"].min()


def test_shares_come_again_byte_for_byte(run):
    def bytes_of() -> dict[str, bytes]:
        return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    export(run, [0.1, 0.5])
    before = bytes_of()
    shutil.rmtree(run / "prune-0.5")
    export(run, [0.1, 0.5])
    assert bytes_of() == before


@pytest.mark.parametrize("share", [1.2, 1.0, 0.951, -0.1, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused_before_anything_is_written(run, share):
    (run / "kept.txt").unlink()
    with pytest.raises(ConfigError, match=f"Expected a prune share from 0 to 0.95, but got {share:g}"):
        export(run, [0.1, share])
    assert not (run / "kept.txt").exists()
    assert not list(run.glob("prune-*"))


# Torn and foreign folders


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def rewrite(folder: Path, **changes) -> None:
    """Change the manifest; a value of None leaves the key out."""
    file = folder / "manifest.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def other_mask(folder: Path, content: bytes) -> None:
    """A mask.npz of other content, and a manifest that knows it."""
    (folder / "mask.npz").write_bytes(content)
    rewrite(folder, mask_sha256=hashlib.sha256(content).hexdigest())


def arrays_of(folder: Path, **changes) -> None:
    with np.load(folder / "mask.npz") as held:
        arrays = {**held, **changes}
    np.savez(folder / "other.npz", **{k: v for k, v in arrays.items() if v is not None})
    other_mask(folder, (folder / "other.npz").read_bytes())
    (folder / "other.npz").unlink()


TORN = [
    # name, what happens to the folder, words
    ("no mask", lambda f: (f / "mask.npz").unlink(), "has no mask.npz: finish the run with --resume"),
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "has no manifest.json: finish the run with --resume"),
    ("no folder", shutil.rmtree, "has no manifest.json"),
    ("a torn mask", lambda f: tear(f / "mask.npz"), "mask.npz that .*manifest.json names, but its content differs"),
    ("an empty mask", lambda f: (f / "mask.npz").write_bytes(b""), "its content differs"),
    ("the mask of another run", lambda f: run_folder(f.parent / "b", share=0.5) and swap_mask(f), "content differs"),
    ("a torn mask that the manifest knows", lambda f: other_mask(f, b"PK\x03\x04 torn"), "cannot be read"),
    ("an empty one", lambda f: other_mask(f, b""), "cannot be read"),
    ("one that is no archive", lambda f: other_mask(f, b"hello"), "cannot be read"),
    ("one with pickled objects", lambda f: arrays_of(f, paths=np.array([{}] * N, object)), "cannot be read"),
    ("one without logits", lambda f: arrays_of(f, logit=None), "cannot be read"),
    ("one of another length", lambda f: arrays_of(f, kept=np.ones(N + 1, bool)), "cannot be read"),
    ("a torn manifest", lambda f: tear(f / "manifest.json"), "cannot be read"),
    ("an empty manifest", lambda f: (f / "manifest.json").write_text(""), "cannot be read"),
    ("a manifest in other bytes", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{}"), "cannot be read"),
    ("somebody else's manifest", lambda f: (f / "manifest.json").write_text('{"name": "app"}'), "cannot be read"),
    ("a manifest that is a list", lambda f: (f / "manifest.json").write_text("[1, 2]"), "cannot be read"),
    ("a manifest without data", lambda f: rewrite(f, data=None), "cannot be read"),
    ("a manifest with odd data", lambda f: rewrite(f, data={"rest": 3}), "cannot be read"),
    ("a manifest with half its data", lambda f: rewrite(f, data={"rest": {}}), "cannot be read"),
    ("a manifest without a share", lambda f: rewrite(f, prune={}), "cannot be read"),
    ("a manifest with a share in words", lambda f: rewrite(f, prune={"share": "half"}), "cannot be read"),
    ("a manifest without a seed", lambda f: rewrite(f, seed=None), "cannot be read"),
    ("a manifest without columns", lambda f: rewrite(f, columns=None), "cannot be read"),
    ("a manifest without the logit column", lambda f: rewrite(f, columns=["weight"]), "cannot be read"),
]


def swap_mask(folder: Path) -> None:
    shutil.copy(folder.parent / "b" / "mask.npz", folder / "mask.npz")


@pytest.mark.parametrize(("harm", "words"), [c[1:] for c in TORN], ids=[c[0] for c in TORN])
def test_a_torn_or_foreign_folder_is_refused_in_one_line(run, harm, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harm(run)
    with pytest.raises(RunError, match=words) as caught:
        export(run, [0.1])
    line = str(caught.value)
    assert str(run) in line
    assert len(line.splitlines()) == 1


def test_a_folder_in_a_file_s_place_is_named_and_not_the_temporary_file(run):
    (run / "kept.txt").unlink()
    (run / "kept.txt").mkdir()
    with pytest.raises(RunError, match=r"kept\.txt: Is a directory") as caught:
        export(run)
    assert ".tmp" not in str(caught.value)


def test_a_file_in_the_way_is_named(run):
    (run / "prune-0.1").write_text("in the way")
    with pytest.raises(RunError, match=r"prune-0\.1: File exists"):
        export(run, [0.1])


# Replacing a file


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replace_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_whole(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with replace_file(target) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_writer_that_fails_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(RuntimeError), replace_file(tmp_path / "a.txt"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_half_way_leaves_whole_files(run, monkeypatch):
    before = {name: (run / name).read_bytes() for name in FILES}

    def fail(*_, **__):
        raise OSError(28, "No space left on device", "scores.parquet")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", fail)
    with pytest.raises(RunError, match="No space left on device"):
        module.export(run, [0.1])
    assert {name: (run / name).read_bytes() for name in FILES} == before
