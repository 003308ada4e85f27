"""Half precision, accumulation, a batch of Ultralytics' finding, compilation, running out of memory, NaN.

None of them moves a logit twice, from a step that failed, or for an image that was not seen: after every epoch the
mask is, bit for bit, what a mask of our own makes of the readings that may count.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.engine import trainer as upstream

from tests import helpers
from tests.ledger import Watched, nan_loss, out_of_memory, out_of_memory_in_backward, replay
from tests.test_channels import SILENCE, assignment
from yolo_adapruner.cli import main
from yolo_adapruner.engine import evidence, run
from yolo_adapruner.engine.losses import Assignment, LossTap
from yolo_adapruner.engine.trouble import one_line_errors
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study.compare import compare

N, EPOCHS = 26, 6
METHOD = {"warmup": 1, "joint": 0.5}  # stages 1, 2, 2, 2, 3, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return helpers.build_set(tmp_path_factory.mktemp("precision") / "set", train=N)


def watched(data, folder, *, method=METHOD, faults=None, gradients=None, scaler=None, **settings):
    """Train with an account and with faults."""
    trainer = helpers.new_trainer(
        data, folder / "run", trainer=Watched, method=method, **{"epochs": EPOCHS, "val": True, **settings}
    )
    trainer.faults, trainer.gradients = dict(faults or {}), dict(gradients or {})
    if scaler is not None:
        trainer.add_callback("on_train_start", lambda t: setattr(t, "scaler", scaler))
    trainer.train()
    assert not trainer.faults  # all happened
    assert not trainer.gradients
    return trainer


def along(trainer, epoch, unseen):
    """Which logits an epoch moved as far as an unseen image's: with all, by no evidence of their own; (N,) bool."""
    before = trainer.stood[epoch - 2].logits if epoch > 1 else np.ones(N)
    step = trainer.stood[epoch - 1].logits - before
    return np.isclose(step, step[unseen], rtol=0, atol=1e-9)


def moved(trainer, epoch):
    """Which logits an epoch moved, (N,) bool."""
    before = trainer.stood[epoch - 2].logits if epoch > 1 else np.ones(N)
    return trainer.stood[epoch - 1].logits != before


# What counts


@pytest.mark.parametrize("told", [bool, torch.tensor], ids=["known", "on the device"])
@pytest.mark.parametrize("taken", [[True, True], [True, False], [False, True], [False, False]])
def test_batches_count_with_the_step_they_led_to(taken, told):
    kept = evidence.Evidence()
    for step, was in enumerate(taken):
        for batch in range(3):
            kept.add(np.array([step]), torch.full((1, 2), float(batch)), np.ones(1, bool))
        kept.settle(told(was))
    kept.add(np.array([9]), torch.zeros(1, 2), np.ones(1, bool))  # its step comes in the next epoch
    ids, readings, _ = kept.collect()
    expected = [step for step, was in enumerate(taken) if was for _ in range(3)]
    assert ids.tolist() == [*expected, 9]
    assert readings[:-1, 0].tolist() == [0, 1, 2] * sum(taken)


def test_rows_come_out_with_the_views_they_went_in_with():
    kept = evidence.Evidence()
    assert kept.collect() is None
    kept.add(np.array([4, 5, 6]), torch.arange(6.0).view(3, 2), np.array([1, 0, 0.5]))
    ids, readings, views = kept.collect()
    assert ids.tolist() == [4, 5, 6]
    assert readings.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert views.tolist() == [1, 0, 0.5]
    assert kept.collect() is None  # given away


FORWARDS = [
    # name, what is changed, which of the two images is sound
    ("as it comes", lambda seen: None, 1.0, [True, True]),
    ("a score that is NaN", lambda seen: seen.scores[0, 3].fill_(torch.nan), 1.0, [False, True]),
    ("a box that is NaN", lambda seen: seen.boxes[1, 0, 2].fill_(torch.nan), 1.0, [True, False]),
    ("a box without end", lambda seen: seen.boxes[1, 0, 2].fill_(torch.inf), 1.0, [True, False]),
    ("ends that cancel", lambda seen: seen.boxes[0, 0, :2].copy_(torch.tensor([1, -1]) / 0), 1.0, [False, True]),
    ("a loss that is NaN", lambda seen: None, torch.nan, [False, False]),
    ("a loss without end", lambda seen: None, torch.inf, [False, False]),
]


@pytest.mark.parametrize(("change", "loss", "expected"), [c[1:] for c in FORWARDS], ids=[c[0] for c in FORWARDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_are_judged_by_a_forward_that_is_finite(change, loss, expected, dtype):
    seen = assignment(([], SILENCE), ([], SILENCE))
    seen = Assignment(**{**vars(seen), "scores": seen.scores.to(dtype), "boxes": seen.boxes.clone()})
    change(seen)
    assert evidence.sound(seen, torch.tensor(loss)).tolist() == expected


# Whole runs


@pytest.mark.slow
def test_a_run_in_which_nothing_happens(data, tmp_path):
    trainer = watched(data, tmp_path)
    replay(trainer)
    assert [one.stage for one in trainer.passes] == [1, 2, 2, 2, 3, 3]
    assert trainer.updates == 4 * 4 + 2 * 3
    assert [moved(trainer, epoch).all() for epoch in (1, 2, 3)] == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "where", "sizes"),
    helpers.gate_runs(
        [
            (out_of_memory, [1], [8, 4]),
            (out_of_memory_in_backward, [3], [8, 4]),
            (out_of_memory, [4], [8, 4]),
            (out_of_memory, [2, 5], [8, 4, 2]),
            (out_of_memory_in_backward, [2, 5], [8, 4, 2]),
        ],
        *(0, 4),
    ),
)
def test_an_epoch_that_ran_out_of_memory_counts_once_and_whole(data, tmp_path, fault, where, sizes):
    """The joint stage is the first here; what was read before memory ran out is read again."""
    trainer = watched(data, tmp_path, method={"warmup": 0, "joint": 0.5}, faults={(1, k): fault for k in where})
    assert [one.epoch for one in trainer.passes] == [1] * len(where) + list(range(1, EPOCHS + 1))
    assert [len(one.batches[0][0]) for one in trainer.passes if one.batches][-EPOCHS] == sizes[-1]
    assert trainer.batch_size == sizes[-1]
    replay(trainer)
    assert (trainer.stood[0].counts[:, -1] == 1).all()
    assert moved(trainer, 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "batch"), helpers.gate_runs([(2, 1), (3, 3), (4, 1), (5, 3)], 1, 2))
def test_an_epoch_that_came_out_nan_counts_once(data, tmp_path, epoch, batch):
    trainer = watched(data, tmp_path, faults={(epoch, batch): nan_loss})
    assert [one.epoch for one in trainer.passes] == sorted([*range(1, EPOCHS + 1), epoch])
    replay(trainer)
    assert (trainer.stood[3].counts[:, -1] == 3).all()


@pytest.mark.slow
def test_nan_in_the_first_epoch_moves_who_was_seen_before_it_alone(data, tmp_path):
    """Upstream has no checkpoint to go back to then, and gives up some epochs later."""
    trainer = helpers.new_trainer(
        data, tmp_path / "run", trainer=Watched, method={"warmup": 0, "joint": 0.5}, epochs=EPOCHS
    )
    trainer.faults = {(1, 2): nan_loss}
    with pytest.raises(RuntimeError, match="NaN persisted"):
        trainer.train()
    first = trainer.stood[0]
    seen = first.batches[0][0]
    assert sorted(np.flatnonzero(first.counts[:, -1])) == sorted(seen)
    unseen = sorted({*range(N)} - {*seen})
    assert set(np.flatnonzero(along(trainer, 1, unseen[0]))) >= set(unseen)


@pytest.fixture(scope="module")
def clean(data, tmp_path_factory):
    """A function that trains with a scaler and without faults, once for each settings."""
    held = {}

    def train(**settings):
        key = tuple(sorted(settings.items()))
        if key not in held:
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            held[key] = watched(data, tmp_path_factory.mktemp("clean"), scaler=scaler, **settings)
            replay(held[key])
        return held[key]

    return train


SKIPPED = [
    # name, settings, faults, gradients, batches that must not count
    ("one", {}, {}, {(2, 2): torch.inf}, [(2, 2)]),
    ("all of an epoch", {}, {}, {(3, k): torch.nan for k in (1, 2, 3, 4)}, [(3, k) for k in (1, 2, 3, 4)]),
    ("in warm-up and fine-tune", {}, {}, {(1, 1): torch.inf, (5, 1): torch.inf}, [(1, 1)]),
    ("two batches to a step", {"nbs": 16, "warmup_epochs": 0}, {}, {(2, 4): torch.inf}, [(2, 3), (2, 4)]),
    ("a loss that is NaN", {}, {(4, 2): nan_loss}, {}, [(4, 2)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "faults", "gradients", "left_out"),
    helpers.gate_runs([c[1:] for c in SKIPPED], 1, 3, ids=[c[0] for c in SKIPPED]),
)
def test_a_step_the_fp16_scaler_skipped_moves_no_logit(data, tmp_path, clean, settings, faults, gradients, left_out):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = watched(data, tmp_path, faults=faults, gradients=gradients, scaler=scaler, **settings)
    skipped = len(faults) + len(gradients)
    assert scaler.get_scale() == 1024 / 2**skipped
    assert trainer.updates == clean(**settings).updates - skipped
    assert trainer.skipped == sorted([*faults, *gradients])
    replay(trainer, left_out)
    for epoch in (2, 3):
        out = sorted(i for e, k in left_out if e == epoch for i in trainer.stood[epoch - 1].batches[k - 1][0])
        # Forgetting takes some below the cut in any epoch, so that all are lifted; left out is who moves by that alone.
        assert not out or np.flatnonzero(along(trainer, epoch, out[0])).tolist() == out


TROUBLE = [
    ("CUDA out of memory. Tried to allocate 2.00 GiB", "Expected a batch that fits into the device's memory, but CUDA"),
    ("DefaultCPUAllocator: can't allocate memory: you tried", "Expected a batch that fits into the device's memory"),
    ("Training failed: NaN persisted for 4 epochs", "Expected a finite loss, but Training failed: NaN persisted for 4"),
    ("Loss NaN/Inf detected but no valid last.pt is available for recovery", "Expected a finite loss, but Loss NaN"),
]


@pytest.mark.parametrize(("message", "line"), TROUBLE)
def test_what_upstream_gives_up_over_is_one_line(message, line):
    with pytest.raises(RunError) as caught, one_line_errors("d.yaml"):
        raise RuntimeError(message)
    assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_memory_that_runs_out_later_ends_the_command_line_with_a_line(data, tmp_path, monkeypatch, capsys):
    class Failing(Watched):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.faults = {(3, 2): out_of_memory}

    monkeypatch.setattr(run, "trainer_for", lambda task: Failing)
    monkeypatch.chdir(tmp_path)
    helpers.write_architecture(tmp_path / "small.yaml")
    (tmp_path / "run.yaml").write_text(f"model: small.yaml\ndata: {data}\n")
    assert main(["train", "run.yaml", "--name", "r", *helpers.cli_words(helpers.QUICK)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "but CUDA out of memory. Tried to allocate 2.00 GiB: take a smaller batch or imgsz." in error


@pytest.mark.slow
@pytest.mark.parametrize(("nbs", "ramp"), [(32, 0.0), (32, 2.0), (64, 3.0)])
def test_accumulation_with_its_ramp_leaves_each_image_a_reading_an_epoch(data, tmp_path, nbs, ramp):
    trainer = watched(data, tmp_path, nbs=nbs, warmup_epochs=ramp)
    assert trainer.accumulate - trainer.steps.owed == nbs // 8  # short epochs owe the batches they lacked
    assert trainer.updates < 4 * 4 + 2 * 3
    replay(trainer)
    assert (trainer.stood[3].counts[:, -1] == 3).all()


@pytest.fixture
def bf16_on_cpu(monkeypatch):
    """Upstream's autocast takes bfloat16 on CUDA only; here it does on the CPU as well."""
    from yolo_adapruner.engine import runtime

    monkeypatch.setattr(runtime, "native_bf16", lambda device: True)
    monkeypatch.setattr(
        upstream, "autocast", lambda dtype, device: torch.autocast(device, torch.bfloat16, dtype is torch.bfloat16)
    )


@pytest.mark.slow
def test_bf16_reads_what_full_precision_reads(data, tmp_path, bf16_on_cpu, monkeypatch):
    seen = []
    original = LossTap.assigned
    monkeypatch.setattr(LossTap, "assigned", lambda tap, a, *rest: seen.append(a) or original(tap, a, *rest))
    trainer = watched(data, tmp_path, amp="bf16")
    assert {one.scores.dtype for one in seen if one.scores.requires_grad is False} >= {torch.bfloat16}
    replay(trainer)
    full = watched(data, tmp_path / "full")
    (ids, readings), (same, wanted) = trainer.stood[0].batches[0], full.stood[0].batches[0]
    assert ids.tolist() == same.tolist()
    np.testing.assert_allclose(readings, wanted, rtol=0.05, atol=0.01)
    assert (trainer.stood[3].counts[:, -1] == 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("overflowing", [[0, 5], [13, 20]])
def test_images_whose_forward_overflows_are_not_seen_in_that_epoch(data, tmp_path, monkeypatch, overflowing):
    original = LossTap.assigned
    running = []

    def assigned(tap, seen, *rest):
        trainer = running[0]
        ids = trainer._batch_ids
        if trainer.epoch + 1 == 3 and (rows := np.flatnonzero(np.isin(ids, overflowing))).size:
            seen = Assignment(**{**vars(seen), "scores": seen.scores.clone()})
            seen.scores[rows, 0] = torch.nan
        original(tap, seen, *rest)

    monkeypatch.setattr(LossTap, "assigned", assigned)
    trainer = helpers.new_trainer(data, tmp_path / "run", trainer=Watched, method=METHOD, epochs=EPOCHS)
    running.append(trainer)
    trainer.train()
    assert np.flatnonzero(along(trainer, 3, overflowing[0])).tolist() == overflowing
    assert trainer.stood[2].counts[:, -1].tolist() == [1 if i in overflowing else 2 for i in range(N)]
    assert (np.isfinite(trainer.pruner.mask.logits)).all()


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="upstream compiles nothing without a C++ compiler"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("backend", helpers.gate_runs(["eager", "inductor"], 0))
def test_compiled_runs_move_no_image_of_the_batch_that_is_left_out(data, tmp_path, monkeypatch, backend):
    """Upstream drops the last, smaller batch then: 2 of the 26 images, others in each epoch."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: original(model, backend=backend))
    trainer = watched(data, tmp_path, compile=True)
    assert hasattr(trainer.model, "_orig_mod")
    replay(trainer)
    for epoch in (2, 3):
        seen = np.concatenate([ids for ids, _ in trainer.stood[epoch - 1].batches])
        assert len(seen) == 24
        unseen = sorted({*range(N)} - {*seen})
        assert np.flatnonzero(along(trainer, epoch, unseen[0])).tolist() == unseen


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_reads_what_a_plain_one_reads(data, tmp_path, monkeypatch):
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: original(model, backend="eager"))
    compiled, plain = watched(data, tmp_path / "c", compile=True), watched(data, tmp_path / "p")
    (ids, readings), (same, wanted) = compiled.stood[0].batches[0], plain.stood[0].batches[0]
    assert ids.tolist() == same.tolist()
    np.testing.assert_array_equal(readings, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [-1, 0.7])
def test_a_batch_found_by_ultralytics_is_the_one_that_counts(data, tmp_path, batch):
    """On a CPU it finds its default, 16."""
    trainer = watched(data, tmp_path, batch=batch)
    assert trainer.batch_size == 16
    replay(trainer)
    assert [len(ids) for ids, _ in trainer.stood[1].batches] == [16, 10]
    assert [len(ids) for ids, _ in trainer.stood[-1].batches] == [16, 4]


@pytest.mark.slow
def test_no_larger_batch_is_found_than_the_last_stage_has_images(data, tmp_path):
    trainer = watched(data, tmp_path, share=0.5, batch=-1)
    assert trainer.batch_size == trainer.args.batch == 13
    assert [len(ids) for ids, _ in trainer.stood[-1].batches] == [13]
    replay(trainer)


def test_a_comparison_wants_one_batch_for_all_its_arms(data):
    with pytest.raises(ConfigError, match="Expected one batch size for all arms, but batch -1 would find one for each"):
        compare({"model": "yolov3-tiny.yaml", "data": str(data)}, batch=-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_bf16_without_a_gpu_is_refused_in_one_line(data, tmp_path):
    with pytest.raises(ConfigError, match="for amp=bf16, but cpu is none: leave amp out"):
        helpers.new_trainer(data, tmp_path / "run", amp="bf16")


def test_the_scale_falls_with_a_skipped_step_and_only_then():
    """What torch does, and what a skipped step is known by."""
    parameter = torch.nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for gradient, scale in ((torch.inf, 4.0), (1.0, 4.0), (torch.nan, 2.0)):
        scaler.scale(parameter.sum()).backward()
        parameter.grad.fill_(gradient * scaler.get_scale())
        before = parameter.item()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert (parameter.item() != before) == np.isfinite(gradient)
        assert scaler.get_scale() == scale


# The script for machines with a GPU


def test_the_gpu_script_skips_every_line_where_there_is_no_gpu(tmp_path):
    script = Path(__file__).parent / "gpu" / "check_gpu.py"
    done = helpers.python(script, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    head, *lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert head == "there is no GPU that torch can use: nothing is tried"
    names = "fp16 bf16 compiled nan_recovery nccl_one nccl_two split syncs memory autobatch out_of_memory step_time"
    assert [line.split()[:2] for line in lines] == [["SKIP", name] for name in names.split()]
    assert list(tmp_path.iterdir()) == []


def test_the_gpu_script_tells_what_failed_from_what_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent / "gpu")
    import check_gpu

    def fail(_):
        raise AssertionError("3 is\nnot 4")

    def skip(_):
        raise check_gpu.Skip("no such thing")

    lines = {"good": lambda _: "5 of 5", "bad": fail, "absent": skip}
    monkeypatch.setattr(check_gpu, "LINES", {name: (f"claim {name}", line) for name, line in lines.items()})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def here(name, folder):
        folder.mkdir(parents=True)
        check_gpu.attempt(name, folder)
        return json.loads((folder / "verdict.json").read_text())

    monkeypatch.setattr(check_gpu, "judge", here)
    assert check_gpu.main([]) == 1
    said = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == [
        ["PASS", "good", "claim", "good;", "5", "of", "5"],
        ["FAIL", "bad", "claim", "bad;", *["AssertionError:", "3", "is", "not", "4"]],
        ["SKIP", "absent", "claim", "absent;", "no", "such", "thing"],
    ]
    assert check_gpu.main(["good", "absent"]) == 0
