"""`train --from RUN`: which images are the same, what their logits become, and that a run goes on from there."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import yaml

from tests import helpers
from tests.helpers import QUICK, label_of, training_images
from yolo_adapruner import PruneConfig, prune
from yolo_adapruner.cli import main
from yolo_adapruner.core.pruner import Pruner, Settings
from yolo_adapruner.core.warm import start_logits
from yolo_adapruner.data import prints
from yolo_adapruner.data.export import read
from yolo_adapruner.errors import RunError

# The arithmetic


@pytest.mark.parametrize(
    ("old", "share", "rates", "wanted"),
    [
        ([3, 1, -1, -3], 0.5, (1, 1), [3, 1, -1, -3]),  # the cut is at 0 already
        ([3, 1, -1, -3], 0.25, (1, 1), [5, 3, 1, -1]),  # less is to go: the cut lies deeper
        ([3, 1, -1, -3], 0.0, (1, 1), [6, 4, 2, 0]),  # nothing is to go: the lowest is neutral
        ([3, 1, -1, -3], 0.5, (0.5, 1), [6, 2, -2, -6]),  # steps twice as long
        ([3, np.nan, 1, -1, -3], 0.5, (1, 1), [3, np.nan, 1, -1, -3]),  # one that was never seen has none
        ([2, 2, 2, 2], 0.5, (1, 1), [0, 0, 0, 0]),  # all alike: all neutral
        ([7], 0.5, (1, 1), [0]),
        ([np.nan, np.nan], 0.5, (1, 1), [np.nan, np.nan]),
    ],
)
def test_the_cut_for_the_share_becomes_neutral(old, share, rates, wanted):
    np.testing.assert_allclose(start_logits(np.array(old, float), share, rates=rates), wanted)


def test_a_lot_is_no_evidence_and_is_not_carried():
    old, lots = np.array([-9.0, -3.0, 2.0, np.nan]), np.array([np.nan, 0.9, 0.1, 0.5])
    assert start_logits(old, 0.3, rates=(1, 1), lots=lots)[:3].tolist() == [-3.0, 0.0, 0.0]
    assert np.isnan(start_logits(old, 0.3, rates=(1, 1), lots=lots)[3])
    np.testing.assert_array_equal(start_logits(old, 0.3, rates=(1, 1)), [-3.0, 3.0, 8.0, np.nan])


def test_a_pruner_adds_them_to_its_start_and_new_samples_stay_there():
    settings = Settings(**PruneConfig(share=0.5, warmup=0).model_dump())
    pruner = Pruner(3, 4, 5, settings)
    pruner.carry(np.array([2.0, np.nan, -3.0]), np.array([4.0, 9.0, 0.5]))
    assert pruner.mask.logits.tolist() == [3.0, 1.0, -2.0]
    assert pruner.seen.tolist() == [4.0, 0.0, 0.5]


def test_one_that_is_not_seen_again_keeps_its_old_score_in_the_cut():
    """Three of four were judged before and none is now: the score of the new one is unknown, and it goes last."""
    settings = Settings(**PruneConfig(share=0.5, warmup=0).model_dump())
    pruner = Pruner(4, 4, 5, settings)
    pruner.carry(np.array([2.0, -1.0, np.nan, -3.0]), np.array([1.0, 1.0, 0.0, 1.0]))
    assert pruner.decide().tolist() == [True, False, True, False]
    assert np.isnan(pruner.mask.logits[2])


def joint_stage(pruner: Pruner, bad: list[int]) -> None:
    """Train jointly for twelve epochs: all read alike but for `bad`, which read worse."""
    readings = np.ones((pruner.n, 4))
    readings[:, 0] += np.arange(pruner.n) % 7 / 100
    readings[bad] = 3.0
    for _ in range(pruner.joint_epochs):
        pruner.open_epoch()
        pruner.observe(np.arange(pruner.n), readings)
        pruner.close_epoch(0.5)


def warm_pruner(carried: np.ndarray, **settings: float) -> Pruner:
    """Return a pruner of as many samples with twelve joint epochs at the start, its memory the default."""
    held = Settings(**PruneConfig(share=0.1, warmup=0, joint=0.4, match=1e-9, **settings).model_dump())
    pruner = Pruner(len(carried), 4, 30, held)
    pruner.carry(carried, np.ones(len(carried)))
    assert pruner.joint_epochs == 12
    return pruner


def test_a_carried_logit_outlasts_the_joint_stage_where_the_evidence_is_the_same():
    """Steps fade by the epoch; if what was carried faded with them, a warm start would end as a cold one."""
    carried = np.zeros(70)
    carried[7] = -6.0  # reads as 0, 14, 21, ... do
    pruner = warm_pruner(carried)
    joint_stage(pruner, [])
    peers = np.arange(70) % 7 == 0
    peers[7] = False
    assert pruner.mask.logits[7] < pruner.mask.logits[peers].min() - 1.0


def test_new_evidence_overturns_a_carried_logit():
    """A sample that stood lowest reads well now, and seven that stood highest read badly."""
    carried = np.zeros(70)
    carried[7], bad = -6.0, [1, 11, 21, 31, 41, 51, 61]
    carried[bad] = 3.0
    pruner = warm_pruner(carried)
    joint_stage(pruner, bad)
    assert pruner.kept is not None
    assert np.flatnonzero(~pruner.kept).tolist() == bad


def test_runs_that_follow_each_other_do_not_add_up_beyond_what_one_can_overturn():
    carried = np.zeros(70)
    for _ in range(6):
        pruner = warm_pruner(carried)
        joint_stage(pruner, [7])
        carried = start_logits(pruner.mask.logits, 0.1, rates=(1, 1))
    bad = [1, 11, 21, 31, 41, 51, 61]
    pruner = warm_pruner(carried)
    joint_stage(pruner, bad)
    assert pruner.kept is not None
    assert np.flatnonzero(~pruner.kept).tolist() == bad


def test_a_run_without_a_start_fades_to_the_cut_and_a_resumed_one_to_what_was_carried():
    settings = Settings(**PruneConfig(share=0.5, warmup=0).model_dump())
    first, second = Pruner(3, 4, 5, settings), Pruner(3, 4, 5, settings)
    assert first.mask.base.tolist() == [0.0, 0.0, 0.0]
    first.carry(np.array([2.0, np.nan, -3.0]), np.array([4.0, 9.0, 0.5]))
    second.load_state_dict(first.state_dict())
    np.testing.assert_allclose(second.mask.base, [0.3 * 2.0, 0.0, 0.3 * -3.0])


# Who is who


@pytest.fixture
def files(tmp_path):
    """Six files of other bytes, their labels' prints and their fingerprints."""
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        with open(path, "wb") as file:
            file.write(bytes([i]) * 100)
    labels = np.arange(6, dtype=np.uint64)
    return tmp_path, paths, labels, prints.take(paths, labels)


def rows_of(paths, labels, files):
    _, before, _, held = files
    found = prints.match(paths, np.asarray(labels, np.uint64), before, held)
    return found.rows.tolist(), int(found.moved.sum()), found.changed, found.gone


def test_the_same_files_are_the_same_and_are_not_read_again(files, monkeypatch):
    _, paths, labels, _ = files
    monkeypatch.setattr(prints, "_content", lambda path: pytest.fail(f"{path} was read"))
    assert rows_of(paths, labels, files) == ([0, 1, 2, 3, 4, 5], 0, 0, 0)


def test_moved_renamed_changed_new_and_gone(files):
    folder, paths, _, _ = files
    (folder / "deeper").mkdir()
    moved = shutil.move(paths[0], folder / "deeper" / "0.png")
    renamed = shutil.move(paths[1], folder / "zz.png")
    (folder / "2.png").write_bytes(b"other bytes")
    (folder / "new.png").write_bytes(b"never seen")
    os.utime(paths[3], (1, 1))  # touched: the same bytes at another time
    now = [str(moved), str(renamed), paths[2], paths[3], paths[4], str(folder / "new.png")]
    assert rows_of(now, [0, 1, 2, 3, 4, 9], files) == ([0, 1, -1, 3, 4, -1], 2, 1, 2)  # 2 was changed, 5 is gone


def test_other_bytes_of_the_same_size_are_other_bytes(files):
    folder, paths, labels, _ = files
    (folder / "2.png").write_bytes(bytes([99]) * 100)
    os.utime(paths[2], (1, 1))
    assert rows_of(paths, labels, files) == ([0, 1, -1, 3, 4, 5], 0, 1, 1)


def test_corrected_labels_make_a_new_image_of_it(files):
    _, paths, labels, _ = files
    now = labels.copy()
    now[4] = 44
    assert rows_of(paths, now, files) == ([0, 1, 2, 3, -1, 5], 0, 1, 1)


def test_two_that_changed_names_are_told_by_content(files):
    folder, paths, _, _ = files
    os.rename(paths[0], folder / "between")
    os.rename(paths[1], paths[0])
    os.rename(folder / "between", paths[1])
    os.utime(paths[0], (1, 1))
    os.utime(paths[1], (1, 1))
    assert rows_of(paths, [1, 0, 2, 3, 4, 5], files) == ([1, 0, 2, 3, 4, 5], 2, 0, 0)


def test_copies_each_take_a_row_of_their_own_and_no_row_twice(files, tmp_path):
    folder, _, _, _ = files
    twins = [str(folder / f"twin{i}.png") for i in range(2)]
    for twin in twins:
        shutil.copy(folder / "5.png", twin)
    before = [*twins]
    held = prints.take(before, np.array([7, 7], np.uint64))
    moved = [shutil.move(twin, folder / f"moved{i}.png") for i, twin in enumerate(twins)]
    third = shutil.copy(folder / "5.png", folder / "third.png")
    now = [*map(str, moved), str(third)]
    found = prints.match(now, np.array([7, 7, 7], np.uint64), before, held)
    assert found.rows.tolist() == [0, 1, -1]


def test_a_run_that_recorded_no_contents_goes_by_path_alone(files):
    folder, paths, labels, _ = files
    found = prints.match([*paths[:3], str(folder / "elsewhere.png")], labels[:4], paths, None)
    assert (found.rows.tolist(), found.moved.any(), found.changed, found.gone) == ([0, 1, 2, -1], False, 0, 3)


def test_files_that_are_gone_match_nothing(files):
    folder = files[0]
    held = prints.take([str(folder / "a"), str(folder / "b")], np.array([0, 0], np.uint64))
    found = prints.match([str(folder / "c")], np.array([0], np.uint64), [str(folder / "a"), str(folder / "b")], held)
    assert found.rows.tolist() == [-1]


@pytest.mark.parametrize("harm", ["torn", "words", "of another run"])
def test_torn_fingerprints_are_one_line(files, harm):
    folder, _, _, held = files
    prints.write(folder, held)
    file = folder / prints.PRINTS
    if harm == "torn":
        file.write_bytes(file.read_bytes()[:-40])
    elif harm == "words":
        file.write_text("hello")
    with pytest.raises(RunError, match="remove it to go by path alone") as caught:
        prints.read(folder, 5 if harm == "of another run" else 6)
    assert len(str(caught.value).splitlines()) == 1


def test_a_label_print_tells_class_place_and_number_of_boxes():
    cls, boxes = (
        np.array([[0.0], [1.0]], np.float32),
        np.array([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]], np.float32),
    )
    first = prints.label_print(cls, boxes)
    assert first == prints.label_print(cls.copy(), np.asfortranarray(boxes))
    others = [
        prints.label_print(1 - cls, boxes),
        prints.label_print(cls, boxes + np.float32(1e-6)),
        prints.label_print(cls[:1], boxes[:1]),
        prints.label_print(np.zeros((0, 1)), np.zeros((0, 4))),
    ]
    assert len({first, *others}) == 5


# Runs


def words(name: str, *more: str, **settings: object) -> list[str]:
    base = {**QUICK, "prune.warmup": 1, "prune.share": 0.25, **settings}
    return ["train", "run.yaml", "--name", name, *more, *helpers.cli_words(base)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a set of 24 images, a run config and a finished run of it. Not to be changed: copy it."""
    place = tmp_path_factory.mktemp("warm")
    helpers.build_set(place / "set")
    helpers.write_architecture(place / "small.yaml")
    (place / "run.yaml").write_text("model: small.yaml\ndata: set/data.yaml\n", encoding="utf-8")
    with helpers.working_directory(place):
        assert main(words("old")) == 0
    return place


@pytest.fixture
def old(place, monkeypatch):
    """The finished run, seen from the folder above it."""
    monkeypatch.chdir(place)
    return place / "runs" / "adaprune" / "old"


def said_start(caplog) -> str:
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("start from")]
    return line


def carried(outcome, share: float, rates: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """What an earlier run's outcome adds to a start."""
    return start_logits(outcome.columns["logit"], share, rates=rates, lots=outcome.columns["lot"])


def watch(patch) -> list[np.ndarray]:
    """Note the logits that each pruner begins with."""
    seen = []
    original = Pruner.carry

    def carry(self, logits, views):
        original(self, logits, views)
        seen.append(self.mask.logits.copy())

    patch.setattr(Pruner, "carry", carry)
    return seen


@pytest.mark.slow
def test_a_new_run_begins_with_the_old_ones_logits_by_image(old, place, tmp_path, monkeypatch, caplog):
    """One moved to another folder, one renamed, one with other pixels, one with other labels, two new, two gone."""
    shutil.copytree(place / "set", tmp_path / "set", copy_function=shutil.copy2)
    data = helpers.write_data(tmp_path / "set" / "data.yaml", tmp_path / "set")
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text(f"model: small.yaml\ndata: {data}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(words("base")) == 0
    base = tmp_path / "runs" / "adaprune" / "base"
    files = training_images(data)
    folder = files[0].parent
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind / "train" / "deeper").mkdir()
    shutil.move(files[0], folder / "deeper" / files[0].name)
    shutil.move(label_of(files[0]), label_of(files[0]).parent / "deeper" / label_of(files[0]).name)
    shutil.move(files[1], folder / "zz renamed.png")
    shutil.move(label_of(files[1]), label_of(files[1]).with_name("zz renamed.txt"))
    shutil.copy(files[2], files[3])  # other pixels, its own labels
    label_of(files[4]).write_text("0 0.5 0.5 0.3 0.3\n", encoding="utf-8")
    for name in ("new0", "new1"):
        shutil.copy(files[6], folder / f"{name}.png")
        label_of(folder / f"{name}.png").write_text(f"1 0.5 0.5 0.{name[-1]}1 0.3\n", encoding="utf-8")
    for file in files[20:22]:
        file.unlink()
    caplog.clear()
    begun = watch(monkeypatch)
    assert main(words("warm", "--from", str(base))) == 0
    line = said_start(caplog)
    assert line == f"start from {base}: 20 images carried over (2 by content), 4 new (2 changed), 4 gone"
    new, outcome = read(tmp_path / "runs" / "adaprune" / "warm")
    counts = {"run": str(base), "carried": 20, "moved": 2, "new": 4, "changed": 2, "gone": 4}
    assert new["start"] == counts

    before = read(base)[1]
    old_logits = dict(zip(before.paths, carried(before, 0.25), strict=True))
    came_from = {str(folder / "deeper" / files[0].name): files[0], str(folder / "zz renamed.png"): files[1]}
    fresh = {str(files[3]), str(files[4]), str(folder / "new0.png"), str(folder / "new1.png")}
    wanted = [1.0 + (0 if p in fresh else old_logits[str(came_from.get(p, p))]) for p in outcome.paths]
    np.testing.assert_allclose(begun[0], wanted)
    assert len(set(begun[0].round(6))) > 1, "the old run told no images apart, so that any order would do"


@pytest.mark.slow
def test_from_python_with_other_share_rate_and_stages(old, monkeypatch, caplog):
    begun = watch(monkeypatch)
    settings = {**QUICK, "prune.share": 0.5, "prune.rate": 1.0, "prune.warmup": 0, "prune.joint": 0.5}
    result = prune("run.yaml", start=old, name="python", **settings)
    assert result.kept == 12
    assert "24 images carried over (0 by content), 0 new (0 changed), 0 gone" in said_start(caplog)
    np.testing.assert_allclose(begun[0], 1 + carried(read(old)[1], 0.5, rates=(0.5, 1.0)))


@pytest.mark.slow
def test_a_run_without_a_start_says_none(old):
    assert read(old)[0]["start"] is None
    assert yaml.safe_load((old / "adaprune.yaml").read_text(encoding="utf-8"))["start"] is None
    assert (old / prints.PRINTS).is_file()


@pytest.mark.slow
def test_a_warm_run_that_was_interrupted_ends_as_if_it_was_not(old, place, tmp_path, monkeypatch, caplog):
    """The run it started from may be gone by then: what it gave is in the state."""
    from tests.test_resume import interrupt_in_batch

    source = shutil.copytree(old, tmp_path / "source")
    assert main(words("whole", "--from", str(source))) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_batch(patch, 3)
        assert main(words("cut", "--from", str(source))) == 130
    shutil.rmtree(source)
    assert main(["train", "--resume", "runs/adaprune/cut"]) == 0
    whole, cut = (read(place / "runs" / "adaprune" / name) for name in ("whole", "cut"))
    assert cut[0]["start"] == whole[0]["start"]
    assert cut[0]["start"]["carried"] == 24
    np.testing.assert_array_equal(cut[1].kept, whole[1].kept)
    for name, column in whole[1].columns.items():
        np.testing.assert_array_equal(cut[1].columns[name], column, err_msg=name)
    held = [np.load(place / "runs" / "adaprune" / name / prints.PRINTS) for name in ("whole", "cut")]
    assert all((held[0][key] == held[1][key]).all() for key in held[0].files)


@pytest.mark.slow
def test_one_that_was_interrupted_before_an_epoch_was_whole_starts_over_warm(old, place, caplog):
    from tests.test_resume import interrupt_in_batch

    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_batch(patch, 1)
        assert main(words("early", "--from", "runs/adaprune/old")) == 130
    caplog.clear()
    assert main(["train", "--resume", "runs/adaprune/early"]) == 0
    assert "24 images carried over" in said_start(caplog)


@pytest.mark.slow
def test_at_share_0_nothing_is_carried(old, place):
    assert main(words("stock", "--from", "runs/adaprune/old", **{"prune.share": 0, "epochs": 3})) == 0
    assert read(place / "runs" / "adaprune" / "stock")[0]["start"] is None


def other_manifest(folder, **changes) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        section, name = key.split("__")
        content[section] = {**content[section], name: value}
    file.write_text(json.dumps(content), encoding="utf-8")


def forget_scores(folder) -> None:
    """A run that was never judged: all logits NaN."""
    with np.load(folder / "mask.npz") as held:
        arrays = {**held, "logit": np.full(24, np.nan)}
    np.savez(folder / "mask.npz", **arrays)
    digest = hashlib.sha256((folder / "mask.npz").read_bytes()).hexdigest()
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**content, "mask_sha256": digest}), encoding="utf-8")


def swap_names(folder) -> None:
    rest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["data"]["rest"]
    other_manifest(folder, data__rest={**rest, "names": {"0": "square", "1": "disc", "2": "cross"}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words_said"),
    [
        (shutil.rmtree, "Expected a finished run in .*broken, but it has no manifest.json"),
        (lambda f: (f / "mask.npz").unlink(), "but it has no mask.npz"),
        (lambda f: (f / "mask.npz").write_bytes(b"PK torn"), "its content differs"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: (f / prints.PRINTS).write_bytes(b"PK torn"), "prints.npz as this package wrote it"),
        (forget_scores, "Expected a run that scored its images to start from"),
        (lambda f: other_manifest(f, train__task="segment"), "Expected a run for detect .* is for segment"),
        (lambda f: other_manifest(f, prune__tau=0.5), r"judged its images by, but tau 0.5 → 0.25"),
        (lambda f: other_manifest(f, prune__judge=False), r"judged its images by, but judge False → True"),
        (lambda f: other_manifest(f, prune__redundancy=0.0), r"judged its images by, but redundancy 0.0 → 2.0"),
        (swap_names, "Expected the class names of .*broken, but 0 square → disc, 1 disc → square"),
    ],
    ids=[
        *("gone", "no mask", "torn mask", "torn manifest", "torn prints", "no scores", "task"),
        *("tau", "judge", "redundancy", "classes"),
    ],
)
def test_a_run_that_cannot_be_started_from_is_one_line_and_leaves_nothing(old, place, capsys, harm, words_said):
    shutil.rmtree(place / "broken", ignore_errors=True)
    harm(shutil.copytree(old, place / "broken"))
    assert main(words("never", "--from", "broken")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("yolo-adapruner: ")
    assert re.search(words_said, line), line
    assert not (place / "runs" / "adaprune" / "never").exists()


def test_from_beside_resume_is_refused(capsys):
    assert main(["train", "--resume", "somewhere", "--from", "elsewhere"]) == 2
    assert "Expected --resume RUN alone, but got --from" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_both_begin_with_the_old_logits(tmp_path, monkeypatch):
    """After an epoch of warm-up nothing has moved them."""
    from tests.test_ddp import notes, train

    helpers.build_set(tmp_path / "set", train=25)
    helpers.write_architecture(tmp_path / "small.yaml")
    method = {"share": 0.2, "warmup": 1, "joint": 0.5}
    base = train("Noted", tmp_path, "base", monkeypatch, prune=method, epochs=4)
    result = train("TwoOnCpu", tmp_path, "two", monkeypatch, prune=method, epochs=4, start=str(base.folder))
    manifest, _ = read(result.folder)
    assert (manifest["start"]["carried"], manifest["start"]["new"]) == (25, 0)
    wanted = 1 + carried(read(base.folder)[1], 0.2)
    for rank in (0, 1):
        np.testing.assert_allclose(notes(tmp_path, "two", rank)["00"]["logits"], wanted)
