"""`python -m yolo_adapruner.bench COMMAND`: what the mask costs and what a whole run saves, on this machine."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_adapruner.errors import AdaPrunerError, RunError

if TYPE_CHECKING:
    from yolo_adapruner.config import RunConfig

_FLAGS = ("model", "data", "imgsz", "batch", "device", "seed")
_MIXING = {"mosaic": 1.0, "mixup": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 0, or 2 for bad input, with one line that says what to do."""
    args = _parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else [*argv]
    try:
        print(args.bench(args))
    except AdaPrunerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m yolo_adapruner.bench", description=(__doc__ or "").partition(": ")[2]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "attribution",
        help="a stock training step against one with mask and attribution, mosaic and mixup on, loader included",
        epilog="key=value settings go to both sides' Ultralytics: mosaic=0",
    )
    command.set_defaults(bench=_attribution)
    _recipe(command)
    _rounds(command)
    command = commands.add_parser(
        "step",
        help="the same without mosaic and mixup, part by part: mask alone, with the judge, with redundancy, with both",
        epilog="key=value settings go to all sides' Ultralytics: nbs=8",
    )
    command.set_defaults(bench=_step)
    _recipe(command)
    _rounds(command)
    command = commands.add_parser("memory", help="peak memory of a masked run over that of a stock one, in processes")
    command.set_defaults(bench=_memory)
    _recipe(command)
    _rounds(command)
    command.set_defaults(steps=20, repeats=3)
    command.add_argument("--side", choices=("stock", "masked"), help=argparse.SUPPRESS)  # what a process is started as
    command = commands.add_parser(
        "profile", help="where an epoch's time goes, stock and ours in turn: loader, forward, loss, ... as a table"
    )
    command.set_defaults(bench=_profile)
    _recipe(command)
    command.add_argument("--epochs", type=int, default=2, metavar="N", help="epochs a side (default 2)")
    command.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="as in step")
    command.add_argument("--svg", type=Path, metavar="FILE", help="draw it as well")
    for name, work, words in (
        (
            "mask",
            _mask,
            "the mask's own work at N images: an iteration, its step and an epoch's end",
        ),
        ("export", _export, "what writing a run's files, and writing them again, takes at N images"),
    ):
        command = commands.add_parser(name, help=words)
        command.set_defaults(bench=work)
        command.add_argument("--images", nargs="+", type=int, default=[10_000, 1_000_000], metavar="N")
        command.add_argument("--json", action="store_true", help="print one line of JSON")
    _add_wall(commands)
    return parser


def _recipe(command: argparse.ArgumentParser) -> None:
    """Take a run config and what stands over it."""
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.add_argument("--config", default="yolov3-tiny", help="run config: a YAML file, or a packaged one")
    command.add_argument("--model", help="Ultralytics architecture or checkpoint")
    command.add_argument("--data", help="Ultralytics data file")
    command.add_argument("--imgsz", type=int, default=160, help="input size in pixels (default 160)")
    command.add_argument("--batch", type=int, help="images a batch")
    command.add_argument("--device", help="Ultralytics' device: cpu, 0, mps")
    command.add_argument("--seed", type=int, help="seed of all sides")
    command.add_argument("--json", action="store_true", help="print one line of JSON")


def _rounds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, default=10, metavar="N", help="steps a side in a round (default 10)")
    command.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (default 15)")
    command.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: count this process's CPU seconds (CPU runs only)"
    )


def _add_wall(commands: Any) -> None:
    command = commands.add_parser(
        "wall",
        help="whole commands, stock against --prune and --dynamic: wall time, images trained on, test mAP",
        epilog="key=value settings go to all arms' runs; a folder's finished cells are not run again",
    )
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.add_argument("--config", default="yolov3-tiny", help="run config: a YAML file, or a packaged one")
    command.add_argument("--model", help="Ultralytics architecture or checkpoint")
    command.add_argument("--data", help="Ultralytics data file; its test split is reported on, or half of val")
    command.add_argument("--imgsz", type=int, help="input size in pixels")
    command.add_argument("--batch", type=int, help="images a batch")
    command.add_argument("--device", help="Ultralytics' device: cpu, 0, mps")
    command.add_argument("--arms", help="comma-separated: stock, short-SHARE, prune-SHARE, dynamic, dynamic-SHARE")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    command.add_argument("--work", required=True, metavar="FOLDER", help="where cells are kept")
    command.add_argument("--json", action="store_true", help="print one line of JSON")
    command.set_defaults(bench=_wall, seed=None)


def _wall(args: argparse.Namespace) -> str:
    from yolo_adapruner.config import key_values, load
    from yolo_adapruner.study import wall

    config = load(args.config, {**key_values(args.settings), **_flags(args)})
    arms = wall.ARMS if args.arms is None else tuple(args.arms.split(","))
    cells = []
    for cell in wall.Bench(config, Path(args.work), arms, tuple(args.seeds)).run():
        cells.append(cell)
        print(f"{cell['arm']}, seed {cell['seed']}: {cell['seconds']:.0f} s, {wall.machine()}", file=sys.stderr)
    rows = wall.summary(cells)
    if not args.json:
        return wall.table(rows)
    from yolo_adapruner.engine import stepcost

    beside = {key: value for key, value in stepcost.facts(config).items() if key != "seed"}
    return json.dumps({"bench": "wall", "arms": rows, "cells": cells, "epochs": config.epochs, **beside})


def _config(args: argparse.Namespace, mixing: dict[str, float]) -> RunConfig:
    from yolo_adapruner.config import key_values, load

    return load(args.config, {**mixing, **key_values(args.settings), **_flags(args)})


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as flags; they win over words of the form key=value."""
    return {key: value for key in _FLAGS if (value := getattr(args, key)) is not None}


def _attribution(args: argparse.Namespace) -> str:
    config = _config(args, _MIXING)
    from yolo_adapruner.engine import stepcost

    cost = stepcost.measure(config, steps=args.steps, repeats=args.repeats, clock=args.clock)
    beside = stepcost.facts(config) | {"clock": args.clock}
    if args.json:
        return json.dumps({"bench": "attribution", **asdict(cost), **beside})
    return _text(asdict(cost), beside)


def _step(args: argparse.Namespace) -> str:
    config = _config(args, dict.fromkeys(_MIXING, 0.0))
    from yolo_adapruner.engine import stepcost

    found = stepcost.measure_parts(config, steps=args.steps, repeats=args.repeats, clock=args.clock)
    beside = stepcost.facts(config) | {"clock": args.clock}
    if args.json:
        return json.dumps({"bench": "step", "parts": {k: asdict(v) for k, v in found.items()}, **beside})
    first = next(iter(found.values()))
    lines = [f"stock step: {first.stock_ms:.1f} ms, {first.rounds} rounds of {first.steps} steps a side"]
    lines += [
        f"{name} / stock: {cost.ratio:.3f}, quartiles {_pair(cost.quartiles)}, 95 % interval of the median "
        f"{_pair(cost.interval)}; {cost.masked_operations} operations for {cost.stock_operations}"
        + ("" if cost.same_input else "; its pictures were others")
        for name, cost in found.items()
    ]
    return "\n".join([*lines, *_beside(beside)])


def _memory(args: argparse.Namespace) -> str:
    config = _config(args, dict.fromkeys(_MIXING, 0.0))
    from yolo_adapruner.engine import stepcost

    if args.side:
        return json.dumps(stepcost.peak(config, args.side, steps=args.steps))
    words = [sys.executable, "-m", "yolo_adapruner.bench", *args.words]
    found: dict[str, list[float]] = {"stock": [], "masked": []}
    for _ in range(args.repeats):
        for side, peaks in found.items():
            done = subprocess.run([*words, "--side", side], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RunError(done.stderr.strip().partition("bench: ")[2] or f"The {side} side failed.")
            peaks.append(float(done.stdout.splitlines()[-1]))
    stock, masked = (statistics.median(peaks) for peaks in found.values())
    beside = stepcost.facts(config)
    if args.json:
        return json.dumps({"bench": "memory", "ratio": masked / stock, **found, **beside})
    spread = "; ".join(f"{side} {min(v):.3f} to {max(v):.3f} GB" for side, v in found.items())
    return "\n".join(
        [f"peak memory masked / stock: {masked / stock:.4f}, medians of {args.repeats}; {spread}", *_beside(beside)]
    )


def _profile(args: argparse.Namespace) -> str:
    config = _config(args, dict.fromkeys(_MIXING, 0.0))
    from yolo_adapruner.engine import epochcost, stepcost

    found = epochcost.measure(config, epochs=args.epochs, clock=args.clock)
    beside = stepcost.facts(config) | {"clock": args.clock}
    if args.svg:
        epochcost.draw(found, args.svg, f"{config.model}, {config.imgsz} px, batch {config.batch}")
    if args.json:
        return json.dumps({"bench": "profile", "seconds": found, **beside})
    return "\n".join([epochcost.table(found), *_beside(beside)])


def _mask(args: argparse.Namespace) -> str:
    from yolo_adapruner.study import scale

    found, iterations = {}, scale.iterations(args.images)
    for n in args.images:
        (step, step_bytes), (epoch, epoch_bytes) = scale.update(n), scale.close_epoch(n)
        judged, judged_bytes = scale.close_epoch(n, judged=True)
        found[n] = {
            "iteration_us": 1e6 * iterations[n],
            "update_seconds": step,
            "update_bytes": step_bytes,
            "epoch_seconds": epoch,
            "epoch_bytes": epoch_bytes,
            "judged_epoch_seconds": judged,
            "judged_epoch_bytes": judged_bytes,
        }
    if args.json:
        return json.dumps({"bench": "mask", "images": found})
    return "\n".join(
        f"{n:,} images: iteration {f['iteration_us']:.0f} us; mask's step {f['update_seconds']:.3f} CPU s and "
        f"{f['update_bytes']:.0f} bytes an image; epoch's end without judge {f['epoch_seconds']:.3f} CPU s and "
        f"{f['epoch_bytes']:.0f} bytes an image, with it {f['judged_epoch_seconds']:.3f} CPU s and "
        f"{f['judged_epoch_bytes']:.0f} bytes an image"
        for n, f in found.items()
    )


def _export(args: argparse.Namespace) -> str:
    from yolo_adapruner.study import scale

    found = {n: scale.files(n) for n in args.images}
    if args.json:
        return json.dumps({"bench": "export", "images": found})
    lines = []
    for n, steps in found.items():
        for name in ("write", "export"):
            f = steps[name]
            lines.append(
                f"{n:,} images, {name}: {f['cpu_seconds']:.1f} CPU s, {f['wall_seconds']:.1f} s on the wall, "
                f"peak memory {f['peak_gb']:.2f} GB"
            )
        lines.append(f"{n:,} images: {steps['disk']['gb']:.2f} GB on disk")
    return "\n".join(lines)


def _text(cost: dict[str, Any], beside: dict[str, Any]) -> str:
    lines = [
        f"masked / stock step: {cost['ratio']:.3f}, quartiles {_pair(cost['quartiles'])}, 95 % interval of the median "
        f"{_pair(cost['interval'])}, {cost['rounds']} rounds of {cost['steps']} steps a side",
        f"median step: stock {cost['stock_ms']:.1f} ms, masked {cost['masked_ms']:.1f} ms",
        *_beside(beside),
    ]
    if not cost["same_input"]:
        lines.insert(1, "the sides were given different pictures: this compares recipes, not attribution alone")
    return "\n".join(lines)


def _beside(facts: dict[str, Any]) -> list[str]:
    """What a measurement was made on, in lines."""
    mixing = ", ".join(f"{key} {value:g}" for key, value in facts["mixing"].items())
    return [
        f"{facts['model']}, {facts['imgsz']} px, batch {facts['batch']}, {mixing}, seed {facts['seed']}"
        + (f", {facts['clock']} seconds" if "clock" in facts else ""),
        facts["hardware"],
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]


def _pair(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} to {values[1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
