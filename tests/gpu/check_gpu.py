"""What needs CUDA: `python tests/gpu/check_gpu.py` prints PASS, FAIL or SKIP for each line, and fails if one failed.

Each line is tried in a process of its own on a small set that this script draws; the process's output goes to a log
whose place is printed. Only those named are tried, where any are. `--jobs 6` tries six at once, and what measures time
or memory after them, by itself. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

N, EPOCHS = 26, 6
METHOD: dict[str, Any] = {"warmup": 1, "joint": 0.5}  # stages 1, 2, 2, 2, 3, 3
CLOSE = 1e-3
"""How far a logit may be off where a GPU computed the same readings twice."""

LINES: dict[str, tuple[str, Callable[[Path], str | None]]] = {}
"""By name: what the line claims, and the function that tries it in a folder; it may return a figure to print."""
ALONE: set[str] = set()
"""Those that other work on the GPU would change."""


class Skip(Exception):
    """This machine lacks what the line is about."""


def line(claim: str, *, alone: bool = False) -> Callable[[Callable[[Path], str | None]], Callable[[Path], str | None]]:
    def add(function: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
        LINES[function.__name__] = claim, function
        if alone:
            ALONE.add(function.__name__)
        return function

    return add


# The lines


def watched(
    folder: Path, *, before: Callable[[Any], None] | None = None, method: dict[str, Any] = METHOD, **settings: Any
) -> Any:
    """Train on the first GPU with an account kept beside the run."""
    from tests import helpers
    from tests.ledger import Watched

    data = helpers.build_set(folder / "set", train=N)
    given = {"epochs": EPOCHS, "device": "0", "amp": False, "workers": 2, **settings}
    trainer = helpers.new_trainer(data, folder / "run", trainer=Watched, method=method, **given)
    if before is not None:
        before(trainer)
    trainer.train()
    return trainer


@line("a step that the scaler skips counts for no image")
def fp16(folder: Path) -> str:
    import numpy as np
    from ultralytics.engine import trainer as upstream

    from tests.ledger import replay

    upstream.check_amp = lambda model: True  # it would fetch weights to try fp16 with
    trainer = watched(folder, amp=True, before=lambda t: t.gradients.update({(2, 2): np.inf, (3, 1): np.nan}))
    assert {(2, 2), (3, 1)} <= set(trainer.skipped), f"skipped {trainer.skipped}"
    steps = 4 * 4 + 2 * 3
    assert trainer.updates == steps - len(trainer.skipped), f"{trainer.updates} of {steps} updates"
    replay(trainer, trainer.skipped, tolerance=CLOSE)
    out = list(trainer.stood[1].batches[1][0])
    gained = trainer.stood[1].counts[out, -1] - trainer.stood[0].counts[out, -1]
    assert (gained == 0).all(), "an image of the skipped step was read"
    return f"{len(trainer.skipped)} of {steps} steps skipped"


@line("every image is read once an epoch, and close to what fp32 reads")
def bf16(folder: Path) -> str:
    import numpy as np

    from tests.ledger import replay
    from yolo_adapruner.engine import runtime

    if not runtime.native_bf16("cuda:0"):
        raise Skip("the GPU does not compute in bfloat16")
    half, full = (watched(folder / name, amp=amp, workers=0) for name, amp in (("half", "bf16"), ("full", False)))
    replay(half, tolerance=CLOSE)
    assert (half.stood[3].counts[:, -1] == 3).all()
    (ids, readings), (same, wanted) = half.stood[0].batches[0], full.stood[0].batches[0]
    assert ids.tolist() == same.tolist(), "another order of images"
    np.testing.assert_allclose(readings, wanted, rtol=0.05, atol=0.02)
    return f"largest difference of a reading {np.nanmax(np.abs(readings - wanted)):.3g}"


@line("batch=-1: the size that Ultralytics finds is the one the stages use", alone=True)
def autobatch(folder: Path) -> str:
    from tests.ledger import replay

    trainer = watched(folder, batch=-1)
    kept = int(trainer.pruner.kept.sum())
    assert 2 <= trainer.batch_size <= kept, f"batch {trainer.batch_size} with {kept} images kept"
    replay(trainer, tolerance=CLOSE)
    return f"batch {trainer.batch_size}"


@line("no image of the batch that upstream leaves out is read")
def compiled(folder: Path) -> None:
    import numpy as np

    from tests.ledger import replay

    trainer = watched(folder, compile=True)
    if not hasattr(trainer.model, "_orig_mod"):
        raise Skip("upstream found nothing to compile with and went on without")
    replay(trainer, tolerance=CLOSE)
    for epoch in (2, 3):
        seen = np.concatenate([ids for ids, _ in trainer.stood[epoch - 1].batches])
        assert len(seen) == 24, f"{len(seen)} images in epoch {epoch}"
        gained = trainer.stood[epoch - 1].counts[:, -1] - trainer.stood[epoch - 2].counts[:, -1]
        assert sorted({*range(N)} - {*seen}) == np.flatnonzero(gained == 0).tolist()


@line("when it runs out in epoch 1 the batch is halved, and the epoch counts once and whole", alone=True)
def out_of_memory(folder: Path) -> None:
    import torch

    from tests.ledger import replay

    def run_out(trainer: Any) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)

    def give_back(trainer: Any) -> None:
        torch.cuda.set_per_process_memory_fraction(1.0)

    def prepare(trainer: Any) -> None:
        trainer.faults[1, 3] = run_out
        trainer.add_callback("on_train_epoch_start", give_back)

    trainer = watched(folder, before=prepare, imgsz=640, method={**METHOD, "warmup": 0})
    assert [one.epoch for one in trainer.passes] == [1, 1, 2, 3, 4, 5, 6], "memory did not run out"
    assert trainer.batch_size == 4, f"batch {trainer.batch_size}"
    replay(trainer, tolerance=CLOSE)
    assert (trainer.stood[0].counts[:, -1] == 1).all()


@line("an epoch that is trained again after a NaN counts once")
def nan_recovery(folder: Path) -> None:
    from tests.ledger import nan_loss, replay

    trainer = watched(folder, before=lambda t: t.faults.update({(3, 2): nan_loss}))
    assert [one.epoch for one in trainer.passes] == [1, 2, 3, 3, 4, 5, 6], "no epoch was trained again"
    replay(trainer, tolerance=CLOSE)
    assert (trainer.stood[3].counts[:, -1] == 3).all()


def launched(folder: Path, kind: str, device: str, ranks: int) -> None:
    """Train through the launcher and hold what the processes noted against each other."""
    import numpy as np

    from tests import helpers, two_processes

    data = helpers.build_set(folder / "set", train=N - 1)
    (folder / "notes").mkdir()
    os.environ[two_processes.NOTES] = str(folder / "notes")
    settings = {"epochs": EPOCHS, "device": device, "amp": False, "workers": 2}
    trainer = helpers.train_here(data, folder / "run", trainer=getattr(two_processes, kind), method=METHOD, **settings)
    assert trainer.ddp, "nothing was launched"
    assert trainer.pruner is None
    for epoch in (*(f"{epoch:02}" for epoch in range(EPOCHS)), "end"):
        notes = [dict(np.load(folder / "notes" / f"{rank}-{epoch}.npz")) for rank in range(ranks)]
        for name in ("logits", "kept", "counts", "means", "stage"):
            for other in notes[1:]:
                np.testing.assert_array_equal(notes[0][name], other[name], err_msg=f"{epoch} {name}")
        if epoch < "04":
            assert (notes[0]["visits"] == 1).all(), f"an image was not read once in epoch {epoch}"
            assert sum(note["once"].sum() for note in notes) == N - 1
    assert len(helpers.read_list(folder / "run" / "kept.txt")) == notes[0]["kept"].sum()


@line("one GPU, through Ultralytics' launcher: every image is read once an epoch")
def nccl_one(folder: Path) -> None:
    import torch

    if not torch.distributed.is_nccl_available():
        raise Skip("this torch has no NCCL")
    launched(folder, "OneLaunched", "0", 1)


@line("two GPUs: the same logits on both bit for bit, padding counted once")
def nccl_two(folder: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        raise Skip("there is one GPU")
    launched(folder, "Noted", "0,1", 2)


@line("loss and gradients at weights of 1 are the stock ones")
def split(folder: Path) -> str:
    import copy

    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG

    from yolo_adapruner.engine.losses import LossTap

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(3)
    model = DetectionModel("yolov8n.yaml", nc=4, verbose=False).train().cuda()
    model.args = copy.copy(DEFAULT_CFG)
    owner = torch.tensor([0.0, 0, 1, 3, 3, 3])
    batch = {
        "img": torch.rand(4, 3, 64, 64),
        "batch_idx": owner,
        "cls": torch.randint(4, (6, 1)).float(),
        "bboxes": torch.rand(6, 4) * 0.3 + torch.tensor([0.3, 0.3, 0.2, 0.2]),
    }
    batch = {name: values.cuda() for name, values in batch.items()}
    state = copy.deepcopy(model.state_dict())

    def step(weights: Any, dtype: Any) -> list[Any]:
        criterion = model.init_criterion()
        if weights is not None:
            LossTap(criterion).weights = weights
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            loss, _ = criterion(model.predict(batch["img"]), batch)
        loss.sum().backward()
        found = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        model.zero_grad(set_to_none=True)
        model.load_state_dict(state)
        return found

    said = []
    for name, dtype in (("fp32", None), ("fp16", torch.float16)):
        stock, again, ours = step(None, dtype), step(None, dtype), step(torch.ones(4).cuda(), dtype)
        noise, gap = (
            max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(stock, other, strict=True))
            for other in (again, ours)
        )
        said.append(f"{name}: off by {gap:.2g}, stock from itself by {noise:.2g}")
        assert gap <= max(2 * noise, 0.0), said[-1]
    return "; ".join(said)


@contextmanager
def counted_syncs(counts: list[int]) -> Iterator[None]:
    """Append how often the host waited for the device."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counts.append(sum("called a synchronizing" in str(one.message) for one in caught))


@line("a train step, from the batch to the optimizer, waits for the device no more often than stock")
def syncs(folder: Path) -> str:
    return "; ".join(
        f"{name}: {_syncs(folder / name, settings)}"
        for name, settings in (
            ("fp32", {"amp": False}),
            ("fp16", {"amp": True}),
            ("fp16 with mosaic", {"amp": True, "mosaic": 1.0, "close_mosaic": 0}),
        )
    )


def _syncs(folder: Path, more: dict[str, object]) -> str:
    from ultralytics.engine import trainer as upstream
    from ultralytics.models.yolo.detect import DetectionTrainer

    from tests import helpers
    from yolo_adapruner import AdaPruneTrainer

    upstream.check_amp = lambda model: True  # it would fetch weights to try fp16 with
    data = helpers.build_set(folder / "set", train=N)
    steps: dict[str, list[int]] = {}
    after: list[int] = []

    def counting(kind: type, name: str) -> type:
        class Counting(kind):  # type: ignore[misc,valid-type]
            def run_callbacks(self, event: str) -> None:
                if event == "on_train_batch_start":
                    self.counter = counted_syncs(steps.setdefault(name, []))
                    self.counter.__enter__()
                if event == "on_train_batch_end":
                    with counted_syncs(after):
                        super().run_callbacks(event)
                    return
                super().run_callbacks(event)

            def optimizer_step(self) -> None:
                super().optimizer_step()
                self.counter.__exit__(None, None, None)

        return Counting

    settings = {"epochs": 3, "device": "0", "workers": 0, "warmup_epochs": 0, **more}
    helpers.train_here(
        data, folder / "ours", trainer=counting(AdaPruneTrainer, "ours"), method={"warmup": 0, "joint": 1.0}, **settings
    )
    noted, after = max(after), []
    model = helpers.write_architecture(folder / "small.yaml")
    stock = {**helpers.QUICK, **settings, "model": str(model), "data": str(data), "save_dir": str(folder / "stock")}
    counting(DetectionTrainer, "stock")(overrides=stock).train()
    ours, stocks = steps["ours"], steps["stock"]
    assert len(ours) == len(stocks) > 0
    said = f"{max(ours)} a step with the mask, {max(stocks)} without; {noted} more once the step is done"
    assert max(ours) <= max(stocks), said
    return said


SIZES = [(model, imgsz) for model in ("yolo11n.yaml", "yolov3-tiny.yaml") for imgsz in (160, 320)]
MIXING = {"mosaic": 0.0, "mixup": 0.0}


@line("the mask takes at most 2 % of a step, in bf16 where the GPU computes it", alone=True)
def step_time(folder: Path) -> str:
    from yolo_adapruner.config import load
    from yolo_adapruner.engine import stepcost

    everything = "mask, judge, redundancy"
    parts = {name: stepcost.PARTS[name] for name in ("mask", everything)}
    said, slow = [], []
    for model, imgsz in SIZES:
        given = {"model": model, "imgsz": imgsz, "batch": 16, "device": "0", "workers": 4, **MIXING}
        found = stepcost.measure_parts(load("yolov3-tiny", given), parts, steps=10, repeats=12)
        mask, name = found["mask"], f"{Path(model).stem} {imgsz} px"
        said.append(
            f"{name}: {mask.ratio:.3f} [{mask.interval[0]:.3f}, {mask.interval[1]:.3f}] of {mask.stock_ms:.1f} ms, "
            f"with judge and redundancy {found[everything].ratio:.3f}"
        )
        print(name, found, flush=True)
        slow += [name] if mask.ratio > 1.02 else []
    assert not slow, f"over 1.02: {', '.join(slow)}; {'; '.join(said)}"
    return "; ".join(said)


@line("a masked run allocates at most 1 % more on the GPU than a stock one")
def memory(folder: Path) -> str:
    words = ["--model", "yolo11n.yaml", "--imgsz", "320", "--batch", "16", "--device", "0", "--steps", "20"]
    words += ["--repeats", "1", "--json"]
    command = [sys.executable, "-m", "yolo_adapruner.bench", "memory", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1:]
    found = json.loads(done.stdout.splitlines()[-1])
    said = f"{found['ratio']:.4f} of {found['stock'][0]:.3f} GB"
    assert found["ratio"] <= 1.01, said
    return said


# Trying them


def environment(home: Path) -> dict[str, str]:
    """An environment apart from the user's own Ultralytics settings and from the network."""
    config = home / "Ultralytics"
    config.mkdir(parents=True)
    places = {f"{name}_dir": str(home / name) for name in ("datasets", "weights", "runs")}
    (config / "settings.json").write_text(json.dumps({**places, "sync": False}), encoding="utf-8")
    own = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **own, "YOLO_CONFIG_DIR": str(home), "PYTHONPATH": path}


def attempt(name: str, folder: Path) -> None:
    """Try one line in this process and leave its verdict in the folder."""
    try:
        figure = LINES[name][1](folder)
        verdict = ("PASS", figure or "")
    except Skip as reason:
        verdict = ("SKIP", str(reason))
    except BaseException as error:
        traceback.print_exc()
        verdict = ("FAIL", f"{type(error).__name__}: {' '.join(str(error).split())[:900]}")
    (folder / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")


def judge(name: str, folder: Path) -> tuple[str, str]:
    """Try one line in a process of its own."""
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, str(Path(__file__).resolve()), "--attempt", name, str(folder)]
        env = environment(folder / "home")
        code = subprocess.run(command, env=env, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    file = folder / "verdict.json"
    verdict, said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ("FAIL", f"exit code {code}")
    return verdict, f"{said} ({log})" if verdict == "FAIL" else said


def main(words: list[str] | None = None) -> int:
    """Try all lines, or those named, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"lines to try: {', '.join(LINES)}")
    parser.add_argument("--jobs", type=int, default=1, help="lines to try at once (default 1)")
    parser.add_argument("--attempt", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.attempt:
        attempt(args.attempt[0], Path(args.attempt[1]))
        return 0
    if unknown := set(args.names) - set(LINES):
        parser.error(f"expected names of lines ({', '.join(LINES)}), but got {', '.join(sorted(unknown))}")
    import torch

    there = torch.cuda.is_available()
    if there:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"{', '.join(devices)}; torch {torch.__version__}")
    else:
        print("there is no GPU that torch can use: nothing is tried")
    home, failed = Path(tempfile.mkdtemp(prefix="check-gpu-")) if there else Path(), 0
    named = args.names or list(LINES)
    for names, jobs in (
        ([name for name in named if name not in ALONE], max(1, args.jobs)),
        ([name for name in named if name in ALONE], 1),
    ):
        with ThreadPoolExecutor(jobs) as threads:
            tried = threads.map(lambda name: judge(name, home / name) if there else ("SKIP", "no GPU"), names)
            for name, (verdict, said) in zip(names, tried, strict=True):
                failed += verdict == "FAIL"
                print(f"{verdict}  {name:13}  {LINES[name][0]}{f'; {said}' if said else ''}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
