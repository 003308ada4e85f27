"""The pieces a resume is made of, one at a time: the file, what it refuses, step counting, the shuffle, the buffer."""

import contextlib
import io
import random
import resource
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch
from ultralytics.data.build import InfiniteDataLoader

from yolo_adapruner.engine import runtime, snapshot, state
from yolo_adapruner.errors import RunError


def content(**changes):
    """A small content of the file."""
    whole = {
        "versions": runtime.versions(),
        "machine": "cpu",
        "epoch": 2,
        "prune": {"share": 0.25, "tau": 0.25},
        "config": {"model": "a.yaml", "data": "d.yaml", "epochs": 6, "train": {"nbs": 8}, "prune": {"share": 0.25}},
        "images": ["/a.png", "/b.png", "/c\udce9.png"],
        "classes": {0: "disc", 1: "square"},
        "args": {"epochs": 6},
        "architecture": {"nc": 2, "head": [[-1, 1, "Detect", ["nc"]]]},
        "mask": {"pruner": {"logits": np.arange(3.0), "kept": None}, "entered": 2},
        "training": {"fitness": np.float64(0.5)},
        "labels": "5d41",
    }
    return {**whole, **changes}


# The file


def test_what_is_written_is_read_back_with_numbers_as_python_has_them(tmp_path):
    state.write(tmp_path, content())
    read = state.load(tmp_path / state.NAME)
    assert read["images"] == ["/a.png", "/b.png", "/c\udce9.png"]  # the last name is no UTF-8
    assert read["classes"] == {0: "disc", 1: "square"}
    assert type(read["training"]["fitness"]) is float
    np.testing.assert_array_equal(state.arrays(read["mask"])["pruner"]["logits"], np.arange(3.0))
    assert state.mask_after(tmp_path, 2)["entered"] == 2


def test_a_state_from_before_labels_were_noted_is_read(tmp_path):
    state.write(tmp_path, content())
    held = torch.load(tmp_path / state.NAME, weights_only=True)
    assert held.pop(state.LABELS) == "5d41"
    torch.save(held, tmp_path / state.NAME)
    assert state.LABELS not in state.load(tmp_path / state.NAME)


@pytest.mark.parametrize(
    "value",
    [random.getstate(), np.random.default_rng(1).bit_generator.state, {1: (2, [3.5, None, True])}, "ä", float("inf")],
    ids=["python's draws", "numpy's 128 bit", "containers", "word", "infinity"],
)
def test_plain_values_survive_the_weights_only_loader(value):
    stream = io.BytesIO()
    torch.save(state.plain(value), stream)
    assert torch.load(io.BytesIO(stream.getvalue()), weights_only=True) == value


def test_a_full_disk_is_an_os_error_and_leaves_the_state_before(tmp_path):
    state.write(tmp_path, content(epoch=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            state.write(tmp_path, content(training={"model": torch.zeros(10**6)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == [state.NAME]
    assert state.load(tmp_path / state.NAME)["epoch"] == 1


def test_files_are_put_in_place_together_and_only_when_all_are_whole(tmp_path):
    (tmp_path / "last.pt").write_text("old")
    with contextlib.suppress(KeyboardInterrupt), state.written_whole(tmp_path, "last.pt", "best.pt") as folder:
        assert [file.read_text() for file in folder.iterdir()] == ["old"]
        (folder / "last.pt").write_text("new")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("last.pt", "old")]
    with state.written_whole(tmp_path) as folder:
        (folder / "last.pt").write_text("new")
        (folder / "best.pt").write_text("new")
    assert sorted((file.name, file.read_text()) for file in tmp_path.iterdir()) == [
        ("best.pt", "new"),
        ("last.pt", "new"),
    ]


def test_a_sweep_takes_away_what_killed_processes_left_and_nothing_else(tmp_path):
    weights = tmp_path / "weights"
    (weights / ".77.tmp").mkdir(parents=True)
    for file in (weights / ".77.tmp" / "last.pt", weights / ".adaprune.pt.77.tmp", tmp_path / ".scores.csv.77.tmp"):
        file.write_text("half")
    (weights / "last.pt").write_text("whole")
    state.sweep(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in sorted(tmp_path.rglob("*"))] == [
        "weights",
        "weights/last.pt",
    ]


# What is refused


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, ""),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b 2 → 3"),
        ({"a": 1}, {"b": 2}, "a 1 → None, b None → 2"),
        (dict.fromkeys(range(9), 0), {}, ", ".join(f"{i} 0 → None" for i in range(6)) + " and 3 more"),
    ],
)
def test_differences_are_named_with_old_and_new_value(before, now, line):
    assert state.differences(before, now) == line


@pytest.mark.parametrize(
    ("paths", "classes", "words"),
    [
        (["/a.png", "/b.png"], {0: "disc", 1: "square"}, "but 1 gone (first /c\udce9.png): restore"),
        (["/a.png", "/b.png", "/c\udce9.png", "/d", "/e"], {0: "disc", 1: "square"}, "but 2 new (first /d): restore"),
        (["/b.png", "/x"], {0: "disc", 1: "square"}, "but 2 gone (first /a.png) and 1 new (first /x): restore"),
        (
            ["/a.png", "/b.png", "/c\udce9.png"],
            {0: "square", 1: "disc"},
            "but 0 disc → square, 1 square → disc: restore",
        ),
    ],
)
def test_other_images_or_classes_are_refused_by_name(tmp_path, paths, classes, words):
    file = tmp_path / state.NAME
    state.write(tmp_path, content())
    with pytest.raises(RunError) as error:
        state.check_data(file, state.load(file), paths, classes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prune", "config", "words"),
    [
        ({"share": 0.5, "tau": 0.25}, None, "but share 0.25 → 0.5: restore"),
        ({"share": 0.25, "tau": 0.25}, {"epochs": 9}, "but epochs 6 → 9: restore"),
        ({"share": 0.25, "tau": 0.25}, {"train": {"nbs": 8, "lrf": 0.1}}, "but train.lrf None → 0.1: restore"),
        ({"share": 0.25, "tau": 0.25}, {"data": "moved.yaml", "device": "0", "name": "x"}, None),
        ({"share": 0.25, "tau": 0.25}, None, None),
    ],
)
def test_other_settings_are_refused_by_name_but_for_places_and_devices(tmp_path, prune, config, words):
    file = tmp_path / state.NAME
    config = None if config is None else {**content()["config"], **config}
    if words is None:
        state.check_settings(file, content(), prune, config)
    else:
        with pytest.raises(RunError) as error:
            state.check_settings(file, content(), prune, config)
        assert words in str(error.value)


def test_the_mask_of_another_epoch_is_refused(tmp_path):
    state.write(tmp_path, content(epoch=2))
    with pytest.raises(RunError, match="to hold epoch 2, but it holds 3"):
        state.mask_after(tmp_path, 1)


# Steps


def steps_of(accumulates, per_epoch, cut=None):
    """The batches in which Ultralytics' loop steps, one `accumulate` a batch; taken up again after epoch `cut`."""
    steps, taken, last_opt_step = snapshot.Steps(), [], -1
    steps.per_epoch = per_epoch
    for epoch in range(len(accumulates) // per_epoch):
        if epoch == cut:
            saved, steps, last_opt_step = steps.last, snapshot.Steps(), -1
            steps.per_epoch = per_epoch
        steps.open_epoch(epoch)
        if epoch == cut:
            steps.go_on_from(saved)
        for i in range(per_epoch):
            steps.next_batch()
            ni = i + per_epoch * epoch
            if ni - last_opt_step >= accumulates[ni] + steps.owed:
                last_opt_step = ni
                steps.stepped()
                taken.append(ni)
    return taken


@pytest.mark.parametrize("per_epoch", [1, 2, 3, 4, 7])
def test_steps_fall_in_the_same_batches_wherever_a_run_is_cut(per_epoch):
    rng = np.random.default_rng(per_epoch)
    for _ in range(20):
        accumulates = np.sort(rng.integers(1, 10, 8 * per_epoch)).tolist()
        whole = steps_of(accumulates, per_epoch)
        for cut in range(1, 8):
            assert steps_of(accumulates, per_epoch, cut) == whole


def test_an_epoch_that_is_done_over_steps_as_if_it_were_the_first():
    steps = snapshot.Steps()
    steps.per_epoch = 4
    steps.open_epoch(3)
    steps.go_on_from(10)
    steps.open_epoch(3)
    assert (steps.last, steps.owed) == (-1, 0)


# The loader


class Images:
    """As much of Ultralytics' dataset as a loader's place depends on."""

    transforms = None

    def __init__(self, count):
        self.count, self.buffer = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index

    def load_image(self, index):
        self.buffer.append(index)


def loader_of(count, batch, **more):
    generator = torch.Generator()
    generator.manual_seed(5)
    return InfiniteDataLoader(Images(count), batch_size=batch, shuffle=True, generator=generator, **more)


def epochs_of(loader, count):
    return [[batch.tolist() for batch in loader] for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "batch", "more"), [(12, 4, {}), (13, 4, {}), (3, 4, {}), (13, 4, {"drop_last": True})]
)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_shuffle_goes_on_where_it_was(count, batch, more, cut):
    whole = loader_of(count, batch, **more)
    before, saved = epochs_of(whole, cut), snapshot.take_loader(whole)
    resumed = loader_of(count, batch, **more)
    snapshot.put_loader(resumed, saved)
    assert epochs_of(resumed, 2) == epochs_of(whole, 2) != before[:2]
    again = loader_of(count, batch, **more)  # a resumed run is resumed
    snapshot.put_loader(again, snapshot.take_loader(resumed))
    assert epochs_of(again, 2) == epochs_of(whole, 2)


@pytest.mark.parametrize("count", [12, 13])
def test_a_loader_that_is_reset_shuffles_as_the_uninterrupted_one_would(count):
    whole, resumed = loader_of(count, 4), loader_of(count, 4)
    epochs_of(whole, 2)
    snapshot.put_loader(resumed, snapshot.take_loader(whole))
    whole.reset()
    resumed.reset()
    assert epochs_of(resumed, 2) == epochs_of(whole, 2)


def test_with_workers_a_resume_goes_on_with_another_shuffle_of_all_images():
    whole = loader_of(12, 4, num_workers=2)
    first = epochs_of(whole, 1)
    resumed = loader_of(12, 4, num_workers=2)
    snapshot.put_loader(resumed, snapshot.take_loader(whole))
    second = epochs_of(resumed, 1)
    whole.close()
    resumed.close()
    assert second != first
    assert sorted(i for batch in second[0] for i in batch) == list(range(12))


def test_the_mosaic_buffer_is_read_again():
    whole, resumed = loader_of(12, 4), loader_of(12, 4)
    whole.dataset.buffer = [7, 3, 9]
    snapshot.put_loader(resumed, snapshot.take_loader(whole))
    assert resumed.dataset.buffer == [7, 3, 9]


def composition():
    return A.Compose([A.OneOf([A.Blur(p=0.5), A.GaussNoise(p=0.5)], p=0.9), A.RandomBrightnessContrast(p=0.7)])


def test_albumentations_draw_on_where_they_were():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    whole, resumed = (
        SimpleNamespace(transforms=SimpleNamespace(transforms=[SimpleNamespace(transform=composition())]))
        for _ in range(2)
    )
    draw, draw_on = (d.transforms.transforms[0].transform for d in (whole, resumed))
    draw.set_random_seed(7)
    for _ in range(5):
        draw(image=image)
    loaders = [
        SimpleNamespace(dataset=d, generator=torch.Generator(), num_workers=1, sampler=()) for d in (whole, resumed)
    ]
    saved = snapshot.take_loader(loaders[0])
    stream = io.BytesIO()
    torch.save(state.plain(saved), stream)
    snapshot.put_loader(loaders[1], torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    for _ in range(10):
        np.testing.assert_array_equal(draw_on(image=image)["image"], draw(image=image)["image"])


def test_random_numbers_go_on_where_they_were():
    torch.manual_seed(3)
    saved = state.plain({"drawn": snapshot._take_randomness(torch.device("cpu"))})
    drawn = random.random(), np.random.rand(), torch.rand(1)
    snapshot.put_randomness(saved)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn
    assert torch.initial_seed() == 3  # loaders are seeded by it
